"""A training run on question stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla.datasets.vqa import VqaStore
from vla.models.vla import VLA
from vla.training.train_config import TrainConfig


@dataclass(frozen=True, eq=False)
class QuestionRun:
    """A training run on question stores, before its first step.

    Attributes:
        model: The model, which is trained in place.
        stores: The question stores by name.
        plan: The training configuration.
        folder: The output folder.
        origin: Where the model and the data come from (JSON values).
    """

    model: VLA
    stores: Mapping[str, VqaStore]
    plan: TrainConfig
    folder: Path
    origin: Mapping[str, Any] = field(default_factory=dict)
