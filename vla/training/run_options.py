"""The options of `vla train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a training run, or of several in sequence; configs/train.yaml describes each."""

    task: str | None = None
    """Not used; configurations derive the default of `data` from it."""
    out: str

    # Data
    data: str | Mapping[str, str] | None
    vqa: Mapping[str, str]
    mixture: Mapping[str, float]
    temperature: float | None = None
    kinds: Mapping[str, Sequence[str]] | None = None
    turns: int
    heldout_questions: int
    instruction: str = "both"
    horizon: int | float | str | None
    delay: float | str | None = None
    predict: str | Mapping[str, str] | None = None
    normalization: str | Mapping[str, str] | None = None
    statistics: str | None = None
    replay: float | None = None

    # Model
    backbone: str | Sequence[str] | Mapping[str, Any]
    head: str | Mapping[str, Any] | None = None
    state_encoding: str = "numbers"
    tiles: int | None = None
    images: str | Mapping[str, str] | None = None
    image_tokens: int | Mapping[str, int] | None = None
    lora: Mapping[str, Any] | None = None

    # Training: the keys of `TrainConfig`, and the options of a trainer (`vla.training.trainers`)
    plan: Mapping[str, Any]
    log: str | None = None
    regression_gates: Mapping[str, Mapping[str, Any]] | None = None
    contrastive: Mapping[str, Any] | None = None
    preference: Mapping[str, Any] | None = None
    reward: Mapping[str, Any] | None = None
    grpo: Mapping[str, Any] | None = None
    stages: Mapping[str, Mapping[str, Any]] | None = None
    probe_scenes: Mapping[str, int] | None = None
