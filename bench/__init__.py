"""Measuring calotype: the engine beside baselines, a simulator, loads over HTTP. Nothing imports it."""
