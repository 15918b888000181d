from __future__ import annotations

import pytest
import torch

from vla.models.action_heads.l1_regression import L1Head

HORIZON, WIDTH, HIDDEN = 4, 3, 16


def test_an_action_is_read_from_the_slots_of_its_step() -> None:
    head = L1Head(HIDDEN, HORIZON, WIDTH)
    hidden = torch.randn(1, HORIZON * WIDTH, HIDDEN, requires_grad=True)
    for step in range(HORIZON):
        (gradient,) = torch.autograd.grad(head(hidden)[0, step].sum(), hidden)
        reached = gradient[0].abs().sum(-1).nonzero().flatten().tolist()
        assert reached == list(range(step * WIDTH, (step + 1) * WIDTH))


def test_the_loss_is_of_what_the_mask_keeps() -> None:
    head = L1Head(HIDDEN, HORIZON, WIDTH)
    hidden, actions = torch.randn(2, HORIZON * WIDTH, HIDDEN), torch.randn(2, HORIZON, WIDTH)
    mask = torch.rand(2, HORIZON, WIDTH) < 0.5
    losses = head.loss(hidden, actions, mask)
    torch.testing.assert_close(losses, (head(hidden) - actions).abs()[mask])
    torch.testing.assert_close(losses, head.loss(hidden, torch.where(mask, actions, torch.nan), mask))
    losses.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert len(head.loss(hidden, actions, torch.zeros_like(mask))) == 0


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_it_learns_the_median(noise: float) -> None:
    """L1's optimum is the median, so what is far off in one of ten rows does not move it."""
    head = L1Head(HIDDEN, HORIZON, WIDTH)
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3)
    mix = torch.randn(HIDDEN) / HIDDEN**0.5
    everything = torch.ones(64, HORIZON, WIDTH, dtype=torch.bool)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.randn(64, HORIZON * WIDTH, HIDDEN)
        return hidden, torch.tanh(hidden @ mix).unflatten(1, (HORIZON, WIDTH))

    first = head.loss(*batch(), everything).mean().item()
    for _ in range(200):
        hidden, actions = batch()
        far = (torch.rand(64, 1, 1) < noise / 3) * 10.0
        loss = head.loss(hidden, actions + far, everything).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert head.loss(*batch(), everything).mean().item() < 0.5 * first
