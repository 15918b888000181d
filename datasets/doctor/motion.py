"""How smoothly the robot moves: jerky episodes, spikes, and a state that stands while the robot moves."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from vla.datasets.doctor.finding import Advice, Drop, Finding
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.robust import MAD_TO_SIGMA, center, core_spread, runs

JERKY = 2.5
"""How many times as jerky as most an episode is reported from."""
CLEAR = 4.5
"""Robust standard deviations from the other episodes."""
ROUGH = 0.5
"""The jerk of a jerky episode is at least this: of white noise it is 3, of a smooth motion a tenth or less."""
ENOUGH = 8
"""Moving steps that an episode must have for it to be called jerky."""
MOVING = 0.1
"""A step moves at this share of the speed that one in ten exceeds."""
SPIKE = 0.3
"""A value that leaves the line of its neighbours by this share of its component's span, and is back at once."""
SPIKE_TO_STEP = 2.0
"""... and by so many times what the neighbours themselves differ."""
SPIKE_TO_NOISE = 10.0
"""... and by so many robust standard deviations of all steps."""
STALE_SECONDS = 0.25
"""How long the state may stay the same number for number while the action moves on, at least three steps."""
STALE_MOTION = 0.1
"""... by this share of what it spans."""


def check_motion(data: Recording) -> list[Finding]:
    found = []
    for kind, values, names, scale in _signals(data):
        found += _jerky(data, kind, values / scale)
        found += _spikes(data, kind, values, names, scale)
    return found + _stale(data)


def _signals(data: Recording) -> list[tuple[str, np.ndarray, tuple[str, ...], np.ndarray]]:
    """The states that actions command, and the actions that are positions; other states may be velocities, and
    forces, which jump by nature, and so do grippers."""
    body = data.body
    commanded = {at for i, at in enumerate(body.measured_by) if at is not None and not body.is_gripper[i]}
    moving = np.array([at for at in sorted(commanded) if data.state_scale[at] > 0], int)
    acting = np.flatnonzero((data.action_scale > 0) & body.is_position_action & ~body.is_gripper)
    chosen = [
        ("state", data.state[:, moving], tuple(body.state[i] for i in moving), data.state_scale[moving]),
        ("action", data.action[:, acting], tuple(body.action[i] for i in acting), data.action_scale[acting]),
    ]
    return [each for each in chosen if each[1].shape[1]]


def _jerky(data: Recording, kind: str, values: Float[np.ndarray, "n k"]) -> list[Finding]:
    roughness = np.array([jerk(values[part]) for part in data.slices()])
    known = np.flatnonzero(np.isfinite(roughness))
    if len(known) < 5:
        return []
    logs = np.log(roughness[known])
    usual, limit = center(logs), max(np.log(JERKY), CLEAR * core_spread(logs))
    odd = known[(logs - usual > limit) & (logs > np.log(ROUGH))]
    if len(odd) == 0:
        return []
    times = float(np.exp(np.median(np.log(roughness[odd])) - usual))
    text = f"in {len(odd)} episodes the {kind} is {times:.1f} times as jerky as in the others"
    episodes = tuple(data.numbers[odd].tolist())
    return [Finding("jerk", text, episodes, Drop(), subject=kind, values={"times": times})]


def jerk(values: Float[np.ndarray, "t k"]) -> float:
    """The change of acceleration a step over the speed, both in the median of the steps that move: has no unit, is the
    same at any speed and size of the motion (cf. Hogan and Sternad 2009 on measures of smoothness), and a single start
    or stop does not move it; NaN for a short episode or one that stands."""
    speed = np.linalg.norm(np.diff(values, axis=0), axis=1)
    if len(speed) < 3 or not speed.any():
        return float("nan")
    third = np.linalg.norm(np.diff(values, n=3, axis=0), axis=1)
    moving = speed[1:-1] > MOVING * np.quantile(speed, 0.9)
    if moving.sum() < ENOUGH or not third[moving].any():
        return float("nan")
    return float(np.median(third[moving]) / np.median(speed[1:-1][moving]))


def _spikes(
    data: Recording, kind: str, values: Float[np.ndarray, "n k"], names: tuple[str, ...], scale: Float[np.ndarray, "k"]
) -> list[Finding]:
    whole = data.inside[1:] & data.inside[:-1] if len(values) > 2 else np.zeros(0, bool)
    if not whole.any():
        return []
    spikes, flips = single_steps(values, scale, whole)
    found = []
    if spikes.any():
        steps = data.by_episode(np.flatnonzero(spikes.any(axis=1)) + 1)
        which = [names[i] for i in np.flatnonzero(spikes.any(axis=0))]
        text = (
            f"{kind} {', '.join(which)} leaves its path for a single step and is back at the next, at "
            f"{spikes.any(axis=1).sum()} steps of {len(steps)} episodes"
        )
        found.append(Finding("spike", text, tuple(steps), Drop(), subject=which[0], steps=steps))
    if flips.any():
        which = [names[i] for i in np.flatnonzero(flips.any(axis=0))]
        text = f"{kind} {', '.join(which)} jumps to its opposite: an angle or a quaternion that is not known to be one"
        steps = data.by_episode(np.flatnonzero(flips.any(axis=1)) + 1)
        fix = Advice("convert again and say what the rotation is; differences of it are wrong across such a jump")
        found.append(Finding("wraps", text, tuple(steps), fix, "hint", which[0], steps))
    return found


def single_steps(
    values: Float[np.ndarray, "n k"], scale: Float[np.ndarray, "k"], whole: Bool[np.ndarray, "i"]
) -> tuple[Bool[np.ndarray, "i k"], Bool[np.ndarray, "i k"]]:
    """Of each inner step, whether its value leaves the line of its neighbours, which `whole` says are of its episode,
    by far; and whether it does so by a change of its sign alone, as an angle at half a turn and a quaternion do."""
    middle = (values[2:] + values[:-2]) / 2
    apart, across = np.abs(values[1:-1] - middle), np.abs(values[2:] - values[:-2])
    noise = MAD_TO_SIGMA * np.median(apart[whole], axis=0)
    far = (
        whole[:, None] & (apart > np.maximum(SPIKE * scale, SPIKE_TO_NOISE * noise)) & (apart > SPIKE_TO_STEP * across)
    )
    opposite = np.abs(values[1:-1] + middle) < 0.02 * apart
    return far & ~opposite, far & opposite


def _stale(data: Recording) -> list[Finding]:
    """A state that was not read: the same to the last digit, while the action, in position, moves on."""
    acting = data.body.is_position_action & (data.action_scale > 0)
    if not acting.any():
        return []
    same = (np.diff(data.state, axis=0) == 0).all(axis=1) & data.inside
    least = max(3, round(STALE_SECONDS * data.hz))
    action = data.action[:, acting] / data.action_scale[acting]
    steps: dict[int, tuple[tuple[int, int], ...]] = {}
    for start, stop in runs(same).tolist():
        moved = np.ptp(action[start:stop], axis=0).max()
        if stop - start >= least and moved > STALE_MOTION:
            episode, at = data.place(start)
            number = int(data.numbers[episode])
            steps[number] = (*steps.get(number, ()), (at + 1, at + 1 + stop - start))
    if not steps:
        return []
    text = f"in {len(steps)} episodes the state stays the same, to the bit, while the action moves: it was not read"
    return [Finding("stale-state", text, tuple(steps), Drop(), steps=steps)]
