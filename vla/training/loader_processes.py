"""Loader processes: each builds all micro-batches of a step, and the steps are distributed round-robin.

PyTorch's DataLoader runs them. Images, which are most of a batch, do not pass through its pipes: a process decodes them
into memory that it shares with the parent and reuses for later steps. The memory is anonymous: it is released however
the processes end, and is limited only by the machine's memory.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import signal
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields
from multiprocessing import active_children, get_context
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vla.datasets.shards import decode_alone
from vla.errors import InputError
from vla.models.batch import Batch, allocate_frames

Make = Callable[..., list[Batch]]
"""Builds the micro-batches of a step; the keyword `frames` allocates the memory of their images."""
SIGNALS = {signal.SIGINT, signal.SIGTERM}
"""Signals to a process group: loader processes ignore them, since the parent saves a checkpoint and stops them."""
IMPORTED = ["vla.training.batches", "vla.datasets.windows"]
"""Modules that take seconds to import, preloaded in the fork server."""
SLOTS = 3
"""Batches in the memory of a process: the current one, the next one, and the one being built."""


def in_processes(make: Make, steps: Sequence[int], processes: int) -> Generator[list[Batch]]:
    """Yields `make(step)` for each step in order, computed in processes.

    A batch is valid until the second batch after it is requested.
    The first step is computed in this process: it determines the size of the memory, and the processes take seconds to
    start.

    Raises:
        InputError: as `make`, and if a process has died.
    """
    yield (first := make(steps[0]))
    rows, views = sum(len(batch.images) for batch in first), max(batch.images.shape[1] for batch in first)
    size = rows * (views + 1) * first[0].images[0, 0].numel()  # room for one image more
    memory = [[FrameMemory(size) for _ in range(SLOTS)] for _ in range(processes)]
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    loader = DataLoader(
        _Steps(pickle.dumps(make), memory),
        batch_size=None,
        sampler=steps[1:],
        num_workers=processes,
        prefetch_factor=1,
        multiprocessing_context=context,
        worker_init_fn=_begin,
        generator=torch.Generator(),  # leaves the model's random numbers unchanged
    )
    others, before = set(active_children()), signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        made = iter(loader)  # the processes inherit the blocked signals of this thread
    except EOFError as error:  # of the fork server
        raise _died(error) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    started = set(active_children()) - others
    try:
        for sent in made:
            if isinstance(sent, InputError):
                raise sent
            yield [batch.received(memory) for batch in sent]
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise _died(error) from error
    finally:
        del made  # waits for them
        for process in started:
            process.kill()
            process.join()


def _died(error: Exception) -> InputError:
    reason = str(error).splitlines()[0]
    return InputError(f"a process that reads data died: {reason}; try a smaller plan.loader_workers")


class FrameMemory:
    """`size` bytes of memory that is shared with child processes."""

    def __init__(self, size: int, file: int | None = None) -> None:
        self.size, self._file = size, os.memfd_create("vla-loader") if file is None else file
        os.ftruncate(self._file, size)
        self.bytes = np.frombuffer(mmap.mmap(self._file, size), np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return _shared, (self.size, DupFd(self._file))

    def __del__(self) -> None:
        os.close(self._file)

    def frames(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "_b _k _h _w 3"]:
        """As `vla.models.batch.Frames`: in this memory if it is large enough."""
        count = math.prod(shape)
        return self.bytes[:count].reshape(shape) if count <= self.size else allocate_frames(shape)

    def offset(self, images: np.ndarray) -> int:
        """The offset of images in this memory [bytes]."""
        return int(images.__array_interface__["data"][0] - self.bytes.__array_interface__["data"][0])


def _shared(size: int, file: Any) -> FrameMemory:
    return FrameMemory(size, file.detach())


@dataclass(frozen=True)
class _SentBatch:
    """A batch in transfer: its images by location (slot, offset, shape, strides) if in shared memory, else by value."""

    process: int
    location: tuple[int, int, tuple[int, ...], tuple[int, ...]] | None
    values: dict[str, Any]

    @classmethod
    def of(cls, batch: Batch, process: int, slot: int, memory: FrameMemory, free: int) -> _SentBatch:
        """Copies images that are not yet in the shared memory to its offset `free` [bytes], if they fit."""
        values = {f.name: getattr(batch, f.name) for f in fields(Batch)}
        values = {name: v.numpy() if isinstance(v, torch.Tensor) else v for name, v in values.items()}
        images = values["images"]
        if not np.shares_memory(images, memory.bytes):
            if free + images.nbytes > memory.size:
                return cls(process, None, values)
            images = memory.bytes[free : free + images.nbytes].reshape(images.shape)
            images[...] = values["images"]
        del values["images"]
        return cls(process, (slot, memory.offset(images), images.shape, images.strides), values)

    def received(self, memory: Sequence[Sequence[FrameMemory]]) -> Batch:
        values: dict[str, Any] = dict(self.values)
        if self.location is not None:
            slot, offset, shape, strides = self.location
            values["images"] = np.ndarray(shape, np.uint8, memory[self.process][slot].bytes, offset, strides)
        tensors: dict[str, Any] = {n: torch.from_numpy(v) for n, v in values.items() if isinstance(v, np.ndarray)}
        return Batch(**{**values, **tensors})


class _Steps(Dataset[list[_SentBatch] | InputError]):
    """The micro-batches of each step, in a loader process. Errors are returned, and raised by the parent."""

    def __init__(self, make: bytes, memory: Sequence[Sequence[FrameMemory]]) -> None:
        self._stored, self._memory = make, memory
        self._make: Make | None = None
        self._count = 0

    def __getitem__(self, step: int) -> list[_SentBatch] | InputError:
        worker = get_worker_info()
        assert worker is not None
        slot, self._count = self._count % SLOTS, self._count + 1
        memory = self._memory[worker.id][slot]
        try:
            if self._make is None:  # opens stores
                self._make = pickle.loads(self._stored)
            micro = self._make(step, frames=memory.frames)
        except InputError as error:
            return error
        ends = np.cumsum([0, *(batch.images.numel() for batch in micro)]).tolist()
        return [_SentBatch.of(batch, worker.id, slot, memory, free) for batch, free in zip(micro, ends, strict=False)]


def _begin(process: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    decode_alone()
