"""FAST: a chunk's DCT coefficients, compressed by byte-pair encoding (Pertsch et al. 2025, arXiv 2501.09747)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.fft import dct, idct
from tokenizers import Tokenizer, decoders, models, trainers

from vla.errors import InputError

LONGEST_TOKEN = 10000
MAX_COEFFICIENTS = 0xD800
"""Number of code points before the surrogates, which are not valid text."""
OURS, PUBLISHED = "fast.json", "processor_config.json"

Chunks = Callable[[], Iterable[Float[np.ndarray, "_b _h _a"]]]
"""Returns batches of normalised chunks; every call must return the same."""


@dataclass(frozen=True)
class FastTokenizer:
    """FAST tokens: quantised DCT coefficients of a chunk, compressed by byte-pair encoding.

    Coefficient c_k of a component is the orthonormal DCT-II over the h steps, quantised to round(scale c_k).
    Coefficients are ordered by frequency, lowest first, then by component. Each is written as the character
    `chr(round(scale c) - min_token)`, and the string is encoded by `bpe`.

    The quantisation error of a coefficient is at most 1 / (2 scale), and the rows of the inverse transform have norm 1.
    So the error of a decoded value is at most `error_bound(h)` = sqrt(h) / (2 scale), if no coefficient is outside
    [min_token, max_token]. Coefficients outside are clipped. (The published processor only clips below; it has no
    max_token.)
    """

    bpe: Tokenizer
    scale: float
    min_token: int
    max_token: int

    @property
    def vocab_size(self) -> int:
        """See `ActionTokenizer.vocab_size`."""
        return int(self.bpe.get_vocab_size())

    def error_bound(self, horizon: int) -> float:
        """Largest error of a decoded value for chunks of `horizon` steps, without clipping."""
        return horizon**0.5 / (2 * self.scale)

    def encode(self, actions: Float[np.ndarray, "h a"]) -> Int[np.ndarray, "n"]:
        """Token ids of a chunk, n <= h a for tokenizers trained by `train`."""
        coefficients = np.clip(_coefficients(actions, self.scale), self.min_token, self.max_token)
        return np.array(self.bpe.encode(_text(coefficients, self.min_token), add_special_tokens=False).ids, np.int64)

    def decode(self, tokens: Num[np.ndarray, "n"], horizon: int, dim: int) -> Float[np.ndarray, "h a"] | None:
        """The actions, or None unless the tokens encode exactly `horizon` x `dim` valid coefficients.

        The published decoder replaces invalid tokens by zeros, the middle of each component's range, which makes the
        robot jump.
        """
        known = ((tokens >= 0) & (tokens < self.vocab_size)).all() and (tokens == np.floor(tokens)).all()
        text = self.bpe.decode(tokens.astype(np.int64).tolist(), skip_special_tokens=False) if known else ""
        if not text or len(text) != horizon * dim:
            return None
        coefficients = np.array([ord(character) for character in text]) + self.min_token
        if coefficients.max() > self.max_token:
            return None
        return idct(coefficients.reshape(horizon, dim) / self.scale, axis=0, norm="ortho")

    @classmethod
    def train(cls, chunks: Chunks, vocab_size: int = 1024, scale: float = 10.0) -> FastTokenizer:
        """Trains a tokenizer on normalised chunks, deterministically.

        Every coefficient between the observed minimum and maximum is in the initial alphabet, so each can be encoded.
        There is no pre-tokenisation: any two characters can be merged.

        Raises:
            InputError: when there are no chunks, or more distinct coefficients than `vocab_size`.
        """
        low, high = _range(chunks, scale)
        if high - low >= min(vocab_size, MAX_COEFFICIENTS):
            raise InputError(
                f"the chunks have rounded coefficients from {low} to {high}, more than the {vocab_size} tokens: look "
                "for outliers in the data (vla data info), or choose a greater vocab or a smaller scale"
            )
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            max_token_length=LONGEST_TOKEN,
            initial_alphabet=[chr(i) for i in range(high - low + 1)],
            special_tokens=[],
            show_progress=False,
        )
        bpe = Tokenizer(models.BPE())
        bpe.decoder = decoders.Fuse()
        bpe.train_from_iterator(_texts(chunks, scale, low), trainer)
        return cls(bpe, scale, low, high)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and fast.json into `folder`, which must exist."""
        self.bpe.save(str(folder / "tokenizer.json"))
        fields = {"scale": self.scale, "min_token": self.min_token, "max_token": self.max_token}
        (folder / OURS).write_text(json.dumps(fields, indent=1))

    @classmethod
    def load(cls, folder: Path) -> FastTokenizer:
        """Loads what `save` wrote, or the published processor (tokenizer.json and processor_config.json).

        Raises:
            InputError: when `folder` has neither, or they cannot be read.
        """
        folder = Path(folder)
        name = next((name for name in (OURS, PUBLISHED) if (folder / name).exists()), None)
        if name is None or not (folder / "tokenizer.json").exists():
            raise InputError(f"{folder} holds no FAST tokenizer: tokenizer.json with {OURS} or {PUBLISHED}")
        try:
            fields = json.loads((folder / name).read_text())
            low = int(fields["min_token"])
            high = int(fields.get("max_token", low + MAX_COEFFICIENTS - 1))
            return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), float(fields["scale"]), low, high)
        except Exception as error:  # tokenizers raises a bare Exception
            raise InputError(f"the FAST tokenizer in {folder} cannot be read: {error}") from error


def _coefficients(actions: Float[np.ndarray, "*b h a"], scale: float) -> Float[np.ndarray, "*b h a"]:
    return np.around(dct(actions, axis=-2, norm="ortho") * scale)


def _text(coefficients: Float[np.ndarray, "h a"], min_token: int) -> str:
    return "".join(map(chr, (coefficients - min_token).astype(np.int64).ravel().tolist()))


def _range(chunks: Chunks, scale: float) -> tuple[int, int]:
    """The smallest and the largest quantised coefficient. Raises InputError without chunks."""
    extremes = [(c.min(), c.max()) for batch in chunks() if (c := _coefficients(batch, scale)).size]
    if not extremes:
        raise InputError("no chunks to train a tokenizer on: record some episodes first (vla record)")
    return int(min(low for low, _ in extremes)), int(max(high for _, high in extremes))


def _texts(chunks: Chunks, scale: float, low: int) -> Iterator[str]:
    for batch in chunks():
        yield from (_text(chunk, low) for chunk in _coefficients(batch, scale))
