"""A released robot policy as a `VLA`: backbone, action head, processor and normalisation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.action_heads.build import changed_options
from vla.models.backbones.backbone import Backbone
from vla.models.normalization import Normalizer
from vla.models.processor import Processor
from vla.models.released.lerobot_folder import ACTION, IMAGES, STATE, LeRobotFolder
from vla.models.released.openpi_folder import OpenpiFolder
from vla.models.released.relative_actions import check_relative
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA

OUTPUT = "lm_head.weight"
TRAINING = {"knowledge_insulation", "tokens", "tokenizer", "rtc_training"}
"""Options of heads that change the training of a released policy, but not its architecture."""


@dataclass(frozen=True)
class RobotPolicy:
    """The parts of a released policy.

    Attributes:
        name: its folder or name on the hub.
        processor: without robots, with the policy's inputs (`ChatFormat.policy`).
        head: settings of the action head.
        weights: weights of the model outside the backbone, with our names.
        horizon: number of steps of a chunk.
        state, action: the normalisation of the robot on which it was trained; None for a base without statistics.
        cameras: the policy's names of its cameras, in its order.
        renamed: the policy's names of cameras that a robot names differently.
        missing: why there are no statistics, and what to do.
        relative: whether each component of the action is predicted relative to that of the state; further ones are not.
    """

    name: str
    backbone: Backbone
    processor: Processor
    head: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    horizon: int
    state: Normalizer | None = None
    action: Normalizer | None = None
    cameras: tuple[str, ...] = ()
    relative: tuple[bool, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    missing: str = "it is a base, train it on demonstrations first"

    @classmethod
    def of_folder(
        cls,
        folder: LeRobotFolder | OpenpiFolder,
        backbone: Backbone,
        processor: Processor,
        head: Mapping[str, Any],
        weights: Mapping[str, Tensor],
    ) -> RobotPolicy:
        """The policy of a folder, whose files determine the robot's attributes."""
        action = folder.normalizer(ACTION, "ACTION")
        return cls(
            name=str(folder.path),
            backbone=backbone,
            processor=processor,
            head=head,
            weights=weights,
            horizon=int(folder.config["chunk_size"]),
            state=folder.normalizer(STATE, "STATE"),
            action=action,
            cameras=folder.cameras,
            renamed=folder.renamed,
            relative=() if action is None else folder.relative(len(action.low)),
        )

    def model(self, robots: Sequence[RobotSpec], head: Mapping[str, Any] | None = None) -> VLA:
        """The policy for these robots, in one model.

        Args:
            robots: the robots.
            head: options of training for the action head, of `TRAINING`.

        Raises:
            InputError: for a robot with more components than the policy's weights have, and for other options.
        """
        settings = {**self.head, **self._chosen(head or {})}
        width = self._width
        for robot in robots:
            count = max(len(robot.embodiment.state), robot.action_dim)
            if width and count > width:
                raise InputError(f"{self.name} has {width} components of states and actions, {robot.name} has {count}")
            if 0 < (views := self._views) < (count := len(robot.embodiment.cameras)):
                raise InputError(f"{self.name} takes at most {views} cameras, {robot.name} has {count}")
        model = VLA(self.backbone, self.processor.with_robots(robots, settings, "numbers"))
        load_weights(model, {**without_effect(model), **self.weights})
        return model.eval()

    def _chosen(self, head: Mapping[str, Any]) -> dict[str, Any]:
        """The options of `head` that are not the default. Raises InputError for one that the weights determine."""
        chosen = changed_options({**head, "kind": self.head["kind"]}, self.head)
        if fixed := sorted(chosen.keys() - TRAINING):
            raise InputError(f"the weights of {self.name} determine head.{fixed[0]}: leave it out")
        return chosen

    def _ordered(self, cameras: tuple[str, ...]) -> tuple[str, ...]:
        """A robot's cameras in the policy's order, in which its prompts have the images.

        Where their names are not the policy's they keep the robot's order, which a line reports.
        """
        names = {camera: self.renamed.get(IMAGES + camera, IMAGES + camera) for camera in cameras}
        if set(names.values()) <= set(self.cameras):
            return tuple(sorted(cameras, key=lambda camera: self.cameras.index(names[camera])))
        pairs = ", ".join(f"{ours} for {theirs}" for ours, theirs in zip(cameras, self.cameras, strict=False))
        print(f"{self.name}: cameras by their order: {pairs or ', '.join(cameras)}", flush=True)
        return cameras

    @property
    def _views(self) -> int:
        return 0 if self.processor.policy is None else self.processor.policy.views

    @property
    def _width(self) -> int:
        return 0 if self.processor.policy is None else self.processor.policy.width

    def robot(self, embodiment: Embodiment) -> RobotSpec:
        """The robot on which the policy was trained, with the names and units of `embodiment`.

        Raises:
            InputError: where it has another number of components, and for a policy without statistics.
        """
        unused = self.processor.policy is not None and self.processor.policy.state == "none"
        state = Normalizer((-1.0,) * len(embodiment.state), (1.0,) * len(embodiment.state)) if unused else self.state
        for key, normalizer, names in (
            ("state", state, embodiment.state),
            ("action", self.action, embodiment.action),
        ):
            if normalizer is None:
                raise InputError(f"{self.name} has no statistics of its {key}: {self.missing}")
            # openpi may store the statistics of padded vectors.
            if (count := len(normalizer.low)) != len(names) and not (count == self._width and count > len(names)):
                raise InputError(
                    f"the {key} of {self.name} has {count} components, that of {embodiment.name} {len(names)}: {names}"
                )
        if len(embodiment.cameras) > len(self.cameras) > 0:
            raise InputError(
                f"{self.name} takes {len(self.cameras)} cameras ({', '.join(self.cameras)}), {embodiment.name} has "
                f"{len(embodiment.cameras)}: {', '.join(embodiment.cameras)}"
            )
        embodiment = replace(embodiment, cameras=self._ordered(embodiment.cameras))
        assert state is not None
        assert self.action is not None
        count = len(embodiment.action)
        relative = (*self.relative, *(False,) * count)[:count]
        check_relative(self.name, embodiment, relative)
        own = state.cut(len(embodiment.state)), self.action.cut(count)
        return RobotSpec(embodiment, self.horizon, *own, statistics_hash="", relative=relative)


def without_effect(model: VLA) -> dict[str, Tensor]:
    """The model's embeddings of a chunk's positions and of conditioning values, whose outputs start at zero.

    Released policies have neither; training gives them a meaning.
    """
    modules = ("action_position_embedding.", "conditioning_mlp.")
    own = {name: weight for name, weight in model.state_dict().items() if name.startswith(modules)}
    return {n: w.clone() if n.startswith("conditioning_mlp.0.") else torch.zeros_like(w) for n, w in own.items()}


@torch.no_grad()
def load_weights(model: VLA, weights: Mapping[str, Tensor]) -> None:
    """Loads the weights outside the backbone; inputs that a weight does not have get zeros.

    The further inputs are conditioning values that the policy does not know: the embodiment, with several robots.

    Raises:
        InputError: where a weight is missing, unexpected or of another shape.
    """
    own = {name: weight for name, weight in model.state_dict().items() if not name.startswith("backbone.")}
    if differing := sorted(own.keys() ^ weights.keys()):
        raise InputError(f"{differing[0]} is only in the policy's weights or only in the model")
    for name, weight in own.items():
        stored = weights[name]
        if weight.ndim == 2 and stored.shape[0] == weight.shape[0] and stored.shape[1] < weight.shape[1]:
            stored = torch.nn.functional.pad(stored, (0, weight.shape[1] - stored.shape[1]))
        if stored.shape != weight.shape:
            raise InputError(
                f"{name} has the shape {list(stored.shape)} in the policy, {list(weight.shape)} in the model"
            )
        weight.copy_(stored)


def open_tokenizer(name: str, setting: str = "tokenizer_name in policy_preprocessor.json") -> PreTrainedTokenizerFast:
    """The tokenizer that `setting` of a policy names. Raises InputError when it cannot be read, or is one in Python."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the policy's tokenizer {name} cannot be read ({error}): download it, and name its folder as {setting}"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"{name} has a tokenizer in Python: save it as tokenizer.json first")
    return tokenizer


def open_vlm_config(name: str) -> Any:
    """The configuration of a policy's vision-language model. Raises InputError when it cannot be read."""
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the policy's vision-language model {name} cannot be read ({error}): download its configuration and "
            "tokenizer, and name their folder as vlm_model_name in config.json"
        ) from error


def load_vlm(backbone: Any, weights: Mapping[str, Tensor], name: str, absent: Collection[str] = (OUTPUT,)) -> None:
    """Loads the weights of the vision-language model `name`, which may lack those in `absent`.

    Raises:
        InputError: where another weight is missing, or one is unexpected.
    """
    missing, unexpected = backbone.model.load_state_dict(weights, strict=False)
    if wrong := [*(weight for weight in missing if weight not in absent), *unexpected]:
        raise InputError(f"{wrong[0]} is only in the policy's weights or only in {name}")


def count_layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    """The number of layers with weights named `prefix` and the layer's index."""
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix))
