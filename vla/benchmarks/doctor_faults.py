"""The faults that `vla bench doctor` injects into recorded episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int, UInt8

from vla.types import Episode

OFFSET_DEGREES = 17.0
SHIFT_PIXELS = 37
IDLE_SECONDS = 2.0
DROPPED = 0.05
DELAY_SECONDS = 0.2

Plant = Callable[[Episode, np.random.Generator], Episode]


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: The name in the table.
        check: The checks of `vla data doctor` that must report it.
        plant: Injects the fault into an episode.
        share: The share of episodes with the fault.
        images: Whether the fault is in the images; other faults are injected into stores without images.
    """

    name: str
    check: tuple[str, ...]
    plant: Plant
    share: float = 0.2
    images: bool = False


def offset(episode: Episode, rng: np.random.Generator) -> Episode:
    """A calibration offset between leader and follower in one joint or gripper."""
    action = episode.action.copy()
    action[:, rng.integers(action.shape[1])] += np.deg2rad(OFFSET_DEGREES) * rng.choice([-1, 1])
    return replace(episode, action=action)


def idle(episode: Episode, rng: np.random.Generator) -> Episode:
    """No motion for two seconds, at the beginning or at the end, with encoder noise."""
    count = round(IDLE_SECONDS * episode.embodiment.control_hz)
    at_start = bool(rng.integers(2))
    steps = np.arange(len(episode))
    steps = np.concatenate([np.zeros(count, int), steps] if at_start else [steps, np.full(count, len(episode) - 1)])
    longer = _taken(episode, steps)
    still = np.arange(count) if at_start else np.arange(len(steps) - count, len(steps))
    state, action = longer.state.copy(), longer.action.copy()
    state[still] += rng.normal(0, 5e-4, (count, state.shape[1]))
    if at_start:  # the leader is at the follower's position
        for i, at in enumerate(episode.embodiment.measured_by):
            if at is not None:
                action[still, i] = episode.state[0, at]
    return replace(longer, state=state, action=action, time=np.arange(len(steps)) / episode.embodiment.control_hz)


def dropped(episode: Episode, rng: np.random.Generator) -> Episode:
    """5 % of the frames, at least one, are missing; the others have their time of capture."""
    inner = np.arange(1, len(episode) - 1)
    gone = inner[rng.random(len(inner)) < DROPPED]
    gone = gone if len(gone) else rng.choice(inner, 1)
    return _taken(episode, np.setdiff1d(np.arange(len(episode)), gone))


def dropped_unseen(episode: Episode, rng: np.random.Generator) -> Episode:
    """The same, with timestamps computed from the frame index."""
    fewer = dropped(episode, rng)
    return replace(fewer, time=np.arange(len(fewer)) / episode.embodiment.control_hz)


def delay(episode: Episode, rng: np.random.Generator) -> Episode:
    """Actions are recorded 200 ms too early or too late."""
    steps = round(DELAY_SECONDS * episode.embodiment.control_hz) * int(rng.choice([-1, 1]))
    rows = np.clip(np.arange(len(episode)) + steps, 0, len(episode) - 1)
    return replace(episode, action=episode.action[rows])


def late(episode: Episode, rng: np.random.Generator) -> Episode:
    """Actions take effect 200 ms later: each step has the action of 200 ms after it."""
    steps = round(DELAY_SECONDS * episode.embodiment.control_hz)
    rows = np.clip(np.arange(len(episode)) + steps, 0, len(episode) - 1)
    return replace(episode, action=episode.action[rows])


def same_offset(episode: Episode, rng: np.random.Generator) -> Episode:
    """The same joint has an offset in every episode."""
    action = episode.action.copy()
    action[:, 2] += np.deg2rad(OFFSET_DEGREES)
    return replace(episode, action=action)


def frozen(episode: Episode, rng: np.random.Generator) -> Episode:
    """One camera repeats one image from a step in the first half."""
    camera = str(rng.choice(episode.embodiment.cameras))
    frames = episode.images[camera].copy()
    start = int(rng.integers(0, len(frames) // 2))
    frames[start:] = frames[start]
    return replace(episode, images={**episode.images, camera: frames})


def moved(episode: Episode, rng: np.random.Generator) -> Episode:
    """The image of one camera is shifted by 37 pixels horizontally or vertically, with repeated edges."""
    camera = str(rng.choice(episode.embodiment.cameras))
    axis, sign = int(rng.integers(1, 3)), int(rng.choice([-1, 1]))
    return replace(episode, images={**episode.images, camera: _shifted(episode.images[camera], axis, sign)})


def _shifted(frames: UInt8[np.ndarray, "t h w 3"], axis: int, sign: int) -> UInt8[np.ndarray, "t h w 3"]:
    size = frames.shape[axis]
    source = np.clip(np.arange(size) - sign * SHIFT_PIXELS, 0, size - 1)
    return np.ascontiguousarray(np.take(frames, source, axis=axis))


def _taken(episode: Episode, steps: Int[np.ndarray, "k"]) -> Episode:
    """The episode with these steps, without points."""
    return replace(
        episode,
        images={name: frames[steps] for name, frames in episode.images.items()},
        state=episode.state[steps],
        action=episode.action[steps],
        time=episode.time[steps],
        points=None,
    )


FAULTS = (
    Fault("17° offset of a joint", ("offset",), offset),
    Fault("2 s idle", ("idle-start", "idle-end"), idle),
    Fault("5 % dropped frames", ("dropped-frames",), dropped),
    Fault("200 ms action delay", ("action-delay",), delay),
    Fault("camera shifted by 37 px", ("camera-moved",), moved, images=True),
    Fault("one frozen camera", ("frozen-camera",), frozen, images=True),
)
"""The faults with targets."""
HARDER = (
    Fault("17° offset, in all episodes", ("offset",), same_offset, share=1.0),
    Fault("200 ms action delay, in all episodes", ("action-delay",), late, share=1.0),
    Fault("5 % dropped frames, regular timestamps, in all episodes", ("dropped-frames",), dropped_unseen, share=1.0),
    Fault("5 % dropped frames, regular timestamps", ("dropped-frames",), dropped_unseen),
)
"""Faults without targets: the store has no clean episodes for comparison, or timestamps have no trace of the fault."""
