"""Faults of single components: constant, rarely moving or clipped values, and states that do not follow the action."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from vla.common.plural import counted
from vla.datasets.doctor.finding import Advice, Finding
from vla.datasets.doctor.recording import Recording, unit
from vla.datasets.doctor.robust import runs
from vla.datasets.doctor.timing import share

RARE = 0.02
"""A component rarely moves if 98 % of its values span less than this share of its range."""
DEAD = 0.01
"""A state has not followed its action if its range is less than this share of the action's range."""
CLIPPED = 0.03
"""Share of the moving steps at exactly one extreme value above which a component is clipped."""
DISTINCT = 20
"""A component with fewer distinct values is a switch, which is always at an extreme."""


def check_components(data: Recording) -> list[Finding]:
    """Finds constant, rarely moving and clipped components, and states that do not follow their actions."""
    found = []
    everything = tuple(data.numbers.tolist())
    keep = Advice("keep it if the robot has it; a component that never moves does no harm in training")
    for kind, values, names in (("state", data.state, data.body.state), ("action", data.action, data.body.action)):
        ranges = np.ptp(values, axis=0)
        if still := [name for name, width in zip(names, ranges, strict=True) if width == 0]:
            text = f"{kind} {', '.join(still)} {'is' if len(still) == 1 else 'are'} the same in all steps"
            found.append(Finding("constant", text, everything, keep, "hint", still[0]))
        bulk = np.subtract(*np.quantile(values, [0.99, 0.01], axis=0))
        for i in np.flatnonzero((ranges > 0) & (bulk < RARE * ranges)).tolist():
            odd = np.abs(values[:, i] - np.median(values[:, i])) > 0.5 * ranges[i]
            steps = data.by_episode(np.flatnonzero(odd))
            where = counted(len(steps), "episode")
            text = f"{kind} {names[i]} hardly moves in 98 % of the steps, but moves far in {where}"
            fix = Advice("check whether these motions are real")
            found.append(Finding("rarely-moves", text, tuple(steps), fix, "hint", names[i]))
    return found + _dead(data) + _clipped(data)


def _dead(data: Recording) -> list[Finding]:
    found = []
    for i, at in enumerate(data.body.measured_by):
        if at is None or not data.body.is_position_action[i] or unit(data.body.action[i]) != unit(data.body.state[at]):
            continue
        if data.action_scale[i] > 0 and np.ptp(data.state[:, at]) < DEAD * np.ptp(data.action[:, i]):
            name = data.body.state[at]
            text = f"state {name} is constant while its action moves: a motor or an encoder is not connected"
            fix = Advice("repair the joint and record again")
            found.append(Finding("dead-joint", text, tuple(data.numbers.tolist()), fix, subject=name))
    return found


def _clipped(data: Recording) -> list[Finding]:
    found = []
    moving = data.speed > 0
    moving = np.append(moving, False) | np.insert(moving, 0, False)
    body = data.body
    # Grippers rest at their limits, and a component of a unit quaternion is often 1.
    rotations = [(list(r.state), list(r.action)) for r in body.rotations if not r.turn]
    grippers = np.flatnonzero(body.is_gripper).tolist()
    excluded_states = {body.measured_by[i] for i in grippers} | {i for state, _ in rotations for i in state}
    excluded_actions = {*grippers} | {i for _, action in rotations for i in action}
    for kind, values, names, excluded in (
        ("state", data.state, body.state, excluded_states),
        ("action", data.action, body.action, excluded_actions),
    ):
        for i in (i for i in range(len(names)) if i not in excluded):
            for value, mask in clipped_steps(values[:, i], moving):
                ranges_by_episode = data.by_episode(np.flatnonzero(mask))
                side = "largest" if value > np.median(values[:, i]) else "smallest"
                text = (
                    f"{kind} {names[i]} is exactly {value:.4g}, its {side} value, in "
                    f"{share(int(mask.sum()), int(moving.sum()))} of the steps in which the robot moves: it was clipped"
                )
                steps = {
                    number: tuple((s, e) for s, e in runs(_mask(ranges)).tolist())
                    for number, ranges in ranges_by_episode.items()
                }
                fix = Advice("record with wider limits, or keep it if this is the actual limit")
                found.append(Finding("clipped", text, tuple(ranges_by_episode), fix, "hint", names[i], steps))
    return found


def clipped_steps(
    values: Float[np.ndarray, "n"], moving: Bool[np.ndarray, "n"]
) -> list[tuple[float, Bool[np.ndarray, "n"]]]:
    """The extreme values of a component at which it is clipped, and the moving steps with each of them."""
    if len(np.unique(values[:: max(1, len(values) // 10_000)])) < DISTINCT:
        return []
    found = []
    for extreme in (values.min(), values.max()):
        mask = (values == extreme) & moving
        if mask.sum() > CLIPPED * moving.sum() and mask.sum() >= 3:
            found.append((float(extreme), mask))
    return found


def _mask(ranges: tuple[tuple[int, int], ...]) -> Bool[np.ndarray, "t"]:
    mask = np.zeros(ranges[-1][1], bool)
    for start, stop in ranges:
        mask[start:stop] = True
    return mask
