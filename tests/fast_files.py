"""The published FAST processor, written from its description: its training, its files and its tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.fft import dct
from tokenizers import ByteLevelBPETokenizer
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast


def published(
    folder: Path, scale: int, chunks: Sequence[Float[np.ndarray, "_h _a"]], size: int = 600
) -> PreTrainedTokenizerFast:
    """The published way of training: byte-level, cut into words before the merges; and its files."""
    rounded = [np.around(dct(chunk, axis=0, norm="ortho").ravel() * scale).astype(int) for chunk in chunks]
    low, high = min(r.min() for r in rounded), max(r.max() for r in rounded)
    bpe = ByteLevelBPETokenizer()
    trainer = BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=[chr(i) for i in range(high - low + 1)],
        max_token_length=10000,
    )
    bpe._tokenizer.train_from_iterator(("".join(chr(v - low) for v in r) for r in rounded), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False)
    tokenizer.save_pretrained(folder)
    fields = {"scale": scale, "vocab_size": size, "min_token": int(low), "action_dim": None, "time_horizon": None}
    (folder / "processor_config.json").write_text(json.dumps(fields | {"processor_class": "UniversalActionProcessor"}))
    return tokenizer


def published_ids(
    tokenizer: PreTrainedTokenizerFast, chunk: Float[np.ndarray, "h a"], low: int, scale: int
) -> list[int]:
    rounded = np.around(dct(chunk[None], axis=1, norm="ortho") * scale)[0]
    ids: list[int] = tokenizer("".join(map(chr, np.maximum(rounded.flatten() - low, 0).astype(int))))["input_ids"]
    return ids


class PublishedProcessor:
    """The processor of a folder, as LeRobot uses it."""

    def __init__(self, folder: Path) -> None:
        self.bpe_tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        fields = json.loads((folder / "processor_config.json").read_text())
        self.scale, self.min_token = fields["scale"], fields["min_token"]

    def __call__(self, chunks: Any) -> list[list[int]]:
        return [published_ids(self.bpe_tokenizer, chunk, self.min_token, self.scale) for chunk in np.asarray(chunks)]
