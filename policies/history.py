"""The past frames that a policy is shown beside the present ones, kept where its observations are made.

There is one `FrameHistory` for each robot: of a run of the control loop, of an environment of `vla eval`, of a client
of `vla serve`. What it finds travels in the observation, so that a policy itself remembers nothing, and serves many.
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
"""[control periods] Frames that follow a kept one sooner than this are not kept: so many that come do not pile up."""


@runtime_checkable
class HistoryPolicy(Protocol):
    """A policy that says which past frames it is to be shown."""

    @property
    def history(self) -> tuple[float, ...]:
        """How long before the present they are [s], oldest first."""
        ...


def history_of(policy: Policy) -> tuple[float, ...]:
    """`HistoryPolicy.history`; none where the policy knows of no history."""
    return policy.history if isinstance(policy, HistoryPolicy) else ()


class FrameHistory:
    """The frames of one robot, as far back as `offsets` [s] before the present, oldest first, ask for.

    `period` [s] is a control step. Without offsets nothing is kept.
    """

    def __init__(self, offsets: Sequence[float], period: float) -> None:
        self._offsets, self._period = tuple(offsets), period
        self._frames: deque[tuple[float, Views]] = deque()
        self._last = -np.inf

    @classmethod
    def of(cls, policy: Policy) -> FrameHistory:
        """What `policy` needs."""
        return cls(history_of(policy), 1 / policy.embodiment.control_hz)

    def reset(self) -> None:
        """Forgets all frames: an episode begins."""
        self._frames.clear()
        self._last = -np.inf

    def with_past_frames(self, observation: Observation) -> Observation:
        """The observation with its past frames (`Observation.past`): for each offset the newest that is at most half a
        step younger, and none where there is no such frame.

        To be called with every observation, in their order; one from before the last begins an episode.
        """
        if not self._offsets:
            return observation
        if observation.time < self._last:
            self.reset()
        self._last = observation.time
        newest = [observation.time - offset + self._period / 2 for offset in self._offsets]
        past = tuple(self._found(moment) for moment in newest)
        if not self._frames or observation.time - self._frames[-1][0] >= CLOSEST * self._period:
            # The caller may use its memory again.
            images = {camera: np.array(image) for camera, image in observation.images.items()}
            self._frames.append((observation.time, images))
        while len(self._frames) > 1 and self._frames[1][0] <= min(newest):
            self._frames.popleft()
        return replace(observation, past=past)

    def _found(self, moment: float) -> Views:
        """The newest frames that are no younger."""
        return next((images for time, images in reversed(self._frames) if time <= moment), {})
