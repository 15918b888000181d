"""Released families end to end: raw images and a question here, and in transformers' own processor, chat template and
model, give the same pixels, tokens and logits. What is shown here is what `vla models` reports (`catalog.VERIFIED`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released_checkpoints import PROCESSORS, save_released
from torch import Tensor
from transformers import AutoProcessor

from vla.models.backbones.catalog import family
from vla.models.backbones.pretrained import open_backbone
from vla.models.vla import VLA
from vla.types import Example

# Of InternVLProcessor, which sums a tensor with NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

IMAGES = {"640x480": (480, 640), "97x333": (333, 97), "1700x2200": (2200, 1700)}
QUESTION = "What is <image> on the left?"
ASKED = {
    "none": (),
    "640x480": ("640x480",),
    "97x333": ("97x333",),
    "1700x2200": ("1700x2200",),
    "two": ("97x333", "640x480"),
}
NEEDS_ONE = ("paligemma", "paligemma-2", "blip-2")
"""Families whose processor, or whose class, takes exactly one image for a prompt."""


def photo(name: str) -> np.ndarray:
    """Colours that change smoothly, and noise."""
    height, width = IMAGES[name]
    rng = np.random.default_rng(height)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(y / 40), np.cos(x / 30), np.sin((x + y) / 50)], -1) * 90 + 128
    return np.clip(waves + rng.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)


def their_inputs(name: str, processor: Any, question: str, images: list[np.ndarray]) -> Any:
    """What transformers' processor makes of a question, by its chat template where it has one."""
    if processor.chat_template:
        content = [{"type": "image", "image": image} for image in images]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        if system := family(name).config().get("system"):
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        told = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        return processor.apply_chat_template(messages, **told)
    if name == "idefics":
        return processor(text=[[*images, f"Question: {question} Answer:"]], return_tensors="pt")
    text = f"Question: {question} Answer:" if name == "blip-2" else "<image>" * len(images) + question
    return processor(images=images or None, text=text, return_tensors="pt")


def their_frames(name: str, inputs: Any) -> list[Tensor]:
    """Each frame (3 h w) that the vision encoder is shown."""
    values = inputs["pixel_values"]
    if name.startswith("qwen"):
        frames = []
        for grid, patches in zip(
            inputs["image_grid_thw"], values.split(inputs["image_grid_thw"].prod(1).tolist()), strict=True
        ):
            rows, columns = (int(n) // 2 for n in grid[1:])
            blocks = patches.reshape(rows, columns, 2, 2, 3, 2, 14, 14)[..., 0, :, :]
            frames.append(blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * 28, columns * 28))
        return frames
    if name == "pixtral":
        return [value[:, :h, :w] for value, (h, w) in zip(values, inputs["image_sizes"], strict=True)]
    if name == "llama-3.2-vision":
        return list(values[inputs["aspect_ratio_mask"].bool()])
    return list(values.flatten(0, -4))


@contextmanager
def before_any_image(name: str, reference: Any, inputs: Any) -> Iterator[None]:
    """In Llama 3.2 a token before any image attends to none (Meta's code), where transformers' layers let it attend to
    all of them: what these add to such a token is taken away."""
    hooks = []
    if name == "llama-3.2-vision" and "cross_attention_mask" in inputs:
        sees = inputs["cross_attention_mask"].flatten(2).any(-1, keepdim=True)

        def only_of_images(module: Any, arguments: Any, out: Any) -> Any:
            return (out[0] * sees, *out[1:])

        layers = reference.model.language_model.layers
        hooks = [x.cross_attn.register_forward_hook(only_of_images) for x in layers if hasattr(x, "cross_attn")]
    yield
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each family once: transformers' model and processor, and ours of the same folder."""
    made: dict[str, tuple[Any, Any, VLA]] = {}

    def get(name: str) -> tuple[Any, Any, VLA]:
        if name not in made:
            folder: Path = tmp_path_factory.mktemp(name)
            model, _ = save_released(name, folder)
            # As a user gets it: AutoProcessor may take another class than that which saved it.
            processor = AutoProcessor.from_pretrained(folder)
            made[name] = model, processor, VLA(*open_backbone(str(folder))).eval()
        return made[name]

    return get


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("name", PROCESSORS)
def test_sees_reads_and_answers_as_released(name: str, asked: str, opened: Any) -> None:
    if name in NEEDS_ONE and len(ASKED[asked]) != 1:
        pytest.skip("its processor or its class takes one image for a prompt")
    reference, processor, ours = opened(name)
    question = QUESTION.replace("<image>", "it")
    images = [photo(image) for image in ASKED[asked]]
    inputs = their_inputs(name, processor, question, images)
    batch = ours.processor.question_prompt([question], [{str(i): image for i, image in enumerate(images)}])
    assert batch.input_ids[0].tolist() == inputs["input_ids"][0].tolist()
    if images:
        pixels = ours.processor.pixels(batch.images)[batch.image_mask]
        frames = [
            frame[:, top : top + height, left : left + width]
            for frame, (left, top, width, height) in zip(pixels, batch.content[batch.image_mask].tolist(), strict=True)
        ]
        if name == "llama-3.2-vision":  # black beside the image, which content leaves out
            frames = list(pixels)
        expected_frames = their_frames(name, inputs)
        assert len(frames) == len(expected_frames)
        for frame, expected_frame in zip(frames, expected_frames, strict=True):
            torch.testing.assert_close(frame, expected_frame, atol=1e-5, rtol=0)
    with torch.inference_mode(), before_any_image(name, reference, inputs):
        expected = reference(**inputs).logits[0]
        decoding = ours.decoding(batch)
        logits = ours.backbone.logits(decoding.hidden)[0, :, : expected.shape[-1]]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1, "logits that are alike show nothing"


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_name_of_a_token_in_a_question_is_text(name: str, opened: Any) -> None:
    ours = opened(name)[2]
    batch = ours.processor.question_prompt([QUESTION], [{"front": photo("97x333")}])
    own = ours.processor.question_prompt(["on the left?"], [{"front": photo("97x333")}])
    image = ours.processor.image
    assert (batch.input_ids == image).sum() == (own.input_ids == image).sum() > 0


@pytest.mark.parametrize("name", PROCESSORS)
def test_rows_of_different_shapes_do_not_change_each_other(name: str, opened: Any) -> None:
    ours = opened(name)[2]
    asked = [{"a": photo("640x480")}, {"a": photo("97x333"), "b": photo("640x480")}, {}]
    together = ours.processor.question_prompt(["what?", "where?", "who is it?"], asked)
    with torch.inference_mode():
        logits = ours.decoding(together).next_logits()
        for i, (question, images) in enumerate(zip(["what?", "where?", "who is it?"], asked, strict=True)):
            alone = ours.processor.question_prompt([question], [images])
            torch.testing.assert_close(ours.decoding(alone).next_logits()[0], logits[i], atol=1e-4, rtol=1e-4)


TURNS = ("qwen2-vl", "qwen2.5-vl", "smolvlm2", "internvl-3", "pixtral", "llama-3.2-vision")
"""Families whose chat template says how an answer ends."""


@pytest.mark.parametrize("name", TURNS)
def test_a_conversation_is_written_as_its_template_does(name: str, opened: Any) -> None:
    _, processor, ours = opened(name)
    asked = {"type": "text", "text": "what is it?"}, {"type": "text", "text": "and where?"}
    image = {"type": "image", "image": photo("97x333")}
    messages = [
        {"role": "user", "content": [image, asked[0]]},
        {"role": "assistant", "content": [{"type": "text", "text": "a cube"}]},
        {"role": "user", "content": [asked[1]]},
    ]
    if system := family(name).config().get("system"):
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    told = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    expected = processor.apply_chat_template(messages, **told)["input_ids"][0].tolist()
    row = Example({"a": photo("97x333")}, "what is it?", "a cube", turns=(("and where?", "here"),), conversation=True)
    ids = ours.processor.batch([row]).input_ids[0].tolist()
    assert ids[: len(expected)] == expected
    assert ids[len(expected) :] == ours.processor.encoder.reply("here")


def test_a_template_that_cannot_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_released("llava-1.5", tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content + '!' }}{% endfor %}")
    processor = open_backbone(str(tmp_path))[1]
    assert "chat template of the checkpoint cannot be read" in capsys.readouterr().out
    assert processor.chat.to_dict() == family("llava-1.5").config()["chat"] | {"prefix_lm": False, "apart": False}


def test_llama_without_a_chat_template_is_a_base_checkpoint(tmp_path: Path) -> None:
    """Asked in its maker's format of base models: `<|begin_of_text|><|image|>` and the text."""
    _, processor = save_released("llama-3.2-vision", tmp_path)
    for file in tmp_path.glob("chat_template*"):
        file.unlink()
    ours = open_backbone(str(tmp_path))[1]
    ids = ours.question_prompt(["what is it?"], [{"a": photo("97x333")}]).input_ids[0].tolist()
    text = "<|begin_of_text|><|image|>Question: what is it? Answer:"
    assert ids == processor.tokenizer(text, add_special_tokens=False)["input_ids"]
