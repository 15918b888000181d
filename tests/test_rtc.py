"""Real-time chunking of flows: guidance towards the old chunk, and heads that learn to continue it."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.test_flow import HORIZON, WIDTH, everything, head, random_context, sample
from vla.models.action_heads.rtc_guidance import guidance_weight, guided, prefix_weights
from vla.types import GuidanceMode, RTCPrefix


@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 16))
def test_the_soft_mask_falls_from_the_committed_actions_to_zero(committed: int, leftover: int, horizon: int) -> None:
    mask = prefix_weights(committed, leftover, horizon)
    assert mask.shape == (horizon,) and (mask[:committed] == 1).all() and (mask[committed + leftover :] == 0).all()
    between = mask[committed : committed + leftover]
    assert ((between > 0) & (between < 1)).all() and (between.diff() < 0).all()


def test_the_soft_mask_is_the_papers() -> None:
    """H = 8, d = 2, s = 3: c = (H - s - i) / (H - s - d + 1)."""
    c = [3 / 4, 2 / 4, 1 / 4]
    expected = [1, 1, *(x * math.expm1(x) / (math.e - 1) for x in c), 0, 0, 0]
    torch.testing.assert_close(prefix_weights(2, 3, 8), torch.tensor(expected))


def test_strength_is_bounded_at_both_ends() -> None:
    assert guidance_weight(1.0) == guidance_weight(0.0) == 5.0
    assert guidance_weight(0.5) == pytest.approx(2.0)  # ((1/2)^2 + (1/2)^2) / (1/2 * 1/2)


def test_the_jacobian_is_that_of_the_denoised_chunk() -> None:
    """Of a linear field u = x A the denoised chunk is x (1 - t A), so the pull goes through 1 - t A transposed."""
    a, x, previous = torch.randn(WIDTH, WIDTH), torch.randn(3, HORIZON, WIDTH), torch.randn(3, HORIZON, WIDTH)
    weights, time = prefix_weights(1, 2, HORIZON), 0.6

    def velocity(x: Tensor) -> Tensor:
        return x @ a

    error = weights[:, None] * (previous - (x - time * x @ a))
    torch.testing.assert_close(
        guided(velocity, x, time, previous, weights, "identity"), x @ a - guidance_weight(time) * error
    )
    through = error @ (torch.eye(WIDTH) - time * a).T
    with torch.no_grad():
        torch.testing.assert_close(
            guided(velocity, x, time, previous, weights, "vjp"), x @ a - guidance_weight(time) * through
        )


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("mode", get_args(GuidanceMode))
def test_guidance_pulls_the_chunk_towards_the_leftover_and_keeps_committed_actions(
    adaptive: bool, mode: GuidanceMode
) -> None:
    model, context = head(adaptive), random_context()
    noise, committed = torch.randn(3, HORIZON, WIDTH), torch.rand(3, 1, WIDTH)
    leftover = torch.full((3, 2, WIDTH), 0.5)
    unguided, drawn, empty = (
        sample(model, context, RTCPrefix(committed, rest, mode), noise)
        for rest in (None, leftover, torch.zeros(3, 0, WIDTH))
    )
    assert torch.equal(drawn[:, :1], committed) and torch.isfinite(drawn).all()
    near = (drawn[:, 1:3] - leftover).abs().mean((0, 2))
    assert (near < 0.9 * (unguided[:, 1:3] - leftover).abs().mean((0, 2))).all() and near[0] < near[1]
    assert torch.equal(empty[:, :1], committed)


def test_a_leftover_counts_up_to_the_horizon() -> None:
    model, context = head(), random_context()
    noise, previous = torch.randn(3, HORIZON, WIDTH), torch.rand(3, HORIZON + 3, WIDTH)
    chunks = [
        sample(model, context, RTCPrefix(previous[:, :1], previous[:, 1:end]), noise) for end in (HORIZON, HORIZON + 3)
    ]
    assert torch.equal(*chunks)


@pytest.mark.parametrize("adaptive", [False, True])
def test_with_rtc_training_committed_actions_are_clean_and_have_no_error(adaptive: bool) -> None:
    model, context = head(adaptive), random_context()
    model.rtc_training = True
    actions, noise, time = torch.rand(3, HORIZON, WIDTH), torch.randn(3, HORIZON, WIDTH), torch.full((3,), 0.7)
    lengths = torch.tensor([0, 1, 3])

    def error(noise: Tensor, actions: Tensor = actions) -> Tensor:
        losses = model.loss(actions, context, everything(), (noise, time), lengths)
        return losses.unflatten(0, (3, HORIZON, WIDTH))

    committed = torch.arange(HORIZON) < lengths[:, None]
    assert (error(noise)[committed] == 0).all() and (error(noise)[~committed] > 0).all()
    # Their noise does not matter, and their values do.
    other = torch.where(committed[..., None], torch.randn_like(noise), noise)
    assert torch.equal(error(other), error(noise))
    moved = torch.where(committed[..., None], actions + 1, actions)
    assert not torch.equal(error(noise, moved)[1, 1:], error(noise)[1, 1:])
    torch.testing.assert_close(error(noise, moved)[0], error(noise)[0])


def test_a_head_with_rtc_training_continues_the_prefix() -> None:
    """A chunk is all +1 or all -1 by chance; the prefix decides which."""
    model, context = head(layers=1), random_context(128, layers=1)
    model.rtc_training = True
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for _ in range(350):
        actions = (torch.randint(2, (128, 1, 1)) * 2.0 - 1).expand(-1, HORIZON, WIDTH)
        lengths = torch.randint(0, 3, (128,))
        loss = model.loss(actions, context, everything(128), prefix_length=lengths).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for sign in (1.0, -1.0):
        chunks = sample(model, context, RTCPrefix(torch.full((128, 2, WIDTH), sign)))
        assert (chunks[:, 2:].mean((1, 2)).sign() == sign).float().mean() > 0.95
