"""Columns of numbers in foreign formats: their names, their ranges, and how they become a state or an action."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from vla.common.plural import counted
from vla.errors import InputError
from vla.types import Span, one_after_another

COARSE = 0.5
"""Steps between two numbers of float32, from which on they are no times of steps."""


class MissingChoice(InputError):
    """Nothing is known to be the state, or the action: `options` are options that choose, {name: value}."""

    def __init__(self, message: str, options: Mapping[str, Any]) -> None:
        self.options = options
        chosen = " ".join(f"'{name}={option_text(value)}'" for name, value in options.items())
        super().__init__(f"{message}: choose it, for example {chosen}")
        self.message = message


def option_text(value: Any) -> str:
    """An option's value as it is written on the command line."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


def component_names(key: str, shape: Sequence[int]) -> tuple[str, ...]:
    """A name for each number a step of column `key`: `gripper`, or `ee_pos[0]`, `ee_pos[1]`, … (row by row)."""
    return (key,) if not shape else tuple(f"{key}[{i}]" for i in range(int(np.prod(shape))))


def concatenate(columns: Iterable[Shaped[np.ndarray, "t ..."]], steps: int) -> Float[np.ndarray, "t n"]:
    """The columns side by side, as float64 (float32 survives exactly)."""
    flat = [np.asarray(column, np.float64).reshape(steps, -1) for column in columns]
    return np.concatenate([np.empty((steps, 0)), *flat], axis=1)


def extremes(parts: Iterable[Float[np.ndarray, "t n"]], components: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The smallest and the largest finite value of each component over all parts; (0, 0) where there is none.

    They bound the actions of a format that states no limits. What is not finite is left for the store to refuse,
    which names its step.
    """
    low = high = np.full(components, np.nan)
    for rows in parts:
        finite = np.where(np.isfinite(rows), rows, np.nan)
        low = np.fmin.reduce(np.vstack([low, finite]), axis=0)
        high = np.fmax.reduce(np.vstack([high, finite]), axis=0)
    return tuple(np.nan_to_num(low).tolist()), tuple(np.nan_to_num(high).tolist())


def control_rate(fps: float | None, known: Any, hint: str) -> float:
    """The steps a second [Hz]: `fps` where the user gave it, else what is `known` of the data.

    Raises:
        InputError: neither says one, or it is not a positive number; `hint` says whose rate it is.
    """
    try:
        rate = float(known if fps is None else fps)
    except (TypeError, ValueError):
        raise InputError(f"{hint} does not say how many steps a second it has: give fps") from None
    if not 0 < rate < float("inf"):
        raise InputError(f"{hint}: {rate} is not a number of steps a second: give fps, above 0")
    return rate


def are_coarse(stamps: Float[np.ndarray, "t"], rate: float) -> bool:
    """Whether time stamps [s] of `rate` steps a second are no times: all one, or float32 numbers too large for them.

    Seconds since 1970 are 128 apart in float32.
    """
    if len(stamps) < 2 or not np.isfinite(stamps).all():
        return False
    largest = np.abs(stamps).max()
    is_single = bool((stamps.astype(np.float32) == stamps).all())
    return bool(np.ptp(stamps) == 0 or (is_single and np.spacing(np.float32(largest)) * rate > COARSE))


def coarse_remark(episodes: int, rate: float) -> str:
    """What to say of episodes whose time stamps `are_coarse`."""
    return (
        f"the timestamps of {counted(episodes, 'episode')} are no times: their steps are taken in order at {rate:g} Hz"
    )


def own_names(paths: Iterable[str], prefixes: Sequence[str]) -> dict[str, str]:
    """A short name for each path: without the prefix, with dots for slashes; the whole path where that is taken."""
    names: dict[str, str] = {}
    for path in sorted(paths):
        short = path
        for prefix in prefixes:
            short = short.removeprefix(prefix)
        short = short.replace("/", ".")
        names[path] = path.replace("/", ".") if short in names.values() else short
    return names


def select(kind: str, asked: Sequence[str], names: Mapping[str, str], where: str) -> dict[str, str]:
    """{name: path} of the columns asked for, by name or by path; `names` are those of all columns by path.

    Raises InputError when none is, and for one that there is not; `kind` is what they are for.
    """
    paths = {name: path for path, name in names.items()}
    if not asked:
        named = [name for name in paths if "action" in name]
        offered = named or list(paths) if kind == "action" else [name for name in paths if name not in named]
        if not offered:
            raise InputError(f"{where} has no numbers that could be the {kind}: it has {', '.join(paths) or 'none'}")
        raise MissingChoice(f"{where} has nothing that is known to be the {kind}", {kind: offered})
    chosen: dict[str, str] = {}
    for name in asked:
        path = name if name in names else paths.get(name)
        if path is None:
            raise InputError(f"{where} has no {name!r} for the {kind}: it has {', '.join(paths) or 'none'}")
        chosen[names[path]] = path
    return chosen


def natural_order(text: str) -> list[tuple[int, str]]:
    """A sort key that puts demo_2 before demo_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def instruction_and_spans(said: Sequence[str]) -> tuple[str, tuple[Span, ...]]:
    """The instruction of a whole episode and its spans, from what is to be done at each step (empty: not stated).

    Where it changes, the spans are its runs, and the instruction says all of it in order: "open the drawer, then take
    the cup".
    """
    spans, start = [], 0
    for text, run in itertools.groupby(said):
        stop = start + len(list(run))
        if text:
            spans.append(Span(start, stop, text))
        start = stop
    return one_after_another(said), tuple(spans) if len(set(said)) > 1 else ()
