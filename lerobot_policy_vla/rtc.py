"""Real-time chunking with LeRobot's arguments: the previous chunk's leftover, and the expected inference delay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vla.types import RTCPrefix


def rtc_prefix(
    predicted: Tensor | None,
    leftover: Tensor | None,
    delay: int,
    horizon: int,
    guides: bool,
    settings: Any = None,
) -> RTCPrefix | None:
    """What the next chunk continues.

    The first `delay` actions of the leftover are executed before the chunk arrives: they are its action prefix.
    A policy that `guides` is guided towards the others (the identity as Jacobian, as in LeRobot's RTCProcessor), except
    with LeRobot's schedule ZEROS.

    Args:
        predicted: The chunks (b, h, a) that the policy returned last, of which the leftover is the end.
        leftover: The actions (t, a) or (b, t, a) that are not executed yet, which LeRobot cuts or pads with zeros to
            its execution horizon.
        delay: The expected inference delay in steps.
        horizon: The steps of a chunk, of which at least one is decoded.
        guides: Whether the policy supports guidance.
        settings: LeRobot's RTCConfig.
    """
    if leftover is None or (settings is not None and not settings.enabled):
        return None
    leftover = (leftover if leftover.ndim == 3 else leftover[None]).double().cpu()
    known = leftover[:, : known_steps(predicted, leftover)].numpy()
    count = min(delay, known.shape[1], horizon - 1)
    schedule = getattr(settings, "prefix_attention_schedule", None)
    rest = known[:, count:horizon]
    has_rest = guides and rest.shape[1] > 0 and getattr(schedule, "name", schedule) != "ZEROS"
    if not count and not has_rest:
        return None
    return RTCPrefix(known[:, :count], rest if has_rest else None)


def known_steps(predicted: Tensor | None, leftover: Tensor) -> int:
    """The steps of the leftover that are not LeRobot's padding: zeros after the end of the predicted chunk.

    A row of zeros may also be a command, so that the chunk decides, if it is known.
    """
    steps = leftover.shape[1]
    padding = int((leftover == 0).all(-1).all(0).flip(0).long().cumprod(0).sum())
    if predicted is None or predicted.shape[0] != leftover.shape[0]:
        return steps - padding
    predicted = predicted.double().cpu()
    for known in range(min(steps, predicted.shape[1]), max(steps - padding, 1) - 1, -1):
        if torch.equal(leftover[:, :known], predicted[:, predicted.shape[1] - known :]):
            return known
    return steps if padding == 0 or _inside(predicted, leftover) else steps - padding


def _inside(predicted: Tensor, leftover: Tensor) -> bool:
    """Whether the leftover is a part of the chunk, without its end: it was cut, and not padded."""
    steps = leftover.shape[1]
    starts = range(predicted.shape[1] - steps + 1)
    return any(torch.equal(leftover, predicted[:, start : start + steps]) for start in starts)
