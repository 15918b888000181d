"""Any released family as a backbone of `vla train`: its conversations, a policy on it, and the folder that is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOY, toy_spec
from test_training import Memory
from tiny_families import MODELS, save_checkpoint
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BitImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTMAEConfig,
    ViTMAEModel,
)

from vla.datasets.mixture import Mixture
from vla.errors import InputError
from vla.models.backbones import catalog
from vla.models.backbones.pretrained import make_processor, open_backbone
from vla.models.batch import IGNORE
from vla.models.build import build
from vla.models.vla import VLA
from vla.training.cotrain import train
from vla.training.train_config import TrainConfig
from vla.types import Example, Observation

MARKS = ("<pad>", "<s>", "</s>", "<bos>", "<eos>", "<image>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "[INST]")
MARKS += ("[/INST]", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<end_of_utterance>")
MARKS += ("<img>", "</img>", "[IMG_BREAK]", "[IMG_END]", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
MARKS += ("<fake_token_around_image>", "<global-img>", "<Img>", "</Img>", "<|endoftext|>", "<|end_of_text|>")
ROBOT = toy_spec()


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the tokens that the families write around what is said."""
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


def released(name: str, folder: Path) -> Path:
    """A tiny checkpoint of a family, with a tokenizer that has the family's tokens."""
    words = tokenizer()
    image = words.convert_tokens_to_ids("<image>")
    values = MODELS[name]
    changes: dict[str, Any] = {k: image for k in ("image_token_id", "image_token_index") if k in values}
    if "text_config" in values:
        changes["text_config"] = {**values["text_config"], "vocab_size": 320}
    else:
        changes["vocab_size"] = 320
    save_checkpoint(name, folder, **changes)
    words.save_pretrained(folder)
    return folder


def example(seed: int = 0, **fields: Any) -> Example:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (32, 32, 3), np.uint8) for name in TOY.cameras}
    values: dict[str, Any] = {"images": images, "prompt": "lift the <image> ring", "source": "robot"}
    return Example(**(values | {"target": rng.uniform(0, 0.5, (4, 3)), "state": np.zeros(2)} | fields))


@pytest.mark.parametrize("name", MODELS)
def test_a_family_learns_actions_and_answers_and_is_loaded_as_it_was_saved(name: str, tmp_path: Path) -> None:
    folder = released(name, tmp_path / "released")
    model = build(str(folder), [ROBOT], [], {"kind": "parallel"})
    processor = model.processor
    view = {"front": example().images["front"]}
    batch = processor.batch([example(), example(1, images=view, target="red", state=None)])
    # A name of a token in what a user writes opens no place for an image.
    counts = [told.markup.count(told.framing.view(32, 32)) for told in (processor.cameras[0], processor.shown)]
    assert (batch.input_ids == processor.image).sum(1).tolist() == [2 * counts[0], counts[1]]
    labels = batch.labels[1][batch.labels[1] != IGNORE].tolist()
    said = processor.encoder.until_end(labels)
    assert processor.text(said) == "red" and len(said) < len(labels)
    losses, _, _ = model(batch)
    losses.mean().backward()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.step()
    model.eval()
    saved = tmp_path / "saved"
    saved.mkdir()
    model.save(saved)
    again = VLA.load(saved)
    observation = Observation(example().images, np.zeros(2), "lift the ring", 0.0)
    prompt = processor.robot_prompt([observation])
    (expected,), _ = model.generate_actions(prompt)
    (found,), _ = again.generate_actions(again.processor.robot_prompt([observation]))
    assert expected is not None and found is not None
    np.testing.assert_allclose(found, expected, atol=1e-6)
    asked = processor.question_prompt(["what is it?"], [view])
    assert again.generate_text(asked, 4) == model.generate_text(asked, 4)


@pytest.mark.parametrize("name", ["llava-1.5", "paligemma", "qwen2-vl", "mllama"])
def test_what_is_said_step_by_step_is_what_was_trained(name: str, tmp_path: Path) -> None:
    """The logits behind a prompt, with a cache and padding, are those of the whole row in training."""
    model = build(str(released(name, tmp_path)), [], [], {"kind": "parallel"}).eval()
    rows = [example(1, target="red", state=None), example(2, target="red", state=None, prompt="what?")]
    batch = model.processor.batch(rows)
    with torch.inference_mode():
        losses, where, _ = model(batch)
        asked = model.processor.question_prompt([r.prompt for r in rows], [r.images for r in rows])
        logp = model.decoding(asked).next_logits().log_softmax(-1)
    first = [int(torch.nonzero(where == i)[0]) for i in range(2)]
    start = batch.labels[:, 1:].ge(0).int().argmax(1) + 1
    expected = logp.gather(1, batch.labels.gather(1, start[:, None])).squeeze(1)
    torch.testing.assert_close(-losses[first], expected, atol=1e-4, rtol=1e-4)


def test_a_prefix_lm_has_one_turn_a_row(tmp_path: Path) -> None:
    processor = build(str(released("paligemma", tmp_path)), [], [], {"kind": "parallel"}).processor
    with pytest.raises(InputError, match="turns=1"):
        processor.batch([example(target="red", state=None, turns=(("and?", "blue"),))])


@pytest.mark.parametrize("row", [r for r in catalog.CATALOG if "chat" in r.config()], ids=lambda r: r.name)
def test_every_format_of_conversations_says_prompt_and_answer(
    row: catalog.Family, make_model: Callable[..., VLA]
) -> None:
    backbone: Any = make_model(robot=False).backbone
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<|endofchunk|>"]})
    backbone.image_token_id = words.convert_tokens_to_ids("<image>")
    processor = make_processor(backbone, words, row.config()["chat"])
    turns = () if processor.chat.prefix_lm else (("shape?", "cube"),)
    asked = example(target="red", state=None, prompt="colour?", turns=turns, conversation=True)
    ids = processor.batch([asked]).input_ids[0].tolist()
    text = processor.tokenizer.decode(ids, skip_special_tokens=False)
    chat, image = processor.chat, "<image>" * processor.tokens_per_image
    images = f"{image}{chat.between}{image}"
    wanted = f"{chat.begin}{images}{chat.question}colour?{chat.answer}{chat.reply}red{chat.end}"
    assert text == wanted + "".join(f"{chat.again}{p}{chat.answer}{chat.reply}{a}{chat.end}" for p, a in turns)


def test_a_backbone_of_two_pretrained_parts(tmp_path: Path) -> None:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    seeing: Any = CLIPVisionModel(CLIPVisionConfig(image_size=28, patch_size=14, **size))
    seeing.save_pretrained(tmp_path / "vision")
    words = tokenizer()
    language = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), tie_word_embeddings=True, **size))
    language.save_pretrained(tmp_path / "language")
    words.save_pretrained(tmp_path / "language")
    parts = {"vision": str(tmp_path / "vision"), "language": str(tmp_path / "language"), "connector": "linear"}
    backbone, processor = open_backbone(parts)
    assert (backbone.image_size, backbone.tokens_per_image) == (28, 4)
    loaded: Any = backbone.freezable_modules()["language"]
    torch.testing.assert_close(loaded.model.layers[1].mlp.up_proj.weight, language.model.layers[1].mlp.up_proj.weight)
    first = next(iter(seeing.state_dict()))
    assert torch.equal(backbone.freezable_modules()["vision"].state_dict()[first], seeing.state_dict()[first])
    model = VLA(backbone, processor)
    model.save(tmp_path)  # tied weights are written once
    batch = processor.question_prompt(["what?"], [example().images])
    assert VLA.load(tmp_path).generate_text(batch, 4) == model.eval().generate_text(batch, 4)
    wide, asking = open_backbone(parts | {"image_size": [28, 42]})
    assert (wide.tokens_per_image, tuple(asking.image_size)) == (6, (28, 42))
    seen = asking.question_prompt(["what?"], [{"front": np.full((56, 84, 3), 9, np.uint8)}])
    assert seen.images.shape == (1, 1, 28, 42, 3) and seen.images.all()
    VLA(wide, asking).save(tmp_path)
    assert VLA.load(tmp_path).generate_text(seen, 4) == VLA(wide, asking).eval().generate_text(seen, 4)
    with pytest.raises(InputError, match="check language"):
        open_backbone({"vision": "x"})


@pytest.mark.parametrize("kind", ["parallel", "flow"])
def test_parts_in_half_precision_train_in_full(kind: str, tmp_path: Path) -> None:
    """In bfloat16 the average, which is what is deployed, would never move."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    words = tokenizer()
    parts: Any = {
        "vision": CLIPVisionModel(CLIPVisionConfig(image_size=28, patch_size=14, **size)),
        "language": LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **size)),
    }
    for name, part in parts.items():
        part.to(torch.bfloat16).save_pretrained(tmp_path / name)
    words.save_pretrained(tmp_path / "language")
    model = build({name: str(tmp_path / name) for name in parts}, [ROBOT], [], {"kind": kind})
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "dtype" not in json.dumps(model.backbone.config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    source = [example(seed) for seed in range(2)]
    plan = TrainConfig(3, batch_size=2, optimizer="adamw", lr=1e-5, warmup=1, ema=0.995, augment=0.0, precision="fp32")
    train(model, Mixture({"robot": Memory(source)}, {"robot": 1.0}, 0), plan, tmp_path / "run")  # ends as the average
    first = [name for name in before if "layers.0." in name and name.endswith("weight")]
    assert {"vision" in name for name in first} == {False, True}
    raw = dict(model.named_parameters())
    assert not [name for name in first if torch.equal(raw[name], before[name])]
    # A checkpoint of before, whose configuration says how its parts were stored, is loaded in full too.
    config = json.loads((checkpoint := tmp_path / "run" / "step-00000003" / "config.json").read_text())
    config["backbone"]["language"]["dtype"] = config["backbone"]["vision"]["torch_dtype"] = "bfloat16"
    checkpoint.write_text(json.dumps(config))
    assert {p.dtype for p in VLA.load(checkpoint.parent).parameters()} == {torch.float32}


def test_a_backbone_of_parts_has_the_size_of_its_preprocessor(tmp_path: Path) -> None:
    """DINOv2 has positions for 518 pixels, of whose 37 x 37 patches none shuffles by 4, and a preprocessor for 224."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    Dinov2Model(Dinov2Config(image_size=70, patch_size=14, **size)).save_pretrained(tmp_path / "vision")
    words, crop = tokenizer(), {"height": 56, "width": 56}
    BitImageProcessor(size={"shortest_edge": 64}, crop_size=crop).save_pretrained(tmp_path / "vision")
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), intermediate_size=64, **size)).save_pretrained(
        tmp_path / "text"
    )
    words.save_pretrained(tmp_path / "text")
    connector = {"kind": "pixel_shuffle", "factor": 4}
    parts = {"vision": str(tmp_path / "vision"), "language": str(tmp_path / "text"), "connector": connector}
    backbone, processor = open_backbone(parts)
    assert (backbone.image_size, backbone.tokens_per_image, processor.images.framing.kind) == (56, 1, "pad")
    assert backbone.mean == pytest.approx(BitImageProcessor.image_mean)
    batch = processor.question_prompt(["what?"], [example().images])
    assert VLA(backbone, processor).eval().generate_text(batch, 2)


def test_an_encoder_that_says_nothing_of_its_pixels_is_refused(tmp_path: Path) -> None:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    ViTMAEModel(ViTMAEConfig(image_size=28, patch_size=14, **size)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no mean and std of its images"):
        open_backbone({"vision": str(tmp_path), "language": str(tmp_path)})


def test_large_images_of_questions_are_seen_in_pieces(tmp_path: Path) -> None:
    folder = str(released("internvl-3", tmp_path))
    model = build(folder, [ROBOT], [], {"kind": "parallel"}, tiles=4)
    wide = np.random.default_rng(0).integers(0, 256, (28, 56, 3), np.uint8)
    batch = model.processor.batch([example(target="red", state=None, images={"page": wide}), example()])
    assert batch.image_mask.sum(1).tolist() == [3, 2]  # two pieces and the whole; a robot's cameras as they are
    assert np.array_equal(batch.images[0, 0].numpy(), wide[:, :28])
    assert model(batch)[0].isfinite().all()
    with pytest.raises(InputError, match="tiles"):
        build(folder, [ROBOT], [], {"kind": "parallel"}, tiles=0)


def test_names_that_cannot_be_opened_say_why() -> None:
    with pytest.raises(InputError, match="choose of .*paligemma"):
        open_backbone("no-such-family")
    with pytest.raises(InputError, match="converted first"):
        open_backbone("molmo")
    with pytest.raises(InputError, match="hosted"):
        open_backbone("gpt-4o")
    with pytest.raises(InputError, match="not a checkpoint"):
        open_backbone("no/such-hub-id")
