"""InternLM2's tokenizer, which is published as a SentencePiece model (tokenizer.model) with code of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

from vla.errors import InputError

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
"""The first three pieces."""
BPE_MODEL = 2
"""What a SentencePiece model that merges pairs says of its type."""


def load(own: Path) -> PreTrainedTokenizerFast:
    """Of a folder with tokenizer.model, and tokenizer_config.json with the tokens that were added to it.

    A text begins with <s>. Raises InputError for a model of another kind, or where the tokens do not follow its own.
    """
    proto: Any = import_protobuf().ModelProto()
    proto.ParseFromString((own / "tokenizer.model").read_bytes())
    if proto.trainer_spec.model_type != BPE_MODEL:
        raise InputError(f"{own / 'tokenizer.model'} is no BPE model of SentencePiece")
    file = own / "tokenizer_config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    added = {int(number): AddedToken(**token) for number, token in (config.get("added_tokens_decoder") or {}).items()}
    scores = [(piece.piece, piece.score) for piece in proto.pieces]
    scores[:3] = [(piece, 0.0) for piece in (UNKNOWN, BEGIN, END)]
    # Some of what was added has the place of a piece that was left free for it.
    scores = [(added[i].content if i in added else piece, score) for i, (piece, score) in enumerate(scores)]
    vocabulary = {piece: i for i, (piece, _) in enumerate(scores)}
    merges = generate_merges(vocabulary, scores)
    words = Tokenizer(BPE(vocabulary, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    for number, token in sorted(added.items()):
        (words.add_special_tokens if token.special else words.add_tokens)([token])
        if words.token_to_id(token.content) != number:
            raise InputError(f"{file} has {token.content} as {number}, behind {words.get_vocab_size()} tokens")
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    if proto.normalizer_spec.add_dummy_prefix:
        spaces.insert(0, normalizers.Prepend("▁"))
    words.normalizer = normalizers.Sequence(spaces)
    words.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    words.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, words.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token=UNKNOWN, bos_token=BEGIN, eos_token=END, pad_token=END
    )
