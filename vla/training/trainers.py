"""The trainers of `vla train`, each with its options. A stage (configs/stage/) sets the options of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vla.datasets.mixture import Mixture
from vla.errors import InputError, suggestion
from vla.models.vla import VLA
from vla.training import cotrain
from vla.training.contrastive.encoder import ContrastiveOptions
from vla.training.contrastive.train import train_contrastive
from vla.training.loop import Evaluate, Outcome
from vla.training.preference.grpo import GrpoOptions, train_grpo
from vla.training.preference.reward import RewardOptions, train_reward
from vla.training.preference.train import PreferenceOptions, train_preference
from vla.training.question_run import QuestionRun
from vla.training.run_data import RunData
from vla.training.run_options import RunOptions
from vla.training.train_config import TrainConfig


@dataclass(frozen=True, eq=False)
class Run:
    """A run before its first step; `origin` is for the checkpoints."""

    model: VLA
    data: RunData
    plan: TrainConfig
    folder: Path
    origin: Mapping[str, Any]

    @property
    def on_questions(self) -> QuestionRun:
        return QuestionRun(self.model, self.data.questions, self.plan, self.folder, self.origin)

    def evaluate(self) -> Evaluate:
        """Returns the function of the held-out scores. Regression gates measure the model before training now."""
        heldout, gates = self.data.heldout(self.model.processor), self.data.options.regression_gates
        if not gates:
            return heldout
        from vla.training.regression_gates import RegressionGates

        measure = RegressionGates(self.model, gates)
        return lambda trained: heldout(trained) | measure(trained)


@dataclass(frozen=True)
class Trainer:
    """A trainer.

    Attributes:
        train: Trains a run with an instance of `options`.
        options: The dataclass of its options, with their defaults; None: it has none of its own.
    """

    train: Callable[[Run, Any], Outcome]
    options: type[Any] | None = None


def _cotrain(run: Run, _: None) -> Outcome:
    data, plan = run.data, run.plan
    sources = data.sources(run.model.processor)
    mixture = Mixture(sources, data.weights, plan.seed, data.options.temperature)
    origin = {**run.origin, "rows": {name: len(source) for name, source in sources.items()}}
    return cotrain.train(run.model, mixture, plan, run.folder, run.evaluate(), origin)


TRAINERS: Mapping[str, Trainer] = {
    "contrastive": Trainer(lambda run, options: train_contrastive(run.on_questions, options), ContrastiveOptions),
    "reward": Trainer(lambda run, options: train_reward(run.on_questions, options), RewardOptions),
    "preference": Trainer(
        lambda run, options: train_preference(run.on_questions, options, run.evaluate()), PreferenceOptions
    ),
    "grpo": Trainer(lambda run, options: train_grpo(run.on_questions, options, run.evaluate()), GrpoOptions),
    "cotrain": Trainer(_cotrain),
}
"""The trainers by name. The first one whose options are set trains a run, without any the last one."""


def select(options: RunOptions) -> Callable[[Run], Outcome]:
    """The trainer of a run, with its options. Raises InputError for an unknown option, or an invalid value."""
    name = next((name for name in TRAINERS if getattr(options, name, None) is not None), "cotrain")
    trainer, chosen = TRAINERS[name], None
    if trainer.options is not None:
        values, known = getattr(options, name), [field.name for field in fields(trainer.options)]
        if wrong := [key for key in values if key not in known]:
            raise InputError(f"{name} takes {', '.join(known)}, not {wrong[0]}{suggestion(wrong[0], known)}")
        chosen = trainer.options(**values)
    return lambda run: trainer.train(run, chosen)
