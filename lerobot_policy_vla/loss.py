"""The training loss of LeRobot's batches: that of `vla train` for the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vla.datasets.windows import draw_prefix_length
from vla.models.vla import NUMBERS, TOKENS, VLA
from vla.training.balance import count, element_weights
from vla.types import Example

SOURCE = "robot"
NAMES = {TOKENS: "loss_tokens", NUMBERS: "loss_values"}


def with_prefixes(examples: Sequence[Example], longest: int | None) -> tuple[list[Example], list[np.random.Generator]]:
    """The rows with random action prefixes, and a generator of each row.

    The seeds are from numpy's global generator, whose state LeRobot saves with a checkpoint. That of torch also gives a
    number to each loader that is opened, so that a resumed run would differ.
    """
    rngs = [np.random.default_rng(np.random.randint(2**31, size=4)) for _ in examples]
    drawn = [
        replace(one, prefix_length=draw_prefix_length(rng, len(one.target), longest))
        for one, rng in zip(examples, rngs, strict=True)
    ]
    return drawn, rngs


def row_losses(
    model: VLA, examples: Sequence[Example], rngs: Sequence[np.random.Generator] = ()
) -> tuple[Tensor, dict[str, float]]:
    """The loss of each row, whose mean is the loss of the batch, and the mean loss by kind of elements."""
    batch = model.processor.batch(examples, rngs).to(model.device)
    losses, rows, kinds = model(batch)
    ones = torch.zeros(len(examples), dtype=torch.int64, device=rows.device)
    weights = element_weights(count(ones, rows, kinds, 2), [SOURCE], {})[0, kinds].to(losses.dtype)
    per_row = losses.new_zeros(len(examples)).index_add(0, rows, losses * weights) * len(examples)
    present = {kind: name for kind, name in NAMES.items() if bool((kinds == kind).any())}
    return per_row, {name: float(losses[kinds == kind].detach().mean()) for kind, name in present.items()}
