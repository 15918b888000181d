"""The special tokens of a tokenizer that a processor needs."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer

from vla.models.chat import token_id

PAD, BOS, EOS, IMAGE, ANSWER = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<image>", "<answer>")
"""The special tokens of nano."""


@dataclass(frozen=True)
class TextTokens:
    """The text tokens of a backbone.

    Attributes:
        image: The id of the image token.
        pad: The id of the padding token.
        text_vocab: The number of text tokens.
    """

    image: int
    pad: int
    text_vocab: int

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, image: int | None = None, pad: int | None = None, text_vocab: int | None = None
    ) -> TextTokens:
        """These tokens; by default nano's in the vocabulary of the tokenizer. Raises InputError if it has them not."""
        return cls(
            token_id(tokenizer, IMAGE) if image is None else image,
            token_id(tokenizer, PAD) if pad is None else pad,
            tokenizer.get_vocab_size() if text_vocab is None else text_vocab,
        )
