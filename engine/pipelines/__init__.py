"""diffusers pipelines as the engine runs them: calls that park at each forward pass."""
