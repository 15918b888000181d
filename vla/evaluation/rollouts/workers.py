"""The same rollouts in several processes, each with environments and a policy of its own.

Each process asks for one trial after another, so none waits for a slow one. Finished episodes go to the parent, which
alone writes them: numbers through a pipe, images through shared memory. A process that dies takes its trials along as
crashes, and another takes its place.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from traceback import format_exc
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vla.control.shared_images import views
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.evaluation.rollouts.rollout import MakeEnv, PolicyFor, run_trials
from vla.evaluation.rollouts.trial import Key, Result, Trial, crashed
from vla.recording.zarr_recorder import Sink, ZarrRecorder
from vla.types import Episode


@dataclass(frozen=True)
class Job:
    """What a process needs to run trials: all of it can be sent there. `load` gives it its policies."""

    make_env: MakeEnv
    load: Callable[[], PolicyFor]
    embodiment: Embodiment
    parallel: int
    n_action_steps: int
    every_frame: bool
    safety_filter: bool = True

    def run(self, trials: Iterator[Trial], sink: Sink) -> Iterator[Result]:
        """`run_trials`, the episodes going to `sink`."""
        return run_trials(
            self.make_env,
            self.load(),
            trials,
            parallel=self.parallel,
            n_action_steps=self.n_action_steps,
            recorder=partial(ZarrRecorder, sink),
            every_frame=self.every_frame,
            safety_filter=self.safety_filter,
        )


def run_in_workers(job: Job, trials: Iterable[Trial], workers: int, sink: Sink) -> Generator[Result]:
    """Runs every trial in `workers` processes; an episode is in `sink` before its result is yielded.

    With one worker it all happens here. Raises InputError as `run_trials` does.
    """
    if workers == 1:
        yield from job.run(iter(trials), sink)
        return
    waiting = iter(trials)
    crew = [_Worker(job) for _ in range(workers)]
    try:
        while crew:
            ready = wait([worker.connection for worker in crew])
            for worker in [w for w in crew if w.connection in ready]:
                kind, content = worker.receive()
                if kind == "gone":
                    crew.remove(worker)
                    yield from worker.left_behind()
                    if worker.begun:
                        crew.append(_Worker(job))
                elif kind == "next":
                    worker.send(next(waiting, None))
                elif kind == "episode":
                    sink.append(_received(*content), None)
                elif kind == "result":
                    worker.begun.pop(content.key)
                    yield content
                elif kind == "refused":
                    raise InputError(content)
                else:
                    raise RuntimeError(f"a process of the evaluation failed:\n{content}")
    finally:
        for worker in crew:
            worker.stop()


class _Worker:
    """A process, and the trials that it has begun."""

    def __init__(self, job: Job) -> None:
        context = get_context("forkserver")
        self.connection, theirs = context.Pipe()
        self.begun: dict[Key, Trial] = {}
        self.told_all = False
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, job), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, trial: Trial | None) -> None:
        if trial is None:
            self.told_all = True
        else:
            self.begun[trial.key] = trial
        with suppress(ConnectionError):  # it has died since it asked, which `receive` says next
            self.connection.send(trial)

    def receive(self) -> tuple[str, Any]:
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):  # also in the middle of a message
            return "gone", None
        return kind, content

    def left_behind(self) -> Iterator[Result]:
        """The trials that the process had begun when it ended, as crashes.

        Raises RuntimeError when it ended before any was done, and not well: then another would fare no better.
        """
        self.process.join()
        if self.process.exitcode and not (self.begun or self.told_all):
            raise RuntimeError(f"a process of the evaluation ended early: code {self.process.exitcode}")
        for trial in self.begun.values():
            said = f"the process that ran it, with {len(self.begun) - 1} others, ended: code {self.process.exitcode}"
            yield crashed(trial, said)

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _work(connection: Connection, job: Job) -> None:
    """What a process does until there is no trial left, or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this one
    # The processes share the cores; torch may be here already, for what the job is made of.
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)

    def asked() -> Iterator[Trial]:
        while True:
            connection.send(("next", None))
            trial = connection.recv()
            if trial is None:
                return
            yield trial

    try:
        for result in job.run(asked(), Outbox(job.embodiment, connection)):
            connection.send(("result", result))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except InputError as error:
        connection.send(("refused", str(error)))
    except Exception:
        connection.send(("failed", format_exc()))


class HeldImages:
    """The images of an episode in memory, until they go to another process."""

    scratch = None

    def __init__(self) -> None:
        self._images: list[dict[str, np.ndarray]] = []

    @property
    def frames(self) -> dict[str, UInt8[np.ndarray, "t _h _w 3"]]:
        return {camera: np.stack([images[camera] for images in self._images]) for camera in self._images[0]}

    def add(self, images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]) -> None:
        self._images.append({camera: image.copy() for camera, image in images.items()})

    def abort(self) -> None:
        self._images.clear()


class Outbox:
    """Stands for the parent's store in a process of its own."""

    def __init__(self, embodiment: Embodiment, connection: Connection) -> None:
        self.embodiment, self._connection = embodiment, connection

    def stream_images(self) -> HeldImages:
        return HeldImages()

    def append(self, episode: Episode, images: HeldImages) -> None:
        """`images` are the episode's own."""
        shapes = {camera: frames.shape for camera, frames in episode.images.items()}
        memory = SharedMemory(create=True, size=max(1, sum(frames.nbytes for frames in episode.images.values())))
        for camera, view in views(memory, shapes).items():
            view[:] = episode.images[camera]
        del view
        memory.close()
        self._connection.send(("episode", (memory.name, shapes, replace(episode, images={}))))


def _received(name: str, shapes: dict[str, tuple[int, ...]], episode: Episode) -> Episode:
    memory = SharedMemory(name)
    try:
        return replace(episode, images={camera: view.copy() for camera, view in views(memory, shapes).items()})
    finally:
        memory.close()
        memory.unlink()
