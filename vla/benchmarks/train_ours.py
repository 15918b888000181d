"""`vla train`'s loop as a contestant of `vla bench train`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vla.benchmarks.train_contestant import Turns
from vla.benchmarks.train_shapes import Shape, ours
from vla.common.device import accelerator
from vla.models.action_heads import flow
from vla.models.batch import Batch
from vla.models.vla import VLA
from vla.training import cotrain
from vla.training.train_config import Precision, TrainConfig


def loop(
    turns: Turns,
    shape: Shape,
    data: str,
    batch_size: int,
    precision: Precision,
    default: bool,
    policy: Path | None,
    folder: Path,
) -> None:
    """Trains endlessly; without `default`, with AdamW and one time and noise sample per row of a flow head.

    The weights are those of LeRobot's `policy`, or random.
    """
    torch.manual_seed(0)
    if not default:
        flow.REPEATS = 1
    model, mixture = ours(shape, data, policy)
    device = accelerator()
    flops = _flops(model.to(device), model.processor.batch(mixture.batch(0, batch_size)).to(device))
    _Clock(model, turns, flops / batch_size)
    settings: dict[str, Any] = {} if default else {"optimizer": "adamw"}
    if device.type == "cuda":
        # LeRobot has no moving average, which does not fit into memory with 3 B weights and moments.
        settings |= {"compile": True, "ema": 0.0}
    plan = TrainConfig(10**6, batch_size, evaluate_every=10**6, lr=1e-4, precision=precision, **settings)
    cotrain.train(model, mixture, plan, folder)


class _Clock:
    """Ends a turn at the forward pass after its last step, and measures the time waiting for data.

    The wait of the first step is not counted, since no data is prefetched yet.
    """

    def __init__(self, model: VLA, turns: Turns, flops: float) -> None:
        self.turns, self.flops = turns, flops
        self.step, self.waited = 0, 0.0
        self._prefetch = cotrain.prefetch
        cotrain.prefetch = self._timed  # type: ignore[assignment]
        model.register_forward_pre_hook(self._begins)

    @contextmanager
    def _timed(self, *arguments: Any) -> Iterator[Iterator[list[Batch]]]:
        with self._prefetch(*arguments) as batches:
            yield self._measure_waits(batches)

    def _measure_waits(self, batches: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        while True:
            start = time.perf_counter()
            if not (micro := next(batches, [])):
                return
            self.waited += (time.perf_counter() - start) * (self.step > 0)
            yield micro

    def _begins(self, *_: Any) -> None:
        if self.step and self.step % self.turns.steps == 0:
            self.turns.end(waited=self.waited, flops=self.flops)
            self.waited = 0.0
        self.step += 1


def _flops(model: VLA, batch: Batch) -> float:
    """The operations of a forward and a backward pass, including masked attention products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(batch)[0].sum().backward()
    model.zero_grad()
    return float(counter.get_total_flops())
