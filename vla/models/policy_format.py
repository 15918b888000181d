"""The inputs of a released robot policy: its prompt, its camera frames, and the width of its states and actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from tokenizers import Tokenizer

from vla.errors import InputError
from vla.models.preprocessing.settings import Preprocessing

STATE_BINS = 256
"""Bins of a state in a prompt, on [-1, 1]."""
STATES = ("text", "expert", "prompt", "image", "none")


@dataclass(frozen=True)
class RobotPrompt:
    """The text of a robot's instruction and state.

    Attributes:
        text: the prompt with `{task}` and, if the state is a part of it, `{state}`.
        cleaned: surrounding white space is removed from the instruction, and `_` and line breaks in it become spaces.
        stripped: surrounding white space is removed from the instruction.
        max_tokens: number of tokens after which the prompt is cut, as in training.
        lowered: the instruction is in lower case.
        opened: the row opens as the backbone's conversations do, with the tokens that begin a text and then the images
            (OpenVLA); else the images are first, and the prompt begins as a text.
    """

    text: str
    cleaned: bool = False
    max_tokens: int | None = None
    lowered: bool = False
    opened: bool = False
    stripped: bool = False

    @property
    def has_state(self) -> bool:
        """Whether the state is a part of the text."""
        return "{state}" in self.text

    def encode(self, tokenizer: Tokenizer, instruction: str, state: Float[np.ndarray, "s"]) -> list[int]:
        """The tokens of the prompt, with those that the tokenizer writes before a text unless they are before images.

        Args:
            state: the normalised state.
        """
        if self.cleaned or self.stripped:
            instruction = instruction.strip()
        if self.cleaned:
            instruction = instruction.replace("_", " ").replace("\n", " ")
        elif self.text.endswith("{task}\n"):
            instruction = instruction.removesuffix("\n")
        if self.lowered:
            instruction = instruction.lower()
        text = self.text.replace("{task}", instruction).replace("{state}", state_text(state))
        # An image token in the instruction is text.
        special, tokenizer.encode_special_tokens = tokenizer.encode_special_tokens, True
        try:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=not self.opened).ids
        finally:
            tokenizer.encode_special_tokens = special
        return ids[: self.max_tokens]


def state_text(state: Float[np.ndarray, "s"]) -> str:
    """The bin of each component of a normalised state (pi0.5): 255 from the last bin on, and -1 below the first."""
    edges = np.linspace(-1, 1, STATE_BINS + 1)[:-1]
    return " ".join(map(str, np.digitize(np.asarray(state, np.float32), edges) - 1))


@dataclass(frozen=True)
class PolicyFormat:
    """The inputs with which a released robot policy was trained.

    Attributes:
        prompt: the text of an instruction and a state.
        cameras: preprocessing of camera images.
        width: number of components to which states and actions are padded; 0: as many as the largest robot has.
        state: where the state enters: "image" as a token after the images, clipped to [-1, 1] (OpenVLA-OFT),
            "text" in the prompt (pi0.5), "expert" as the first token of the action expert
            (pi0) or a token that the head attends to (EVO1), "prompt" as the last token of the prompt (SmolVLA), or
            "none" (OpenVLA).
        views: smallest number of images in a prompt: a row with fewer has tokens that nothing attends to in place of
            the others (EVO1); 0: a prompt has the images of its row.
        source: what the policy's files say beyond that, with which it can be exported again; empty where it cannot.
    """

    prompt: RobotPrompt
    cameras: Preprocessing
    width: int = 0
    state: str = "expert"
    views: int = 0
    source: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise InputError(f"the state of a policy is one of {', '.join(STATES)}, not {self.state!r}")
        if (self.state == "text") != self.prompt.has_state:
            raise InputError(f"the prompt {self.prompt.text!r} does not fit the state {self.state!r}")

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "prompt": asdict(self.prompt),
            "cameras": self.cameras.to_dict(),
            "width": self.width,
            "state": self.state,
            "views": self.views,
            "source": dict(self.source),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PolicyFormat:
        """The inverse of `to_dict`."""
        rest = dict(values)
        prompt, cameras = RobotPrompt(**rest.pop("prompt")), Preprocessing.from_dict(rest.pop("cameras"))
        return cls(prompt, cameras, **rest)
