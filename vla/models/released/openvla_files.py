"""Reads the files of an OpenVLA checkpoint: weights, tokenizer and action statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from vla.errors import InputError, reading, unknown
from vla.models.hub import COPY
from vla.models.normalization import Normalizer

STATISTICS = "dataset_statistics.json"
SMALLEST = 1e-8
"""OpenVLA's addition to ranges, so that none is empty."""


def read_module(folder: Path, name: str) -> dict[str, Tensor]:
    """The weights of the latest NAME--STEP_checkpoint.pt, a module of OpenVLA-OFT; empty where there is none.

    Raises:
        InputError: when the file is damaged.
    """
    files = sorted(folder.glob(f"{name}--*_checkpoint.pt"), key=lambda file: (len(file.name), file.name))
    if not files:
        return {}
    try:
        weights = torch.load(files[-1], map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, UnpicklingError) as error:
        raise InputError(f"{files[-1]} is damaged, or has other than weights: {COPY}") from error
    return {name.removeprefix("module."): weight for name, weight in weights.items()}


def read_tokenizer(folder: Path, size: int) -> Tokenizer:
    """The first `size` tokens of the tokenizer.

    The text of a later token, which is a single character, is written in bytes.

    Raises:
        InputError: when it cannot be read.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise InputError(f"{folder} has no tokenizer.json: {COPY}")
    try:
        values = json.loads(Tokenizer.from_file(str(file)).to_str())
        model = values["model"]
        vocab = model["vocab"] = {token: i for token, i in model["vocab"].items() if i < size}
        model["merges"] = [merge for merge in model["merges"] if "".join(merge) in vocab]
        values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < size]
        return Tokenizer.from_str(json.dumps(values))
    except Exception as error:  # tokenizers raises a bare Exception
        raise InputError(f"{file} is damaged ({error}): {COPY}") from error


def read_statistics(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics by dataset: those of a fine-tuned checkpoint, else those in its configuration."""
    file = folder / STATISTICS
    if not file.is_file():
        return dict(config.get("norm_stats") or {})
    with reading(file, COPY):
        return dict(json.loads(file.read_text()))


def choose(statistics: Mapping[str, Any], key: str | None) -> str | None:
    """The dataset named `key`, or the only one; None where there are several, or none.

    Raises:
        InputError: where `key` is none of them.
    """
    if key is not None and key not in statistics:
        raise unknown("unnorm_key", key, sorted(statistics))
    return next(iter(statistics)) if key is None and len(statistics) == 1 else key


def normalizer_of(statistics: Mapping[str, Any], ends: tuple[str, str], slack: float) -> Normalizer:
    """The normalisation of a robot's state or actions; components outside the mask are left as they are.

    Args:
        statistics: of one dataset, of "action" or "proprio".
        ends: the statistics that are mapped to -1 and 1.
        slack: added to a range.
    """
    low, high = (np.asarray(statistics[end], np.float64) for end in ends)
    masked = mask_of(statistics)
    high = np.where(high + slack > low, high + slack, low + SMALLEST)
    return Normalizer(tuple(np.where(masked, low, -1.0).tolist()), tuple(np.where(masked, high, 1.0).tolist()))


def mask_of(statistics: Mapping[str, Any]) -> list[bool]:
    """Which components are normalised."""
    return [bool(value) for value in statistics.get("mask", [True] * len(statistics["q01"]))]
