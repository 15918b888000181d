"""The held-out action error: a share of the range, whatever the units, and each component in its own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training import demonstrations

from vla.embodiment import Embodiment
from vla.evaluation.heldout import action_error, action_errors
from vla.models.normalization import Normalizer
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA
from vla.training.checkpoint_gate import UNITS, choose
from vla.training.heldout_scores import HeldoutScores
from vla.types import Example


class Says(VLA):
    """A model of one robot that says these actions in its units, whatever it sees; None: an invalid chunk."""

    def __init__(self, spec: RobotSpec, actions: np.ndarray | None) -> None:
        torch.nn.Module.__init__(self)
        self.spec, self.actions = spec, actions
        self.processor: Any = SimpleNamespace(robot=lambda _: spec, robot_prompt=lambda observations, _: observations)

    def generate_actions(self, batch: Any, *_: Any) -> Any:
        if self.actions is None:
            return [None] * len(batch), None
        return [self.spec.normalize_actions(self.actions, one.state) for one in batch], None


def spec(scale: float = 1.0, wraps: bool = False) -> RobotSpec:
    """An arm of two joints, and a gripper whose unit is `scale` of its whole way."""
    body = Embodiment(
        "arm",
        ("front",),
        ("pan [rad]", "lift [rad]"),
        ("pan [rad]", "lift [rad]", "gripper [%]"),
        (-3.2, -3.2, 0.0),
        (3.2, 3.2, scale),
        10.0,
        action_turn=(2 * np.pi if wraps else 0.0, 0.0, 0.0),
        grippers=("gripper [%]",),
    )
    action = Normalizer((-1.0, -0.5, 0.0), (1.0, 0.5, scale))
    state = Normalizer((-3.0, -3.0), (3.0, 3.0))
    return RobotSpec(body, 2, state, action, "none", relative=(True, True, False))


def example(target: np.ndarray, state: tuple[float, float] = (0.0, 0.0), inside: int = 2) -> Example:
    return Example({}, "go", target, np.array(state), np.arange(2) < inside, embodiment="arm")


def errors(said: np.ndarray | None, one: Example, robot: RobotSpec) -> tuple[float, dict[str, float]]:
    return action_errors(Says(robot, said), [one])


@given(scale=st.floats(1e-3, 1e3), part=st.floats(0.0, 1.0))
def test_a_unit_does_not_matter(scale: float, part: float) -> None:
    wanted = np.array([[0.2, 0.1, scale * part]] * 2)
    said = wanted + np.array([0.1, 0.05, 0.0])
    share, units = errors(said, example(wanted), spec(scale))
    assert share == pytest.approx((0.05 + 0.05 + 0.0) / 3)
    assert units == {
        "pan [rad]": pytest.approx(0.1),
        "lift [rad]": pytest.approx(0.05),
        "gripper [%]": pytest.approx(0, abs=1e-9 * scale),
    }


def test_the_gripper_does_not_outweigh_the_joints() -> None:
    wanted, robot = np.array([[0.0, 0.0, 50.0]] * 2), spec(100.0)
    joints, _ = errors(wanted + [0.5, 0.25, 0.0], example(wanted), robot)
    gripper, units = errors(wanted + [0.0, 0.0, 10.0], example(wanted), robot)
    assert joints == pytest.approx((0.25 + 0.25) / 3) and gripper == pytest.approx(0.1 / 3)
    assert units["gripper [%]"] == pytest.approx(10.0)


def test_an_angle_that_wraps_is_the_shorter_way_off() -> None:
    robot, wanted = spec(wraps=True), np.array([[-3.1, 0.0, 0.0]] * 2)
    share, units = errors(np.array([[3.1, 0.0, 0.0]] * 2), example(wanted, (3.1, 0.0)), robot)
    assert units["pan [rad]"] == pytest.approx(2 * np.pi - 6.2) and share == pytest.approx((2 * np.pi - 6.2) / 2 / 3)


def test_an_invalid_chunk_counts_as_holding_and_the_end_does_not_count() -> None:
    wanted = np.array([[0.4, 0.0, 0.0], [9.0, 9.0, 9.0]])
    share, units = errors(None, example(wanted, (0.1, 0.0), inside=1), spec())
    assert units["pan [rad]"] == pytest.approx(0.3) and share == pytest.approx(0.15 / 3)


def test_a_training_says_both(make_model: Callable[..., VLA]) -> None:
    model, windows = make_model(), list(demonstrations())
    one = HeldoutScores({}, {"robot": windows})(model)
    assert one["action_error"] == action_error(model, windows) > 0
    assert [name for name in one if name.startswith(UNITS)] == [
        f"{UNITS}{n}" for n in model.processor.robot().embodiment.action
    ]
    two = HeldoutScores({}, {"a": windows[:1], "b": windows[1:]})(model)
    assert two["action_error"] == pytest.approx((two["action_error_a"] + two["action_error_b"]) / 2)
    assert f"{UNITS}a: grip [rad]" in two


def test_errors_of_before_are_not_held_against_shares() -> None:
    before, now = {"action_error": 0.01}, {"action_error": 0.3, f"{UNITS}pan [rad]": 0.1}
    assert choose([before, now], 0.0) == 1
    assert choose([before, {"action_error": 0.02}], 0.0) == 0
    assert choose([now, {**now, "action_error": 0.2}, before], 0.0) == 1
