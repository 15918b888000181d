"""Reads the folder of a policy of LeRobot: its configuration, weights, tokenizer and normalisation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from torch import Tensor

from vla.errors import InputError, reading
from vla.models.hub import COPY
from vla.models.normalization import Normalizer
from vla.models.preprocessing.on_device import OnDevice
from vla.models.preprocessing.settings import Framing
from vla.models.preprocessing.view import Sides
from vla.models.released.relative_actions import RELATIVE_STEP, relative_of
from vla.models.released.weight_files import read_weights

STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
NORMALIZER_STEP, IDENTITY = "normalizer_processor", "IDENTITY"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
ENDS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
"""The statistics that a normalisation maps to -1 and 1."""
SMALLEST = 1e-8
"""LeRobot's substitute for a range of zero, and its addition to a standard deviation."""


@dataclass(frozen=True)
class LeRobotFolder:
    """A policy's folder as LeRobot's trainer or the hub has it."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return _json(self.path / "config.json")

    @cached_property
    def steps(self) -> dict[str, dict[str, Any]]:
        """The steps of the preprocessor by name; empty for a folder without one."""
        file = self.path / PREPROCESSOR
        steps = _json(file)["steps"] if file.is_file() else []
        return {step.get("registry_name", step.get("class", "")): step for step in steps}

    def framing(self, size: Sides) -> Framing:
        """The preprocessing of camera images of pi0 and pi0.5."""
        return OnDevice(size)

    def source(self, vocabulary: int) -> dict[str, Any]:
        """What an export to LeRobot needs of the folder; empty for one that was not written by LeRobot.

        Args:
            vocabulary: number of words of the policy's language model.
        """
        files = {name: self.path / name for name in (PREPROCESSOR, POSTPROCESSOR)}
        if not all(file.is_file() for file in files.values()):
            return {}
        pipelines = {name: _json(file) for name, file in files.items()}
        return {"config": self.config, "vocabulary": vocabulary, **pipelines}

    @property
    def cameras(self) -> tuple[str, ...]:
        """The names of the policy's camera features, in its order, without empty ones."""
        features = self.config.get("input_features") or {}
        names = [name for name, feature in features.items() if feature.get("type") == "VISUAL"]
        return tuple(name for name in names if "empty_camera" not in name)

    @property
    def renamed(self) -> Mapping[str, str]:
        """The policy's names of features that a robot or dataset names differently."""
        config = self.steps.get("rename_observations_processor", {}).get("config", {})
        names: Mapping[str, str] = config.get("rename_map", {})
        return names

    @property
    def state_input(self) -> bool:
        """Whether the state is an input: it always is."""
        return True

    def relative(self, width: int) -> tuple[bool, ...]:
        """Which of `width` components of the action are predicted relative to the state."""
        return relative_of(self.config, self.steps.get(RELATIVE_STEP, {}).get("config", {}), width)

    def tokenizer(self, default: str) -> str:
        """Folder or hub id of the tokenizer."""
        config = self.steps.get("tokenizer_processor", {}).get("config", {})
        return str(config.get("tokenizer_name") or default)

    def weights(self) -> dict[str, Tensor]:
        """The weights, without the prefix `model.` that LeRobot gives them."""
        weights = read_weights(self.path)
        if any(name.startswith("normalize_inputs.") for name in weights):
            raise InputError(
                f"{self.path} is of a LeRobot that kept normalisation among the weights: convert it with LeRobot's "
                "migrate_policy_normalization.py"
            )
        return {name.removeprefix("model."): weight for name, weight in weights.items()}

    def check_fixed(self, settings: Mapping[str, Any]) -> None:
        """Raises InputError for another value of one of these settings; absent ones have it."""
        for key, value in settings.items():
            if self.config.get(key, value) != value:
                raise InputError(f"{self.path}: {key}={self.config[key]} is not supported, only {value}")

    def mode(self, kind: str) -> str:
        """LeRobot's name of the normalisation of "STATE" or "ACTION"."""
        step = self.steps.get(NORMALIZER_STEP, {}).get("config", {})
        return str(normalizations(self.config, step).get(kind, IDENTITY))

    def normalizer(self, key: str, kind: str) -> Normalizer | None:
        """The normalisation of the state or the action; None where the folder has no statistics.

        Raises:
            InputError: for a normalisation without its statistics.
        """
        mode = self.mode(kind)
        statistics = {
            name.removeprefix(f"{key}."): values.astype(np.float64).ravel()
            for name, values in self._statistics.items()
            if name.startswith(f"{key}.")
        }
        if not statistics:
            return None
        if mode == IDENTITY:
            width = len(next(iter(statistics.values())))
            return Normalizer((-1.0,) * width, (1.0,) * width)
        ends = ("mean", "std") if mode == "MEAN_STD" else ENDS.get(mode, ())
        if not ends or any(end not in statistics for end in ends):
            raise InputError(f"{self.path}: {key} has no statistics for the normalisation {mode}")
        low, high = (statistics[end] for end in ends)
        if mode == "MEAN_STD":
            low, high = low - (high + SMALLEST), low + (high + SMALLEST)
        wide = np.where(high == low, low + SMALLEST, high)
        return Normalizer(tuple(low.tolist()), tuple(wide.tolist()))

    @cached_property
    def _statistics(self) -> dict[str, Any]:
        name = self.steps.get(NORMALIZER_STEP, {}).get("state_file")
        if name is None:
            return {}
        with reading(self.path / name, COPY):
            values: dict[str, Any] = load_file(self.path / name)
        return values


def normalizations(config: Mapping[str, Any], step: Mapping[str, Any]) -> Mapping[str, str]:
    """LeRobot's names of the normalisations, by kind of feature; `step` has the settings of the normaliser."""
    names: Mapping[str, str] = step.get("norm_map") or config.get("normalization_mapping") or {}
    return names


def _json(file: Path) -> dict[str, Any]:
    with reading(file, COPY):
        values: dict[str, Any] = json.loads(file.read_text())
    return values
