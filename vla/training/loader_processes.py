"""Processes that make the micro-batches of a training run: each makes all of a step, and they take the steps in turn.

PyTorch's DataLoader runs them. Images, which are nearly all of a batch, do not go through its pipes: a process decodes
them into memory that it shares with the parent, and that is used again for later steps. The memory has no name, so
nothing is left of it however the processes end, and no limit but that of all memory.
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
"""The micro-batches of a step; their images lie in what the keyword `frames` gives."""
SIGNALS = {signal.SIGINT, signal.SIGTERM}
"""What a whole group of processes may get: the parent then writes its checkpoint, and ends the others itself."""
IMPORTED = ["vla.training.batches", "vla.datasets.windows"]
"""What takes seconds to import: the processes are copies of one that has done it."""
SLOTS = 3
"""Batches in the memory of a process: the one that is trained on, the one that is next, and the one that it makes."""


def in_processes(make: Make, steps: Sequence[int], processes: int) -> Generator[list[Batch]]:
    """What `make` makes of each step, in their order, to the bit what it makes here. A batch is to be used before the
    second one after it is asked for. Raises InputError as `make` does, and where a process has died.

    The first step is made here: its size is that of the memory, and the processes take seconds to start.
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
        generator=torch.Generator(),  # not that of the model's random numbers
    )
    others, before = set(active_children()), signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        made = iter(loader)  # the processes begin with the signals blocked that this thread has blocked
    except EOFError as error:  # of the process that they are copies of
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
    """`size` bytes that a process started by this one has too."""

    def __init__(self, size: int, file: int | None = None) -> None:
        self.size, self._file = size, os.memfd_create("vla-loader") if file is None else file
        os.ftruncate(self._file, size)
        self.bytes = np.frombuffer(mmap.mmap(self._file, size), np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return _shared, (self.size, DupFd(self._file))

    def __del__(self) -> None:
        os.close(self._file)

    def frames(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "_b _k _h _w 3"]:
        """As `vla.models.batch.Frames`: here where there is room."""
        wanted = math.prod(shape)
        return self.bytes[:wanted].reshape(shape) if wanted <= self.size else allocate_frames(shape)

    def offset(self, images: np.ndarray) -> int:
        """Where images in this memory begin."""
        return int(images.__array_interface__["data"][0] - self.bytes.__array_interface__["data"][0])


def _shared(size: int, file: Any) -> FrameMemory:
    return FrameMemory(size, file.detach())


@dataclass(frozen=True)
class _Sent:
    """A batch on its way: its images by their place (slot, offset, shape, strides), or with all else by value."""

    process: int
    place: tuple[int, int, tuple[int, ...], tuple[int, ...]] | None
    values: dict[str, Any]

    @classmethod
    def of(cls, batch: Batch, process: int, slot: int, memory: FrameMemory, free: int) -> _Sent:
        """Images that do not lie in the memory yet are copied to its byte `free`, if there is room."""
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
        if self.place is not None:
            slot, offset, shape, strides = self.place
            values["images"] = np.ndarray(shape, np.uint8, memory[self.process][slot].bytes, offset, strides)
        tensors: dict[str, Any] = {n: torch.from_numpy(v) for n, v in values.items() if isinstance(v, np.ndarray)}
        return Batch(**{**values, **tensors})


class _Steps(Dataset[list[_Sent] | InputError]):
    """The micro-batches of each step, in a process of the loader. An error is for the parent to raise."""

    def __init__(self, make: bytes, memory: Sequence[Sequence[FrameMemory]]) -> None:
        self._stored, self._memory = make, memory
        self._make: Make | None = None
        self._count = 0

    def __getitem__(self, step: int) -> list[_Sent] | InputError:
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
        return [_Sent.of(batch, worker.id, slot, memory, free) for batch, free in zip(micro, ends, strict=False)]


def _begin(process: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    decode_alone()
