"""Nothing is made on a device but the model's: here every tensor that is made without one is made on another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vla.models.vla import VLA
from vla.training.batches import spare
from vla.training.distributed import DistributedContext
from vla.training.state import Progress, TrainState
from vla.training.step import backward
from vla.training.train_config import TrainConfig
from vla.types import Observation, RTCPrefix

HEADS = ("parallel", "bins", "fast", "text", "l1", "flow", "cross-flow")


@pytest.mark.parametrize("head", HEADS)
def test_a_head_stays_on_the_models_device(make_model: Callable[..., VLA], head: str) -> None:
    from test_heads import options

    model = make_model(points=2, **({"head": head} if head == "cross-flow" else options(head)))
    processor, robot = model.processor, model.processor.robots[0]
    batch = processor.batch([spare(processor)] * 2, [np.random.default_rng(i) for i in range(2)])
    black = np.zeros((32, 32, 3), np.uint8)
    seen = Observation(dict.fromkeys(robot.embodiment.cameras, black), np.zeros(2), "lift", 0.0)
    prompt, question = processor.robot_prompt([seen, seen]), processor.question_prompt(["where is it?"], [{}])
    alone = DistributedContext(torch.device("cpu"))
    state = TrainState(model, TrainConfig(steps=1, precision="fp32"), Path(), [], alone, Progress())
    with torch.device("meta"):
        backward(state, [batch])
        for prefix in (None, RTCPrefix(np.zeros((2, 1, 3)))):
            model.generate_actions(prompt, prefix)
        model.generate_text(question, 2)
