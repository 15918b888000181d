"""A model of vla as a LeRobot policy: loaded from a checkpoint, or made for a dataset to be trained.

LeRobot's values are those of a dataset read by `vla convert`, in the dataset's order of components; `--policy.units`
converts degrees and percent for a policy in other units. Images arrive as floats in [0, 1] and are converted back to
bytes.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import parser
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_vla.batches import ACTION, IMAGES, STATE, examples_of, observations_of
from lerobot_policy_vla.configuration_vla import VlaConfig
from lerobot_policy_vla.rtc import rtc_prefix
from lerobot_policy_vla.units import check_radians, in_lerobot_units
from vla.common.images import sides
from vla.errors import InputError
from vla.models.hub import card, checkpoint_of, fetch
from vla.models.vla import VLA
from vla.policies.converted_units import BatchConvertedPolicy
from vla.policies.history import FrameHistory
from vla.policies.vla import VlaPolicy as Driver
from vla.types import Observation, RTCPrefix

SAVED = ("n_action_steps", "robot", "units", "ranges")
"""Fields of the configuration that a checkpoint keeps for LeRobot."""


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
        """Makes a model for the dataset, or takes the `model`.

        Raises:
            InputError: there is neither; or the model has no robot, or several and `config.robot` names none.
        """
        super().__init__(config)
        if model is None and dataset_meta is not None:
            from lerobot_policy_vla.training import model_for_training

            model = model_for_training(config, dataset_meta)
        if model is None:
            raise InputError("LeRobot cannot make this policy without a dataset: set --policy.path to a checkpoint")
        self.model = model
        driver = Driver(model, config.robot)
        self._robot = driver.embodiment.name
        self._driver: Driver | BatchConvertedPolicy = driver
        if config.units in ("degrees", "percent"):
            self._driver = in_lerobot_units(driver, config.units, config.ranges)
        elif config.units == "":
            check_radians(driver.embodiment, parser.parse_arg("robot.type"))
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
        dataset_meta: Any = None,
        **kwargs: Any,
    ) -> VlaPolicy:
        """Loads a folder of `vla train`, `lerobot-train` or `VLA.save_pretrained`, or a model of the hub.

        With `dataset_meta` its training continues on the dataset.
        """
        folder, config = checkpoint_of(fetch(pretrained_name_or_path, revision)), config or VlaConfig()
        if dataset_meta is None:
            return cls(config, model=VLA.load(folder)).eval()
        if "normalizer_processor" not in (folder / "policy_preprocessor.json").read_text():
            raise InputError(
                f"{folder} was saved by an earlier version: set --policy.type=vla --policy.backbone={folder} "
                "instead of --policy.path"
            )
        from lerobot_policy_vla.training import model_for_training

        return cls(config, model=model_for_training(config, dataset_meta, folder)).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: Any = None) -> None:
        folder = Path(save_directory)
        weights = None if state_dict is None else {k.removeprefix("model."): v for k, v in state_dict.items()}
        self.model.save(folder, weights)
        file = folder / "config.json"
        settings = {name: getattr(self.config, name) for name in SAVED}
        file.write_text(json.dumps(json.loads(file.read_text()) | settings, indent=1))
        (folder / "README.md").write_text(card(folder))

    def get_optim_params(self) -> dict[str, Any]:
        """The model, of which the preset makes parameter groups."""
        return {"model": self.model, "scratch": self.config.backbone == "scratch"}

    def _validate_peft_config(self, peft_config: Any) -> None:
        raise InputError("LeRobot's adapters are not for this policy: `vla train lora={rank: 16}` has its own")

    def _get_default_peft_targets(self) -> dict[str, Any]:
        return {"target_modules": "all-linear"}

    def supports_rtc(self) -> bool:
        """Whether chunks can continue the previous one: not with past frames, which need every observation."""
        return not self._driver.history

    def reset(self) -> None:
        """Starts a new episode."""
        self._queue: deque[Tensor] = deque()
        self._last: Tensor | None = None
        self._predicted: Tensor | None = None
        self._histories: list[FrameHistory] = []
        self._steps = 0

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch, or with reduction "none" of each row, and the mean losses by kind.

        In training mode rows have random action prefixes, as in `vla train`.
        """
        from lerobot_policy_vla.loss import row_losses, with_prefixes
        from vla.training.horizon import prefix_steps

        spec = self.model.processor.robot(self._robot)
        units = self._driver if isinstance(self._driver, BatchConvertedPolicy) else None
        examples = examples_of(batch, spec.embodiment.cameras, self._robot, units)
        rngs: list[Any] = []
        if self.training:
            longest = prefix_steps(self.config.delay, spec.embodiment.control_hz, spec.horizon)
            examples, rngs = with_prefixes(examples, longest)
        losses, means = row_losses(self.model, examples, rngs)
        return (losses if reduction == "none" else losses.mean()), means

    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next action of each robot (b, a), in LeRobot's units; runs inference when the queue is empty."""
        # A policy with past frames needs every observation.
        observations = self._with_history(self._observations(batch)) if self._driver.history else None
        if not self._queue:
            chunk = self._chunk(observations or self._observations(batch))
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        self._last = self._queue.popleft()
        return self._last

    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
        **_: Any,
    ) -> Tensor:
        """A chunk for each robot (b, h, a), which continues the previous one in real-time chunking (`rtc_prefix`).

        Args:
            batch: LeRobot's observations.
            inference_delay: Steps until the chunk will be executed.
            prev_chunk_left_over: Actions (t, a) or (b, t, a) of the previous chunk that are not executed yet.
            execution_horizon: Number of them to consider; None: all.

        Raises:
            InputError: for a batch of another robot, and for a policy with past frames, which `select_action` stores.
        """
        if self._driver.history:
            raise InputError("this policy uses past frames: LeRobot must call select_action at every step")
        leftover = prev_chunk_left_over
        if leftover is not None and execution_horizon is not None:
            leftover = leftover[..., :execution_horizon, :]
        settings = getattr(self.config, "rtc_config", None)
        horizon = self.model.processor.robots[0].horizon
        prefix = rtc_prefix(self._predicted, leftover, inference_delay or 0, horizon, self._driver.guides, settings)
        self._predicted = self._chunk(self._observations(batch), prefix)
        return self._predicted

    def _with_history(self, observations: list[Observation]) -> list[Observation]:
        """The observations of this step with their past frames."""
        if len(self._histories) != len(observations):
            self._histories, self._steps = [FrameHistory.of(self._driver) for _ in observations], 0
        time = self._steps / self._driver.embodiment.control_hz
        self._steps += 1
        timed = (replace(observation, time=time) for observation in observations)
        return [history.with_past_frames(one) for history, one in zip(self._histories, timed, strict=True)]

    def _chunk(self, observations: list[Observation], prefix: RTCPrefix | None = None) -> Tensor:
        chunks = self._driver.predict_batch(observations, prefix=prefix)
        rows = [
            self._held(i, one, prefix) if chunk is None else chunk.actions
            for i, (chunk, one) in enumerate(zip(chunks, observations, strict=True))
        ]
        return torch.from_numpy(np.stack(rows)).float()

    def _held(self, row: int, observation: Observation, prefix: RTCPrefix | None) -> np.ndarray:
        """A chunk that holds a robot still: after its committed actions, else at its last command or position."""
        horizon = self.model.processor.robots[0].horizon
        if prefix is not None and (committed := prefix.committed[row]).size:
            return np.concatenate([committed, np.tile(committed[-1], (horizon - len(committed), 1))])
        if self._last is not None and row < len(self._last):
            return np.tile(self._last[row].numpy(), (horizon, 1))
        body = self._driver.embodiment
        unknown = body.is_position_action & np.array([at is None for at in body.measured_by])
        if missing := [name for name, is_unknown in zip(body.action, unknown, strict=True) if is_unknown]:
            raise InputError(
                f"no chunk could be decoded, and the robot cannot hold: the state does not measure {', '.join(missing)}"
            )
        return np.tile(body.hold_action(observation.state), (horizon, 1))

    def _observations(self, batch: dict[str, Any]) -> list[Observation]:
        body = self._driver.embodiment
        observations = observations_of(batch, body.cameras, self._driver.fewer_cameras)
        if self.config.units == "":
            robot_type = batch.get("robot_type")
            states = np.stack([one.state for one in observations])
            check_radians(body, robot_type if isinstance(robot_type, str) else None, states)
        return observations
