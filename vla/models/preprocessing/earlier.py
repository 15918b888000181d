"""Compatibility with earlier checkpoints, which stored the tokens around an image with the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from vla.common.images import Size, sides
from vla.models.preprocessing.frames import Pad
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.settings import Preprocessing

RUN = ("begin", "between", "end")
"""Tokens before an image's tokens, between their rows, and after them."""


def without_run(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """A backbone's configuration without the tokens of earlier versions."""
    return {key: value for key, value in backbone.items() if key not in RUN}


def earlier(backbone: Mapping[str, Any], tokenizer: Tokenizer, image_size: Size, tokens: int) -> Preprocessing:
    """The preprocessing of an earlier checkpoint: one padded frame, with `tokens` tokens including those around it."""
    ids = {key: list(backbone.get(key) or ()) for key in RUN}
    texts = {key: tokenizer.decode(run, skip_special_tokens=False) for key, run in ids.items()}
    count, side = tokens - len(ids["begin"]) - len(ids["end"]), sides(image_size)
    if not ids["between"]:
        return Preprocessing(Pad(side), Markup(**texts, tokens=count))
    rows = next(n for n in range(1, count + 1) if n * n + (n - 1) * len(ids["between"]) >= count)
    return Preprocessing(Pad(side), Markup(**texts, cell=side[0] // rows))
