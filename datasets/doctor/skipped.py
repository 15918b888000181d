"""Dropped frames behind regular timestamps: steps in which the robot goes as far as in two."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla.datasets.doctor.finding import Drop, Finding
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.robust import MAD_TO_SIGMA

LIKELIER = 8.0
"""How much likelier, as a logarithm, two steps must be than one."""
ALIKE = 0.4
"""The share of what is left over that the further step may leave unexplained."""
NOTABLE = 0.002
"""The share of all steps from which on it is reported: sudden contacts look alike, and are five times as rare."""
EVERYWHERE = 0.1
"""The share of episodes from which on it is taken to be so in all: in slow motion a missing frame cannot be seen."""


def check_skipped(data: Recording) -> list[Finding]:
    """Frames that are missing though the timestamps are regular, as a converter writes them from a frame count."""
    steps = np.diff(data.time)[data.inside]
    if len(steps) < 100 or np.ptp(steps) > 0.01 / data.hz:
        return []  # a clock that is read shows it itself
    likelier = double_steps(data)
    found = np.flatnonzero(likelier > LIKELIER)
    if len(found) < max(NOTABLE * len(steps), 3):
        return []
    places = data.by_episode(found, length=2)
    everywhere = len(places) > EVERYWHERE * len(data)
    text = (
        f"at {len(found)} steps of {len(places)} episodes the robot goes as far as in two: frames are missing, and the "
        "timestamps, which are regular, were made up"
        + ("; it is likely so in all episodes, as in slow motion it cannot be seen" if everywhere else "")
    )
    episodes = data.numbers.tolist() if everywhere else places
    return [Finding("dropped-frames", text, tuple(episodes), Drop(), steps=places, values={"seen": float(len(found))})]


def double_steps(data: Recording) -> Float[np.ndarray, "m"]:
    """How much likelier each step is one of two than of one, as a logarithm; -inf where a neighbour is missing.

    The change of the state is predicted from the changes before and after it, and from how far the action is from the
    state. What is left over has a spread in the store; the likelihoods of it are compared with and without one further
    step of the neighbours' size.
    """
    moving = data.state_scale > 0
    change = np.diff(data.state[:, moving], axis=0) / data.state_scale[moving]
    whole = data.inside.copy()
    whole[1:] &= data.inside[:-1]
    whole[:-1] &= data.inside[1:]
    whole[[0, -1]] = False
    out = np.full(len(change), -np.inf)
    at = np.flatnonzero(whole)
    if len(at) < 10 * change.shape[1]:
        return out
    before, after = change[at - 1], change[at + 1]
    reach = _reach(data)[at]
    known = np.concatenate([before, after, reach, np.ones((len(at), 1))], axis=1)
    weights, *_ = np.linalg.lstsq(known, change[at], rcond=None)
    left = change[at] - known @ weights
    sigma = MAD_TO_SIGMA * np.median(np.abs(left), axis=0) + 1e-6
    more = (before + after) / 2
    # Heavy tails: a residual beyond three deviations in a component counts as three.
    gain = np.clip(left / sigma, -3, 3) * np.clip(more / sigma, -3, 3) - 0.5 * np.clip(more / sigma, -3, 3) ** 2
    # What is left over must be that step, not just large.
    missed = ((left - more) ** 2).sum(axis=1) < ALIKE * (left**2).sum(axis=1)
    out[at] = np.where(missed, gain.sum(axis=1), -np.inf)
    return out


def _reach(data: Recording) -> Float[np.ndarray, "m k"]:
    """How far each position action is from the state that measures it, before each step."""
    body = data.body
    pairs = [(i, at) for i, at in enumerate(body.measured_by) if at is not None and data.state_scale[at] > 0]
    if not pairs:
        return np.zeros((len(data.state) - 1, 0))
    action, state = (np.array(column) for column in zip(*pairs, strict=True))
    is_position = body.is_position_action[action]
    values = data.action[:-1, action] - np.where(is_position, data.state[:-1, state], 0.0)
    scale = np.where(is_position, data.state_scale[state], np.maximum(data.action_scale[action], 1e-12))
    return values / scale
