"""Prefetches the micro-batches of a training run while the model computes."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial

import numpy as np
from jaxtyping import UInt8

from vla.datasets.mixture import Mixture
from vla.datasets.shards import cores
from vla.models.batch import Batch
from vla.models.processor import Processor
from vla.training.batches import micro_batches
from vla.training.distributed import DistributedContext
from vla.training.freed_memory import keep_freed_memory
from vla.training.loader_processes import SLOTS, Make, in_processes
from vla.training.train_config import TrainConfig

MOST_PROCESSES = 8


@contextmanager
def prefetch(
    processor: Processor, mixture: Mixture, plan: TrainConfig, start: int, world: DistributedContext
) -> Iterator[Iterator[list[Batch]]]:
    """Iterates over the micro-batches of this rank from step `start`, in pinned memory for a GPU.

    They are built by `plan.loader_workers` processes, or by a thread if that is 0, with identical results. A batch must
    be used before the next one is requested.

    Raises:
        InputError: an example cannot be read.
    """
    keep_freed_memory()
    make: Make = partial(micro_batches, processor, mixture, plan, world=world)
    steps, processes = range(start, plan.steps), loader_workers(plan, world)
    made = in_processes(make, steps, processes) if processes and len(steps) > 1 else _one_by_one(make, steps)

    def next_step() -> list[Batch]:
        micro = next(made, [])
        if world.device.type != "cuda":
            return micro
        return [batch.map_tensors(lambda tensor: tensor.pin_memory(), batch.source) for batch in micro]

    def stream() -> Iterator[list[Batch]]:
        # Processes prefetch by themselves.
        pending: list[Future[list[Batch]]] = [pool.submit(next_step) for _ in range(1 if processes else 2)]
        for _ in steps:
            yield pending.pop(0).result()
            pending.append(pool.submit(next_step))

    with closing(made), ThreadPoolExecutor(1, "loader") as pool:
        try:
            yield stream()
        finally:
            pool.shutdown(cancel_futures=True)


def loader_workers(plan: TrainConfig, world: DistributedContext) -> int:
    """The number of loader processes of the plan.

    By default 0 if the model computes on the CPU, else the cores that the ranks of this machine leave free.
    """
    if plan.loader_workers is not None:
        return plan.loader_workers
    if world.device.type == "cpu":
        return 0
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0, min(MOST_PROCESSES, cores() // ranks - 1))


def _one_by_one(make: Make, steps: Sequence[int]) -> Generator[list[Batch]]:
    memory = [_Reused() for _ in range(SLOTS)]
    for step in steps:
        yield make(step, frames=memory[step % SLOTS].frames)


class _Reused:
    """A buffer that is reused for successive batches: allocating memory takes longer than decoding images into it."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def frames(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "_b _k _h _w 3"]:
        if (size := math.prod(shape)) > len(self._bytes):
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].reshape(shape)
