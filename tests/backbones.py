"""What every backbone must do: `check_backbone` is the test of each family."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vla.common.images import resize, sides
from vla.errors import InputError
from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones.backbone import Backbone
from vla.models.backbones.build import build

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
ANSWER = 4
"""Tokens behind the prompt of each row."""


@dataclass(frozen=True)
class Rows:
    """Rows of b prompts and answers, padded on the left, so that all prompts end at column `prompt`."""

    ids: Tensor
    mask: Tensor
    pixels: Tensor
    image_mask: Tensor
    prompt: int

    def row(self, i: int) -> Rows:
        """One row alone, without padding, and without a place for images that it does not have."""
        kept, seen = self.mask[i], self.image_mask[i]
        return Rows(
            self.ids[i : i + 1, kept],
            self.mask[i : i + 1, kept],
            self.pixels[i : i + 1, seen],
            self.image_mask[i : i + 1, seen],
            int(kept[: self.prompt].sum()),
        )


def make_rows(backbone: Backbone, images: bool = True) -> Rows:
    """Three prompts of different lengths, with two images, one and none."""
    generator = torch.Generator().manual_seed(0)
    words = torch.tensor([i for i in range(3, min(backbone.vocab_size, 60)) if i != backbone.image_token_id])

    def text(length: int) -> list[int]:
        return words[torch.randint(len(words), (length,), generator=generator)].tolist()

    image = [backbone.image_token_id] * backbone.tokens_per_image if images else []
    prompts = [text(1) + image + image + text(3), text(1) + image + text(7), text(5)]
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(p)) + p + text(ANSWER) for p in prompts]
    mask = [[False] * (longest - len(p)) + [True] * (len(p) + ANSWER) for p in prompts]
    image_mask = torch.tensor([[True, True], [True, False], [False, False]]) & images
    pixels = torch.randn(3, 2, 3, *sides(backbone.image_size), generator=generator) * image_mask[..., None, None, None]
    return Rows(torch.tensor(rows), torch.tensor(mask), pixels, image_mask, longest)


def embed(backbone: Backbone, rows: Rows) -> tuple[Tensor, Any]:
    vision = backbone.encode_images(ImageInput(rows.pixels, rows.image_mask)) if rows.image_mask.any() else None
    return backbone.embed(rows.ids, vision), vision


def uncached(backbone: Backbone, rows: Rows, segmented: bool = True) -> Tensor:
    """Logits (b l v) of one pass; the answer is of segment 1, where the family knows segments."""
    embeds, vision = embed(backbone, rows)
    segments = (torch.arange(rows.ids.shape[1]) >= rows.prompt).long().expand(rows.ids.shape)
    hidden, _ = backbone.forward(
        DecoderInput(embeds, rows.mask, vision=vision, segments=segments if segmented else None)
    )
    return backbone.logits(hidden)


def check_backbone(make: Callable[[], Backbone], images: bool = True) -> None:
    """Fails unless the backbone that `make` returns, with small random weights, keeps the contract."""
    torch.manual_seed(0)
    backbone: Any = make()
    assert isinstance(backbone, torch.nn.Module)
    assert isinstance(backbone, Backbone)
    with torch.no_grad():
        # Gates and projections that start at zero would hide what is behind them.
        for weight in backbone.parameters():
            weight += 0.05 * torch.randn_like(weight)
    backbone.eval()
    rows = make_rows(backbone, images)
    with torch.no_grad():
        segmented = _knows_segments(backbone, rows)
        expected = uncached(backbone, rows, segmented)
        assert expected.shape == (*rows.ids.shape, backbone.vocab_size)
        assert expected[rows.mask].isfinite().all()
        _padding_and_batching(backbone, rows, expected, segmented)
        _cache(backbone, rows, expected)
        if segmented:
            _segments(backbone, rows)
        if images:
            _images(backbone, rows, expected, segmented)
        _saved(backbone, rows, expected, segmented)
        _device(backbone, rows, segmented)
    _gradients(backbone, rows, images, segmented)
    with torch.no_grad():
        _added_rows(backbone, rows, expected, segmented)


def _knows_segments(backbone: Backbone, rows: Rows) -> bool:
    try:
        uncached(backbone, rows)
    except InputError:
        return False
    return True


def _padding_and_batching(backbone: Backbone, rows: Rows, expected: Tensor, segmented: bool) -> None:
    for i in range(len(rows.ids)):
        alone = uncached(backbone, rows.row(i), segmented)[0]
        torch.testing.assert_close(alone, expected[i, rows.mask[i]], **TOLERANCE)
    # As in training: padded on the right. Each row's prompt ends elsewhere, so segments are left out where possible.
    single = rows.row(2)
    pad = 3
    right = replace(
        single,
        ids=torch.nn.functional.pad(single.ids, (0, pad)),
        mask=torch.nn.functional.pad(single.mask, (0, pad), value=False),
    )
    padded = uncached(backbone, right, segmented)[:, :-pad]
    torch.testing.assert_close(padded[0], expected[2, rows.mask[2]], **TOLERANCE)


def _cache(backbone: Backbone, rows: Rows, expected: Tensor) -> None:
    """Prefill and extend, by one token and by several; crop and go on; fork and go on."""
    start, end = rows.prompt, rows.ids.shape[1]
    embeds, vision = embed(backbone, rows)

    def extend(cache: Any, first: int, last: int, copies: int = 1) -> Tensor:
        tail = backbone.embed_tokens(rows.ids[:, first:last]).repeat_interleave(copies, 0)
        hidden, _ = backbone.forward(
            DecoderInput(tail, rows.mask[:, :last].repeat_interleave(copies, 0), cache, vision)
        )
        return backbone.logits(hidden)

    hidden, cache = backbone.forward(
        DecoderInput(embeds[:, :start], rows.mask[:, :start], backbone.new_cache(), vision)
    )
    valid = rows.mask[:, :start]
    torch.testing.assert_close(backbone.logits(hidden)[valid], expected[:, :start][valid], **TOLERANCE)
    torch.testing.assert_close(extend(cache, start, start + 1), expected[:, start : start + 1], **TOLERANCE)
    torch.testing.assert_close(extend(cache, start + 1, end), expected[:, start + 1 :], **TOLERANCE)
    cache = backbone.crop(cache, start)
    torch.testing.assert_close(extend(cache, start, start + 2), expected[:, start : start + 2], **TOLERANCE)
    copies = backbone.fork(cache, 3)
    forked = extend(copies, start + 2, end, copies=3)
    torch.testing.assert_close(forked, expected[:, start + 2 :].repeat_interleave(3, 0), **TOLERANCE)
    torch.testing.assert_close(extend(cache, start + 2, end), expected[:, start + 2 :], **TOLERANCE)


def _segments(backbone: Backbone, rows: Rows) -> None:
    """Two answers behind one prompt, neither of which sees the other, are as each alone."""
    other = replace(rows, ids=torch.cat([rows.ids[:, : rows.prompt], rows.ids[:, rows.prompt :].flip(1)], 1))
    first, second = uncached(backbone, rows), uncached(backbone, other)
    embeds, vision = embed(backbone, rows)
    both = torch.cat([embeds, backbone.embed_tokens(other.ids[:, rows.prompt :])], 1)
    mask = torch.nn.functional.pad(rows.mask, (0, ANSWER), value=True)
    segments = torch.tensor([0] * rows.prompt + [1] * ANSWER + [2] * ANSWER).expand(len(rows.ids), -1)
    logits = backbone.logits(backbone.forward(DecoderInput(both, mask, vision=vision, segments=segments))[0])
    torch.testing.assert_close(logits[:, rows.prompt : -ANSWER], first[:, rows.prompt :], **TOLERANCE)
    torch.testing.assert_close(logits[:, -ANSWER:], second[:, rows.prompt :], **TOLERANCE)


def _images(backbone: Backbone, rows: Rows, expected: Tensor, segmented: bool) -> None:
    """Images change what follows, each its own row and no other; one of any size is fine."""
    last = expected[:, -1]
    for image in (0, 1):
        pixels = rows.pixels.clone()
        pixels[0, image] = -pixels[0, image]
        changed = uncached(backbone, replace(rows, pixels=pixels), segmented)[:, -1]
        assert (changed[0] - last[0]).abs().max() > 1e-4
        torch.testing.assert_close(changed[1:], last[1:], **TOLERANCE)
    photo = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    square = torch.from_numpy(resize(photo, backbone.image_size).copy()).permute(2, 0, 1) / 255
    row = rows.row(1)
    pixels = (square - torch.tensor(backbone.mean)[:, None, None]) / torch.tensor(backbone.std)[:, None, None]
    resized = replace(row, pixels=pixels[None, None])
    assert uncached(backbone, resized, segmented).isfinite().all()


def _saved(backbone: Any, rows: Rows, expected: Tensor, segmented: bool) -> None:
    again: Any = build(json.loads(json.dumps(backbone.config)))
    assert again.config == backbone.config
    again.load_state_dict(backbone.state_dict())
    again.eval()
    for name in ("hidden_size", "vocab_size", "image_size", "tokens_per_image", "image_token_id", "mean", "std"):
        assert getattr(again, name) == getattr(backbone, name), name
    torch.testing.assert_close(uncached(again, rows, segmented)[rows.mask], expected[rows.mask], rtol=0, atol=0)


def _device(backbone: Backbone, rows: Rows, segmented: bool) -> None:
    """What is made without a device is made on another here, and does not mix with the model's."""
    segments = (torch.arange(rows.ids.shape[1]) >= rows.prompt).long().expand(rows.ids.shape)
    with torch.device("meta"), suppress(NotImplementedError):  # of what transformers makes elsewhere, and moves
        embeds, vision = embed(backbone, rows)
        hidden, _ = backbone.forward(
            DecoderInput(embeds, rows.mask, backbone.new_cache(), vision, segments if segmented else None)
        )
        backbone.logits(hidden)


def _gradients(backbone: Any, rows: Rows, images: bool, segmented: bool) -> None:
    parts = backbone.freezable_modules()
    assert list(parts) == ["vision", "connector", "language"]
    names = [{id(p) for p in part.parameters()} for part in parts.values()]
    assert {id(p) for p in backbone.parameters()} == set.union(*names), "each weight belongs to a part"
    assert sum(map(len, names)) == len(set.union(*names)), "no weight belongs to two parts"
    for name in parts if images else ["language"]:
        for other, part in parts.items():
            part.requires_grad_(other == name)
        backbone.zero_grad()
        uncached(backbone, rows, segmented)[rows.mask].logsumexp(-1).sum().backward()
        for other, part in parts.items():
            grads = [p.grad for p in part.parameters() if p.grad is not None]
            assert bool(grads) == (other == name), f"{name} trains, and {other} has gradients: {len(grads)}"
        assert any((p.grad != 0).any() for p in parts[name].parameters() if p.grad is not None)
    backbone.requires_grad_(True)


def _added_rows(backbone: Any, rows: Rows, expected: Tensor, segmented: bool) -> None:
    before = backbone.vocab_size
    words = rows.ids[rows.ids != backbone.image_token_id][None]
    old = backbone.embed_tokens(words)
    backbone.add_token_embeddings(5)
    assert backbone.vocab_size == before + 5
    torch.testing.assert_close(backbone.embed_tokens(words), old, rtol=0, atol=0)
    logits = uncached(backbone, rows, segmented)
    torch.testing.assert_close(logits[rows.mask][:, :before], expected[rows.mask], **TOLERANCE)
    new = torch.arange(before, before + 5)[None]
    assert len(torch.unique(backbone.embed_tokens(new)[0], dim=0)) == 5
    assert logits.shape[-1] == before + 5
    assert logits[rows.mask][:, before:].isfinite().all()
    again: Any = build(json.loads(json.dumps(backbone.config)))
    again.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(uncached(again.eval(), rows, segmented), logits)
    again.add_token_embeddings(-5)
    assert again.vocab_size == before
    torch.testing.assert_close(uncached(again, rows, segmented)[rows.mask], expected[rows.mask], **TOLERANCE)


def check_needs_segments(backbone: Backbone) -> None:
    """A prefix-LM does not guess where its prefix ends."""
    rows = make_rows(backbone)
    embeds, vision = embed(backbone, rows)
    with pytest.raises(InputError, match="segments"):
        backbone.forward(DecoderInput(embeds, rows.mask, vision=vision))
