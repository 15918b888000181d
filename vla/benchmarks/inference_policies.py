"""The same weights of pi0, pi0.5 and SmolVLA in LeRobot's class and here: chunks and latency from an observation."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla.benchmarks.lerobot_policies import save_policy, smolvla_settings
from vla.benchmarks.train_shapes import REAL, TINY, Shape
from vla.common.result_table import Target
from vla.embodiment import Embodiment
from vla.models.released.registry import open_policy
from vla.policies.vla import VlaPolicy
from vla.types import Observation

JOINTS, SIZE = 6, (480, 640)
CAMERAS, HORIZON = 2, 50
EQUAL, FASTER, FASTER_ON_CUDA = 1e-4, 1.0, 4.0
"""Targets: the largest difference of the chunks in float32, and minimum ratios of LeRobot's time to ours."""
Timed = Callable[[Mapping[str, Callable[[], Any]]], dict[str, list[float]]]
"""The times of the calls of several functions, in turn [s]."""


@dataclass(frozen=True)
class Policy:
    """A policy of LeRobot with random weights.

    Attributes:
        kind: LeRobot's name of it.
        settings: of LeRobot's configuration.
        sizes: the sizes of SmolVLA's VLM; those of pi0 are variants in LeRobot's code.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    sizes: Shape | None = None


POLICIES = {
    "smolvla-weights": Policy("smolvla", sizes=REAL[0]),
    "pi0-weights": Policy("pi0"),
    "pi05-weights": Policy("pi05"),
    # For tests.
    "smolvla-tiny-weights": Policy("smolvla", {"chunk_size": 16, "n_action_steps": 16}, TINY[0]),
}


def same_weights(
    name: str, precision: str, device: torch.device, timed: Timed
) -> tuple[list[dict[str, Any]], list[Target]]:
    """The rows and targets of a policy with random weights.

    Args:
        name: its name in `POLICIES`.
        precision: of our engine; LeRobot's class has the dtype of its weights.
        device: where both run.
        timed: times functions.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    body = _body()
    observed = _observation(body)
    with tempfile.TemporaryDirectory(prefix="vla-bench-") as folder, chdir(folder):
        contestants = {"lerobot": _lerobot(POLICIES[name], Path(folder), body, observed, device)}
        policy = open_policy(Path(folder) / "policy")
        model = policy.model([policy.robot(body)]).to(device)
        del policy
    expected, difference = contestants["lerobot"](), 0.0
    for contestant, engine in {"vla without an engine": None, f"vla {precision}": precision}.items():
        predict = partial(VlaPolicy(model, body, engine).predict, observed)
        chunk = predict()
        assert chunk is not None
        difference = max(difference, float(np.abs(chunk.actions - expected).max()))
        contestants[contestant] = predict
    times = timed(contestants)
    medians = {contestant: float(np.median(values)) for contestant, values in times.items()}
    best = medians[f"vla {precision}"]
    rows = [
        {
            "model": name,
            "by": contestant,
            "part": "total",
            "p50 ms": 1000 * medians[contestant],
            "p99 ms": 1000 * float(np.percentile(values, 99)),
            "p50 / ours": medians[contestant] / best,
        }
        for contestant, values in times.items()
    ]
    least = FASTER_ON_CUDA if device.type == "cuda" else FASTER
    targets = [Target(f"{name}: time of LeRobot / ours", medians["lerobot"] / best, least)]
    if precision == "float32":
        targets.append(Target(f"{name}: difference of the chunks", difference, EQUAL, at_most=True))
    return rows, targets


def _body() -> Embodiment:
    joints = tuple(f"joint {i} [rad]" for i in range(JOINTS))
    low, high = (-1e3,) * JOINTS, (1e3,) * JOINTS
    return Embodiment("robot", tuple(f"camera{i}" for i in range(CAMERAS)), joints, joints, low, high, 10.0)


def _observation(body: Embodiment) -> Observation:
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (*SIZE, 3), np.uint8) for camera in body.cameras}
    return Observation(images, rng.normal(size=JOINTS), "pick up the red cube", 0.0)


def _lerobot(
    policy: Policy, folder: Path, body: Embodiment, observed: Observation, device: torch.device
) -> Callable[[], Any]:
    """Saves a policy of LeRobot with random weights in `folder`/policy, and returns its prediction of a chunk."""
    settings: dict[str, Any] = {"chunk_size": HORIZON, "n_action_steps": HORIZON, "device": str(device)}
    if policy.sizes is not None:
        settings |= smolvla_settings(policy.sizes, folder)
    cameras = dict.fromkeys(body.cameras, SIZE)
    theirs, before, after = save_policy(policy.kind, folder, cameras, JOINTS, settings | dict(policy.settings))
    theirs.to(device)
    config = theirs.config
    noise = torch.randn(config.chunk_size, config.max_action_dim, generator=torch.Generator().manual_seed(0))
    theirs.model.sample_noise = lambda *_: noise[None].to(device)  # the noise of our decoding
    values = {"observation.state": torch.from_numpy(observed.state).float(), "task": observed.instruction}

    @torch.inference_mode()
    def call() -> Any:
        images = {
            f"observation.images.{camera}": torch.from_numpy(image).permute(2, 0, 1).float() / 255
            for camera, image in observed.images.items()
        }
        return after(theirs.predict_action_chunk(before(values | images)))[0].double().cpu().numpy()

    return call
