"""The training loop: one loss over a mixture."""

from __future__ import annotations

import shlex
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla.datasets.mixture import Mixture
from vla.models.vla import VLA
from vla.training import checkpoint
from vla.training.blocks import compile_blocks, recompute_blocks
from vla.training.camera_dropout import report_dropout
from vla.training.checkpoint import Progress
from vla.training.checkpoint_gate import UNITS, choose
from vla.training.distributed import DistributedContext, join
from vla.training.geometry import check, report
from vla.training.gradients import gradient_report, gradient_shares
from vla.training.loader import prefetch
from vla.training.log import Log, log
from vla.training.optimizer import Ema, Optimizers, freeze
from vla.training.resumption import settings
from vla.training.step import Diverged, Totals, computing, run_step, uses_bf16
from vla.training.train_config import TrainConfig

__all__ = ["Diverged", "Evaluate", "Outcome", "TrainConfig", "train"]

Evaluate = Callable[[VLA], dict[str, float]]


@dataclass(frozen=True)
class Outcome:
    """Where training stood when it returned. `finished` is False when a signal stopped it early."""

    step: int
    finished: bool
    best: Path | None
    evaluations: list[dict[str, Any]]

    def tell(self, run: Path, start: int, drives: bool) -> None:
        """Prints where the result is, of a training that began at the step `start`."""
        steps = f"{self.step} step{'s' * (self.step != 1)}"
        if not self.finished:
            print(f"{run} is stopped after {steps}, and saved: the same command goes on", flush=True)
            return
        best = self.best or run
        scores: Mapping[str, float] = next(
            (e for e in reversed(self.evaluations) if f"step-{e['step']:08d}" == best.name), {}
        )
        main = [name for name in scores if "/" not in name and not name.startswith((UNITS, "step"))]
        of = ", ".join(f"{name} {scores[name]:.3g}" for name in main)
        done = f"{run} has its {steps} already: more plan.steps train on" if start == self.step else steps
        look = f"vla {'eval' if drives else 'probe'} {shlex.quote(f'policy={run}')}"
        print(f"{done}. The best is {run / 'best'} -> {best.name}{f' ({of})' if of else ''}: {look}", flush=True)


def train(
    model: VLA,
    mixture: Mixture,
    plan: TrainConfig,
    run: Path,
    evaluate: Evaluate | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Outcome:
    """Trains `model` in place into `run`, from its newest checkpoint where there is one; on the GPU where there is one,
    and with the other ranks where torchrun started several. `origin` says where model and data come from (JSON values).

    SIGTERM to any rank saves a checkpoint and returns; SIGINT does too and then raises KeyboardInterrupt. Raises
    InputError for a run that cannot go on with this plan (`vla.training.resumption`).
    """
    world = join()
    plan.rows(world.size)
    check(plan.augmentation, model.processor)
    freeze(model, plan.freeze)
    if plan.compile:
        compile_blocks(model)
    if plan.checkpointing:
        recompute_blocks(model)
    world.shard(model, uses_bf16(plan.precision, world.device))
    wanted = settings(plan, mixture.shares, origin or {})
    return _train(model.train(), mixture, plan, run, evaluate, world, wanted)


def _train(
    model: VLA,
    mixture: Mixture,
    plan: TrainConfig,
    run: Path,
    evaluate: Evaluate | None,
    world: DistributedContext,
    wanted: dict[str, Any],
) -> Outcome:
    ema = Ema(model, plan.ema)
    optimizer = Optimizers(model, plan.weight_decay, plan.lr_multipliers, plan.optimizer)
    progress, found = checkpoint.begin(run, wanted, model, ema, optimizer, world)
    if found and progress.evaluations and progress.evaluations[-1]["step"] == progress.step:
        # A kill may have come before it was compared.
        _select(run, found, progress.evaluations, plan.vqa_margin, world)
    start, sources = progress.step, list(mixture.shares)
    run.mkdir(parents=True, exist_ok=True)
    with (
        _signals() as stop,
        prefetch(model.processor, mixture, plan, start, world) as batches,
        log(run, start, plan, world.first) as said,
    ):
        robots = model.processor.robots
        for line in (*report(plan.augmentation, model.processor), *report_dropout(plan.camera_dropout, robots)):
            said.say(line)
        stopping = False
        while progress.step < plan.steps and not stopping:
            micro = next(batches)
            if progress.step % (plan.gradient_report or plan.evaluate_every) == 0 and plan.gradient_report != 0:
                measure = gradient_report if plan.gradient_report else gradient_shares
                said.scalars(measure(model, micro, plan, progress.step, world, sources), progress.step)
            totals = run_step(model, micro, optimizer, plan, progress.step, world, sources, run)
            ema.update(model, progress.step)
            progress.step += 1
            progress.tokens = dict(
                Counter(progress.tokens) + Counter({s: total.elements for s, total in totals.items()})
            )
            _tell(said, totals, mixture, plan, progress)
            due = progress.step % plan.evaluate_every == 0 or progress.step == plan.steps
            if due and evaluate is not None:
                scores = _evaluated(model, ema, evaluate, plan, world)
                progress.evaluations.append({"step": progress.step} | scores)
                said.scalars(scores, progress.step, "heldout/")
                said.scores(progress.step, scores)
            # Read once: a signal that comes later is the next step's, and never goes without a checkpoint.
            stopping = world.sum([len(stop)])[0] > 0
            if due or stopping:
                saved = checkpoint.save(run, progress, model, ema, optimizer, world)
                if due:
                    _select(run, saved, progress.evaluations, plan.vqa_margin, world)
        if progress.step > start:
            shares = ", ".join(f"{k} {v:.3f}" for k, v in _shares(mixture, plan, progress).items())
            said.say(f"shares of what was trained on: {shares}")
    if signal.SIGINT in stop:
        raise KeyboardInterrupt
    ema.swap(model)
    outcome = Outcome(progress.step, progress.step >= plan.steps, checkpoint.best(run), progress.evaluations)
    if world.first:
        outcome.tell(run, start, bool(model.processor.robots))
    return outcome


def _select(
    run: Path, newest: Path, evaluations: Sequence[Mapping[str, Any]], margin: float, world: DistributedContext
) -> None:
    """Points `run/best` at the newest checkpoint, unless the gate prefers the one it points at."""
    if world.first:
        best, last = checkpoint.best(run), len(evaluations) - 1
        candidates = [last]
        if evaluations and best is not None:
            kept = checkpoint.step_of(best)
            candidates = [i for i, e in enumerate(evaluations) if e["step"] == kept] + [last]
        if not evaluations or choose(evaluations, margin, candidates) == last:
            checkpoint.mark_best(run, newest)
    world.barrier()


def _evaluated(
    model: VLA, ema: Ema, evaluate: Evaluate, plan: TrainConfig, world: DistributedContext
) -> dict[str, float]:
    """What `evaluate` says of the average. All ranks ask it alike: a model that is split over them needs them all.

    On a GPU it computes as in training, where gathered weights may be bfloat16.
    """
    ema.swap(model)
    model.eval()
    try:
        with computing(plan, world) if world.device.type == "cuda" else nullcontext():
            return evaluate(model)
    finally:
        ema.swap(model)
        model.train()


def _tell(said: Log, totals: Totals, mixture: Mixture, plan: TrainConfig, progress: Progress) -> None:
    said.bar.update()
    if progress.step % 10:
        return
    losses = {source: total.losses / total.elements for source, total in totals.items()}
    said.bar.set_postfix({k: f"{v:.2f}" for k, v in losses.items()})
    said.scalars(losses, progress.step, "loss/")
    said.scalars(_shares(mixture, plan, progress), progress.step, "share/")
    said.scalars({source: total.part for source, total in totals.items()}, progress.step, "share/loss/")


def _shares(mixture: Mixture, plan: TrainConfig, progress: Progress) -> dict[str, float]:
    """Each source's part of all rows, and of all tokens with a loss, that were trained on: "rows/…", "tokens/…"."""
    kinds = {"rows": mixture.drawn(progress.step * plan.batch_size), "tokens": progress.tokens}
    return {f"{kind}/{name}": n / sum(counts.values()) for kind, counts in kinds.items() for name, n in counts.items()}


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of dying in the middle of a step."""
    received: list[int] = []
    previous: dict[int, Any] = {}
    for number in (int(signal.SIGTERM), int(signal.SIGINT)):
        try:
            previous[number] = signal.signal(number, lambda n, _: received.append(n))
        except ValueError:  # not the main thread, which alone may handle signals
            break
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
