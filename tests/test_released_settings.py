"""Settings that a checkpoint's own files state are followed, whatever they are: pixels and tokens as transformers' own
processor of the same files makes them; what cannot be followed is refused."""

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

from vla.errors import InputError
from vla.evaluation.vlm.benchmark_images import ImageFiles
from vla.models.backbones.pretrained import open_backbone

# Of InternVLProcessor, which sums a tensor with NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
ASKED = QUESTION.replace("<image>", "it")
SQUARE = {"height": 28, "width": 28}
OTHER_COLOURS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, OTHER_COLOURS) for name in ("llava-1.5", "smolvlm2", "qwen2.5-vl", "idefics")),
    *((name, {"rescale_factor": 1 / 127.5}) for name in ("paligemma", "pixtral", "llama-3.2-vision")),
    *((name, {"do_normalize": False}) for name in ("blip-2", "internvl-3")),
    ("llava-1.5", {"resample": 2}),
    ("llava-1.5", {"size": {"shortest_edge": 40}}),
    ("llava-1.5", {"size": {"shortest_edge": 20}}),
    ("llava-1.5", {"size": SQUARE}),
    ("llava-1.5", {"size": {"height": 40, "width": 31}}),
    ("llava-1.5", {"size": SQUARE, "do_center_crop": False}),
    ("llava-1.5", {"do_pad": True, "image_processor_type": "LlavaImageProcessor"}),
    ("llava-1.5", {"do_pad": True}),
    ("qwen2.5-vl", {"min_pixels": 28 * 28 * 4, "max_pixels": 28 * 28 * 8}),
    ("qwen2-vl", {"size": {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 9}}),
    ("smolvlm2", {"do_image_splitting": False}),
    ("smolvlm2", {"size": {"longest_edge": 150}}),
    ("internvl-3", {"max_patches": 3}),
    ("internvl-3", {"min_patches": 2}),
    ("pixtral", {"size": {"longest_edge": 60}}),
    ("llama-3.2-vision", {"max_image_tiles": 2}),
]
REFUSED = [
    ("llava-1.5", {"do_resize": False}, "do_resize=false"),
    ("llava-1.5", {"do_center_crop": False}, "give a height and a width"),
    ("llava-1.5", {"size": {"shortest_edge": 28, "longest_edge": 30}}, "give a height and a width"),
    ("paligemma", {"resample": 0}, "filter 0"),
    ("pixtral", {"size": 56}, "settings cannot be read"),
]


def changed(folder: Path, change: dict[str, Any]) -> None:
    file = folder / "processor_config.json"
    file = file if file.is_file() else folder / "preprocessor_config.json"
    values = json.loads(file.read_text())
    values.get("image_processor", values).update(change)
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(("name", "change"), CASES, ids=lambda value: value if isinstance(value, str) else str(value))
def test_settings_are_those_of_the_checkpoint(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    save_released(name, tmp_path)
    changed(tmp_path, change)
    theirs, ours = AutoProcessor.from_pretrained(tmp_path), open_backbone(str(tmp_path))[1]
    for shape in ("640x480", "97x333"):
        inputs = their_inputs(name, theirs, ASKED, [photo(shape)])
        batch = ours.question_prompt([ASKED], [{"a": photo(shape)}])
        assert batch.input_ids[0].tolist() == inputs["input_ids"][0].tolist()
        pixels, places = ours.pixels(batch.images)[batch.image_mask], batch.content[batch.image_mask].tolist()
        own = [one[:, y : y + h, x : x + w] for one, (x, y, w, h) in zip(pixels, places, strict=True)]
        frames = list(pixels) if name == "llama-3.2-vision" or change.get("size") == {"shortest_edge": 20} else own
        for frame, expected in zip(frames, their_frames(name, inputs), strict=True):
            torch.testing.assert_close(frame, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "change", "why"), REFUSED)
def test_what_cannot_be_followed_is_refused(name: str, change: dict[str, Any], why: str, tmp_path: Path) -> None:
    save_released(name, tmp_path)
    changed(tmp_path, change)
    with pytest.raises(InputError, match=why):
        open_backbone(str(tmp_path))


@pytest.mark.parametrize("nested", [True, False])
def test_settings_that_leave_colours_to_the_class_are_read_too(nested: bool, tmp_path: Path) -> None:
    """In processor_config.json, or in a preprocessor_config.json beside one that is of the text alone."""
    save_released("llava-1.5", tmp_path)
    file = tmp_path / "processor_config.json"
    values = json.loads(file.read_text())
    own = values.pop("image_processor") | {"size": {"shortest_edge": 40}}
    del own["image_mean"], own["image_std"]
    file.write_text(json.dumps(values | ({"image_processor": own} if nested else {})))
    if not nested:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    theirs, ours = AutoProcessor.from_pretrained(tmp_path), open_backbone(str(tmp_path))[1]
    inputs = their_inputs("llava-1.5", theirs, ASKED, [photo("97x333")])
    pixels = ours.pixels(ours.question_prompt([ASKED], [{"a": photo("97x333")}]).images)[0]
    torch.testing.assert_close(pixels, inputs["pixel_values"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16", "1", "EXIF"])
@pytest.mark.parametrize("name", ["qwen2.5-vl", "smolvlm2"])
def test_a_benchmark_s_picture_is_what_transformers_makes_of_the_file(name: str, mode: str, tmp_path: Path) -> None:
    pixels = photo("97x333")
    grey = Image.fromarray(pixels[..., 0])
    made = {
        "LA": lambda: Image.merge("LA", (grey, Image.fromarray(pixels[..., 1]))),
        "RGBA": lambda: Image.fromarray(np.concatenate([pixels, pixels[..., :1]], -1)),
        "P": lambda: Image.fromarray(pixels).quantize(16),
        "I;16": lambda: Image.fromarray(pixels[..., 0].astype(np.uint16) * 257),
        "EXIF": lambda: Image.fromarray(pixels),
    }
    image = made[mode]() if mode in made else Image.fromarray(pixels).convert(mode)
    file = tmp_path / ("image.jpg" if mode in ("CMYK", "EXIF") else "image.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(file, **({"exif": turned} if mode == "EXIF" else {}))
    save_released(name, tmp_path / "model")
    theirs, ours = AutoProcessor.from_pretrained(tmp_path / "model"), open_backbone(str(tmp_path / "model"))[1]
    with Image.open(file) as opened:
        expected = their_frames(name, their_inputs(name, theirs, ASKED, [opened]))
    batch = ours.question_prompt([ASKED], [ImageFiles(tmp_path).of("image", {"image": file.name})])
    for frame, other in zip(ours.pixels(batch.images)[batch.image_mask], expected, strict=True):
        torch.testing.assert_close(frame, other, atol=1e-5, rtol=0)


PLACES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "processor_config.json")


def test_of_several_chat_templates_the_one_that_transformers_takes(tmp_path: Path) -> None:
    save_released("llava-1.5", tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text()
    for place in reversed(PLACES):
        file = tmp_path / place
        marked = template.replace("USER", "X").replace("m.role.upper()", f"'{place[:9]}'")
        if place.endswith("jinja"):
            file.write_text(marked)
        else:
            values = json.loads(file.read_text()) if file.is_file() else {}
            file.write_text(json.dumps(values | {"chat_template": marked}))
    for place in ("processor_config.json", "chat_template.json", "chat_template.jinja"):
        theirs, ours = AutoProcessor.from_pretrained(tmp_path), open_backbone(str(tmp_path))[1]
        assert place[:9] in ours.chat.begin
        expected = their_inputs("llava-1.5", theirs, ASKED, [photo("97x333")])["input_ids"][0].tolist()
        assert ours.question_prompt([ASKED], [{"a": photo("97x333")}]).input_ids[0].tolist() == expected
        if place == "processor_config.json":
            changed_file(tmp_path / place)
        else:
            (tmp_path / place).unlink()


def changed_file(file: Path) -> None:
    values = json.loads(file.read_text())
    del values["chat_template"]
    file.write_text(json.dumps(values))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["llava-1.5", "qwen2.5-vl"])
def test_a_chat_template_is_found_where_it_is(name: str, place: str, tmp_path: Path) -> None:
    """One that is not the family's."""
    save_released(name, tmp_path)
    file = tmp_path / "chat_template.jinja"
    template = (
        file.read_text()
        .replace("USER", "HUMAN")
        .replace("upper()", "title()")
        .replace("<|im_start|>", "<|im_start|>a ")
    )
    file.unlink()
    if place.endswith("jinja"):
        file.write_text(template)
    else:
        known = tmp_path / place
        values = json.loads(known.read_text()) if known.is_file() else {}
        known.write_text(json.dumps(values | {"chat_template": template}))
    theirs, ours = AutoProcessor.from_pretrained(tmp_path), open_backbone(str(tmp_path))[1]
    theirs.chat_template = theirs.chat_template or theirs.tokenizer.chat_template
    for images in ([], [photo("97x333")], [photo("97x333"), photo("640x480")]):
        expected = their_inputs(name, theirs, ASKED, images)["input_ids"][0].tolist()
        views = {str(i): image for i, image in enumerate(images)}
        assert ours.question_prompt([ASKED], [views]).input_ids[0].tolist() == expected
