"""Prismatic keeps the backbone contract, and has the names and shapes of the published checkpoints."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import check_backbone
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from vla.models.action_heads.l1_regression import L1Head
from vla.models.backbones.build import build
from vla.models.backbones.own_family import converted
from vla.models.backbones.prismatic import PIXELS, Prismatic
from vla.models.released.openvla import prepared
from vla.models.released.openvla_oft import RULES, STATE_RULES

PUBLISHED = json.loads((Path(__file__).parent / "data" / "openvla.json").read_text())
"""Names and shapes of the weights of openvla-7b, and of the modules of an OpenVLA-OFT of LIBERO."""
RANGE = re.compile(r"\{0-(\d+)\}")


def published(name: str) -> dict[str, Tensor]:
    """The weights of a published file, without values."""
    found = {}
    for pattern, shape in PUBLISHED[name].items():
        last = int(match[1]) if (match := RANGE.search(pattern)) else 0
        found |= {RANGE.sub(str(i), pattern): torch.empty(shape, device="meta") for i in range(last + 1)}
    return found


def shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}


@pytest.mark.parametrize("bidirectional", [False, True])
def test_keeps_the_contract(bidirectional: bool) -> None:
    encoder = {"image_size": 28, "patch_size": 14, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {
        "family": "prismatic",
        "model": {
            "model_type": "llama",
            "vocab_size": 100,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "pad_token_id": None,
        },
        "vision": {
            "dino": {**encoder, "hidden_size": 16, "mlp_ratio": 2},
            "siglip": {**encoder, "hidden_size": 24, "intermediate_size": 20, "hidden_act": "gelu"},
            "pixels": PIXELS,
        },
        "bidirectional": bidirectional,
        "area": 0.9,
        "image_token_id": 2,
        "image_size": 28,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }
    check_backbone(lambda: build(json.loads(json.dumps(config))))


@pytest.mark.parametrize("oft", [False, True])
def test_model_has_the_published_names_and_shapes(oft: bool) -> None:
    released = published("openvla-7b")
    assert sum(math.prod(weight.shape) for weight in released.values()) == pytest.approx(7.54e9, rel=1e-3)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "▁": 29871}, "<unk>"))
    config = {"text_config": {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000}}
    arguments, ours = prepared(config, released, words, oft)
    with torch.device("meta"):
        backbone: Any = Prismatic(**arguments)
    assert shapes(ours) == shapes(backbone.state_dict())
    assert (backbone.tokens_per_image, backbone.vocab_size, backbone.hidden_size) == (256, 32001, 4096)
    assert backbone.model.get_input_embeddings().padding_idx is None
    vision = backbone.vision_config
    assert [vision[name]["num_attention_heads"] for name in ("dino", "siglip")] == [16, 16]
    assert [vision[name]["num_hidden_layers"] for name in ("dino", "siglip")] == [23, 26]


def test_oft_modules_have_the_published_names_and_shapes() -> None:
    head, state = published("action_head"), published("proprio_projector")
    assert sum(math.prod(weight.shape) for weight in head.values()) == pytest.approx(151e6, rel=1e-2)
    with torch.device("meta"):
        module = L1Head(4096, 8, 7)
        projector = nn.Sequential(nn.Linear(8, 4096), nn.GELU(), nn.Linear(4096, 4096))
    expected = {f"continuous_head.{name}": weight for name, weight in module.state_dict().items()}
    assert shapes(converted(head, RULES)) == shapes(expected)
    expected = {f"state_proj.{name}": weight for name, weight in projector.state_dict().items()}
    assert shapes(converted(state, STATE_RULES)) == shapes(expected)
