"""The head `cross-flow` on a small backbone: it learns chunks, is decoded by the engine, and other robots join it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_growth import HEADS, acts, arm, policy, same
from test_heads import demonstrations, observed, question
from test_inference import observe

from vla.errors import InputError
from vla.models.action_heads.cross_attention_flow import sample_time, uniform_noise
from vla.models.continued import Ranges, continued
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.training.balance import count, element_weights
from vla.training.optimizer import Optimizers

Models = Callable[..., VLA]
SMALL: dict[str, Any] = {"head": "cross-flow", "layers": 2, "heads": 4, "hidden": 64, "state_hidden": 64, "steps": 8}


@pytest.mark.slow  # test_evo1.py compares the loss and its gradients
def test_chunks_are_learned_beside_points_and_answers(make_model: Models) -> None:
    torch.manual_seed(0)
    model = make_model(smoothing=0.0, points=1, **SMALL).train()
    batch = model.processor.batch([question(), *demonstrations()])
    optimizer, rows = Optimizers(model, 0.0, {}), torch.zeros(len(batch.source), dtype=torch.long)
    for step in range(200):
        losses, _, kinds = model(batch)
        optimizer.zero_grad()
        (losses * element_weights(count(rows, *model.elements(batch), 2), ["all"], {})[0, kinds]).sum().backward()
        optimizer.step(5e-3 * min(1.0, 2 * (1 - step / 200)))
    robot = model.processor.robot()
    for example in demonstrations():
        chunk = VlaPolicy(model).predict(observed(example))
        assert chunk is not None and chunk.points is not None
        error = np.abs(chunk.actions - example.target) / (np.subtract(robot.action.high, robot.action.low) / 2)
        assert error.max() < 0.15
        np.testing.assert_allclose(chunk.points, example.points, atol=0.0051)


@pytest.mark.parametrize("points", [0, 2])
@pytest.mark.parametrize("pooled", [False, True])
def test_the_engine_decodes_what_the_model_does(make_model: Models, points: int, pooled: bool) -> None:
    model, seen = make_model(points=points, pooled=pooled, **SMALL), observe(3)
    fast = VlaPolicy(model, engine="float32")
    for ours, plain in zip(fast.predict_batch(seen), VlaPolicy(model).predict_batch(seen), strict=True):
        assert ours is not None and plain is not None
        np.testing.assert_allclose(ours.actions, plain.actions, atol=1e-4)


def test_the_loss_of_a_row_does_not_depend_on_the_others(make_model: Models) -> None:
    model, examples = make_model(points=1, **SMALL), demonstrations()
    rngs = [np.random.default_rng(i) for i in range(2)]
    together = model(model.processor.batch(examples, rngs))
    alone = model(model.processor.batch(examples[:1], [np.random.default_rng(0)]))
    kind = alone[2].max()
    mine = together[0][(together[2] == kind) & (together[1] == 0)]
    torch.testing.assert_close(mine, alone[0][alone[2] == kind], atol=1e-5, rtol=1e-4)


def test_a_narrow_robot_joins_and_others_are_refused(make_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "cross-flow", SMALL)
    six, kind = arm("six", 6, points=2), {"kind": "cross-flow"}
    model = policy(make_model, "cross-flow", [six])
    before = {prefix: acts(model, six, prefix) for prefix in (0, 2)}
    model = continued("before", model, [arm("late", 5)], kind, Ranges())
    for prefix, chunks in before.items():
        same(acts(model, six, prefix), chunks)
    assert all(chunk is not None and chunk.shape == (4, 5) for chunk in acts(model, arm("late", 5)))
    with pytest.raises(InputError, match="cross-flow cannot take other robots or another horizon"):
        continued("before", model, [arm("wide", 14)], kind, Ranges())


def test_sizes_that_do_not_fit_are_refused(make_model: Models) -> None:
    for sizes in ({"width": 30}, {"layers": 0}, {"steps": 0}):
        with pytest.raises(InputError, match="sizes are at least 1, and the width even and a multiple of heads"):
            make_model(**{**SMALL, **sizes})
    with pytest.raises(InputError, match="does not take these settings"):
        make_model(**SMALL, knowledge_insulation=True)


def test_noise_and_times_are_those_of_the_method() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, time = uniform_noise((20000,), generator=generator), sample_time(20000, generator=generator)
    assert noise.min() >= -1 and noise.max() <= 1
    expected = torch.distributions.Beta(2, 2).sample((20000,)).clamp(0.02, 0.98)
    for own, other in ((noise, torch.rand(20000) * 2 - 1), (time, expected)):
        shares = torch.linspace(0.05, 0.95, 10)
        torch.testing.assert_close(own.quantile(shares), other.quantile(shares), atol=0.03, rtol=0)
