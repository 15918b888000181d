"""Stores of a simulated SO-101 that moves its joints, with pictures of a few pixels."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from conftest import write_store

from vla.embodiment import Embodiment
from vla.envs.make import make_env
from vla.types import Episode

HOME = np.array([0.0, 0.1, 0.1, 1.2, -np.pi / 2, 0.5])


@cache
def so101_body(task: str = "pick") -> Embodiment:
    env = make_env(task, images=False)
    body: Embodiment = env.unwrapped.embodiment  # type: ignore[attr-defined]
    env.close()
    return body


def moving(seed: int, steps: int = 12, body: Embodiment | None = None) -> Episode:
    """Joints that go to and fro, their targets a step ahead."""
    body, rng = body or so101_body(), np.random.default_rng(seed)
    home = np.tile(HOME, len(body.action) // len(HOME))
    phase = rng.uniform(0, 2 * np.pi, len(home)) + np.arange(steps + 1)[:, None] * 0.15
    path = home + 0.4 * (np.sin(phase) - np.sin(phase[:1]))
    return Episode(
        images={name: rng.integers(0, 256, (steps, 4, 4, 3), np.uint8) for name in body.cameras},
        state=path[:-1],
        action=path[1:],
        time=np.arange(steps) / body.control_hz,
        instruction="wave",
        embodiment=body,
        success=True,
        info={"seed": seed},
    )


def in_degrees(episode: Episode, names: str = "{} [deg]") -> Episode:
    """The same of a robot that names and measures its joints in degrees, its gripper as it was."""
    body = episode.embodiment
    arm = slice(0, len(body.action) - 1)
    joints = tuple(names.format(name.removesuffix(" [rad]")) for name in body.action[arm])
    named = (*joints, body.action[-1])
    turn = np.append(np.full(len(joints), 180 / np.pi), 1.0)
    low, high = (tuple((np.array(end) * turn).tolist()) for end in (body.action_low, body.action_high))
    other = Embodiment("degrees", body.cameras, named, named, low, high, body.control_hz)
    return replace(episode, embodiment=other, state=episode.state * turn, action=episode.action * turn)


def store_of(path: Path, *episodes: Episode, codec: str = "zstd") -> str:
    write_store(path, episodes, codec)
    return str(path)
