"""Scores of vision-language benchmarks from answers that are there already."""
