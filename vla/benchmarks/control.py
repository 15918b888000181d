"""`vla bench control`: motor commands to the emulated SO-101 by our control loop and by `lerobot-rollout`.

Each contestant controls a separate emulated arm (`vla so101-sim` in a separate process) through LeRobot's driver, with
the same policy, which takes 150 ms for an action chunk of one second. The arm's bus logs the servo writes with their
times.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from vla.benchmarks.control_goals import measure, read_goals
from vla.benchmarks.control_load import busy, without_privileges
from vla.common.result_table import Table, Target
from vla.control.config import LoopConfig
from vla.control.loop import ControlLoop
from vla.control.process_inference import ProcessInference
from vla.control.stop import EmergencyStop
from vla.embodiment import Embodiment
from vla.envs.arm import JOINTS, LINKS
from vla.envs.make import make_env
from vla.errors import InputError
from vla.evaluation.rollouts.rollout import rollout
from vla.evaluation.rollouts.summary import summarize
from vla.evaluation.rollouts.trial import trials_for
from vla.models.hub import write_config
from vla.policies.load import load_policy
from vla.robots.lerobot_adapter.robot import LeRobotRobot, so101
from vla.types import ActionChunk, Observation, RTCPrefix

SECONDS = 60.0
RATES = (50.0, 200.0)
DELAY = 0.15
POLICY_HZ, HORIZON, N_ACTION_STEPS = 50.0, 50, 20
"""Actions per second, horizon, and execution horizon: LeRobot's defaults for pi0."""
SETTLE = 1.0
"""The initial time that is not measured, during the first two chunks [s]."""
BOOT = 60.0
"""The maximum time to start the emulated arm, and that of `lerobot-rollout` in addition to its run [s]."""
TRIES = 3
"""The maximum number of runs of `lerobot-rollout`, which ends if a response is lost during connection."""
LOW, HIGH = (np.array([link.range[end] for joint in JOINTS for link in LINKS if link.joint == joint]) for end in (0, 1))
"""The limits of the joints [rad]."""


DEMO = Path("outputs/demo/train")
"""The demo's policy; if it exists, its success with a delay has a target."""
LATE, LOST = 0.2, 0.05
"""The delay [s], and the maximum loss of success by it."""
LOOP_COLUMNS = ("left out", "late p99 ms", "late max ms", "command p99 ms", "read p99 ms", "chunks", "ended")
"""Columns of values that only our loop reports."""
LOG = "goals.jsonl"
Goals = tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n j"]]


class Wave:
    """A periodic motion from the initial position by 0.2 rad towards `middle` and back; `scale` is in units per rad."""

    def __init__(self, middle: Float[np.ndarray, "a"], scale: Float[np.ndarray, "a"] | float = 1.0) -> None:
        self._middle, self._scale = middle, scale
        self._first: tuple[Float[np.ndarray, "a"], float] | None = None

    def chunk(self, state: Float[np.ndarray, "a"], now: float) -> Float[np.ndarray, "h a"]:
        """The action chunk from the time `now` [s]."""
        rest, start_time = self._first = self._first or (state.copy(), now)
        at = now - start_time + np.arange(HORIZON)[:, None] / POLICY_HZ
        return rest + 0.1 * self._scale * np.sign(self._middle - rest) * (1 - np.cos(2 * at))


class Waving:
    """The policy of the wave, in radians; `working` starts busy processes with the same priority."""

    def __init__(self, working: bool = False) -> None:
        self._work = ExitStack()
        if working:
            self._work.enter_context(busy())
        names = tuple(f"{joint} [rad]" for joint in JOINTS)
        self.embodiment = Embodiment("so101", (), names, names, tuple(LOW), tuple(HIGH), POLICY_HZ)
        self.reset()

    def reset(self) -> None:
        self._wave = Wave((LOW + HIGH) / 2)

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk:
        time.sleep(DELAY)
        actions = self._wave.chunk(observation.state, observation.time)
        if prefix is not None:
            actions[: len(prefix.committed)] = prefix.committed
        return ActionChunk(actions, observation.time, 1 / POLICY_HZ)


def bench_control(seconds: float = SECONDS, rates: Sequence[float] = RATES) -> Table:
    """Measures the bus writes of each contestant, and the statistics of our loop.

    If `vla demo` was run, the loss of its policy's success with an inference delay of `LATE` is measured as well.

    Raises:
        InputError: the arm does not start, or a contestant fails.
    """
    rows: list[dict[str, Any]] = []
    for hz in rates:
        ours = len(rows)
        for name, run in (CONTESTANTS | (LOADED if hz == rates[0] else {})).items():
            loop_stats, goals = run(hz, seconds)
            row: dict[str, Any] = {"contestant": name, "Hz": hz, **measure(*goals, hz, SETTLE, seconds)}
            rows.append(row)
            for figure in ("jitter p99 ms", "missed %"):
                row[f"{figure.split()[0]} x"] = _ratio(row[figure], rows[ours][figure])
            row |= {**dict.fromkeys(LOOP_COLUMNS, "-"), **loop_stats}
    at_first = {row["contestant"]: row for row in rows if row["Hz"] == rates[0]}
    ours_at = [at_first[name] for name in CONTESTANTS if name.startswith("vla")]
    at = f"at {rates[0]:g} Hz"
    targets = [
        Target(f"missed deadlines {at}", float(max(row["left out"] for row in ours_at)), 0.0, at_most=True),
        Target(f"jitter p99 {at} [ms]", max(row["late p99 ms"] for row in ours_at), 1.0, at_most=True),
    ]
    targets += [
        Target(f"missed deadlines {at}, {name.partition(', ')[2]} [%]", share, 0.1, at_most=True)
        for name in list(LOADED)[:2]
        for share in [100 * at_first[name]["left out"] / (rates[0] * seconds)]
    ]
    return Table(rows, targets + ([success_lost(DEMO)] if DEMO.is_dir() else []))


def success_lost(checkpoint: Path, episodes: int = 100) -> Target:
    """The loss of a policy's success on held-out scenes by an inference delay of `LATE`, with `rtc` execution."""
    seeds = range(2_000_000, 2_000_000 + episodes)
    trials = trials_for(seeds, swap=False, delays=(0.0, LATE), executions=("rtc",))
    make = partial(make_env, "pick", phrasing="heldout", holdout=True, images=False)
    results = rollout(make, load_policy(str(checkpoint)), trials)
    rates = {row["delay"]: row["success_rate"] for row in summarize(results)["latency"]}
    return Target(f"success lost to {LATE:g} s", rates[0.0] - rates[LATE], LOST, at_most=True)


def _ratio(value: float, ours: float) -> float | str:
    return value / ours if ours else 1.0 if not value else "-"


def _vla(
    execution: str, hz: float, seconds: float, load: Literal["", "beside", "policy"] = "", privileges: bool = True
) -> tuple[dict[str, Any], Goals]:
    """Runs our control loop with the policy in a separate process, optionally with busy processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with emulated(folder), ExitStack() as stack:
            inference = ProcessInference(partial(Waving, load == "policy"))
            stack.callback(inference.close)
            if load == "beside":
                stack.enter_context(busy())
            if not privileges:
                stack.enter_context(without_privileges())
            config = LoopConfig(hz=hz, execution=execution, n_action_steps=N_ACTION_STEPS)
            stats = ControlLoop(arm(folder), inference, config, stop=EmergencyStop()).run("wave", seconds)
        late = 1e3 * stats.jitter.p99, 1e3 * stats.jitter.max
        bus = 1e3 * stats.command.p99, 1e3 * stats.observe.p99
        loop_values = zip(LOOP_COLUMNS, (stats.missed, *late, *bus, stats.chunks, stats.reason), strict=True)
        return dict(loop_values), read_goals(folder / LOG)


def _lerobot(inference: str, hz: float, seconds: float) -> tuple[dict[str, Any], Goals]:
    """Runs LeRobot's command with its defaults, and with its interpolation at rates above the policy's."""
    reason = ""
    for attempt in range(1, TRIES + 1):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _plug_in(folder)
            command = (
                Path(sys.executable).with_name("lerobot-rollout"),
                f"--policy.path={folder}",
                "--robot.type=so101_follower",
                f"--robot.port={folder / 'port'}",
                "--robot.id=so101",
                f"--robot.calibration_dir={folder}",
                f"--inference.type={inference}",
                f"--fps={POLICY_HZ:g}",
                f"--interpolation_multiplier={round(hz / POLICY_HZ)}",
                f"--duration={seconds:g}",
                "--task=wave",
                "--return_to_initial_position=false",
                "--play_sounds=false",
            )
            path = os.pathsep.join((name, *filter(None, sys.path)))
            environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
            run = partial(subprocess.run, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            try:
                with emulated(folder):
                    run(command, check=True, timeout=seconds + BOOT)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                reason = f"{error}\n{str(error.stderr).strip()[-500:]}"
            else:
                return {"ended": "done" if attempt == 1 else f"done, try {attempt}"}, read_goals(folder / LOG)
    raise InputError(f"lerobot-rollout did not run: {reason}")


CONTESTANTS: dict[str, Callable[[float, float], tuple[dict[str, Any], Goals]]] = {
    "vla rtc": partial(_vla, "rtc"),
    "vla chunked": partial(_vla, "chunked"),
    "lerobot rtc": partial(_lerobot, "rtc"),
    "lerobot sync": partial(_lerobot, "sync"),
}


LOADED: dict[str, Callable[[float, float], tuple[dict[str, Any], Goals]]] = {
    "vla rtc, 2 busy processes": partial(_vla, "rtc", load="beside"),
    "vla rtc, busy policy, no privileges": partial(_vla, "rtc", load="policy", privileges=False),
    "vla rtc, 2 busy processes, no privileges": partial(_vla, "rtc", load="beside", privileges=False),
}
"""Measured at the first rate only; the first two have targets."""


def _plug_in(folder: Path) -> None:
    """Writes a checkpoint without weights, and the metadata of an installed plug-in, for LeRobot."""
    write_config(folder, {"type": "waving", "device": "cpu"})
    (folder / "lerobot_policy_waving.py").write_text("import vla.benchmarks.control_lerobot\n")
    metadata = folder / "lerobot_policy_waving-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lerobot_policy_waving\nVersion: 1\n")


def arm(folder: Path) -> LeRobotRobot:
    """Our robot interface to the arm of `emulated`."""
    return so101(
        port=str(folder / "port"), id="so101", calibration_dir=str(folder), cameras={}, control_hz=POLICY_HZ,
        velocity=2.0, acceleration=15.0, relax_on_exit=False,
    )  # fmt: skip


@contextmanager
def emulated(folder: Path) -> Iterator[None]:
    """Runs `vla so101-sim` without cameras, with its port, calibration and log in `folder`."""
    command = [sys.executable, "-m", "vla", "so101-sim", f"out={folder}", "camera_port=0", f"log={folder / LOG}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + BOOT
            while not (folder / "port").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise InputError("vla so101-sim did not start: run it separately for its error message")
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.communicate()
