"""Finds and opens released robot policies; torch is imported only to open one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.errors import InputError, reading
from vla.models.hub import COPY, HUB_NAME, fetch

if TYPE_CHECKING:
    from vla.models.released.robot_policy import RobotPolicy

OPTIONS = {"MEAN_STD": "mean-std", "MIN_MAX": "min-max", "QUANTILES": "quantile"}
"""LeRobot's names of normalisations, and ours (`vla.models.normalization`)."""


def _pi(folder: Path) -> RobotPolicy:
    from vla.models.released.lerobot_folder import LeRobotFolder
    from vla.models.released.pi import load_pi

    return load_pi(LeRobotFolder(folder))


def _smolvla(folder: Path) -> RobotPolicy:
    from vla.models.released.lerobot_folder import LeRobotFolder
    from vla.models.released.smolvla import load_smolvla

    return load_smolvla(LeRobotFolder(folder))


def _openpi(folder: Path) -> RobotPolicy:
    from vla.models.released.openpi_folder import OpenpiFolder
    from vla.models.released.pi import load_pi

    return load_pi(OpenpiFolder(folder))


LOADERS: Mapping[str, Callable[[Path], RobotPolicy]] = {"pi0": _pi, "pi05": _pi, "smolvla": _smolvla, "openpi": _openpi}
"""Loaders by the `type` in LeRobot's config.json; openpi's has none."""


@dataclass(frozen=True)
class PolicyDefaults:
    """Options of `vla train` with which a released policy was trained.

    Attributes:
        kind: its name in `LOADERS`.
        head: kind of its action head.
        horizon: number of steps of a chunk.
        predict, normalization: as in `vla.training.demonstrations.robot_specs`.
    """

    kind: str
    head: str
    horizon: int
    predict: str
    normalization: str


def policy_defaults(name: object) -> PolicyDefaults | None:
    """The options of a released policy, from its configuration; None for anything else.

    Args:
        name: folder, or id on the hub.

    Raises:
        InputError: for a policy with a normalisation that training does not have.
    """
    if not isinstance(name, str | Path) or (config := _config(str(name))) is None:
        return None
    if config["type"] == "openpi":
        from vla.models.released.openpi_folder import OpenpiFolder

        kind = str(OpenpiFolder(fetch(name)).config["type"])
        method = "quantile" if kind == "pi05" else "mean-std"
        return PolicyDefaults(kind, "flow", int(config["action_horizon"]), "unchanged", method)
    modes = config.get("normalization_mapping") or {}
    mode = str(modes.get("ACTION", "MEAN_STD"))
    if mode not in OPTIONS:
        raise InputError(f"{name} has the normalisation {mode}: there are {', '.join(OPTIONS)}")
    relative = "relative" if config.get("use_relative_actions") else "unchanged"
    return PolicyDefaults(str(config["type"]), "flow", int(config["chunk_size"]), relative, OPTIONS[mode])


def is_policy(name: str | Path) -> bool:
    """Whether a folder, or an id on the hub, is a released policy that can be opened."""
    return _config(str(name)) is not None


def open_policy(name: str | Path) -> RobotPolicy:
    """Opens a released policy from a folder or the hub.

    Raises:
        InputError: where it cannot be opened.
    """
    config = _config(str(name))
    if config is None:
        raise InputError(f"{name} is not a released policy of the kinds {', '.join(LOADERS)}")
    return LOADERS[str(config["type"])](fetch(name))


def _config(name: str) -> dict[str, Any] | None:
    """The configuration of a released policy; None for anything else."""
    config: dict[str, Any] | None = None
    if (file := Path(name) / "config.json").is_file():
        with reading(file, COPY):
            config = json.loads(file.read_text())
    elif not Path(name).exists() and re.fullmatch(HUB_NAME, name):
        from vla.models.preprocessing.released import file_of

        config = file_of(name, "config.json")
    if not isinstance(config, dict):
        return None
    if "action_expert_variant" in config and "action_horizon" in config:
        return config | {"type": "openpi"}
    return config if config.get("type") in LOADERS else None
