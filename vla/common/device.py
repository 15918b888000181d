"""The device on which models run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def accelerator() -> torch.device:
    """The GPU, or the CPU if there is none; for ranks of distributed training see `vla.training.distributed`."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
