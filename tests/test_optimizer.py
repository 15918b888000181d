from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla.model import VLA
from vla.training.muon import Muon
from vla.training.optimizer import Ema, Optimizers, learning_rate

Models = Callable[..., VLA]


@given(st.integers(1, 500), st.integers(0, 600))
def test_the_learning_rate_warms_up_and_ends_at_a_twentieth(steps: int, warmup: int) -> None:
    rates = [learning_rate(step, steps + warmup, 2.0, warmup) for step in range(steps + warmup + 1)]
    assert max(rates) == pytest.approx(2.0)
    assert all(0 < rate <= 2.0 + 1e-12 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_optimizers_decay_matrices_only_and_scale_by_part(make_model: Models, decay: float) -> None:
    model = make_model()
    optimizer = Optimizers(model, decay, {"vision": 0.0})
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    for name, parameter in model.named_parameters():
        still = name.startswith("backbone.vision.") or parameter.ndim == 1 or decay == 0
        assert torch.equal(parameter, before[name]) == still, name
        assert (parameter.abs() <= before[name].abs() + 1e-12).all(), name


def test_muon_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((5, 9), (12, 4))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    one = Muon([{"params": ours, "lr": 0.1, "weight_decay": 0.2}])
    other = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        one.step()
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_the_head_has_a_rate_of_its_own_and_adamw_can_have_all(make_model: Models) -> None:
    model = make_model()
    optimizer = Optimizers(model, 0.5, {"head": 0.0}, "adamw")
    assert set(optimizer.kinds.values()) == {"adamw"}
    assert set(Optimizers(model, 0.5, {}).kinds.values()) == {"adamw", "muon"}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not name.startswith("backbone.")), name


def test_without_an_average_the_weights_are_what_is_evaluated(make_model: Models) -> None:
    model = make_model()
    ema = Ema(model, 0.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ema.update(model, step=3)
    ema.swap(model)
    assert ema.weights == {}
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_swapping_the_average_twice_changes_nothing(make_model: Models) -> None:
    model = make_model()
    ema = Ema(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    raw = {n: p.detach().clone() for n, p in model.named_parameters()}
    ema.update(model, step=100)
    ema.swap(model)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, raw[name] - 0.5)
    ema.swap(model)
    assert all(torch.equal(parameter, raw[name]) for name, parameter in model.named_parameters())
