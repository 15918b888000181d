"""The data that flows through every journey.

| type        | fields                                                                        |
|-------------|-------------------------------------------------------------------------------|
| Observation | images {camera: (h, w, 3) uint8}, state (s,), instruction, time [s]           |
| ActionChunk | actions (h, a), start [s], dt [s]                                             |
| Episode     | images {camera: (t, h, w, 3)}, state (t, s), action (t, a), time (t,) [s], …  |
| Example     | images {camera: (h, w, 3)}, prompt, target: text or action chunk (h, a), …    |

numpy at the edges; torch only inside the model. State and action units are named by the embodiment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8, UInt16

from vla.common.stored_image import StoredViews
from vla.embodiment import Embodiment


@dataclass(frozen=True)
class Observation:
    """What the robot saw and felt at `time` [s], the moment of capture."""

    images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]
    state: Float[np.ndarray, "s"]
    instruction: str
    time: float
    past: tuple[Mapping[str, UInt8[np.ndarray, "_h _w 3"]], ...] = ()
    """Earlier images, oldest first, for a policy that is shown some (`vla.policies.history`): as many as that wants,
    each by camera, and empty where there was none yet."""
    captured: Mapping[str, float] = field(default_factory=dict)
    """When each camera captured its image [s], where that is known."""


@dataclass(frozen=True)
class ActionChunk:
    """Actions for the times `start + i * dt` [s]."""

    actions: Float[np.ndarray, "h a"]
    start: float
    dt: float
    points: Float[np.ndarray, "p 2"] | None = None
    """Where the policy says that what the instruction names is, as `Episode.points`."""

    def at(self, time: float) -> Float[np.ndarray, "a"] | None:
        """The action in force at `time` [s]; None before the chunk starts and after it ends."""
        # Half a microsecond of slack keeps `start + i * dt` in its own step after rounding.
        index = int(np.floor((time - self.start) / self.dt + 5e-7 / self.dt))
        return self.actions[index] if 0 <= index < len(self.actions) else None


@dataclass(frozen=True)
class Span:
    """A sub-task: what the steps from `start` to before `stop` of an episode do."""

    start: int
    stop: int
    instruction: str


def instructions_at(spans: Sequence[Span], step: int) -> tuple[str, ...]:
    """The instructions of the sub-tasks that cover a step, each once."""
    return tuple(dict.fromkeys(span.instruction for span in spans if span.start <= step < span.stop))


def one_after_another(instructions: Iterable[str]) -> str:
    """The instruction to do these in order, each said once: "open the drawer, then take the cup"."""
    return ", then ".join(dict.fromkeys(filter(None, instructions)))


@dataclass(frozen=True)
class Episode:
    """One recorded episode: step t holds the observation and the action taken from it."""

    images: Mapping[str, UInt8[np.ndarray, "t _h _w 3"]]
    state: Float[np.ndarray, "t s"]
    action: Float[np.ndarray, "t a"]
    time: Float[np.ndarray, "t"]
    instruction: str
    embodiment: Embodiment
    success: bool | None
    """Whether it did what the instruction says; None where nobody has said."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """What the recorder was told beside: seed, task, provenance (JSON values)."""
    chunks: Float[np.ndarray, "t k a"] | None = None
    """The chunk in force at each step, where a policy was recorded: row 0 is the action at that step."""
    points: Float[np.ndarray, "t p 2"] | None = None
    """Where what the instruction names is in the images, one camera after the other: x, y as fractions of width and
    height. Outside [0, 1) it is not in the image, NaN where nobody knows."""
    paraphrases: tuple[str, ...] = ()
    """Other ways to say `instruction`."""
    spans: tuple[Span, ...] = ()
    """Sub-tasks in the order of their starts; they may overlap and leave steps out."""
    depth: Mapping[str, UInt16[np.ndarray, "t _h _w"]] = field(default_factory=dict)
    """Distance along the optical axis [mm] by camera, 0 where unknown; of any of the cameras, in any resolution."""
    extras: Mapping[str, Shaped[np.ndarray, "t ..."]] = field(default_factory=dict)
    """Any other numbers or truth values a step, by name: rewards, forces, a second clock."""

    def __len__(self) -> int:
        return len(self.action)


def outcome_of(success: bool | None) -> str:
    """How an episode ended, as people read it: "success", "failure" or "unknown"."""
    return "unknown" if success is None else "success" if success else "failure"


@dataclass(frozen=True)
class Example:
    """One training example: a text target is VQA, an action target is robot data.

    `state` is set for robot examples only. `mask` marks the target steps that lie inside the episode
    (a window that runs past the end is padded with the last action and masked from the loss).
    """

    images: StoredViews
    prompt: str
    target: str | Float[np.ndarray, "k a"]
    state: Float[np.ndarray, "s"] | None = None
    mask: Bool[np.ndarray, "k"] | None = None
    turns: tuple[tuple[str, str], ...] = ()
    """Further questions and answers on the same images, after the first."""
    conversation: bool = False
    """Whether later turns see earlier ones. If not, each sees the images and itself, as when asked alone."""
    source: str = ""
    embodiment: str = ""
    """The name of the robot that it is of; empty where there is only one."""
    points: Float[np.ndarray, "p 2"] | None = None
    """As `Episode.points`, of one step, of the cameras in the order of `images`: said before the action."""
    past: tuple[StoredViews, ...] = ()
    """As `Observation.past`."""
    prefix_length: int = 0
    """How many of the target's first actions are input (they are under way already), not to be predicted."""
