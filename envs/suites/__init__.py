"""Environments that others wrote, behind our observation and `Embodiment`: a file of configs/env/ describes each."""
