"""Infers the mode of one action component from its values: an absolute target, a delta, a velocity, or unclear.

With a the action at a step, s a state component, s' the state one step later and d = s' - s, over all steps:

- **tracks**: 1 - var(a - s) / var(a) at the best of the lags 0, 1, 2: the state follows the action.
- **moves**: 1 - mean((a - d)^2) / mean(a^2), for velocities with d times the rate: the action is the state's motion.
  It takes precedence, since a velocity may also track a state component that is a velocity.
- the correlations of a with s and with d, for other units (a scaled delta, a gripper in percent).
- the magnitude of a relative to s, if nothing correlates.

Correlations must exceed 4 / sqrt(steps), the 4-sigma bound of independent numbers. The required explained share is
higher for few steps and for state components of another name and index, since one of many smooth paths may fit by
chance. Below `FEW` steps only the likeliest state component is compared. If the result is unclear, it is repeated
without outliers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

TURNS = (2 * np.pi, 360.0)
EXPLAINED = 0.5
"""Minimum share of the variance that must be explained."""
SLOPE = 1.4
"""Maximum factor between the units of action and state."""
CORRELATED, NEARLY = 0.3, 0.9
SMALL = 0.2
"""Maximum magnitude, relative to the state's, of a delta that correlates with nothing."""
UNLIKELY = 0.8
"""Minimum explained share for a state component with neither the action's name nor its index."""
WILD = 10.0
"""Minimum distance of an outlier from the median, in distances between the 5 % and 95 % quantiles."""
FEW = 30
"""Steps below which only one state component is compared."""
STILL = 1e-6
"""Mean 1 - |cos(angle / 2)| of quaternions below which there is no rotation."""
EQUAL = 1e-3
"""Relative distance below which two constants are equal."""


@dataclass(frozen=True)
class Finding:
    """A mode (None: unclear), the index of the state component that measures it, and the reason.

    `is_weak`: the mode follows only from the magnitude of the values.
    """

    mode: str | None
    state: int | None
    reason: str
    is_weak: bool = False


@dataclass(frozen=True)
class Steps:
    """The actions and states of all steps that are followed by another one."""

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
        """The steps of episodes, as (state, action) arrays, at a rate of `hz` [Hz]."""
        actions, states, one, two = [], [], [], []
        for state, action in episodes:
            last = len(action) - 1
            at = np.arange(max(last, 1))  # the only step if the episode has one
            actions.append(action[at])
            states.append(state[at])
            one.append(state[np.minimum(at + 1, last)])
            two.append(state[np.minimum(at + 2, last)])
        later = [np.concatenate(one), np.concatenate(two)]
        return cls(np.concatenate(actions), np.concatenate(states), later, hz)


def examine_quaternion(steps: Steps, at: Sequence[int]) -> list[Finding] | None:
    """The findings for four action components that are a unit quaternion of either sign; None if they are not."""
    q = steps.action[:, list(at)]
    if np.abs(np.linalg.norm(q, axis=1) - 1).max() > 1e-3 or len(q) < FEW:
        return None
    for start in range(steps.state.shape[1] - 3):
        measured = [states[:, start : start + 4] for states in (steps.state, *steps.later)]
        if np.abs(np.linalg.norm(measured[0], axis=1) - 1).max() > 1e-3:
            continue
        # 1 - |q s| grows with the square of the angle between q and s, like a variance.
        spread = 1 - np.abs(q @ q[0]).mean()
        if spread < STILL:
            return None
        nearest = min(1 - np.abs((q * s).sum(1)).mean() for s in measured)
        if nearest <= (1 - EXPLAINED) * spread:
            reason = "tracks the rotation of the state"
            return [Finding("absolute", start + k, reason) for k in range(4)]
    return None


def examine(steps: Steps, i: int, candidates: Sequence[int], likely: int = 1) -> Finding:
    """The mode of action component `i`.

    `candidates` are the state components that may measure it. The first `likely` of them share its name or index.
    """
    finding = _examine(steps, i, candidates, likely)
    if finding.mode is not None or not (outliers := _outliers(steps.action[:, i])).any():
        return finding
    finding = _examine(steps.at(np.flatnonzero(~outliers)), i, candidates, likely)
    return replace(finding, reason=f"{finding.reason} except for {int(outliers.sum())} outliers")


def _outliers(a: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
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
        return Finding(mode, mover, f"is the motion of the state, {moves:.0%} explained")
    if tracked:
        # If it tracks several about equally well, the likeliest one: two arms may move alike.
        at = next(j for j, share in tracked if share >= tracks - 0.02)
        offset = float(np.mean(a - steps.state[:, at]))
        apart = f", offset {offset:+.3g}" if abs(offset) > 0.05 * float(np.ptp(a)) else ""
        return Finding("absolute", at, f"tracks the state, {tracks:.0%} explained{apart}")
    return _correlated(steps, a, candidates) or _by_size(steps, a, candidates)


def _tracking(steps: Steps, a: Float[np.ndarray, "n"], j: int) -> float:
    """The explained share at the best lag. If the values may be wrapped angles, also with wrapped differences."""
    differences = [a - s for s in (steps.state[:, j], *(later[:, j] for later in steps.later))]
    for turn in TURNS:
        if 0.8 * turn <= np.ptp(a) <= 1.001 * turn:
            differences += [d - turn * np.round(d / turn) for d in differences]
    return float(max(1 - np.var(d) / np.var(a) for d in differences))


def _moving(steps: Steps, a: Float[np.ndarray, "n"], j: int, mode: str) -> float:
    """The explained share at the best lag with a slope near 1, so that actions in other units do not fit by chance."""
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
    """The finding if the action correlates with the state or its motion, but in another unit."""
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
        return Finding("absolute", None, f"tracks the state in another unit, correlation {position:.2f}")
    if motion >= floor and motion > position:
        return Finding("delta", None, f"is the motion of the state in another unit, correlation {motion:.2f}")
    return None


def _correlation(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]) -> float:
    spread = float(np.std(a) * np.std(b))
    return float(np.mean((a - a.mean()) * (b - b.mean())) / spread) if spread > 1e-12 else 0.0


def _by_size(steps: Steps, a: Float[np.ndarray, "n"], candidates: Sequence[int]) -> Finding:
    if len(np.unique(a)) == 2:
        return Finding("absolute", None, "is a switch with two values")
    if not candidates:
        return Finding(None, None, "resembles no state component")
    s = steps.state[:, candidates[0]]
    share = float(np.sqrt(np.mean(a**2)) / max(np.sqrt(np.mean(s**2)), 1e-12))
    spread = float(np.std(a) / max(np.std(s), 1e-12))
    low, high = np.quantile(a, [0.05, 0.95])
    outside = high < s.min() or low > s.max()
    if share <= SMALL and (outside or spread <= SMALL):
        where = "is outside the range of the state, " if outside else ""
        return Finding("delta", None, f"{where}has {share:.2g} of the state's magnitude", is_weak=True)
    return Finding(None, None, f"follows neither the state nor its motion, {share:.2g} of the state's magnitude")


def _constant(steps: Steps, value: float, candidates: Sequence[int]) -> Finding:
    for j in candidates[:1]:
        s = steps.state[:, j]
        if np.abs(s - value).max() <= EQUAL * max(abs(value), float(np.abs(s).max()), 1e-9):
            return Finding("absolute" if value else None, j, "never moves, nor does the state", is_weak=True)
        for mode, scale in (("delta", 1.0), ("velocity", steps.hz)):
            if value and np.abs(scale * np.median(_changes(steps, j)[0]) - value) <= SMALL * abs(value):
                return Finding(mode, j, f"is the motion of the state, {value:.3g} at every step")
    return Finding(None, None, f"is {value:.3g} at every step")
