"""diffusers pipelines as the engine runs them: each call is suspended at every forward pass."""
