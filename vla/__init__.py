"""Vision-language-action policies: train from demonstrations, try in simulation, run on a real arm."""

__version__ = "0.1.0"
