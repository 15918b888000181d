"""Any LeRobot robot behind the control loop's `Robot`."""

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
from vla.robots.lerobot_adapter.connect import buses, clear, connect, feetech_servos, leave, open_port
from vla.robots.lerobot_adapter.servos import HealthReader, Servo, limit_grip
from vla.robots.limits import Limits, gripper_box
from vla.robots.robot import RobotFault
from vla.robots.servo_health import ServoHealth
from vla.types import Observation

LOG = logging.getLogger(__name__)
RESOLUTION = 4095
"""By which LeRobot divides a turn of an STS3215, whose positions are 0 to 4095."""
CAMERA_AGE = 0.5
"""An image older than this [s] is a fault of the camera."""
READINGS, ALIKE = 10, 0.02
"""Of where the arm stands when it connects: how many are taken at most, and how much of its range two may differ."""
UNUSED = {
    "max_relative_target": "robot.limits bound the change of each command",
    "disable_torque_on_disconnect": "robot.relax_on_exit says whether torque goes off",
    "num_read_retries": "the control loop tries again within its deadlines",
}
"""Fields of LeRobot's configs of arms with a port that would change nothing here, and what does."""


class LeRobotRobot:
    """The robot that LeRobot builds from `type` and `options` (the fields of its config, cameras included).

    `keys` are LeRobot's, in the order of the actions; their values are `offset + scale * ours`. The state is that of
    the same keys. A robot with a serial bus is read and written there in one transfer each, without retries, which
    are the control loop's to make within its deadline; any other, such as one of two arms, by `get_observation` and
    `send_action`. One thread owns it. `relax_on_exit` turns torque off on leaving; otherwise it stays as `hold` or
    `relax` left it.

    Connecting raises InputError for a robot that is not calibrated, that stands outside its calibrated range, and for
    keys or cameras that it does not have, and RobotFault where it does not answer or a servo reports an error. Torque
    comes on then, but for `connect_read_only`. Raises InputError for `options` that nothing would follow from.
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
        """Connects and writes nothing: torque, goals and settings stay as they are, also on leaving. Commands are
        faults then."""
        self._connect(torque=False)

    @contextmanager
    def servos(self) -> Iterator[list[Servo]]:
        """Its Feetech servos, whatever state they are in: the ports are open meanwhile, and nothing has been asked of
        the servos. Raises InputError where it has none, and for a port that cannot be opened."""
        device = build(self._type, self._options)
        if not (found := feetech_servos(device)):
            raise InputError(f"LeRobot's {self._type} has no Feetech servos")
        try:
            for bus in {id(servo.bus): servo.bus for servo in found}.values():
                open_port(bus)
            yield found
        finally:
            leave(device)

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
                self._least, self._most = self._reach()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _reach(self) -> tuple[Float[np.ndarray, "a"], Float[np.ndarray, "a"]]:
        """What commands may be: the limits, and where the arm stands now, by two readings that agree.

        A joint that stands beyond its limit is not thrown back to it: it is the guard that brings it there.
        """
        before = np.full(len(self._low), np.nan)
        for _ in range(READINGS):
            try:
                stands = self.embodiment.hold_action(self.state()[0])
            except RobotFault as fault:
                if not fault.transient:
                    raise
                continue
            if np.all(np.abs(stands - before) <= ALIKE * (self._high - self._low)):
                return np.minimum(self._low, stands), np.maximum(self._high, stands)
            before = stands
        raise RobotFault("where the robot stands cannot be read twice alike", transient=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._robot is None:
            return
        if self._relax_on_exit and self._torque:
            self.relax()
        leave(self._robot)
        self._robot = self._bus = None

    def state(self) -> tuple[Float[np.ndarray, "s"], float]:
        asked = time.monotonic()
        values = self._do("read", self._read)
        # The servos answer one after the other: the middle of the transfer is the best guess.
        measured = (asked + time.monotonic()) / 2
        try:
            told = np.array([values[key] for key in self.keys], dtype=float)
        except KeyError as error:
            raise RobotFault(f"the robot did not tell {error}", transient=True) from error
        return (told - self._offset) / self._scale, measured

    def observe(self, instruction: str) -> Observation:
        state, measured = self.state()
        images, captured = {}, {}
        for name in self.embodiment.cameras:
            images[name], captured[name] = self._look(name)
        return Observation(images, state, instruction, min([measured, *captured.values()]), captured=captured)

    @property
    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Height and width of the images of those cameras whose configuration says it [pixels]."""
        cameras = self._options.get("cameras") or {}
        return {name: size for name, config in cameras.items() if (size := _image_size(config)) is not None}

    def command(self, action: Float[np.ndarray, "a"]) -> None:
        if action.shape != self._low.shape or not np.all(np.isfinite(action)):
            raise RobotFault(f"a command must be {len(self._low)} finite numbers: {action}", transient=False)
        if not self._torque:
            raise RobotFault("a command: the robot is connected to be read only", transient=False)
        # LeRobot does not clamp degrees: 400 of them would be written as they are.
        goal = np.clip(action, self._least, self._most) * self._scale + self._offset
        self._do("write", lambda: self._write(dict(zip(self.keys, goal.tolist(), strict=True))))

    def hold(self, last: Float[np.ndarray, "a"]) -> None:
        self.command(last)

    def relax(self) -> None:
        """Torque off at each motor by itself: one that does not answer, or reports overload, keeps none on."""
        if self._robot is None:
            return
        if not (found := buses(self._robot)):
            LOG.warning("%s: its torque cannot be switched off from here", self._type)
        for bus in found:
            for motor in bus.motors:
                try:
                    clear(bus)
                    bus.write("Torque_Enable", motor, 0, num_retry=2)
                except Exception as error:  # an overloaded servo obeys, and the driver raises all the same
                    LOG.warning("torque of %s: %s", motor, error)

    def health(self, seconds: float) -> ServoHealth | None:
        """As `HealthReporting`; None too where it has no servos of Feetech's."""
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

    def _look(self, name: str) -> tuple[Any, float]:
        camera = self._robot.cameras[name]
        image = self._do(f"camera {name}", lambda: camera.read_latest(max_age_ms=int(CAMERA_AGE * 1e3)), camera=name)
        # LeRobot stamps images by perf_counter, whose zero need not be that of monotonic.
        stamp = getattr(camera, "latest_timestamp", None)
        age = 0.0 if stamp is None else max(0.0, time.perf_counter() - stamp)
        return image, time.monotonic() - age

    def _do(self, what: str, call: Any, camera: str | None = None) -> Any:
        if self._robot is None:
            raise RobotFault(f"{what}: the robot is not connected", transient=False)
        try:
            return call()
        except Exception as error:
            for bus in buses(self._robot):
                clear(bus)
            # An unplugged port raises what pyserial and the operating system make of it.
            transient = isinstance(error, ConnectionError | TimeoutError)
            raise RobotFault(f"{what}: {error}", transient=transient, camera=camera) from error


def _refuse_unused(options: Mapping[str, Any]) -> None:
    """Raises InputError for a field of UNUSED. Those of the arms of a pair, which LeRobot's own code reads and writes,
    are used, but for what is done on leaving."""
    for name, arm in (("", options), *((f"{key}.", value) for key, value in options.items())):
        if not isinstance(arm, Mapping) or "port" not in arm:
            continue
        for field, instead in UNUSED.items():
            if field in arm and (not name or field == "disable_torque_on_disconnect"):
                raise InputError(f"robot.options.{name}{field} is not used here, leave it out: {instead}")


def _refuse_velocities(keys: Sequence[str], body: Embodiment) -> None:
    """Raises InputError for an action that is taken for a place, and is a speed by LeRobot's names of keys: it would be
    held for ever."""
    for key, name, place in zip(keys, body.action, body.is_position_action, strict=True):
        if place and key.endswith(".vel"):
            raise InputError(
                f"{name} is a position to robot.embodiment.action_mode, and {key} a speed to LeRobot: say velocity "
                "there, such as action_mode=[absolute, velocity]"
            )


def _warn_of_numbers(options: Mapping[str, Any]) -> None:
    """Logs the cameras that are named by a number, which another may have after the next start of the machine."""
    for name, config in (options.get("cameras") or {}).items():
        path = config.get("index_or_path")
        if sys.platform == "linux" and path is not None and re.fullmatch(r"(/dev/video)?\d+", str(path)):
            LOG.warning("camera %s is %s today: name it by /dev/v4l/by-id (vla doctor lists them)", name, path)


def _image_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width as LeRobot's camera of this configuration gives them, turned by its `rotation`."""
    height, width = config.get("height"), config.get("width")
    if not height or not width:
        return None
    return (width, height) if config.get("rotation") in (90, -90, 270) else (height, width)


def so101_units() -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
    """Keys, scale and offset of LeRobotRobot for SO-101 arms, leaders too.

    Degrees from the middle of each calibrated range; of the gripper, percent of its range.
    """
    from vla.envs.arm import JOINTS, LINKS

    (low, high), joints = next(link.range for link in LINKS if link.joint == JOINTS[-1]), len(JOINTS)
    scale = (*[float(np.degrees(1.0))] * (joints - 1), 100 / float(high - low))
    return tuple(f"{joint}.pos" for joint in JOINTS), scale, (*[0.0] * (joints - 1), -scale[-1] * float(low))


def calibrated_ranges(id: str, folder: str | None) -> dict[str, tuple[float, float]]:
    """The range of each joint but the gripper [rad] by LeRobot's calibration file, zero in its middle; none without
    the file, without which the arm does not connect. Raises InputError for a file that is none."""
    from vla.envs.arm import JOINTS

    if folder is None:
        from lerobot.utils.constants import HF_LEROBOT_CALIBRATION

        folder = str(HF_LEROBOT_CALIBRATION / "robots" / "so_follower")
    file = Path(folder) / f"{id}.json"
    if not file.is_file():
        return {}
    try:
        noted = json.loads(file.read_text())
        ends = {joint: (noted[joint]["range_min"], noted[joint]["range_max"]) for joint in JOINTS[:-1]}
        half = {joint: (high - low) / 2 * 2 * np.pi / RESOLUTION for joint, (low, high) in ends.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no calibration of a SO-101 ({error}): calibrate anew (docs/arm.md)") from error
    return {joint: (-reach, reach) for joint, reach in half.items()}


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
    """A SO-101 in the units of the simulated one: radians, zero in the middle of each calibrated range.

    The gripper, which LeRobot tells in percent of its calibrated range, is the simulated one's angle. The limits of
    the joints are those of the calibration file, `workspace` is `gripper_box`'s. With `units` "lerobot" names and
    numbers are LeRobot's, degrees and percent, as its own recordings have them. Raises InputError for limits that are
    none and for other units.
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
