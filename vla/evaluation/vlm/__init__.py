"""Evaluation of vision-language models: benchmarks, probes, and the scoring of answers."""
