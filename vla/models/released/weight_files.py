"""Reads the weights of a released policy, in one file or in shards."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vla.errors import InputError, reading
from vla.models.hub import COPY

INDEX = "model.safetensors.index.json"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights in the files of the index, or in all model*.safetensors where there is none.

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
    weights: dict[str, Tensor] = {}
    for name in files:
        try:
            weights |= load_file(folder / name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{folder / name} is damaged ({error}): {COPY}") from error
    return weights
