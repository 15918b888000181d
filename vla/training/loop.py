"""The training loop: one loss over a mixture."""

from __future__ import annotations

import math
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vla.batch import Batch
from vla.datasets.mixture import Mixture
from vla.errors import InputError
from vla.model import VLA
from vla.training import checkpoint
from vla.training.augment import augment
from vla.training.checkpoint import Progress
from vla.training.gate import choose
from vla.training.optimizer import Ema, Optimizers, freeze, learning_rate

Evaluate = Callable[[VLA], dict[str, float]]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Plan:
    """How to train. `batch_size` rows are one step, split into `accumulate` micro-batches of equal effect."""

    steps: int
    batch_size: int = 64
    accumulate: int = 1
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    ema: float = 0.999
    clip: float = 1.0
    augment: float = 0.15
    seed: int = 0
    evaluate_every: int = 500
    freeze: tuple[str, ...] = ()
    lr_scales: Mapping[str, float] = field(default_factory=dict)
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    precision: Precision = "auto"
    vqa_margin: float = 0.02

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.accumulate < 1:
            raise InputError(f"steps, batch_size and accumulate must be positive: {self}")
        if self.batch_size % self.accumulate:
            raise InputError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if self.evaluate_every < 1:
            raise InputError(f"evaluate_every must be positive, not {self.evaluate_every}")
        if self.precision not in get_args(Precision):
            raise InputError(f"precision {self.precision} is none of {get_args(Precision)}")


@dataclass(frozen=True)
class Outcome:
    """Where training stood when it returned. `finished` is False when a signal stopped it early."""

    step: int
    finished: bool
    best: Path | None
    evaluations: list[dict[str, Any]]


class Diverged(InputError):
    """The loss or its gradient is not a number. The message says where the batch was saved."""


def train(model: VLA, mixture: Mixture, plan: Plan, run: Path, evaluate: Evaluate | None = None) -> Outcome:
    """Trains `model` in place into `run`, from its newest checkpoint where there is one.

    SIGTERM saves a checkpoint and returns; SIGINT does too and then raises KeyboardInterrupt.
    """
    freeze(model, plan.freeze)
    model.train()
    ema, optimizer = Ema(model, plan.ema), Optimizers(model, plan.weight_decay, plan.lr_scales)
    progress = Progress()
    if found := checkpoint.latest(run):
        progress = checkpoint.restore(found, model, ema, optimizer)
        if progress.evaluations and progress.evaluations[-1]["step"] == progress.step:
            _select(run, found, progress.evaluations, plan.vqa_margin)  # a kill may have come before it was compared
    start, evaluations = progress.step, progress.evaluations
    run.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=plan.steps, initial=start, desc="train", unit="step", smoothing=0.05)
    with (
        _signals() as stop,
        _prefetch(model, mixture, plan, start) as batches,
        SummaryWriter(str(run / "tensorboard"), purge_step=start) as writer,
        bar,
    ):
        stopping = False
        while progress.step < plan.steps and not stopping:
            losses, tokens = _step(model, next(batches), optimizer, plan, progress.step, run)
            ema.update(model, progress.step)
            progress.step += 1
            progress.tokens = dict(Counter(progress.tokens) + tokens)
            step = progress.step
            bar.update()
            if step % 10 == 0:
                bar.set_postfix({k: f"{v:.2f}" for k, v in losses.items()})
                for name, value in losses.items():
                    writer.add_scalar(f"loss/{name}", value, step)
                for name, value in _shares(mixture, plan, progress).items():
                    writer.add_scalar(f"share/{name}", value, step)
            due = step % plan.evaluate_every == 0 or step == plan.steps
            if due and evaluate is not None:
                evaluations.append({"step": step} | _evaluated(model, ema, evaluate))
                for name, value in evaluations[-1].items():
                    writer.add_scalar(f"heldout/{name}", value, step)
                bar.write(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in evaluations[-1].items()))
            # Read once: a signal that comes later is the next step's, and never goes without a checkpoint.
            stopping = bool(stop)
            if due or stopping:
                saved = checkpoint.save(run, progress, model, ema, optimizer)
                if due:
                    _select(run, saved, evaluations, plan.vqa_margin)
        if progress.step > start:
            told = ", ".join(f"{k} {v:.3f}" for k, v in _shares(mixture, plan, progress).items())
            bar.write(f"shares of what was trained on: {told}")
    if signal.SIGINT in stop:
        raise KeyboardInterrupt
    ema.swap(model)
    best = run / "best"
    return Outcome(progress.step, progress.step >= plan.steps, best.resolve() if best.exists() else None, evaluations)


def _select(run: Path, newest: Path, evaluations: Sequence[Mapping[str, Any]], margin: float) -> None:
    """Points `run/best` at the newest checkpoint, unless the gate prefers the one it points at."""
    best = run / "best"
    if evaluations and best.exists():
        kept = checkpoint.step_of(best.resolve())
        candidates = [i for i, e in enumerate(evaluations) if e["step"] == kept] + [len(evaluations) - 1]
        if choose(evaluations, margin, candidates) != len(evaluations) - 1:
            return
    checkpoint.mark_best(run, newest)


def _evaluated(model: VLA, ema: Ema, evaluate: Evaluate) -> dict[str, float]:
    ema.swap(model)
    model.eval()
    try:
        return evaluate(model)
    finally:
        ema.swap(model)
        model.train()


def _shares(mixture: Mixture, plan: Plan, progress: Progress) -> dict[str, float]:
    """Each source's part of all rows, and of all tokens with a loss, that were trained on: "rows/…", "tokens/…"."""
    kinds = {"rows": mixture.drawn(progress.step * plan.batch_size), "tokens": progress.tokens}
    return {f"{kind}/{name}": n / sum(counts.values()) for kind, counts in kinds.items() for name, n in counts.items()}


def _step(
    model: VLA, micro: Sequence[Batch], optimizer: Optimizers, plan: Plan, step: int, run: Path
) -> tuple[dict[str, float], Counter[str]]:
    """One optimizer step; returns the mean loss and the number of tokens of each source."""
    optimizer.zero_grad()
    # The normaliser is that of the whole batch, so that micro-batches with few tokens do not weigh more.
    total = sum(float(_weights(b, *model.elements(b), plan.loss_weights).sum()) for b in micro)
    sums: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
    # Drawn for the whole batch at once, so that splitting it changes nothing.
    views = max(b.image_mask.shape[1] for b in micro)
    jitter = (2 * torch.rand(plan.batch_size, views, 3, generator=generator) - 1) * plan.augment
    for batch, rows_jitter in zip(micro, jitter.split([len(b.source) for b in micro]), strict=True):
        pixels = augment(model.processor.pixels(batch.images), rows_jitter[:, : batch.image_mask.shape[1]])
        with torch.autocast("cpu", torch.bfloat16, enabled=uses_bf16(plan.precision)):
            losses, rows, weights = model(batch, pixels)
        loss = (losses * _weights(batch, rows, weights, plan.loss_weights)).sum() / total
        if not math.isfinite(loss.item()):
            raise Diverged(_save_batch(micro, run, step))
        loss.backward()
        for value, row in zip(losses.tolist(), rows.tolist(), strict=True):
            sums.setdefault(batch.source[row], []).append(value)
    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], plan.clip)
    if not math.isfinite(norm.item()):
        raise Diverged(_save_batch(micro, run, step))
    optimizer.step(learning_rate(step, plan.steps, plan.lr, plan.warmup))
    means = {name: sum(values) / len(values) for name, values in sums.items()}
    return means, Counter({name: len(values) for name, values in sums.items()})


def _weights(
    batch: Batch, rows: Int[Tensor, "n"], weights: Float[Tensor, "n"], loss_weights: Mapping[str, float]
) -> Float[Tensor, "n"]:
    """The weight of each element of the loss: its own, times that of its row's source (1 where none is given)."""
    per_row = torch.tensor([loss_weights.get(s, 1.0) for s in batch.source])
    return weights * per_row[rows]


def uses_bf16(precision: str) -> bool:
    """bfloat16 pays only where the processor multiplies it natively; elsewhere it is emulated."""
    if precision == "auto":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return precision == "bf16"


def _save_batch(micro: Sequence[Batch], run: Path, step: int) -> str:
    """Saves the step's micro-batches as `<number>/<field>`; returns the message that says so."""
    path = run / f"nan-step-{step:08d}.safetensors"
    names = [f.name for f in fields(Batch) if f.name != "source"]
    save_file({f"{i}/{name}": getattr(b, name).contiguous() for i, b in enumerate(micro) for name in names}, path)
    sources = sorted({source for batch in micro for source in batch.source})
    return (
        f"the loss is not a number at step {step}, nothing was overwritten: the batch is in {path} "
        f"(sources {sources}); lower lr, or look for bad values in the data"
    )


@contextmanager
def _prefetch(model: VLA, mixture: Mixture, plan: Plan, start: int) -> Iterator[Iterator[list[Batch]]]:
    """Batches made two steps ahead by a thread."""
    size = plan.batch_size // plan.accumulate

    def make(step: int) -> list[Batch]:
        examples = mixture.batch(step, plan.batch_size)
        rng = np.random.default_rng((plan.seed, step))
        return [model.processor.batch(examples[i : i + size], rng) for i in range(0, len(examples), size)]

    def stream() -> Iterator[list[Batch]]:
        ahead: list[Future[list[Batch]]] = [pool.submit(make, start + i) for i in range(2)]
        for step in range(start + 2, plan.steps + 2):
            yield ahead.pop(0).result()
            ahead.append(pool.submit(make, step))

    with ThreadPoolExecutor(1) as pool:
        yield stream()


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
