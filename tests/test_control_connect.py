"""Connecting to an arm: nothing moves, and what is wrong is named; all on the emulated bus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_arms import OPTIONS, connected, emulated, make, retried

from vla.commands.cli import main
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.robots.dry_run import DryRun
from vla.robots.feetech_emulator.port import ServoPort
from vla.robots.feetech_emulator.servo import READ_ONLY, SIZE, Register, Servo
from vla.robots.lerobot_adapter.build import build
from vla.robots.lerobot_adapter.robot import LeRobotRobot, so101
from vla.robots.limits import Limits
from vla.robots.robot import RobotFault


@pytest.fixture
def port(tmp_path: Path) -> Iterator[ServoPort]:
    with emulated(tmp_path, "so101") as port:
        yield port


def writable(port: ServoPort) -> list[bytes]:
    """What a write could have changed in each servo."""
    cells = [cell for cell in range(SIZE) if not any(cell in cells for cells in READ_ONLY)]
    return [bytes(servo.read(0, SIZE)[cell] for cell in cells) for servo in port.bus.servos]


def goal(servo: Servo) -> float:
    return servo.to_angle(servo.get(Register.GOAL_POSITION))


def moved_by_hand(port: ServoPort, joint: int, angle: float) -> None:
    """Without torque; returns when the servo has measured it, and the hand stays."""
    hand = port.arm.joints
    hand[joint] = angle
    port.arm.hand = hand
    servo, end = port.bus.servos[joint], time.monotonic() + 30
    while abs(servo.to_angle(servo.get(Register.PRESENT_POSITION)) - angle) > 0.1:
        assert time.monotonic() < end


@pytest.mark.parametrize("torque", [False, True])
def test_a_dry_run_leaves_the_motors_as_they_were(port: ServoPort, tmp_path: Path, torque: bool) -> None:
    for servo in port.bus.servos:
        servo.write(Register.TORQUE_ENABLE, bytes((torque,)))
    before = writable(port)
    robot = make(port, tmp_path, relax_on_exit=True)
    with connected(DryRun(robot)) as dry:  # type: ignore[arg-type]
        np.testing.assert_allclose(retried(dry.state)[0], port.arm.joints, atol=0.1)
        dry.command(np.zeros(6))
        dry.hold(np.zeros(6))
        dry.disable_torque()
        with pytest.raises(RobotFault, match="read-only"):
            robot.command(np.zeros(6))
    assert writable(port) == before


def test_an_arm_that_was_moved_by_hand_does_not_jump_when_torque_comes_on(port: ServoPort, tmp_path: Path) -> None:
    moved_by_hand(port, 0, 0.8)
    assert abs(goal(port.bus.servos[0])) < 0.05  # where it was switched on
    with connected(make(port, tmp_path)) as robot:
        held = [goal(servo) for servo in port.bus.servos]
        np.testing.assert_allclose(held, retried(robot.state)[0], atol=0.1)
        assert held[0] == pytest.approx(0.8, abs=0.05) and all(servo.torque for servo in port.bus.servos)


def test_a_joint_outside_its_calibrated_range_gets_no_torque(port: ServoPort, tmp_path: Path) -> None:
    elbow = port.bus.servos[2]
    high = elbow.to_angle(elbow.get(Register.MAX_POSITION))
    moved_by_hand(port, 2, high + 0.3)
    with pytest.raises(InputError, match=r"servo 3 \(elbow_flex\) stands 1\d degrees outside its calibrated range"):
        make(port, tmp_path).__enter__()
    assert not any(servo.torque for servo in port.bus.servos)


def test_servos_that_differ_from_their_calibration_get_no_torque(port: ServoPort, tmp_path: Path) -> None:
    port.bus.servos[1].set(Register.MAX_POSITION, 3000)
    with pytest.raises(InputError, match=r"so101\.json: calibrate again"), connected(make(port, tmp_path)):
        pass
    assert not any(servo.torque for servo in port.bus.servos)


def test_a_servo_that_reports_an_error_is_named(port: ServoPort, tmp_path: Path) -> None:
    port.bus.servos[1].overload()
    port.bus.servos[3].overload()
    named = r"servo 2 \(shoulder_lift\) reports overload: .*`vla robot clear`.*; servo 4 \(wrist_flex\) rep"
    with pytest.raises(RobotFault, match=named):
        make(port, tmp_path).__enter__()


def test_a_servo_that_is_silent_is_named(port: ServoPort, tmp_path: Path) -> None:
    port.bus.faults.mute = {3}
    with pytest.raises(RobotFault, match=r"servo 3 \(elbow_flex\) does not answer"):
        make(port, tmp_path).__enter__()
    port.bus.faults.mute = {servo.id for servo in port.bus.servos}
    with pytest.raises(RobotFault, match="no servo answers on .*power supply"):
        make(port, tmp_path).__enter__()


def test_the_grip_stays_below_what_trips_the_overload_protection(tmp_path: Path) -> None:
    """The gripper is sent far beyond its stop; the time that follows is simulated without waiting for it."""
    with emulated(tmp_path, "so101") as port, connected(make(port, tmp_path)):
        gripper = port.bus.servos[5]
        assert gripper.get(Register.TORQUE_LIMIT) < 10 * gripper.get(Register.OVERLOAD_TORQUE) == 250
    gripper.set(Register.MIN_POSITION, 0)
    gripper.set(Register.GOAL_POSITION, 0)
    loads = []
    for _ in range(int(20 / port.arm.dt)):
        port.arm.step()
        loads.append(abs(gripper.get(Register.PRESENT_LOAD)))
    assert max(loads) > 150 and not gripper.error


def test_fields_of_lerobots_configs_are_honoured_or_refused(tmp_path: Path) -> None:
    arm = so101(port="x", calibration_dir=str(tmp_path), **OPTIONS)
    common: dict[str, Any] = dict(
        embodiment=arm.embodiment, limits=arm.limits, keys=arm.keys, scale=[1.0] * 6, offset=[0.0] * 6
    )
    for field, cure in {
        "max_relative_target": "robot.limits",
        "disable_torque_on_disconnect": "relax_on_exit",
        "num_read_retries": "control loop",
    }.items():
        with pytest.raises(InputError, match=f"robot.options.{field} is not used here.*{cure}"):
            LeRobotRobot(type="so101_follower", options={"port": "x", field: 2}, **common)
    pair: dict[str, dict[str, Any]] = {"left_arm_config": {"port": "x", "max_relative_target": 2.0}}
    LeRobotRobot(type="bi_so_follower", options=pair, **common)  # LeRobot's own code honours it
    pair["left_arm_config"]["disable_torque_on_disconnect"] = False
    with pytest.raises(InputError, match="robot.options.left_arm_config.disable_torque_on_disconnect is not used"):
        LeRobotRobot(type="bi_so_follower", options=pair, **common)


def test_every_robot_of_lerobots_is_found_by_its_name() -> None:
    hand = {"port": "x", "side": "left"}
    assert build("hope_jr_hand", hand).name == "hope_jr_hand" and build("hope_jr_arm", {"port": "x"})
    with pytest.raises(InputError, match="'so101_folower'.*did you mean 'so101_follower'.*lekiwi_client"):
        build("so101_folower", {})
    with pytest.raises(InputError, match="does not take these options: .*remote_ip"):
        build("lekiwi_client", {})


def test_a_wrong_port_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with emulated(tmp_path, "so101") as port:
        pass  # the calibration is there, the arm is not
    with pytest.raises(InputError, match="port cannot be opened .*`vla doctor` lists"):
        make(port, tmp_path).__enter__()
    assert main(["deploy", "policy=hold", "robot=so101", "robot.port=/dev/none", "instruction=wait"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vla deploy: robot.port=/dev/none does not exist; ") and len(error.splitlines()) == 1


def base(modes: tuple[str, ...]) -> LeRobotRobot:
    """A mobile base's joint and speed, as LeKiwi names them."""
    names = ("lift.pos", "x.vel")
    body = Embodiment("base", (), names, names, (-1.0, -1.0), (1.0, 1.0), 10.0, action_mode=modes)
    limits = Limits((1.0, 1.0), (2.0, 2.0))
    return LeRobotRobot(
        type="lekiwi", options={}, embodiment=body, limits=limits, keys=names, scale=(1.0, 1.0), offset=(0.0, 0.0)
    )


def test_a_speed_is_not_taken_for_a_place() -> None:
    """It would be held for ever."""
    with pytest.raises(
        InputError, match=r"x.vel is a position in robot.embodiment.action_mode, but .*x.vel is a velocity"
    ):
        base(())
    body = base(("absolute", "velocity")).embodiment
    np.testing.assert_array_equal(body.hold_action(np.array([0.3, 0.2])), [0.3, 0.0])


def test_cameras_are_known_by_size_and_named_by_number_with_a_warning(
    port: ServoPort, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = {"width": 64, "height": 48, "fps": 30}
    cameras = {
        "front": {"type": "opencv", "index_or_path": 9, **size},
        "wrist": {"type": "opencv", "index_or_path": "/dev/v4l/by-id/usb-x", "rotation": 90, **size},
        "top": {"type": "opencv", "index_or_path": "/dev/video9", **size},
    }
    robot = make(port, tmp_path, cameras=cameras)
    assert robot.image_sizes == {"front": (48, 64), "wrist": (64, 48), "top": (48, 64)}
    with pytest.raises(RobotFault, match="does not connect"), robot:
        pass
    told = [record.getMessage() for record in caplog.records if "by-id" in record.getMessage()]
    assert [line.split(" today")[0] for line in told] == [
        "camera front is 9",
        "camera top is /dev/video9",
    ]
