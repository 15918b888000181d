"""Connectors and vision encoders: what comes out of any pair of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModel, CLIPVisionModel, InternVLConfig, InternVLModel

from vla.errors import InputError
from vla.models.backbones.connectors import KINDS, build_connector
from vla.models.backbones.vision import VisionEncoder

SMALL: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"norm": True},
    "pixel_shuffle": {"factor": 2},
    "qformer": {"queries": 5, "query_width": 24, "layers": 2, "heads": 2},
    "resampler": {"latents": 6, "layers": 2, "heads": 2, "head_width": 8},
}
TOKENS = {"linear": 24, "mlp": 24, "pixel_shuffle": 6, "qformer": 5, "resampler": 6}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
WIDE = VIT | {"intermediate_size": 32}
STAGES = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 32}
ENCODERS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "convnext": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "out_features": ["stage2"]}, (28, 3, 16)),
    "swin": ({**STAGES, "out_features": ["stage2"]}, (32, 4, 16)),
    "dinov2": (VIT, (28, 2, 16)),
    "dinov2 map": ({**VIT, "out_features": ["stage2"]}, (28, 2, 16)),
    "dinov2_with_registers": (VIT, (56, 4, 16)),
    "clip_vision_model": (WIDE, (28, 2, 16)),
    "siglip_vision_model": (WIDE, (42, 3, 16)),
    "vit": (WIDE, (42, 3, 16)),
}


@pytest.mark.parametrize("kind", SMALL)
def test_every_feature_reaches_the_tokens(kind: str) -> None:
    connector = build_connector(kind, 16, (4, 6), 20, **SMALL[kind]).eval()
    features = torch.randn(3, 24, 16, requires_grad=True)
    tokens = connector(features)
    assert connector.tokens == TOKENS[kind]
    assert tokens.shape == (3, connector.tokens, 20)
    tokens[1].square().sum().backward()
    assert features.grad is not None
    assert (features.grad[1] != 0).any(-1).all()
    assert not features.grad[[0, 2]].any(), "an image is not told of another"
    assert all(p.grad is not None for p in connector.parameters())


def test_all_kinds_are_tried() -> None:
    assert SMALL.keys() == KINDS.keys() == TOKENS.keys()


@torch.no_grad()
def test_pixel_shuffle_is_that_of_internvl() -> None:
    vision = VIT | {"intermediate_size": 32, "image_size": [56, 56], "patch_size": [14, 14]}
    text = {"model_type": "llama", "vocab_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    made: Any = InternVLConfig
    theirs = InternVLModel(
        made(vision_config=vision, text_config={**text, "hidden_size": 20, "intermediate_size": 8})
    ).eval()
    ours = build_connector("pixel_shuffle", 16, (4, 4), 20)
    projector = theirs.multi_modal_projector
    for to, source in ((0, projector.layer_norm), (1, projector.linear_1), (3, projector.linear_2)):
        ours.mlp[to].load_state_dict(source.state_dict())
    pixels = torch.randn(2, 3, 56, 56)
    features = theirs.vision_tower(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(ours(features), theirs.get_image_features(pixels).pooler_output)


@torch.no_grad()
def test_the_resampler_does_not_mind_the_order_of_features() -> None:
    connector = build_connector("resampler", 16, (2, 3), 16, **SMALL["resampler"])
    features = torch.randn(1, 6, 16)
    torch.testing.assert_close(connector(features), connector(features.flip(1)), atol=1e-5, rtol=1e-5)
    assert (connector(features) - connector(-features)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [("glue", {}, "glue"), ("mlp", {"depth": 3}, "depth"), ("pixel_shuffle", {"factor": 4}, "4 x 6")],
)
def test_wrong_connectors_are_named(kind: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        build_connector(kind, 16, (4, 6), 20, **options)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_features_of_any_encoder_lie_where_the_image_is(name: str) -> None:
    values, (size, side, width) = ENCODERS[name]
    encoder = VisionEncoder({"model_type": name.split()[0], **values}).eval()
    assert (encoder.width, encoder.grid(size)) == (width, (side, side))
    pixels = torch.randn(2, 3, size, size)
    pixels[1] = pixels[0]
    pixels[1, :, :8, -8:] += 20
    features = encoder(pixels)
    assert features.shape == (2, side, side, width)
    changed = (features[1] - features[0]).abs().sum(-1)
    assert changed.argmax() == side - 1, "a change at the top right shows there most"


@torch.no_grad()
def test_a_layer_can_be_chosen() -> None:
    config = {"model_type": "clip_vision_model", **WIDE}
    encoder, pixels = VisionEncoder({**config, "layer": -1}).eval(), torch.randn(1, 3, 28, 28)
    model: CLIPVisionModel = encoder.model
    torch.testing.assert_close(encoder(pixels).flatten(1, 2), model(pixels).last_hidden_state[:, 1:])
    before = VisionEncoder(config).eval()
    before.load_state_dict(encoder.state_dict())
    hidden = model(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(before(pixels).flatten(1, 2), hidden[:, 1:])


def test_weights_load_under_the_names_of_transformers() -> None:
    encoder = VisionEncoder({"model_type": "dinov2", **VIT})
    other = AutoModel.from_config(encoder.model.config)
    encoder.load_state_dict(other.state_dict())
    assert torch.equal(encoder.model.embeddings.cls_token, other.embeddings.cls_token)
    encoder.load_state_dict(encoder.state_dict())


def test_an_unknown_encoder_is_named() -> None:
    with pytest.raises(InputError, match="eye"):
        VisionEncoder({"model_type": "eye"})
