"""Statistics of success rates: confidence intervals, sequential tests, and paired comparisons of two policies."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval (Wilson 1927) of a binomial proportion; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low, high = (centre - spread) / scale, (centre + spread) / scale
    # At the ends, rounding may exclude the rate itself.
    return max(0.0, min(low, rate)), min(1.0, max(high, rate))


def always_valid(successes: int, trials: int, alpha: float = 0.05) -> tuple[float, float]:
    """A confidence sequence: with probability 1 - alpha it contains the rate after every number of trials.

    The interval therefore stays valid if it is checked after each trial. It consists of the rates p that a betting test
    does not reject: the wealth of the Beta(1/2, 1/2) mixture of fixed bets is M(p) = B(s + 1/2, n - s + 1/2) /
    (B(1/2, 1/2) p^s (1 - p)^(n - s)), a martingale that starts at 1 if p is the true rate, and by Ville's inequality it
    ever reaches 1 / alpha with probability at most alpha (Robbins 1970; Waudby-Smith and Ramdas 2024, section 4).
    """
    from scipy.optimize import brentq  # takes a second to import

    rate = successes / trials if trials else 0.5

    def excess(p: float) -> float:
        return _log_wealth(successes, trials, p) + math.log(alpha)

    # Wealth is convex in p with its minimum at the observed rate.
    low = float(brentq(excess, 1e-300, rate)) if successes else 0.0
    high = float(brentq(excess, rate, 1 - 1e-16)) if successes < trials else 1.0
    return low, high


def _log_wealth(successes: int, trials: int, rate: float) -> float:
    failures = trials - successes
    mixture = math.lgamma(successes + 0.5) + math.lgamma(failures + 0.5) - math.lgamma(trials + 1) - math.log(math.pi)
    bets = (successes * math.log(rate) if successes else 0.0) + (failures * math.log1p(-rate) if failures else 0.0)
    return mixture - bets


def decided_after(outcomes: Sequence[bool], rate: float, alpha: float = 0.05) -> int | None:
    """The number of outcomes after which `always_valid` first excludes `rate`; None if it never does."""
    successes = 0
    for trials, outcome in enumerate(outcomes, start=1):
        successes += outcome
        if _log_wealth(successes, trials, rate) > -math.log(alpha):
            return trials
    return None


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test (1947), from the numbers of pairs in which only one succeeded."""
    pairs = only_first + only_second
    return min(1.0, 2 * sum(math.comb(pairs, k) for k in range(min(only_first, only_second) + 1)) / 2**pairs)


def paired_difference(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """A 95 % interval of the first rate minus the second, for paired outcomes (Newcombe 1998, method 10).

    Combines Wilson's intervals with the correlation of the pairs; (-1, 1) without pairs.
    """
    n = both + only_first + only_second + neither
    if n == 0:
        return -1.0, 1.0
    first, second = (both + only_first) / n, (both + only_second) / n
    (low1, high1), (low2, high2) = wilson(both + only_first, n), wilson(both + only_second, n)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    product = float(both * neither - only_first * only_second)
    if product > 0:  # the correction for continuity
        product = max(product - n / 2, 0.0)
    phi = product / math.sqrt(margins) if margins else 0.0

    def margin(a: float, b: float) -> float:
        return math.sqrt(max(a**2 - 2 * phi * a * b + b**2, 0.0))

    down = margin(first - low1, high2 - second)
    up = margin(high1 - first, second - low2)
    return max(-1.0, first - second - down), min(1.0, first - second + up)
