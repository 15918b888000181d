"""Writes a fine-tuned released policy as a folder that LeRobot's commands load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor

from vla.errors import InputError
from vla.models.normalization import Normalizer
from vla.models.released import evo1, pi, pi_fast, smolvla
from vla.models.released.lerobot_folder import (
    ACTION,
    IDENTITY,
    IMAGES,
    NORMALIZER_STEP,
    POSTPROCESSOR,
    PREPROCESSOR,
    STATE,
    normalizations,
)
from vla.models.released.relative_actions import ABSOLUTE_STEP, RELATIVE_STEP, check_relative, relative_by_name
from vla.models.released.weight_names import shifted_norms
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA

STATES = {PREPROCESSOR: "normalizer_processor", POSTPROCESSOR: "unnormalizer_processor"}
"""The step of each pipeline that has the statistics."""


def export_lerobot(model: VLA, folder: Path) -> None:
    """Writes `model` into `folder`, which must not exist or be empty.

    The weights are float32; LeRobot converts them to the policy's dtype.

    Args:
        model: a policy that was trained from a released one of LeRobot, for one robot.
        folder: the new folder.

    Raises:
        InputError: for a model that LeRobot cannot represent, before anything is written.
    """
    source, robot = _checked(model)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: remove it, or name another folder")
    config = dict(source["config"]) | _features(model, robot) | _settings(source["config"], robot)
    config["normalization_mapping"] = _modes(source, robot)
    if config["type"] == evo1.KIND:
        config |= evo1.exported_settings(config, len(robot.embodiment.cameras))
    weights = _weights(model, str(config["type"]), int(source["vocabulary"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    save_file({f"model.{name}": weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    for file, step in STATES.items():
        _write_pipeline(folder, file, step, source[file], config, robot)


def _checked(model: VLA) -> tuple[Mapping[str, Any], RobotSpec]:
    policy, robots = model.processor.policy, model.processor.robots
    if policy is None or not policy.source:
        raise InputError("only a policy that was trained from a released one of LeRobot can be exported to it")
    if len(robots) != 1:
        names = ", ".join(robot.name for robot in robots) or "none"
        raise InputError(f"a policy of LeRobot has one robot, this model {names}")
    robot = robots[0]
    if robot.history:
        raise InputError("a policy of LeRobot sees no past frames, this model does")
    if robot.action_dim != len(robot.embodiment.action):
        raise InputError(f"{robot.name} predicts rotations or angles in another form, which LeRobot has not")
    if any(robot.relative):
        steps = {step.get("registry_name") for file in STATES for step in policy.source[file]["steps"]}
        if not steps >= {RELATIVE_STEP, ABSOLUTE_STEP}:
            raise InputError(f"{robot.name} predicts actions relative to the state: train with predict=unchanged")
        check_relative("LeRobot", robot.embodiment, robot.relative)
        if len(robot.embodiment.state) < len(robot.embodiment.action):
            raise InputError(f"{robot.name} has more actions than states: train with predict=unchanged")
        if relative_by_name(*_named(robot), len(robot.relative)) != robot.relative:
            raise InputError(f"LeRobot does not distinguish the names of {robot.name}: train with predict=unchanged")
    own, head = policy.source.get("action_tokenizer"), model.processor.head
    if own is not None and (head is None or pi_fast.digest(head.settings["tokenizer"]) != own):
        raise InputError("LeRobot would read the policy's own tokenizer of actions: train without head.tokenizer")
    return policy.source, robot


def _features(model: VLA, robot: RobotSpec) -> dict[str, Any]:
    """LeRobot's features of the robot."""
    side, body = model.backbone.image_size, robot.embodiment
    cameras = {IMAGES + name: {"type": "VISUAL", "shape": [3, side, side]} for name in body.cameras}
    return {
        "input_features": {STATE: {"type": "STATE", "shape": [len(body.state)]}, **cameras},
        "output_features": {ACTION: {"type": "ACTION", "shape": [len(body.action)]}},
        "chunk_size": robot.horizon,
        "n_action_steps": robot.horizon,
    }


def _named(robot: RobotSpec) -> tuple[list[str], list[str]]:
    """LeRobot's names of the action components, and those that are not relative to the state."""
    names = [name.partition(" [")[0] for name in robot.embodiment.action]
    return names, [name for name, relative in zip(names, robot.relative, strict=True) if not relative]


def _settings(known: Mapping[str, Any], robot: RobotSpec) -> dict[str, Any]:
    """Settings that depend on the robot and the weights, of those that this kind of policy has."""
    names, excluded = _named(robot)
    relative = any(robot.relative)
    settings = {
        "use_relative_actions": relative,
        "relative_exclude_joints": excluded,
        "action_feature_names": names,
        "load_vlm_weights": False,  # all weights are in the export
        "use_peft": False,
    }
    # LeRobot adds the state of each step, not that at the chunk's start.
    steps = {"n_action_steps": 1} if relative else {}
    return {name: value for name, value in settings.items() if name in known} | steps


def _modes(source: Mapping[str, Any], robot: RobotSpec) -> dict[str, str]:
    """LeRobot's normalisations; one that the policy did not have, but the robot has, is MEAN_STD."""
    steps = {step.get("registry_name"): step.get("config", {}) for step in source[PREPROCESSOR]["steps"]}
    modes = dict(normalizations(source["config"], steps.get(NORMALIZER_STEP, {})))
    for kind, normalizer in (("STATE", robot.state), ("ACTION", robot.action)):
        identity = set(normalizer.low) == {-1.0} and set(normalizer.high) == {1.0}
        if modes.get(kind, IDENTITY) == IDENTITY and not identity:
            modes[kind] = "MEAN_STD"
    return modes


def _weights(model: VLA, kind: str, vocabulary: int) -> dict[str, Tensor]:
    """The weights with LeRobot's names."""
    state = {name: weight.detach().cpu().float() for name, weight in model.state_dict().items()}
    if kind == evo1.KIND:
        return evo1.exported(state, vocabulary, len(model.continuous_head.blocks))  # type: ignore[arg-type]
    names: Mapping[str, str] = {}
    prefix, expert_head = pi.VLM, None
    if kind == "smolvla":
        names, prefix = smolvla.smolvla_names(_expert_layers(model)), smolvla.VLM
    elif kind != pi_fast.KIND:
        names = pi.pi_names(kind, _expert_layers(model))
        expert_head = f"{pi.EXPERT.removesuffix('model.')}lm_head.weight"
        state = shifted_norms(state, -1.0) if kind == "pi0" else state
    weights = {theirs: state[ours] for theirs, ours in names.items()}
    backbone = {name.removeprefix("backbone.model."): w for name, w in state.items() if name.startswith("backbone.")}
    words = next(name for name in backbone if name.endswith("embed_tokens.weight"))
    backbone[words] = backbone[words][:vocabulary]
    backbone["lm_head.weight"] = backbone["lm_head.weight"][:vocabulary].clone()
    weights |= {prefix + name: weight for name, weight in backbone.items()}
    if expert_head is not None:  # not used; LeRobot's class has it
        width = weights["action_in_proj.weight"].shape[0]
        weights[expert_head] = torch.zeros(vocabulary, width, dtype=torch.bfloat16)
    return weights


def _expert_layers(model: VLA) -> int:
    return len(model.continuous_head.expert.layers)  # type: ignore[union-attr, arg-type]


def _write_pipeline(
    folder: Path, file: str, step: str, pipeline: Mapping[str, Any], config: Mapping[str, Any], robot: RobotSpec
) -> None:
    """Writes a pipeline of LeRobot with the robot's statistics."""
    pipeline = json.loads(json.dumps(pipeline))
    for number, entry in enumerate(pipeline["steps"]):
        if entry.get("registry_name") == "rename_observations_processor":
            entry["config"]["rename_map"] = {}
        if entry.get("registry_name") in (RELATIVE_STEP, ABSOLUTE_STEP):
            entry["config"]["enabled"] = any(robot.relative)
        if entry.get("registry_name") == RELATIVE_STEP:
            entry["config"]["action_names"], entry["config"]["exclude_joints"] = _named(robot)
        if entry.get("registry_name") != step:
            continue
        features = config["output_features"] | (config["input_features"] if file == PREPROCESSOR else {})
        entry["config"] |= {"features": features, "norm_map": config["normalization_mapping"]}
        entry["state_file"] = f"{Path(file).stem}_step_{number}_{step}.safetensors"
        statistics = _statistics(STATE, robot.state) | _statistics(ACTION, robot.action)
        save_arrays(statistics, folder / entry["state_file"])
    (folder / file).write_text(json.dumps(pipeline, indent=2))


def _statistics(key: str, normalizer: Normalizer) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Statistics by which each normalisation of LeRobot does what `normalizer` does."""
    low, high = (np.asarray(values, np.float64) for values in (normalizer.low, normalizer.high))
    values = {"mean": (low + high) / 2, "std": (high - low) / 2}
    values |= dict.fromkeys(("min", "q01", "q10"), low) | dict.fromkeys(("max", "q99", "q90"), high)
    return {f"{key}.{name}": value.astype(np.float32) for name, value in values.items()}
