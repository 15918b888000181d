"""The loop of the stages that learn from judgements of answers: pairs, a reward model, rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vla.datasets.order import Order
from vla.datasets.preferences import Pair, pairs_of, read_pairs
from vla.datasets.vqa import VqaStore
from vla.errors import InputError
from vla.models.vla import VLA
from vla.training import checkpoint
from vla.training.checkpoint_gate import choose
from vla.training.distributed import join
from vla.training.log import log
from vla.training.loop import Evaluate, Outcome
from vla.training.optimizer import Ema, Optimizers, freeze
from vla.training.resumption import settings
from vla.training.schedule import learning_rate
from vla.training.step import Diverged, computing
from vla.training.train_config import TrainConfig

HELD_OUT = 200

Loss = Callable[[Sequence[Pair]], tuple[Float[Tensor, ""], Mapping[str, float]]]
"""Of some of the pairs that are trained on: the loss, and what is logged of it."""


def open_pairs(
    stores: Mapping[str, VqaStore], plan: TrainConfig, files: Sequence[str] = (), images: str | None = None
) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on, and up to `HELD_OUT` that are held out, all over the rest: those that `pairs_of` makes of
    `stores`, and of those of `files` (`read_pairs`) every tenth.

    Raises InputError where there are fewer pairs than a batch has, or none is held out, with several ranks, and with
    image augmentation, which these stages do not have.
    """
    if plan.loader_workers is not None:
        raise InputError("this stage reads its pairs itself: set plan.loader_workers=null")
    if plan.augmentation.enabled:
        raise InputError("this stage does not augment images: set plan.augment=0")
    if join().size > 1:
        raise InputError("this stage trains in one process: start it without torchrun")
    pairs = [pair for store in stores.values() for pair in pairs_of(store, "train", plan.seed)]
    shown = [pair for store in stores.values() for pair in pairs_of(store, "held-out", plan.seed)]
    for path in files:
        read = read_pairs(path, images)
        shown, pairs = shown + read[::10], pairs + [pair for i, pair in enumerate(read) if i % 10]
    if len(pairs) < plan.batch_size or not shown:
        raise InputError(
            f"{len(pairs)} pairs to train on and {len(shown)} held out, for batches of {plan.batch_size}: "
            "vla record task=scenes questions=all makes what pairs are made of"
        )
    chosen = np.unique(np.linspace(0, len(shown) - 1, min(HELD_OUT, len(shown))).astype(int))
    return pairs, [shown[int(i)] for i in chosen]


def optimize(
    model: VLA,
    pairs: Sequence[Pair],
    plan: TrainConfig,
    run: Path,
    loss: Loss,
    evaluate: Evaluate,
    better: str,
    uses: int = 1,
    origin: Mapping[str, Any] | None = None,
) -> Outcome:
    """Trains `model`, which is on its device, in place into `run`, from its newest checkpoint where there is one, as
    `vla.training.loop.train` does.

    Each step takes `plan.batch_size` of the pairs, each batch `uses` steps in a row. The best checkpoint has the
    highest score `better` of those whose `vqa` is within `plan.vqa_margin` (`vla.training.checkpoint_gate`).
    """
    world = join()
    freeze(model, plan.freeze)
    ema, order = Ema(model, plan.ema), Order(len(pairs), plan.seed)
    optimizer = Optimizers(model, plan.weight_decay, plan.lr_multipliers, plan.optimizer)
    wanted = settings(plan, {"pairs": 1.0}, origin or {})
    progress, found = checkpoint.begin(run, wanted, model, ema, optimizer, world)
    if found and kept(run, progress.evaluations, plan.vqa_margin, better):  # a kill may have come before that
        checkpoint.mark_best(run, found)
    start = progress.step
    run.mkdir(parents=True, exist_ok=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    with log(run, progress.step, plan, world.first) as said:
        for step in range(progress.step, plan.steps):
            torch.manual_seed((plan.seed * 1_000_003 + step) % 2**63)
            first = step // uses * plan.batch_size
            drawn = order(np.arange(first, first + plan.batch_size)).tolist()
            optimizer.zero_grad()
            told = dict[str, float]()
            for micro in batched((pairs[i] for i in drawn), plan.rows(1)):
                with computing(plan, world):
                    value, more = loss(micro)
                (value / plan.accumulate).backward()
                for name, part in {"loss": value.item(), **more}.items():
                    told[name] = told.get(name, 0.0) + part / plan.accumulate
            norm = torch.nn.utils.clip_grad_norm_(trained, plan.clip).item()
            if not math.isfinite(norm + told["loss"]):
                raise Diverged(f"the loss is not a number at step {step}, nothing was overwritten: lower plan.lr")
            optimizer.step(learning_rate(plan, step))
            ema.update(model, step)
            progress.step += 1
            said.bar.update()
            said.scalars(told, progress.step, "train/")
            if progress.step % plan.evaluate_every == 0 or progress.step == plan.steps:
                ema.swap(model)
                scores = evaluate(model.eval())
                ema.swap(model.train())
                progress.evaluations.append({"step": progress.step} | scores)
                said.scalars(scores, progress.step, "heldout/")
                said.scores(progress.step, scores)
                saved = checkpoint.save(run, progress, model, ema, optimizer, world)
                if kept(run, progress.evaluations, plan.vqa_margin, better):
                    checkpoint.mark_best(run, saved)
    ema.swap(model.eval())
    outcome = Outcome(progress.step, True, checkpoint.best(run), progress.evaluations)
    outcome.tell(run, start, bool(model.processor.robots))
    return outcome


def kept(run: Path, evaluations: Sequence[Mapping[str, Any]], margin: float, better: str) -> bool:
    """Whether the newest checkpoint is the best: of those that keep what they could say, the highest in `better`."""
    best, last = checkpoint.best(run), len(evaluations) - 1
    step = None if best is None else checkpoint.step_of(best)
    candidates = [i for i, e in enumerate(evaluations) if e["step"] == step] + [last]
    ranked = [{**e, "action_error": -e[better]} for e in evaluations]
    return choose(ranked, margin, candidates) == last
