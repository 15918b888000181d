"""Dual encoders: one contract over transformers' CLIP, ALIGN, SigLIP and SigLIP 2."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from tiny_families import VISION
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

from vla.errors import InputError
from vla.models.backbones.dual import DualEncoder
from vla.models.backbones.features import feature_map

TEXT = {k: v for k, v in tiny_families.TEXT.items() if k != "num_key_value_heads"} | {"max_position_embeddings": 16}
NAFLEX = {**{k: v for k, v in VISION.items() if k != "image_size"}, "num_patches": 4}
EFFICIENT = {
    "image_size": 32,
    "width_coefficient": 0.25,
    "depth_coefficient": 0.25,
    "in_channels": [32, 16],
    "out_channels": [16, 24],
    "kernel_sizes": [3, 3],
    "depthwise_padding": [],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
    "hidden_dim": 64,
}
SIGLIP_TEXT = {**TEXT, "projection_size": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    # An end token of 2 is of before 2023: transformers then takes the greatest id for the end.
    "clip": {"text_config": {**TEXT, "eos_token_id": 3}, "vision_config": VISION, "projection_dim": 16},
    "align": {"text_config": TEXT, "vision_config": EFFICIENT, "projection_dim": 8},
    "siglip": {"text_config": SIGLIP_TEXT, "vision_config": VISION},
    "siglip2": {"text_config": SIGLIP_TEXT, "vision_config": NAFLEX},
}


@pytest.fixture(params=CONFIGS)
def encoder(request: pytest.FixtureRequest) -> DualEncoder:
    made = DualEncoder({"model_type": request.param, **CONFIGS[request.param]}, pad_token_id=0)
    for parameter in made.model.parameters():
        # Large, so that what a text or an image holds shows in its vector.
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def images(encoder: DualEncoder, count: int = 3) -> Tensor:
    return torch.randn(count, 3, encoder.image_size, encoder.image_size)


def texts(*lengths: int, left: bool = False, pad: int = 0, room: int = 0) -> tuple[Tensor, Tensor]:
    """Texts that end in the end token, padded by `room` tokens more than the longest needs."""
    generator = torch.Generator().manual_seed(0)
    width = max(lengths) + room
    ids, mask = torch.full((len(lengths), width), pad), torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if left else slice(0, length)
        ids[row, place] = torch.cat([torch.randint(4, 128, (length - 1,), generator=generator), torch.tensor([3])])
        mask[row, place] = True
    return ids, mask


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_vectors_have_length_one_and_differ(encoder: DualEncoder) -> None:
    for vectors in (encoder.encode_images(images(encoder)), encoder.encode_texts(*texts(4, 5, 7))):
        close(vectors.norm(dim=1), torch.ones(3))
        assert torch.pdist(vectors).min() > 1e-3
    assert encoder.encode_images(images(encoder)).shape[1] == encoder.encode_texts(*texts(4)).shape[1]


def own_inputs(encoder: DualEncoder, pixels: Tensor) -> dict[str, Tensor]:
    """The images as transformers' class takes them."""
    if encoder.family != "siglip2":
        return {"pixel_values": pixels}
    return {
        "pixel_values": torch.stack([convert_image_to_patches(image, 14) for image in pixels]),
        "pixel_attention_mask": torch.ones(len(pixels), 4, dtype=torch.long),
        "spatial_shapes": torch.tensor([[2, 2]] * len(pixels)),
    }


def test_image_vector_is_transformers_own(encoder: DualEncoder) -> None:
    pixels = images(encoder)
    own = encoder.model.get_image_features(**own_inputs(encoder, pixels)).pooler_output
    close(encoder.encode_images(pixels), own / own.norm(dim=1, keepdim=True))


def test_logits_are_transformers_own(encoder: DualEncoder) -> None:
    (ids, mask), pixels = texts(16, 16), images(encoder)  # without padding
    own = encoder.model(input_ids=ids, attention_mask=mask.long(), **own_inputs(encoder, pixels)).logits_per_image
    close(encoder.logits(encoder.encode_images(pixels), encoder.encode_texts(ids, mask)), own, 1e-4)


def test_batch_equals_single(encoder: DualEncoder) -> None:
    pixels, (ids, mask) = images(encoder), texts(4, 9, 6)
    for row in range(3):
        close(encoder.encode_images(pixels)[row : row + 1], encoder.encode_images(pixels[row : row + 1]))
        single = encoder.encode_texts(ids[row : row + 1, mask[row]], mask[row : row + 1, mask[row]])
        close(encoder.encode_texts(ids, mask)[row : row + 1], single)


@pytest.mark.parametrize("left", [False, True])
def test_padding_does_not_matter(encoder: DualEncoder, left: bool) -> None:
    plain = encoder.encode_texts(*texts(4, 9))
    close(encoder.encode_texts(*texts(4, 9, left=left, pad=77, room=5)), plain)


def test_siglip_reads_its_padding_to_the_full_length() -> None:
    encoder = DualEncoder({"model_type": "siglip", **CONFIGS["siglip"]}, pad_token_id=5).eval()
    ids, mask = texts(4)
    padded = torch.cat([ids, torch.full((1, 12), 5)], 1)
    own = encoder.model.get_text_features(padded).pooler_output
    close(encoder.encode_texts(ids, mask), own / own.norm(dim=1, keepdim=True))


def test_text_too_long_is_refused(encoder: DualEncoder) -> None:
    with pytest.raises(InputError, match=r"17 tokens.*16 at most"):
        encoder.encode_texts(*texts(17))
    encoder.encode_texts(*texts(16, room=3))


def test_scale_and_bias_start_where_the_family_does() -> None:
    starts = {name: DualEncoder({"model_type": name, **config}, pad_token_id=0) for name, config in CONFIGS.items()}
    found = {name: (e.logit_scale.item(), e.logit_bias.item()) for name, e in starts.items()}
    assert found["clip"] == pytest.approx((1 / 0.07, 0.0), rel=1e-4)
    assert found["align"] == (1.0, 0.0)
    assert found["siglip"] == found["siglip2"] == pytest.approx((10.0, -10.0))
    assert starts["siglip"].model.logit_scale.item() == pytest.approx(math.log(10))


def test_scale_and_bias_are_learned(encoder: DualEncoder) -> None:
    encoder.logits(encoder.encode_images(images(encoder)), encoder.encode_texts(*texts(4, 5))).sum().backward()
    learned = [p.grad for n, p in encoder.model.named_parameters() if n in ("logit_scale", "logit_bias", "temperature")]
    assert len(learned) == (2 if encoder.family.startswith("siglip") else 1)
    assert all(grad is not None and grad.abs() > 0 for grad in learned)


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 3, "<unk>": 2, "red": 4, "cube": 5}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def test_saved_and_loaded_is_the_same(encoder: DualEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path, make_tokenizer())
    loaded, tokenizer = DualEncoder.load(str(tmp_path))
    words = tokenizer(["red cube", "cube"], padding=True, return_tensors="pt", return_attention_mask=True)
    ids, mask, pixels = words["input_ids"], words["attention_mask"].bool(), images(encoder)
    assert torch.equal(loaded.encode_images(pixels), encoder.encode_images(pixels))
    assert torch.equal(loaded.encode_texts(ids, mask), encoder.encode_texts(ids, mask))
    assert (loaded.logit_scale, loaded.logit_bias) == (encoder.logit_scale, encoder.logit_bias)
    assert all(not tensor.is_meta for tensor in loaded.state_dict().values())

    again = DualEncoder(**loaded.config).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.encode_texts(ids, mask), encoder.encode_texts(ids, mask))


def test_features_are_a_map_of_the_patches(encoder: DualEncoder) -> None:
    size = encoder.image_size
    pixels = images(encoder, 1).repeat(2, 1, 1, 1)
    pixels[1, :, : size // 2, size // 2 :] += 1  # above, on the right
    for name, parameter in encoder.model.vision_model.named_parameters():
        if "out_proj" in name:
            torch.nn.init.zeros_(parameter)  # no patch looks at another
    found = encoder.features(pixels)
    assert found.shape[0] == 2 and found.shape[2] == found.shape[3]
    if encoder.family != "align":
        assert found.shape[1:] == (32, 2, 2)
        changed = (found[0] - found[1]).abs().amax(0) > 1e-4
        assert changed.tolist() == [[False, True], [False, False]]
    found.sum().backward()
    reached = {n.split(".")[0] for n, p in encoder.model.named_parameters() if p.grad is not None}
    assert reached == {"vision_model"}


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_vision_part_alone_gives_the_same_features(family: str) -> None:
    """A composed backbone holds the vision encoder without the text's."""
    encoder = DualEncoder({"model_type": family, **CONFIGS[family]}, pad_token_id=0).eval()
    alone = AutoModel.from_config(AutoConfig.for_model(f"{family}_vision_model", **CONFIGS[family]["vision_config"]))
    prefix = "vision_model." if any(n.startswith("vision_model.") for n in alone.state_dict()) else ""
    alone.load_state_dict({f"{prefix}{n}": v for n, v in encoder.model.vision_model.state_dict().items()})
    pixels = images(encoder)
    close(feature_map(alone.eval(), pixels), encoder.features(pixels))


def test_native_resolution_of_siglip2() -> None:
    encoder = DualEncoder({"model_type": "siglip2", **CONFIGS["siglip2"]}, pad_token_id=0).eval()
    assert encoder.image_size == 28
    assert encoder.features(torch.randn(2, 3, 28, 56)).shape == (2, 32, 2, 4)
    assert encoder.encode_images(torch.randn(2, 3, 42, 14)).shape == (2, 32)


def test_another_family_is_refused() -> None:
    with pytest.raises(InputError, match="llama is not a dual encoder"):
        DualEncoder({"model_type": "llama"}, pad_token_id=0)
