"""OpenVLA's folder: what is missing, damaged or not supported is one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openvla_checkpoints import RARE, STATISTICS, WORDS, llama_tokenizer, write, write_oft

from vla.errors import InputError
from vla.models.released.openvla import load_openvla
from vla.models.released.openvla_files import normalizer_of, read_tokenizer

SHARD = "model-00002-of-00002.safetensors"


def config(**changed: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def damaged(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return damage


def statistics(**changed: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "dataset_statistics.json").write_text(json.dumps({"one": STATISTICS | changed}))

    return change


def oft(name: str = "", **sizes: int) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        write_oft(folder, **sizes)
        if name:
            (folder / name).write_bytes(b"damaged")

    return add


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without("config.json"), "no config.json"),
        (config(model_type="llava"), "is of the family llava, not openvla"),
        (config(vision_backbone_id="siglip-vit-so400m"), "siglip-vit-so400m: only dinosiglip is supported"),
        (config(text_config={"model_type": "phi"}), "type phi: only llama"),
        (config(image_resize_strategy="letterbox"), "image_resize_strategy is letterbox, and only resize-naive"),
        (config(text_config={"model_type": "llama", "hidden_size": 64}), "not those of the configuration"),
        (without(SHARD), f"no {SHARD}, which its index names"),
        (damaged(SHARD), f"{SHARD} is damaged"),
        (damaged("model.safetensors.index.json"), "index.json is damaged"),
        (without("tokenizer.json"), "no tokenizer.json"),
        (damaged("tokenizer.json"), "tokenizer.json is damaged"),
        (statistics(action={"q01": [0.0]}), "the statistics of one is damaged.*q99"),
        (oft("action_head--150000_checkpoint.pt"), "action_head--150000_checkpoint.pt is damaged"),
        (oft("vision_backbone--150000_checkpoint.pt"), "language conditioning.*not supported"),
        (oft("noisy_action_projector--150000_checkpoint.pt"), "a diffusion head, which is not supported"),
        (oft(action_dim=5, state_dim=6), "5 components of actions and 6 of states: give the number of steps"),
    ],
)
def test_unusable_folder_is_reported_in_one_line(change: Callable[[Path], None], match: str, tmp_path: Path) -> None:
    write(tmp_path)
    change(tmp_path)
    with pytest.raises(InputError, match=match) as raised:
        load_openvla(tmp_path)
    assert len(str(raised.value)) < 400


def test_horizon_of_an_unknown_robot_can_be_given(tmp_path: Path) -> None:
    write(tmp_path)
    write_oft(tmp_path, action_dim=5, state_dim=6)
    assert load_openvla(tmp_path, horizon=3).horizon == 3


def test_latest_step_of_a_module_is_read(tmp_path: Path) -> None:
    write(tmp_path, {"one": STATISTICS})
    write_oft(tmp_path)
    expected = load_openvla(tmp_path).weights
    for file in tmp_path.glob("*--150000_checkpoint.pt"):
        weights = {name: weight + 1 for name, weight in torch.load(file).items()}
        torch.save(weights, tmp_path / file.name.replace("150000", "5000"))
    for name, weight in load_openvla(tmp_path).weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)


def test_texts_without_late_characters_keep_their_tokens(tmp_path: Path) -> None:
    write(tmp_path)
    whole, cut = llama_tokenizer(), read_tokenizer(tmp_path, WORDS - 256)
    for text in ("In: put the cup\nOut:", "a  b", "", "é <s>"):
        assert cut.encode(text).ids == whole.encode(text).ids
    assert whole.encode(RARE).ids == [1, whole.token_to_id("▁"), WORDS - 1]
    assert cut.encode(RARE).ids == [1, whole.token_to_id("▁"), *(3 + byte for byte in RARE.encode())]
    assert cut.decode(cut.encode(RARE).ids) == RARE
    assert cut.get_vocab_size() == WORDS - 256


def test_an_empty_range_is_the_value_itself() -> None:
    action = STATISTICS["action"]
    for slack in (0.0, 1e-8):
        normalizer = normalizer_of(action, ("q01", "q99"), slack)
        np.testing.assert_allclose(normalizer.denormalize(np.ones(7))[5], -0.3, atol=2e-8)
