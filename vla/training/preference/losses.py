"""Losses on pairs of answers, from the log-probabilities of their tokens under the policy and a frozen reference.

| loss     | for a pair, with r = beta (log policy - log reference)    | source                                      |
|----------|-----------------------------------------------------------|---------------------------------------------|
| sigmoid  | -log sigmoid(r_chosen - r_rejected)                       | DPO: Rafailov et al. 2023, arXiv 2305.18290 |
| bco_pair | -log sigmoid(r_chosen) - log sigmoid(-r_rejected)         | BCO: Jung et al. 2024, arXiv 2404.04656     |
| sft      | -log policy of the chosen answer, mean over the tokens    |                                             |

MPO (Wang et al. 2024, arXiv 2411.10442) is their sum with weights .8, .2 and 1. Names and values are those of trl.
In dense DPO (RLHF-V: Yu et al. 2024, arXiv 2312.00849, sec. 3.2) the tokens of corrected segments weigh more.

Shapes: p pairs, n tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from vla.errors import InputError
from vla.models.batch import IGNORE, Batch
from vla.models.vla import VLA

LOSSES = ("sigmoid", "bco_pair", "sft")


@dataclass(frozen=True)
class Objective:
    """The training objective.

    RLHF-V's paper uses weight 5, beta .5 and an average; its code uses weight 1.1, beta .1 and a sum.

    Attributes:
        losses: The weight of each loss of `LOSSES`; None: sigmoid.
        beta: The scale of the log-ratio.
        weight: The weight of tokens in changed segments (dense DPO).
        average: Whether an answer's log-probability is a weighted mean over its tokens, rather than a sum.
        min_match: The minimum length of a segment that both answers share [tokens].
    """

    losses: Mapping[str, float] | None = None
    beta: float = 0.1
    weight: float = 1.0
    average: bool = False
    min_match: int = 3

    def __post_init__(self) -> None:
        if self.losses is not None and (not self.losses or set(self.losses) - set(LOSSES)):
            raise InputError(f"preference.losses takes weights of {', '.join(LOSSES)}, not {dict(self.losses)}")
        if self.beta <= 0 or self.weight <= 0 or self.min_match < 1:
            raise InputError(f"preference: beta, weight and min_match must be positive: {self}")


def text_logits(model: VLA, logits: Float[Tensor, "n v"], image_token: bool = True) -> Float[Tensor, "n t"]:
    """The logits of text tokens, without those of the action head; `image_token=False` masks the image token."""
    text, image = logits[:, : model.text_vocab].float(), model.processor.image
    if image_token or image >= model.text_vocab:
        return text
    return text.index_fill(1, torch.tensor([image], device=text.device), -torch.inf)


def token_logps(model: VLA, batch: Batch, image_token: bool = True) -> Float[Tensor, "b n"]:
    """The log-probability, among text tokens (`text_logits`), of each token after the first.

    It is 0 outside the last answer of a row.
    """
    answered = answer_mask(batch.labels)[:, 1:]
    rows, columns = torch.nonzero(answered, as_tuple=True)
    hidden = model.encode(batch)
    logits = text_logits(model, model.backbone.logits(hidden[rows, columns]), image_token)
    logps = logits.log_softmax(-1).gather(1, batch.labels[rows, columns + 1, None]).squeeze(1)
    return logps.new_zeros(answered.shape).index_put((rows, columns), logps)


def answer_mask(labels: Int[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """The mask of each row's last answer; earlier answers of a conversation are context."""
    labelled = labels != IGNORE
    starts = labelled & ~torch.cat([torch.zeros_like(labelled[:, :1]), labelled[:, :-1]], 1)
    number = starts.cumsum(1)
    return labelled & (number == number[:, -1:])


def changed(a: Sequence[int], b: Sequence[int], min_match: int = 3) -> tuple[list[bool], list[bool]]:
    """For both answers, which tokens are outside segments of at least `min_match` tokens that they share."""
    masks = [True] * len(a), [True] * len(b)
    for i, j, size in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        if size >= min_match:
            masks[0][i : i + size] = [False] * size
            masks[1][j : j + size] = [False] * size
    return masks


def token_weights(labels: Int[Tensor, "b l"], objective: Objective) -> Float[Tensor, "b n"]:
    """The weight of each token in the log-probability of its answer; 0 outside the answer.

    The first half of the rows are the chosen answers, the second half the rejected ones.
    """
    answered = answer_mask(labels)
    weights = answered.float()
    half = len(labels) // 2
    for i in range(half if objective.weight != 1 else 0):
        pair = (i, i + half)
        one, other = (labels[row][answered[row]].tolist() for row in pair)
        marks = changed(one, other, objective.min_match)
        for row, mark in zip(pair, marks, strict=True):
            weights[row, answered[row]] += (objective.weight - 1) * torch.tensor(mark, device=labels.device)
    if objective.average:
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-9)
    return weights[:, 1:]


def preference_loss(
    policy: Float[Tensor, "b n"],
    reference: Float[Tensor, "b n"],
    weights: Float[Tensor, "b n"],
    objective: Objective,
) -> tuple[Float[Tensor, ""], Float[Tensor, "p"]]:
    """The mean loss of the pairs, and the margin r_chosen - r_rejected of each.

    `policy` and `reference` are log-probabilities of tokens; the rows are as in `token_weights`.
    """
    chosen, rejected = (objective.beta * ((policy - reference) * weights).sum(1)).chunk(2)
    margin, total = chosen - rejected, policy.new_zeros(())
    for name, share in (objective.losses or {"sigmoid": 1.0}).items():
        if name == "sigmoid":
            part = -logsigmoid(margin).mean()
        elif name == "bco_pair":
            part = (-logsigmoid(chosen) - logsigmoid(-rejected)).mean()
        else:
            mask = weights.chunk(2)[0] > 0
            part = -policy.chunk(2)[0][mask].mean()
        total = total + share * part
    return total, margin.detach()
