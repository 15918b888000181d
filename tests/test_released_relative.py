"""Released policies with actions relative to the state, and pi0.5 without a state, against LeRobot's own classes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot_policies import (
    ACTION,
    BODY,
    HORIZON,
    LeRobotReference,
    change,
    check_export,
    make_pi,
    noise,
    observation,
    reference,
    save_as_openpi,
)

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.released import pi
from vla.models.released.lerobot_export import export_lerobot
from vla.models.released.registry import open_policy, policy_defaults
from vla.models.released.relative_actions import relative_by_count, relative_by_name
from vla.policies.vla import VlaPolicy
from vla.types import Example

NAMES = [f"joint_{i}.pos" for i in range(ACTION - 1)] + ["Gripper.pos"]
ARM = replace(
    BODY,
    action=tuple(f"{name} [rad]" for name in NAMES),
    action_state=BODY.state[:ACTION],
    grippers=("Gripper.pos [rad]",),
)
ARMS = (True,) * (ACTION - 1) + (False,)


def relative(kind: str, folder: Path, patch: pytest.MonkeyPatch, **options: Any) -> LeRobotReference:
    """A policy of LeRobot with relative actions."""
    return reference(kind, folder / kind, patch, use_relative_actions=True, action_feature_names=NAMES, **options)


def same_chunks(name: str | Path, theirs: LeRobotReference, body: Embodiment) -> tuple[bool, ...]:
    """Compares chunks; gives the components that ours predicts relative to the state."""
    policy = open_policy(name)
    # openpi resizes images and cleans instructions otherwise: there is nothing to resize, or to clean.
    robot, seen = policy.robot(body), observation((28, 28), "pick up the red cube")
    ours = VlaPolicy(policy.model([robot]), body).predict(seen)
    assert ours is not None
    np.testing.assert_allclose(ours.actions, theirs.chunk(seen, noise()), atol=1e-4)
    return robot.relative


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_relative_actions_are_those_of_the_original(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = relative(kind, tmp_path, monkeypatch)
    assert same_chunks(theirs.folder, theirs, ARM) == ARMS
    defaults = policy_defaults(theirs.folder)
    assert defaults is not None and defaults.predict == "relative"
    all_of_them = relative(kind, tmp_path / "all", monkeypatch, relative_exclude_joints=[])
    assert same_chunks(all_of_them.folder, all_of_them, ARM) == (True,) * ACTION
    with pytest.raises(InputError, match="component 0 of the state, which does not measure a0"):
        open_policy(theirs.folder).robot(BODY)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_an_export_has_the_relative_components_of_the_training(
    before: bool, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever those of the policy were in which it began."""
    make = relative if before else lambda kind, folder, patch: reference(kind, folder / kind, patch)
    theirs = make("pi05", tmp_path, monkeypatch)
    policy = open_policy(theirs.folder)
    robot = policy.robot(ARM if before else BODY)
    robot = replace(robot, embodiment=ARM, relative=(True, False, *ARMS[2:]) if after else (False,) * ACTION)
    model = policy.model([robot])
    change(model)
    back = check_export(model, theirs, tmp_path / "out", noise(), ARM)
    assert back.policy.config.use_relative_actions == after
    assert back.policy.config.action_feature_names == NAMES
    # LeRobot's commands add the state of each step to the next action of a chunk.
    assert back.policy.config.n_action_steps == (1 if after else robot.horizon)
    assert open_policy(tmp_path / "out").robot(ARM).relative == robot.relative


def test_what_lerobot_cannot_represent_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = open_policy(reference("smolvla", tmp_path / "smolvla", monkeypatch).folder)
    robot = replace(policy.robot(BODY), embodiment=ARM, relative=ARMS)
    with pytest.raises(InputError, match="train with predict=unchanged"):
        export_lerobot(policy.model([robot]), tmp_path / "out")
    policy = open_policy(reference("pi0", tmp_path / "pi0", monkeypatch).folder)
    similar = replace(ARM, action=("joint_1 [rad]", "joint_10 [rad]", *ARM.action[2:]))
    robot = replace(policy.robot(BODY), embodiment=similar, relative=(False, *ARMS[1:]))
    with pytest.raises(InputError, match="does not distinguish the names"):
        export_lerobot(policy.model([robot]), tmp_path / "out")
    short = replace(ARM, state=ARM.state[: ACTION - 1], action_state=(*ARM.state[: ACTION - 1], None))
    robot = policy.robot(BODY)
    fewer = replace(robot.state, low=robot.state.low[: ACTION - 1], high=robot.state.high[: ACTION - 1])
    robot = replace(robot, embodiment=short, state=fewer, relative=ARMS)
    with pytest.raises(InputError, match="more actions than states"):
        export_lerobot(policy.model([robot]), tmp_path / "out")
    turned = replace(ARM, action_turn=(2 * np.pi,) * ACTION)
    robot = replace(policy.robot(BODY), embodiment=turned, relative=(True,) * ACTION)
    with pytest.raises(InputError, match="relative to the state, but it wraps"):
        export_lerobot(policy.model([robot]), tmp_path / "out")


def test_a_smolvla_does_not_read_the_weights_that_it_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All weights are in the export; LeRobot would look for those of the vision-language model."""
    theirs = reference("smolvla", tmp_path, monkeypatch)
    config = json.loads((theirs.folder / "config.json").read_text())
    (theirs.folder / "config.json").write_text(json.dumps(config | {"load_vlm_weights": True}))
    policy = open_policy(theirs.folder)
    model = policy.model([policy.robot(BODY)])
    change(model)
    export_lerobot(model, tmp_path / "out")
    assert not theirs.reloaded(tmp_path / "out").policy.config.load_vlm_weights


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_openpis_delta_actions(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = relative(kind, tmp_path, monkeypatch)
    save_as_openpi(theirs, tmp_path / "openpi")
    monkeypatch.setattr(pi, "TOKENIZER", str(tmp_path / kind / "tokenizer"))
    name = f"{tmp_path / 'openpi'}?delta_actions={ACTION - 1},-1"
    assert same_chunks(name, theirs, ARM) == ARMS
    defaults = policy_defaults(name)
    assert defaults is not None and defaults.predict == "relative"
    assert not any(open_policy(tmp_path / "openpi").robot(BODY).relative)
    with pytest.raises(InputError, match="delta_actions=six of a policy is not a number"):
        open_policy(f"{tmp_path / 'openpi'}?delta_actions=six")


def test_openpis_pi05_without_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of pi0.5 with the prompt of pi0."""

    def make(folder: Path, options: dict[str, Any], patch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
        from lerobot.policies.pi0.processor_pi0 import Pi0NewLineProcessor
        from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep as WithState

        policy, before, after = make_pi("pi05", folder, options, patch)
        before.steps = [Pi0NewLineProcessor() if isinstance(step, WithState) else step for step in before.steps]
        return policy, before, after

    theirs, folder = reference(make, tmp_path / "pi05", monkeypatch), tmp_path / "openpi"
    save_as_openpi(theirs, folder)
    monkeypatch.setattr(pi, "TOKENIZER", str(tmp_path / "pi05/tokenizer"))
    same_chunks(f"{folder}?discrete_state_input=false", theirs, BODY)
    policy, seen = open_policy(f"{folder}?discrete_state_input=false"), observation()
    model = policy.model([policy.robot(BODY)])
    example = Example(seen.images, seen.instruction, np.zeros((HORIZON, ACTION)), seen.state)
    assert bool(model(model.processor.batch([example]))[0].isfinite().all())
    with pytest.raises(AssertionError):
        same_chunks(folder, theirs, BODY)
    with pytest.raises(InputError, match="neither true nor false"):
        open_policy(f"{folder}?discrete_state_input=no")
    other = partial(make_pi, "pi0")
    save_as_openpi(reference(other, tmp_path / "pi0", monkeypatch), tmp_path / "openpi0")
    with pytest.raises(InputError, match="always has the state as numbers"):
        open_policy(f"{tmp_path / 'openpi0'}?discrete_state_input=false")


def test_names_and_counts() -> None:
    assert relative_by_name(["arm", "left_GRIPPER"], ["gripper", ""], 3) == (True, False, True)
    assert relative_by_name([], ["gripper"], 2) == (True, True)
    assert relative_by_count((2, -1, 1), 6) == (True, True, False, True, False, False)
    assert relative_by_count((9,), 2) == (True, True)
