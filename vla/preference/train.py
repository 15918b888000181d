"""The preference stage: a model learns which of two answers is true, against a frozen copy of itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
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
from vla.model import VLA
from vla.preference.losses import Objective, preference_loss, token_logps, token_weights
from vla.training import checkpoint
from vla.training.checkpoint import Progress
from vla.training.distributed import join
from vla.training.gate import choose
from vla.training.log import log
from vla.training.loop import Evaluate, Outcome
from vla.training.optimizer import Ema, Optimizers, freeze, learning_rate
from vla.training.plan import Plan
from vla.training.step import Diverged, computing

HELD_OUT = 200


def train_preference(
    model: VLA,
    stores: Mapping[str, VqaStore],
    plan: Plan,
    run: Path,
    evaluate: Evaluate,
    files: Sequence[str] = (),
    images: str | None = None,
    **objective: Any,
) -> Outcome:
    """Trains `model` in place into `run`, from its newest checkpoint where there is one, on the pairs that `pairs_of`
    makes of `stores` and those of `files`, their images in the folder `images` (`read_pairs`). `objective` are the
    options of `Objective`; `plan.batch_size` counts pairs.

    The reference is the model as it comes. Images are as they are: `plan.augment` is not used. Evaluations have, beside
    those of `evaluate`, of pairs held out `preference_accuracy` (the share whose margin is positive) and
    `preference_margin` (the mean of beta times the difference of log-ratios), both also by kind of fault.
    Raises InputError where there are fewer pairs than a batch has, or none is held out, and with several ranks.
    """
    aim, world = Objective(**objective), join()
    if world.size > 1:
        raise InputError("the preference stage trains in one process: start it without torchrun")
    pairs = [pair for store in stores.values() for pair in pairs_of(store, "train", plan.seed)]
    shown = [pair for store in stores.values() for pair in pairs_of(store, "held-out", plan.seed)]
    for path in files:  # every tenth is held out
        read = read_pairs(path, images)
        shown, pairs = shown + read[::10], pairs + [pair for i, pair in enumerate(read) if i % 10]
    if len(pairs) < plan.batch_size or not shown:
        raise InputError(
            f"{len(pairs)} pairs to train on and {len(shown)} held out, for batches of {plan.batch_size}: "
            "vla record task=scenes questions=all makes what pairs are made of"
        )
    model.to(world.device)
    reference = deepcopy(model).requires_grad_(False).eval()
    freeze(model, plan.freeze)
    ema, order = Ema(model, plan.ema), Order(len(pairs), plan.seed)
    optimizer = Optimizers(model, plan.weight_decay, plan.lr_scales, plan.optimizer)
    found = checkpoint.latest(run)
    progress = checkpoint.restore(found, model, ema, optimizer) if found else Progress()
    if found and kept(run, progress.evaluations, plan.vqa_margin):  # a kill may have come before it was compared
        checkpoint.mark_best(run, found)
    shown = [shown[int(i)] for i in np.unique(np.linspace(0, len(shown) - 1, min(HELD_OUT, len(shown))).astype(int))]
    run.mkdir(parents=True, exist_ok=True)
    with log(run, progress.step, plan.steps, world.first) as said:
        for step in range(progress.step, plan.steps):
            torch.manual_seed((plan.seed * 1_000_003 + step) % 2**63)
            drawn = order(np.arange(step * plan.batch_size, (step + 1) * plan.batch_size)).tolist()
            optimizer.zero_grad()
            total, margins = 0.0, list[Tensor]()
            for micro in batched((pairs[i] for i in drawn), plan.rows(1)):
                with computing(plan, world):
                    loss, margin = pair_loss(model.train(), reference, micro, aim)
                (loss / plan.accumulate).backward()
                total, margins = total + loss.item() / plan.accumulate, [*margins, margin]
            trained = [p for p in model.parameters() if p.requires_grad]
            norm = torch.nn.utils.clip_grad_norm_(trained, plan.clip).item()
            if not math.isfinite(norm + total):
                raise Diverged(f"the loss is not a number at step {step}, nothing was overwritten: lower plan.lr")
            optimizer.step(learning_rate(step, plan.steps, plan.lr, plan.warmup))
            ema.update(model, step)
            progress.step += 1
            said.bar.update()
            margin = torch.cat(margins)
            told = {"loss": total, "margin": margin.mean().item(), "accuracy": (margin > 0).float().mean().item()}
            said.scalars(told, progress.step, "preference/")
            if progress.step % plan.evaluate_every == 0 or progress.step == plan.steps:
                ema.swap(model)
                scores = evaluate(model.eval()) | preferred(model, reference, shown, aim)
                ema.swap(model)
                progress.evaluations.append({"step": progress.step} | scores)
                said.scalars(scores, progress.step, "heldout/")
                said.say(f"step {progress.step}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()))
                saved = checkpoint.save(run, progress, model, ema, optimizer, world)
                if kept(run, progress.evaluations, plan.vqa_margin):
                    checkpoint.mark_best(run, saved)
    ema.swap(model.eval())
    best = (run / "best").resolve() if (run / "best").exists() else None
    return Outcome(progress.step, True, best, progress.evaluations)


def kept(run: Path, evaluations: Sequence[Mapping[str, Any]], margin: float) -> bool:
    """Whether the newest checkpoint is the best: of those that keep what they could say, the one that prefers best."""
    best, last = run / "best", len(evaluations) - 1
    step = checkpoint.step_of(best.resolve()) if best.exists() else None
    candidates = [i for i, e in enumerate(evaluations) if e["step"] == step] + [last]
    ranked = [{**e, "action_error": 1 - e["preference_accuracy"]} for e in evaluations]
    return choose(ranked, margin, candidates) == last


def pair_loss(
    model: VLA, reference: VLA, pairs: Iterable[Pair], objective: Objective
) -> tuple[Float[Tensor, ""], Float[Tensor, "p"]]:
    """The loss of the pairs and the margin of each (`preference_loss`)."""
    both = [pair.examples() for pair in pairs]
    batch = model.processor.batch([one for one, _ in both] + [other for _, other in both]).to(model.device)
    with torch.no_grad():
        before = token_logps(reference, batch)
    return preference_loss(token_logps(model, batch), before, token_weights(batch.labels, objective), objective)


@torch.no_grad()
def preferred(
    model: VLA, reference: VLA, pairs: Sequence[Pair], objective: Objective, rows: int = 32
) -> dict[str, float]:
    """`preference_accuracy` and `preference_margin` of the pairs, and of each kind as `…/<kind>`."""
    margins = torch.cat([pair_loss(model, reference, part, objective)[1] for part in batched(pairs, rows)]).cpu()
    told: dict[str, float] = {}
    for kind in ("", *sorted({pair.kind for pair in pairs})):
        of = margins[torch.tensor([not kind or pair.kind == kind for pair in pairs])]
        end = f"/{kind}" if kind else ""
        told[f"preference_accuracy{end}"] = (of > 0).float().mean().item()
        told[f"preference_margin{end}"] = of.mean().item()
    return told
