"""InternLM2's tokenizer of the SentencePiece model that is published with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import internvl_original as original
import pytest
from test_released_families import photo
from transformers.convert_slow_tokenizer import import_protobuf

from vla.errors import InputError
from vla.models.backbones import internlm2_tokenizer, internvl
from vla.models.backbones.pretrained import open_backbone

BYTES = [f"<0x{i:02X}>" for i in range(256)]
LETTERS = ["▁", *"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"0123456789?.,-:'\n"]
MERGED = ["ab", "▁a", "abc", "▁abc", "us", "user", "er"]
"""The likeliest first."""
FREE = ["[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]"]
PIECES = ["<unk>", "<s>", "</s>", *BYTES, *LETTERS, *MERGED, *FREE]
MARKS = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")


def save(folder: Path, dummy: bool = True, kind: int = 2, first: int = len(PIECES) - len(FREE)) -> None:
    """With added tokens from the place `first` on: those of the chat are in places that were free."""
    folder.mkdir(parents=True, exist_ok=True)
    proto: Any = import_protobuf().ModelProto()
    for i, piece in enumerate(PIECES):
        proto.pieces.add(piece=piece, score=float(-i))
    proto.trainer_spec.model_type, proto.normalizer_spec.add_dummy_prefix = kind, dummy
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    told = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    added = {first + i: {"content": mark, **told} for i, mark in enumerate(MARKS)}
    added |= {i: {"content": piece, **told} for i, piece in enumerate(PIECES[:3])}
    remote = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    values = {"tokenizer_class": "InternLM2Tokenizer", "auto_map": remote, "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("text", "dummy", "pieces"),
    [
        ("abc", True, ["▁abc"]),
        ("abc", False, ["abc"]),
        ("babc", False, ["b", "abc"]),
        ("a  b", False, ["a", "▁", "▁", "b"]),
        ("<|im_start|>user\nab", True, ["<|im_start|>", "▁", "user", "\n", "ab"]),
        ("<|im_start|>user\nab", False, ["<|im_start|>", "user", "\n", "ab"]),
        ("ü", False, ["<0xC3>", "<0xBC>"]),
        ("<img><IMG_CONTEXT></img>", False, ["<img>", "<IMG_CONTEXT>", "</img>"]),
    ],
)
def test_a_text_is_cut_as_sentence_piece_does(text: str, dummy: bool, pieces: list[str], tmp_path: Path) -> None:
    save(tmp_path, dummy)
    words: Any = internlm2_tokenizer.load(tmp_path)
    places = {piece: i for i, piece in enumerate(PIECES)} | {
        mark: len(PIECES) - len(FREE) + i for i, mark in enumerate(MARKS)
    }
    ids = words(text)["input_ids"]
    assert ids == [places[piece] for piece in ["<s>", *pieces]]
    shown = words.decode(ids[1:], skip_special_tokens=False)
    assert shown == (text.replace("|>u", "|> u") if dummy else text)


def test_a_published_folder_with_it_is_converted(tmp_path: Path) -> None:
    original.save("internvl-2.5", tmp_path / "published")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "published" / file).unlink()
    save(tmp_path / "published")
    words: Any = internlm2_tokenizer.load(tmp_path / "published")
    internvl.convert(tmp_path / "published", tmp_path / "converted")
    processor = open_backbone(str(tmp_path / "converted"))[1]
    image = photo("97x333")
    ids = processor.question_prompt(["abc?"], [{"a": image}]).input_ids[0].tolist()
    assert (
        ids == words(original.text_of("internvl-2.5", [len(original.tiles_of(image, 1))], [("abc?", None)])).input_ids
    )


def test_other_models_are_said(tmp_path: Path) -> None:
    save(tmp_path, kind=1)
    with pytest.raises(InputError, match="no BPE model"):
        internlm2_tokenizer.load(tmp_path)
    save(tmp_path, first=len(PIECES) + 5)
    with pytest.raises(InputError, match=r"has <\|im_start\|> as"):
        internlm2_tokenizer.load(tmp_path)
