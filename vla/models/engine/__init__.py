"""Accelerated inference: fused weights, static KV caches and CUDA graphs."""
