"""What image and text encoders know without being trained for it: retrieval, and classes told apart by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla.datasets.questions import SHAPES

NAME = re.compile(rf"\b([a-z]+ (?:{'|'.join(SHAPES)}))\b")
"""A color and a shape in a caption."""
KS = (1, 5)


def recall(similarity: Float[Tensor, "n m"], right: Bool[Tensor, "n m"], k: int) -> float:
    """The share of rows that have a right column among their k best."""
    best = similarity.topk(min(k, similarity.shape[1]), dim=1).indices
    return float(right.gather(1, best).any(1).float().mean())


def zero_shot(
    images: Float[Tensor, "n d"], captions: Sequence[str], embed: Callable[[Sequence[str]], Float[Tensor, "m d"]]
) -> dict[str, float]:
    """Scores of pictures of rendered scenes and their captions, with the encoder of texts `embed`.

    `text_recall@k` finds the caption of an image among all, `image_recall@k` an image of a caption; equal captions are
    as right. `class` is how often the object ("a red cube", of all that the captions name) that is nearest to an image
    is in it, and `class_chance` how often one drawn at random is.
    """
    similarity = images @ embed(captions).T
    same = torch.tensor([[a == b for b in captions] for a in captions], device=similarity.device)
    scores = {f"text_recall@{k}": recall(similarity, same, k) for k in KS}
    scores |= {f"image_recall@{k}": recall(similarity.T, same, k) for k in KS}
    named = [set(NAME.findall(caption)) for caption in captions]
    classes = sorted(set().union(*named))
    if classes:
        shown = torch.tensor([[c in names for c in classes] for names in named], device=similarity.device)
        shown, some = shown[shown.any(1)], shown.any(1)
        near = images[some] @ embed([f"a {c}" for c in classes]).T
        scores |= {"class": recall(near, shown, 1), "class_chance": float(shown.float().mean())}
    return scores
