from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vla.datasets.mixture import Mixture
from vla.models.batch import IGNORE, Batch
from vla.models.vla import VLA
from vla.training.batches import SPARE, micro_batches, trimmed
from vla.training.distributed import DistributedContext
from vla.training.state import Progress, TrainState
from vla.training.step import backward
from vla.training.train_config import TrainConfig
from vla.types import Example

Models = Callable[..., VLA]
ALONE = DistributedContext(torch.device("cpu"))


class Texts:
    """Questions with answers of many lengths, every second with an image."""

    def __len__(self) -> int:
        return 64

    def example(self, index: int, rng: np.random.Generator) -> Example:
        words = int(np.random.default_rng(index).integers(1, 24))
        images = {"front": np.full((32, 32, 3), index, np.uint8)} if index % 2 else {}
        return Example(images, "what color is the cube?", " ".join(["red", "blue"] * words))


def mixture() -> Mixture:
    return Mixture({"texts": Texts()}, {"texts": 1.0}, 0)


def plan(**fields: Any) -> TrainConfig:
    values: dict[str, Any] = {"steps": 2, "batch_size": 24, "augment": 0.3, "precision": "fp32"}
    return TrainConfig(**(values | fields))


def padded(micro: list[Batch]) -> float:
    """The share of the tokens that are computed for nothing."""
    return 1 - sum(int(b.attention_mask.sum()) for b in micro) / sum(b.attention_mask.numel() for b in micro)


def gradients(model: VLA, micro: list[Batch], told: TrainConfig) -> dict[str, torch.Tensor]:
    model.zero_grad()
    backward(TrainState(model, told, Path(), ["texts"], ALONE, Progress(1)), micro)
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_rows_of_like_length_stand_together_to_the_same_effect(make_model: Models) -> None:
    model, whole, split = make_model(robot=False), plan(), plan(accumulate=6)
    (one,), many = (micro_batches(model.processor, mixture(), p, 1, ALONE) for p in (whole, split))
    assert padded(many) < padded([one]) / 3
    assert sorted(torch.cat([b.seed for b in many]).tolist()) == sorted(one.seed.tolist())
    assert min(b.image_mask.shape[1] for b in many) == 1
    ours, theirs = gradients(model, many, split), gradients(model, [one], whole)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("head", ["parallel", "l1", "flow"])
def test_padding_contributes_nothing(make_model: Models, head: str) -> None:
    model, rng = make_model(head=head), np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (32, 32, 3), np.uint8) for camera in ("front", "wrist")}
    action = Example(images, "lift", rng.uniform([-1, -1, 0], 1, (4, 3)), np.zeros(2), source="texts")
    examples = [action, replace(Texts().example(3, rng), source="texts")]
    batch = model.processor.batch(examples, [np.random.default_rng(i) for i in range(2)])
    fill = {"labels": IGNORE, "input_ids": model.processor.pad}
    names = ("input_ids", "attention_mask", "labels", "segments")
    longer = {name: F.pad(getattr(batch, name), (0, 7), value=fill.get(name, 0)) for name in names}
    views = {
        n: torch.cat([t := getattr(batch, n), torch.zeros_like(t[:, :1])], 1) for n in ("images", "content", "tiling")
    }
    views |= {"image_mask": F.pad(batch.image_mask, (0, 1)), "warp": torch.eye(3).expand(2, 3, 3, 3)}
    wide = replace(batch, **views, **longer)
    assert torch.equal(model(batch)[1], model(wide)[1])
    torch.testing.assert_close(model(wide)[0], model(batch)[0])
    ours, theirs = (gradients(model, [b], plan(batch_size=2, augment=0.3)) for b in (wide, batch))
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6)
    assert trimmed(wide).input_ids.shape == batch.input_ids.shape and trimmed(wide).images.shape == batch.images.shape


def test_what_is_drawn_for_a_row_is_its_own(make_model: Models) -> None:
    """Rows of one process are, drawn numbers and all, those of its ranks."""
    model = make_model(robot=False)
    (whole,) = micro_batches(model.processor, mixture(), plan(), 1, ALONE)
    again, other = (micro_batches(model.processor, mixture(), plan(), step, ALONE)[0] for step in (1, 0))
    assert torch.equal(whole.seed, again.seed) and not torch.isin(whole.seed, other.seed).any()
    for rank in range(3):
        (own,) = micro_batches(model.processor, mixture(), plan(), 1, DistributedContext(torch.device("cpu"), rank, 3))
        assert torch.equal(own.seed, whole.seed[rank::3])
        assert torch.equal(own.input_ids, whole.input_ids[rank::3, : own.input_ids.shape[1]])


def test_a_rank_without_images_or_robots_gets_a_row_of_no_weight(make_model: Models) -> None:
    model = make_model(head="flow")
    for batch in micro_batches(
        model.processor, mixture(), plan(accumulate=12), 1, DistributedContext(torch.device("cpu"), 1, 2)
    ):
        assert batch.source[-1] == SPARE and batch.robot[-1] == 0 and batch.image_mask[-1].all()
        model.zero_grad()
        backward(TrainState(model, plan(), Path(), ["texts"], ALONE, Progress(1)), [batch])
        assert all(p.grad is not None for p in model.continuous_head.parameters())
        assert not any(p.grad.any() for p in model.continuous_head.parameters() if p.grad is not None)
