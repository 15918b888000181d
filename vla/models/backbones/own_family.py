"""Token families that are implemented in this package, and the conversion of their released weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.initialization import no_init_weights
from transformers.modeling_utils import local_torch_dtype

from vla.errors import InputError
from vla.models.backbone_inputs import ImageInput
from vla.models.backbones.cache import Vision
from vla.models.backbones.hf_backbone import HFBackbone


class OwnFamily(HFBackbone):
    """A vision tower and a connector of this package before a decoder of transformers.

    Args:
        model: the decoder's configuration as a dict with `model_type`.
        vision: configuration of the vision tower.
        kwargs: the other arguments of `HFBackbone`.
    """

    name: ClassVar[str]
    vision: nn.Module
    connector: nn.Module

    def __init__(self, model: Mapping[str, Any], vision: Mapping[str, Any], **kwargs: Any) -> None:
        self.vision_config = dict(vision)  # needed by `image_grid` before nn.Module.__init__
        config = AutoConfig.for_model(**model)
        config.dtype = torch.get_default_dtype()
        weights = AutoModelForCausalLM.from_config(config, attn_implementation=kwargs.get("attention"))
        super().__init__(model, weights=weights, **kwargs)
        self.family = self.name

    @property
    def config(self) -> dict[str, Any]:
        """See `Backbone.config`."""
        return super().config | {"vision": self.vision_config}

    def freezable_modules(self) -> dict[str, nn.Module]:
        """See `Backbone.freezable_modules`."""
        return {"vision": self.vision, "connector": self.connector, "language": self.model}

    def encode_images(self, images: ImageInput) -> Vision:
        """See `Backbone.encode_images`."""
        features = self.connector(self.vision(images.frames)).flatten(0, 1)
        return Vision(features, len(features))


def unsplit(weight: Tensor) -> Sequence[Tensor]:
    """The weight as the only item."""
    return (weight,)


@dataclass(frozen=True)
class Rule:
    r"""Renames weights that match `pattern` to `targets` (`\1` is the first group), after `split` into as many."""

    pattern: str
    targets: tuple[str, ...]
    split: Callable[[Tensor], Sequence[Tensor]] = unsplit


def converted(weights: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """All weights, renamed by the first rule that matches. Raises InputError for a name without a rule."""
    ours: dict[str, Tensor] = {}
    for name, weight in weights.items():
        found = ((rule, match) for rule in rules if (match := re.fullmatch(rule.pattern, name)))
        rule, match = next(found, (None, None))
        if rule is None or match is None:
            raise InputError(f"{name} is not a weight of this family: is it another version of the checkpoint?")
        for target, value in zip(rule.targets, rule.split(weight), strict=True):
            ours[match.expand(target)] = value
    return ours


def released_config(folder: str | Path, *, model_type: str) -> dict[str, Any]:
    """The config.json of a released checkpoint. Raises InputError when it is missing or of another family."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} has no config.json: download the checkpoint's files into a folder and name that")
    config: dict[str, Any] = json.loads(file.read_text())
    if config.get("model_type") != model_type:
        raise InputError(f"{file} is of the family {config.get('model_type')}, not {model_type}")
    return config


def released_weights(folder: str | Path) -> dict[str, Tensor]:
    """The weights in a folder's *.safetensors, with their released names. Raises InputError when there are none."""
    weights: dict[str, Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        weights |= load_file(file)
    if not weights:
        raise InputError(f"{folder} has no *.safetensors: convert its weights to that format first")
    return weights


def filled[M: OwnFamily](
    family: Callable[..., M], arguments: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype
) -> M:
    """A backbone in `dtype` with these weights.

    Args:
        arguments: of `family`; `mean` and `std` of pixels are by default those of CLIP.

    Raises:
        InputError: when weights are missing, unexpected or of another shape.
    """
    with local_torch_dtype(dtype), no_init_weights():
        backbone = family(**{"mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD, **arguments})
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        reason = shorten(str(error).splitlines()[-1], 200)
        raise InputError(f"the weights are not those of the configuration: {reason}") from error
    return backbone
