"""The interface of an action head: how a model represents and decodes an action chunk on a shared backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from vla.models.action_heads.action_expert import ExpertContext
from vla.models.action_heads.decoding import Decoding
from vla.models.batch import Batch
from vla.models.robot_spec import RobotSpec
from vla.types import RTCPrefix


@dataclass(frozen=True)
class Vocabulary:
    """The inputs from which a head is built: the text tokenizer and the robots that the model controls."""

    tokenizer: Tokenizer
    text: int
    """Number of text tokens. The head's tokens follow them, and then the action query token."""
    robots: tuple[RobotSpec, ...]
    pad: int
    eos: int
    width: int = 0
    """Number of action components to which the policy pads all robots' actions; 0: the largest action dimension."""

    @property
    def horizon(self) -> int:
        """Number of steps of a chunk, the same for all robots."""
        return self.robots[0].horizon

    @property
    def action_dim(self) -> int:
        """The largest action dimension among the robots, or the width to which they are padded."""
        return max(self.width, *(robot.action_dim for robot in self.robots))


@dataclass(frozen=True)
class ChunkTarget:
    """An action chunk to be learned.

    Attributes:
        robot: The robot of the chunk.
        actions: The normalised actions.
        valid_mask: The steps within the episode; the others have no loss.
        prefix_length: Length of the action prefix.
        rng: Generator of training noise; None for a deterministic target.
    """

    robot: RobotSpec
    actions: Float[np.ndarray, "h a"]
    valid_mask: Bool[np.ndarray, "h"]
    prefix_length: int = 0
    rng: np.random.Generator | None = None

    @property
    def learned(self) -> Bool[np.ndarray, "h"]:
        """The valid steps after the action prefix."""
        return self.valid_mask & (np.arange(len(self.actions)) >= self.prefix_length)


@dataclass(frozen=True)
class Target:
    """What a head adds to a training row: tokens with labels, and a mask of the steps with a continuous loss."""

    inputs: Sequence[int]
    labels: Sequence[int]
    continuous_mask: Bool[np.ndarray, "h"] | None = None


@dataclass(frozen=True)
class LossRows:
    """The inputs of a continuous loss: the rows of a batch that belong to robots.

    Attributes:
        hidden: hidden states of the backbone.
        conditioning: conditioning values of each row.
        context: what an action expert reads; None for a head that does not read the cache.
    """

    batch: Batch
    hidden: Float[Tensor, "b l d"]
    conditioning: Float[Tensor, "b n"]
    context: ExpertContext | None


@dataclass(frozen=True)
class DecodeContext:
    """The inputs for decoding action chunks: rows of one robot whose prompts are in the KV cache of `decoding`.

    Attributes:
        conditioning: conditioning values of each row.
        decode_tokens: embeds further tokens, from the index of the first within the chunk, and returns their hidden
            states.
        prefix: the normalised action prefix of the batch, which may be empty. Only flow heads use its leftover.
    """

    decoding: Decoding
    robot: RobotSpec
    conditioning: Float[Tensor, "b n"]
    decode_tokens: Callable[[Int[Tensor, "b m"], int], Float[Tensor, "b m d"]]
    prefix: RTCPrefix
    module: nn.Module | None


Chunks = list[Float[np.ndarray, "h a"] | None]
"""Normalised chunks; None for an invalid one, for which the caller holds position."""


@runtime_checkable
class ContinuousHead(Protocol):
    """The part of a head that learns continuous values, with its own modules."""

    reads_cache: bool
    """Whether the loss reads the keys and values of the backbone."""

    def module(self, backbone: Any, conditioning: int) -> nn.Module:
        """The head's trainable module, for `conditioning` conditioning values per row."""
        ...

    def loss(self, module: Any, rows: LossRows) -> Float[Tensor, "k"]:
        """Loss of each of the k values selected by `continuous_mask` of the batch, row by row."""
        ...


@runtime_checkable
class Head(Protocol):
    """An action head: the processor writes training targets with it, and the model decodes with it.

    Its settings are JSON and are saved with the processor.
    """

    settings: Mapping[str, Any]
    """"kind" and the arguments with which `build_head` builds the same head."""
    vocab_size: int
    """Number of vocabulary entries that it needs, without the action query token that follows them."""
    num_ordinal_tokens: int
    """How many of these, from the first, are ordinal values."""
    num_action_positions: int
    """Number of positions among the tokens of a chunk, each with a learned embedding."""
    conditions_on_prefix: bool
    """Whether the action prefix is conditioning input, since the head's tokens cannot express it."""

    bidirectional: bool
    """Whether the tokens of a chunk, which are then decoded in one pass, attend to each other."""

    @property
    def continuous(self) -> ContinuousHead | None:
        """The continuous part of the head; None for a head of tokens only."""
        ...

    def target(self, chunk: ChunkTarget) -> Target:
        """The training target of an action chunk."""
        ...

    def action_positions(self, order: Int[Tensor, "b n"], width: Int[Tensor, "b 1"]) -> Int[Tensor, "b n"]:
        """Position embedding index of each action token.

        Args:
            order: index of the token in the chunk.
            width: action dimension of each row's robot.
        """
        ...

    def decode(self, context: DecodeContext) -> Chunks:
        """Decodes the chunk of each row; None for an invalid one."""
        ...


def finite(actions: Float[Tensor, "b h a"]) -> Chunks:
    """The chunks, with None for one that contains a value that is not finite."""
    return [chunk if np.isfinite(chunk).all() else None for chunk in actions.float().cpu().numpy()]
