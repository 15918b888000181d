"""Faults of motion: jerky episodes, spikes, and states that are not updated."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from vla.common.plural import counted
from vla.datasets.doctor.finding import Advice, Drop, Finding
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.robust import MAD_TO_SIGMA, center, core_spread, runs

JERKY = 2.5
"""Minimum ratio of a reported episode's jerk to the usual jerk."""
CLEAR = 4.5
"""Minimum distance from the other episodes, in robust standard deviations."""
ROUGH = 0.5
"""Minimum jerk of a reported episode: white noise has 3, a smooth motion 0.1 or less."""
ENOUGH = 8
"""Minimum number of moving steps for measuring the jerk of an episode."""
MOVING = 0.1
"""Speed of a moving step, as a share of the 90 % quantile of the speed."""
SPIKE = 0.3
"""Minimum deviation of a spike from the line between its neighbours, as a share of the component's range."""
SPIKE_TO_STEP = 2.0
"""Minimum deviation of a spike, relative to the difference of its neighbours."""
SPIKE_TO_NOISE = 10.0
"""Minimum deviation of a spike, in robust standard deviations of all steps."""
STALE_SECONDS = 0.25
"""Minimum duration of a reported constant state, at least three steps."""
STALE_MOTION = 0.1
"""Minimum motion of the action during a constant state, as a share of its range."""


def check_motion(data: Recording) -> list[Finding]:
    """Finds jerky episodes, spikes, jumps of wrapped angles, and states that are not updated."""
    found = []
    for kind, values, names, scale in _signals(data):
        found += _jerky(data, kind, values / scale)
        found += _spikes(data, kind, values, names, scale)
    return found + _stale(data)


def _signals(data: Recording) -> list[tuple[str, np.ndarray, tuple[str, ...], np.ndarray]]:
    """The commanded states and the position actions, without grippers: velocities, forces and grippers may jump."""
    body = data.body
    commanded = {at for i, at in enumerate(body.measured_by) if at is not None and not body.is_gripper[i]}
    states = np.array([at for at in sorted(commanded) if data.state_scale[at] > 0], int)
    actions = np.flatnonzero((data.action_scale > 0) & body.is_position_action & ~body.is_gripper)
    signals = [
        ("state", data.state[:, states], tuple(body.state[i] for i in states), data.state_scale[states]),
        ("action", data.action[:, actions], tuple(body.action[i] for i in actions), data.action_scale[actions]),
    ]
    return [signal for signal in signals if signal[1].shape[1]]


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
    text = f"in {counted(len(odd), 'episode')} the {kind} is {times:.1f} times as jerky as in the others"
    episodes = tuple(data.numbers[odd].tolist())
    return [Finding("jerk", text, episodes, Drop(), subject=kind, values={"times": times})]


def jerk(values: Float[np.ndarray, "t k"]) -> float:
    """A dimensionless jerk: the median change of acceleration per step over the median speed, of moving steps.

    It does not depend on the speed and size of the motion (cf. Hogan and Sternad 2009 on measures of smoothness), or on
    a single start or stop. NaN for a short or motionless episode.
    """
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
    valid = data.inside[1:] & data.inside[:-1] if len(values) > 2 else np.zeros(0, bool)
    if not valid.any():
        return []
    spikes, flips = single_steps(values, scale, valid)
    found = []
    if spikes.any():
        steps = data.by_episode(np.flatnonzero(spikes.any(axis=1)) + 1)
        affected = [names[i] for i in np.flatnonzero(spikes.any(axis=0))]
        text = (
            f"{kind} {', '.join(affected)} has spikes of a single step, at "
            f"{spikes.any(axis=1).sum()} steps of {counted(len(steps), 'episode')}"
        )
        found.append(Finding("spike", text, tuple(steps), Drop(), subject=affected[0], steps=steps))
    if flips.any():
        affected = [names[i] for i in np.flatnonzero(flips.any(axis=0))]
        text = f"{kind} {', '.join(affected)} jumps to its opposite: an undeclared angle or quaternion"
        steps = data.by_episode(np.flatnonzero(flips.any(axis=1)) + 1)
        fix = Advice("convert again and declare the rotation; differences across such a jump are wrong")
        found.append(Finding("wraps", text, tuple(steps), fix, "hint", affected[0], steps))
    return found


def single_steps(
    values: Float[np.ndarray, "n k"], scale: Float[np.ndarray, "k"], valid: Bool[np.ndarray, "i"]
) -> tuple[Bool[np.ndarray, "i k"], Bool[np.ndarray, "i k"]]:
    """Spikes of a single step.

    Args:
        values: The signals.
        scale: Range of each signal.
        valid: Whether an inner step and its neighbours belong to the same episode.

    Returns:
        Whether each inner value is a spike; and whether it only differs by its sign, as a wrapped angle or quaternion.
    """
    middle = (values[2:] + values[:-2]) / 2
    deviation, step = np.abs(values[1:-1] - middle), np.abs(values[2:] - values[:-2])
    noise = MAD_TO_SIGMA * np.median(deviation[valid], axis=0)
    limit = np.maximum(SPIKE * scale, SPIKE_TO_NOISE * noise)
    far = valid[:, None] & (deviation > limit) & (deviation > SPIKE_TO_STEP * step)
    opposite = np.abs(values[1:-1] + middle) < 0.02 * deviation
    return far & ~opposite, far & opposite


def _stale(data: Recording) -> list[Finding]:
    """States that were not read: bit-identical values while a position action moves."""
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
            episode, first = data.locate(start)
            number = int(data.numbers[episode])
            steps[number] = (*steps.get(number, ()), (first + 1, first + 1 + stop - start))
    if not steps:
        return []
    text = f"in {counted(len(steps), 'episode')} the state is bit-identical while the action moves: it was not read"
    return [Finding("stale-state", text, tuple(steps), Drop(), steps=steps)]
