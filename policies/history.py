"""Past frames in a policy's observations, stored where the observations are made.

There is one `FrameHistory` per robot: a run of the control loop, an environment of `vla eval`, or a client of `vla
serve`. The past frames are part of the observation, so that a policy has no memory and can serve many robots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from vla.common.stored_image import Views
from vla.policies.policy import Policy
from vla.types import Observation

CLOSEST = 0.25
"""Shortest interval between stored frames [control periods]; frames at a higher rate are dropped to limit memory."""


@runtime_checkable
class HistoryPolicy(Protocol):
    """A policy that uses past frames."""

    @property
    def history(self) -> tuple[float, ...]:
        """Age of each past frame [s], oldest first."""
        ...


def history_of(policy: Policy) -> tuple[float, ...]:
    """`HistoryPolicy.history`; empty for other policies."""
    return policy.history if isinstance(policy, HistoryPolicy) else ()


class FrameHistory:
    """The past frames of one robot.

    Args:
        offsets: Age of each past frame [s], oldest first. Empty: nothing is stored.
        period: Duration of a control step [s].
    """

    def __init__(self, offsets: Sequence[float], period: float) -> None:
        self._offsets, self._period = tuple(offsets), period
        self._frames: deque[tuple[float, Views]] = deque()
        self._last = -np.inf

    @classmethod
    def of(cls, policy: Policy) -> FrameHistory:
        """The history that `policy` needs."""
        return cls(history_of(policy), 1 / policy.embodiment.control_hz)

    def reset(self) -> None:
        """Drops all frames, at the start of an episode."""
        self._frames.clear()
        self._last = -np.inf

    def with_past_frames(self, observation: Observation) -> Observation:
        """Adds the past frames to an observation (`Observation.past`).

        Each is the newest frame whose age is at least its offset minus half a step, and empty without such a frame.
        Call it with every observation, in order. An observation older than the last one starts a new episode.
        """
        if not self._offsets:
            return observation
        if observation.time < self._last:
            self.reset()
        self._last = observation.time
        newest = [observation.time - offset + self._period / 2 for offset in self._offsets]
        past = tuple(self._newest_until(time) for time in newest)
        if not self._frames or observation.time - self._frames[-1][0] >= CLOSEST * self._period:
            # The caller may reuse its buffers.
            images = {camera: np.array(image) for camera, image in observation.images.items()}
            self._frames.append((observation.time, images))
        while len(self._frames) > 1 and self._frames[1][0] <= min(newest):
            self._frames.popleft()
        return replace(observation, past=past)

    def _newest_until(self, latest: float) -> Views:
        """The newest frames captured until `latest` [s]."""
        return next((images for time, images in reversed(self._frames) if time <= latest), {})
