"""Per-component statistics of states and actions: what normalisation needs, saved with the weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.errors import InputError

MIN_SPAN = 1e-4
"""A component whose bounds are closer than this, in its own unit, counts as constant."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of `count` values of each of c components, in the components' units.

    `q01` and `q99` are the bounds that normalisation maps to -1 and 1. They are the exact 1 % and 99 %
    quantiles, except where those lie less than `MIN_SPAN` apart. Such a component takes its minimum and
    maximum (a gripper that rarely opens), and if these too coincide, its centre -1 and +1: a constant
    component normalises to 0 and a later deviation from it keeps its own unit instead of exploding.
    """

    q01: Float[np.ndarray, "c"]
    q99: Float[np.ndarray, "c"]
    min: Float[np.ndarray, "c"]
    max: Float[np.ndarray, "c"]
    mean: Float[np.ndarray, "c"]
    std: Float[np.ndarray, "c"]
    count: int

    @classmethod
    def of(cls, values: Float[np.ndarray, "n c"]) -> Statistics:
        """Statistics over the rows. Raises InputError when there are none or a value is not finite."""
        values = np.asarray(values, np.float64)
        if len(values) == 0:
            raise InputError("no values to compute statistics of: record at least one episode first")
        check_finite(values, [str(i) for i in range(values.shape[1])], "statistics")
        low, high = values.min(axis=0), values.max(axis=0)
        q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
        q01, q99 = _widen(q01, q99, low, high)
        # The mean of equal values may round to just outside them.
        mean = np.clip(values.mean(axis=0), low, high)
        return cls(q01, q99, low, high, mean, values.std(axis=0), len(values))

    def to_dict(self) -> dict[str, Any]:
        """JSON values; floats survive exactly."""
        return {f.name: v.tolist() if isinstance(v := getattr(self, f.name), np.ndarray) else v for f in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Statistics:
        arrays: dict[str, Any] = {k: np.asarray(v, np.float64) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arrays)

    def hash(self) -> str:
        """SHA-256 of the values, in hex: equal statistics have equal hashes on every machine."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def check_finite(values: Float[np.ndarray, "n c"], names: Sequence[str], where: str) -> None:
    """Raises InputError naming `where`, the step and the component of the first value that is not finite."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        step, component = (int(i) for i in bad[0])
        raise InputError(f"{where}, step {step}: {names[component]} is not finite: {values[step, component]}")


def _widen(
    q01: Float[np.ndarray, "c"],
    q99: Float[np.ndarray, "c"],
    low: Float[np.ndarray, "c"],
    high: Float[np.ndarray, "c"],
) -> tuple[Float[np.ndarray, "c"], Float[np.ndarray, "c"]]:
    rare = q99 - q01 < MIN_SPAN
    q01, q99 = np.where(rare, low, q01), np.where(rare, high, q99)
    constant = q99 - q01 < MIN_SPAN
    center = (q01 + q99) / 2
    return np.where(constant, center - 1, q01), np.where(constant, center + 1, q99)
