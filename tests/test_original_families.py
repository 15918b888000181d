"""Families whose released files transformers has no processor for: raw images and questions become the pixels and
tokens that the original code's rules give, read plainly here with Pillow and each checkpoint's own tokenizer, and the
logits of what they are fed to. What is shown here is what `vla models` reports (`catalog.ORIGINAL`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_openflamingo
import test_qwen_vl
import torch
from PIL import Image
from released_checkpoints import ROWS, save_random_model, sentence_piece
from test_chat_encoder import legacy
from test_released_families import IMAGES, photo
from tiny_families import MODELS
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

from vla.models.backbones import openflamingo
from vla.models.backbones.catalog import CATALOG, ORIGINAL, family_of
from vla.models.backbones.pretrained import open_backbone
from vla.models.processor import Processor
from vla.models.vla import VLA
from vla.types import Example

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""OpenAI's CLIP."""
LEVELS = 2
"""Of 255: how far PyTorch's bicubic filter, which all families are drawn with, may be from Pillow's."""
SIDE = 28
QWEN_ROWS = 512
FAMILIES = ("llava-1", "minigpt-4", "qwen-vl", "qwen-vl-chat", "openflamingo")
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
QUESTION, ANSWER = "What is it on the left?", "A red cube."


def save(name: str, folder: Path, words: Any) -> Any:
    """A random checkpoint in transformers' classes, as a converter leaves it: weights and tokenizer, no processor."""
    torch.manual_seed(0)
    values = dict(MODELS[name])
    values["text_config"] = {**values["text_config"], "vocab_size": ROWS, "max_position_embeddings": 2048}
    values["image_token_index"] = words.convert_tokens_to_ids("<image>")
    words.save_pretrained(folder)
    return save_random_model(values, folder)


def qwen_weights() -> dict[str, Tensor]:
    """With a row for each token."""
    generator = torch.Generator().manual_seed(2)
    shape = QWEN_ROWS, test_qwen_vl.OUT
    names = ("transformer.wte.weight", "lm_head.weight")
    return test_qwen_vl.released() | {name: torch.randn(shape, generator=generator) for name in names}


def save_qwen(folder: Path, form: str) -> None:
    start = 261 + len(test_qwen_vl.SPECIAL) + test_qwen_vl.VISUAL.index("<img>")
    values = {**test_qwen_vl.RELEASED, "vocab_size": QWEN_ROWS}
    values["visual"] = {**values["visual"], "image_start_id": start}
    test_qwen_vl.save(folder, qwen_weights(), values)
    (folder / "generation_config.json").write_text(json.dumps({"chat_format": form, "eos_token_id": 261}))


def words_of(name: str) -> Any:
    special = ("<im_start>", "<im_end>") if name == "llava-1" else ()
    return sentence_piece("first", "<image>", *special, bos="<s>")


def flamingo_words() -> PreTrainedTokenizerFast:
    """Letters as words of their own: what is not one of OpenFlamingo's tokens is cut alike wherever it stands."""
    letters = {letter: i for i, letter in enumerate(["[UNK]", *map(chr, range(32, 127))])}
    inner = Tokenizer(models.WordLevel(letters, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="~")


def save_flamingo(folder: Path) -> dict[str, Tensor]:
    _, values = test_openflamingo.LANGUAGES["llama"]
    test_openflamingo.save_parts(folder, "llama", values)
    flamingo_words().save_pretrained(folder / "language")
    weights = test_openflamingo.released("model.layers", 2)
    torch.save(weights, folder / "checkpoint.pt")
    return weights


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[VLA, Path]]:
    """Each family once."""
    made: dict[str, tuple[VLA, Path]] = {}

    def get(name: str) -> tuple[VLA, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            if name == "openflamingo":
                save_flamingo(folder)
                parts = openflamingo.load(folder / "checkpoint.pt", str(folder / "clip"), str(folder / "language"))
                made[name] = VLA(*parts).eval(), folder
                return made[name]
            if name.startswith("qwen"):
                save_qwen(folder, "chatml" if name == "qwen-vl-chat" else "raw")
            else:
                save(name, folder, words_of(name))
            made[name] = VLA(*open_backbone(str(folder))).eval(), folder
        return made[name]

    return get


def stretched(image: Image.Image, side: int) -> Image.Image:
    """BLIP-2's and Qwen-VL's: torchvision's Resize((side, side), bicubic)."""
    return image.resize((side, side), Image.Resampling.BICUBIC)


def middle(image: Image.Image, side: int, cut: Callable[[int], int]) -> Image.Image:
    """CLIP's: the shorter side resized to `side`, and the middle cut out; `cut` is where of what is left over."""
    width, height = image.size
    shorter, longer = min(image.size), max(image.size)
    resized = (side, int(side * longer / shorter)) if width < height else (int(side * longer / shorter), side)
    image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = cut(resized[0] - side), cut(resized[1] - side)
    return image.crop((left, top, left + side, top + side))


def original_pixels(name: str, image: np.ndarray, side: int) -> np.ndarray:
    """Levels (h w 3)."""
    picture = Image.fromarray(image)
    if name == "llava-1":  # CLIPImageProcessor
        return np.asarray(middle(picture, side, lambda left: left // 2))
    if name == "openflamingo":  # OpenCLIP: torchvision's CenterCrop
        return np.asarray(middle(picture, side, lambda left: int(round(left / 2.0))))
    return np.asarray(stretched(picture, side))


def original_ids(name: str, words: Any, image: list[int], images: int, turns: list[tuple[str, str]]) -> list[int]:
    """Of a conversation, `image` being what stands for one image's features."""

    def text(written: str) -> list[int]:
        return list(words(written, add_special_tokens=False)["input_ids"])

    first, answer = turns[0]
    if name == "llava-1":
        # preprocess and _add_speaker_and_signal of llava/train/train.py, April 2023: the text as a whole.
        value = "".join(f"<im_start>{'<image>' * len(image)}<im_end>\n" for _ in range(images)) + first
        conversation = f"{HUMAN}\n\n### Human: {value}\n### Assistant: {answer}\n### "
        for question, answer in turns[1:]:
            conversation += f"Human: {question}\n### Assistant: {answer}\n### "
        return [words.bos_token_id, *text(conversation.removesuffix(" "))]
    if name == "minigpt-4":
        # MiniGPTBase.forward and prompt_wrap: <s>, and each text around an image, and the answer, encoded apart.
        prompt = f"###Human: {'<Img><ImageHere></Img> ' * images}{first} ###Assistant: "
        before, *parts = prompt.split("<ImageHere>")
        ids = [words.bos_token_id, *text(before)]
        for part in parts:
            ids += [*image, *text(part)]
        return [*ids, *text(f"{answer}###")]
    if name == "qwen-vl":  # eval_mm/evaluate_vqa.py
        start, end = words.convert_tokens_to_ids(["<img>", "</img>"])
        shown = [start, *image, end] * images
        return [*shown, *text(f"{first} Answer: {answer}<|endoftext|>")]
    if name == "qwen-vl-chat":  # preprocess of finetune.py, and the README's "Picture id: <img>…</img>\n{prompt}"
        begin, close, start, end = words.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<img>", "</img>"])
        line = text("\n")
        ids = [begin, *text("system"), *line, *text("You are a helpful assistant."), close, *line]
        for number, (question, reply) in enumerate(turns):
            ids += [begin, *text("user"), *line]
            for i in range(images if number == 0 else 0):
                ids += [*text(f"Picture {i + 1}: "), start, *image, end, *line]
            ids += [*text(question), close, *line, begin, *text("assistant"), *line, *text(reply), close, *line]
        return ids[: -len(line)]
    # get_vqa_prompt of open_flamingo/eval/models/open_flamingo.py
    return text(f"{'<image>' * images}Question:{first} Short answer:{answer}<|endofchunk|>")


def tokenizer_of(name: str, folder: Path) -> Any:
    if name.startswith("qwen"):
        return test_qwen_vl.load(folder)[1]
    if name != "openflamingo":
        return words_of(name)
    words = flamingo_words()
    words.add_special_tokens({"additional_special_tokens": ["<|endofchunk|>", "<image>"]})
    return words


def run_of(processor: Processor, words: Any) -> list[int]:
    """The tokens of one image's features."""
    return [processor.image] * processor.tokens_per_image


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_are_the_original_s(name: str, shape: str, opened: Any) -> None:
    processor = opened(name)[0].processor
    batch = processor.question_prompt([QUESTION], [{"a": photo(shape)}])
    pixels = processor.pixels(batch.images)[0, 0].permute(1, 2, 0).numpy()
    expected = original_pixels(name, photo(shape), processor.image_size)
    assert pixels.shape == expected.shape and batch.image_mask.tolist() == [[True]]
    levels = 255 * (pixels * STD + MEAN)
    assert abs(levels - expected).max() < LEVELS + 1e-3 and abs(levels - expected).mean() < 0.05


def test_what_is_cut_off_is_torchvision_s_where_it_is_odd(opened: Any) -> None:
    """Of 3 columns too many CLIPImageProcessor leaves out 1 on the left, torchvision's CenterCrop 2."""
    side = opened("openflamingo")[0].processor.image_size
    image = np.zeros((side, side + 3, 3), np.uint8)
    image[:, 2] = 255
    for name, column in (("openflamingo", 0), ("llava-1", 1)):
        processor = opened(name)[0].processor
        view = processor.question_prompt(["?"], [{"a": image}]).images[0, 0]
        assert view[0, :, 0].nonzero().flatten().tolist() == [column]


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_the_original_s(name: str, images: int, opened: Any) -> None:
    model, folder = opened(name)
    processor, words = model.processor, tokenizer_of(name, folder)
    views = {str(i): photo("97x333") for i in range(images)}
    expected = original_ids(name, words, run_of(processor, words), images, [(QUESTION, ANSWER)])
    batch = processor.batch([Example(views, QUESTION, ANSWER)])
    assert batch.input_ids[0].tolist() == expected
    asked = processor.question_prompt([QUESTION], [views]).input_ids[0].tolist()
    assert expected[: len(asked)] == asked and len(asked) < len(expected)
    assert batch.labels[0, len(asked) :].tolist() == expected[len(asked) :]
    # What ends an answer ends what is generated.
    assert processor.encoder.ended(expected) and not processor.encoder.ended(asked)


@pytest.mark.parametrize("name", ["llava-1", "qwen-vl-chat"])
def test_conversations_are_the_original_s(name: str, opened: Any) -> None:
    model, folder = opened(name)
    turns = [(QUESTION, ANSWER), ("And where?", "Here.")]
    expected = original_ids(name, tokenizer_of(name, folder), run_of(model.processor, None), 1, turns)
    row = Example({"a": photo("97x333")}, QUESTION, ANSWER, turns=(turns[1],), conversation=True)
    assert model.processor.batch([row]).input_ids[0].tolist() == expected


def test_texts_of_minigpt4_are_encoded_apart_by_its_first_tokenizer_too(tmp_path: Path) -> None:
    """Which writes the space before every text by its normalizer."""
    words = legacy()
    save("minigpt-4", tmp_path, words)
    processor = open_backbone(str(tmp_path))[1]
    ids = processor.batch([Example({"a": photo("97x333")}, QUESTION, ANSWER)]).input_ids[0].tolist()
    assert ids == original_ids("minigpt-4", words, run_of(processor, words), 1, [(QUESTION, ANSWER)])


@pytest.mark.parametrize("name", ["llava-1", "minigpt-4"])
def test_logits_are_those_of_transformers_classes(name: str, opened: Any) -> None:
    model, folder = opened(name)
    reference = AutoModelForImageTextToText.from_pretrained(folder).eval()
    batch = model.processor.question_prompt([QUESTION], [{"a": photo("640x480")}])
    pixels = model.processor.pixels(batch.images)[0]
    with torch.inference_mode():
        expected = reference(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), pixel_values=pixels
        ).logits[0]
        logits = model.backbone.logits(model.decoding(batch).hidden)[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize("name", ["qwen-vl", "qwen-vl-chat"])
def test_logits_of_qwen_vl_are_those_of_its_original_read_plainly(name: str, opened: Any) -> None:
    model, _ = opened(name)
    weights = qwen_weights()
    batch = model.processor.question_prompt(["the cat"], [{"a": photo("640x480")}])
    embeds = weights["transformer.wte.weight"][batch.input_ids[0]]
    embeds[batch.input_ids[0] == model.processor.image] = test_qwen_vl.sight(
        weights, model.processor.pixels(batch.images)[0, 0]
    )
    with torch.inference_mode():
        logits = model.backbone.logits(model.decoding(batch).hidden)[0]
    torch.testing.assert_close(logits, test_qwen_vl.speech(weights, embeds), atol=1e-4, rtol=1e-4)


def test_logits_of_openflamingo_are_those_of_its_parts_put_together(tmp_path: Path) -> None:
    """CLIP's patches, the resampler, and a gated layer before every second of LLaMA's, written out."""
    from transformers import CLIPVisionModel

    weights = save_flamingo(tmp_path)
    model = VLA(*openflamingo.load(tmp_path / "checkpoint.pt", str(tmp_path / "clip"), str(tmp_path / "language")))
    model.eval()
    batch = model.processor.question_prompt([QUESTION], [{"a": photo("640x480")}])
    pixels = model.processor.pixels(batch.images)[0]
    reference: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "language").eval()
    reference.resize_token_embeddings(model.backbone.vocab_size, mean_resizing=False)
    # Rows that are new have random weights here: those of the tokens in the text are taken over.
    with torch.inference_mode():
        for one, other in zip(
            (reference.get_input_embeddings(), reference.get_output_embeddings()),
            model.backbone.vocab_weights(),
            strict=True,
        ):
            one.weight.copy_(other)
        features = CLIPVisionModel.from_pretrained(tmp_path / "clip").eval()(pixels).last_hidden_state[:, 1:]
        media = test_openflamingo.resampled(features, weights)

        def before(index: int) -> Callable[..., Any]:
            name = f"lang_encoder.model.layers.{index}.gated_cross_attn_layer"
            return lambda _, args: (test_openflamingo.gated(args[0], media, weights, name), *args[1:])

        for index in (1, 3):
            reference.model.layers[index].register_forward_pre_hook(before(index))
        expected = reference(input_ids=batch.input_ids).logits[0]
        logits = model.backbone.logits(model.decoding(batch).hidden)[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.01


def test_an_openflamingo_that_was_saved_is_the_same(tmp_path: Path, opened: Any) -> None:
    model, _ = opened("openflamingo")
    model.save_pretrained(tmp_path)
    again = VLA.load(tmp_path)
    assert again.processor.images == model.processor.images and again.processor.chat == model.processor.chat


def test_a_linear_llava_without_its_markers_is_a_later_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save("llava-1", tmp_path, sentence_piece("first", "<image>", bos="<s>"))
    processor = open_backbone(str(tmp_path))[1]
    assert "no <im_start>" in capsys.readouterr().out and "USER: " in processor.chat.begin


def test_checkpoints_of_one_class_are_told_apart() -> None:
    """By what their configurations say: their prompts differ."""
    older = MODELS["internvl-1.5"]
    plain = {name: value for name, value in older["vision_config"].items() if name not in ("use_qk_norm", "norm_type")}
    assert family_of(older).name == "internvl-1.5"
    assert family_of(older | {"vision_config": plain}).name == "internvl-2.5"
    assert family_of(MODELS["internvl-3"]).name == "internvl-3"
    assert [family_of(MODELS[name]).name for name in ("llava-1", "llava-1.5")] == ["llava-1", "llava-1.5"]


def test_what_is_reported_is_what_is_tested() -> None:
    assert {row.name for row in CATALOG if row.test == "test_original_families.py"} == set(FAMILIES)
    assert all(row.verified == ORIGINAL and len(row.checked) == 3 for row in CATALOG if row.name in FAMILIES)
