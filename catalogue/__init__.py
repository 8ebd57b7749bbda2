"""The terms that every package may import: models, tiers, parameters, states. No torch, SQL or HTTP."""
