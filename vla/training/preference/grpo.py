"""GRPO: group relative policy optimisation of a model's answers (Shao et al. 2024, arXiv 2402.03300, sec. 4.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import batched
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.datasets.preferences import Pair, objects_named
from vla.errors import InputError
from vla.evaluation.vlm.vqa import normalize_answer
from vla.models.batch import IGNORE, Batch
from vla.models.vla import VLA
from vla.training.distributed import join
from vla.training.loop import Evaluate, Evaluation, Outcome
from vla.training.preference.loop import open_pairs, optimize
from vla.training.preference.losses import text_logits, token_logps
from vla.training.preference.reward import RewardModel
from vla.training.question_run import QuestionRun

Judge = Callable[[Pair, Sequence[str]], Sequence[float]]
TRUTH = "truth"
UNFINISHED = 1.0
"""The penalty of an answer that has not ended after `max_tokens`."""


@dataclass(frozen=True)
class GrpoOptions:
    """The options of GRPO.

    Attributes:
        reward: "truth" (`truth`), or the folder of a `RewardModel`.
        group: The number of sampled answers per question.
        max_tokens: The maximum length of an answer.
        uses: The number of optimizer steps per sampled batch.
        clip: The clipping range of the probability ratio.
        beta: The weight of the divergence from the reference.
    """

    reward: str = TRUTH
    group: int = 8
    max_tokens: int = 64
    uses: int = 1
    clip: float = 0.2
    beta: float = 0.04

    def __post_init__(self) -> None:
        if self.group < 2 or min(self.max_tokens, self.uses) < 1 or not 0 < self.clip < 1 or self.beta < 0:
            raise InputError(f"grpo: a group has 2 answers or more, clip is between 0 and 1, beta 0 or more: {self}")


def advantages(rewards: Float[Tensor, "q g"]) -> Float[Tensor, "q g"]:
    """The advantage of each answer, in standard deviations of its group."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)


def grpo_loss(
    policy: Float[Tensor, "b n"],
    old: Float[Tensor, "b n"],
    reference: Float[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
    advantage: Float[Tensor, "b"],
    clip: float,
    beta: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The negated objective (equation 3) and the divergence from the reference (equation 4).

    Both are means over each answer's tokens, then over answers.

    Args:
        policy: Log-probabilities of the tokens under the model.
        old: Those under the model that sampled the answers.
        reference: Those under the reference model.
        mask: True for the tokens of the answers.
        advantage: The advantage of each answer.
        clip: The clipping range of the probability ratio.
        beta: The weight of the divergence.
    """
    ratio = (policy - old).exp()
    bounded = torch.minimum(ratio * advantage[:, None], ratio.clamp(1 - clip, 1 + clip) * advantage[:, None])
    log_ratio = reference - policy
    divergence = log_ratio.exp() - log_ratio - 1
    length = mask.sum(1).clamp(min=1)
    loss = (((beta * divergence - bounded) * mask).sum(1) / length).mean()
    return loss, ((divergence * mask).sum(1) / length).mean().detach()


def truth(pair: Pair, answers: Sequence[str]) -> list[float]:
    """The correctness of each answer: the F1 score of the objects it names ("a red cube"), else exact match."""
    true = Counter(objects_named(pair.chosen))
    if not true:
        return [float(normalize_answer(answer) == normalize_answer(pair.chosen)) for answer in answers]
    predicted = [Counter(objects_named(answer)) for answer in answers]
    return [2 * (true & named).total() / (true.total() + named.total()) for named in predicted]


@torch.no_grad()
def sample(model: VLA, batch: Batch, max_tokens: int) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Samples answers to left-padded prompts at temperature 1, without image tokens.

    Returns:
        The tokens, and the mask of each answer up to and including `<eos>`.
    """
    decoding, eos = model.decoding(batch), model.processor.eos
    active = torch.ones(len(batch.input_ids), dtype=torch.bool, device=model.device)
    tokens, mask = list[Tensor](), list[Tensor]()
    while active.any() and len(tokens) < max_tokens:
        probabilities = text_logits(model, decoding.next_logits(), image_token=False).softmax(-1)
        tokens.append(torch.where(active, torch.multinomial(probabilities, 1).squeeze(1), eos))
        mask.append(active)
        active = active & (tokens[-1] != eos)
        decoding.extend(model.backbone.embed_tokens(tokens[-1][:, None]))
    return torch.stack(tokens, 1), torch.stack(mask, 1)


def answered(batch: Batch, tokens: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"], segment: int) -> Batch:
    """The prompts with these answers as labels; `mask` is True for the tokens of the answers."""
    width = tokens.shape[1]
    return replace(
        batch,
        input_ids=torch.cat([batch.input_ids, tokens], 1),
        attention_mask=torch.cat([batch.attention_mask, mask], 1),
        labels=torch.cat([batch.labels, tokens.masked_fill(~mask, IGNORE)], 1),
        segments=F.pad(batch.segments, (0, width), value=segment),
    )


def train_grpo(run: QuestionRun, options: GrpoOptions, evaluate: Evaluate) -> Outcome:
    """Trains a model on the questions of the pairs of stores (`open_pairs`).

    The reference is the model before training.

    Args:
        run: The run; `plan.batch_size` counts questions.
        options: The options of the stage.
        evaluate: Computes held-out scores, to which `reward` is added: the mean reward of greedy answers to held-out
            questions.

    Raises:
        InputError: there are too few questions, no such reward model, or several ranks.
    """
    pairs, heldout = open_pairs(run)
    judge = _judge(options.reward)
    model = run.model.to(join().device)
    reference = deepcopy(model).requires_grad_(False).eval()
    rollouts: dict[tuple[int, ...], Rollout] = {}

    def loss(micro: Sequence[Pair]) -> tuple[Float[Tensor, ""], Mapping[str, float]]:
        key = tuple(map(id, micro))
        if key not in rollouts or rollouts[key].remaining_uses == 0:
            for old in list(rollouts)[: len(rollouts) - run.plan.accumulate + 1]:  # of batches before this one
                del rollouts[old]
            rollouts[key] = Rollout.of(model.eval(), reference, micro, judge, options)
        return rollouts[key].loss(model.train(), options)

    def scores(trained: VLA) -> dict[str, float]:
        rewards: list[float] = []
        for group in batched(heldout, 32):
            batch = trained.processor.question_prompt([p.prompt for p in group], [p.images() for p in group])
            answers = trained.generate_text(batch, options.max_tokens)
            rewards += [judge(pair, [answer])[0] for pair, answer in zip(group, answers, strict=True)]
        return evaluate(trained) | {"reward": sum(rewards) / len(rewards)}

    return optimize(run, pairs, loss, Evaluation(scores, "reward"), options.uses)


def _judge(reward: str) -> Judge:
    return truth if reward == TRUTH else RewardModel.load(Path(reward)).to(join().device).judge


@dataclass
class Rollout:
    """Sampled answers with their log-probabilities and advantages; `remaining_uses` counts the steps left."""

    batch: Batch
    mask: Bool[Tensor, "b n"]
    old: Float[Tensor, "b n"]
    reference: Float[Tensor, "b n"]
    advantage: Float[Tensor, "b"]
    reward: float
    remaining_uses: int

    @classmethod
    @torch.no_grad()
    def of(cls, model: VLA, reference: VLA, pairs: Sequence[Pair], judge: Judge, options: GrpoOptions) -> Rollout:
        prompts = model.processor.question_prompt([p.prompt for p in pairs], [p.images() for p in pairs])
        prompts = prompts.rows(torch.arange(len(pairs)).repeat_interleave(options.group)).to(model.device)
        tokens, answer_tokens = sample(model, prompts, options.max_tokens)
        batch = answered(prompts, tokens, answer_tokens, int(model.processor.chat.prefix_lm))
        ended = (tokens == model.processor.eos).any(1)
        texts = [model.processor.text(row[valid].tolist()) for row, valid in zip(tokens, answer_tokens, strict=True)]
        judged = [judge(pair, group) for pair, group in zip(pairs, batched(texts, options.group), strict=True)]
        rewards = torch.tensor(judged, device=model.device) - UNFINISHED * ~ended.view(len(pairs), -1)
        mask = batch.labels[:, 1:] != IGNORE
        old, before = (token_logps(one, batch, image_token=False) for one in (model, reference))
        return cls(batch, mask, old, before, advantages(rewards).flatten(), rewards.mean().item(), options.uses)

    def loss(self, model: VLA, options: GrpoOptions) -> tuple[Float[Tensor, ""], Mapping[str, float]]:
        self.remaining_uses -= 1
        policy = token_logps(model, self.batch, image_token=False)
        loss, divergence = grpo_loss(
            policy, self.old, self.reference, self.mask, self.advantage, options.clip, options.beta
        )
        tokens = self.mask.sum(1).float().mean().item()
        return loss, {"reward": self.reward, "kl": divergence.item(), "tokens": tokens}
