"""A policy of our simulation, in radians, on LeRobot's SO-101, in degrees and percent."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from emulated_arms import emulated, free_port
from lerobot_plugin import command, run
from so101_checkpoints import so101_model

from vla.embodiment import Embodiment, Rotation
from vla.envs.arm import JOINTS
from vla.errors import InputError
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.robots.feetech_emulator.cameras import CameraStream
from vla.robots.feetech_emulator.port import ServoPort
from vla.robots.lerobot_adapter.robot import so101_units
from vla.types import ActionChunk, Observation, RTCPrefix

CAMERAS = ("front", "wrist")
START = np.array([0.0, -1.2, 1.0, 0.8, 0.0, 0.5])
IMAGES = {f"observation.images.{camera}": torch.zeros(1, 3, 9, 9) for camera in CAMERAS}


@pytest.fixture
def model(make_model: Callable[..., VLA]) -> VLA:
    return so101_model(make_model(robot=False))


@pytest.fixture
def port(tmp_path: Path) -> Iterator[ServoPort]:
    with emulated(tmp_path, "so101") as port:
        yield port


def policy_of(plugin: ModuleType, model: VLA, units: str, **options: Any) -> Any:
    from lerobot_policy_vla import VlaConfig

    return plugin.VlaPolicy(VlaConfig(device="cpu", units=units, **options), model=model).eval()


def ours(model: VLA, state: np.ndarray, prefix: RTCPrefix | None = None) -> np.ndarray:
    observation = Observation({camera: np.zeros((9, 9, 3), np.uint8) for camera in CAMERAS}, state, "pick it up", 0.0)
    chunk = VlaPolicy(model).predict(observation, prefix=prefix)
    assert chunk is not None
    return chunk.actions


def batch(state: np.ndarray) -> dict[str, Any]:
    return {"observation.state": torch.from_numpy(state).float()[None], "task": ["pick it up"], **IMAGES}


def test_degrees_are_those_of_our_own_driver(
    plugin: ModuleType, model: VLA, capsys: pytest.CaptureFixture[str]
) -> None:
    """States, chunks and action prefixes, with the scale and the offset of `vla deploy`; one line says so."""
    _, scale, offset = so101_units()
    policy = policy_of(plugin, model, "degrees")
    (line,) = capsys.readouterr().out.splitlines()
    assert "angles from rad to degrees; gripper from -0.1745 … 1.745 rad to 0 … 100 %" in line
    state = START * scale + offset
    exact = (state.astype(np.float32).astype(np.float64) - offset) / scale
    chunk = policy.predict_action_chunk(batch(state))[0].double().numpy()
    np.testing.assert_allclose((chunk - offset) / scale, ours(model, exact), atol=1e-5)
    leftover = torch.from_numpy(chunk[1:]).float()
    continued = policy.predict_action_chunk(batch(state), inference_delay=2, prev_chunk_left_over=leftover)[0]
    torch.testing.assert_close(continued[:2], leftover[:2])
    known = (leftover.double().numpy() - offset) / scale
    np.testing.assert_allclose(
        (continued.double().numpy() - offset) / scale, ours(model, exact, RTCPrefix(known[:2])), atol=1e-5
    )
    assert policy.config.output_features["action"].shape == (6,)


def test_percent_is_of_each_joints_range(plugin: ModuleType, model: VLA) -> None:
    """LeRobot's -100 to 100, and 0 to 100 for the gripper; a calibration over a full turn has another range."""
    policy = policy_of(plugin, model, "percent", ranges={"wrist_roll": [-np.pi, np.pi]})
    body = VlaPolicy(model).embodiment
    low, high = np.array(body.action_low), np.array(body.action_high)
    low[4], high[4] = -np.pi, np.pi
    state = np.array([0.0, -100.0, 100.0, 50.0, -50.0, 25.0])
    expected = low + (state + 100) / 200 * (high - low)
    expected[5] = low[5] + 0.25 * (high[5] - low[5])
    chunk = policy.predict_action_chunk(batch(state))[0].double().numpy()
    radians = ours(model, expected)
    wanted = (radians - low) / (high - low) * 200 - 100
    wanted[:, 5] = (radians[:, 5] - low[5]) / (high[5] - low[5]) * 100
    np.testing.assert_allclose(chunk, wanted, atol=1e-3)


def test_a_chunk_that_cannot_be_decoded_holds_in_lerobots_units(
    plugin: ModuleType, model: VLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(plugin, model, "degrees")
    monkeypatch.setattr(model, "generate_actions", lambda *_, **__: ([None], np.zeros((1, 0, 2))))
    state = np.array([10.0, -20.0, 30.0, 40.0, -50.0, 60.0])
    torch.testing.assert_close(policy.select_action(batch(state))[0], torch.from_numpy(state).float())


def test_radians_drive_no_robot_of_lerobot_without_a_word(
    plugin: ModuleType, model: VLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where its type is known, before it connects, nor where only its values show it."""
    with pytest.raises(InputError, match=r"state has 57\.3: --policy.units=degrees or percent"):
        policy_of(plugin, model, "").select_action(batch(np.full(6, 57.3)))
    monkeypatch.setattr(sys, "argv", ["lerobot-rollout", "--robot.type=so101_follower"])
    with pytest.raises(InputError, match="radians for so101, and LeRobot's so101_follower.*--policy.units=degrees"):
        policy_of(plugin, model, "")
    policy_of(plugin, model, "dataset").select_action(batch(np.full(6, 57.3)))
    policy_of(plugin, model, "degrees")


def test_what_cannot_be_converted_is_named(plugin: ModuleType, model: VLA) -> None:
    from lerobot_policy_vla.units import in_lerobot_units

    def other(**fields: Any) -> Any:
        spec = model.processor.robot()
        policy = VlaPolicy(model)
        policy._body = replace(spec.embodiment, **fields)
        return policy

    plain = tuple(f"{joint}.pos" for joint in JOINTS)
    with pytest.raises(InputError, match="no action of so101 is an angle with a unit.*leave it out"):
        in_lerobot_units(other(state=plain, action=plain, action_state=(), grippers=()), "degrees", {})
    with pytest.raises(InputError, match="there is no elbow: there are shoulder_pan"):
        in_lerobot_units(other(), "percent", {"elbow": [0, 1]})
    with pytest.raises(InputError, match="gripper needs a minimum and a maximum"):
        in_lerobot_units(other(), "percent", {"gripper": [0.0]})
    with pytest.raises(InputError, match="the range of gripper is unknown"):
        in_lerobot_units(other(), "degrees", {"gripper": [1.0, 1.0]})
    with pytest.raises(InputError, match="tool poses"):
        in_lerobot_units(other(rotations=(Rotation((0, 1, 2), "axis_angle"),)), "degrees", {})


def test_other_components_and_modes_of_actions(plugin: ModuleType) -> None:
    """A change has no offset; a length stays as it is; an arm that is not a SO-101 has its own limits."""
    from lerobot_policy_vla.units import in_lerobot_units

    class Still:
        embodiment = Embodiment(
            "gantry",
            (),
            ("x [m]", "turn [rad]", "jaw [m]"),
            ("x [m]", "turn [rad]", "jaw [m]"),
            (0.0, -1.0, 0.01),
            (1.0, 1.0, 0.06),
            10.0,
            action_mode=("absolute", "delta", "absolute"),
            grippers=("jaw [m]",),
        )

        def reset(self) -> None: ...

        def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None: ...

    policy = in_lerobot_units(Still(), "percent", {"turn": [-2.0, 1.0]})
    np.testing.assert_allclose(policy.action.to_robot(np.array([0.5, 0.3, 0.06])), [0.5, 20.0, 100.0])
    np.testing.assert_allclose(policy.state.to_robot(np.array([0.5, -2.0, 0.01])), [0.5, -100.0, 0.0], atol=1e-9)
    assert policy.embodiment.action == ("x [m]", "turn [%]", "jaw [%]") and policy.embodiment.grippers == ("jaw [%]",)


def test_lerobots_driver_moves_the_emulated_arm_where_the_policy_says(
    plugin: ModuleType, model: VLA, port: ServoPort, tmp_path: Path
) -> None:
    """LeRobot's own SO101Follower, without the command around it."""
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    options = dict(id="so101", calibration_dir=tmp_path, num_read_retries=20)
    robot = SO101Follower(SO101FollowerConfig(port=str(port.path), **options))
    for last in (False, False, False, True):  # the driver gives an answer 50 ms, which a busy machine may miss
        try:
            robot.connect(calibrate=False)
            break
        except ConnectionError:
            robot.bus.port_handler.closePort()
            if last:
                raise
    try:
        policy, measured = policy_of(plugin, model, "degrees"), robot.get_observation()
        state = np.array([measured[f"{joint}.pos"] for joint in JOINTS])
        action = policy.select_action(batch(state))[0].tolist()
        robot.send_action(dict(zip([f"{joint}.pos" for joint in JOINTS], action, strict=True)))
        _, scale, offset = so101_units()
        wanted = ours(model, (state.astype(np.float32).astype(np.float64) - offset) / scale)[0]
        for servo, goal in zip(port.bus.servos, wanted, strict=True):
            for _ in range(1000):
                if servo.goal == pytest.approx(goal, abs=0.01):
                    break
                time.sleep(0.001)
            assert servo.goal == pytest.approx(goal, abs=0.01)
    finally:
        robot.bus.port_handler.closePort()


@pytest.mark.slow  # LeRobot's command needs ten seconds and more to start
@pytest.mark.parametrize("inference", ["sync", "rtc"])
def test_lerobot_rollout_drives_the_emulated_arm(
    lerobot_site: Path, model: VLA, port: ServoPort, tmp_path: Path, inference: str
) -> None:
    model.save_pretrained(tmp_path / "policy")
    cameras = free_port()
    entries = (
        f"{name}: {{type: zmq, server_address: 127.0.0.1, port: {cameras}, camera_name: {name}, width: 32, height: 32, "
        "fps: 10}"
        for name in CAMERAS
    )
    arguments = [
        f"--policy.path={tmp_path / 'policy'}",
        f"--inference.type={inference}",
        "--robot.type=so101_follower",
        f"--robot.port={port.path}",
        "--robot.id=so101",
        f"--robot.calibration_dir={tmp_path}",
        "--robot.num_read_retries=20",
        f"--robot.cameras={{{', '.join(entries)}}}",
        "--task=pick it up",
        "--fps=10",
        "--duration=2",
        "--return_to_initial_position=false",
        "--play_sounds=false",
    ]
    refused = run(lerobot_site, "lerobot-rollout", *arguments)
    assert refused.returncode == 1 and refused.stderr.splitlines()[-1].startswith("error: this policy uses radians")
    with CameraStream(port.arm, cameras, 10):
        output = command(lerobot_site, "lerobot-rollout", *arguments, "--policy.units=degrees")
    assert "angles from rad to degrees" in output
    goals = np.array([servo.goal for servo in port.bus.servos])
    # The chunks of this model go at most 0.2 rad beyond the state at a time, so that it starts near the pose.
    assert (np.abs(goals - START) > 1e-3).any() and (np.abs(goals) < 2.8).all()
