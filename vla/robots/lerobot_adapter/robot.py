"""Adapts any LeRobot robot to the `Robot` interface of the control loop."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.robots.lerobot_adapter.build import build
from vla.robots.lerobot_adapter.connect import buses, clear, connect, disconnect, feetech_servos, open_port
from vla.robots.lerobot_adapter.servos import HealthReader, Servo, limit_grip
from vla.robots.limits import Limits, gripper_box
from vla.robots.robot import RobotFault
from vla.robots.servo_health import ServoHealth
from vla.types import Observation

LOG = logging.getLogger(__name__)
RESOLUTION = 4095
"""Divisor of LeRobot for one turn of an STS3215, whose positions are 0 to 4095."""
CAMERA_AGE = 0.5
"""Age of an image [s] above which the camera is faulty."""
READINGS, TOLERANCE = 10, 0.02
"""Of the position at connection: largest number of readings, and the fraction of the range by which two may differ."""
UNUSED = {
    "max_relative_target": "robot.limits bound the change of each command",
    "disable_torque_on_disconnect": "robot.relax_on_exit sets whether torque is disabled",
    "num_read_retries": "the control loop retries within its deadlines",
}
"""Fields of LeRobot's arm configs that have no effect, and the replacement of each."""


class LeRobotRobot:
    """A robot built by LeRobot, owned by one thread.

    A robot with a serial bus is read and written by one transfer each. There are no retries: the control loop makes
    them within its deadline. Any other robot, such as one of two arms, uses `get_observation` and `send_action`.

    Connecting enables torque, except by `connect_read_only`. It raises InputError for a robot that is not calibrated or
    is outside its calibrated range, and for unknown keys or cameras. It raises RobotFault if the robot does not answer
    or a servo reports an error.

    Args:
        type: LeRobot's type of the robot.
        options: Fields of LeRobot's config, cameras included.
        keys: LeRobot's keys of the actions and of the state, in order.
        scale: LeRobot's value of each key is `offset + scale * value`.
        offset: See `scale`.
        relax_on_exit: Whether torque is disabled on exit; else it stays unchanged.

    Raises:
        InputError: for lengths that do not match, and for `options` without effect.
    """

    def __init__(
        self,
        *,
        type: str,
        options: Mapping[str, Any] | None,
        embodiment: Embodiment,
        limits: Limits,
        keys: Sequence[str],
        scale: Sequence[float],
        offset: Sequence[float],
        relax_on_exit: bool = False,
    ) -> None:
        limits.check(embodiment)
        self.embodiment, self.limits, self.keys = embodiment, limits, tuple(keys)
        self._scale, self._offset = np.array(scale, dtype=float), np.array(offset, dtype=float)
        if not len(keys) == len(scale) == len(offset) == len(embodiment.action) == len(embodiment.state):
            raise InputError(f"keys, scale and offset must have a value for each of {embodiment.action}")
        if not np.all(np.isfinite(self._offset)) or not np.all(np.isfinite(self._scale) & (self._scale != 0)):
            raise InputError("scale and offset must be finite, and scale not 0")
        _refuse_unused(options or {})
        _refuse_velocities(keys, embodiment)
        self._type, self._options, self._relax_on_exit = type, dict(options or {}), relax_on_exit
        self._low, self._high = np.array(embodiment.action_low), np.array(embodiment.action_high)
        self._robot: Any = None
        self._bus: Any = None
        self._torque = False

    def __enter__(self) -> LeRobotRobot:
        self._connect(torque=True)
        return self

    def connect_read_only(self) -> None:
        """Connects without writing: torque, goals and settings stay unchanged, also on exit. Commands are faults."""
        self._connect(torque=False)

    @contextmanager
    def servos(self) -> Iterator[list[Servo]]:
        """Its Feetech servos in any state, with open ports inside the block and without any prior communication.

        Raises:
            InputError: if it has none, and for a port that cannot be opened.
        """
        device = build(self._type, self._options)
        if not (servos := feetech_servos(device)):
            raise InputError(f"LeRobot's {self._type} has no Feetech servos")
        try:
            for bus in {id(servo.bus): servo.bus for servo in servos}.values():
                open_port(bus)
            yield servos
        finally:
            disconnect(device)

    def _connect(self, torque: bool) -> None:
        from lerobot.motors.motors_bus import SerialMotorsBus

        robot = build(self._type, self._options)
        lacking = [f"action {key}" for key in self.keys if key not in robot.action_features]
        lacking += [f"camera {camera}" for camera in self.embodiment.cameras if camera not in robot.cameras]
        if lacking:
            raise InputError(f"LeRobot's {self._type} has no {', '.join(lacking)}: name them in robot.options")
        _warn_of_numbers(self._options)
        connect(robot, self._type, torque=torque)
        self._robot, self._torque = robot, torque
        bus, motors = getattr(robot, "bus", None), {key.removesuffix(".pos") for key in self.keys}
        self._bus = bus if isinstance(bus, SerialMotorsBus) and motors <= set(bus.motors) else None
        try:
            servos = feetech_servos(robot)
            self._health = HealthReader(servos)
            if torque:
                for servo in (servo for servo in servos if servo.motor == "gripper"):
                    limit_grip(servo)
                self._command_low, self._command_high = self._command_range()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _command_range(self) -> tuple[Float[np.ndarray, "a"], Float[np.ndarray, "a"]]:
        """The range of commands: the limits, extended to the current position, which two readings must confirm.

        A joint outside its limit must not jump back: the safety filter moves it back slowly.
        """
        before = np.full(len(self._low), np.nan)
        for _ in range(READINGS):
            try:
                position = self.embodiment.hold_action(self.state()[0])
            except RobotFault as fault:
                if not fault.transient:
                    raise
                continue
            if np.all(np.abs(position - before) <= TOLERANCE * (self._high - self._low)):
                return np.minimum(self._low, position), np.maximum(self._high, position)
            before = position
        raise RobotFault("no two readings of the robot's position agree: hold the arm still", transient=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._robot is None:
            return
        if self._relax_on_exit and self._torque:
            self.disable_torque()
        disconnect(self._robot)
        self._robot = self._bus = None

    def state(self) -> tuple[Float[np.ndarray, "s"], float]:
        """See `Robot`."""
        started = time.monotonic()
        values = self._do("read", self._read)
        # The servos answer in turn: the middle of the transfer is the best estimate.
        measured = (started + time.monotonic()) / 2
        try:
            state = np.array([values[key] for key in self.keys], dtype=float)
        except KeyError as error:
            raise RobotFault(f"the robot did not report {error}", transient=True) from error
        return (state - self._offset) / self._scale, measured

    def observe(self, instruction: str) -> Observation:
        """See `Robot`."""
        state, measured = self.state()
        images, captured = {}, {}
        for name in self.embodiment.cameras:
            images[name], captured[name] = self._image(name)
        return Observation(images, state, instruction, min([measured, *captured.values()]), captured=captured)

    @property
    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Height and width of the images [pixels], of the cameras whose configuration has them."""
        cameras = self._options.get("cameras") or {}
        return {name: size for name, config in cameras.items() if (size := _image_size(config)) is not None}

    def command(self, action: Float[np.ndarray, "a"]) -> None:
        """See `Robot`."""
        if action.shape != self._low.shape or not np.all(np.isfinite(action)):
            raise RobotFault(f"a command must be {len(self._low)} finite numbers: {action}", transient=False)
        if not self._torque:
            raise RobotFault("a command: the robot is connected read-only", transient=False)
        # LeRobot does not clamp degrees: 400 degrees would be written unchanged.
        goal = np.clip(action, self._command_low, self._command_high) * self._scale + self._offset
        self._do("write", lambda: self._write(dict(zip(self.keys, goal.tolist(), strict=True))))

    def hold(self, last: Float[np.ndarray, "a"]) -> None:
        """See `Robot`."""
        self.command(last)

    def disable_torque(self) -> None:
        """Disables the torque of each motor separately, so that one that fails does not affect the others."""
        if self._robot is None:
            return
        if not (torque_buses := buses(self._robot)):
            LOG.warning("%s: its torque cannot be disabled without a bus", self._type)
        for bus in torque_buses:
            for motor in bus.motors:
                try:
                    clear(bus)
                    bus.write("Torque_Enable", motor, 0, num_retry=2)
                except Exception as error:  # an overloaded servo complies, and the driver raises nevertheless
                    LOG.warning("torque of %s: %s", motor, error)

    def health(self, seconds: float) -> ServoHealth | None:
        """See `HealthReporting`; also None for a robot without Feetech servos."""
        return self._health.next(seconds)

    def _read(self) -> dict[str, float]:
        if self._bus is None:
            return dict(self._robot.get_observation())
        return {f"{motor}.pos": value for motor, value in self._bus.sync_read("Present_Position").items()}

    def _write(self, goal: dict[str, float]) -> None:
        if self._bus is None:
            self._robot.send_action(goal)
        else:
            self._bus.sync_write("Goal_Position", {key.removesuffix(".pos"): value for key, value in goal.items()})

    def _image(self, name: str) -> tuple[Any, float]:
        camera = self._robot.cameras[name]
        image = self._do(f"camera {name}", lambda: camera.read_latest(max_age_ms=int(CAMERA_AGE * 1e3)), camera=name)
        # LeRobot's timestamps are from perf_counter, which may differ from monotonic by an offset.
        stamp = getattr(camera, "latest_timestamp", None)
        age = 0.0 if stamp is None else max(0.0, time.perf_counter() - stamp)
        return image, time.monotonic() - age

    def _do(self, operation: str, call: Any, camera: str | None = None) -> Any:
        if self._robot is None:
            raise RobotFault(f"{operation}: the robot is not connected", transient=False)
        try:
            return call()
        except Exception as error:
            for bus in buses(self._robot):
                clear(bus)
            # An unplugged port raises various other exceptions of pyserial and the operating system.
            transient = isinstance(error, ConnectionError | TimeoutError)
            raise RobotFault(f"{operation}: {error}", transient=transient, camera=camera) from error


def _refuse_unused(options: Mapping[str, Any]) -> None:
    """Raises InputError for a field of UNUSED.

    LeRobot's own code reads and writes the arms of a pair: for them only the setting for disconnection has no effect.
    """
    for name, arm in (("", options), *((f"{key}.", value) for key, value in options.items())):
        if not isinstance(arm, Mapping) or "port" not in arm:
            continue
        for field, instead in UNUSED.items():
            if field in arm and (not name or field == "disable_torque_on_disconnect"):
                raise InputError(f"robot.options.{name}{field} is not used here, leave it out: {instead}")


def _refuse_velocities(keys: Sequence[str], body: Embodiment) -> None:
    """Raises InputError for a position action whose LeRobot key is a velocity: holding it would not stop the robot."""
    for key, name, is_position in zip(keys, body.action, body.is_position_action, strict=True):
        if is_position and key.endswith(".vel"):
            raise InputError(
                f"{name} is a position in robot.embodiment.action_mode, but LeRobot's {key} is a velocity: set "
                "velocity there, such as action_mode=[absolute, velocity]"
            )


def _warn_of_numbers(options: Mapping[str, Any]) -> None:
    """Warns of cameras that are identified by a number, which may refer to another camera after a restart."""
    for name, config in (options.get("cameras") or {}).items():
        path = config.get("index_or_path")
        if sys.platform == "linux" and path is not None and re.fullmatch(r"(/dev/video)?\d+", str(path)):
            LOG.warning("camera %s is %s today: name it by /dev/v4l/by-id (vla doctor lists them)", name, path)


def _image_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images of a LeRobot camera, after its `rotation`."""
    height, width = config.get("height"), config.get("width")
    if not height or not width:
        return None
    return (width, height) if config.get("rotation") in (90, -90, 270) else (height, width)


def so101_units() -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
    """Keys, scale and offset of LeRobotRobot for SO-101 followers and leaders.

    LeRobot's values are degrees from the middle of each calibrated range; for the gripper percent of its range.
    """
    from vla.envs.arm import JOINTS, LINKS

    (low, high), joints = next(link.range for link in LINKS if link.joint == JOINTS[-1]), len(JOINTS)
    scale = (*[float(np.degrees(1.0))] * (joints - 1), 100 / float(high - low))
    return tuple(f"{joint}.pos" for joint in JOINTS), scale, (*[0.0] * (joints - 1), -scale[-1] * float(low))


def calibrated_ranges(id: str, folder: str | None) -> dict[str, tuple[float, float]]:
    """The range of each joint except the gripper [rad], from LeRobot's calibration file, with zero in the middle.

    Empty if the file does not exist; the arm cannot be connected then.

    Raises:
        InputError: for an invalid file.
    """
    from vla.envs.arm import JOINTS

    if folder is None:
        from lerobot.utils.constants import HF_LEROBOT_CALIBRATION

        folder = str(HF_LEROBOT_CALIBRATION / "robots" / "so_follower")
    file = Path(folder) / f"{id}.json"
    if not file.is_file():
        return {}
    try:
        calibration = json.loads(file.read_text())
        ends = {joint: (calibration[joint]["range_min"], calibration[joint]["range_max"]) for joint in JOINTS[:-1]}
        half = {joint: (high - low) / 2 * 2 * np.pi / RESOLUTION for joint, (low, high) in ends.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no calibration of a SO-101 ({error}): calibrate again (docs/arm.md)") from error
    return {joint: (-angle, angle) for joint, angle in half.items()}


def so101(
    *,
    port: str,
    id: str,
    calibration_dir: str | None,
    cameras: Mapping[str, Mapping[str, Any]] | None,
    control_hz: float,
    velocity: float,
    acceleration: float,
    relax_on_exit: bool,
    workspace: Mapping[str, Sequence[float]] | None = None,
    units: str = "radians",
) -> LeRobotRobot:
    """A SO-101 in the units of the simulated one, or in LeRobot's.

    With `units` "radians", joints are in [rad] with zero in the middle of each calibrated range, and the gripper is the
    angle of the simulated one. With "lerobot", names and values are those of LeRobot's recordings: degrees, and percent
    for the gripper. Joint ranges come from the calibration file; `workspace` is as in `gripper_box`.

    Raises:
        InputError: for invalid limits and for other units.
    """
    from vla.envs.arm import JOINTS, LINKS

    if units not in ("radians", "lerobot"):
        raise InputError(f"robot.units={units}: choose radians or lerobot")
    ranges = {link.joint: link.range for link in LINKS if link.joint} | calibrated_ranges(id, calibration_dir)
    joints, cameras = len(JOINTS), cameras or {}
    keys, scale, offset = so101_units()
    per_radian, zero, box = np.array(scale), np.array(offset), gripper_box(workspace)
    if units == "radians":
        names, per_radian, zero = tuple(f"{joint} [rad]" for joint in JOINTS), np.ones(joints), np.zeros(joints)
    else:
        names, scale, offset = keys, (1.0,) * joints, (0.0,) * joints
    low, high = (tuple(np.array([ranges[j][end] for j in JOINTS]) * per_radian + zero) for end in (0, 1))

    def inside(position: Float[np.ndarray, "a"]) -> bool:
        return box is None or box((position - zero) / per_radian)

    return LeRobotRobot(
        type="so101_follower",
        options={"port": port, "id": id, "calibration_dir": calibration_dir, "cameras": cameras, "use_degrees": True},
        embodiment=Embodiment(
            name="so101",
            cameras=tuple(cameras),
            state=names,
            action=names,
            action_low=tuple(map(float, low)),
            action_high=tuple(map(float, high)),
            control_hz=float(control_hz),
            action_mode=("absolute",) * joints,
            grippers=names[-1:],
        ),
        limits=Limits(
            tuple((velocity * per_radian).tolist()),
            tuple((acceleration * per_radian).tolist()),
            None if box is None else inside,
        ),
        keys=keys,
        scale=scale,
        offset=offset,
        relax_on_exit=relax_on_exit,
    )
