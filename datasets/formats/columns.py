"""Columns of numbers in foreign formats: their names, their ranges, and their selection as state or action."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from vla.common.plural import counted
from vla.errors import InputError
from vla.types import Span, one_after_another

TIME_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
"""Time units per second."""
COARSE = 0.5
"""Maximum spacing of float32 time stamps, in steps, for them to be usable as times."""


class MissingChoice(InputError):
    """The state or the action is not known. `options` are possible options to choose them, {name: value}."""

    def __init__(self, message: str, options: Mapping[str, Any]) -> None:
        self.options = options
        selected = " ".join(f"'{name}={option_text(value)}'" for name, value in options.items())
        super().__init__(f"{message}: choose it, for example {selected}")
        self.message = message


def option_text(value: Any) -> str:
    """An option's value in the syntax of the command line."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


def component_names(key: str, shape: Sequence[int]) -> tuple[str, ...]:
    """The component names of column `key`: `gripper`, or `ee_pos[0]`, `ee_pos[1]`, … in row-major order."""
    return (key,) if not shape else tuple(f"{key}[{i}]" for i in range(int(np.prod(shape))))


def concatenate(columns: Iterable[Shaped[np.ndarray, "t ..."]], steps: int) -> Float[np.ndarray, "t n"]:
    """The columns concatenated as float64, which represents float32 exactly."""
    flat = [np.asarray(column, np.float64).reshape(steps, -1) for column in columns]
    return np.concatenate([np.empty((steps, 0)), *flat], axis=1)


def extremes(
    blocks: Iterable[Float[np.ndarray, "t n"]], components: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The smallest and the largest finite value of each component over all blocks; 0 if there is none.

    They are the action limits for formats that state none. Values that are not finite are ignored here: the store
    rejects them with an error that names the step.
    """
    low = high = np.full(components, np.nan)
    for rows in blocks:
        finite = np.where(np.isfinite(rows), rows, np.nan)
        low = np.fmin.reduce(np.vstack([low, finite]), axis=0)
        high = np.fmax.reduce(np.vstack([high, finite]), axis=0)
    return tuple(np.nan_to_num(low).tolist()), tuple(np.nan_to_num(high).tolist())


def control_rate(fps: float | None, stated: Any, source: str) -> float:
    """The control rate [Hz]: the user's `fps`, or else the rate that the data state.

    Raises:
        InputError: there is neither, or it is not a positive number. The message names the `source`.
    """
    try:
        rate = float(stated if fps is None else fps)
    except (TypeError, ValueError):
        raise InputError(f"{source} does not state its number of steps a second: give fps") from None
    if not 0 < rate < float("inf"):
        raise InputError(f"{source}: {rate} is not a number of steps a second: give fps, above 0")
    return rate


def median_step(stamps: Shaped[np.ndarray, "t *_"]) -> float:
    """The median difference of successive time stamps; 0 without finite ones."""
    steps = np.diff(stamps.astype(np.float64), axis=0)
    return float(np.median(steps[np.isfinite(steps)])) if np.isfinite(steps).any() else 0.0


def time_unit(stamps: Shaped[np.ndarray, "t *_"], rate: float) -> str:
    """The unit (of `TIME_UNITS`) in which the median step of the time stamps is closest to 1 / `rate` [s]."""
    if (step := median_step(stamps)) <= 0:
        return "s"
    return min(TIME_UNITS, key=lambda unit: abs(math.log(TIME_UNITS[unit] / step / rate)))


def are_coarse(stamps: Float[np.ndarray, "t"], rate: float) -> bool:
    """Whether time stamps [s] are unusable: all equal, or float32 numbers too large to resolve steps at `rate` [Hz].

    For example, the spacing of float32 numbers for seconds since 1970 is 128 s.
    """
    if len(stamps) < 2 or not np.isfinite(stamps).all():
        return False
    largest = np.abs(stamps).max()
    is_single = bool((stamps.astype(np.float32) == stamps).all())
    return bool(np.ptp(stamps) == 0 or (is_single and np.spacing(np.float32(largest)) * rate > COARSE))


def coarse_remark(episodes: int, rate: float) -> str:
    """The remark on episodes whose time stamps `are_coarse`."""
    return (
        f"the timestamps of {counted(episodes, 'episode')} are unusable: their steps are spaced evenly at {rate:g} Hz"
    )


def short_names(paths: Iterable[str], prefixes: Sequence[str]) -> dict[str, str]:
    """A short name for each path: without the prefixes, and with dots for slashes. Duplicates get the full path."""
    names: dict[str, str] = {}
    for path in sorted(paths):
        short = path
        for prefix in prefixes:
            short = short.removeprefix(prefix)
        short = short.replace("/", ".")
        names[path] = path.replace("/", ".") if short in names.values() else short
    return names


def select(kind: str, requested: Sequence[str], names: Mapping[str, str], where: str) -> dict[str, str]:
    """The requested columns as {name: path}.

    Args:
        kind: the role of the columns, such as "state".
        requested: the names or paths of the columns.
        names: the names of all columns, by path.
        where: the data's name for messages.

    Raises:
        MissingChoice: no column is requested.
        InputError: a column does not exist.
    """
    paths = {name: path for path, name in names.items()}
    if not requested:
        actions = [name for name in paths if "action" in name]
        offered = actions or list(paths) if kind == "action" else [name for name in paths if name not in actions]
        if not offered:
            raise InputError(f"{where} has no numbers that could be the {kind}: it has {', '.join(paths) or 'none'}")
        raise MissingChoice(f"{where} has nothing that is known to be the {kind}", {kind: offered})
    selected: dict[str, str] = {}
    for name in requested:
        path = name if name in names else paths.get(name)
        if path is None:
            raise InputError(f"{where} has no {name!r} for the {kind}: it has {', '.join(paths) or 'none'}")
        selected[names[path]] = path
    return selected


def natural_order(text: str) -> list[tuple[int, str]]:
    """A sort key that orders demo_2 before demo_10."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", text)]


def instruction_and_spans(texts_by_step: Sequence[str]) -> tuple[str, tuple[Span, ...]]:
    """The instruction of an episode and its spans, from the text of each step (empty: not stated).

    If the text changes, the spans are the runs of equal texts, and the instruction is their concatenation: "open the
    drawer, then take the cup".
    """
    spans, start = [], 0
    for text, run in itertools.groupby(texts_by_step):
        stop = start + len(list(run))
        if text:
            spans.append(Span(start, stop, text))
        start = stop
    return one_after_another(texts_by_step), tuple(spans) if len(set(texts_by_step)) > 1 else ()
