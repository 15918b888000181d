"""Zero-shot evaluation of image and text encoders: retrieval and classification by class names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla.datasets.questions import SHAPES

NAME = re.compile(rf"\b([a-z]+ (?:{'|'.join(SHAPES)}))\b")
"""Matches a colour and a shape in a caption."""
KS = (1, 5)


def recall(similarity: Float[Tensor, "n m"], correct: Bool[Tensor, "n m"], k: int) -> float:
    """Recall@k: the share of rows with a correct column among the k most similar ones."""
    best = similarity.topk(min(k, similarity.shape[1]), dim=1).indices
    return float(correct.gather(1, best).any(1).float().mean())


def zero_shot(
    images: Float[Tensor, "n d"], captions: Sequence[str], embed: Callable[[Sequence[str]], Float[Tensor, "m d"]]
) -> dict[str, float]:
    """Zero-shot scores on images of rendered scenes.

    Args:
        images: Unit embeddings of the images.
        captions: The caption of each image.
        embed: The text encoder.

    Returns:
        `text_recall@k` and `image_recall@k`: retrieval of captions and of images; equal captions count as correct.
        `class`: the accuracy of the nearest class ("a red cube") of all classes in the captions, being in the image.
        `class_chance`: the accuracy of a random class.
    """
    similarity = images @ embed(captions).T
    same = torch.tensor([[a == b for b in captions] for a in captions], device=similarity.device)
    scores = {f"text_recall@{k}": recall(similarity, same, k) for k in KS}
    scores |= {f"image_recall@{k}": recall(similarity.T, same, k) for k in KS}
    named = [set(NAME.findall(caption)) for caption in captions]
    classes = sorted(set().union(*named))
    if classes:
        shown = torch.tensor([[c in names for c in classes] for names in named], device=similarity.device)
        shown, visible = shown[shown.any(1)], shown.any(1)
        similarity_to_classes = images[visible] @ embed([f"a {c}" for c in classes]).T
        scores |= {"class": recall(similarity_to_classes, shown, 1), "class_chance": float(shown.float().mean())}
    return scores
