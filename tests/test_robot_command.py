"""`vla robot` on the emulated arm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from emulated_arms import emulated, make

from vla.commands.cli import main
from vla.commands.robot import goal_of
from vla.commands.so101_sim import obey
from vla.envs.arm import arm_spec
from vla.envs.ik import ArmIK
from vla.envs.so101 import home_joints
from vla.robots.feetech_emulator.packets import Error
from vla.robots.feetech_emulator.port import ServoPort
from vla.robots.feetech_emulator.servo import Register

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def port(tmp_path: Path) -> Iterator[ServoPort]:
    with emulated(tmp_path, "so101") as port:
        yield port


@pytest.fixture
def run(port: ServoPort, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`vla robot ACTION`: its exit code, what it prints, and the one line of its error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["robot", *arguments, f"robot.port={port.path}", f"robot.calibration_dir={tmp_path}"])
        printed = capsys.readouterr()
        assert not code or len(printed.err.splitlines()) == 1, printed.err
        return code, printed.out, printed.err

    return run


def at_rest(port: ServoPort) -> None:
    """Waits until the arm has stopped falling."""
    end, still = time.monotonic() + 60, 0
    while still < 50:
        assert time.monotonic() < end
        before = port.arm.scene.data.time
        while port.arm.scene.data.time == before:
            assert time.monotonic() < end
        still = still + 1 if np.abs(port.arm.scene.data.qvel[:5]).max() < 0.02 else 0


def test_status_is_a_table_and_changes_nothing(port: ServoPort, run: Run) -> None:
    port.bus.servos[0].write(Register.TORQUE_ENABLE, b"\1")
    code, out, _ = run("status")
    rows = out.splitlines()[1:]
    assert code == 0 and len(rows) == 6 and all(row.endswith("ok") for row in rows)
    assert rows[0].split()[-2] == "on" and rows[5].split()[-2] == "off"
    degrees = [float(row.split()[2]) for row in rows[:5]]
    np.testing.assert_allclose(degrees, np.degrees(port.arm.joints[:5]), atol=5)
    assert "12.0" in rows[3] and "25" in rows[3]
    assert [servo.torque for servo in port.bus.servos] == [True] + [False] * 5


def test_status_says_all_that_is_wrong(port: ServoPort, run: Run) -> None:
    lift, elbow, flex = port.bus.servos[1:4]
    lift.overload()
    elbow.set(Register.MAX_POSITION, 3000)
    port.bus.faults.mute = {flex.id}
    code, out, error = run("status")
    assert code == 1 and "overload" in out.splitlines()[2] and "does not answer" in out.splitlines()[4]
    for part in (
        "servo 2 (shoulder_lift) reports overload",
        "servo 3 (elbow_flex) differs",
        "servo 4 (wrist_flex) does",
    ):
        assert part in error


def test_an_overload_lasts_until_it_is_cleared_and_nothing_jumps(port: ServoPort, run: Run) -> None:
    for servo in port.bus.servos[:2]:
        servo.write(Register.TORQUE_ENABLE, b"\1")
        servo.write(Register.GOAL_POSITION, bytes(servo.read(Register.PRESENT_POSITION, 2)))
    for line in ("overload 2", "overload 3", "heal"):
        obey(port, line)
    assert [Error.OVERLOAD in servo.error for servo in port.bus.servos[:4]] == [False, True, True, False]
    at_rest(port)  # overloaded servos let the arm fall
    port.bus.servos[1].set(Register.GOAL_POSITION, 0)
    code, out, _ = run("clear")
    assert (
        code == 0 and "servo 2 (shoulder_lift): overload cleared" in out and "servo 3" in out and "servo 1" not in out
    )
    assert not any(servo.error for servo in port.bus.servos)
    assert [servo.torque for servo in port.bus.servos] == [True, True] + [False] * 4
    lift = port.bus.servos[1]
    at_rest(port)  # it had sunk while its torque was off
    assert lift.to_angle(lift.get(Register.GOAL_POSITION)) == pytest.approx(port.arm.joints[1], abs=0.1)
    assert run("clear")[:2] == (0, "no servo reports an error\n")
    assert run("status")[0] == 0


def test_what_clearing_does_not_help_is_said(port: ServoPort, run: Run) -> None:
    gripper = port.bus.servos[5]
    gripper.set(Register.MAX_TEMPERATURE, 20)  # it is hotter than that, and stays so
    end = time.monotonic() + 30
    while Error.OVERHEAT not in gripper.error:
        assert time.monotonic() < end
    code, _, error = run("clear")
    assert code == 1 and "servo 6 (gripper) still reports overheat: let it cool down" in error


def test_without_torque_the_arm_falls(port: ServoPort, run: Run) -> None:
    for servo in port.bus.servos:
        servo.write(Register.TORQUE_ENABLE, b"\1")
    port.bus.servos[1].overload()
    code, out, _ = run("disable_torque")
    assert code == 0 and "the arm falls" in out
    assert not any(servo.torque for servo in port.bus.servos)
    port.bus.faults.mute = {3}
    code, _, error = run("disable_torque")
    assert code == 1 and "servo 3 (elbow_flex) does not confirm" in error


def test_home_is_where_the_simulated_arm_waits(port: ServoPort, run: Run) -> None:
    assert run("home")[:2] == (0, "the arm is at the pose and holds\n")
    np.testing.assert_allclose(port.arm.joints, home_joints(ArmIK(arm_spec().compile())), atol=0.1)
    assert all(servo.torque for servo in port.bus.servos)
    before = port.arm.joints
    assert run("home", "pose={shoulder_pan: 0.3}")[0] == 0
    np.testing.assert_allclose(port.arm.joints, [0.3, *before[1:]], atol=0.1)


def test_home_on_an_arm_with_an_error_is_one_line(port: ServoPort, run: Run) -> None:
    port.bus.servos[1].overload()
    code, _, error = run("home")
    assert code == 4 and error.startswith("vla robot: servo 2 (shoulder_lift) reports overload")
    assert not any(servo.torque for servo in port.bus.servos)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["statsu", "robot.port=/dev/null"], "did you mean 'status'"),
        (["status"], "robot.port"),
        (["status", "robot.port=/dev/none"], "does not exist; `vla doctor` lists"),
        (["status", "robot=sim"], "needs a robot with Feetech servos"),
        (["disable_torque", "robot.port=/dev/null", "pose={gripper: 1}"], "pose= applies to home"),
        (["home", "robot=sim", "pose={elbow: 1}"], "did you mean 'elbow_flex'"),
        (["home", "robot=sim", "pose={gripper: 9}"], "gripper is from"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robot", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_the_pose_is_in_the_units_of_the_robot(port: ServoPort, tmp_path: Path) -> None:
    ours = goal_of(make(port, tmp_path), None)
    theirs = goal_of(make(port, tmp_path, units="lerobot"), None)
    np.testing.assert_allclose(theirs[:5], np.degrees(ours[:5]))
    assert 0 < theirs[5] < 100
