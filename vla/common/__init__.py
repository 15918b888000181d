"""Utilities for all other packages: files, images, HTML, plots, statistics. Independent of robots and models."""
