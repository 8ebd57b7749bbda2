"""The policy: who runs next and in which company. Pure Python on a given clock; no torch."""
