"""What an engine is measured beside: transformers' `generate`, and LeRobot's policies at any size without a network."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vla.benchmarks.inference_shapes import Shape, observation
from vla.benchmarks.train_shapes import save_for_lerobot
from vla.models.vla import VLA

PROMPT = 48
"""Tokens of an instruction, as LeRobot pads it."""
WIDE = 32
"""Components of states and actions, as LeRobot pads them."""


def generated(model: VLA, tokens: int, dtype: torch.dtype) -> Callable[[], Any]:
    """Vision and `generate` of the same backbone in `dtype`, for so many greedy tokens, from an observation on."""
    backbone: Any = model.backbone
    if dtype != torch.float32:
        backbone = copy.deepcopy(backbone).to(dtype)
    language, seen = getattr(backbone, "language", None) or backbone.model, observation(model)
    language.generation_config.pad_token_id = model.processor.pad

    @torch.inference_mode()
    def call() -> Any:
        batch = model.processor.robot_prompt([seen]).to(model.device)
        vision = backbone.encode_images(model.processor.pixels(batch.images).to(dtype), batch.image_mask)
        embeds, more = backbone.embed(batch.input_ids, vision), {}
        if language.config.model_type == "paligemma":  # all of the prompt looks at all of it
            more["token_type_ids"] = torch.zeros_like(batch.input_ids)
        said = language.generate(
            inputs_embeds=embeds,
            attention_mask=batch.attention_mask.long(),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            **more,
        )
        return said.cpu()

    return call


def lerobot(policy: str, shape: Shape, device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    """LeRobot's policy of these sizes: its model's own sampling of a chunk, from tensors on the device on.

    In bfloat16 is what LeRobot has in it: not what projects states and actions, nor pi0's vision.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    make = {"smolvla": _smolvla, "pi0": _pi0, "pi0_fast": _pi0_fast}[policy]
    model = make(shape, device, dtype).to(device).eval()
    size = shape.sizes.image_size if shape.sizes else 224
    images = [torch.rand(1, 3, size, size, device=device) * 2 - 1 for _ in range(shape.cameras)]
    there = [torch.ones(1, dtype=torch.bool, device=device) for _ in images]
    words = torch.randint(10, 100, (1, PROMPT), device=device)
    state, mask = torch.zeros(1, WIDE, device=device), torch.ones_like(words, dtype=torch.bool)
    noise = torch.randn(1, shape.horizon, WIDE, device=device)

    @torch.inference_mode()
    def call() -> Any:
        if policy == "pi0_fast":
            return model.sample_actions_fast_kv_cache(images, there, words, mask, shape.tokens).cpu()
        return model.sample_actions(images, there, words, mask, state, noise=noise).float().cpu()

    return call


def _common(shape: Shape, device: torch.device) -> dict[str, Any]:
    return {"device": str(device), "chunk_size": shape.horizon, "n_action_steps": shape.horizon}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _smolvla(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching

    assert shape.sizes is not None
    with tempfile.TemporaryDirectory(prefix="vla-bench-") as folder:
        save_for_lerobot(shape.sizes, None, Path(folder))
        config = SmolVLAConfig(
            **_common(shape, device),
            vlm_model_name=folder,
            load_vlm_weights=False,
            num_vlm_layers=shape.sizes.model["text_config"]["num_hidden_layers"],
            resize_imgs_with_padding=(shape.sizes.image_size, shape.sizes.image_size),
        )
        model = VLAFlowMatching(config)
        model.vlm_with_expert.to(dtype)
        return model


def _pi0(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    from lerobot.policies.pi0.configuration_pi0 import PI0Config
    from lerobot.policies.pi0.modeling_pi0 import PI0Pytorch

    with device:
        return PI0Pytorch(PI0Config(**_common(shape, device), dtype=_name(dtype)))


def _pi0_fast(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    from lerobot.configs import FeatureType, PolicyFeature
    from transformers import AutoTokenizer

    from vla.benchmarks.train_lerobot import SizedPI0FastConfig, SizedPI0FastPolicy

    assert shape.sizes is not None
    side = (shape.sizes.image_size, shape.sizes.image_size)
    with tempfile.TemporaryDirectory(prefix="vla-bench-") as folder:
        save_for_lerobot(shape.sizes, None, Path(folder))
        config = SizedPI0FastConfig(
            **_common(shape, device),
            input_features={"observation.images.camera0": PolicyFeature(FeatureType.VISUAL, (3, *side))},
            output_features={"action": PolicyFeature(FeatureType.ACTION, (shape.width,))},
            sizes=folder,
            text_tokenizer_name=folder,
            image_resolution=side,
            dtype=_name(dtype),
            max_action_tokens=shape.tokens,
        )
        model: Any = SizedPI0FastPolicy(config).model
        model._paligemma_tokenizer = AutoTokenizer.from_pretrained(folder)
        return model
