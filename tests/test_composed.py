"""Composed backbones keep the contract, whatever the vision encoder and the connector."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import check_backbone
from conftest import CONVNEXT
from safetensors.torch import load_file

from vla.common.images import Size
from vla.errors import InputError
from vla.models.backbones.composed import ComposedVLM
from vla.models.vla import VLA

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VIT = {**SIZES, "image_size": 32, "patch_size": 8}
LLAMA = {**SIZES, "model_type": "llama", "num_key_value_heads": 2, "vocab_size": 64}
QWEN = {**LLAMA, "model_type": "qwen2"}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 128}
NEOX = {**SIZES, "model_type": "gpt_neox", "vocab_size": 64}
ENCODERS: dict[str, dict[str, Any]] = {
    "convnext": CONVNEXT,
    "clip": {"model_type": "clip_vision_model", **VIT},
    "siglip": {"model_type": "siglip_vision_model", **VIT},
    "dinov2": {"model_type": "dinov2", **VIT},
}
CONNECTORS: list[dict[str, Any]] = [
    {"kind": "linear"},
    {"kind": "mlp"},
    {"kind": "pixel_shuffle", "factor": 2},
    {"kind": "qformer", "queries": 3, "query_width": 16, "layers": 2, "heads": 2},
    {"kind": "resampler", "latents": 3, "layers": 1, "heads": 2, "head_width": 8},
]


def composed(
    vision: dict[str, Any], language: dict[str, Any], connector: dict[str, Any], size: Size = 32
) -> ComposedVLM:
    torch.manual_seed(0)
    return ComposedVLM(vision, language, size, image_token_id=2, attention="eager", connector=connector)


@pytest.mark.parametrize("connector", CONNECTORS, ids=lambda c: c["kind"])
@pytest.mark.parametrize("vision", ENCODERS)
def test_any_encoder_with_any_connector(vision: str, connector: dict[str, Any]) -> None:
    check_backbone(lambda: composed(ENCODERS[vision], LLAMA, connector))


@pytest.mark.parametrize("connector", CONNECTORS, ids=lambda c: c["kind"])
@pytest.mark.parametrize("vision", ENCODERS)
def test_images_of_the_cameras_own_shape(vision: str, connector: dict[str, Any]) -> None:
    check_backbone(lambda: composed(ENCODERS[vision], LLAMA, connector, (32, 48)))


def test_an_encoder_that_cannot_see_a_size_says_so() -> None:
    with pytest.raises(InputError, match="ViTModel does not take images"):
        composed({"model_type": "vit", **VIT}, LLAMA, {"kind": "linear"}, (4, 48))


@pytest.mark.parametrize("language", [QWEN, GPT2, NEOX], ids=lambda c: c["model_type"])
def test_any_language_model(language: dict[str, Any]) -> None:
    check_backbone(lambda: composed(ENCODERS["clip"], language, CONNECTORS[1]))


def test_the_shipped_nano_is_loaded_whole() -> None:
    """Its weights are named as they were before there were several connectors."""
    folder = Path(str(files("vla") / "assets" / "nano"))
    stored = load_file(folder / "model.safetensors")
    loaded = dict(VLA.load(folder).state_dict())
    assert len(stored) == len(loaded)
    torch.testing.assert_close(loaded["backbone.connector.cells"], stored["backbone.cells"].float())
