"""The ground floor, which everybody may import: models, tiers and parameters. No torch, SQL or HTTP."""
