"""Any LeRobot robot behind the control loop's `Robot`."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.control.limits import Limits, gripper_box
from vla.control.robot import RobotFault
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Observation

LOG = logging.getLogger(__name__)
CONNECTS = 3
"""How often it is tried: LeRobot writes each servo's settings once, and one lost answer ends that."""
PATIENCE = 0.002
"""[s] for which a read of a serial port sleeps at most, before the driver looks whether its own time is over."""
RESOLUTION = 4095
"""By which LeRobot divides a turn of an STS3215, whose positions are 0 to 4095."""
CAMERA_AGE = 0.5
"""An image older than this [s] is a fault of the camera."""


class LeRobotRobot:
    """The robot that LeRobot builds from `type` and `options` (the fields of its config, cameras included).

    `keys` are LeRobot's, in the order of the actions; their values are `offset + scale * ours`. The state is that of
    the same keys. A robot with a serial bus is read and written there in one transfer each, without retries, which
    are the control loop's to make within its deadline; any other, such as one of two arms, by `get_observation` and
    `send_action`. One thread owns it. `relax_on_exit` turns torque off on leaving; otherwise it stays as `hold` or
    `relax` left it.

    Connecting raises InputError for a robot that is not calibrated and for keys or cameras that it does not have,
    and RobotFault where it does not answer. Torque comes on in LeRobot's own `connect`.
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
        self._type, self._options, self._relax_on_exit = type, dict(options or {}), relax_on_exit
        self._low, self._high = np.array(embodiment.action_low), np.array(embodiment.action_high)
        self._seen: Float[np.ndarray, "a"] = np.full(len(self._low), np.nan)
        self._robot: Any = None
        self._bus: Any = None

    def __enter__(self) -> LeRobotRobot:
        robot = build(self._type, self._options)
        lacking = [f"action {key}" for key in self.keys if key not in robot.action_features]
        lacking += [f"camera {camera}" for camera in self.embodiment.cameras if camera not in robot.cameras]
        if lacking:
            raise InputError(f"LeRobot's {self._type} has no {', '.join(lacking)}: name them in robot.options")
        connect(robot, self._type)
        self._robot, self._bus = robot, getattr(robot, "bus", None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._robot is None:
            return
        if self._relax_on_exit:
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
        self._seen = (told - self._offset) / self._scale
        return self._seen, measured

    def observe(self, instruction: str) -> Observation:
        state, oldest = self.state()
        images = {}
        for name in self.embodiment.cameras:
            images[name], captured = self._look(name)
            oldest = min(oldest, captured)
        return Observation(images, state, instruction, oldest)

    def command(self, action: Float[np.ndarray, "a"]) -> None:
        if action.shape != self._low.shape or not np.all(np.isfinite(action)):
            raise RobotFault(f"a command must be {len(self._low)} finite numbers: {action}", transient=False)
        # LeRobot does not clamp degrees: 400 of them would be written as they are. A joint that stands beyond its
        # limit is not thrown back to it: it is the guard that brings it there.
        within = np.clip(action, np.fmin(self._low, self._seen), np.fmax(self._high, self._seen))
        goal = within * self._scale + self._offset
        self._do("write", lambda: self._write(dict(zip(self.keys, goal.tolist(), strict=True))))

    def hold(self, last: Float[np.ndarray, "a"]) -> None:
        self.command(last)

    def relax(self) -> None:
        """Torque off at each motor by itself: one that does not answer, or reports overload, keeps none on."""
        for bus in [] if self._robot is None else buses(self._robot):
            for motor in bus.motors:
                try:
                    clear(bus)
                    bus.write("Torque_Enable", motor, 0, num_retry=2)
                except Exception as error:  # an overloaded servo obeys, and the driver raises all the same
                    LOG.warning("torque of %s: %s", motor, error)

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
        image = self._do(f"camera {name}", lambda: camera.read_latest(max_age_ms=int(CAMERA_AGE * 1e3)))
        # LeRobot stamps images by perf_counter, whose zero need not be that of monotonic.
        stamp = getattr(camera, "latest_timestamp", None)
        age = 0.0 if stamp is None else max(0.0, time.perf_counter() - stamp)
        return image, time.monotonic() - age

    def _do(self, what: str, call: Any) -> Any:
        if self._robot is None:
            raise RobotFault(f"{what}: the robot is not connected", transient=False)
        try:
            return call()
        except Exception as error:
            for bus in buses(self._robot):
                clear(bus)
            # An unplugged port raises what pyserial and the operating system make of it.
            transient = isinstance(error, ConnectionError | TimeoutError)
            raise RobotFault(f"{what}: {error}", transient=transient) from error


def build(type: str, options: Mapping[str, Any]) -> Any:
    """LeRobot's robot of this type. Raises InputError for an unknown type and for options that its config refuses."""
    from lerobot.robots import RobotConfig, make_robot_from_config
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    _import(f"lerobot.robots.{type}", "lerobot.robots.so_follower")
    return make_robot_from_config(_config(RobotConfig, type, options))


def _config(kind: Any, type: str, options: Mapping[str, Any]) -> Any:
    import draccus

    for camera in dict(options.get("cameras") or {}).values():
        _import(f"lerobot.cameras.{camera.get('type')}")
    try:
        known = kind.get_choice_class(type)
        values = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
        return draccus.decode(known, values)
    except KeyError as error:
        raise InputError(f"LeRobot has no {type!r}; it knows {', '.join(sorted(kind.get_known_choices()))}") from error
    except Exception as error:
        raise InputError(f"LeRobot's {type} does not take these options: {error}") from error


def _import(*modules: str) -> None:
    """What registers a config by its import; there need not be all of them."""
    from importlib import import_module

    for module in modules:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("lerobot"):
                raise InputError(f"{module} needs the package {error.name}: install it") from error


def connect(device: Any, type: str) -> None:
    """Connects a robot or teleoperator of LeRobot; see LeRobotRobot."""
    if getattr(device, "bus", None) is not None and not device.calibration:
        raise InputError(f"{device.calibration_fpath} is missing: calibrate the arm first (docs/arm.md)")
    for left in reversed(range(CONNECTS)):
        try:
            device.connect(calibrate=False)
            if not device.is_calibrated:
                raise InputError(f"the servos differ from {device.calibration_fpath}: calibrate anew (docs/arm.md)")
            for bus in buses(device):
                # LeRobot spins for each answer, by which the loop's thread, first of all, kept from running what was to
                # bring it (the kernel's worker for terminals, an emulated arm): reads took 40 ms.
                if (port := getattr(bus, "port_handler", None)) is not None:
                    port.ser.timeout = PATIENCE
            return
        except InputError:
            leave(device)
            raise
        except Exception as error:
            leave(device)
            if not left:
                raise RobotFault(f"{type} does not connect: {error}", transient=False) from error


def buses(device: Any) -> list[Any]:
    """The device's own bus, or those of the arms that it is made of."""
    found = (getattr(part, "bus", None) for part in (device, *vars(device).values()))
    return [bus for bus in found if bus is not None]


def clear(bus: Any) -> None:
    """Drops late answers, which the next transfer would take for its own, and a port left marked as in use."""
    handler = getattr(bus, "port_handler", None)
    if handler is not None and handler.ser is not None:
        handler.is_using = False
        try:
            handler.ser.reset_input_buffer()
        except Exception as error:
            LOG.warning("the port is gone: %s", error)


def leave(device: Any) -> None:
    """Closes ports and cameras whatever state they are in; torque stays as it is, where the device has a bus."""
    closing = [partial(bus.disconnect, disable_torque=False) for bus in buses(device)]
    if closing:
        closing += [camera.disconnect for camera in getattr(device, "cameras", {}).values()]
    else:
        closing = [device.disconnect]
    for close in closing:
        try:
            close()
        except Exception as error:
            LOG.debug("closing %s: %s", device, error)


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
