"""Probes: what a model says of pictures of which the simulator knows the truth."""
