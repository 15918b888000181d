"""The loop of all trainers with checkpoints: repeats a step, evaluates, saves, and selects the best checkpoint."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla.models.vla import VLA
from vla.training import checkpoint
from vla.training.checkpoint_gate import UNITS, choose
from vla.training.log import Log
from vla.training.state import TrainState

Evaluate = Callable[[VLA], dict[str, float]]
"""Computes the held-out scores of a model."""


@dataclass(frozen=True)
class Outcome:
    """The result of training. `finished` is False if a signal stopped it early."""

    step: int
    finished: bool
    best: Path | None
    evaluations: list[dict[str, Any]]

    def print_summary(self, run: Path, start: int, drives: bool) -> None:
        """Prints the location of the result, and the next command.

        Args:
            run: The folder of the run.
            start: The step at which this training began.
            drives: Whether the model controls a robot.
        """
        steps = f"{self.step} step{'s' * (self.step != 1)}"
        if not self.finished:
            print(f"{run} is stopped after {steps}, and saved: the same command resumes it", flush=True)
            return
        best = self.best or run
        scores: Mapping[str, float] = next(
            (e for e in reversed(self.evaluations) if f"step-{e['step']:08d}" == best.name), {}
        )
        main = [name for name in scores if "/" not in name and not name.startswith((UNITS, "step"))]
        summary = ", ".join(f"{name} {scores[name]:.3g}" for name in main)
        done = f"{run} has its {steps} already: set more plan.steps to continue" if start == self.step > 0 else steps
        command = f"vla {'eval' if drives else 'probe'} {shlex.quote(f'policy={run}')}"
        suffix = f" ({summary})" if summary else ""
        print(f"{done}. The best is {run / 'best'} -> {best.name}{suffix}: {command}", flush=True)


@dataclass(frozen=True)
class Evaluation:
    """How the checkpoints of a run are evaluated and selected. All ranks take part, since the model may be sharded.

    Attributes:
        evaluate: Computes the held-out scores of the averaged model; None: there are none.
        better: The score whose highest value is the best checkpoint, among those whose `vqa` is within
            `plan.vqa_margin` (`vla.training.checkpoint_gate`); None: the lowest action error.
    """

    evaluate: Evaluate | None = None
    better: str | None = None

    def run(self, state: TrainState, log: Log) -> None:
        """Evaluates the averaged weights, and logs the scores."""
        if self.evaluate is None:
            return
        with state.ema.applied(state.model):
            state.model.eval()
            try:
                scores = self.evaluate(state.model)
            finally:
                state.model.train()
        step = state.progress.step
        state.progress.evaluations.append({"step": step} | scores)
        log.scalars(scores, step, "heldout/")
        log.scores(step, scores)

    def select(self, state: TrainState, newest: Path) -> None:
        """Points `run/best` at the newest checkpoint, unless the gate prefers the one it points at."""
        evaluations = self._ranked(state.progress.evaluations)
        if state.world.first:
            best, last = checkpoint.best(state.run), len(evaluations) - 1
            candidates = [last]
            if evaluations and best is not None:
                best_step = checkpoint.step_of(best)
                candidates = [i for i, e in enumerate(evaluations) if e["step"] == best_step] + [last]
            if not evaluations or choose(evaluations, state.plan.vqa_margin, candidates) == last:
                checkpoint.mark_best(state.run, newest)
        state.world.barrier()

    def _ranked(self, evaluations: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        return evaluations if self.better is None else [{**e, "action_error": -e[self.better]} for e in evaluations]


def resume(state: TrainState, evaluation: Evaluation) -> None:
    """Resumes a run from its newest checkpoint, if it has one. Raises InputError as `checkpoint.resume`."""
    found = checkpoint.resume(state)
    if found and state.is_evaluated:
        evaluation.select(state, found)  # the process may have been killed before the comparison
    state.run.mkdir(parents=True, exist_ok=True)


def run_steps(
    state: TrainState, take_step: Callable[[], None], evaluation: Evaluation, log: Log, received: Sequence[int]
) -> None:
    """Repeats `take_step` until the last step of the plan, or until a rank has received a signal.

    Every `plan.evaluate_every` steps and after the last one it evaluates the model, saves a checkpoint and selects the
    best one. A signal also saves a checkpoint. A plan of 0 steps saves the initial model.

    Args:
        state: The state, which `take_step` advances by a step.
        take_step: Trains for one step, and logs it.
        evaluation: The evaluation.
        log: The log.
        received: The signals so far (`interrupts`).
    """
    if state.is_complete and checkpoint.latest(state.run) is None:  # plan.steps=0: the model as it is
        evaluation.run(state, log)
        evaluation.select(state, checkpoint.save(state))
    stopping = False
    while not state.is_complete and not stopping:
        take_step()
        due = state.is_complete or state.progress.step % state.plan.evaluate_every == 0
        if due:
            evaluation.run(state, log)
        # Read once per step: a later signal is handled in the next step, with a checkpoint.
        stopping = state.world.sum([len(received)])[0] > 0
        if due or stopping:
            saved = checkpoint.save(state)
            if due:
                evaluation.select(state, saved)


def finish(state: TrainState, start: int, received: Sequence[int]) -> Outcome:
    """Ends training that began at step `start`: the model gets the averaged weights. Raises KeyboardInterrupt if so."""
    if signal.SIGINT in received:
        raise KeyboardInterrupt
    state.ema.swap(state.model)
    progress, best = state.progress, checkpoint.best(state.run)
    outcome = Outcome(progress.step, state.is_complete, best, progress.evaluations)
    if state.world.first:
        outcome.print_summary(state.run, start, bool(state.model.processor.robots))
    return outcome


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT, which are handled at the end of a step."""
    received: list[int] = []
    previous: dict[int, Any] = {}
    for number in (int(signal.SIGTERM), int(signal.SIGINT)):
        try:
            previous[number] = signal.signal(number, lambda n, _: received.append(n))
        except ValueError:  # only the main thread may handle signals
            break
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
