"""CUDA graphs: what is launched kernel by kernel once is replayed in one call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

MOST = 512
"""Graphs that are kept: a decoded token has one for each place and length of prompt."""


@dataclass
class Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    output: Any


@dataclass
class Graphs:
    """Runs functions of tensors, on CUDA as graphs: one for each key and shape of inputs, captured at its first call.

    The function must launch the same kernels each time, and wait for nothing. What it returns is overwritten by the
    next call with the same key. Elsewhere than on CUDA, and where a capture fails, the function is just called.
    """

    captured: dict[Hashable, Captured | None] = field(default_factory=dict)
    enabled: bool = True
    pool: Any = None
    """Memory that all share: they run one after the other, and what they return is kept as long as they are."""

    def run(self, key: Hashable, function: Callable[..., Any], *inputs: Tensor) -> Any:
        if not (self.enabled and inputs[0].is_cuda):
            return function(*inputs)
        key = (key, *((x.shape, x.dtype) for x in inputs))
        if key not in self.captured:
            if len(self.captured) >= MOST:
                self.clear()
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            self.captured[key] = _capture(function, inputs, self.pool)
        if (known := self.captured[key]) is None:
            return function(*inputs)
        for mine, given in zip(known.inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        known.graph.replay()
        return known.output

    def clear(self) -> None:
        """Forgets all: what they read or write has moved."""
        if self.captured:
            torch.cuda.synchronize()
            self.captured.clear()
            self.pool = None


def _capture(function: Callable[..., Any], inputs: tuple[Tensor, ...], pool: Any) -> Captured | None:
    """None where the function cannot be captured: it waits for the device, or allocates elsewhere."""
    held = [x.clone() for x in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # libraries choose their kernels and reserve their memory
            function(*held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            output = function(*held)
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return Captured(graph, held, output)
