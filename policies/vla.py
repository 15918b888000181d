"""A trained VLA as a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vla.common.device import accelerator
from vla.common.points import arrange_points
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.engine.engine import Engine
from vla.models.robot_choice import is_like
from vla.models.vla import VLA
from vla.policies.data_summary import DataSummary
from vla.types import ActionChunk, Observation, RTCPrefix


class VlaPolicy:
    """Decodes one action chunk per call. It has no memory between calls, so one object serves many robots of one kind.

    Args:
        model: The model.
        embodiment: Name of one of the checkpoint's robots, or the robot to drive. A robot that matches one of the
            checkpoint (`Embodiment.check`; possibly with fewer cameras) becomes this policy's embodiment, and actions
            are clipped to its limits instead of the ranges of the data. Otherwise the checkpoint's embodiment is used,
            whose `check` reports the difference.
        engine: Precision of the `vla.models.engine.engine.Engine` that decodes. None: the model decodes.

    Raises:
        InputError: if the checkpoint has no robot of this name, or several and none is named; it lists them.
    """

    def __init__(self, model: VLA, embodiment: str | Embodiment = "", engine: str | None = None) -> None:
        if not model.processor.robots:
            raise InputError("this checkpoint has no action head: train it on demonstrations first (vla train)")
        self._model = model.eval()
        if isinstance(embodiment, str):
            self._robot = model.processor.robot(embodiment)
        else:
            self._robot = model.processor.robot_for(embodiment)
        self._body, spec = self._robot.embodiment, self._robot
        state = None if spec.statistics is None else spec.statistics["state"]
        self.data = DataSummary(
            None if state is None else (tuple(state.min.tolist()), tuple(state.max.tolist())),
            (self._body.action_low, self._body.action_high),
            spec.start,
        )
        fewer = self._robot.fewer_cameras
        if isinstance(embodiment, Embodiment) and is_like(self._body, embodiment, fewer):
            body = replace(self._body, action_low=embodiment.action_low, action_high=embodiment.action_high)
            self._robot, self._body = replace(self._robot, embodiment=body), embodiment
        self._decoder = model if engine is None else Engine(model, engine)

    @classmethod
    def load(cls, checkpoint: str | Path, embodiment: str | Embodiment = "", engine: str | None = None) -> VlaPolicy:
        """Loads a checkpoint, to the GPU if available."""
        return cls(VLA.load(Path(checkpoint)).to(accelerator()), embodiment, engine)

    @property
    def embodiment(self) -> Embodiment:
        """The robot."""
        return self._body

    @property
    def model(self) -> VLA:
        """The model."""
        return self._model

    @property
    def guides(self) -> bool:
        """See `GuidedPolicy`: whether it has a flow head."""
        head = self._model.processor.head
        if head is None or head.continuous is None:
            return False
        return getattr(head, "guides", head.continuous.reads_cache)

    @property
    def takes_prefix(self) -> bool:
        """See `PrefixPolicy`: whether its head takes an action prefix; those of other packages do."""
        return getattr(self._model.processor.head, "takes_prefix", True)

    @property
    def fewer_cameras(self) -> bool:
        """See `FewerCamerasPolicy`."""
        return self._robot.fewer_cameras

    @property
    def history(self) -> tuple[float, ...]:
        """See `HistoryPolicy`."""
        return self._robot.history_seconds

    def reset(self) -> None:
        """Does nothing: there is no memory between chunks."""

    def predict(
        self, observation: Observation, *, prefix: RTCPrefix | Float[np.ndarray, "k a"] | None = None
    ) -> ActionChunk | None:
        """See `Policy.predict`; the action prefix is an input and is not decoded. An array is the committed actions."""
        return self.predict_batch([observation], prefix=RTCPrefix.stack([RTCPrefix.of(prefix)]))[0]

    def predict_batch(
        self, observations: Sequence[Observation], *, prefix: RTCPrefix | None = None
    ) -> list[ActionChunk | None]:
        """See `BatchPolicy`."""
        processor = self._model.processor
        forced = 0 if prefix is None else prefix.committed.shape[1]
        if forced >= self._robot.horizon:
            raise InputError(f"a prefix of {forced} actions leaves nothing of a chunk of {self._robot.horizon}")
        if forced and not self.takes_prefix:
            raise InputError("this policy cannot start a chunk with an action prefix: choose execution=chunked")
        normalized = None if prefix is None else prefix.map(partial(self._normalized, observations))
        batch = processor.robot_prompt(observations, self._robot.name)
        decoded, points = self._decoder.generate_actions(batch, normalized)
        chunks: list[ActionChunk | None] = []
        for i, (decoded_chunk, observation) in enumerate(zip(decoded, observations, strict=True)):
            if decoded_chunk is None:
                chunks.append(None)
                continue
            actions = self._robot.denormalize_actions(decoded_chunk, observation.state)
            if prefix is not None:
                actions[:forced] = prefix.committed[i]
            image_points = self._arranged(points[i]) if self._robot.points else None
            chunks.append(ActionChunk(actions, observation.time, 1 / self.embodiment.control_hz, image_points))
        return chunks

    def _arranged(self, points: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "q 2"]:
        """Points in the order of the robot's cameras, which may differ from that of the data."""
        trained, cameras = self._robot.embodiment.cameras, self._body.cameras
        return arrange_points(points, trained, cameras, len(points) * len(cameras) // len(trained))

    def _normalized(
        self, observations: Sequence[Observation], actions: Float[np.ndarray, "b k a"]
    ) -> Float[np.ndarray, "b k a"]:
        pairs = zip(actions, observations, strict=True)
        return np.stack([self._robot.normalize_actions(row, o.state) for row, o in pairs])
