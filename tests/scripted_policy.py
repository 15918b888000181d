"""A policy that another process can load."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
from control_fakes import BODY

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import ActionChunk, Observation, RTCPrefix


class RowByRow:
    """A policy that takes a batch by its `predict` of each observation."""

    predict: Callable[..., ActionChunk | None]

    def predict_batch(self, observations: Any, *, prefix: Any = None) -> list[ActionChunk | None]:
        return [self.predict(o, prefix=None if prefix is None else prefix.row(i)) for i, o in enumerate(observations)]


class Scripted:
    """Says what it sees: the brightness of the image, and the first action of the prefix."""

    def __init__(self, body: Embodiment = BODY) -> None:
        self.embodiment = body

    def reset(self) -> None:
        """Nothing is remembered."""

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        words = observation.instruction.split()
        if words[0] == "silent":
            return None
        if words[0] == "wrong":
            raise InputError("no such object")
        if words[0] == "broken":
            raise ZeroDivisionError("division by zero")
        if words[0] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        seen = float(observation.images["front"].mean())
        rows = np.array([[seen, len(words)]]) if prefix is None else np.concatenate([prefix.committed, [[seen, 0.0]]])
        return ActionChunk(rows, observation.time, 0.1)


def unloadable() -> Scripted:
    raise InputError("no policy 'x': give a checkpoint's folder")


class Remembering(Scripted, RowByRow):
    """Says the brightness of the past images of two moments, -1 where there is none, and of the present one."""

    history = (0.5, 0.2)

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        moments = (*observation.past, observation.images)
        assert len(moments) == 3
        said = [float(images["front"].mean()) if images else -1.0 for images in moments]
        return ActionChunk(np.array([said]), observation.time, 0.1)
