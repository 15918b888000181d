"""The policy of `vla bench control` for `lerobot-rollout`, which imports this module as a plug-in.

A flow from any noise to the wave, which LeRobot's real-time chunking guides like SmolVLA and pi0.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.common.flow_matching import euler_integrate, sample_noise
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from torch import Tensor

from vla.benchmarks.control import DELAY, HIGH, HORIZON, LOW, Wave

FLOW_STEPS = 10
"""LeRobot's default."""


@PreTrainedConfig.register_subclass("waving")
@dataclass
class WavingConfig(PreTrainedConfig):
    rtc_config: Any = None
    """Set by `lerobot-rollout`."""

    observation_delta_indices = action_delta_indices = reward_delta_indices = None

    def get_optimizer_preset(self) -> Any:
        raise NotImplementedError

    def get_scheduler_preset(self) -> Any:
        raise NotImplementedError

    def validate_features(self) -> None:
        pass


class WavingPolicy(PreTrainedPolicy):
    """The wave in LeRobot's units: degrees, and percent of the gripper's range. Inference takes DELAY."""

    config_class = WavingConfig
    name = "waving"

    def __init__(self, config: WavingConfig, **_: Any) -> None:
        super().__init__(config)
        self._rtc: RTCProcessor | None = None
        scale = np.array([*[np.degrees(1.0)] * (len(LOW) - 1), 100 / (HIGH[-1] - LOW[-1])])
        self._wave = Wave(np.array([*[0.0] * (len(LOW) - 1), 50.0]), scale)
        self.reset()

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: Any, *, config: Any = None, **_: Any) -> WavingPolicy:
        return cls(config)

    def supports_rtc(self) -> bool:
        return True

    def init_rtc_processor(self) -> None:
        self._rtc = RTCProcessor(self.config.rtc_config)

    def reset(self) -> None:
        self._queue: deque[Tensor] = deque()

    def get_optim_params(self) -> Any:
        raise NotImplementedError

    def forward(self, batch: Any) -> Any:
        raise NotImplementedError

    def select_action(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """The next action (1, a) of a chunk that is executed completely, LeRobot's default for flows."""
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch).unbind(1))
        return self._queue.popleft()

    def predict_action_chunk(
        self, batch: dict[str, Tensor], inference_delay: int | None = None, prev_chunk_left_over: Tensor | None = None
    ) -> Tensor:
        """The action chunk (1, h, a) from the present time."""
        requested_at = time.monotonic()
        wave = torch.from_numpy(self._wave.chunk(batch["observation.state"][0].double().numpy(), requested_at)).float()
        chunk = euler_integrate(
            lambda noisy, at: (noisy - wave) / at[:, None, None],
            sample_noise((1, HORIZON, len(LOW)), wave.device),
            FLOW_STEPS,
            rtc_processor=self._rtc,
            rtc_enabled=self._rtc is not None,
            inference_delay=inference_delay,
            prev_chunk_left_over=prev_chunk_left_over,
        )
        time.sleep(max(0.0, requested_at + DELAY - time.monotonic()))
        return chunk
