"""Real-time chunking of flows: guidance towards the old chunk, and heads that learn to continue it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.test_flow import HORIZON, WIDTH, context, everything, head
from vla.models.action_heads.rtc_guidance import RTCGuidance, guidance_weight, guided, prefix_weights


@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 16))
def test_the_soft_mask_falls_from_the_given_actions_to_nothing(
    committed: int, previous_chunk_leftover: int, horizon: int
) -> None:
    mask = prefix_weights(committed, previous_chunk_leftover, horizon)
    assert (
        mask.shape == (horizon,)
        and (mask[:committed] == 1).all()
        and (mask[committed + previous_chunk_leftover :] == 0).all()
    )
    between = mask[committed : committed + previous_chunk_leftover]
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
    a, x, old = torch.randn(WIDTH, WIDTH), torch.randn(3, HORIZON, WIDTH), torch.randn(3, HORIZON, WIDTH)
    weights, time = prefix_weights(1, 2, HORIZON), 0.6

    def velocity(x: Tensor) -> Tensor:
        return x @ a

    error = weights[:, None] * (old - (x - time * x @ a))
    torch.testing.assert_close(
        guided(velocity, x, time, old, weights, vjp=False), x @ a - guidance_weight(time) * error
    )
    through = error @ (torch.eye(WIDTH) - time * a).T
    with torch.no_grad():
        torch.testing.assert_close(
            guided(velocity, x, time, old, weights, vjp=True), x @ a - guidance_weight(time) * through
        )


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("vjp", [False, True])
def test_guidance_draws_the_chunk_to_the_old_one_and_keeps_what_is_given(adaptive: bool, vjp: bool) -> None:
    model = head(adaptive)
    prefix, mask = context()
    noise, committed = torch.randn(3, HORIZON, WIDTH), torch.rand(3, 1, WIDTH)
    previous_chunk_leftover = torch.full((3, 2, WIDTH), 0.5)

    def sample(guide: RTCGuidance | None) -> Tensor:
        return model.sample(prefix, mask, everything(), None, committed, noise, guide)

    free, drawn = sample(None), sample(RTCGuidance(previous_chunk_leftover, vjp))
    assert torch.equal(drawn[:, :1], committed) and torch.isfinite(drawn).all()
    near = (drawn[:, 1:3] - previous_chunk_leftover).abs().mean((0, 2))
    assert (near < 0.9 * (free[:, 1:3] - previous_chunk_leftover).abs().mean((0, 2))).all() and near[0] < near[1]
    assert torch.equal(sample(RTCGuidance(torch.zeros(3, 0, WIDTH), vjp))[:, :1], committed)


def test_no_more_of_the_old_chunk_counts_than_the_new_one_is_long() -> None:
    model = head()
    prefix, mask = context()
    noise = torch.randn(3, HORIZON, WIDTH)
    long, short = torch.rand(3, HORIZON + 3, WIDTH), HORIZON - 1
    chunks = [
        model.sample(prefix, mask, everything(), None, long[:, :1], noise, RTCGuidance(rest, False))
        for rest in (long[:, 1:], long[:, 1 : 1 + short])
    ]
    assert torch.equal(*chunks)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_head_that_continues_is_told_actions_as_they_are_and_has_no_error_in_them(adaptive: bool) -> None:
    model = head(adaptive)
    model.rtc_training = True
    prefix, mask = context()
    actions, noise, time = torch.rand(3, HORIZON, WIDTH), torch.randn(3, HORIZON, WIDTH), torch.full((3,), 0.7)
    told = torch.tensor([0, 1, 3])

    def error(noise: Tensor, actions: Tensor = actions) -> Tensor:
        losses = model.loss(actions, prefix, mask, everything(), None, False, (noise, time), told)
        return losses.unflatten(0, (3, HORIZON, WIDTH))

    under_way = torch.arange(HORIZON) < told[:, None]
    assert (error(noise)[under_way] == 0).all() and (error(noise)[~under_way] > 0).all()
    # Their noise does not matter, and they do.
    other = torch.where(under_way[..., None], torch.randn_like(noise), noise)
    assert torch.equal(error(other), error(noise))
    moved = torch.where(under_way[..., None], actions + 1, actions)
    assert not torch.equal(error(noise, moved)[1, 1:], error(noise)[1, 1:])
    torch.testing.assert_close(error(noise, moved)[0], error(noise)[0])


def test_a_head_that_learned_to_continue_does() -> None:
    """A chunk is all +1 or all -1 by chance: which, its start says."""
    model = head(layers=1)
    model.rtc_training = True
    prefix, prefix_mask = context(128, layers=1)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for _ in range(350):
        actions = (torch.randint(2, (128, 1, 1)) * 2.0 - 1).expand(-1, HORIZON, WIDTH)
        told = torch.randint(0, 3, (128,))
        loss = model.loss(actions, prefix, prefix_mask, everything(128), prefix_length=told).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for sign in (1.0, -1.0):
        start = torch.full((128, 2, WIDTH), sign)
        chunks = model.sample(prefix, prefix_mask, everything(128), None, start)
        assert (chunks[:, 2:].mean((1, 2)).sign() == sign).float().mean() > 0.95
