"""A reward model: a backbone with a scalar head, trained on pairs of answers.

It follows LLaVA-RLHF (Sun et al. 2023, arXiv 2309.14525). The prompt optionally has the simulator's facts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import batched
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from vla.datasets.preferences import Pair
from vla.errors import InputError
from vla.models.backbones.backbone import Backbone
from vla.models.processor import Processor
from vla.models.vla import VLA
from vla.training.distributed import join
from vla.training.loop import Evaluation, Outcome
from vla.training.preference.loop import open_pairs, optimize
from vla.training.preference.train import by_kind
from vla.training.question_run import QuestionRun

FILE = "reward.json"


class RewardModel(VLA):
    """Scores an answer by a linear map of the hidden state of its last token.

    Attributes:
        facts: Whether prompts contain the simulator's facts (fact-augmented reward, sec. 2.3).
    """

    def __init__(self, backbone: Backbone, processor: Processor, smoothing: float = 2.0) -> None:
        super().__init__(backbone, processor, smoothing)
        self.facts = False
        self.score = nn.Linear(backbone.hidden_size, 1)

    def rewards(self, pairs: Sequence[Pair]) -> Float[Tensor, "b"]:
        """The rewards of the chosen answers, then of the rejected ones."""
        examples = [(pair.informed() if self.facts else pair).examples() for pair in pairs]
        batch = self.processor.batch([one for one, _ in examples] + [other for _, other in examples]).to(self.device)
        last = batch.attention_mask.sum(1) - 1
        hidden = self.encode(batch)[torch.arange(len(last), device=self.device), last]
        return self.score(hidden).float().squeeze(1)

    @torch.no_grad()
    def judge(self, pair: Pair, answers: Sequence[str]) -> list[float]:
        """The reward of each of several answers to the question of a pair."""
        pairs = [replace(pair, chosen=a, rejected=b) for a, b in batched((*answers, *answers[: len(answers) % 2]), 2)]
        first, second = self.rewards(pairs).chunk(2)
        return torch.stack([first, second], 1).flatten()[: len(answers)].tolist()

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        super().save(folder, weights)
        (folder / FILE).write_text(json.dumps({"facts": self.facts}))

    @classmethod
    def load(cls, folder: Path) -> RewardModel:
        """Loads a checkpoint, or the best one of a run. Raises InputError if it is not a reward model."""
        folder = Path(folder) / "best" if (Path(folder) / "best").is_dir() else Path(folder)
        if not (folder / FILE).is_file():
            raise InputError(f"{folder} is not a reward model: train one with stage=reward")
        model = super().load(folder)
        assert isinstance(model, cls)
        model.facts = json.loads((folder / FILE).read_text())["facts"]
        return model


def reward_loss(rewards: Float[Tensor, "b"], center: float) -> Float[Tensor, ""]:
    """Bradley-Terry loss -log sigmoid(chosen - rejected) plus `center` times the mean square of chosen + rejected.

    The second term centres rewards at 0 (Eisenstein et al. 2023, arXiv 2312.09244). Chosen answers come first.
    """
    chosen, rejected = rewards.chunk(2)
    return -logsigmoid(chosen - rejected).mean() + center * ((chosen + rejected) ** 2).mean()


@dataclass(frozen=True)
class RewardOptions:
    """The options of the reward stage.

    Attributes:
        facts: Whether prompts contain the simulator's facts.
        center: The weight of the centring term (`reward_loss`).
        files: Files of pairs.
        images: The folder of the images of `files`.
    """

    facts: bool = True
    center: float = 0.001
    files: Sequence[str] = ()
    images: str | None = None

    def __post_init__(self) -> None:
        if self.center < 0:
            raise InputError(f"reward.center must be 0 or more, not {self.center}")


def train_reward(run: QuestionRun, options: RewardOptions) -> Outcome:
    """Trains a `RewardModel` on the backbone of the model, on the pairs of stores and files (`open_pairs`).

    Held-out scores: `reward_accuracy` (share of pairs whose chosen answer has the higher reward) and `reward_margin`
    (mean difference), also by kind of fault.

    Raises:
        InputError: there are too few pairs, or several ranks.
    """
    pairs, heldout = open_pairs(run, options.files, options.images)
    model = run.model
    judge = RewardModel(model.backbone, model.processor, model.smoothing).to(join().device)
    judge.facts = options.facts

    def loss(micro: Sequence[Pair]) -> tuple[Float[Tensor, ""], Mapping[str, float]]:
        rewards = judge.train().rewards(micro)
        chosen, rejected = rewards.detach().chunk(2)
        return reward_loss(rewards, options.center), {"accuracy": (chosen > rejected).float().mean().item()}

    @torch.no_grad()
    def scores(_: VLA) -> dict[str, float]:
        margins = [torch.sub(*judge.rewards(group).chunk(2)) for group in batched(heldout, 32)]
        return by_kind(heldout, torch.cat(margins).cpu(), "reward")

    return optimize(replace(run, model=judge), pairs, loss, Evaluation(scores, "reward_accuracy"))
