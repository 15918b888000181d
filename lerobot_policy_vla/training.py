"""Makes a model for LeRobot's training loop from the dataset, as `vla train` makes it from the converted store.

The robot's components, action modes and ranges come from the rows of the dataset. A streamed dataset has none on this
machine: its ranges come from LeRobot's statistics, for actions that are predicted unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_policy_vla.configuration_vla import VlaConfig
from vla.common.renamed_keys import HEAD, current_keys
from vla.common.statistics import LEVELS, Statistics, check_finite
from vla.datasets.action_inference import GRIPPER
from vla.datasets.formats.lerobot_features import map_features, names_of
from vla.datasets.formats.lerobot_v3 import open_source
from vla.datasets.formats.stated_actions import state_actions
from vla.embodiment import ACTION_MODES, Embodiment
from vla.errors import InputError
from vla.kinematics.joint_map import bare
from vla.models.action_targets import RELATIVE, UNCHANGED
from vla.models.build import build
from vla.models.continued import Ranges
from vla.models.normalization import QUANTILE, Normalizer, methods_of
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA
from vla.training.action_head import head_settings
from vla.training.backbone_defaults import backbone_defaults
from vla.training.demonstrations import robot_specs
from vla.training.episode_numbers import EpisodeNumbers, Episodes, Numbers
from vla.training.optimizer import freeze

STATE, ACTION = "observation.state", "action"
SCRATCH = "scratch"


class DatasetNumbers(EpisodeNumbers):
    """States and actions of a LeRobotDataset on this machine.

    Args:
        meta: LeRobot's metadata of the dataset.
        actions: The action mode; None: as stated by the dataset, else inferred from its data.

    Raises:
        InputError: the dataset cannot be read, or does not show the action mode.
    """

    def __init__(self, meta: Any, actions: str | None) -> None:
        self._source = open_source(Path(meta.root), state=[STATE], action=[ACTION])
        choices = {} if actions is None else {"actions": actions}
        self._embodiment = state_actions(self._source, range(len(self._source)), choices).embodiment
        self._name = meta.repo_id

    @property
    def embodiment(self) -> Embodiment:
        """The robot, as `vla convert` describes it."""
        return self._embodiment

    def numbers(self, episodes: Episodes | None = None) -> Iterator[Numbers]:
        """See `EpisodeNumbers`; the training episodes are all."""
        for index in range(len(self._source)) if episodes is None else episodes.tolist():
            state, actions = self._source.numbers(index)
            for rows, kind in ((actions, "action"), (state, "state")):
                check_finite(rows, getattr(self._embodiment, kind), f"{kind} of episode {index} of {self._name}")
            yield actions, state


def model_for_training(config: VlaConfig, meta: Any, checkpoint: Path | None = None) -> VLA:
    """The model to train on a dataset, with the parts frozen that `vla train` freezes by default.

    Args:
        config: The configuration of the policy.
        meta: LeRobot's metadata of the dataset.
        checkpoint: The checkpoint whose training continues (--policy.path, or a resumed run); None: `config.backbone`.

    Raises:
        InputError: the dataset and the model do not match, or an option needs `vla train`.
    """
    if config.units not in ("", "dataset"):
        model = _in_other_units(config, meta, checkpoint)
    else:
        model = _built(config, meta, str(checkpoint) if checkpoint else config.backbone)
    if any(robot.history for robot in model.processor.robots):
        raise InputError("LeRobot does not load past frames as this policy needs them: train it with `vla train`")
    freeze(model, backbone_defaults(model.backbone, scratch=config.backbone == SCRATCH)["freeze"])
    return model


def _built(config: VlaConfig, meta: Any, backbone: str | Mapping[str, Any]) -> VLA:
    horizon, normalization = len(config.action_delta_indices), config.normalization or QUANTILE
    if (Path(meta.root) / "data").is_dir():
        demonstrations = [DatasetNumbers(meta, config.actions)]
        predict = config.predict or RELATIVE
        (robot,) = robot_specs(demonstrations, horizon, predict, normalization)
    else:
        demonstrations = []
        robot = _from_statistics(config, meta, horizon, normalization)
    if not meta.robot_type:  # the folder of a downloaded dataset has the name of a revision
        robot = replace(robot, embodiment=replace(robot.embodiment, name=meta.repo_id.rpartition("/")[2]))
    head: Any = config.head
    needs_rows = config.head_kind == "fast" or (isinstance(head, Mapping) and head.get("knowledge_insulation"))
    if needs_rows and not demonstrations and not (isinstance(head, Mapping) and head.get("tokenizer")):
        raise InputError("a streamed dataset cannot train a FAST tokenizer: set tokenizer in --policy.head")
    head = {"kind": head} if isinstance(head, str) else current_keys(head, HEAD)
    texts = (f" {task}" for task in meta.tasks.index)
    ranges = Ranges(None, config.predict, config.normalization)
    _print_robot(robot)

    def complete(head: Mapping[str, Any], robots: Sequence[RobotSpec]) -> dict[str, Any]:
        return head_settings(head, demonstrations, robots)

    return build(backbone, [robot], texts, head, config.state_encoding, None, ranges, complete)


def _print_robot(robot: RobotSpec) -> None:
    body = robot.embodiment
    modes = ", ".join(dict.fromkeys(body.action_mode))
    print(
        f"{body.name}: cameras {', '.join(body.cameras) or 'none'}; {len(body.state)} state and {len(body.action)} "
        f"action components, {modes}; chunks of {robot.horizon} actions, {robot.horizon / body.control_hz:.2g} s at "
        f"{body.control_hz:g} Hz",
        flush=True,
    )


def _from_statistics(config: VlaConfig, meta: Any, horizon: int, normalization: str) -> RobotSpec:
    """The robot of a streamed dataset, from LeRobot's metadata and statistics."""
    if config.actions not in ACTION_MODES or config.predict == RELATIVE:
        raise InputError(
            "a streamed dataset does not show its action mode, nor the ranges of actions relative to the state: set "
            f"--policy.actions={ACTION_MODES[0]}, delta or velocity and --policy.predict={UNCHANGED}, or download it"
        )
    features = {key: {**one, "shape": list(one["shape"])} for key, one in meta.features.items()}
    found = map_features(features, meta.repo_id, [STATE], [ACTION])
    state, action = (names_of([key], features, {}) for key in (STATE, ACTION))
    known = {kind: _statistics(meta.stats[key]) for kind, key in (("state", STATE), ("action", ACTION))}
    methods = {
        kind: normalization if has or normalization != QUANTILE else "min-max" for kind, (_, has) in known.items()
    }
    body = Embodiment(
        name=meta.robot_type or meta.repo_id,
        cameras=tuple(found.cameras),
        state=state,
        action=action,
        action_low=tuple(known["action"][0].min.tolist()),
        action_high=tuple(known["action"][0].max.tolist()),
        control_hz=float(meta.fps),
        action_mode=(str(config.actions),) * len(action),
        grippers=tuple(name for name in action if any(word in name.lower() for word in GRIPPER)),
    )
    return RobotSpec(
        embodiment=body,
        horizon=horizon,
        state=Normalizer.fit(known["state"][0], methods_of(state, methods["state"])),
        action=Normalizer.fit(known["action"][0], methods_of(action, methods["action"])),
        statistics_hash="",
        relative=(False,) * len(action),
    )


def _statistics(stored: Mapping[str, Any]) -> tuple[Statistics, bool]:
    """LeRobot's statistics of a feature, and whether they have the quantiles of which ranges are made."""
    values = {name: np.asarray(one, np.float64).reshape(-1) for name, one in stored.items()}
    ends = {0: values["min"], 100: values["max"]}
    quantiles = {int(name[1:]): one for name, one in values.items() if name.startswith("q") and name[1:].isdigit()}
    known = dict(sorted((ends | quantiles).items()))
    columns = zip(*known.values(), strict=True)
    interpolated = np.array([np.interp(LEVELS, list(known), column) for column in columns]).T
    low, high, mean, std = (values[name] for name in ("min", "max", "mean", "std"))
    statistics = Statistics(
        interpolated, low, high, mean, std, int(values["count"].flat[0]) if "count" in values else 1
    )
    return statistics, {1, 99} <= quantiles.keys()


def _in_other_units(config: VlaConfig, meta: Any, checkpoint: Path | None) -> VLA:
    """A policy whose states and actions are those of the dataset in other units, with its own ranges."""
    if checkpoint is None:
        raise InputError(
            f"--policy.units={config.units} converts to the units of a trained policy: set --policy.path to one, or "
            "leave it out: a new policy has the units of the dataset"
        )
    model = VLA.load(checkpoint)
    body = model.processor.robot(config.robot).embodiment
    features = {key: {**one, "shape": list(one["shape"])} for key, one in meta.features.items()}
    for kind, key in (("state", STATE), ("action", ACTION)):
        names = names_of([key], features, {}) if key in features else ()
        if [bare(name) for name in names] != [bare(name) for name in getattr(body, kind)]:
            raise InputError(
                f"{key} of the dataset is {', '.join(names) or 'missing'}, the policy's {kind} "
                f"{', '.join(getattr(body, kind))}: only units may differ"
            )
    if body.control_hz != meta.fps:
        raise InputError(f"the policy's rate is {body.control_hz:g} Hz, the dataset's {meta.fps:g} Hz")
    if missing := [c for c in body.cameras if not any(key.rpartition(".")[2] == c for key in meta.camera_keys)]:
        raise InputError(f"the dataset has no camera {', '.join(missing)}: name it with --rename_map")
    return model
