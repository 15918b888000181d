"""Policies, which map an observation to an action chunk, and loading them by name."""
