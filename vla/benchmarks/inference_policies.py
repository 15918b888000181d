"""The same weights of SmolVLA in LeRobot's class and here: chunks and latency, from a raw observation."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla.benchmarks.inference_shapes import Shape
from vla.benchmarks.train_shapes import save_for_lerobot
from vla.common.result_table import Target
from vla.embodiment import Embodiment
from vla.models.released.registry import open_policy
from vla.policies.vla import VlaPolicy
from vla.types import Observation

JOINTS, SIZE = 6, (480, 640)
EQUAL, FASTER, FASTER_ON_CUDA = 1e-4, 1.0, 4.0
"""Targets: the largest difference of the chunks in float32, and minimum ratios of LeRobot's time to ours."""
Timed = Callable[[Callable[[], Any]], list[float]]
"""Times the calls of a function [s]."""


def same_weights(
    shape: Shape, precision: str, device: torch.device, timed: Timed
) -> tuple[list[dict[str, Any]], list[Target]]:
    """The rows and targets of a SmolVLA with random weights.

    Args:
        shape: its sizes.
        precision: of our engine; LeRobot's class has the dtype of its weights.
        device: where both run.
        timed: times a function.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    body = _body(shape.cameras)
    observed = _observation(body)
    with tempfile.TemporaryDirectory(prefix="vla-bench-") as folder:
        call = _lerobot(shape, Path(folder), body, observed, device)
        expected, theirs = call(), timed(call)
        del call
        policy = open_policy(Path(folder) / "policy")
        model = policy.model([policy.robot(body)]).to(device)
    times = {"lerobot smolvla": theirs}
    difference = 0.0
    for name, engine in {"vla without an engine": None, f"vla {precision}": precision}.items():
        ours = VlaPolicy(model, body, engine)
        chunk = ours.predict(observed)
        assert chunk is not None
        difference = max(difference, float(np.abs(chunk.actions - expected).max()))
        times[name] = timed(lambda ours=ours: ours.predict(observed))  # type: ignore[misc]
    medians = {name: float(np.median(values)) for name, values in times.items()}
    best = medians[f"vla {precision}"]
    rows = [
        {
            "model": f"{shape.name}, the same weights",
            "by": name,
            "part": "total",
            "p50 ms": 1000 * medians[name],
            "p99 ms": 1000 * float(np.percentile(values, 99)),
            "p50 / ours": medians[name] / best,
        }
        for name, values in times.items()
    ]
    least = FASTER_ON_CUDA if device.type == "cuda" else FASTER
    targets = [
        Target(f"{shape.name}: time of LeRobot / ours, same weights", medians["lerobot smolvla"] / best, least),
    ]
    if precision == "float32":
        targets.append(Target(f"{shape.name}: difference of the chunks", difference, EQUAL, at_most=True))
    return rows, targets


def _body(cameras: int) -> Embodiment:
    joints = tuple(f"joint {i} [rad]" for i in range(JOINTS))
    low, high = (-1e3,) * JOINTS, (1e3,) * JOINTS
    return Embodiment("robot", tuple(f"camera{i}" for i in range(cameras)), joints, joints, low, high, 10.0)


def _observation(body: Embodiment) -> Observation:
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (*SIZE, 3), np.uint8) for camera in body.cameras}
    return Observation(images, rng.normal(size=JOINTS), "pick up the red cube", 0.0)


def _lerobot(
    shape: Shape, folder: Path, body: Embodiment, observed: Observation, device: torch.device
) -> Callable[[], Any]:
    """Saves a policy of LeRobot with random weights in `folder`/policy, and returns its prediction of a chunk."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    assert shape.sizes is not None
    save_for_lerobot(shape.sizes, None, folder)
    side = shape.sizes.image_size
    config = make_policy_config(
        "smolvla",
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (JOINTS,)),
            **{f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, *SIZE)) for c in body.cameras},
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (JOINTS,))},
        push_to_hub=False,
        device=str(device),
        chunk_size=shape.horizon,
        n_action_steps=shape.horizon,
        vlm_model_name=str(folder),
        load_vlm_weights=False,
        num_vlm_layers=shape.sizes.model["text_config"]["num_hidden_layers"],
        resize_imgs_with_padding=(side, side),
    )
    numbers = {"mean": torch.full((JOINTS,), 0.1), "std": torch.full((JOINTS,), 0.7)}
    statistics = {"observation.state": numbers, "action": numbers}
    policy = get_policy_class("smolvla")(config).eval()
    before, after = make_pre_post_processors(config, dataset_stats=statistics)
    for part in (policy, before, after):
        part.save_pretrained(folder / "policy")
    policy.to(device)
    horizon, width = shape.horizon, config.max_action_dim
    noise = torch.randn(horizon, width, generator=torch.Generator().manual_seed(0)).to(device)[None]
    policy.model.sample_noise = lambda *_: noise  # the noise of our decoding
    values = {"observation.state": torch.from_numpy(observed.state).float(), "task": observed.instruction}

    @torch.inference_mode()
    def call() -> Any:
        images = {
            f"observation.images.{camera}": torch.from_numpy(image).permute(2, 0, 1).float() / 255
            for camera, image in observed.images.items()
        }
        return after(policy.predict_action_chunk(before(values | images)))[0].double().cpu().numpy()

    return call
