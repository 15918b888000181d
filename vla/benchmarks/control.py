"""`vla bench control`: deadlines of the control loop on the emulated SO-101, under LeRobot's own driver.

The arm (`vla so101-sim`) and the policy, which takes 150 ms, each run in a process of their own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.benchmarks.table import Table, Target
from vla.control.loop import ControlLoop, LoopConfig
from vla.control.process_inference import ProcessInference
from vla.control.robots.lerobot_robot import so101
from vla.control.stop import EmergencyStop
from vla.embodiment import Embodiment
from vla.envs.arm import JOINTS, LINKS
from vla.errors import InputError
from vla.types import ActionChunk, Observation

SECONDS = 60.0
RATES = (50.0, 200.0)
DELAY = 0.15
HORIZON = 10
BOOT = 60.0
"""[s] that the emulated arm may take to start."""


class Waving:
    """Moves each joint to and fro by a tenth of a radian, and takes `DELAY` to say so."""

    def __init__(self) -> None:
        ranges = {link.joint: link.range for link in LINKS if link.joint}
        low, high = (tuple(float(ranges[joint][end]) for joint in JOINTS) for end in (0, 1))
        names = tuple(f"{joint} [rad]" for joint in JOINTS)
        self.embodiment = Embodiment("so101", (), names, names, low, high, 10.0)
        self._rest: Float[np.ndarray, "a"] | None = None

    def reset(self) -> None:
        self._rest = None

    def predict(self, observation: Observation, *, prefix: Float[np.ndarray, "k a"] | None = None) -> ActionChunk:
        time.sleep(DELAY)
        if self._rest is None:
            self._rest = np.array(observation.state)
        at = observation.time + np.arange(HORIZON)[:, None] / 10
        return ActionChunk(self._rest + 0.1 * np.sin(2 * at), observation.time, 0.1)


def bench_control(seconds: float = SECONDS) -> Table:
    """Missed deadlines, jitter, and what the bus takes, at 50 and 200 ticks a second."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, emulated(Path(folder)):
        for hz in RATES:
            robot = so101(
                port=str(Path(folder) / "port"), id="so101", calibration_dir=folder, cameras={}, control_hz=10.0,
                velocity=2.0, acceleration=15.0, relax_on_exit=False,
            )  # fmt: skip
            inference = ProcessInference(Waving)
            try:
                config = LoopConfig(hz=hz, execution="chunked", execute=3)
                stats = ControlLoop(robot, inference, config, stop=EmergencyStop()).run("wave", seconds)
            finally:
                inference.close()
            rows.append(
                {
                    "ticks/s": hz,
                    "seconds": stats.seconds,
                    "rate": stats.rate,
                    "missed": stats.missed,
                    "jitter p99 ms": 1000 * stats.jitter.p99,
                    "jitter max ms": 1000 * stats.jitter.max,
                    "command p50 ms": 1000 * stats.command.p50,
                    "command p99 ms": 1000 * stats.command.p99,
                    "read p99 ms": 1000 * stats.observe.p99,
                    "chunks": stats.chunks,
                    "ended": stats.reason,
                }
            )
    at_50 = rows[0]
    return Table(
        rows,
        [
            Target("missed deadlines at 50 Hz", float(at_50["missed"]), 0.0, at_most=True),
            Target("jitter p99 at 50 Hz [ms]", at_50["jitter p99 ms"], 1.0, at_most=True),
        ],
    )


@contextmanager
def emulated(folder: Path) -> Iterator[None]:
    """`vla so101-sim` in a process of its own, its port and calibration in `folder`; without cameras."""
    command = [sys.executable, "-m", "vla", "so101-sim", f"out={folder}", "camera_port=0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as arm:
        try:
            deadline = time.monotonic() + BOOT
            while not (folder / "port").exists():
                if arm.poll() is not None or time.monotonic() > deadline:
                    raise InputError("vla so101-sim did not start: run it by itself to see why")
                time.sleep(0.05)
            yield
        finally:
            arm.terminate()
            arm.communicate()
