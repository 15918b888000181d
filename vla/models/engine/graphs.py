"""CUDA graphs: kernel launches are captured once and replayed in one call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

MAX_GRAPHS = 512
"""Maximum number of graphs: decoding has one for each position and prompt length."""


@dataclass
class Captured:
    """A graph with its static input and output tensors."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    output: Any


@dataclass
class Graphs:
    """Runs functions of tensors as CUDA graphs, one for each key and input shape, captured at the first call.

    The function must launch the same kernels each time, without synchronisation. Its result is overwritten by the next
    call with the same key. On other devices, and where capturing fails, the function is called directly.
    """

    captured: dict[Hashable, Captured | None] = field(default_factory=dict)
    enabled: bool = True
    pool: Any = None
    """Memory pool shared by all graphs, since they never run concurrently."""

    def run(self, key: Hashable, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """The result of `function(*inputs)`, by replaying its graph where possible."""
        if not (self.enabled and inputs[0].is_cuda):
            return function(*inputs)
        key = (key, *((x.shape, x.dtype) for x in inputs))
        if key not in self.captured:
            if len(self.captured) >= MAX_GRAPHS:
                self.clear()
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            self.captured[key] = _capture(function, inputs, self.pool)
        if (captured := self.captured[key]) is None:
            return function(*inputs)
        for buffer, value in zip(captured.inputs, inputs, strict=True):
            buffer.copy_(value, non_blocking=True)
        captured.graph.replay()
        return captured.output

    def clear(self) -> None:
        """Discards all graphs, for when tensors that they read or write are reallocated."""
        if self.captured:
            torch.cuda.synchronize()
            self.captured.clear()
            self.pool = None


def _capture(function: Callable[..., Any], inputs: tuple[Tensor, ...], pool: Any) -> Captured | None:
    """Captures a function; None where it synchronises with the device or allocates outside the pool."""
    static = [x.clone() for x in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # warm-up: libraries select kernels and reserve memory
            function(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            output = function(*static)
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return Captured(graph, static, output)
