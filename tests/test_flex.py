"""Flex attention: the block mask is the segment mask, and a backbone says the same with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones import make_rows, uncached
from conftest import CONVNEXT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_composed import CONNECTORS, LLAMA
from torch.nn.attention.flex_attention import create_mask

from vla.models.backbones.composed import ComposedVLM
from vla.models.masks import TOGETHER, block_mask, segment_mask


@settings(max_examples=20)
@given(st.data(), st.integers(1, 150), st.booleans())
def test_a_block_mask_allows_what_the_segment_mask_allows(
    data: st.DataObject, length: int, bidirectional: bool
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    segments = torch.randint(0, 4, (2, length), generator=generator).sort(1).values
    segments[segments == 3] = TOGETHER
    mask = torch.rand(2, length, generator=generator) < 0.9
    blocks = block_mask(mask, segments, bidirectional)
    assert blocks.shape == (2, 1, length, length)
    found = create_mask(blocks.mask_mod, 2, None, length, length, device="cpu")
    assert torch.equal(found[:, 0], segment_mask(mask, segments, bidirectional))


@pytest.mark.filterwarnings("ignore")  # the compiler meets warnings of its own
@pytest.mark.parametrize("stance", ["force_eager", pytest.param("default", marks=pytest.mark.slow)])
def test_a_backbone_says_the_same(stance: Any) -> None:
    language: dict[str, Any] = {**LLAMA, "initializer_range": 0.2}

    def made(attention: str) -> ComposedVLM:
        torch.manual_seed(0)
        return ComposedVLM(CONVNEXT, language, 32, 2, attention, CONNECTORS[1]).eval()

    rows = make_rows(made("sdpa"))
    with torch.no_grad(), torch.compiler.set_stance(stance):
        expected, found = (uncached(made(attention), rows)[rows.mask] for attention in ("sdpa", "flex_attention"))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
