"""The policy decides which generations share each step batch: pure Python, an injected clock, no torch."""
