"""GRPO: a model answers each question several times, and the answers that are better than the others of their group
become likelier (Shao et al. 2024, arXiv 2402.03300, sec. 4.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import batched
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.datasets.preferences import Pair, objects_named
from vla.datasets.vqa import VqaStore
from vla.errors import InputError
from vla.evaluation.vlm.vqa import normalize_answer
from vla.models.batch import IGNORE, Batch
from vla.models.vla import VLA
from vla.training.distributed import join
from vla.training.loop import Evaluate, Outcome
from vla.training.preference.loop import open_pairs, optimize
from vla.training.preference.losses import text_logits, token_logps
from vla.training.preference.reward import RewardModel
from vla.training.train_config import TrainConfig

Judge = Callable[[Pair, Sequence[str]], Sequence[float]]
TRUTH = "truth"
UNFINISHED = 1.0
"""What an answer loses that has not ended after `max_tokens`."""


@dataclass(frozen=True)
class Policy:
    """`group` answers to a question, of `max_tokens` at most; each is learned from `uses` times. `clip` bounds the
    ratio to what sampled them, `beta` weighs the divergence from the reference."""

    group: int = 8
    max_tokens: int = 64
    uses: int = 1
    clip: float = 0.2
    beta: float = 0.04

    def __post_init__(self) -> None:
        if self.group < 2 or min(self.max_tokens, self.uses) < 1 or not 0 < self.clip < 1 or self.beta < 0:
            raise InputError(f"grpo: a group has 2 answers or more, clip is between 0 and 1, beta 0 or more: {self}")


def advantages(rewards: Float[Tensor, "q g"]) -> Float[Tensor, "q g"]:
    """Of each answer, in standard deviations of its group."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)


def grpo_loss(
    policy: Float[Tensor, "b n"],
    old: Float[Tensor, "b n"],
    reference: Float[Tensor, "b n"],
    said: Bool[Tensor, "b n"],
    advantage: Float[Tensor, "b"],
    clip: float,
    beta: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Equation 3, negated, and the divergence from the reference (equation 4), of log-probabilities of the tokens
    `said`: the mean over each answer's tokens, then over answers."""
    ratio = (policy - old).exp()
    bounded = torch.minimum(ratio * advantage[:, None], ratio.clamp(1 - clip, 1 + clip) * advantage[:, None])
    apart = reference - policy
    divergence = apart.exp() - apart - 1
    length = said.sum(1).clamp(min=1)
    loss = (((beta * divergence - bounded) * said).sum(1) / length).mean()
    return loss, ((divergence * said).sum(1) / length).mean().detach()


def truth(pair: Pair, answers: Sequence[str]) -> list[float]:
    """How right each answer is by the simulator: of one that names objects the F1 of these ("a red cube"), of another
    whether it is the true one."""
    true = Counter(objects_named(pair.chosen))
    if not true:
        return [float(normalize_answer(answer) == normalize_answer(pair.chosen)) for answer in answers]
    told = [Counter(objects_named(answer)) for answer in answers]
    return [2 * (true & said).total() / (true.total() + said.total()) for said in told]


@torch.no_grad()
def sample(model: VLA, batch: Batch, most: int) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Answers to prompts that are padded on the left, drawn at temperature 1, and which tokens are theirs: up to
    `<eos>`, and with it. No token opens a place for an image, which an answer does not have."""
    decoding, eos = model.decoding(batch), model.processor.eos
    going = torch.ones(len(batch.input_ids), dtype=torch.bool, device=model.device)
    tokens, said = list[Tensor](), list[Tensor]()
    while going.any() and len(tokens) < most:
        chances = text_logits(model, decoding.next_logits(), places=False).softmax(-1)
        tokens.append(torch.where(going, torch.multinomial(chances, 1).squeeze(1), eos))
        said.append(going)
        going = going & (tokens[-1] != eos)
        decoding.extend(model.backbone.embed_tokens(tokens[-1][:, None]))
    return torch.stack(tokens, 1), torch.stack(said, 1)


def answered(batch: Batch, tokens: Int[Tensor, "b n"], said: Bool[Tensor, "b n"], segment: int) -> Batch:
    """The prompts with these answers, of which the tokens `said` have labels."""
    width = tokens.shape[1]
    return replace(
        batch,
        input_ids=torch.cat([batch.input_ids, tokens], 1),
        attention_mask=torch.cat([batch.attention_mask, said], 1),
        labels=torch.cat([batch.labels, tokens.masked_fill(~said, IGNORE)], 1),
        segments=F.pad(batch.segments, (0, width), value=segment),
    )


def train_grpo(
    model: VLA,
    stores: Mapping[str, VqaStore],
    plan: TrainConfig,
    run: Path,
    evaluate: Evaluate,
    reward: str = TRUTH,
    group: int = 8,
    max_tokens: int = 64,
    uses: int = 1,
    clip: float = 0.2,
    beta: float = 0.04,
    origin: Mapping[str, Any] | None = None,
) -> Outcome:
    """Trains `model` in place into `run` on the questions of the pairs of `stores` (`open_pairs`); `plan.batch_size`
    counts questions, and the other options are those of `Policy`.

    `reward` is "truth" (`truth`), or the folder of a `RewardModel`. The reference is the model as it comes. Evaluations
    have, beside those of `evaluate`, `reward`: the mean of greedy answers to the questions held out.
    Raises InputError where there are too few questions or no such reward model, and with several ranks.
    """
    how = Policy(group, max_tokens, uses, clip, beta)
    pairs, shown = open_pairs(stores, plan)
    judge: Judge = truth if reward == TRUTH else RewardModel.load(Path(reward)).to(join().device).judge
    model.to(join().device)
    reference = deepcopy(model).requires_grad_(False).eval()
    rollouts: dict[tuple[int, ...], Rollout] = {}

    def loss(some: Sequence[Pair]) -> tuple[Float[Tensor, ""], Mapping[str, float]]:
        key = tuple(map(id, some))
        if key not in rollouts or rollouts[key].left == 0:
            for old in list(rollouts)[: len(rollouts) - plan.accumulate + 1]:  # of batches before this one
                del rollouts[old]
            rollouts[key] = Rollout.of(model.eval(), reference, some, judge, how)
        return rollouts[key].loss(model.train(), how)

    def scores(trained: VLA) -> dict[str, float]:
        found: list[float] = []
        for part in batched(shown, 32):
            batch = trained.processor.question_prompt([p.prompt for p in part], [p.images() for p in part])
            answers = trained.generate_text(batch, max_tokens)
            found += [judge(pair, [answer])[0] for pair, answer in zip(part, answers, strict=True)]
        return evaluate(trained) | {"reward": sum(found) / len(found)}

    return optimize(model, pairs, plan, run, loss, scores, "reward", uses, origin)


@dataclass
class Rollout:
    """Answers that were drawn, and what was thought of them; `left` is how often they may still be learned from."""

    batch: Batch
    said: Bool[Tensor, "b n"]
    old: Float[Tensor, "b n"]
    reference: Float[Tensor, "b n"]
    advantage: Float[Tensor, "b"]
    reward: float
    left: int

    @classmethod
    @torch.no_grad()
    def of(cls, model: VLA, reference: VLA, pairs: Sequence[Pair], judge: Judge, how: Policy) -> Rollout:
        prompts = model.processor.question_prompt([p.prompt for p in pairs], [p.images() for p in pairs])
        prompts = prompts.rows(torch.arange(len(pairs)).repeat_interleave(how.group)).to(model.device)
        tokens, said = sample(model, prompts, how.max_tokens)
        batch = answered(prompts, tokens, said, int(model.processor.chat.prefix_lm))
        ended = (tokens == model.processor.eos).any(1)
        texts = [model.processor.text(row[mask].tolist()) for row, mask in zip(tokens, said, strict=True)]
        judged = [judge(pair, some) for pair, some in zip(pairs, batched(texts, how.group), strict=True)]
        rewards = torch.tensor(judged, device=model.device) - UNFINISHED * ~ended.view(len(pairs), -1)
        mask = batch.labels[:, 1:] != IGNORE
        old, before = (token_logps(one, batch, places=False) for one in (model, reference))
        return cls(batch, mask, old, before, advantages(rewards).flatten(), rewards.mean().item(), how.uses)

    def loss(self, model: VLA, how: Policy) -> tuple[Float[Tensor, ""], Mapping[str, float]]:
        self.left -= 1
        policy = token_logps(model, self.batch, places=False)
        found, apart = grpo_loss(policy, self.old, self.reference, self.said, self.advantage, how.clip, how.beta)
        return found, {"reward": self.reward, "kl": apart.item(), "tokens": self.said.sum(1).float().mean().item()}
