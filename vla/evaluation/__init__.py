"""Evaluation of policies in simulation and of vision-language models on benchmarks and probes."""
