"""Backbones: vision-language models of several families, with one interface."""
