"""Where models compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def accelerator() -> torch.device:
    """The machine's GPU, or its processor where it has none; ranks of a training ask `vla.training.distributed`."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
