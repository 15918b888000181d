"""A checkpoint of vla as a LeRobot policy.

States and actions are not converted: LeRobot's values are those of a dataset read by `vla convert`, in the dataset's
order of components. Images arrive as floats in [0, 1] and are converted back to bytes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_vla.configuration_vla import VlaConfig
from vla.common.images import sides
from vla.errors import InputError
from vla.models.vla import VLA
from vla.policies.history import FrameHistory
from vla.policies.vla import VlaPolicy as Driver
from vla.types import Observation

IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"


class VlaPolicy(PreTrainedPolicy):
    """Policy for a batch of b robots of one kind. Without a valid chunk, a robot holds its last command or state."""

    config_class = VlaConfig
    name = "vla"

    def __init__(
        self,
        config: VlaConfig,
        dataset_stats: Any = None,
        dataset_meta: Any = None,
        *,
        model: VLA | None = None,
        **_: Any,
    ) -> None:
        """Raises InputError without a model, and if it has no robot, or several and `config.robot` names none."""
        super().__init__(config)
        if model is None:
            raise InputError("LeRobot cannot create this policy: train one with `vla train`, and set --policy.path")
        self.model = model
        self._driver = Driver(model, config.robot)
        body, (height, width) = self._driver.embodiment, sides(model.processor.image_size)
        config.input_features = {
            STATE: PolicyFeature(FeatureType.STATE, (len(body.state),)),
            **{IMAGES + camera: PolicyFeature(FeatureType.VISUAL, (3, height, width)) for camera in body.cameras},
        }
        config.output_features = {ACTION: PolicyFeature(FeatureType.ACTION, (len(body.action),))}
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: Any = None,
        revision: str | None = None,
        cli_overrides: Any = (),
        **kwargs: Any,
    ) -> VlaPolicy:
        """Loads a folder of `vla train` or `VLA.save_pretrained`, or a model of the hub."""
        model = VLA.from_pretrained(pretrained_name_or_path, revision)
        return cls(config or VlaConfig(), model=model).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: Any = None) -> None:
        self.model.save_pretrained(save_directory)

    def get_optim_params(self) -> Any:
        """All parameters."""
        return self.parameters()

    def reset(self) -> None:
        """Starts a new episode."""
        self._queue: deque[Tensor] = deque()
        self._last: Tensor | None = None
        self._histories: list[FrameHistory] = []
        self._steps = 0

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """Raises NotImplementedError: LeRobot does not train this policy."""
        raise NotImplementedError("LeRobot does not train this policy: use `vla train`")

    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next action of each robot (b, a), in the embodiment's units; runs inference when the queue is empty."""
        # A policy with past frames needs every observation.
        observations = self._with_history(self._observations(batch)) if self._driver.history else None
        if not self._queue:
            chunk = self._chunk(observations or self._observations(batch))
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        self._last = self._queue.popleft()
        return self._last

    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """A chunk for each robot (b, h, a).

        Raises:
            InputError: for a batch of another robot, and for a policy with past frames, which `select_action` stores.
        """
        if self._driver.history:
            raise InputError("this policy uses past frames: LeRobot must call select_action at every step")
        return self._chunk(self._observations(batch))

    def _with_history(self, observations: list[Observation]) -> list[Observation]:
        """The observations of this step with their past frames."""
        if len(self._histories) != len(observations):
            self._histories, self._steps = [FrameHistory.of(self._driver) for _ in observations], 0
        time = self._steps / self._driver.embodiment.control_hz
        self._steps += 1
        timed = (replace(observation, time=time) for observation in observations)
        return [history.with_past_frames(one) for history, one in zip(self._histories, timed, strict=True)]

    def _chunk(self, observations: list[Observation]) -> Tensor:
        chunks = self._driver.predict_batch(observations)
        horizon = self.model.processor.robots[0].horizon
        rows = [
            np.tile(self._held(i, one), (horizon, 1)) if chunk is None else chunk.actions
            for i, (chunk, one) in enumerate(zip(chunks, observations, strict=True))
        ]
        return torch.from_numpy(np.stack(rows)).float()

    def _held(self, row: int, observation: Observation) -> Any:
        """The action that holds a robot still: its last command, or its current position."""
        if self._last is not None and row < len(self._last):
            return self._last[row].numpy()
        body = self._driver.embodiment
        unknown = body.is_position_action & np.array([at is None for at in body.measured_by])
        if missing := [name for name, is_unknown in zip(body.action, unknown, strict=True) if is_unknown]:
            raise InputError(
                f"no chunk could be decoded, and the robot cannot hold: the state does not measure {', '.join(missing)}"
            )
        return body.hold_action(observation.state)

    def _observations(self, batch: dict[str, Any]) -> list[Observation]:
        body = self._driver.embodiment
        _check_units(body, batch.get("robot_type") or "")
        cameras = [c for c in body.cameras if IMAGES + c in batch] if self._driver.fewer_cameras else []
        cameras = cameras or list(body.cameras)
        if missing := [key for key in (STATE, *(IMAGES + c for c in cameras)) if key not in batch]:
            raise InputError(f"{', '.join(missing)} is missing from LeRobot's observation: name it with --rename_map")
        states = batch[STATE].cpu().double().numpy()
        tasks = [batch.get("task") or ""] * len(states) if isinstance(batch.get("task"), str | None) else batch["task"]
        images = {camera: _bytes(batch[IMAGES + camera]) for camera in cameras}
        return [
            Observation({camera: rows[i] for camera, rows in images.items()}, state, tasks[i], 0.0)
            for i, state in enumerate(states)
        ]


def _bytes(images: Tensor) -> np.ndarray:
    """Converts floats (b, 3, h, w) in [0, 1] to bytes (b, h, w, 3)."""
    return (images.cpu() * 255).round().clamp(0, 255).byte().movedim(1, -1).contiguous().numpy()


def _check_units(body: Any, robot_type: str) -> None:
    """Raises InputError for a robot of LeRobot, which uses degrees and percent, if the model uses radians."""
    if (
        isinstance(robot_type, str)
        and robot_type not in ("", body.name)
        and any("[rad]" in name for name in body.state)
    ):
        raise InputError(
            f"this policy uses radians for {body.name}, and LeRobot's {robot_type} uses other units: "
            "train on demonstrations that `vla convert` read from this robot's dataset"
        )
