"""How the state follows the action: with which delay, and how far beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from vla.datasets.doctor.finding import AddToAction, Drop, Finding, ShiftActions
from vla.datasets.doctor.recording import Recording, unit
from vla.datasets.doctor.robust import center, centers, core_spread

LAG_SECONDS = (-0.3, 0.5)
"""Delays are looked for within these."""
DELAY_SECONDS = 0.15
"""A delay beyond the one step that an effect takes at least: servos and networks of good arms stay below it."""
ODD_SECONDS = 0.12
"""A delay that differs so much from that of the other episodes is reported."""
CLEARER = 2.0
"""How many times the error at the usual delay is that at an episode's own."""
EVIDENCE = 12.0
"""... and the logarithm of the likelihood ratio of the two: a short episode is soon better by accident."""
OFFSET = 0.08
"""An offset this large, as a share of what joints of its unit span, is reported: sagging under gravity is less."""
OFFSET_DEGREES = 8.0
"""The same where the unit is an angle's."""
DEGREES = {"rad": 180 / np.pi, "deg": 1.0, "degrees": 1.0, "°": 1.0}
CLEAR = 6.0
"""Robust standard deviations from the other episodes."""
PRECISION = 1e-4
"""A variance this small, in units of the squared span, counts as none."""
ENOUGH = 5
"""Steps that an episode must have for a delay or an offset to be seen in it."""


@dataclass(frozen=True)
class Pairs:
    """Action components and the state components that measure them. `effect` is the step at which an effect shows at
    the earliest: a target reached shows in the next state, a change in the change to it."""

    action: Int[np.ndarray, "p"]
    state: Int[np.ndarray, "p"]
    effect: int


def pairs_of(data: Recording, positions: bool, grippers: bool = False) -> Pairs:
    """Position actions, or deltas and velocities, whose measured state moves; rotations that are no angles are left
    out, and, unless asked for, `grippers`, which stop at what they hold."""
    body = data.body
    turned = {i for rotation in body.rotations if not rotation.turn for i in rotation.action}
    found = [
        (i, at)
        for i, at in enumerate(body.measured_by)
        if at is not None
        and i not in turned
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
    """A delay between action and effect, and a constant offset between position actions and the state."""
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
    """In short episodes fewer, so that enough steps are compared."""
    most = max(2, int(np.median(data.lengths)) // 3)
    first, last = (round(seconds * data.hz) for seconds in LAG_SECONDS)
    return np.arange(max(first, -most), min(last, most) + 1)


def lag_costs(data: Recording, pairs: Pairs, lags: Int[np.ndarray, "l"]) -> Float[np.ndarray, "e l"]:
    """The error with which the state follows the action at each lag [steps], in each episode: the geometric mean over
    the pairs of the variance of what is left of their difference, in units of the squared span; NaN where an episode
    is too short.

    Of position actions the difference is that of target and state, of deltas and velocities that of the action and the
    change of the state, each in its own units of a standard deviation in the store.
    """
    costs = np.full((len(data), len(lags)), np.nan)
    begin, end = max(0, -int(lags[0])), max(0, int(lags[-1]))
    for episode, (a, s) in enumerate(followed(data, pairs)):
        # The same steps of the action at every lag, so that the costs compare.
        stop = len(s) - end
        if stop - begin < ENOUGH:
            continue
        here = a[begin:stop]
        for at, lag in enumerate(lags.tolist()):
            costs[episode, at] = np.exp(_log_error(here - s[begin + lag : stop + lag]))
    return costs


def followed(data: Recording, pairs: Pairs) -> Iterator[tuple[Float[np.ndarray, "t p"], Float[np.ndarray, "u p"]]]:
    """Of each episode the actions, and what follows them, on one scale; u is t, or t - 1 where it is a change."""
    if pairs.effect:
        action = data.action[:, pairs.action] / data.state_scale[pairs.state]
        state = data.state[:, pairs.state] / data.state_scale[pairs.state]
    else:
        change = np.diff(data.state[:, pairs.state], axis=0, append=data.state[-1:, pairs.state])
        change[data.bounds[1:] - 1] = 0
        action = data.action[:, pairs.action]
        action, state = (values / np.maximum(values.std(axis=0), 1e-12) for values in (action, change))
    for part in data.slices():
        # Nothing says what the last step did.
        yield action[part], state[part] if pairs.effect else state[part][:-1]


def _log_error(apart: Float[np.ndarray, "t p"]) -> float:
    """The logarithm of the geometric mean over the pairs of how much the differences vary."""
    return float(np.mean(np.log(apart.var(axis=0) + PRECISION)))


def usual_lag(costs: Float[np.ndarray, "e l"], lags: Int[np.ndarray, "l"]) -> float | None:
    """The lag [steps] at which most episodes follow best, between steps by a parabola; None where none stands out."""
    known = costs[np.isfinite(costs).all(axis=1) & (costs.max(axis=1) > 0)]
    if len(known) == 0:
        return None
    curve = np.median(known / known.mean(axis=1, keepdims=True), axis=0)
    if curve.min() > 0.9 * np.median(curve):
        return None
    return float(lags[0]) + _vertex(curve)


def _vertex(curve: Float[np.ndarray, "l"]) -> float:
    at = int(curve.argmin())
    if not 0 < at < len(curve) - 1:
        return float(at)
    left, here, right = curve[at - 1 : at + 2].tolist()
    bend = left - 2 * here + right
    return at + (0.5 * (left - right) / bend if bend > 0 else 0.0)


def _delays(data: Recording, pairs: Pairs, lags: Int[np.ndarray, "l"], usual: float) -> list[Finding]:
    found = []
    beyond = (usual - pairs.effect) / data.hz
    numbers = data.numbers.tolist()
    if beyond > DELAY_SECONDS or usual < -0.5:
        words = (
            f"actions take effect {1000 * usual / data.hz:.0f} ms after they are recorded"
            if beyond > 0
            else f"the state moves {-1000 * usual / data.hz:.0f} ms before the action that is recorded with it"
        )
        # Step t is to hold the action whose effect shows as early as it can.
        shift = -(round(usual) - pairs.effect)
        values = {"delay_s": usual / data.hz}
        text = f"{words}, in all episodes"
        found.append(Finding("action-delay", text, tuple(numbers), ShiftActions(shift), values=values))
    own, odd = odd_delays(data, pairs, lags, round(usual))
    if len(odd):
        middle = float(np.median(own[odd] - round(usual))) / data.hz
        found.append(
            Finding(
                "action-delay",
                f"in {len(odd)} episodes the state follows the action {1000 * abs(middle):.0f} ms "
                f"{'later' if middle > 0 else 'earlier'} than in the others",
                tuple(numbers[i] for i in odd.tolist()),
                Drop(),
                values={"delay_s": middle + usual / data.hz, "others_s": usual / data.hz},
            )
        )
    return found


def odd_delays(
    data: Recording, pairs: Pairs, lags: Int[np.ndarray, "l"], usual: int
) -> tuple[Int[np.ndarray, "e"], Int[np.ndarray, "k"]]:
    """Each episode's own lag, and the episodes where it is at least `ODD_SECONDS` from the usual one, and so much
    better that it is no accident: `CLEARER` times, and beyond what the other episodes show.

    Each lag is compared with the usual one over all steps that both leave of the episode, so that short ones count.
    """
    own, gain, evidence = np.full(len(data), usual), np.zeros(len(data)), np.zeros(len(data))
    for episode, (a, s) in enumerate(followed(data, pairs)):
        for lag in lags.tolist():
            start, stop = max(0, -lag, -usual), min(len(a), len(s) - max(lag, usual))
            if lag == usual or stop - start < ENOUGH:
                continue
            at_usual, here = (_log_error(a[start:stop] - s[start + by : stop + by]) for by in (usual, lag))
            if at_usual - here > gain[episode]:
                own[episode], gain[episode] = lag, at_usual - here
                evidence[episode] = (stop - start) * len(pairs.action) / 2 * gain[episode]
    limit = max(np.log(CLEARER), center(gain) + CLEAR * core_spread(gain))
    far = np.abs(own - usual) >= int(np.ceil(ODD_SECONDS * data.hz))
    return own, np.flatnonzero(far & (gain > limit) & (evidence > EVIDENCE))


def offsets_of(data: Recording, pairs: Pairs, lag: int) -> Float[np.ndarray, "e p 3"]:
    """Action less the state `lag` steps later, in each episode: its 10 %, 50 % and 90 % quantiles; NaN where an
    episode is too short."""
    offsets = np.full((len(data), len(pairs.action), 3), np.nan)
    back, on = max(-lag, 0), max(lag, 0)
    for episode, part in enumerate(data.slices()):
        a, s = data.action[part][:, pairs.action], data.state[part][:, pairs.state]
        apart = a[back : len(a) - on] - s[on : len(s) - back]
        if len(apart) >= ENOUGH:
            offsets[episode] = np.quantile(apart, [0.1, 0.5, 0.9], axis=0).T
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
            apart = values[odd, 1] - center(values[:, 1])
            found.append(_offset(data, data.body.action[i], float(np.median(apart)), known[odd], usual))
    return found


def _offset(data: Recording, name: str, amount: float, episodes: Int[np.ndarray, "k"], others: float | None) -> Finding:
    side = "above" if amount > 0 else "below"
    size = f"{abs(amount):.3g} {unit(name)}".strip()
    if unit(name) == "rad":
        size = f"{size} ({abs(amount) * DEGREES['rad']:.0f}°)"
    if others is None:
        text = (
            f"action {name} lies {size} {side} the state that it leads to, in {len(episodes)} episodes: leader and "
            "follower are calibrated differently, or the joint sags"
        )
    else:
        text = f"in {len(episodes)} episodes action {name} lies {size} {side} where it lies in the others"
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
    """The offset of most episodes from their quantiles, and whether it is one: all of the quantiles lie on one side of
    zero, farther than `floor`, and farther than the error of following spreads within an episode."""
    least = center(nearest_to_zero(values))
    noise = float(np.median(values[:, 2] - values[:, 0])) / 2
    # Where much varies within an episode, as at a gripper that holds things, the least of it is the calibration's.
    return center(values[:, 1]) if noise < floor / 2 else least, abs(least) > max(floor, noise)


def nearest_to_zero(values: Float[np.ndarray, "e 3"]) -> Float[np.ndarray, "e"]:
    """The quantile of each episode that is nearest to zero; 0 where they lie on both sides of it."""
    nearest = np.abs(values).min(axis=1) * np.sign(values[:, 1])
    return np.where((np.sign(values) == np.sign(values[:, 1:2])).all(axis=1), nearest, 0.0)


def shifts_of(values: Float[np.ndarray, "e 3"]) -> Float[np.ndarray, "e"]:
    """How far all that an episode shows is shifted against the others: what touches the arm for a while, or what a
    gripper holds, moves a part of the quantiles, a wrong calibration all."""
    return nearest_to_zero(values - centers(values))


def odd_offsets(values: Float[np.ndarray, "e 3"], floor: float, gripper: bool) -> Int[np.ndarray, "k"]:
    """The episodes that lie beside the others, by their quantiles, by more than `floor` and than chance."""
    shift = shifts_of(values)
    if gripper:
        # What it holds, and for how long, moves single quantiles far from episode to episode, and seldom all of them.
        return np.flatnonzero(np.abs(shift) > max(floor, CLEAR * core_spread(shift)))
    limit = max(floor, CLEAR * max(core_spread(column) for column in values.T))
    # Where most are off, those that are not are none the worse.
    return np.flatnonzero((np.abs(shift) > limit) & (np.abs(values[:, 1]) > floor))


def offset_floors(data: Recording, pairs: Pairs) -> Float[np.ndarray, "p"]:
    """The smallest offset of each pair that matters, in its unit."""
    units = [unit(data.body.action[i]) for i in pairs.action.tolist()]
    scales = data.state_scale[pairs.state]
    typical = {each: np.median([s for s, u in zip(scales, units, strict=True) if u == each]) for each in units}
    return np.array([OFFSET_DEGREES / DEGREES[u] if u in DEGREES else OFFSET * typical[u] for u in units])
