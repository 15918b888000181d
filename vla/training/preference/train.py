"""The preference stage: a model learns which of two answers is true, against a frozen copy of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import batched
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vla.datasets.preferences import Pair
from vla.datasets.vqa import VqaStore
from vla.models.vla import VLA
from vla.training.distributed import join
from vla.training.loop import Evaluate, Outcome
from vla.training.preference.loop import open_pairs, optimize
from vla.training.preference.losses import Objective, preference_loss, token_logps, token_weights
from vla.training.train_config import TrainConfig


def train_preference(
    model: VLA,
    stores: Mapping[str, VqaStore],
    plan: TrainConfig,
    run: Path,
    evaluate: Evaluate,
    files: Sequence[str] = (),
    images: str | None = None,
    origin: Mapping[str, Any] | None = None,
    **objective: Any,
) -> Outcome:
    """Trains `model` in place into `run`, from its newest checkpoint where there is one, on the pairs of `stores` and
    `files` (`open_pairs`). `objective` are the options of `Objective`; `plan.batch_size` counts pairs.

    The reference is the model as it comes. Images are as they are: `plan.augment` must be 0. Evaluations have, beside
    those of `evaluate`, of pairs held out `preference_accuracy` (the share whose margin is positive) and
    `preference_margin` (the mean of beta times the difference of log-ratios), both also by kind of fault.
    Raises InputError where there are too few pairs, and with several ranks.
    """
    aim = Objective(**objective)
    pairs, shown = open_pairs(stores, plan, files, images)
    model.to(join().device)
    reference = deepcopy(model).requires_grad_(False).eval()

    def loss(some: Sequence[Pair]) -> tuple[Float[Tensor, ""], Mapping[str, float]]:
        value, margin = pair_loss(model.train(), reference, some, aim)
        return value, {"margin": margin.mean().item(), "accuracy": (margin > 0).float().mean().item()}

    def scores(trained: VLA) -> dict[str, float]:
        return evaluate(trained) | preferred(trained, reference, shown, aim)

    return optimize(model, pairs, plan, run, loss, scores, "preference_accuracy", origin=origin)


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
    return by_kind(pairs, margins, "preference")


def by_kind(pairs: Sequence[Pair], margins: Float[Tensor, "p"], name: str) -> dict[str, float]:
    """`<name>_accuracy`, the share of margins that are positive, and `<name>_margin`, their mean; and of each kind."""
    told: dict[str, float] = {}
    for kind in ("", *sorted({pair.kind for pair in pairs})):
        of = margins[torch.tensor([not kind or pair.kind == kind for pair in pairs])]
        end = f"/{kind}" if kind else ""
        told[f"{name}_accuracy{end}"] = (of > 0).float().mean().item()
        told[f"{name}_margin{end}"] = of.mean().item()
    return told
