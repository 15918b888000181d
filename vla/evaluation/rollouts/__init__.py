"""Rollouts of policies in simulated environments, and the statistics of their results."""
