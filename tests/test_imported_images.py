"""A picture that was imported is shown to a model as the picture is: without bars, by its family's preprocessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from released_checkpoints import save_released
from test_released_families import QUESTION, photo, their_frames, their_inputs
from transformers import AutoProcessor

from vla.commands import cli
from vla.datasets.mixture import Conversations
from vla.datasets.vqa import VqaItem, VqaStore
from vla.models.backbones.pretrained import open_backbone
from vla.models.processor import Processor
from vla.types import Example

# Of InternVLProcessor, which sums a tensor with NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
FAMILIES = ("llava-1.5", "paligemma", "qwen2.5-vl", "internvl-3", "smolvlm2", "pixtral", "llama-3.2-vision")
ASKED = QUESTION.replace("<image>", "it")


def imported(folder: Path, image: np.ndarray, size: int) -> VqaStore:
    Image.fromarray(image).save(folder / "a.png")
    talk = [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": "a cube"}]
    (folder / "data.json").write_text(json.dumps([{"image": "a.png", "conversations": talk}]))
    assert cli.main(["convert", str(folder / "data.json"), str(folder / "vqa.zarr"), f"size={size}"]) == 0
    return VqaStore(folder / "vqa.zarr")


def trained_rows(store: VqaStore) -> list[Example]:
    """As training draws them, their images stored, and as evaluation reads them."""
    return [Conversations(store, None, 1).example(0, np.random.default_rng(0)), store.examples()[0]]


def shown(processor: Processor, row: Example, whole: bool) -> list[torch.Tensor]:
    """The frames of a training row; `whole` with the black that is beside an image."""
    batch = processor.batch([row])
    pixels = processor.pixels(batch.images)[batch.image_mask]
    if whole:
        return list(pixels)
    parts = batch.content[batch.image_mask].tolist()
    return [one[:, y : y + h, x : x + w] for one, (x, y, w, h) in zip(pixels, parts, strict=True)]


@pytest.mark.parametrize("size", [640, 320])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_shown_the_picture_without_bars(name: str, size: int, tmp_path: Path) -> None:
    save_released(name, tmp_path / "model")
    theirs = AutoProcessor.from_pretrained(tmp_path / "model")
    ours, picture = open_backbone(str(tmp_path / "model"))[1], photo("640x480")
    store = imported(tmp_path, picture, size)
    if size < 640:
        tensor = torch.from_numpy(picture).permute(2, 0, 1)[None]
        smaller = torch.nn.functional.interpolate(tensor, (240, 320), mode="bilinear", antialias=True)
        picture = smaller[0].permute(1, 2, 0).numpy()
    inputs: Any = their_inputs(name, theirs, ASKED, [picture])
    expected = their_frames(name, inputs)
    for row in trained_rows(store):
        frames = shown(ours, row, whole=name == "llama-3.2-vision")
        assert len(frames) == len(expected)
        for frame, other in zip(frames, expected, strict=True):
            torch.testing.assert_close(frame, other, atol=1e-5, rtol=0)
        tokens = ours.batch([row]).input_ids[0].tolist()
        assert tokens[: inputs["input_ids"].shape[1]] == inputs["input_ids"][0].tolist()


def test_a_small_picture_keeps_its_pixels_and_rows_of_other_shapes_stay_apart(tmp_path: Path) -> None:
    images = {"wide": photo("640x480")[:20, :33], "tall": photo("97x333")[:31, :7]}
    for name, image in images.items():
        (tmp_path / name).mkdir()
        store = imported(tmp_path / name, image, 40)
        assert (store.height, store.width) == (40, 40)
        np.testing.assert_array_equal(store[0].images["front"], image)
    both = VqaStore(tmp_path / "wide/vqa.zarr")
    both.append([VqaItem({"front": images["tall"]}, both[0].questions, "")])
    processor = open_backbone(str(_model(tmp_path)))[1]
    rows = [Conversations(both, None, 1).example(i, np.random.default_rng(0)) for i in range(2)]
    together = processor.batch(rows)
    for i, row in enumerate(rows):
        alone = processor.batch([row])
        height, width = alone.images.shape[2:4]
        assert torch.equal(together.images[i : i + 1, :1, :height, :width], alone.images)
        assert torch.equal(together.content[i : i + 1, :1], alone.content)


def _model(folder: Path) -> Path:
    save_released("qwen2.5-vl", folder / "model")
    return folder / "model"


def test_a_store_of_before_keeps_its_bars(tmp_path: Path) -> None:
    """Its images are all of one size, and its items say none."""
    store = VqaStore.create(tmp_path / "old.zarr", ("front",), 8, 8)
    barred = np.zeros((8, 8, 3), np.uint8)
    barred[2:6] = 200
    store.append([VqaItem({"front": barred}, (), "")])
    group = json.loads((tmp_path / "old.zarr/zarr.json").read_text())
    assert group["attributes"]["schema_version"] == 1
    opened = VqaStore(tmp_path / "old.zarr")
    np.testing.assert_array_equal(opened[0].images["front"], barred)
    assert opened.stored(0)[0]["front"].shape == (8, 8, 3)
