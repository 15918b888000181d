"""Every test runs with shapes and types checked, seeded, and with warnings as errors (see pyproject.toml)."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Callable
from typing import Any

# Before anything imports mujoco or matplotlib: no display is needed.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("MPLBACKEND", "agg")
# A test never reaches for the network, nor for the home folder.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HOME", os.path.join(tempfile.gettempdir(), f"vla-tests-hf-{os.getuid()}"))

from jaxtyping import install_import_hook

# jaxtyping shapes and plain annotations are checked at every call into the package; an int passes for a float.
install_import_hook("vla", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import hypothesis
import numpy as np
import pytest

from vla.embodiment import Embodiment
from vla.types import Episode

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Global generators start equal in every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., Episode]:
    """Random episodes of a small robot: two cameras of 8 x 10 pixels, two state and three action components."""
    robot = Embodiment(
        name="toy",
        cameras=("front", "wrist"),
        state=("lift [rad]", "turn [rad]"),
        action=("lift [rad]", "turn [rad]", "grip [rad]"),
        action_low=(-1.0, -1.0, 0.0),
        action_high=(1.0, 1.0, 1.0),
        control_hz=10.0,
    )

    def make(seed: int = 0, steps: int = 5, horizon: int | None = None, **fields: Any) -> Episode:
        rng = np.random.default_rng(seed)
        values: dict[str, Any] = {
            "images": {name: rng.integers(0, 256, (steps, 8, 10, 3), np.uint8) for name in robot.cameras},
            "state": rng.normal(size=(steps, 2)),
            "action": rng.normal(size=(steps, 3)),
            "time": 7.0 + np.arange(steps) / robot.control_hz,
            "instruction": "lift the ring",
            "embodiment": robot,
            "success": bool(seed % 2),
            "info": {"seed": seed},
            "chunks": None if horizon is None else rng.normal(size=(steps, horizon, 3)),
        }
        return Episode(**(values | fields))

    return make
