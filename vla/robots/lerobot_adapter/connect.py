"""Connects and disconnects LeRobot's robots and teleoperators without any motion."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from vla.errors import InputError
from vla.robots.lerobot_adapter.servos import LOAD, PRESENT, Servo, check_within_range, flags_of
from vla.robots.robot import RobotFault
from vla.robots.servo_health import CURES

LOG = logging.getLogger(__name__)
CONNECTS = 3
"""Number of attempts: LeRobot writes each servo's settings without retries, and one lost answer fails the attempt."""
READ_TIMEOUT = 0.002
"""Timeout of one read of a serial port [s], after which the driver checks its own timeout."""
READER = "_read_loop"
"""Suffix of the names of LeRobot's threads that read cameras."""
CALIBRATE = "calibrate again (docs/arm.md)"


def connect(device: Any, type: str, *, torque: bool = True) -> None:
    """Connects a robot or teleoperator of LeRobot with its cameras.

    The servos of a robot hold their current position when their torque is enabled.

    Args:
        device: LeRobot's robot or teleoperator.
        type: Its type, for messages.
        torque: Whether to enable torque. Else nothing is written: torque, goals and settings stay unchanged.

    Raises:
        InputError: for a device that is not calibrated, a joint outside its calibrated range, a port that cannot be
            opened, and a device that cannot be connected without `torque`.
        RobotFault: if a servo reports an error or does not answer.
    """
    from lerobot.motors.motors_bus import SerialMotorsBus

    _quieten()
    arms = [arm for _, arm in arms_of(device)]
    for arm in arms:
        if not arm.calibration:
            raise InputError(f"{arm.calibration_fpath} is missing: calibrate the arm first (docs/arm.md)")
    serial = [arm for arm in arms if isinstance(arm.bus, SerialMotorsBus)]
    if not torque and not (serial and serial == arms):
        raise InputError(f"LeRobot's {type} cannot be connected without torque: dry_run needs servos on a serial bus")
    for attempts_left in reversed(range(CONNECTS)):
        try:
            if torque:
                _connect(device, serial)
            else:
                _connect_passive(serial)
            for arm in serial:
                # LeRobot busy-waits for each answer. With the loop's priority this starved the threads that deliver
                # the answer (the kernel's terminal worker, an emulated arm): reads took 40 ms.
                arm.bus.port_handler.ser.timeout = READ_TIMEOUT
            return
        except InputError:
            disconnect(device)
            raise
        except Exception as error:
            disconnect(device)
            silent = _diagnose(device)
            if not attempts_left:
                raise RobotFault(f"{type} does not connect: {silent or error}", transient=False) from error


def _quieten() -> None:
    """Silences LeRobot's line for each lost image: the loop reports cameras without images."""
    logging.getLogger("lerobot.cameras").setLevel(logging.ERROR)
    if not isinstance(threading.excepthook, ReaderEnds):
        threading.excepthook = ReaderEnds(threading.excepthook)


@dataclass(frozen=True)
class ReaderEnds:
    """Logs one line when a camera thread of LeRobot fails; `others` handles failures of all other threads."""

    others: Callable[[threading.ExceptHookArgs], Any]

    def __call__(self, args: threading.ExceptHookArgs) -> None:
        """Handles the failure of a thread (`threading.excepthook`)."""
        if args.thread is None or not args.thread.name.endswith(READER):
            self.others(args)
            return
        errors = (args.exc_value, getattr(args.exc_value, "__cause__", None))
        LOG.error(" ".join(": ".join(str(error) for error in errors if error).split()))


def _connect(device: Any, serial: list[Any]) -> None:
    """Checks all arms, then calls the device's own `connect`, which writes settings and enables torque."""
    from lerobot.motors.feetech import FeetechMotorsBus
    from lerobot.robots import Robot

    from vla.robots.lerobot_adapter.holding_bus import HoldingBus

    for arm in serial:
        is_follower = isinstance(arm, Robot) and isinstance(arm.bus, FeetechMotorsBus)
        if is_follower and type(arm.bus) is FeetechMotorsBus:
            arm.bus = HoldingBus.like(arm.bus)
        arm.bus.connect()
        _require_calibrated(arm)
        if is_follower:
            check_within_range(arm.bus)
        arm.bus.disconnect(disable_torque=False)
    device.connect(calibrate=False)
    if not serial and not device.is_calibrated:
        raise InputError(f"the motors differ from {device.calibration_fpath}: {CALIBRATE}")


def _connect_passive(serial: list[Any]) -> None:
    """Connects buses and cameras without writing to a servo."""
    for arm in serial:
        arm.bus.connect()
        _require_calibrated(arm)
        for camera in getattr(arm, "cameras", {}).values():
            camera.connect()


def _require_calibrated(arm: Any) -> None:
    if not arm.is_calibrated:
        raise InputError(f"the servos differ from {arm.calibration_fpath}: {CALIBRATE}")


def _diagnose(device: Any) -> str:
    """Names the servos that do not answer. Raises for a closed port, and for a servo error, which LeRobot hides."""
    from lerobot.motors.motors_bus import SerialMotorsBus

    silent, flagged = [], []
    for bus in buses(device):
        if not isinstance(bus, SerialMotorsBus):
            continue
        open_port(bus)
        try:
            answers = {servo: servo.query(LOAD, PRESENT.size) for servo in feetech_servos(device) if servo.bus is bus}
        finally:
            bus.disconnect(disable_torque=False)
        for servo, answer in answers.items():
            if answer is None:
                silent.append(f"{servo} does not answer")
            elif flags := flags_of(answer[0]):
                cures = "; ".join(dict.fromkeys(CURES[flag] for flag in flags))
                flagged.append(f"{servo} reports {', '.join(flags)}: {cures}")
        if answers and all(answer is None for answer in answers.values()):
            return f"no servo answers on {bus.port}: check the power supply and the cables"
    if flagged:
        raise RobotFault("; ".join(flagged), transient=False)
    return f"{', '.join(silent)}: check its cables" if silent else ""


def open_port(bus: Any) -> None:
    """Opens a serial bus without communicating with its servos.

    Raises:
        InputError: for a port that cannot be opened.
    """
    try:
        bus.connect(handshake=False)
    except Exception as error:
        raise InputError(
            f"the port {bus.port} cannot be opened ({error.__cause__ or error}): `vla doctor` lists the serial ports"
        ) from error


def arms_of(device: Any) -> list[tuple[str, Any]]:
    """Name and object of each arm with a bus: the device itself, with an empty name, or the arms it consists of."""
    candidates = [("", device), *((name.removesuffix("_arm"), value) for name, value in vars(device).items())]
    return [(name, arm) for name, arm in candidates if getattr(arm, "bus", None) is not None]


def buses(device: Any) -> list[Any]:
    """The bus of the device, or the buses of its arms."""
    return [arm.bus for _, arm in arms_of(device)]


def feetech_servos(device: Any) -> list[Servo]:
    """The Feetech servos of the device."""
    from lerobot.motors.feetech import FeetechMotorsBus

    arms = [(name, arm.bus) for name, arm in arms_of(device) if isinstance(arm.bus, FeetechMotorsBus)]
    return [Servo(bus, motor, name) for name, bus in arms for motor in bus.motors]


def clear(bus: Any) -> None:
    """Drops late answers, which would corrupt the next transfer, and resets a port that is marked as in use."""
    handler = getattr(bus, "port_handler", None)
    if handler is not None and handler.ser is not None:
        handler.is_using = False
        try:
            handler.ser.reset_input_buffer()
        except Exception as error:
            LOG.warning("the port is gone: %s", error)


def disconnect(device: Any) -> None:
    """Closes ports and cameras in any state. Torque stays unchanged if the device has a bus."""
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
