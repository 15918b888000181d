"""Reference implementations: transformers' `generate`, and LeRobot's policies at any size without network access."""

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
from vla.models.backbone_inputs import ImageInput
from vla.models.vla import VLA

PROMPT = 48
"""The padded length of an instruction in LeRobot [tokens]."""
MAX_DIM = 32
"""The padded dimension of states and actions in LeRobot."""


def generated(model: VLA, tokens: int, dtype: torch.dtype) -> Callable[[], Any]:
    """A function that runs vision and `generate` of the backbone in `dtype` for `tokens` greedy tokens."""
    backbone: Any = model.backbone
    if dtype != torch.float32:
        backbone = copy.deepcopy(backbone).to(dtype)
    language, sample_observation = backbone.language_model, observation(model)
    language.generation_config.pad_token_id = model.processor.pad

    @torch.inference_mode()
    def call() -> Any:
        batch = model.processor.robot_prompt([sample_observation]).to(model.device)
        vision = backbone.encode_images(ImageInput(model.processor.pixels(batch.images).to(dtype), batch.image_mask))
        embeds, more = backbone.embed(batch.input_ids, vision), {}
        if language.config.model_type == "paligemma":  # bidirectional attention over the prompt
            more["token_type_ids"] = torch.zeros_like(batch.input_ids)
        output = language.generate(
            inputs_embeds=embeds,
            attention_mask=batch.attention_mask.long(),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            **more,
        )
        return output.cpu()

    return call


def lerobot(policy: str, shape: Shape, device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    """A function that samples a chunk with LeRobot's policy of these sizes, from tensors on the device.

    The parts that LeRobot computes in bfloat16 do so, excluding the projections of states and actions and pi0's vision.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    make = {"smolvla": _smolvla, "pi0": _pi0, "pi0_fast": _pi0_fast}[policy]
    model = make(shape, device, dtype).to(device).eval()
    size = shape.sizes.image_size if shape.sizes else 224
    images = [torch.rand(1, 3, size, size, device=device) * 2 - 1 for _ in range(shape.cameras)]
    masks = [torch.ones(1, dtype=torch.bool, device=device) for _ in images]
    words = torch.randint(10, 100, (1, PROMPT), device=device)
    state, mask = torch.zeros(1, MAX_DIM, device=device), torch.ones_like(words, dtype=torch.bool)
    noise = torch.randn(1, shape.horizon, MAX_DIM, device=device)

    @torch.inference_mode()
    def call() -> Any:
        if policy == "pi0_fast":
            return model.sample_actions_fast_kv_cache(images, masks, words, mask, shape.tokens).cpu()
        return model.sample_actions(images, masks, words, mask, state, noise=noise).float().cpu()

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
