"""Tracking of the action by the state: delays and constant offsets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from vla.common.plural import counted
from vla.datasets.doctor.finding import AddToAction, Drop, Finding, ShiftActions
from vla.datasets.doctor.recording import Recording, unit
from vla.datasets.doctor.robust import center, centers, core_spread

LAG_SECONDS = (-0.3, 0.5)
"""Range of the searched delays."""
DELAY_SECONDS = 0.15
"""Minimum reported delay, in addition to the earliest possible effect: servos and networks of good arms are faster."""
ODD_SECONDS = 0.12
"""Minimum reported difference from the delay of the other episodes."""
CLEARER = 2.0
"""Minimum ratio of the error at the usual delay to that at the episode's own delay."""
EVIDENCE = 12.0
"""Minimum log-likelihood ratio of the two delays: for a short episode the ratio of errors may be random."""
OFFSET = 0.08
"""Minimum reported offset, as a share of the range of joints with the same unit: sagging under gravity is less."""
OFFSET_DEGREES = 8.0
"""Minimum reported offset of angles [degrees]."""
DEGREES = {"rad": 180 / np.pi, "deg": 1.0, "degrees": 1.0, "°": 1.0}
CLEAR = 6.0
"""Minimum distance from the other episodes, in robust standard deviations."""
PRECISION = 1e-4
"""Smallest variance that is distinguished from 0, in units of the squared range."""
ENOUGH = 5
"""Minimum number of steps for measuring a delay or an offset in an episode."""


@dataclass(frozen=True)
class Pairs:
    """Action components and the state components that measure them.

    `effect` is the earliest lag of an effect [steps]: 1 for position actions, which show in the next state; 0 for
    changes, which are compared with the change to the next state.
    """

    action: Int[np.ndarray, "p"]
    state: Int[np.ndarray, "p"]
    effect: int


def pairs_of(data: Recording, positions: bool, grippers: bool = False) -> Pairs:
    """The moving pairs of position actions, or of deltas and velocities.

    Rotations other than angles are excluded, and by default grippers, which stop at the objects that they hold.
    """
    body = data.body
    rotated = {i for rotation in body.rotations if not rotation.turn for i in rotation.action}
    found = [
        (i, at)
        for i, at in enumerate(body.measured_by)
        if at is not None
        and i not in rotated
        and (grippers or not body.is_gripper[i])
        and body.is_position_action[i] == positions
        and body.action_mode[i] != "force"
        and not (positions and unit(body.action[i]) != unit(body.state[at]))
        and data.state_scale[at] > 0
        and data.action_scale[i] > 0
    ]
    action, state = (np.array([pair[k] for pair in found], int) for k in (0, 1))
    return Pairs(action, state, 1 if positions else 0)


def check_tracking(data: Recording) -> list[Finding]:
    """Finds delays between action and effect, and constant offsets between position actions and states."""
    found = []
    for positions in (True, False):
        pairs = pairs_of(data, positions)
        if len(pairs.action) == 0:
            continue
        lags = lags_of(data)
        costs = lag_costs(data, pairs, lags)
        usual = usual_lag(costs, lags)
        if usual is None:
            continue
        found += _delays(data, pairs, lags, usual)
        if positions:
            found += _offsets(data, pairs_of(data, positions, grippers=True), round(usual))
    return found


def lags_of(data: Recording) -> Int[np.ndarray, "l"]:
    """The searched lags [steps]; fewer for short episodes, so that enough steps are compared."""
    most = max(2, int(np.median(data.lengths)) // 3)
    first, last = (round(seconds * data.hz) for seconds in LAG_SECONDS)
    return np.arange(max(first, -most), min(last, most) + 1)


def lag_costs(data: Recording, pairs: Pairs, lags: Int[np.ndarray, "l"]) -> Float[np.ndarray, "e l"]:
    """The tracking error at each lag [steps] in each episode; NaN if an episode is too short.

    The error is the geometric mean over the pairs of the variance of their difference, in units of the squared range.
    For position actions it is the difference between target and state; for deltas and velocities that between the
    action and the change of the state, both in units of their standard deviation in the store.
    """
    costs = np.full((len(data), len(lags)), np.nan)
    begin, end = max(0, -int(lags[0])), max(0, int(lags[-1]))
    for episode, (a, s) in enumerate(followed(data, pairs)):
        # The same steps of the action at every lag, so that the costs are comparable.
        stop = len(s) - end
        if stop - begin < ENOUGH:
            continue
        compared = a[begin:stop]
        for i, lag in enumerate(lags.tolist()):
            costs[episode, i] = np.exp(_log_error(compared - s[begin + lag : stop + lag]))
    return costs


def followed(data: Recording, pairs: Pairs) -> Iterator[tuple[Float[np.ndarray, "t p"], Float[np.ndarray, "u p"]]]:
    """The scaled actions and states of each episode (u = t).

    For deltas and velocities the states are replaced by their changes (u = t - 1).
    """
    if pairs.effect:
        action = data.action[:, pairs.action] / data.state_scale[pairs.state]
        state = data.state[:, pairs.state] / data.state_scale[pairs.state]
    else:
        change = np.diff(data.state[:, pairs.state], axis=0, append=data.state[-1:, pairs.state])
        change[data.bounds[1:] - 1] = 0
        action = data.action[:, pairs.action]
        action, state = (values / np.maximum(values.std(axis=0), 1e-12) for values in (action, change))
    for rows in data.slices():
        # The effect of the last step is unknown.
        yield action[rows], state[rows] if pairs.effect else state[rows][:-1]


def _log_error(differences: Float[np.ndarray, "t p"]) -> float:
    """The logarithm of the geometric mean over the pairs of the variance of the differences."""
    return float(np.mean(np.log(differences.var(axis=0) + PRECISION)))


def usual_lag(costs: Float[np.ndarray, "e l"], lags: Int[np.ndarray, "l"]) -> float | None:
    """The best lag of most episodes [steps], interpolated by a parabola; None if no lag is clearly best."""
    known = costs[np.isfinite(costs).all(axis=1) & (costs.max(axis=1) > 0)]
    if len(known) == 0:
        return None
    curve = np.median(known / known.mean(axis=1, keepdims=True), axis=0)
    if curve.min() > 0.9 * np.median(curve):
        return None
    return float(lags[0]) + _vertex(curve)


def _vertex(curve: Float[np.ndarray, "l"]) -> float:
    """The interpolated index of the minimum."""
    index = int(curve.argmin())
    if not 0 < index < len(curve) - 1:
        return float(index)
    left, lowest, right = curve[index - 1 : index + 2].tolist()
    curvature = left - 2 * lowest + right
    return index + (0.5 * (left - right) / curvature if curvature > 0 else 0.0)


def _delays(data: Recording, pairs: Pairs, lags: Int[np.ndarray, "l"], usual: float) -> list[Finding]:
    found = []
    excess = (usual - pairs.effect) / data.hz
    numbers = data.numbers.tolist()
    if excess > DELAY_SECONDS or usual < -0.5:
        description = (
            f"actions take effect {1000 * usual / data.hz:.0f} ms after they are recorded"
            if excess > 0
            else f"the state moves {-1000 * usual / data.hz:.0f} ms before the action that is recorded with it"
        )
        # Afterwards the action of step t has its effect at the earliest possible step.
        shift = -(round(usual) - pairs.effect)
        values = {"delay_s": usual / data.hz}
        text = f"{description}, in all episodes"
        found.append(Finding("action-delay", text, tuple(numbers), ShiftActions(shift), values=values))
    best, odd = odd_delays(data, pairs, lags, round(usual))
    if len(odd):
        median = float(np.median(best[odd] - round(usual))) / data.hz
        found.append(
            Finding(
                "action-delay",
                f"in {counted(len(odd), 'episode')} the state follows the action {1000 * abs(median):.0f} ms "
                f"{'later' if median > 0 else 'earlier'} than in the others",
                tuple(numbers[i] for i in odd.tolist()),
                Drop(),
                values={"delay_s": median + usual / data.hz, "others_s": usual / data.hz},
            )
        )
    return found


def odd_delays(
    data: Recording, pairs: Pairs, lags: Int[np.ndarray, "l"], usual: int
) -> tuple[Int[np.ndarray, "e"], Int[np.ndarray, "k"]]:
    """The best lag of each episode, and the indices of the episodes in which it significantly differs from the usual.

    The difference must be at least `ODD_SECONDS`, and the improvement a factor of `CLEARER` and an outlier among the
    episodes. Each lag is compared with the usual one over all steps that both leave, so that short episodes can be
    compared too.
    """
    best, gain, evidence = np.full(len(data), usual), np.zeros(len(data)), np.zeros(len(data))
    for episode, (a, s) in enumerate(followed(data, pairs)):
        for lag in lags.tolist():
            start, stop = max(0, -lag, -usual), min(len(a), len(s) - max(lag, usual))
            if lag == usual or stop - start < ENOUGH:
                continue
            usual_error, error = (_log_error(a[start:stop] - s[start + by : stop + by]) for by in (usual, lag))
            if usual_error - error > gain[episode]:
                best[episode], gain[episode] = lag, usual_error - error
                evidence[episode] = (stop - start) * len(pairs.action) / 2 * gain[episode]
    limit = max(np.log(CLEARER), center(gain) + CLEAR * core_spread(gain))
    far = np.abs(best - usual) >= int(np.ceil(ODD_SECONDS * data.hz))
    return best, np.flatnonzero(far & (gain > limit) & (evidence > EVIDENCE))


def offsets_of(data: Recording, pairs: Pairs, lag: int) -> Float[np.ndarray, "e p 3"]:
    """The 10 %, 50 % and 90 % quantiles of the action minus the state `lag` steps later, in each episode.

    They are NaN if an episode is too short.
    """
    offsets = np.full((len(data), len(pairs.action), 3), np.nan)
    backward, forward = max(-lag, 0), max(lag, 0)
    for episode, rows in enumerate(data.slices()):
        a, s = data.action[rows][:, pairs.action], data.state[rows][:, pairs.state]
        differences = a[backward : len(a) - forward] - s[forward : len(s) - backward]
        if len(differences) >= ENOUGH:
            offsets[episode] = np.quantile(differences, [0.1, 0.5, 0.9], axis=0).T
    return offsets


def _offsets(data: Recording, pairs: Pairs, lag: int) -> list[Finding]:
    offsets = offsets_of(data, pairs, lag)
    known = np.flatnonzero(np.isfinite(offsets).all(axis=(1, 2)))
    if len(known) == 0:
        return []
    found = []
    floors = offset_floors(data, pairs)
    for p, (i, floor) in enumerate(zip(pairs.action.tolist(), floors.tolist(), strict=True)):
        values = offsets[known, p]
        usual, level = usual_offset(values, floor)
        if level:
            same = np.abs(nearest_to_zero(values) - usual) <= max(floor, abs(usual) / 2)
            found.append(_offset(data, data.body.action[i], usual, known[same], None))
        odd = odd_offsets(values, float(floor), bool(data.body.is_gripper[i]))
        if len(odd):
            difference = values[odd, 1] - center(values[:, 1])
            found.append(_offset(data, data.body.action[i], float(np.median(difference)), known[odd], usual))
    return found


def _offset(data: Recording, name: str, amount: float, episodes: Int[np.ndarray, "k"], others: float | None) -> Finding:
    side = "above" if amount > 0 else "below"
    size = f"{abs(amount):.3g} {unit(name)}".strip()
    if unit(name) == "rad":
        size = f"{size} ({abs(amount) * DEGREES['rad']:.0f}°)"
    if others is None:
        text = (
            f"action {name} is {size} {side} the state that it leads to, in {counted(len(episodes), 'episode')}: "
            "leader and follower are calibrated differently, or the joint sags"
        )
    else:
        text = f"in {counted(len(episodes), 'episode')} action {name} is {size} {side} its value in the others"
    few = others is not None and len(episodes) * 2 < len(data)
    return Finding(
        "offset",
        text,
        tuple(data.numbers[episodes].tolist()),
        Drop() if few else AddToAction(name, -amount),
        subject=name,
        values={"offset": amount} | ({} if others is None else {"others": others}),
    )


def usual_offset(values: Float[np.ndarray, "e 3"], floor: float) -> tuple[float, bool]:
    """The usual offset of the episodes, and whether it is significant.

    It is significant if all quantiles of an episode have the same sign, and its magnitude exceeds `floor` and the
    spread of the tracking error within an episode.
    """
    least = center(nearest_to_zero(values))
    noise = float(np.median(values[:, 2] - values[:, 0])) / 2
    # If the error varies within an episode, as for a gripper that holds objects, the smallest is the calibration's.
    return center(values[:, 1]) if noise < floor / 2 else least, abs(least) > max(floor, noise)


def nearest_to_zero(values: Float[np.ndarray, "e 3"]) -> Float[np.ndarray, "e"]:
    """The quantile of each episode that is closest to zero; 0 if the quantiles have different signs."""
    nearest = np.abs(values).min(axis=1) * np.sign(values[:, 1])
    return np.where((np.sign(values) == np.sign(values[:, 1:2])).all(axis=1), nearest, 0.0)


def shifts_of(values: Float[np.ndarray, "e 3"]) -> Float[np.ndarray, "e"]:
    """The common shift of all quantiles of each episode, relative to the other episodes.

    A wrong calibration shifts all quantiles; contact of the arm, or an object in the gripper, only some of them.
    """
    return nearest_to_zero(values - centers(values))


def odd_offsets(values: Float[np.ndarray, "e 3"], floor: float, gripper: bool) -> Int[np.ndarray, "k"]:
    """The episodes whose quantiles are shifted by more than `floor` and significantly."""
    shift = shifts_of(values)
    if gripper:
        # Held objects shift single quantiles far, and rarely all of them.
        return np.flatnonzero(np.abs(shift) > max(floor, CLEAR * core_spread(shift)))
    limit = max(floor, CLEAR * max(core_spread(column) for column in values.T))
    # If most episodes have an offset, those without are not reported.
    return np.flatnonzero((np.abs(shift) > limit) & (np.abs(values[:, 1]) > floor))


def offset_floors(data: Recording, pairs: Pairs) -> Float[np.ndarray, "p"]:
    """The minimum reported offset of each pair, in its unit."""
    units = [unit(data.body.action[i]) for i in pairs.action.tolist()]
    scales = data.state_scale[pairs.state]
    typical = {name: np.median([s for s, u in zip(scales, units, strict=True) if u == name]) for name in units}
    return np.array([OFFSET_DEGREES / DEGREES[u] if u in DEGREES else OFFSET * typical[u] for u in units])
