"""`vla bench ee`: end-effector actions compared with joint actions, and joint speeds of inverse kinematics.

The expert's episodes are recorded without noise and replayed open loop on the same scenes from the same poses: with
their joint targets, and with the tool poses that `vla data derive` computes from them, through the same safety filter.
(With noise neither would succeed, because the recorded action is the clean one, not the executed one.)

In addition, an arm follows paths with singular configurations: out of its reach and back, over the axis of its
shoulder, and with rotations of its tool beyond the joint limits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from itertools import count, islice
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from vla.commands.record import demonstrate
from vla.common.result_table import Table, Target
from vla.control.adapt import adapt
from vla.datasets.episodes import EpisodeStore
from vla.datasets.tools.derive import derive, tool_kinematics
from vla.embodiment import Embodiment
from vla.envs.make import make_env
from vla.evaluation.rollouts.rollout import rollout
from vla.evaluation.rollouts.summary import paired, rate
from vla.evaluation.rollouts.trial import Result, Trial
from vla.kinematics.arm import ArmKinematics
from vla.policies.end_effector import PACE
from vla.policies.policy import Policy
from vla.policies.replay import ReplayPolicy
from vla.robots.limits import Limits, limits_of
from vla.types import ActionChunk, Observation, RTCPrefix

TASKS = ("pick", "place", "bimanual-lift")
EPISODES = 100
FIRST_SEED = 3_000_000
MODELS = {1: ("so101", ["gripperframe"]), 2: ("so101_pair", ["left_gripperframe", "right_gripperframe"])}
"""The model and its tool frames, by the number of arms."""
COLUMNS = (
    "what", "actions", "success", "difference", "episodes", "crashed", "clamped steps", "max speed / limit",
    "mm off at the end",
)  # fmt: skip
LOST = 0.02
N_ACTION_STEPS = 3
"""The execution horizon."""
FASTEST = 2.0
"""The speed limit of the joints of `robot=so101` [rad/s]."""


def bench_end_effector(tasks: Sequence[str] = TASKS, episodes: int = EPISODES) -> Table:
    """Measures replay of each task with joint targets and tool poses, and each singular path."""
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    for task in tasks:
        with tempfile.TemporaryDirectory() as name:
            joints, tools = Path(name) / "joints.zarr", Path(name) / "ee.zarr"
            starts = record_clean(task, episodes, joints)
            model, frames = MODELS[2 if task.startswith("bimanual") else 1]
            with redirect_stdout(StringIO()):
                derive(str(joints), out=str(tools), actions="ee", model=model, tool=frames)
            found = {kind: replay(task, store, starts) for kind, store in (("joints", joints), ("ee", tools))}
        for kind, (results, fastest) in found.items():
            rows.append(
                {
                    "what": f"replay of {task}",
                    "actions": kind,
                    "success": rate(results)["success_rate"],
                    "episodes": len(results),
                    "crashed": sum(bool(result.crash) for result in results),
                    "clamped steps": sum(result.clamped for result in results),
                    "max speed / limit": fastest,
                }
            )
        difference = paired(found["joints"][0], found["ee"][0])
        rows[-1]["difference"] = difference["difference"]
        targets.append(Target(f"success lost by {task}", 0.0 - difference["difference"], LOST, at_most=True))
        clamped = [sum(result.clamped for result in found[kind][0]) for kind in ("joints", "ee")]
        targets.append(Target(f"{task}: steps clamped more often", float(clamped[1] - clamped[0]), 0.0, at_most=True))
        targets.append(Target(f"{task}: speed over the limit", found["ee"][1], 1.0, at_most=True))
    paths = singular_paths().items()
    singular = [singular_row(name, path, limited=limited) for name, path in paths for limited in (True, False)]
    fastest = max(row["max speed / limit"] for row in singular[::2])
    targets.append(Target("singular paths: speed over the limit", fastest, 1.0, at_most=True))
    return Table([dict.fromkeys(COLUMNS, "-") | row for row in (*rows, *singular)], targets)


def record_clean(task: str, episodes: int, out: Path) -> dict[int, dict[str, Any]]:
    """Records successful episodes of the expert without noise or images; returns the reset options by seed."""
    env = make_env(task, images=False)
    try:
        attempts = (demonstrate(env, task, seed, 0.0) for seed in count(FIRST_SEED))
        found = list(tqdm(islice((episode for episode in attempts if episode.success), episodes), f"record {task}"))
        with EpisodeStore.create(out, found[0].embodiment) as store:
            for episode in found:
                store.append(episode)
    finally:
        env.close()
    return {int(episode.info["seed"]): {"perturb": episode.info["perturb"]} for episode in found}


def replay(task: str, store: Path, starts: Mapping[int, Mapping[str, Any]]) -> tuple[list[Result], float]:
    """Replays the episodes; returns the results, and the highest speed of joint targets relative to its limit."""
    opened, monitors = EpisodeStore.open(store), list[_SpeedMonitor]()
    trials = [Trial(seed, options) for seed, options in starts.items()]

    def policy(env: gymnasium.Env[Any, Any]) -> Policy:
        limits = limits_of(env)
        assert limits is not None
        played = ReplayPolicy(env, opened)
        monitors.append(_SpeedMonitor(adapt(played, env.unwrapped.embodiment, limits.velocity, {}), limits))  # type: ignore[attr-defined]
        return monitors[-1]

    make = partial(make_env, task, images=False)
    results = rollout(make, policy, trials, parallel=1, n_action_steps=N_ACTION_STEPS)
    return results, max(policy.fastest for policy in monitors)


class _SpeedMonitor:
    """Records the highest speed of a policy's joint targets relative to its limit, before the safety filter.

    Grippers are excluded, since their targets are equal in both action spaces.
    """

    def __init__(self, policy: Policy, limits: Limits) -> None:
        self._policy, self.embodiment = policy, policy.embodiment
        self._limit = np.array(limits.velocity) / self.embodiment.control_hz
        self.fastest = 0.0

    def reset(self) -> None:
        self._policy.reset()
        self._last: Float[np.ndarray, "1 a"] | None = None

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        chunk = self._policy.predict(observation, prefix=prefix)
        if chunk is not None:
            before = self.embodiment.hold_action(observation.state)[None] if self._last is None else self._last
            path = np.concatenate([before, chunk.actions[:N_ACTION_STEPS]])
            speed = np.abs(np.diff(path, axis=0)) / self._limit
            self.fastest = max(self.fastest, float(speed[:, ~self.embodiment.is_gripper].max()))
            self._last = path[-1:]
        return chunk


def singular_paths() -> dict[str, Float[np.ndarray, "n 7"]]:
    """Paths of the SO-101's tool with singular or unreachable poses, 0.1 s apart."""
    turned = Rotation.from_euler("y", np.pi / 2)  # the fingers point down
    out_and_back = np.concatenate([np.linspace(0.25, 0.6, 40), np.full(20, 0.6), np.linspace(0.6, 0.2, 40)])
    across = np.linspace(-0.2, 0.2, 60)
    around = np.linspace(0, 2 * np.pi, 100)
    still = np.zeros_like

    def poses(x: Any, y: Any, z: Any, turns: Rotation) -> Float[np.ndarray, "n 7"]:
        return np.column_stack([x, y, z, np.roll(turns.as_quat(), 1, axis=1)])

    def fixed(n: int) -> Rotation:
        return Rotation.concatenate([turned] * n)

    paths = {
        "out of reach and back": poses(out_and_back, still(out_and_back), still(out_and_back) + 0.15, fixed(100)),
        "over the shoulder's axis": poses(still(across) + 0.0388, across, still(across) + 0.25, fixed(60)),
    }
    for axis in "xyz":
        turns = Rotation.from_euler(axis, around[:, None]) * turned
        paths[f"tool turned about {axis}"] = poses(still(around) + 0.25, still(around), still(around) + 0.15, turns)
    return paths


def singular_row(name: str, poses: Float[np.ndarray, "n 7"], *, limited: bool) -> dict[str, Any]:
    """The highest joint speed on a path relative to the limit of a real SO-101, and the final error of the tool.

    `limited=False` removes the speed limits, for comparison.
    """
    env = make_env("pick", images=False)
    body: Embodiment = env.unwrapped.embodiment  # type: ignore[attr-defined]
    env.close()
    kinematics = tool_kinematics(body, *MODELS[1], "rotation_6d", None, None)
    arm, joints = ArmKinematics(body, kinematics), len(kinematics.joints)
    start = arm.follow(np.repeat(poses[:1, None], 50, axis=0), np.zeros(joints), np.full(joints, 0.1))[-1]
    max_step = FASTEST / body.control_hz
    path = arm.follow(poses[:, None], start, np.full(joints, PACE * max_step if limited else 10.0))
    steps = np.abs(np.diff(np.concatenate([start[None], path]), axis=0))
    reached = arm.commanded(np.append(path[-1], 0.0)[None])[0, 0]
    return {
        "what": name,
        "actions": "ee" if limited else "ee, no limit",
        "max speed / limit": float(steps.max() / max_step),
        "mm off at the end": 1e3 * float(np.linalg.norm(reached[:3] - poses[-1, :3])),
    }
