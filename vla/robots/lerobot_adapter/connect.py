"""Connecting LeRobot's robots and teleoperators so that nothing moves, and leaving them as they are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from vla.errors import InputError
from vla.robots.lerobot_adapter.servos import LOAD, PRESENT, Servo, flags_of, within_range
from vla.robots.robot import RobotFault
from vla.robots.servo_health import CURES

LOG = logging.getLogger(__name__)
CONNECTS = 3
"""How often it is tried: LeRobot writes each servo's settings once, and one lost answer ends that."""
PATIENCE = 0.002
"""[s] for which a read of a serial port sleeps at most, before the driver looks whether its own time is over."""
READER = "_read_loop"
"""The end of the names of LeRobot's threads that read cameras."""
CALIBRATE = "calibrate anew (docs/arm.md)"


def connect(device: Any, type: str, *, torque: bool = True) -> None:
    """Connects a robot or teleoperator of LeRobot with its cameras.

    A robot's servos hold where they stand when their torque comes on. Without `torque` nothing is written: torque,
    goals and settings stay as they are. Raises InputError for a device that is not calibrated, a joint outside its
    calibrated range, a port that cannot be opened, and a device that cannot be connected without `torque`; RobotFault
    where a servo reports an error or does not answer.
    """
    from lerobot.motors.motors_bus import SerialMotorsBus

    _quieten()
    of_device = [part for _, part in parts(device)]
    for part in of_device:
        if not part.calibration:
            raise InputError(f"{part.calibration_fpath} is missing: calibrate the arm first (docs/arm.md)")
    serial = [part for part in of_device if isinstance(part.bus, SerialMotorsBus)]
    if not torque and not (serial and serial == of_device):
        raise InputError(f"LeRobot's {type} cannot be connected without torque: dry_run needs servos on a serial bus")
    for left in reversed(range(CONNECTS)):
        try:
            if torque:
                _connect(device, serial)
            else:
                _connect_passive(serial)
            for part in serial:
                # LeRobot spins for each answer, by which the loop's thread, first of all, kept from running what was to
                # bring it (the kernel's worker for terminals, an emulated arm): reads took 40 ms.
                part.bus.port_handler.ser.timeout = PATIENCE
            return
        except InputError:
            leave(device)
            raise
        except Exception as error:
            leave(device)
            silent = _diagnose(device)
            if not left:
                raise RobotFault(f"{type} does not connect: {silent or error}", transient=False) from error


def _quieten() -> None:
    """The loop reports cameras without images: LeRobot needs not print a line for each image that one loses."""
    logging.getLogger("lerobot.cameras").setLevel(logging.ERROR)
    if not isinstance(threading.excepthook, ReaderEnds):
        threading.excepthook = ReaderEnds(threading.excepthook)


@dataclass(frozen=True)
class ReaderEnds:
    """One line where a thread of LeRobot that reads a camera ends; `others` takes the end of all other threads."""

    others: Callable[[threading.ExceptHookArgs], Any]

    def __call__(self, what: threading.ExceptHookArgs) -> None:
        if what.thread is None or not what.thread.name.endswith(READER):
            self.others(what)
            return
        errors = (what.exc_value, getattr(what.exc_value, "__cause__", None))
        LOG.error(" ".join(": ".join(str(error) for error in errors if error).split()))


def _connect(device: Any, serial: list[Any]) -> None:
    """By the device's own `connect`, which writes settings and enables torque, once all arms were found to be fit."""
    from lerobot.motors.feetech import FeetechMotorsBus
    from lerobot.robots import Robot

    from vla.robots.lerobot_adapter.holding_bus import HoldingBus

    for part in serial:
        follows = isinstance(part, Robot) and isinstance(part.bus, FeetechMotorsBus)
        if follows and type(part.bus) is FeetechMotorsBus:
            part.bus = HoldingBus.like(part.bus)
        part.bus.connect()
        _require_calibrated(part)
        if follows:
            within_range(part.bus)
        part.bus.disconnect(disable_torque=False)
    device.connect(calibrate=False)
    if not serial and not device.is_calibrated:
        raise InputError(f"the motors differ from {device.calibration_fpath}: {CALIBRATE}")


def _connect_passive(serial: list[Any]) -> None:
    """Buses and cameras alone: nothing is written to a servo."""
    for part in serial:
        part.bus.connect()
        _require_calibrated(part)
        for camera in getattr(part, "cameras", {}).values():
            camera.connect()


def _require_calibrated(part: Any) -> None:
    if not part.is_calibrated:
        raise InputError(f"the servos differ from {part.calibration_fpath}: {CALIBRATE}")


def _diagnose(device: Any) -> str:
    """Which servos do not answer. Raises InputError for a port that cannot be opened, RobotFault for a servo that
    reports an error: LeRobot takes it for a missing one."""
    from lerobot.motors.motors_bus import SerialMotorsBus

    silent, flagged = [], []
    for bus in buses(device):
        if not isinstance(bus, SerialMotorsBus):
            continue
        open_port(bus)
        try:
            found = {servo: servo.ask(LOAD, PRESENT.size) for servo in feetech_servos(device) if servo.bus is bus}
        finally:
            bus.disconnect(disable_torque=False)
        for servo, answer in found.items():
            if answer is None:
                silent.append(f"{servo} does not answer")
            elif flags := flags_of(answer[0]):
                cures = "; ".join(dict.fromkeys(CURES[flag] for flag in flags))
                flagged.append(f"{servo} reports {', '.join(flags)}: {cures}")
        if found and all(answer is None for answer in found.values()):
            return f"no servo answers on {bus.port}: check the power supply and the cables"
    if flagged:
        raise RobotFault("; ".join(flagged), transient=False)
    return f"{', '.join(silent)}: check its cables" if silent else ""


def open_port(bus: Any) -> None:
    """Opens a serial bus and asks nothing of its servos. Raises InputError for a port that cannot be opened."""
    try:
        bus.connect(handshake=False)
    except Exception as error:
        raise InputError(
            f"the port {bus.port} cannot be opened ({error.__cause__ or error}): `vla doctor` lists the serial ports"
        ) from error


def parts(device: Any) -> list[tuple[str, Any]]:
    """The device itself where it has a bus, and the arms with a bus that it is made of, with their names."""
    found = [("", device), *((name.removesuffix("_arm"), part) for name, part in vars(device).items())]
    return [(name, part) for name, part in found if getattr(part, "bus", None) is not None]


def buses(device: Any) -> list[Any]:
    """The device's own bus, or those of the arms that it is made of."""
    return [part.bus for _, part in parts(device)]


def feetech_servos(device: Any) -> list[Servo]:
    """All of the device's servos that are Feetech's."""
    from lerobot.motors.feetech import FeetechMotorsBus

    arms = [(name, part.bus) for name, part in parts(device) if isinstance(part.bus, FeetechMotorsBus)]
    return [Servo(bus, motor, name) for name, bus in arms for motor in bus.motors]


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
