"""Action tokenizers, which encode action chunks as tokens."""
