"""Keys and names of earlier versions, and the present ones: of options, checkpoints, runs and evaluations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

OPTIONS: Mapping[str, Mapping[str, str]] = {
    "train": {
        "state_as": "state_encoding",
        "retain": "regression_gates",
        "plan.lr_scales": "plan.lr_multipliers",
        "head.insulate": "head.knowledge_insulation",
        "head.continues": "head.rtc_training",
    },
    "eval": {"execute": "n_action_steps", "guard": "safety_filter", "frames": "render"},
    "demo": {"execute": "n_action_steps", "plan.lr_scales": "plan.lr_multipliers"},
    "deploy": {
        "loop.execute": "loop.n_action_steps",
        "loop.ttl": "loop.max_observation_age_s",
        "loop.heartbeat": "loop.inference_timeout_s",
        "loop.first": "loop.first_inference_timeout_s",
    },
}
"""Dotted option names by command."""
VALUES = {
    ("eval", "render"): {"asked": "on_inference"},
    ("deploy", "loop.end"): {"relax": "disable_torque"},
    ("robot", "action"): {"relax": "disable_torque"},
    ("train", "statistics"): {"estimate": "new"},
}
"""Values of present options."""
TARGETS = {
    "vla.control.robots.sim.SimRobot": "vla.robots.sim.SimRobot",
    "vla.control.robots.lerobot_robot.so101": "vla.robots.lerobot_adapter.robot.so101",
    "vla.control.robots.lerobot_robot.LeRobotRobot": "vla.robots.lerobot_adapter.robot.LeRobotRobot",
    "vla.control.limits.Limits": "vla.robots.limits.Limits",
}
"""Classes and functions that `_target_` names in a user's own configuration."""
PROCESSOR = {"state_as": OPTIONS["train"]["state_as"]}
"""Of a checkpoint's processor.json."""
HEAD = {
    old.removeprefix("head."): new.removeprefix("head.")
    for old, new in OPTIONS["train"].items()
    if old.startswith("head.")
}
"""Of an action head's settings."""
EVALUATION = OPTIONS["eval"]
"""Of an evaluation's settings.json."""
RUN = OPTIONS["train"]
"""Dotted, of the settings that a training run notes."""
WEIGHTS = (
    ("slots.", "action_position_embedding."),
    ("situation.", "conditioning_mlp."),
    ("regressor.enter.", "continuous_head.action_in_proj."),
    ("regressor.leave.", "continuous_head.action_out_proj."),
    ("regressor.", "continuous_head."),
)
"""Beginnings of the names of a checkpoint's tensors; the first that fits."""


def current_keys(values: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """`values` with the present names of its keys."""
    return {renamed.get(key, key): value for key, value in values.items()}


def current_key(key: str, renamed: Mapping[str, str]) -> str:
    """The present name of a dotted key, or of one below a renamed key."""
    for old, new in renamed.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def current_weight(name: str) -> str:
    """The present name of a tensor of a checkpoint."""
    for old, new in WEIGHTS:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def current_override(command: str, override: str) -> tuple[str, str]:
    """An override of `vla COMMAND` with present names, and a warning that names them; empty where it has them already.

    Keys inside a mapping, such as `head={kind: flow, insulate: true}`, are renamed too.
    """
    signs, typed, value = re.fullmatch(r"([+~]*)([^=]*)(=?.*)", override, re.DOTALL).groups()  # type: ignore[union-attr]
    renamed_options = OPTIONS.get(command, {})
    key = current_key(typed, renamed_options)
    changed = {} if key == typed else {typed: key}
    for old, new in renamed_options.items():
        if old.startswith(f"{key}.") and value.startswith("={"):
            old_key, new_key = (name.removeprefix(f"{key}.") for name in (old, new))
            value, count = re.subn(rf"(?<=[{{,])(\s*){old_key}(?=\s*:)", rf"\1{new_key}", value)
            changed |= {old: new} if count else {}
    renamed = VALUES.get((command, key), {})
    if value[1:] in renamed:
        changed[f"{key}{value}"] = f"{key}={renamed[value[1:]]}"
        value = f"={renamed[value[1:]]}"
    warning = "; ".join(f"{old} is now {new}" for old, new in changed.items())
    return f"{signs}{key}{value}", warning


def current_targets(values: Any) -> Any:
    """Configuration with the present names of what `_target_` names, at any depth."""
    if isinstance(values, Mapping):
        found = {key: current_targets(value) for key, value in values.items()}
        if found.get("_target_") in TARGETS:
            found["_target_"] = TARGETS[found["_target_"]]
        return found
    return [current_targets(value) for value in values] if isinstance(values, list) else values
