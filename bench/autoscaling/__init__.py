"""Simulates the autoscaling of a fleet: the rules of its manifest, on a day of traffic, under the policy."""
