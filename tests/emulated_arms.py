"""Emulated SO-101 arms on a bus, and our robot on LeRobot's driver that drives them."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla.envs.scene import TableScene
from vla.errors import InputError
from vla.robots.feetech_emulator.arm import ServoArm
from vla.robots.feetech_emulator.port import ServoPort
from vla.robots.lerobot_adapter.robot import LeRobotRobot, so101
from vla.robots.robot import RobotFault

OPTIONS: dict[str, Any] = dict(
    id="so101", cameras={}, control_hz=10, velocity=2.0, acceleration=15.0, relax_on_exit=False
)


@contextmanager
def emulated(folder: Path, name: str) -> Iterator[ServoPort]:
    scene = TableScene(32)
    scene.reset()
    scene.data.qpos[:6] = scene.data.ctrl[:6] = (0.0, -1.2, 1.0, 0.8, 0.0, 0.5)
    arm = ServoArm(scene)
    (folder / f"{name}.json").write_text(json.dumps(arm.calibrate()))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    with ServoPort(arm, folder / f"{name} port") as port:
        yield port
    sys.setswitchinterval(before)
    scene.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make(port: ServoPort, folder: Path, **options: Any) -> LeRobotRobot:
    return so101(port=port.path, calibration_dir=str(folder), **OPTIONS | options)


@contextmanager
def connected(robot: LeRobotRobot) -> Iterator[LeRobotRobot]:
    for last in (False, False, False, True):  # the driver gives an answer 50 ms, which a busy machine may miss
        try:
            robot.__enter__()
            break
        except (RobotFault, InputError):
            if last:
                raise
    try:
        yield robot
    finally:
        robot.__exit__(None, None, None)


def retried(call: Any) -> Any:
    """As the control loop does."""
    for last in (False, False, False, True):
        try:
            return call()
        except RobotFault as fault:
            if last or not fault.transient:
                raise
