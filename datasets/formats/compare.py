"""Checks that a written episode reads back unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from vla.errors import InputError
from vla.types import Episode


def check_equal(written: Episode, read: Episode) -> float:
    """Compares a written episode with what was read back: bitwise, except for the images.

    Returns the mean pixel error, of 255 (0 without cameras). Raises InputError that names the first difference.
    """
    for name in ("instruction", "success", "paraphrases", "spans"):
        ours, theirs = getattr(written, name), getattr(read, name)
        if ours != theirs:
            raise InputError(f"{name} reads back as {theirs!r}, not {ours!r}")
    # The store's action ranges may be wider because of other episodes.
    if (
        written.embodiment.name != read.embodiment.name
        or read.embodiment.union([written.embodiment]) != read.embodiment
    ):
        raise InputError(f"embodiment reads back as {read.embodiment!r}, not {written.embodiment!r}")
    # JSON has no tuples.
    if json.loads(json.dumps(dict(written.info))) != json.loads(json.dumps(dict(read.info))):
        raise InputError(f"info reads back as {dict(read.info)!r}, not {dict(written.info)!r}")
    for name in ("state", "action", "time", "points", "chunks"):
        _check_arrays({name: getattr(written, name)}, {name: getattr(read, name)}, "")
    _check_arrays(written.depth, read.depth, "depth of ")
    _check_arrays(written.extras, read.extras, "")
    errors = []
    for camera in written.embodiment.cameras:
        ours, theirs = written.images[camera], read.images[camera]
        if ours.shape != theirs.shape:
            raise InputError(f"images of {camera} read back as {theirs.shape}, not {ours.shape}")
        # One frame at a time: the differences of a full episode would need too much memory.
        errors += [
            np.abs(one.astype(np.int16) - other).mean() if not np.array_equal(one, other) else 0.0
            for one, other in zip(ours, theirs, strict=True)
        ]
    return float(np.mean(errors)) if errors else 0.0


def _check_arrays(written: Mapping[str, np.ndarray | None], read: Mapping[str, np.ndarray | None], prefix: str) -> None:
    if written.keys() != read.keys():
        raise InputError(f"{prefix}{sorted(written.keys() ^ read.keys())} does not read back")
    for name, ours in written.items():
        theirs = read[name]
        if ours is None or theirs is None:
            if ours is not theirs:
                raise InputError(
                    f"{prefix}{name} does not read back: {'it is missing' if theirs is None else 'there is one'}"
                )
            continue
        # The byte order may differ.
        same = ours.dtype.newbyteorder("=") == theirs.dtype.newbyteorder("=") and ours.shape == theirs.shape
        if not same or not np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f"):
            raise InputError(f"{prefix}{name} does not read back: {_first_difference(ours, theirs)}")


def _first_difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    if ours.dtype.newbyteorder("=") != theirs.dtype.newbyteorder("=") or ours.shape != theirs.shape:
        return f"{theirs.dtype} {theirs.shape}, not {ours.dtype} {ours.shape}"
    at = tuple(np.argwhere((ours != theirs) & ~((ours != ours) & (theirs != theirs)))[0])
    return f"{theirs[at]} at {[int(i) for i in at]}, not {ours[at]}"
