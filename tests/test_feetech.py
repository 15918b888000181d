"""The wire, the servos, and the arm under LeRobot's own driver."""

from __future__ import annotations

import io
import json
import os
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.envs.arm import JOINTS
from vla.envs.scene import TableScene
from vla.errors import InputError
from vla.robots.feetech_emulator.arm import ServoArm
from vla.robots.feetech_emulator.bus import Bus
from vla.robots.feetech_emulator.packets import BROADCAST, Error, Instruction, Packet, Parser, encode
from vla.robots.feetech_emulator.port import ServoPort
from vla.robots.feetech_emulator.servo import TICK, Register, Servo

PACKETS = st.builds(Packet, st.integers(0, 253), st.integers(0, 255), st.binary(max_size=40))


@given(st.lists(PACKETS, max_size=5), st.integers(1, 9))
def test_packets_come_out_as_they_went_in_however_they_are_cut(packets: list[Packet], size: int) -> None:
    stream, parser = b"".join(map(encode, packets)), Parser()
    pieces = (stream[i : i + size] for i in range(0, len(stream), size))
    assert [packet for piece in pieces for packet in parser.feed(piece)] == packets


@given(st.binary(max_size=30).filter(lambda noise: b"\xff" not in noise), PACKETS, st.data())
def test_a_damaged_packet_does_not_cost_those_after_it(noise: bytes, packet: Packet, data: st.DataObject) -> None:
    damaged = bytearray(encode(Packet(1, Instruction.PING)))
    damaged[-1] ^= data.draw(st.integers(1, 255))
    # A request that was never finished is given up once enough has come to see that it is none.
    found = Parser().feed(noise + bytes(damaged) + encode(packet) + bytes(260))
    assert packet in found


@given(st.integers(-2047, 2047), st.floats(-2.7, 2.7))
def test_positions_are_angles(offset: int, angle: float) -> None:
    servo = Servo(1, mount=50)
    servo.set(Register.HOMING_OFFSET, offset)
    assert servo.get(Register.HOMING_OFFSET) == offset
    assert servo.to_angle(servo.to_position(angle)) == pytest.approx(angle, abs=TICK)


def test_eeprom_lasts_only_where_it_was_unlocked() -> None:
    servo = Servo(1)
    servo.write(Register.MIN_POSITION, b"\x10\x00")
    servo.write(Register.PRESENT_POSITION, b"\x01\x02")
    assert (servo.get(Register.MIN_POSITION), servo.get(Register.PRESENT_POSITION)) == (16, 0)
    servo.power_on()
    assert servo.get(Register.MIN_POSITION) == 0
    servo.write(Register.LOCK, b"\x00")
    servo.write(Register.MIN_POSITION, b"\x10\x00")
    servo.power_on()
    assert servo.get(Register.MIN_POSITION) == 16


@given(st.integers(0, 4095), st.integers(1, 254), st.integers(0, 3000))
def test_the_setpoint_keeps_to_speed_and_acceleration(goal: int, acceleration: int, speed: int) -> None:
    servo, dt = Servo(1), 0.005
    servo.write(Register.TORQUE_ENABLE, b"\x01")
    servo.set(Register.ACCELERATION, acceleration)
    servo.set(Register.GOAL_VELOCITY, speed)
    servo.set(Register.GOAL_POSITION, goal)
    places = np.array([0.0, *(servo.advance(dt) for _ in range(200))])
    speeds = np.diff(places) / dt
    assert np.abs(speeds).max() <= (speed * TICK or 4.7) + 1e-9
    assert np.abs(np.diff(speeds)).max() <= acceleration * 100 * TICK * dt + 1e-9


def test_overload_trips_after_its_time_and_ends_when_torque_is_enabled_anew() -> None:
    servo = Servo(1)
    servo.write(Register.TORQUE_ENABLE, b"\x01")
    for _ in range(5):
        servo.measure(0.0, 0.0, 2.9, 0.3)
    assert Error.OVERLOAD not in servo.error
    full = servo.max_torque
    for _ in range(5):
        servo.measure(0.0, 0.0, 2.9, 0.3)
    assert Error.OVERLOAD in servo.error and servo.max_torque < full / 2
    servo.write(Register.TORQUE_ENABLE, b"\x00")
    servo.write(Register.TORQUE_ENABLE, b"\x01")
    assert servo.error == 0 and servo.max_torque == full


@pytest.fixture
def arm() -> Iterator[ServoArm]:
    scene = TableScene(32)
    scene.reset()
    scene.data.qpos[:6] = scene.data.ctrl[:6] = (0.0, -1.2, 1.0, 0.8, 0.0, 0.5)
    # Driver and servos share this process: the driver's busy waiting must not keep the servos from answering.
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield ServoArm(scene)
    sys.setswitchinterval(before)
    scene.close()


def follower(port: ServoPort, folder: Path) -> Any:
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    return SO101Follower(SO101FollowerConfig(port=port.path, id="so101", calibration_dir=folder, num_read_retries=5))


def connected(robot: Any) -> Any:
    """Connects without retries of the driver's own, which a busy machine needs: an answer must be there in 50 ms."""
    for last in (False, False, False, True):
        try:
            robot.connect(calibrate=False)
            return robot
        except (ConnectionError, RuntimeError):
            robot.bus.disconnect(disable_torque=False)
            if last:
                raise


@pytest.fixture
def port(arm: ServoArm, tmp_path: Path) -> Iterator[ServoPort]:
    (tmp_path / "so101.json").write_text(json.dumps(arm.calibrate()))
    with ServoPort(arm, tmp_path / "port") as port:
        yield port


@pytest.fixture
def robot(port: ServoPort, tmp_path: Path) -> Iterator[Any]:
    robot = connected(follower(port, tmp_path))
    yield robot
    if robot.bus.is_connected:
        robot.bus.disconnect(disable_torque=False)


def until(condition: Callable[[], bool]) -> None:
    """Returns once it holds; fails where it does not for so long that the arm cannot be running."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        os.sched_yield()


def step_on(arm: ServoArm) -> None:
    seen = arm.scene.data.time
    until(lambda: bool(arm.scene.data.time > seen + 2.5 * arm.dt))


def test_lerobot_connects_observes_acts_and_leaves(port: ServoPort, robot: Any) -> None:
    assert robot.is_calibrated
    assert set(robot.get_observation()) == {f"{joint}.pos" for joint in JOINTS}
    goal = {"shoulder_pan.pos": 20.0, "wrist_roll.pos": -30.0, "gripper.pos": 60.0}
    robot.send_action(goal)
    until(lambda: all(abs(robot.get_observation()[key] - value) < 2 for key, value in goal.items()))
    low, high = port.arm.scene.model.actuator_ctrlrange[5]
    np.testing.assert_allclose(np.degrees(port.arm.joints[[0, 4]]), (20, -30), atol=2)
    assert port.arm.joints[5] == pytest.approx(low + 0.6 * (high - low), abs=0.05)
    # The driver does not clamp degrees; the servo does.
    robot.send_action({"shoulder_pan.pos": 400.0})
    until(lambda: port.bus.servos[0].get(Register.GOAL_POSITION) > 4095)
    assert port.bus.servos[0].goal == pytest.approx(port.arm.scene.model.actuator_ctrlrange[0, 1], abs=0.01)
    robot.disconnect()
    assert not any(servo.torque for servo in port.bus.servos)


def test_lerobot_calibrates_the_arm(arm: ServoArm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = arm.scene.model.actuator_ctrlrange[:6].T
    where = iter((*(low + share * (high - low) for share in (0.0, 1.0)), None))

    def by_hand(*_: Any) -> str:
        arm.hand = (low + high) / 2
        step_on(arm)
        return ""

    def moved_on() -> bool:
        arm.hand = next(where)
        step_on(arm)
        return arm.hand is None

    monkeypatch.setattr("builtins.input", by_hand)
    monkeypatch.setattr("lerobot.motors.motors_bus.enter_pressed", moved_on)
    with ServoPort(arm, tmp_path / "port") as port:
        robot = follower(port, tmp_path)
        robot.connect()
        assert robot.is_calibrated
        robot.disconnect()
    found, exact = json.loads((tmp_path / "so101.json").read_text()), arm.calibrate()
    for joint in set(JOINTS) - {"wrist_roll"}:
        for field in ("homing_offset", "range_min", "range_max"):
            assert found[joint][field] == pytest.approx(exact[joint][field], abs=12)


def test_a_mute_servo(port: ServoPort, robot: Any) -> None:
    port.bus.faults.mute = {3}
    with pytest.raises(ConnectionError, match="no status packet"):
        robot.get_observation()
    port.bus.faults.mute = set()
    robot.get_observation()


@pytest.mark.parametrize("fault", ["corrupt", "drop"])
def test_a_damaged_answer(port: ServoPort, robot: Any, fault: str) -> None:
    setattr(port.bus.faults, fault, 1.0)
    with pytest.raises(ConnectionError):
        robot.get_observation()


def test_a_slow_answer(port: ServoPort, robot: Any) -> None:
    port.bus.faults.delay = 0.2
    with pytest.raises(ConnectionError):
        robot.bus.sync_read("Present_Position")


def test_an_overloaded_servo(port: ServoPort, robot: Any) -> None:
    port.bus.servos[1].overload()
    robot.get_observation()  # sync_read does not look at the flags
    with pytest.raises(RuntimeError, match="Overload"):
        robot.bus.read("Present_Load", "shoulder_lift")


def test_unplugged_and_plugged_in_again(port: ServoPort, robot: Any, tmp_path: Path) -> None:
    port.unplug()
    assert not (tmp_path / "port").exists()
    with pytest.raises(termios.error):
        robot.get_observation()
    port.plug()
    assert not any(servo.torque for servo in port.bus.servos)
    again = connected(follower(port, tmp_path))
    assert again.is_calibrated
    again.disconnect()


def test_the_port_is_never_put_over_a_file(arm: ServoArm, tmp_path: Path) -> None:
    (tmp_path / "port").write_text("mine")
    with pytest.raises(InputError, match="no link"):
        ServoPort(arm, tmp_path / "port")
    assert not any(thread.name == "servo bus" for thread in threading.enumerate())


def test_the_log_has_each_write_of_goal_positions(arm: ServoArm) -> None:
    bus, file = Bus(arm.servos), io.StringIO()
    bus.log = file

    def told(instruction: Instruction, id: int, *data: int) -> None:
        bus.answer(encode(Packet(id, instruction, bytes(data))))

    goal = int(Register.GOAL_POSITION)
    told(Instruction.WRITE, 2, goal, 0, 4)
    told(Instruction.WRITE, 2, goal + 4, 1, 0)
    told(Instruction.SYNC_WRITE, BROADCAST, goal, 2, 1, 5, 0, 3, 7, 0)
    told(Instruction.READ, 1, goal, 2)
    told(Instruction.REG_WRITE, 4, goal - 1, 9, 1, 1)
    told(Instruction.ACTION, BROADCAST)
    bus.faults.mute = {2}
    told(Instruction.WRITE, 2, goal, 1, 4)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["goals"] for line in lines] == [{"2": 1024}, {"1": 5, "3": 7}, {"4": 257}]
    assert sorted(line["t"] for line in lines) == [line["t"] for line in lines]
