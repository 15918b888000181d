"""InternVL 1.5 and 2.5, published in a layout that transformers has no class for: raw images and questions become the
tiles, tokens and logits of the original code, read plainly (`internvl_original`). What is shown here is what
`vla models` reports (`catalog.TILES`)."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import internvl_original as original
import pytest
import torch
from test_chat_encoder import legacy
from test_released_families import ASKED, IMAGES, QUESTION
from test_released_families import photo as drawn
from torch import Tensor

from vla.errors import InputError
from vla.models.backbones import internvl
from vla.models.backbones.catalog import CATALOG, CHECKS, TILES, family_of
from vla.models.backbones.pretrained import open_backbone
from vla.models.preprocessing.adapted import for_camera, with_tiles
from vla.models.preprocessing.tiling import tile_grid
from vla.models.processor import Processor
from vla.models.vla import VLA
from vla.types import Example

FAMILIES = ("internvl-1.5", "internvl-2.5")
NAMES = pytest.mark.parametrize("name", original.SHAPES)
ANSWER = "A red cube."
photo = cache(drawn)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each checkpoint once, converted from the published layout."""
    made: dict[str, VLA] = {}

    def get(name: str) -> VLA:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            original.save(name, folder / "published")
            internvl.convert(folder / "published", folder / "converted")
            made[name] = VLA(*open_backbone(str(folder / "converted"))).eval()
        return made[name]

    return get


@cache
def tiles_of(asked: str) -> tuple[list[int], Tensor | None]:
    """How many tiles each image has in the original, and the pixels of all."""
    images = [original.tiles_of(photo(image), len(ASKED[asked])) for image in ASKED[asked]]
    return [len(tiles) for tiles in images], original.pixels_of(sum(images, [])) if images else None


def views(asked: str) -> dict[str, Any]:
    return {str(i): photo(image) for i, image in enumerate(ASKED[asked])}


@pytest.mark.parametrize("asked", ASKED)
@NAMES
def test_sees_reads_and_answers_as_the_original(name: str, asked: str, opened: Any) -> None:
    model, words = opened(name), original.words_of(name)
    tiles, pixels = tiles_of(asked)
    question = QUESTION.replace("<image>", "it")
    ids = words(original.text_of(name, tiles, [(question, None)]))["input_ids"]
    batch = model.processor.question_prompt([question], [views(asked)])
    assert batch.input_ids[0].tolist() == ids
    if pixels is not None:
        torch.testing.assert_close(model.processor.pixels(batch.images)[batch.image_mask], pixels, atol=1e-5, rtol=0)
    expected = original.logits_of(name, ids, words.convert_tokens_to_ids("<IMG_CONTEXT>"), pixels)
    with torch.inference_mode():
        logits = model.backbone.logits(model.decoding(batch).hidden)[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1, "logits that are alike show nothing"


@pytest.mark.parametrize("asked", ["none", "97x333", "two"])
@NAMES
def test_a_conversation_is_the_original_s(name: str, asked: str, opened: Any) -> None:
    processor, words = opened(name).processor, original.words_of(name)
    turns = [(QUESTION.replace("<image>", "it"), ANSWER), ("And where?", "Here.")]
    text = original.text_of(name, tiles_of(asked)[0], turns).removesuffix("\n")
    row = Example(views(asked), *turns[0], turns=(turns[1],), conversation=True)
    ids = processor.batch([row]).input_ids[0].tolist()
    assert ids == words(text)["input_ids"]
    assert processor.encoder.ended(ids)


@pytest.mark.parametrize("kind", ["pieces", "legacy"])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_pieces_are_cut_as_of_the_whole_text(images: int, kind: str, tmp_path: Path) -> None:
    """With tokenizers that write spaces by pieces, as InternLM2's."""
    words = original.words_of("internvl-2.5", "pieces")
    if kind == "legacy":
        inner = legacy().backend_tokenizer
        words.backend_tokenizer.pre_tokenizer, words.backend_tokenizer.normalizer = None, inner.normalizer
    original.save("internvl-2.5", tmp_path / "published", words)
    internvl.convert(tmp_path / "published", tmp_path / "converted")
    processor = open_backbone(str(tmp_path / "converted"))[1]
    asked = {0: "none", 1: "97x333", 2: "two"}[images]
    text = original.text_of("internvl-2.5", tiles_of(asked)[0], [(QUESTION.replace("<image>", "it"), ANSWER)])
    ids = processor.batch([Example(views(asked), QUESTION.replace("<image>", "it"), ANSWER)]).input_ids[0].tolist()
    assert ids == words(text.removesuffix("\n"))["input_ids"]


def test_rows_of_different_shapes_do_not_change_each_other(opened: Any) -> None:
    model = opened("internvl-2.5")
    rows = [views(asked) for asked in ("640x480", "two", "none")]
    together = model.processor.question_prompt(["what?"] * 3, rows)
    with torch.inference_mode():
        logits = model.decoding(together).next_logits()
        for row, expected in zip(rows, logits, strict=True):
            alone = model.processor.question_prompt(["what?"], [row])
            torch.testing.assert_close(model.decoding(alone).next_logits()[0], expected, atol=1e-4, rtol=1e-4)


def test_grids_are_the_original_s_for_every_shape() -> None:
    """Shapes that lie between two ratios as well, and both sides of half the area of the grid."""
    between = [(7 * n, 2 * n) for n in range(1, 400, 7)] + [(5 * n, 4 * n) for n in range(1, 400, 7)]
    near = [(c * 448 * n // 20, r * 448 * n // 20) for r in range(1, 5) for c in range(1, 5) for n in range(10, 31)]
    for width, height in [*between, *near, *((height, width) for width, height in near)]:
        for most in (1, 2, 4, 6, 12):
            columns, rows = original.grid_of(width, height, most, 448)
            assert tile_grid(height, width, 448, most) == (rows, columns), (width, height, most)


def test_tiles_that_are_asked_for_are_of_each_image(opened: Any) -> None:
    """`tiles=N` is said of an image; what a family was trained with is of a row."""
    images: Any = opened("internvl-2.5").processor.images
    assert images.among(2).framing.most == 6 and images.among(100).framing.most == 1
    fewer: Any = with_tiles(replace(images, framing=replace(images.framing, least=2)), 1).among(2)
    assert (fewer.framing.least, fewer.framing.most) == (1, 1)
    fewer = with_tiles(images, 4).among(2)
    assert fewer.framing.most == 4


def test_cameras_are_resized_by_the_fast_filter(opened: Any) -> None:
    images: Any = opened("internvl-2.5").processor.images
    made: list[Any] = [for_camera(images, mode).framing for mode in (None, "stretch", "pad", "crop")]
    assert images.framing.resample == "pillow-bicubic"
    assert {framing.resample for framing in made} == {"bicubic"}


@NAMES
def test_its_family_is_told_by_its_template(name: str, tmp_path: Path) -> None:
    """InternVL 2.5 has the vision encoder of 1.5 in one size, and the language model of InternVL3 in another."""
    original.save(name, tmp_path / "published")
    internvl.convert(tmp_path / "published", tmp_path / "converted")
    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert family_of(config).name == name[: len("internvl-1.5")]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ps_version": "v1"}, "ps_version is v1, not v2"),
        ({"select_layer": -4}, "select_layer is -4, not -1"),
        ({"template": "phi3-chat"}, "template is phi3-chat, not one of internlm2-chat"),
        ({"use_thumbnail": False}, "without the whole"),
        ({"vision_config": {}}, "it has no hidden_size"),
        ({"llm_config": {"architectures": ["Phi3ForCausalLM"]}}, "the language model is Phi3ForCausalLM"),
        ({"model_type": "internvl"}, "of the family internvl, not internvl_chat"),
    ],
)
def test_what_transformers_classes_lack_is_said(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    original.save("internvl-2.5", tmp_path / "published", **changed)
    with pytest.raises(InputError, match=message):
        internvl.convert(tmp_path / "published", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_a_folder_that_is_not_converted_is_said(tmp_path: Path) -> None:
    original.save("internvl-2.5", tmp_path)
    with pytest.raises(InputError, match="convert it by vla.models.backbones.internvl.convert first"):
        open_backbone(str(tmp_path))


def test_images_that_were_not_cut_are_not(tmp_path: Path) -> None:
    original.save("internvl-2.5", tmp_path / "published", dynamic_image_size=False)
    internvl.convert(tmp_path / "published", tmp_path / "converted")
    processor: Processor = open_backbone(str(tmp_path / "converted"))[1]
    assert processor.question_prompt(["?"], [views("1700x2200")]).images.shape[1] == 1


def test_what_is_reported_is_what_is_tested() -> None:
    assert {row.name for row in CATALOG if row.test == "test_internvl.py"} == set(FAMILIES)
    assert all(row.verified == TILES and row.checked == CHECKS for row in CATALOG if row.name in FAMILIES)
    assert set(IMAGES) == {"640x480", "97x333", "1700x2200"}
