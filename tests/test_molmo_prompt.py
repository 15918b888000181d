"""Molmo from raw images and a question: its released processor read plainly. Tokens are equal; pixels are those that it
resizes as fractions of white, rounded to whole levels."""

from __future__ import annotations

import json
from typing import Any

import pytest
import test_molmo
import torch
from released_checkpoints import byte_level
from test_molmo import EXTRA, MARKS, PATCH, plain_crops
from test_released_families import IMAGES, photo
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vla.models.backbones.pretrained import open_backbone
from vla.models.processor import Processor
from vla.types import Example

SIDE, ROWS = 84, 264
"""A crop that is larger than its margins, and a row for each byte."""
QUESTION, ANSWER = "What is it on the left?", "A red cube."
Opened = tuple[Processor, Any]


@pytest.fixture(scope="module", params=["qwen2", "olmoe"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Of Molmo and of MolmoE: our processor of a released folder, and its tokenizer."""
    folder = tmp_path_factory.mktemp("molmo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_molmo, "SIDE", SIDE)
        patch.setattr(test_molmo, "ROWS", ROWS)
        kind = request.param
        test_molmo.save(folder, test_molmo.released(kind), test_molmo.released_config(kind), MARKS)
    told = {"image_patch_size": PATCH, "image_mean": list(OPENAI_CLIP_MEAN), "image_std": list(OPENAI_CLIP_STD)}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    words = byte_level("<|endoftext|>")
    words.add_tokens([f"<spare_{i}>" for i in range(ROWS - len(words))])
    words.add_special_tokens({"additional_special_tokens": list(MARKS)})
    words.save_pretrained(folder)
    assert len(words) <= ROWS + EXTRA
    return open_backbone(str(folder))[1], words


def layout(grid: tuple[int, int]) -> list[str]:
    """The tokens of an image: the whole, and then the crops as one grid."""
    side, margin = SIDE // PATCH // 2, 2
    tokens: list[str] = []
    for rows, columns in ((side, side), tuple(n * (side - 2 * margin) + 2 * margin for n in grid)):
        tokens += ["<im_start>", *(["<im_patch>"] * columns + ["<im_col>"]) * rows, "<im_end>"]
    return tokens


@pytest.mark.parametrize("shapes", [(), ("640x480",), ("97x333",), ("1700x2200",), ("97x333", "640x480")])
def test_tokens_are_the_released_processor_s(shapes: tuple[str, ...], opened: Opened) -> None:
    """`<|endoftext|>`, the images, and " User: … Assistant:" encoded as one text."""
    processor, words = opened
    views = {str(i): photo(shape) for i, shape in enumerate(shapes)}
    ids = [words.convert_tokens_to_ids("<|endoftext|>")]
    for shape in shapes:
        ids += words.convert_tokens_to_ids(layout(processor.images.view(*IMAGES[shape]).grid))
    ids += words(f" User: {QUESTION} Assistant:", add_special_tokens=False)["input_ids"]
    assert processor.question_prompt([QUESTION], [views]).input_ids[0].tolist() == ids
    ids += words(f" {ANSWER}<|endoftext|>", add_special_tokens=False)["input_ids"]
    assert processor.batch([Example(views, QUESTION, ANSWER)]).input_ids[0].tolist() == ids


@pytest.mark.parametrize("shape", IMAGES)
def test_pixels_are_the_released_processor_s_to_a_level(shape: str, opened: Opened) -> None:
    """The mean difference is that of rounding, a quarter of a level; more would be another filter or place."""
    processor, _ = opened
    grid = processor.images.view(*IMAGES[shape]).grid
    whole, crops, _ = plain_crops(photo(shape), SIDE, grid)
    batch = processor.question_prompt([QUESTION], [{"a": photo(shape)}])
    levels = batch.images[0].permute(0, 3, 1, 2).float()
    difference = (levels - 255 * torch.cat([whole[None], crops])).abs()
    assert difference.max() <= 1 + 1e-3 and difference.mean() < 0.3
