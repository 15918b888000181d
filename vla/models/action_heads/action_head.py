"""What an action head is: one way in which a model says a chunk of actions, on the same backbone and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from vla.models.action_heads.decoding import Decoding, KeysValues
from vla.models.batch import Batch
from vla.models.robot_spec import RobotSpec


@dataclass(frozen=True)
class Vocabulary:
    """What a head builds on: the tokens of text, and the robots that the model drives."""

    tokenizer: Tokenizer
    text: int
    """Rows of text: those of a head come after them, the blank last."""
    robots: tuple[RobotSpec, ...]
    pad: int
    eos: int

    @property
    def horizon(self) -> int:
        return self.robots[0].horizon

    @property
    def action_dim(self) -> int:
        """Components of the widest robot's action."""
        return max(robot.action_dim for robot in self.robots)


@dataclass(frozen=True)
class Target:
    """What a head adds to a training row: tokens with their labels, and the steps that it learns as numbers."""

    inputs: Sequence[int]
    labels: Sequence[int]
    continuous_mask: Bool[np.ndarray, "h"] | None = None


@dataclass(frozen=True)
class DecodeContext:
    """What a chunk is decoded from: rows of one robot whose prompts and points are in the cache of `decoding`.

    `conditioning` are the numbers that the model is told of each row. `decode_tokens` embeds further tokens, the first of them the
    `first`-th of the chunk, and gives their hidden states; `prefix_length` are the actions under way, normalised.
    """

    decoding: Decoding
    robot: RobotSpec
    conditioning: Float[Tensor, "b n"]
    decode_tokens: Callable[[Int[Tensor, "b m"], int], Float[Tensor, "b m d"]]
    action_prefix: Float[np.ndarray, "b k a"] | None
    module: nn.Module | None
    previous_chunk_leftover: Float[np.ndarray, "b m a"] | None = None
    """The old chunk's actions after those given; only a flow is drawn to them
    (`vla.models.action_heads.rtc_guidance`)."""
    vjp: bool = False


@dataclass(frozen=True)
class Cached:
    """What each layer of the backbone keeps of rows, and the position of the token after each row's prompt."""

    layers: KeysValues
    next_position: Int[Tensor, "b"]


Chunks = list[Float[np.ndarray, "h a"] | None]
"""Normalised chunks; None for one that is invalid: the caller holds."""


@runtime_checkable
class ContinuousHead(Protocol):
    """What a head learns as numbers, with modules of its own."""

    reads_cache: bool
    """Whether the loss reads the keys and values of the backbone."""

    def module(self, backbone: Any, conditioning: int) -> nn.Module:
        """What it has to learn besides the backbone, where the model is told `conditioning` numbers."""
        ...

    def loss(
        self,
        module: Any,
        batch: Batch,
        hidden: Float[Tensor, "b l d"],
        conditioning: Float[Tensor, "b n"],
        cached: Cached | None,
    ) -> Float[Tensor, "k"]:
        """Of each number that is `batch.continuous_mask`, row by row; every row is a robot's."""
        ...


@runtime_checkable
class Head(Protocol):
    """Its settings are JSON and saved with the processor, which writes targets with it; the model decodes with it."""

    settings: Mapping[str, Any]
    """"kind" and the arguments that `build` makes the same head of."""
    rows: int
    """Rows of the vocabulary that it needs, besides the blank that comes after them."""
    num_ordinal_tokens: int
    """How many of these, from the first on, are values on a line."""
    num_action_positions: int
    """Places among the tokens of an action, each of which learns an embedding."""
    conditions_on_prefix: bool
    """Whether the model is told the actions under way as numbers, since its tokens do not say them."""

    bidirectional: bool
    """Whether the tokens of a chunk, which are then asked for at once, look at each other."""

    @property
    def continuous(self) -> ContinuousHead | None:
        """Of what it learns as numbers; None for a head of tokens."""
        ...

    def target(
        self,
        robot: RobotSpec,
        actions: Float[np.ndarray, "h a"],
        valid_mask: Bool[np.ndarray, "h"],
        prefix_length: int,
        rng: np.random.Generator | None,
    ) -> Target:
        """Of a normalised chunk, whose steps count where they are `valid_mask` the episode, the first `prefix_length` under way.

        What is drawn in training is drawn from `rng`, where there is one."""
        ...

    def action_positions(self, order: Int[Tensor, "b n"], width: Int[Tensor, "b 1"]) -> Int[Tensor, "b n"]:
        """The slots of a row's action tokens, which are numbered through; `width` is that of the row's robot."""
        ...

    def decode(self, context: DecodeContext) -> Chunks: ...


def finite(actions: Float[Tensor, "b h a"]) -> Chunks:
    """A chunk that holds a number that is not finite says nothing."""
    return [chunk if np.isfinite(chunk).all() else None for chunk in actions.float().cpu().numpy()]
