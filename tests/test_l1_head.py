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


def test_fewer_components_use_the_first_weights() -> None:
    head, wider = L1Head(HIDDEN, HORIZON, WIDTH), L1Head(HIDDEN, HORIZON, WIDTH + 2)
    for name, tensor in head.state_dict().items():
        wider.state_dict()[name][tuple(map(slice, tensor.shape))] = tensor
    hidden = torch.randn(2, HORIZON * WIDTH, HIDDEN)
    torch.testing.assert_close(wider(hidden, WIDTH), head(hidden))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_it_learns_the_median(noise: float) -> None:
    """L1's optimum is the median, so what is far off in one of ten rows does not move it."""
    head = L1Head(HIDDEN, HORIZON, WIDTH)
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3)
    mix = torch.randn(HIDDEN) / HIDDEN**0.5

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.randn(64, HORIZON * WIDTH, HIDDEN)
        return hidden, torch.tanh(hidden @ mix).unflatten(1, (HORIZON, WIDTH))

    def error(hidden: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return (head(hidden) - actions).abs().mean()

    first = error(*batch()).item()
    for _ in range(200):
        hidden, actions = batch()
        far = (torch.rand(64, 1, 1) < noise / 3) * 10.0
        loss = error(hidden, actions + far)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error(*batch()).item() < 0.5 * first
