"""What the numbers say of one action component: an absolute target, a delta, a velocity, or nothing for certain.

With a the action at a step, s a state component, s' the state a step later and d = s' - s, over all steps:

- **tracks**: 1 - var(a - s) / var(a) at the best of the lags 0, 1, 2: the action is where the state then is.
- **moves**: 1 - mean((a - d)^2) / mean(a^2), and with d times the rate for velocities: the action is how it then moves.
  A target does not move like that, whereas a velocity may also track a state that is one: so this goes first.
- the correlations of a with s and with d, where the slope is another (a scaled delta, a gripper told in percent).
- the size of a beside the spread of s, where nothing correlates.

Correlations count from 4 / sqrt(steps) on, the 4-sigma bound of independent numbers. Few steps must be explained
better, and so must be what a state component of another name and place explains: among many smooth paths one fits by
chance. Below `FEW` steps only the likeliest is looked at. Where all of them tell nothing, wild values are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

TURNS = (2 * np.pi, 360.0)
EXPLAINED = 0.5
"""The share of a variance from which on one number explains the other."""
SLOPE = 1.4
"""How many times off a unit may be that is still the state's."""
CORRELATED, NEARLY = 0.3, 0.9
SMALL = 0.2
"""The size of an action relative to the state's, at most, of a delta that correlates with nothing."""
UNLIKELY = 0.8
"""That share for a state component that has neither the action's name nor its place."""
WILD = 10.0
"""How many times the distance between the 5 % and 95 % quantiles a value lies from the median that is no motion."""
FEW = 30
"""Steps."""
STILL = 1e-6
"""Of quaternions, 1 - |cos(angle / 2)|, in the mean, below which nothing turns."""
EQUAL = 1e-3
"""Relative to their size, a distance within which two constants are one."""


@dataclass(frozen=True)
class Finding:
    """A mode (None: unclear), the position of the state component that measures it, and why.

    `is_weak`: it follows from the size of the numbers alone."""

    mode: str | None
    state: int | None
    reason: str
    is_weak: bool = False


@dataclass(frozen=True)
class Steps:
    """Steps of all episodes that have one after them: actions, and states from each step on, one column a lag."""

    action: Float[np.ndarray, "n a"]
    state: Float[np.ndarray, "n s"]
    later: Sequence[Float[np.ndarray, "n s"]]
    """The state 1 and 2 steps later."""
    hz: float

    def at(self, rows: Int[np.ndarray, "m"]) -> Steps:
        """Some of the steps."""
        return Steps(self.action[rows], self.state[rows], [later[rows] for later in self.later], self.hz)

    @classmethod
    def of(cls, episodes: Sequence[tuple[Float[np.ndarray, "_t s"], Float[np.ndarray, "_t a"]]], hz: float) -> Steps:
        actions, states, one, two = [], [], [], []
        for state, action in episodes:
            last = len(action) - 1
            at = np.arange(max(last, 1))  # of an episode of one step, that
            actions.append(action[at])
            states.append(state[at])
            one.append(state[np.minimum(at + 1, last)])
            two.append(state[np.minimum(at + 2, last)])
        later = [np.concatenate(one), np.concatenate(two)]
        return cls(np.concatenate(actions), np.concatenate(states), later, hz)


def examine_quaternion(steps: Steps, at: Sequence[int]) -> list[Finding] | None:
    """Four action components that are a unit quaternion, of either sign; None where they are not or nothing is sure."""
    q = steps.action[:, list(at)]
    if np.abs(np.linalg.norm(q, axis=1) - 1).max() > 1e-3 or len(q) < FEW:
        return None
    for start in range(steps.state.shape[1] - 3):
        measured = [part[:, start : start + 4] for part in (steps.state, *steps.later)]
        if np.abs(np.linalg.norm(measured[0], axis=1) - 1).max() > 1e-3:
            continue
        # 1 - |q s| grows with the square of the angle between; that of the data around their mean is what it explains.
        spread = 1 - np.abs(q @ q[0]).mean()
        if spread < STILL:
            return None
        nearest = min(1 - np.abs((q * s).sum(1)).mean() for s in measured)
        if nearest <= (1 - EXPLAINED) * spread:
            reason = "is the rotation that the state then is"
            return [Finding("absolute", start + k, reason) for k in range(4)]
    return None


def examine(steps: Steps, i: int, candidates: Sequence[int], likely: int = 1) -> Finding:
    """What action component `i` is.

    `candidates` are the state components that may measure it, of which the first `likely` have its name or place.
    """
    found = _examine(steps, i, candidates, likely)
    if found.mode is not None or not (wild := _wild(steps.action[:, i])).any():
        return found
    tame = steps.at(np.flatnonzero(~wild))
    found = _examine(tame, i, candidates, likely)
    return replace(found, reason=f"{found.reason} but for {int(wild.sum())} wild values")


def _wild(a: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    low, middle, high = np.quantile(a, [0.05, 0.5, 0.95])
    return np.abs(a - middle) > WILD * (high - low) if high > low else np.zeros(len(a), bool)


def _examine(steps: Steps, i: int, candidates: Sequence[int], likely: int) -> Finding:
    a = steps.action[:, i]
    if np.ptp(a) <= 1e-9 * max(1.0, float(np.abs(a).max())):
        return _constant(steps, float(a[0]), candidates)
    candidates = candidates if len(a) >= FEW else candidates[:1]
    explained = EXPLAINED + (1 - EXPLAINED) * 0.8 * float(np.exp(-len(a) / 8))
    needed = {j: explained if n < likely else max(explained, UNLIKELY) for n, j in enumerate(candidates)}
    tracked = [(j, share) for j in candidates if (share := _tracking(steps, a, j)) >= needed[j]]
    moved = [
        (j, mode, share)
        for j in candidates
        for mode in ("delta", "velocity")
        if (share := _moving(steps, a, j, mode)) >= needed[j]
    ]
    at, tracks = max(tracked, key=lambda pair: pair[1], default=(None, -np.inf))
    mover, mode, moves = max(moved, key=lambda triple: triple[2], default=(None, "delta", -np.inf))
    if moved:
        return Finding(mode, mover, f"is how the state moves, {moves:.0%} explained")
    if tracked:
        # Of several that it tracks about as well, the likeliest: two arms may move alike.
        at = next(j for j, share in tracked if share >= tracks - 0.02)
        offset = float(np.mean(a - steps.state[:, at]))
        apart = f", {offset:+.3g} off" if abs(offset) > 0.05 * float(np.ptp(a)) else ""
        return Finding("absolute", at, f"is where the state then is, {tracks:.0%} explained{apart}")
    return _correlated(steps, a, candidates) or _by_size(steps, a, candidates)


def _tracking(steps: Steps, a: Float[np.ndarray, "n"], j: int) -> float:
    """Of angles that may wrap, also the shorter way round."""
    apart = [a - s for s in (steps.state[:, j], *(later[:, j] for later in steps.later))]
    for turn in TURNS:
        if 0.8 * turn <= np.ptp(a) <= 1.001 * turn:
            apart += [d - turn * np.round(d / turn) for d in apart]
    return float(max(1 - np.var(d) / np.var(a) for d in apart))


def _moving(steps: Steps, a: Float[np.ndarray, "n"], j: int, mode: str) -> float:
    """Only where the slope is near 1: actions in a unit of their own are no velocities by chance."""
    scale, best = steps.hz if mode == "velocity" else 1.0, -np.inf
    for change in _changes(steps, j):
        d = scale * change
        slope = float(a @ d) / max(float(d @ d), 1e-12)
        if 1 / SLOPE <= slope <= SLOPE:
            best = max(best, float(1 - np.mean((a - d) ** 2) / np.mean(a**2)))
    return best


def _changes(steps: Steps, j: int) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    one, two = (later[:, j] for later in steps.later)
    return one - steps.state[:, j], two - one


def _correlated(steps: Steps, a: Float[np.ndarray, "n"], candidates: Sequence[int]) -> Finding | None:
    """Where the action explains the state or its motion, but in another unit."""
    floor = max(CORRELATED, 4 / np.sqrt(len(a)))
    motion = max((max(_correlation(a, d) for d in _changes(steps, j)) for j in candidates), default=0.0)
    position = max(
        (
            max(abs(_correlation(a, s)) for s in (steps.state[:, j], *(later[:, j] for later in steps.later)))
            for j in candidates
        ),
        default=0.0,
    )
    if position >= max(NEARLY, floor) and position > motion + 0.1:
        return Finding("absolute", None, f"goes with the state in another unit, correlation {position:.2f}")
    if motion >= floor and motion > position:
        return Finding("delta", None, f"goes with the state's motion in a unit of its own, correlation {motion:.2f}")
    return None


def _correlation(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]) -> float:
    spread = float(np.std(a) * np.std(b))
    return float(np.mean((a - a.mean()) * (b - b.mean())) / spread) if spread > 1e-12 else 0.0


def _by_size(steps: Steps, a: Float[np.ndarray, "n"], candidates: Sequence[int]) -> Finding:
    if len(np.unique(a)) == 2:
        return Finding("absolute", None, "is a switch of two values")
    if not candidates:
        return Finding(None, None, "no state component is like it")
    s = steps.state[:, candidates[0]]
    share = float(np.sqrt(np.mean(a**2)) / max(np.sqrt(np.mean(s**2)), 1e-12))
    spread = float(np.std(a) / max(np.std(s), 1e-12))
    low, high = np.quantile(a, [0.05, 0.95])
    outside = high < s.min() or low > s.max()
    if share <= SMALL and (outside or spread <= SMALL):
        where = "never where the state is, " if outside else ""
        return Finding("delta", None, f"is {where}{share:.2g} of its size", is_weak=True)
    return Finding(None, None, f"follows neither the state nor its motion, {share:.2g} of its size")


def _constant(steps: Steps, value: float, candidates: Sequence[int]) -> Finding:
    for j in candidates[:1]:
        s = steps.state[:, j]
        if np.abs(s - value).max() <= EQUAL * max(abs(value), float(np.abs(s).max()), 1e-9):
            return Finding("absolute" if value else None, j, "never moves, nor does the state", is_weak=True)
        for mode, scale in (("delta", 1.0), ("velocity", steps.hz)):
            if value and np.abs(scale * np.median(_changes(steps, j)[0]) - value) <= SMALL * abs(value):
                return Finding(mode, j, f"is how the state moves, {value:.3g} at every step")
    return Finding(None, None, f"is {value:.3g} at every step")
