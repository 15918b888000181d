"""How the images of a robot's cameras are shown: one frame, of as many tokens as a control loop affords."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pretrained import ROBOT, example, released

from vla.errors import InputError
from vla.models.build import build
from vla.models.preprocessing.adapted import for_camera, with_tiles
from vla.models.preprocessing.frames import Crop, Pad, Square, Stretch
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.molmo_crops import Crops
from vla.models.preprocessing.native import Native, Patches
from vla.models.preprocessing.settings import Preprocessing
from vla.models.preprocessing.tiles import Canvas, Split, Tiles, Whole
from vla.models.processor import Processor
from vla.models.robot_spec import with_cameras
from vla.models.vla import VLA
from vla.types import Observation

FIXED = Markup(tokens=64)
CELLS = Markup(cell=28)
FRAMINGS = {
    "pad": Preprocessing(Pad((224, 224)), FIXED),
    "square": Preprocessing(Square((336, 336), fill=(1, 2, 3)), FIXED),
    "stretch": Preprocessing(Stretch((224, 224)), FIXED),
    "crop": Preprocessing(Crop((336, 336), 336), FIXED),
    "tiles": Preprocessing(Tiles((448, 448)), FIXED),
    "split": Preprocessing(Split(512, 2048), replace(FIXED, split=True)),
    "whole": Preprocessing(Whole(512, 2048), replace(FIXED, split=True)),
    "canvas": Preprocessing(Canvas((560, 560)), replace(FIXED, shared=True)),
    "crops": Preprocessing(Crops(336, 14), Markup(cell=28, overlap=2)),
}


@pytest.mark.parametrize("kind", FRAMINGS)
@pytest.mark.parametrize("mode", [None, "stretch", "pad", "crop"])
def test_a_camera_has_one_frame_of_the_backbone_s_size(kind: str, mode: str | None) -> None:
    told = for_camera(FRAMINGS[kind], mode)
    views = [told.framing.view(*shape) for shape in ((480, 640), (97, 333))]
    assert [len(view.pieces) for view in views] == [1, 1]
    assert len({view.pieces[0].frame for view in views}) == 1
    assert len({told.markup.count(view) for view in views}) == 1
    width, height = views[0].pieces[0].content[2:]
    bars = mode == "pad" or (mode is None and kind in ("pad", "canvas", "crops"))
    assert (width / height == pytest.approx(640 / 480, rel=0.01)) == bars
    count = told.markup.count(views[0])
    assert for_camera(FRAMINGS[kind], mode, count) == told
    with pytest.raises(InputError, match=f"always has {count} tokens"):
        for_camera(FRAMINGS[kind], mode, count - 1)
    with pytest.raises(InputError, match="stretch, pad or crop"):
        for_camera(FRAMINGS[kind], "native")


@pytest.mark.parametrize("framing", [Native(28, 3136, 12845056), Patches(28, 1024)])
def test_a_backbone_of_any_size_keeps_to_the_budget(framing: Any) -> None:
    images = Preprocessing(framing, CELLS)
    told = for_camera(images)
    (piece,) = told.framing.view(480, 640).pieces
    assert piece.frame == (364, 504) and told.markup.count(told.framing.view(480, 640)) == 13 * 18
    for budget in (1, 16, 64, 300):
        for mode in ("native", "stretch", "pad", "crop"):
            told = for_camera(images, mode, budget)
            assert told.markup.count(told.framing.view(480, 640)) <= budget
    with pytest.raises(InputError, match="at least one token"):
        for_camera(images, None, 0)
    with pytest.raises(InputError, match="images is one of native"):
        for_camera(images, "squeeze")


def test_tiles_are_as_many_as_are_asked_for() -> None:
    def frames(kind: str, tiles: int | None) -> int:
        return len(with_tiles(FRAMINGS[kind], tiles).framing.view(1700, 2200).pieces)

    assert [frames("tiles", n) for n in (None, 1, 4)] == [13, 1, 5]
    assert [frames("canvas", n) for n in (None, 1)] == [4, 1]
    assert [frames("split", n) for n in (None, 1, 4)] == [17, 1, 5]
    assert [frames("pad", n) for n in (None, 1, 4)] == [1, 1, 5]
    assert [frames("crops", n) for n in (None, 1)] == [13, 2]
    with pytest.raises(InputError, match="of the same shape"):
        with_tiles(Preprocessing(Native(28, 3136, 12845056), CELLS), 2)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "internvl-3", "paligemma"])
def test_training_and_control_show_the_same(name: str, tmp_path: Path) -> None:
    """Beside a large question in one batch, alone, and of the checkpoint that is loaded: to the bit."""
    tokens = {"qwen2.5-vl": 6}.get(name)
    robots = with_cameras([ROBOT], "crop", tokens)
    model = build(str(released(name, tmp_path / "released")), robots, [], {"kind": "parallel"})
    seen = {c: np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8) for i, c in enumerate(example().images)}
    page = {"page": np.random.default_rng(5).integers(0, 256, (120, 90, 3), np.uint8)}
    trained = model.processor.batch([example(images=seen), example(images=page, target="red", state=None)])
    (tmp_path / "saved").mkdir()
    model.save(tmp_path / "saved")
    again = VLA.load(tmp_path / "saved").processor
    prompt = again.robot_prompt([Observation(seen, np.zeros(2), "lift the ring", 0.0)])
    height, width = prompt.images.shape[2:4]
    assert torch.equal(trained.images[0, : len(seen), :height, :width], prompt.images[0])
    assert torch.equal(trained.content[0, : len(seen)], prompt.content[0])
    image = model.processor.image
    assert (trained.input_ids[0] == image).sum() == (prompt.input_ids[0] == image).sum()
    if tokens is not None:
        assert (prompt.input_ids[0] == image).sum() == len(seen) * 4  # a square of 2 x 2 within 6
    assert again.cameras == model.processor.cameras


def test_options_are_of_robots_that_there_are() -> None:
    (named,) = with_cameras([ROBOT], {ROBOT.name: "pad"}, None)
    assert named.images == "pad" and with_cameras([ROBOT], None, None) == [ROBOT]
    with pytest.raises(InputError, match="images names other"):
        with_cameras([ROBOT], {"other": "pad"}, None)
    with pytest.raises(InputError, match="there is no robot"):
        with_cameras([], "pad", None)


def test_a_released_checkpoint_of_before_is_read_as_it_was_trained(tmp_path: Path) -> None:
    """Its backbone's configuration says what stands around an image, and the processor's nothing."""
    model = build(str(released("internvl-3", tmp_path / "released")), [ROBOT], [], {"kind": "parallel"})
    model.save(tmp_path)
    file, other = tmp_path / "processor.json", tmp_path / "config.json"
    values, config = json.loads(file.read_text()), json.loads(other.read_text())
    del values["images"]
    start, end = (model.processor.tokenizer.token_to_id(mark) for mark in ("<img>", "</img>"))
    config["backbone"] |= {"begin": [start], "between": [], "end": [end]}
    file.write_text(json.dumps(values | {"tiles": 1, "tokens_per_image": 6}))
    other.write_text(json.dumps(config))
    again: Processor = VLA.load(tmp_path).processor
    batch = again.question_prompt(["what?"], [{"front": np.full((20, 40, 3), 9, np.uint8)}])
    ids = batch.input_ids[0].tolist()
    at = ids.index(start)
    assert ids[at : at + 6] == [start, *[again.image] * 4, end]
    assert batch.content[0, 0].tolist() == [0, 7, 28, 14]
