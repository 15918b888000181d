"""Rollouts in several processes, each with its own environments and policy.

Each process requests one trial at a time, so that none waits for a slow one. Finished episodes are sent to the parent,
which writes them: numbers through a pipe, images through shared memory. If a process dies, its trials are recorded as
crashed, and a new process is started.
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
    """The picklable arguments of a worker process; `load` loads its policies."""

    make_env: MakeEnv
    load: Callable[[], PolicyFor]
    embodiment: Embodiment
    parallel: int
    n_action_steps: int
    every_frame: bool
    safety_filter: bool = True

    def run(self, trials: Iterator[Trial], sink: Sink) -> Iterator[Result]:
        """Runs the trials (`run_trials`), and writes their episodes to `sink`."""
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
    """Runs all trials in `workers` processes; an episode is in `sink` before its result is yielded.

    With one worker, trials run in this process.

    Raises:
        InputError: as `run_trials`.
    """
    if workers == 1:
        yield from job.run(iter(trials), sink)
        return
    pending = iter(trials)
    pool = [_Worker(job) for _ in range(workers)]
    try:
        while pool:
            ready = wait([worker.connection for worker in pool])
            for worker in [w for w in pool if w.connection in ready]:
                kind, content = worker.receive()
                if kind == "gone":
                    pool.remove(worker)
                    yield from worker.crashed_trials()
                    if worker.started:
                        pool.append(_Worker(job))
                elif kind == "next":
                    worker.send(next(pending, None))
                elif kind == "episode":
                    sink.append(_receive_episode(*content), None)
                elif kind == "result":
                    worker.started.pop(content.key)
                    yield content
                elif kind == "refused":
                    raise InputError(content)
                else:
                    raise RuntimeError(f"a process of the evaluation failed:\n{content}")
    finally:
        for worker in pool:
            worker.stop()


class _Worker:
    """A worker process and its running trials."""

    def __init__(self, job: Job) -> None:
        context = get_context("forkserver")
        self.connection, theirs = context.Pipe()
        self.started: dict[Key, Trial] = {}
        self.finished = False
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, job), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, trial: Trial | None) -> None:
        if trial is None:
            self.finished = True
        else:
            self.started[trial.key] = trial
        with suppress(ConnectionError):  # the process has died; `receive` reports it
            self.connection.send(trial)

    def receive(self) -> tuple[str, Any]:
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):  # including a truncated message
            return "gone", None
        return kind, content

    def crashed_trials(self) -> Iterator[Result]:
        """The running trials of a process that ended, as crashed results.

        Raises RuntimeError if it failed before its first trial, since a new process would fail as well.
        """
        self.process.join()
        if self.process.exitcode and not (self.started or self.finished):
            raise RuntimeError(f"a process of the evaluation ended early: code {self.process.exitcode}")
        for trial in self.started.values():
            others = len(self.started) - 1
            reason = f"the process that ran it, with {others} others, ended: code {self.process.exitcode}"
            yield crashed(trial, reason)

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _work(connection: Connection, job: Job) -> None:
    """The main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives it too, and stops this process
    # The processes share the cores; torch may be imported already, by unpickling the job.
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)

    def request_trials() -> Iterator[Trial]:
        while True:
            connection.send(("next", None))
            trial = connection.recv()
            if trial is None:
                return
            yield trial

    try:
        for result in job.run(request_trials(), Outbox(job.embodiment, connection)):
            connection.send(("result", result))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except InputError as error:
        connection.send(("refused", str(error)))
    except Exception:
        connection.send(("failed", format_exc()))


class HeldImages:
    """The images of an episode in memory, until they are sent to the parent."""

    scratch = None

    def __init__(self) -> None:
        self._images: list[dict[str, np.ndarray]] = []

    @property
    def frames(self) -> dict[str, UInt8[np.ndarray, "t _h _w 3"]]:
        """The images by camera, stacked over the steps."""
        return {camera: np.stack([images[camera] for images in self._images]) for camera in self._images[0]}

    def add(self, images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]) -> None:
        """Appends copies of the images of one step."""
        self._images.append({camera: image.copy() for camera, image in images.items()})

    def abort(self) -> None:
        """Drops all images."""
        self._images.clear()


class Outbox:
    """Sends episodes from a worker process to the parent's store."""

    def __init__(self, embodiment: Embodiment, connection: Connection) -> None:
        self.embodiment, self._connection = embodiment, connection

    def stream_images(self) -> HeldImages:
        """A receiver for the images of a new episode, which holds them in memory."""
        return HeldImages()

    def append(self, episode: Episode, images: HeldImages) -> None:
        """Sends the episode, with its images in shared memory."""
        shapes = {camera: frames.shape for camera, frames in episode.images.items()}
        memory = SharedMemory(create=True, size=max(1, sum(frames.nbytes for frames in episode.images.values())))
        for camera, view in views(memory, shapes).items():
            view[:] = episode.images[camera]
        del view
        memory.close()
        self._connection.send(("episode", (memory.name, shapes, replace(episode, images={}))))


def _receive_episode(name: str, shapes: dict[str, tuple[int, ...]], episode: Episode) -> Episode:
    memory = SharedMemory(name)
    try:
        return replace(episode, images={camera: view.copy() for camera, view in views(memory, shapes).items()})
    finally:
        memory.close()
        memory.unlink()
