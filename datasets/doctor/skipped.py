"""Dropped frames with regular timestamps: steps in which the robot moves as far as in two."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla.common.plural import counted
from vla.datasets.doctor.finding import Drop, Finding
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.robust import MAD_TO_SIGMA

LOG_LIKELIHOOD_RATIO = 8.0
"""Minimum log-likelihood ratio of two steps to one."""
UNEXPLAINED = 0.4
"""Maximum share of the residual that the additional step leaves unexplained."""
NOTABLE = 0.002
"""Minimum share of all steps that is reported: sudden contacts look similar, and are five times as rare."""
EVERYWHERE = 0.1
"""Share of episodes above which all are assumed to be affected: a missing frame in slow motion is undetectable."""


def check_skipped(data: Recording) -> list[Finding]:
    """Finds missing frames despite regular timestamps, such as those computed from a frame count by a converter."""
    steps = np.diff(data.time)[data.inside]
    if len(steps) < 100 or np.ptp(steps) > 0.01 / data.hz:
        return []  # measured timestamps show gaps directly
    ratios = double_steps(data)
    found = np.flatnonzero(ratios > LOG_LIKELIHOOD_RATIO)
    if len(found) < max(NOTABLE * len(steps), 3):
        return []
    steps_by_episode = data.by_episode(found, length=2)
    everywhere = len(steps_by_episode) > EVERYWHERE * len(data)
    text = (
        f"at {len(found)} steps of {counted(len(steps_by_episode), 'episode')} the robot moves as far as in two: "
        "frames are missing, and the regular timestamps were not measured"
        + ("; probably all episodes are affected, because it is undetectable in slow motion" if everywhere else "")
    )
    episodes = tuple(data.numbers.tolist() if everywhere else steps_by_episode)
    values = {"seen": float(len(found))}
    return [Finding("dropped-frames", text, episodes, Drop(), steps=steps_by_episode, values=values)]


def double_steps(data: Recording) -> Float[np.ndarray, "m"]:
    """The log-likelihood ratio of each step being two steps to being one; -inf if a neighbour is missing.

    The change of the state is predicted by linear regression from the changes before and after it, and from the
    difference between action and state. The ratio compares the likelihood of the residual with and without an
    additional step of the size of its neighbours.
    """
    moving = data.state_scale > 0
    change = np.diff(data.state[:, moving], axis=0) / data.state_scale[moving]
    complete = data.inside.copy()
    complete[1:] &= data.inside[:-1]
    complete[:-1] &= data.inside[1:]
    complete[[0, -1]] = False
    out = np.full(len(change), -np.inf)
    indices = np.flatnonzero(complete)
    if len(indices) < 10 * change.shape[1]:
        return out
    before, after = change[indices - 1], change[indices + 1]
    errors = _tracking_error(data)[indices]
    features = np.concatenate([before, after, errors, np.ones((len(indices), 1))], axis=1)
    weights, *_ = np.linalg.lstsq(features, change[indices], rcond=None)
    residual = change[indices] - features @ weights
    sigma = MAD_TO_SIGMA * np.median(np.abs(residual), axis=0) + 1e-6
    extra = (before + after) / 2
    # Heavy tails: residuals are clipped at three deviations per component.
    z, extra_z = np.clip(residual / sigma, -3, 3), np.clip(extra / sigma, -3, 3)
    gain = z * extra_z - 0.5 * extra_z**2
    # The residual must be similar to the additional step, not just large.
    missed = ((residual - extra) ** 2).sum(axis=1) < UNEXPLAINED * (residual**2).sum(axis=1)
    out[indices] = np.where(missed, gain.sum(axis=1), -np.inf)
    return out


def _tracking_error(data: Recording) -> Float[np.ndarray, "m k"]:
    """The difference between each position action and its measured state, before each step; scaled."""
    body = data.body
    pairs = [(i, at) for i, at in enumerate(body.measured_by) if at is not None and data.state_scale[at] > 0]
    if not pairs:
        return np.zeros((len(data.state) - 1, 0))
    action, state = (np.array(column) for column in zip(*pairs, strict=True))
    is_position = body.is_position_action[action]
    values = data.action[:-1, action] - np.where(is_position, data.state[:-1, state], 0.0)
    scale = np.where(is_position, data.state_scale[state], np.maximum(data.action_scale[action], 1e-12))
    return values / scale
