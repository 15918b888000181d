"""The options of `vla train`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla.common.renamed_keys import VALUES
from vla.datasets.prompts import check_choice
from vla.errors import InputError
from vla.evaluation.vlm.probes.names import NAMES as PROBES
from vla.evaluation.vlm.scoring.registry import BENCHMARKS
from vla.models.action_targets import check_predictions
from vla.models.choices import check_image_mode, check_state_encoding, check_statistics
from vla.models.normalization import methods_of
from vla.training.horizon import horizon_steps, prefix_steps
from vla.training.tracking import check_tracker


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
    state_encoding: str | None = None
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

    def check(self) -> None:
        """Raises InputError for a value that is invalid whatever the data and the backbone are; without any import."""
        check_choice(self.instruction)
        check_tracker(self.log)
        check_state_encoding(self.state_encoding)
        check_statistics(VALUES["train", "statistics"].get(str(self.statistics), self.statistics))
        for mode in _values(self.images):
            check_image_mode(mode)
        if self.horizon is not None:
            horizon_steps(self.horizon, (), "")
        prefix_steps(self.delay, 0.0, 1)
        if self.predict is not None:
            check_predictions(self.predict)
        if self.normalization is not None:
            methods_of(("component",), self.normalization)
        self._check_head()
        check_gates(self.regression_gates or {})

    def _check_head(self) -> None:
        folder = self.head.get("tokenizer") if isinstance(self.head, Mapping) else None
        if isinstance(folder, str) and not Path(folder).is_dir():
            raise InputError(f"head.tokenizer={folder}: there is no such folder; `vla train-tokenizer` makes one")


GATE_OPTIONS = ("margin", "n", "data")


def check_gates(gates: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises InputError for a regression gate that is neither a probe nor a benchmark, or has invalid options."""
    for name, options in gates.items():
        if not isinstance(options, Mapping) or "margin" not in options or options.keys() - set(GATE_OPTIONS):
            raise InputError(f"regression_gates.{name} takes {', '.join(GATE_OPTIONS)}; margin is required")
        if options["margin"] < 0:
            raise InputError(f"regression_gates.{name}: the margin must be 0 or more, not {options['margin']}")
        if name not in PROBES and name not in BENCHMARKS:
            raise InputError(f"regression_gates.{name} is neither a probe ({', '.join(PROBES)}) nor a benchmark")
        if name in BENCHMARKS and options.get("data") is None:
            raise InputError(f"regression_gates.{name} needs the location of its official files: set data")


def _values(choice: str | Mapping[str, str] | None) -> Iterator[str | None]:
    """The value of an option for all robots, or those by name."""
    yield from choice.values() if isinstance(choice, Mapping) else (choice,)
