"""Probes: questions about simulated images, with ground truth from the simulator."""
