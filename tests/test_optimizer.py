from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training import demonstrations
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from vla.models.vla import VLA
from vla.training import muon
from vla.training.muon import Muon
from vla.training.optimizer import Ema, Optimizers, clip_gradients
from vla.training.schedule import learning_rate
from vla.training.state_dropout import without_states
from vla.training.train_config import Schedule, TrainConfig

Models = Callable[..., VLA]


@given(
    st.integers(1, 500), st.integers(0, 600), st.sampled_from(get_args(Schedule)), st.floats(0, 1), st.floats(0.05, 1)
)
def test_the_learning_rate_warms_up_and_ends_at_its_floor(
    steps: int, warmup: int, schedule: Schedule, floor: float, decay: float
) -> None:
    plan = TrainConfig(steps + warmup, lr=2.0, warmup=warmup, schedule=schedule, floor=floor, decay=decay)
    rates = [learning_rate(plan, step) for step in range(steps + warmup + 1)]
    assert all(0 <= rate <= 2.0 + 1e-12 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[-1] == pytest.approx(2.0 if schedule == "constant" else 2.0 * floor)
    if schedule == "wsd":  # the rate does not depend on how long the run is, until it decays
        longer = replace(plan, steps=2 * plan.steps)
        before = range(int((1 - decay) * plan.steps))
        assert [rates[step] for step in before] == [learning_rate(longer, step) for step in before]


def test_schedules_are_those_of_transformers() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1))]
    for schedule, made in (
        ("cosine", get_cosine_schedule_with_warmup),
        ("linear", get_linear_schedule_with_warmup),
    ):
        optimizer = torch.optim.SGD(weights, lr=2.0)
        theirs = made(optimizer, 5, 40)
        plan = TrainConfig(40, lr=2.0, warmup=5, schedule=schedule, floor=0.0)  # type: ignore[arg-type]
        for step in range(40):
            # Theirs has a rate of 0 in the first step.
            ours = learning_rate(plan, step - 1) if 0 < step < 5 else learning_rate(plan, step)
            assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9) or step == 0
            optimizer.step()
            theirs.step()


def test_parts_are_clipped_each_by_itself(make_model: Models) -> None:
    model = make_model()
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, 10.0 if name.startswith("backbone.vision") else 1e-4)
    small = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and "vision" not in n}
    assert clip_gradients(model, 1.0, per_part=True) > 100
    seen = torch.cat(
        [p.grad.flatten() for p in model.backbone.freezable_modules()["vision"].parameters() if p.grad is not None]
    )
    assert seen.norm() == pytest.approx(1.0, abs=1e-3)
    assert all(torch.equal(p.grad, small[n]) for n, p in model.named_parameters() if n in small)  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    clip_gradients(model, 1.0)
    whole = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert whole.norm() == pytest.approx(1.0, abs=1e-3)


def test_states_are_left_out_of_a_share_of_the_rows_whatever_their_batch(make_model: Models) -> None:
    rngs = [np.random.default_rng(i) for i in range(400)]
    batch = make_model().processor.batch([replace(demonstrations()[i % 3]) for i in range(400)], rngs)
    assert without_states(batch, 0.0) is batch
    out = without_states(batch, 0.3).state.eq(0).all(1)
    assert 0.2 < out.float().mean() < 0.4
    some = torch.arange(0, 400, 7)
    assert torch.equal(without_states(batch.rows(some), 0.3).state, without_states(batch, 0.3).state[some])


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


@pytest.mark.parametrize("native", [True, False])
def test_muon_is_that_of_torch(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's computes in bfloat16 also where that is emulated."""
    monkeypatch.setattr(muon, "native_bf16", lambda _: native)
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
        torch.testing.assert_close(p, q, **({} if native else {"rtol": 0, "atol": 2e-3}))


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
