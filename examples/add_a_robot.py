"""Adds a robot, here a simulated arm of two joints, and runs a policy on it in the control loop for two seconds.

    python examples/add_a_robot.py

Recipe: write a class by the protocol `Robot` of `vla.robots.robot`. Actions are absolute targets in the units of the
embodiment, which the safety filter has already kept within `limits`. A bus or a camera that fails raises
`vla.robots.robot.RobotFault`; with `transient=True` the loop tries again. Then run a trained policy on it:

    vla deploy 'robot={_target_: my_package.ToyArm, speed: 3}' policy=outputs/train instruction=wave

A package names the robot in its pyproject.toml, after which it is `robot=toy-arm robot.speed=3`:

    [project.entry-points."vla.robots"]
    toy-arm = "my_package:ToyArm"
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import vla
from vla.control.config import LoopConfig
from vla.control.loop import ControlLoop
from vla.control.stop import EmergencyStop
from vla.control.thread_inference import ThreadInference
from vla.embodiment import Embodiment
from vla.robots.limits import Limits
from vla.types import ActionChunk, Observation, RTCPrefix

JOINTS = ("shoulder [rad]", "elbow [rad]")
BODY = Embodiment("toy-arm", ("front",), JOINTS, JOINTS, (-2.0, -2.0), (2.0, 2.0), control_hz=10.0)


class ToyArm:
    """Joints that approach their targets with a time constant of 0.05 s; the camera draws the arm's two ends."""

    image_sizes = {"front": (48, 48)}  # optional: with it, the policy is tried before the robot is connected

    def __init__(self, speed: float = 3.0) -> None:
        self.embodiment = BODY
        self.limits = Limits(velocity=(speed, speed), acceleration=(30.0, 30.0))  # rad/s and rad/s^2
        self._joints, self._target, self._time = np.zeros(2), np.zeros(2), time.monotonic()

    def __enter__(self) -> ToyArm:
        self._time = time.monotonic()  # here a real robot opens its bus and its cameras
        return self

    def __exit__(self, *error: object) -> None:
        """Disconnects."""

    def state(self) -> tuple[np.ndarray, float]:
        now = time.monotonic()
        self._joints += (self._target - self._joints) * (1 - np.exp(-(now - self._time) / 0.05))
        self._time = now
        return self._joints.copy(), now

    def observe(self, instruction: str) -> Observation:
        joints, now = self.state()
        image = np.full((48, 48, 3), 255, np.uint8)
        angles = np.cumsum(joints)
        for x, y in np.cumsum(np.stack([np.sin(angles), -np.cos(angles)], 1) * 10, axis=0) + 24:
            image[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] = (200, 30, 30)
        return Observation({"front": image}, joints, instruction, now)

    def command(self, action: np.ndarray) -> None:
        self.state()
        self._target = np.array(action)

    def hold(self, last: np.ndarray) -> None:
        self.command(last)

    def disable_torque(self) -> None:
        """Torque off: this arm stays where it is."""


class Wave:
    """A scripted policy: each joint follows a sine of the time. A trained one is `vla.load_policy(FOLDER)`."""

    embodiment = BODY

    def reset(self) -> None:
        """Nothing to forget."""

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk:
        times = observation.time + 0.1 * np.arange(8)
        actions = np.stack([0.8 * np.sin(2 * times), 0.5 * np.sin(3 * times)], axis=1)
        if prefix is not None:  # the first actions are committed: they are sent while this chunk is computed
            actions[: len(prefix.committed)] = prefix.committed
        return ActionChunk(actions, observation.time, 0.1)


vla.register_robot("toy-arm", ToyArm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()

    positions: list[np.ndarray] = []
    inference = ThreadInference(Wave())  # `vla deploy` runs the policy in a process of its own
    loop = ControlLoop(
        ToyArm(), inference, LoopConfig(hz=50.0), stop=EmergencyStop(), watch=lambda tick: positions.append(tick.state)
    )
    stats = loop.run("wave", options.seconds)
    inference.close()
    span = np.ptp(positions, axis=0)
    print(f"{stats.reason}: {stats.rate:.0f} commands a second, {stats.missed} missed deadlines, {stats.chunks} chunks")
    print(", ".join(f"{name} moved over {moved:.2f}" for name, moved in zip(JOINTS, span, strict=True)))


if __name__ == "__main__":
    main()
