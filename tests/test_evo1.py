"""EVO1 as a native model, against LeRobot's own class on small random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_store
from lerobot_evo1 import LAYERS, PADDED, Evo1Reference, evo1_reference, fixed_draws
from lerobot_policies import ACTION, BODY, HORIZON, observation
from safetensors.torch import load_file

from vla.commands.cli import main
from vla.errors import InputError
from vla.models.action_heads import cross_flow, flow
from vla.models.action_heads.cross_attention_flow import uniform_noise
from vla.models.released.lerobot_export import export_lerobot
from vla.models.released.registry import open_policy, policy_defaults
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.types import Episode, Example, Observation

Make = Callable[..., Evo1Reference]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    return lambda **options: evo1_reference(tmp_path / "theirs", monkeypatch, **options)


def model_of(theirs: Evo1Reference, **changes: Any) -> VLA:
    policy = open_policy(theirs.folder)
    return policy.model([replace(policy.robot(BODY), **changes)])


def noise() -> torch.Tensor:
    """The noise of our decoding, (h, a)."""
    return uniform_noise((HORIZON, PADDED), generator=torch.Generator().manual_seed(0))


def without(seen: Observation, camera: str) -> Observation:
    return replace(seen, images={name: image for name, image in seen.images.items() if name != camera})


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("engine", [None, "float32"])
def test_chunks_in_robot_units_are_those_of_the_original(make: Make, engine: str | None, pooled: bool) -> None:
    theirs = make(return_cls_only=pooled)
    policy = VlaPolicy(model_of(theirs, fewer_cameras=True), BODY, engine)
    large, odd = observation((480, 640), " pick_up the red cube\n"), observation((31, 48), "place it", 1)
    seen = [large, odd, without(large, "front"), without(odd, "wrist")]
    together = policy.predict_batch(seen)
    for one, row in zip(seen, together, strict=True):
        expected, alone = theirs.chunk(one, noise()), policy.predict(one)
        assert alone is not None and row is not None
        np.testing.assert_allclose(alone.actions, expected, atol=1e-4)
        np.testing.assert_allclose(row.actions, expected, atol=1e-4)
