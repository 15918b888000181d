"""Sources count as their rows and the user's weights say, however long answers and chunks are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOY
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import ALONE, demonstrations, mixture, plan, questions

from vla.embodiment import Embodiment
from vla.models.build import with_head
from vla.models.normalization import Normalizer
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA
from vla.training.balance import KINDS, element_weights
from vla.training.cotrain import train
from vla.training.state import Progress, TrainState
from vla.training.step import backward
from vla.types import Example

Models = Callable[..., VLA]
SOURCES = ("robot", "vqa")


def spec(horizon: int, width: int, points: int) -> RobotSpec:
    joints, limits = tuple(f"joint{i} [rad]" for i in range(width)), ((-1.0,) * width, (1.0,) * width)
    body = Embodiment("toy", TOY.cameras, joints, joints, *limits, 10.0)
    return RobotSpec(body, horizon, Normalizer(*limits), Normalizer(*limits), "none", points=points)


def share_of_questions(make_model: Models, head: str, horizon: int, width: int, answer: str = "red") -> float:
    """The part that questions have of the gradient's loss, where every element has the same loss."""
    vlm = make_model(robot=False)
    model = with_head(vlm.backbone, vlm.processor, [spec(horizon, width, points=1)], {"kind": head})
    images, rng = questions()[0].images, np.random.default_rng(0)
    views = dict.fromkeys(TOY.cameras, images["front"])
    action = Example(views, "lift the ring", rng.uniform(-1, 1, (horizon, width)), np.zeros(width), source="robot")
    action = replace(action, points=np.array([[0.5, 0.5]]))
    asked = [Example(images, "what color is the cube?", answer, source="vqa") for _ in range(2)]
    batch = model.processor.batch([action] * 3 + asked)
    learned = model.forward
    model.forward = lambda *given: (torch.ones_like((out := learned(*given))[0], requires_grad=True), *out[1:])  # type: ignore[method-assign]
    state = TrainState(model, plan(steps=1, batch_size=5), Path(), SOURCES, ALONE, Progress())
    return backward(state, [batch])["vqa"].part


@pytest.mark.parametrize("head", ["parallel", "bins", "text", "l1", "flow"])
def test_horizon_and_action_dimension_do_not_change_the_balance(make_model: Models, head: str) -> None:
    short = share_of_questions(make_model, head, 4, 3)
    assert 0.02 < short < 0.3
    assert share_of_questions(make_model, head, 20, 14) == pytest.approx(short, rel=1e-5)
    assert share_of_questions(make_model, head, 4, 3, "red blue red blue red") == pytest.approx(short, rel=1e-5)


counts = st.lists(st.lists(st.integers(0, 500), min_size=5, max_size=5), min_size=2, max_size=2)


@given(counts, st.floats(0.1, 10.0), st.integers(2, 50))
def test_shares_are_those_of_rows_and_weights(values: list[list[int]], weight: float, times: int) -> None:
    own = torch.tensor([*values, [7, 7, 7, 7, 7]], dtype=torch.float64)  # the last: of no source
    shares = element_weights(own, SOURCES, {"vqa": weight}) * own[:, 1:]
    assert shares[-1].sum() == 0
    learned = own[:2, :1] * (own[:2, 1:] > 0) * torch.tensor([list(KINDS.values())], dtype=torch.float64)
    learned[1] *= weight
    assert shares.sum() == pytest.approx(float(learned.sum() > 0))
    torch.testing.assert_close(shares[:2] * learned.sum(), learned * shares.sum())
    longer = own.clone()
    longer[0, 1:] *= times  # longer answers and chunks, in as many rows
    torch.testing.assert_close(element_weights(longer, SOURCES, {"vqa": weight}) * longer[:, 1:], shares)


def test_the_shares_of_loss_and_gradient_are_logged(make_model: Models, tmp_path: Path) -> None:
    assert len(demonstrations()) and len(questions())
    train(make_model(), mixture(), plan(steps=10, evaluate_every=5, gradient_report=None), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for what, steps in (("loss", [10]), ("gradient", [0, 5])):
        robot, vqa = (events.Scalars(f"share/{what}/{source}") for source in SOURCES)
        assert [event.step for event in robot] == [event.step for event in vqa] == steps
        for one, other in zip(robot, vqa, strict=True):
            assert one.value + other.value == pytest.approx(1) and min(one.value, other.value) > 0.01
