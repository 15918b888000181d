from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vla.datasets.mixture import Mixture
from vla.models.vla import VLA
from vla.training.batches import micro_batches
from vla.training.distributed import DistributedContext
from vla.training.gradients import gradient_report, gradient_shares
from vla.training.state import Progress, TrainState
from vla.training.train_config import TrainConfig
from vla.types import Example

ALONE = DistributedContext(torch.device("cpu"))


class Question:
    def __init__(self, answer: str) -> None:
        self.answer = answer

    def __len__(self) -> int:
        return 3

    def example(self, index: int, rng: np.random.Generator) -> Example:
        image = np.full((32, 32, 3), 80 * index, np.uint8)
        return Example({"front": image}, "what color is the cube?", self.answer)


def test_the_report_is_that_of_gradients_by_hand(make_model: Callable[..., VLA]) -> None:
    model, sources = make_model(robot=False), {name: Question(name) for name in ("red", "blue", "rare")}
    mixture = Mixture(sources, {"red": 4.0, "blue": 2.0, "rare": 0.01}, 0)
    plan = TrainConfig(steps=1, batch_size=6, accumulate=2, augment=0.0, precision="fp32", loss_weights={"red": 3.0})
    micro = micro_batches(model.processor, mixture, plan, 1, ALONE)
    state = TrainState(model, plan, Path(), list(mixture.shares), ALONE, Progress(1))
    report = gradient_report(state, micro)
    assert all(p.grad is None for p in model.parameters())
    # By hand: all rows at once, the mean of each source's elements, by its rows and its weight.
    examples = mixture.batch(1, 6)
    losses, rows, _ = model(model.processor.batch(examples))
    weights = {n: sum(e.source == n for e in examples) * w for n, w in (("red", 3.0), ("blue", 1.0))}
    by_hand = {}
    for name in ("red", "blue"):
        own = torch.tensor([examples[row].source == name for row in rows])
        loss = losses[own].mean() * weights[name] / sum(weights.values())
        found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, materialize_grads=True)
        by_hand[name] = torch.cat([g.flatten() for g in found])
    shares = gradient_shares(state, micro)
    norms = {"gradient/red", "gradient/blue", "gradient_cosine/blue·red"}  # of rare there is no row
    assert report.keys() == norms | shares.keys() and {name: report[name] for name in shares} == pytest.approx(shares)
    assert all(p.grad is None for p in model.parameters())
    red, blue = (float(by_hand[name].norm()) for name in ("red", "blue"))
    assert shares == pytest.approx({f"share/gradient/{n}": v / (red + blue) for n, v in (("red", red), ("blue", blue))})
    for name, gradient in by_hand.items():
        assert report[f"gradient/{name}"] == pytest.approx(float(gradient.norm()), rel=1e-4)
    cosine = torch.cosine_similarity(by_hand["red"], by_hand["blue"], dim=0)
    assert report["gradient_cosine/blue·red"] == pytest.approx(float(cosine), abs=1e-4)
