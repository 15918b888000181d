"""Scores of vision-language benchmarks from existing answers."""
