"""The modality gap: the distance between embeddings of images and of their captions (Liang et al. 2022)."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from vla.datasets.questions import MAIN_CAMERA
from vla.errors import InputError
from vla.evaluation.vlm.answerer import Answerer, BackboneAnswerer
from vla.evaluation.vlm.probes.probe import ProbeResult, blank
from vla.evaluation.vlm.probes.scenes import Picture, numbers, studio
from vla.evaluation.vlm.scoring.benchmark import Draws, Unit, ratio, scored
from vla.evaluation.vlm.vqa import Case

STEPS = np.linspace(0.0, 1.5, 13)
"""Shifts of the image embeddings along the gap, in units of the gap."""
FOLDS = 5
RIDGE = 1e-2


def modality_gap(answerer: Answerer, n: int, seed: int, baseline: bool = True) -> ProbeResult:
    """Measures the gap on n images with distinct captions. Raises InputError for a hosted model."""
    if not isinstance(answerer, BackboneAnswerer):
        raise InputError("a hosted model has no accessible embeddings: remove modality-gap from probes")
    pictures, texts = _captioned(n, seed)
    images = [picture.image for picture in pictures]
    x, y = answerer.embed([{MAIN_CAMERA: image} for image in images], texts)
    found, drawn, nearest = measured(x, y)
    wrong = [i for i in range(n) if nearest[i] != i][:8]
    cases = tuple(Case(images[i], "the nearest caption", texts[nearest[i]], texts[i]) for i in wrong)
    blank_scores = {}
    if baseline:
        nothing, _ = answerer.embed([{MAIN_CAMERA: blank(images[0])}], texts[:1])
        scores = measured(np.repeat(nothing, n, axis=0), y)[0]["scores"]
        blank_scores = {name: float(score["value"]) for name, score in scores.items()}
    return ProbeResult(found, drawn, blank_scores, cases)


def _captioned(n: int, seed: int) -> tuple[list[Picture], list[str]]:
    """Images without objects of uncertain visibility, and their captions from left to right."""
    found: dict[str, Picture] = {}
    scenes = numbers(seed)
    with studio() as camera:
        while len(found) < n:
            picture = camera.sample(next(scenes))
            names = [t.name for t in sorted(picture.view.visible, key=lambda t: t.centers[MAIN_CAMERA])]
            if names and not picture.view.unsure:
                found.setdefault(" and ".join(f"a {name}" for name in names), picture)
    return list(found.values()), list(found)


def measured(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]) -> tuple[dict[str, Any], Draws, list[int]]:
    """Measures n pairs of embeddings.

    | score                     | value                                                                     |
    |---------------------------|---------------------------------------------------------------------------|
    | gap                       | distance between the means of the normalised embeddings                   |
    | image_cosine, text_cosine | mean cosine within images and within texts                                |
    | separable                 | cross-validated accuracy of a linear classifier of images against texts   |
    | recall_at_1               | share of images whose nearest text is their own                           |
    | recall_moved              | the same, with the images shifted along the gap by the best of `STEPS`    |

    Returns:
        The report, its bootstrap samples, and the index of the nearest text of each image.
    """
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x.astype(float), y.astype(float)))
    gap = x.mean(0) - y.mean(0)
    moved = [_nearest(x - step * gap, y) for step in STEPS]
    indices = np.arange(len(x))
    best = max(moved, key=lambda found: (found == indices).mean())
    hits = np.stack([_separated(x, y).mean(0), moved[0] == indices, best == indices, np.ones(len(x))], 1)
    units = [Unit((*x[i].tolist(), *y[i].tolist(), *hits[i].tolist())) for i in indices]
    width = x.shape[1]

    def rates(sums: Float[np.ndarray, "k s"]) -> dict[str, Float[np.ndarray, " k"]]:
        images, texts = sums[:, :width], sums[:, width : 2 * width]
        separable, first, after, count = sums[:, 2 * width :].T
        pairs = count * (count - 1)
        return {
            "gap": ratio(np.linalg.norm(images - texts, axis=1), count),
            "image_cosine": ratio((images**2).sum(1) - count, pairs),
            "text_cosine": ratio((texts**2).sum(1) - count, pairs),
            "separable": ratio(separable, count),
            "recall_at_1": ratio(first, count),
            "recall_moved": ratio(after, count),
        }

    return *scored(units, rates), moved[0].tolist()


def _nearest(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
    return np.asarray((x / np.linalg.norm(x, axis=1, keepdims=True) @ y.T).argmax(1))


def _separated(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, "2 n"]:
    """Which images and texts are classified correctly by a plane fitted on the other folds."""
    right = np.zeros((2, len(x)), bool)
    fold = np.arange(len(x)) % FOLDS
    for held in range(min(FOLDS, len(x))):
        training = fold != held
        rows = np.concatenate([x[training], y[training]])
        if not len(rows):
            continue
        middle = rows.mean(0)
        rows = rows - middle
        side = np.repeat([1.0, -1.0], training.sum())
        weights = rows.T @ np.linalg.solve(rows @ rows.T + RIDGE * np.eye(len(rows)), side)
        right[0, ~training], right[1, ~training] = (
            (x[~training] - middle) @ weights > 0,
            (y[~training] - middle) @ weights < 0,
        )
    return right
