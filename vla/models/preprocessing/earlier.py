"""Checkpoints of before images were written by the processor: their backbone knew what stands around an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from vla.common.images import Size, sides
from vla.models.preprocessing.frames import Pad
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.settings import Preprocessing

RUN = ("begin", "between", "end")
"""Tokens before an image's own, after each row of them but the last, and behind them."""


def without_run(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """A backbone's configuration as it is made of today."""
    return {key: value for key, value in backbone.items() if key not in RUN}


def earlier(backbone: Mapping[str, Any], tokenizer: Tokenizer, image_size: Size, tokens: int) -> Preprocessing:
    """How such a checkpoint was trained: one square frame with bars, `tokens` in all, those of the run among them."""
    ids = {key: list(backbone.get(key) or ()) for key in RUN}
    texts = {key: tokenizer.decode(run, skip_special_tokens=False) for key, run in ids.items()}
    own, side = tokens - len(ids["begin"]) - len(ids["end"]), sides(image_size)
    if not ids["between"]:
        return Preprocessing(Pad(side), Markup(**texts, tokens=own))
    rows = next(n for n in range(1, own + 1) if n * n + (n - 1) * len(ids["between"]) >= own)
    return Preprocessing(Pad(side), Markup(**texts, cell=side[0] // rows))
