"""The planner: from profiles, traffic and goals to the configuration of a fleet, by simulation."""
