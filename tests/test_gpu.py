"""What only a GPU runs: skipped where there is none. `make gpu` runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_inference import HEADS, observe
from test_training import demonstrations, mixture, plan

from vla.evaluation.heldout import action_error
from vla.models.engine.engine import Engine
from vla.models.vla import VLA
from vla.training.cotrain import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
Models = Callable[..., VLA]


@pytest.mark.parametrize("name", HEADS)
def test_an_engine_on_the_gpu_says_what_the_model_says_on_the_processor(name: str, make_model: Models) -> None:
    model = make_model(**HEADS[name])
    batch = model.processor.robot_prompt(observe(2), model.processor.robot().name)
    expected, _ = model.generate_actions(batch)
    engine = Engine(make_model(**HEADS[name]).to("cuda"))
    for _ in range(3):  # plain, captured, replayed
        found, _ = engine.generate_actions(batch)
        for one, other in zip(found, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"checkpointing": True}, {"accumulate": 2}, {"clip_parts": True}])
def test_a_training_in_bfloat16_learns(options: dict[str, Any], make_model: Models, tmp_path: Path) -> None:
    model = make_model(head="flow").to("cuda")
    before = action_error(model.eval(), demonstrations())
    how = plan(steps=60, batch_size=8, lr=3e-3, ema=0.8, warmup=5, precision="bf16", **options)
    train(model, mixture(), how, tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert action_error(model.eval(), demonstrations()) < 0.7 * before
