"""Data types shared by recording, training, evaluation and deployment.

| type        | fields                                                                        |
|-------------|-------------------------------------------------------------------------------|
| Observation | images {camera: (h, w, 3) uint8}, state (s,), instruction, time [s]           |
| ActionChunk | actions (h, a), start [s], dt [s]                                             |
| RTCPrefix   | committed (k, a), leftover (m, a), guidance_mode                              |
| Episode     | images {camera: (t, h, w, 3)}, state (t, s), action (t, a), time (t,) [s], …  |
| Example     | images {camera: (h, w, 3)}, prompt, target: text or action chunk (h, a), …    |

Arrays are numpy; torch is used only inside the model. The embodiment defines the units of states and actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8, UInt16

from vla.common.stored_image import StoredViews
from vla.embodiment import Embodiment


@dataclass(frozen=True)
class Observation:
    """The robot's sensor readings, captured at `time` [s].

    Attributes:
        images: RGB image of each camera.
        state: Proprioceptive state, in the units of the embodiment.
        instruction: The task.
        time: Time of capture [s].
    """

    images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]
    state: Float[np.ndarray, "s"]
    instruction: str
    time: float
    past: tuple[Mapping[str, UInt8[np.ndarray, "_h _w 3"]], ...] = ()
    """Earlier images by camera, oldest first, for a policy with a history (`vla.policies.history`); a mapping is empty
    where no image exists yet."""
    captured: Mapping[str, float] = field(default_factory=dict)
    """Capture time of each camera's image [s], if known."""


@dataclass(frozen=True)
class ActionChunk:
    """An action chunk: row i of `actions` is the action at the time `start + i * dt` [s]."""

    actions: Float[np.ndarray, "h a"]
    start: float
    dt: float
    points: Float[np.ndarray, "p 2"] | None = None
    """The policy's predicted image positions of the objects in the instruction, as `Episode.points`."""

    def at(self, time: float) -> Float[np.ndarray, "a"] | None:
        """The action at `time` [s]; None before the chunk starts and after it ends."""
        # A tolerance of half a microsecond keeps `start + i * dt` in step i after rounding.
        index = int(np.floor((time - self.start) / self.dt + 5e-7 / self.dt))
        return self.actions[index] if 0 <= index < len(self.actions) else None


GuidanceMode = Literal["identity", "vjp"]


@dataclass(frozen=True)
class RTCPrefix:
    """What a new chunk continues in real-time chunking (Black et al. 2025, arXiv 2506.07339).

    The arrays of a batch have an axis b before the others. In the model they are normalised, in a flow head tensors.

    Attributes:
        committed: The action prefix: the first k actions of the new chunk, which are committed already; k may be 0.
        leftover: The previous chunk's m actions after the prefix, towards which the new chunk is guided
            (`vla.models.action_heads.rtc_guidance`). None: no guidance.
        guidance_mode: The Jacobian in the guidance: the "identity" as an approximation, or the exact one by a
            vector-Jacobian product ("vjp"), at the cost of a backward pass per flow step.
    """

    committed: Float[Any, "*b k a"]
    leftover: Float[Any, "*b m a"] | None = None
    guidance_mode: GuidanceMode = "identity"

    @classmethod
    def of(cls, prefix: RTCPrefix | Float[np.ndarray, "k a"] | None) -> RTCPrefix | None:
        """The prefix; an array is the committed actions."""
        return cls(prefix) if isinstance(prefix, np.ndarray) else prefix

    @classmethod
    def stack(cls, prefixes: Sequence[RTCPrefix | None]) -> RTCPrefix | None:
        """The prefix of a batch, from those of its rows, whose arrays have equal shapes; None if they have none."""
        rows = [prefix for prefix in prefixes if prefix is not None]
        if not rows:
            return None
        leftovers = [row.leftover for row in rows if row.leftover is not None]
        leftover = np.stack(leftovers) if leftovers else None
        return cls(np.stack([row.committed for row in rows]), leftover, rows[0].guidance_mode)

    def row(self, index: int) -> RTCPrefix:
        """The prefix of a row of the batch."""
        return self.map(lambda actions: actions[index])

    def map(self, convert: Callable[[Any], Any]) -> RTCPrefix:
        """The prefix with both arrays converted."""
        leftover = None if self.leftover is None else convert(self.leftover)
        return replace(self, committed=convert(self.committed), leftover=leftover)


@dataclass(frozen=True)
class Span:
    """A sub-task: the instruction for the steps from `start` (inclusive) to `stop` (exclusive) of an episode."""

    start: int
    stop: int
    instruction: str


def instructions_at(spans: Sequence[Span], step: int) -> tuple[str, ...]:
    """The distinct instructions of the sub-tasks that include a step."""
    return tuple(dict.fromkeys(span.instruction for span in spans if span.start <= step < span.stop))


def one_after_another(instructions: Iterable[str]) -> str:
    """Joins distinct instructions into one, in order: "open the drawer, then take the cup"."""
    return ", then ".join(dict.fromkeys(filter(None, instructions)))


@dataclass(frozen=True)
class Episode:
    """A recorded episode: step t has an observation and the action taken after it."""

    images: Mapping[str, UInt8[np.ndarray, "t _h _w 3"]]
    state: Float[np.ndarray, "t s"]
    action: Float[np.ndarray, "t a"]
    time: Float[np.ndarray, "t"]
    instruction: str
    embodiment: Embodiment
    success: bool | None
    """Whether the task was completed; None: unknown."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Metadata of the recorder: seed, task, provenance (JSON values)."""
    chunks: Float[np.ndarray, "t k a"] | None = None
    """The action chunk of the policy at each step, if recorded: row 0 is the action at that step."""
    points: Float[np.ndarray, "t p 2"] | None = None
    """Image positions of the objects in the instruction, camera by camera: x, y as fractions of width and height.
    Outside [0, 1): not in the image; NaN: unknown."""
    paraphrases: tuple[str, ...] = ()
    """Alternative wordings of `instruction`."""
    spans: tuple[Span, ...] = ()
    """Sub-tasks in the order of their starts; they may overlap, and need not cover all steps."""
    depth: Mapping[str, UInt16[np.ndarray, "t _h _w"]] = field(default_factory=dict)
    """Distance along the optical axis [mm] by camera, 0: unknown; for any subset of the cameras, in any resolution."""
    extras: Mapping[str, Shaped[np.ndarray, "t ..."]] = field(default_factory=dict)
    """Other numbers or booleans per step, by name: rewards, forces, a second clock."""

    def __len__(self) -> int:
        return len(self.action)


def outcome_of(success: bool | None) -> str:
    """The outcome of an episode as text: "success", "failure" or "unknown"."""
    return "unknown" if success is None else "success" if success else "failure"


@dataclass(frozen=True)
class Example:
    """One training example: VQA with a text target, or robot data with an action target.

    `state` is set for robot examples only. `mask` marks the target steps inside the episode: a window beyond the end of
    the episode is padded with the last action, and the padding is masked from the loss.
    """

    images: StoredViews
    prompt: str
    target: str | Float[np.ndarray, "k a"]
    state: Float[np.ndarray, "s"] | None = None
    mask: Bool[np.ndarray, "k"] | None = None
    turns: tuple[tuple[str, str], ...] = ()
    """Further questions and answers about the same images, after the first."""
    conversation: bool = False
    """Whether later turns attend to earlier ones. If not, each turn attends only to the images and itself."""
    source: str = ""
    embodiment: str = ""
    """Name of the robot; empty if there is only one."""
    points: Float[np.ndarray, "p 2"] | None = None
    """`Episode.points` of one step, with the cameras in the order of `images`: predicted before the action."""
    past: tuple[StoredViews, ...] = ()
    """As `Observation.past`."""
    prefix_length: int = 0
    """Length of the action prefix: the first actions of the target that are input and not predicted."""
