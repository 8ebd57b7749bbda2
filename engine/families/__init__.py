"""What the engine needs to know of a kind of model, one module per kind."""
