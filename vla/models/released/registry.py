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


LOADERS: Mapping[str, Callable[[Path], RobotPolicy]] = {"pi0": _pi, "pi05": _pi, "smolvla": _smolvla}
"""Loaders by the `type` in LeRobot's config.json."""


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
    return config if isinstance(config, dict) and config.get("type") in LOADERS else None
