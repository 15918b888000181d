"""Reads the folder of a policy that openpi's script converted to PyTorch: pi0 and pi0.5."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vla.errors import InputError, reading
from vla.models.hub import COPY
from vla.models.normalization import Normalizer
from vla.models.preprocessing.frames import FloorPad
from vla.models.preprocessing.settings import Framing
from vla.models.preprocessing.view import Sides
from vla.models.released.lerobot_folder import STATE
from vla.models.released.relative_actions import relative_by_count
from vla.models.released.weight_files import read_weights, weight_names

ADDED = 1e-6
"""openpi's addition to a standard deviation or a range."""


@dataclass(frozen=True)
class OpenpiFolder:
    """A policy's folder: config.json, model.safetensors and assets/NAME/norm_stats.json.

    Its prompts are cleaned, and Pillow resizes its images.

    Attributes:
        path: the folder.
        state_input: whether pi0.5 has the state in its prompt; else it does not see it (openpi's
            `discrete_state_input=False`).
        deltas: numbers of consecutive action components, positive where they are relative to the state (the arguments
            of openpi's `make_bool_mask` for `DeltaActions`).
    """

    path: Path
    state_input: bool = True
    deltas: tuple[int, ...] = ()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings with LeRobot's names; the kind of the policy is that of its weights."""
        with reading(self.path / "config.json", COPY):
            values = json.loads((self.path / "config.json").read_text())
            horizon = int(values["action_horizon"])
        adaptive = any("norm.dense" in name for name in weight_names(self.path))
        return {"type": "pi05" if adaptive else "pi0", "chunk_size": horizon}

    @property
    def cameras(self) -> tuple[str, ...]:
        """None: openpi takes a base camera and up to two wrist cameras, in this order."""
        return ()

    @property
    def renamed(self) -> dict[str, str]:
        """None."""
        return {}

    def framing(self, size: Sides) -> Framing:
        """The preprocessing of camera images."""
        return FloorPad(size)

    def tokenizer(self, default: str) -> str:
        """Folder or hub id of the tokenizer."""
        return default

    def source(self, vocabulary: int) -> dict[str, Any]:
        """Nothing: the folder was not written by LeRobot."""
        return {}

    def relative(self, width: int) -> tuple[bool, ...]:
        """Which of `width` components of the action are predicted relative to the state."""
        return relative_by_count(self.deltas, width)

    def weights(self) -> dict[str, Tensor]:
        """The weights."""
        return read_weights(self.path)

    def normalizer(self, key: str, kind: str) -> Normalizer | None:
        """The normalisation of the state or the action; None where the folder has no statistics.

        Raises:
            InputError: where it has those of several robots.
        """
        files = sorted(self.path.glob("assets/**/norm_stats.json"))
        if not files:
            return None
        if len(files) > 1:
            names = ", ".join(str(file.parent.relative_to(self.path / "assets")) for file in files)
            raise InputError(f"{self.path} has statistics of {names}: keep the folder of one of them in assets/")
        with reading(files[0], COPY):
            statistics = json.loads(files[0].read_text())["norm_stats"]["state" if key == STATE else "actions"]
            ends = ("q01", "q99") if self.config["type"] == "pi05" else ("mean", "std")
            low, high = (np.asarray(statistics[end], np.float64) for end in ends)
        if ends[0] == "mean":
            low, high = low - (high + ADDED), low + (high + ADDED)
        else:
            high = high + ADDED
        return Normalizer(tuple(low.tolist()), tuple(high.tolist()))
