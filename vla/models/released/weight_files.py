"""Reads the weights of a released policy, in one file or in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from vla.errors import InputError, reading
from vla.models.hub import COPY

INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The files of the index, or all model*.safetensors where there is none.

    Raises:
        InputError: when a file is missing or damaged.
    """
    files = sorted(file.name for file in folder.glob("model*.safetensors"))
    if (folder / INDEX).is_file():
        with reading(folder / INDEX, COPY):
            files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise InputError(f"{folder} has no {', '.join(missing)}, which its index names: {COPY}")
    if not files:
        raise InputError(f"{folder} has no model.safetensors: {COPY}")
    return [folder / name for name in files]


def weight_names(folder: Path) -> set[str]:
    """The names of all weights, without reading them. Raises InputError as `weight_files`."""
    names: set[str] = set()
    for path in weight_files(folder):
        with _named(path), safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder. Raises InputError as `weight_files`."""
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with _named(path):
            weights |= load_file(path)
    return weights


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names a file whose weights cannot be read."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}): {COPY}") from error
