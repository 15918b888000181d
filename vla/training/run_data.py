"""The stores of a training run, and what is computed from them: robots, texts, training rows and held-out rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from vla.datasets.mixture import Conversations, Source
from vla.datasets.vqa import VqaStore
from vla.envs.make import is_task
from vla.errors import InputError
from vla.evaluation.heldout import heldout_by_kind, spread
from vla.models.action_targets import RELATIVE
from vla.models.normalization import QUANTILE
from vla.models.processor import Processor
from vla.models.robot_choice import is_like
from vla.models.robot_spec import RobotSpec, with_cameras
from vla.training.action_head import chosen_head
from vla.training.camera_dropout import check_dropout
from vla.training.demonstrations import Demonstrations, robot_specs
from vla.training.heldout_scores import HeldoutScores
from vla.training.history import with_history
from vla.training.horizon import horizon_steps
from vla.training.loop import Evaluate
from vla.training.replay import Replay
from vla.training.run_options import RunOptions
from vla.training.soup import checkpoints_of
from vla.training.train_config import TrainConfig

HELD_OUT_WINDOWS = 128


@dataclass(frozen=True, eq=False)
class RunData:
    """The data of a run.

    Attributes:
        options: The options of the run.
        questions: The question stores with a weight, by name.
        demonstrations: The episode stores by name.
        weights: The weight of each source.
        horizon: The horizon of an action chunk [steps].
        replay: The stores of the policy in `backbone`, of which rows are repeated (`vla.training.replay`).
    """

    options: RunOptions
    questions: Mapping[str, VqaStore]
    demonstrations: Mapping[str, Demonstrations]
    weights: Mapping[str, float]
    horizon: int
    replay: Replay | None = None

    @classmethod
    def open(cls, options: RunOptions) -> RunData:
        """Opens the stores. Raises InputError if a store cannot be used, or for an invalid horizon."""
        data, vqa, checkpoints = options.data, options.vqa, checkpoints_of(options.backbone)
        paths = {} if data is None else {"robot": data} if isinstance(data, str) else data
        if both := sorted(paths.keys() & vqa.keys()):
            raise InputError(f"{', '.join(both)} names a store in data and one in vqa: choose another name")
        weights = dict(options.mixture)
        if paths and "robot" not in paths:
            default = weights.pop("robot", 0.0)
            weights = {name: default for name in paths} | weights
        known = {*paths, *vqa, "robot"}
        if unknown := sorted(name for name, weight in weights.items() if weight > 0 and name not in known):
            raise InputError(f"the mixture has weights for {unknown}, but its sources are {sorted({*paths, *vqa})}")
        idle = [name for name in paths if weights.get(name, 0) == 0]
        if idle:
            print(f"{', '.join(idle)}: weight 0 in the mixture, only evaluated and not trained on")
        questions = {name: VqaStore(path) for name, path in vqa.items() if weights.get(name, 0) > 0}
        demonstrations = {name: Demonstrations.open(path) for name, path in paths.items()}
        rates = [d.store.embodiment.control_hz for d in demonstrations.values()]
        head = chosen_head(options.head, checkpoints)
        options, kind = replace(options, head=head), head if isinstance(head, str) else str(head["kind"])
        horizon = horizon_steps(options.horizon, rates, kind, next(iter(checkpoints), None))
        if options.replay is None:
            return cls(options, questions, demonstrations, weights, horizon)
        if options.temperature is not None:
            raise InputError("replay is a share of the rows, which temperature would change: set one of them")
        replay = Replay.open(checkpoints)
        if both := sorted(replay.stores.keys() & {*paths, *vqa}):
            raise InputError(f"{', '.join(both)} is the name of a replayed store: choose another name for yours")
        weights = replay.weights(options.replay, weights, list(paths))
        return cls(options, questions, demonstrations, weights, horizon, replay)

    @property
    def episodes(self) -> Mapping[str, Demonstrations]:
        """All stores of episodes by name, also those that are replayed."""
        return {**self.demonstrations, **(self.replay.stores if self.replay else {})}

    def robots(self, plan: TrainConfig) -> list[RobotSpec]:
        """The robots of the demonstrations. Prints which are alike, but separate because of their names."""
        options, dropout = self.options, plan.camera_dropout
        predict, normalization = options.predict or RELATIVE, options.normalization or QUANTILE
        robots = robot_specs(list(self.demonstrations.values()), self.horizon, predict, normalization, dropout > 0)
        check_dropout(dropout, robots)
        robots = with_history(with_cameras(robots, options.images, options.image_tokens), plan.history)
        for one, other in combinations(robots, 2):
            if is_like(one.embodiment, other.embodiment):
                print(
                    f"{one.name} and {other.name} have the same components, but are normalised separately because "
                    f"their names differ; `vla data rename STORE embodiment={one.name}` makes them one robot"
                )
        return robots

    def tasks(self) -> set[str]:
        """The simulated tasks of the episodes."""
        records = (record for d in self.demonstrations.values() for record in d.store.records)
        named = {record.info.get("task") for record in records}
        return {name for name in named if isinstance(name, str) and not name.endswith(".yaml") and is_task(name)}

    def texts(self) -> Iterator[str]:
        """The training text of a new tokenizer: the text of the stores, and all generated instructions."""
        from vla.envs.tasks import every_instruction  # imports MuJoCo, which training does not need

        for store in self.questions.values():
            yield from (f" {question.text} {question.answer}" for question in store.questions())
        for demonstrations in self.demonstrations.values():
            for record in demonstrations.store.records:
                spans = (span.instruction for span in record.spans)
                yield from (f" {text}" for text in (record.instruction, *record.paraphrases, *spans))
        yield from (f" {text}" for text in every_instruction())

    def sources(self, processor: Processor) -> dict[str, Source]:
        """The training rows of each store. Raises InputError for a delay and a head without action prefixes."""
        options, head = self.options, processor.head
        if options.delay is not None and head is not None and not getattr(head, "takes_prefix", True):
            raise InputError(f"the head {head.settings['kind']} takes no action prefix: leave out delay")
        turns = 1 if processor.chat.prefix_lm else options.turns
        sources: dict[str, Source] = {
            name: Conversations(store, "train", turns, (options.kinds or {}).get(name))
            for name, store in self.questions.items()
        }
        for name, demonstrations in self.episodes.items():
            history = _history(processor, demonstrations)
            sources[name] = demonstrations.windows(self.horizon, options.instruction, options.delay, history)
        return sources

    def heldout(self, processor: Processor) -> Evaluate:
        """Computes scores on held-out questions and windows of the stores."""
        options, kinds = self.options, self.options.kinds or {}
        questions = {
            name: heldout_by_kind(store, options.heldout_questions, kinds.get(name))
            for name, store in self.questions.items()
        }
        windows = {
            name: spread(d.heldout(self.horizon, options.instruction, _history(processor, d)), HELD_OUT_WINDOWS)
            for name, d in self.episodes.items()
        }
        return HeldoutScores(questions, windows)


def _history(processor: Processor, demonstrations: Demonstrations) -> tuple[int, ...]:
    """The past frames of the robot of the demonstrations."""
    return processor.robot(demonstrations.store.embodiment.name).history
