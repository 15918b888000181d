"""Released families on tiny random checkpoints: the backbone contract, and transformers' own results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import check_backbone, check_needs_segments
from tiny_families import MODELS, QWEN_TEXT, RUNS, TEXT, config_of, save_checkpoint
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import Blip2Config, LlamaConfig, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vla.errors import InputError
from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones.build import build
from vla.models.backbones.cache import grid_steps
from vla.models.backbones.families import load

PATCHY = ("qwen2-vl", "qwen2.5-vl")


@pytest.mark.parametrize("name", MODELS)
def test_keeps_the_contract(name: str) -> None:
    check_backbone(lambda: build(config_of(name)))


@pytest.mark.parametrize("name", ["paligemma", "paligemma-2"])
def test_a_prefix_lm_wants_to_know_its_prefix(name: str) -> None:
    torch.manual_seed(0)
    check_needs_segments(build(config_of(name)))


def model_inputs(name: str, ids: Tensor, mask: Tensor, pixels: Tensor, image_token_id: int) -> dict[str, Any]:
    """What transformers' class wants, by the family's own conventions, for one image in each row (b 3 h w)."""
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), "pixel_values": pixels}
    images = ids == image_token_id
    if name == "pixtral":
        inputs["image_sizes"] = torch.tensor([pixels.shape[2:]] * len(pixels))
    if name in PATCHY:
        inputs["mm_token_type_ids"] = images.long()
        inputs |= qwen_patches(pixels)
    if name.startswith("paligemma"):
        inputs["token_type_ids"] = torch.zeros_like(ids)
    if name in ("smolvlm", "idefics"):
        inputs["pixel_values"] = pixels[:, None]
    after = images.long().cumsum(1) > 0
    if name == "idefics":
        inputs["image_attention_mask"] = after[..., None].long()
    if name == "mllama":
        tiles = torch.zeros(len(pixels), 1, 4, *pixels.shape[1:])
        tiles[:, 0, 0] = pixels
        used = torch.tensor([[[1, 0, 0, 0]]] * len(pixels))
        inputs |= {"pixel_values": tiles, "aspect_ratio_ids": used[..., 0], "aspect_ratio_mask": used}
        inputs["cross_attention_mask"] = after[..., None, None].long() * used[:, None]
    return inputs


def qwen_patches(pixels: Tensor) -> dict[str, Tensor]:
    """As the family's own processor lays them out."""
    processor = Qwen2VLImageProcessorPil(do_resize=False, do_rescale=False, do_normalize=False)
    return dict(processor(list(pixels.numpy()), return_tensors="pt"))


@pytest.mark.parametrize("name", MODELS)
def test_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    """A saved checkpoint, loaded: the same logits, and the same greedy tokens with a cache, padded on the left."""
    reference = save_checkpoint(name, tmp_path)
    loaded, tokenizer = load(tmp_path, RUNS.get(name, {}).get("image_size"))
    backbone: Any = loaded.eval()
    assert (backbone.mean, backbone.std) == ((0.5,) * 3, (0.25,) * 3)
    image = [backbone.image_token_id] * backbone.tokens_per_image
    # Llama 3.2 is asked with the image first: see Mllama about tokens before it.
    before = [] if name == "mllama" else [1]
    prompts = [[*before, *image, 9, 8, 7, 6, 5], [*before, *image, 11, 12]]
    ids = torch.tensor([[0] * (len(prompts[0]) - len(p)) + p for p in prompts])
    mask = torch.tensor([[False] * (len(prompts[0]) - len(p)) + [True] * len(p) for p in prompts])
    pixels = torch.randn(2, 3, backbone.image_size, backbone.image_size)
    inputs = model_inputs(name, ids, mask, pixels, backbone.image_token_id)
    reference.generation_config.eos_token_id = None
    if hasattr(reference, "language_model"):
        reference.language_model.generation_config.eos_token_id = None
    with torch.no_grad():
        answer = reference.generate(**inputs, do_sample=False, max_new_tokens=8)[:, -8:]
        expected = reference(**inputs).logits[:, -1]
        vision = backbone.encode_images(ImageInput(pixels[:, None], torch.ones(2, 1, dtype=torch.bool)))
        hidden, cache = backbone.forward(DecoderInput(backbone.embed(ids, vision), mask, backbone.new_cache(), vision))
        logits = backbone.logits(hidden[:, -1])
        torch.testing.assert_close(logits[:, : expected.shape[1]], expected, atol=1e-5, rtol=1e-5)
        tokens = []
        for _ in range(8):
            tokens.append(logits.argmax(-1, keepdim=True))
            mask = torch.nn.functional.pad(mask, (0, 1), value=True)
            hidden, cache = backbone.forward(DecoderInput(backbone.embed_tokens(tokens[-1]), mask, cache, vision))
            logits = backbone.logits(hidden[:, -1])
    assert torch.equal(torch.cat(tokens, 1), answer)
    assert len(answer.unique()) > 2, "an answer that is always one token shows nothing"


def qwen(name: str, size: int) -> Any:
    torch.manual_seed(0)
    return build(config_of(name) | {"image_size": size})


@pytest.mark.parametrize("name", PATCHY)
def test_m_rope_is_that_of_the_family(name: str) -> None:
    """Of images of different shapes, one and two in a row, and of none."""
    backbone = qwen(name, 112)
    wide, tall = [100] * 8, [100] * 9  # 2 x 4 and 3 x 3 tokens
    rows = [[1, *wide, 5, *tall, 6, 7], [1, 5, 6, *tall, 7], [1, 4]]
    ids = torch.tensor([[0] * (max(map(len, rows)) - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (ids.shape[1] - len(row)) + [True] * len(row) for row in rows])
    places = ids == 100
    grid = torch.tensor([[1, 4, 8], [1, 6, 6], [1, 6, 6]])
    expected, _ = backbone.model.model.get_rope_index(ids, places.long(), grid, attention_mask=mask)
    order, offsets = backbone._order(mask, grid_steps(places, [(2, 4), (3, 3), (3, 3)]))
    assert torch.equal((order + offsets)[:, mask], expected[:, mask])
    assert expected.max() < ids.shape[1] - 5, "an image is shorter than its tokens are many"


@pytest.mark.parametrize("name", ["paligemma", "paligemma-2"])
def test_a_prefix_lm_trains_as_transformers_does(name: str, tmp_path: Path) -> None:
    reference = save_checkpoint(name, tmp_path)
    backbone: Any = load(tmp_path)[0]
    backbone.eval()
    ids = torch.tensor([[100] * 4 + [1, 9, 8, 7, 6, 5, 2]])
    answer = torch.tensor([[0] * 8 + [1] * 3])
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        expected = reference(
            input_ids=ids,
            pixel_values=pixels,
            token_type_ids=answer,
            position_ids=torch.arange(1, 12)[None],
            attention_mask=torch.ones_like(ids),
        ).logits
        vision = backbone.encode_images(ImageInput(pixels[None], torch.ones(1, 1, dtype=torch.bool)))
        hidden, _ = backbone.forward(DecoderInput(backbone.embed(ids, vision), ids > 0, vision=vision, segments=answer))
    torch.testing.assert_close(backbone.logits(hidden), expected, atol=1e-5, rtol=1e-5)


def test_llama_looks_at_images_as_its_processor_says() -> None:
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    backbone: Any = build(config_of("mllama"))
    rows = [[1, 128, 5, 128, 128, 6, 7], [128, 128, 5, 128, 6, 7, 8]]
    sparse = [get_cross_attention_token_mask(row, 128) for row in rows]
    tiles = [[1, 2, 1], [2, 1, 1]]
    dense = convert_sparse_cross_attention_mask_to_dense(sparse, tiles, 2, 7).reshape(2, 7, 6)
    patches = backbone.model.model.vision_model.num_patches
    used = torch.tensor(tiles)[..., None] > torch.arange(2)
    looks, some = backbone._masks(torch.tensor(rows) == 128, used, 7, torch.float32)
    assert (looks[:, 0, :, : 6 * patches : patches] == 0).tolist() == (dense > 0).tolist()
    assert some[:, 0, :, 0].tolist() == dense.any(-1).tolist()


def test_flamingo_looks_at_the_latest_image(tmp_path: Path) -> None:
    from transformers.models.idefics.processing_idefics import image_attention_mask_for_packed_input_ids

    reference = save_checkpoint("idefics", tmp_path)
    backbone, tokenizer = load(tmp_path)
    image = [backbone.image_token_id] * backbone.tokens_per_image
    ids = torch.tensor([[1, *image, 5, *image, 6, 7]])
    latest = image_attention_mask_for_packed_input_ids(ids, tokenizer, "pt")[0]
    pixels = torch.randn(1, 2, 3, 28, 28)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        looks = (latest[..., None] == torch.arange(2)).long()
        expected = reference(input_ids=ids, pixel_values=pixels, image_attention_mask=looks).logits
        vision = backbone.encode_images(ImageInput(pixels, torch.ones(1, 2, dtype=torch.bool)))
        hidden, _ = backbone.forward(DecoderInput(backbone.embed(ids, vision), mask, vision=vision))
    torch.testing.assert_close(backbone.logits(hidden), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("llava-1.5", 56), ("paligemma", 42), ("blip-2", 56), ("internvl-3", 56)])
def test_takes_images_of_another_size_than_the_checkpoint(name: str, size: int, tmp_path: Path) -> None:
    save_checkpoint(name, tmp_path)
    backbone = load(tmp_path, image_size=size)[0]
    small = load(tmp_path)[0]
    assert (backbone.image_size, small.image_size) == (size, 28)
    longer = 1 if name == "blip-2" else (size // 28) ** 2 if size == 56 else 9 / 4
    features = backbone.encode_images(ImageInput(torch.randn(1, 1, 3, size, size), torch.tensor([[True]]))).features
    assert len(features) == longer * len(
        small.encode_images(ImageInput(torch.randn(1, 1, 3, 28, 28), torch.tensor([[True]]))).features
    )


def test_spare_rows_stay_and_missing_ones_are_added(tmp_path: Path) -> None:
    save_checkpoint("qwen2-vl", tmp_path / "spare", text_config={**QWEN_TEXT, "vocab_size": 140})
    assert load(tmp_path / "spare", 56)[0].vocab_size == 140
    save_checkpoint("qwen2-vl", tmp_path / "few", text_config={**QWEN_TEXT, "vocab_size": 120})
    assert load(tmp_path / "few", 56)[0].vocab_size == 128


def test_refuses_what_it_cannot_load(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a checkpoint"):
        load(tmp_path)
    LlamaConfig(**TEXT).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))).save_pretrained(
        tmp_path
    )
    with pytest.raises(InputError, match="family llama"):
        load(tmp_path)
    Blip2Config(text_config={"model_type": "t5", "d_model": 32}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="encoder-decoder"):
        load(tmp_path)
    with pytest.raises(InputError, match="no backbone family"):
        build({"family": "gpt"})
    with pytest.raises(InputError, match="patches"):
        build(config_of("llava-1.5") | {"image_size": 30})


@pytest.mark.parametrize("name", ["llava-1.5", "idefics", "mllama"])
def test_as_many_images_as_places(name: str) -> None:
    backbone = build(config_of(name))
    vision = backbone.encode_images(ImageInput(torch.randn(1, 1, 3, 28, 28), torch.tensor([[True]])))
    with pytest.raises(InputError, match="image tokens"):
        backbone.embed(torch.tensor([[1, 5]]), vision)
    with pytest.raises(InputError, match="image tokens"):
        backbone.embed(torch.tensor([[1, *[backbone.image_token_id] * backbone.tokens_per_image]]), None)
