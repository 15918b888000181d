"""Finds and opens released robot policies; torch is imported only to open one.

A name is a folder or an id on the hub, and may end with options: `openvla/openvla-7b?unnorm_key=bridge_orig&crop=0.9`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from vla.errors import InputError, reading, suggestion
from vla.models.hub import COPY, HUB_NAME, fetch

if TYPE_CHECKING:
    from vla.models.released.robot_policy import RobotPolicy

OPTIONS = {"MEAN_STD": "mean-std", "MIN_MAX": "min-max", "QUANTILES": "quantile"}
"""LeRobot's names of normalisations, and ours (`vla.models.normalization`)."""


def _pi(folder: Path) -> RobotPolicy:
    from vla.models.released.lerobot_folder import LeRobotFolder
    from vla.models.released.pi import load_pi

    return load_pi(LeRobotFolder(folder))


def _pi_fast(folder: Path) -> RobotPolicy:
    from vla.models.released.lerobot_folder import LeRobotFolder
    from vla.models.released.pi_fast import load_pi_fast

    return load_pi_fast(LeRobotFolder(folder))


def _smolvla(folder: Path) -> RobotPolicy:
    from vla.models.released.lerobot_folder import LeRobotFolder
    from vla.models.released.smolvla import load_smolvla

    return load_smolvla(LeRobotFolder(folder))


def _evo1(folder: Path) -> RobotPolicy:
    from vla.models.released.evo1 import load_evo1
    from vla.models.released.lerobot_folder import LeRobotFolder

    return load_evo1(LeRobotFolder(folder))


def _openpi(folder: Path, discrete_state_input: str = "true", delta_actions: str = "") -> RobotPolicy:
    from vla.models.released.openpi_folder import OpenpiFolder
    from vla.models.released.pi import load_pi

    if discrete_state_input not in ("true", "false"):
        raise InputError(f"discrete_state_input={discrete_state_input} of a policy is neither true nor false")
    counts = tuple(_number("delta_actions", count, int) for count in delta_actions.split(",") if delta_actions)
    return load_pi(OpenpiFolder(folder, discrete_state_input == "true", counts))


def _openvla(folder: Path, unnorm_key: str | None = None, horizon: str | None = None, crop: str = "1.0") -> RobotPolicy:
    from vla.models.released.openvla import load_openvla

    return load_openvla(folder, unnorm_key, _steps(horizon), _number("crop", crop, float))


def _steps(horizon: str | None) -> int | None:
    return None if horizon is None else _number("horizon", horizon, int)


def _number[T: int | float](option: str, text: str, kind: type[T]) -> T:
    try:
        return kind(text)
    except ValueError as error:
        raise InputError(f"{option}={text} of a policy is not a number") from error


LOADERS: Mapping[str, Callable[..., RobotPolicy]] = {
    "pi0": _pi,
    "pi05": _pi,
    "pi0_fast": _pi_fast,
    "smolvla": _smolvla,
    "evo1": _evo1,
    "openpi": _openpi,
    "openvla": _openvla,
}
"""Loaders by the `type` in LeRobot's config.json, or OpenVLA's model_type; openpi's has none. They take a folder, and
options as text."""


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

        kind = str(OpenpiFolder(fetch(split(str(name))[0])).config["type"])
        method = "quantile" if kind == "pi05" else "mean-std"
        predict = "relative" if split(str(name))[1].get("delta_actions") else "unchanged"
        return PolicyDefaults(kind, "flow", int(config["action_horizon"]), predict, method)
    if config["type"] == "openvla":
        from vla.models.released.openvla_oft import read_head

        base, options = split(str(name))
        oft = read_head(fetch(base), _steps(options.get("horizon")))
        head, horizon = ("bins", 1) if oft is None else ("l1", oft.horizon)
        method = "quantile" if oft is None or oft.ends[0] == "q01" else "min-max"
        return PolicyDefaults("openvla", head, horizon, "unchanged", method)
    modes = config.get("normalization_mapping") or {}
    mode = str(modes.get("ACTION", "MEAN_STD"))
    if mode not in OPTIONS:
        raise InputError(f"{name} has the normalisation {mode}: there are {', '.join(OPTIONS)}")
    relative = "relative" if config.get("use_relative_actions") else "unchanged"
    kind = str(config["type"])
    head = {"pi0_fast": "fast", "evo1": "cross-flow"}.get(kind, "flow")
    return PolicyDefaults(kind, head, int(config["chunk_size"]), relative, OPTIONS[mode])


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
    base, options = split(str(name))
    load = LOADERS[str(config["type"])]
    known = [*signature(load).parameters][1:]
    if wrong := sorted(options.keys() - set(known)):
        raise InputError(
            f"{base} takes {', '.join(known) or 'no options'}, not {wrong[0]}{suggestion(wrong[0], known)}"
        )
    return load(fetch(base), **options)


def split(name: str) -> tuple[str, dict[str, str]]:
    """The folder or id of a name, and its options."""
    base, _, query = name.partition("?")
    return base, dict(parse_qsl(query, keep_blank_values=True))


def _config(name: str) -> dict[str, Any] | None:
    """The configuration of a released policy; None for anything else."""
    config: dict[str, Any] | None = None
    name, _ = split(name)
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
    if config.get("model_type") == "openvla":
        return config | {"type": "openvla"}
    return config if config.get("type") in LOADERS else None
