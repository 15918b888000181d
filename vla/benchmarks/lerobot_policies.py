"""Policies of LeRobot's own classes with random weights, saved as LeRobot saves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vla.benchmarks.train_shapes import Shape, released_tokenizer, save_for_lerobot
from vla.models.released.pi import TOKENIZER

STATISTICS = {"mean": 0.1, "std": 0.7, "q01": -1.3, "q99": 1.5}
"""Of each component of states and actions."""
WORDS = 4096
"""Tokens of pi0's text tokenizer."""


def save_policy(
    kind: str, folder: Path, cameras: Mapping[str, Sequence[int]], joints: int, settings: Mapping[str, Any]
) -> tuple[Any, Any, Any]:
    """Makes a policy with random weights, saves it in `folder`/policy and returns it with its two pipelines.

    Args:
        kind: LeRobot's name of the policy. pi0's tokenizer is saved in `folder`, which must be the working directory.
        folder: an existing folder.
        cameras: height and width of each camera's images [px].
        joints: components of the state and of the actions.
        settings: of LeRobot's configuration.
    """
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    torch.manual_seed(0)
    if kind != "smolvla":
        released_tokenizer(WORDS).save_pretrained(folder / TOKENIZER)
    images = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, *s)) for name, s in cameras.items()}
    config = make_policy_config(
        kind,
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (joints,)), **images},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (joints,))},
        push_to_hub=False,
        **settings,
    )
    numbers = {name: torch.full((joints,), value) for name, value in STATISTICS.items()}
    statistics = {"observation.state": numbers, "action": numbers}
    policy = get_policy_class(kind)(config).eval()
    made = policy, *make_pre_post_processors(config, dataset_stats=statistics)
    for part in made:
        part.save_pretrained(folder / "policy")
    return made


def smolvla_settings(shape: Shape, folder: Path) -> dict[str, Any]:
    """The settings of a SmolVLA of these sizes, whose VLM's files are written to `folder`."""
    save_for_lerobot(shape, None, folder)
    return {
        "vlm_model_name": str(folder),
        "load_vlm_weights": False,
        "num_vlm_layers": shape.model["text_config"]["num_hidden_layers"],
        "resize_imgs_with_padding": (shape.image_size, shape.image_size),
    }
