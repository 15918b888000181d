"""Counting, by a number and by pointing at each object (Molmo: Deitke et al. 2024, section 5)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from vla.datasets.questions import Query
from vla.envs.objects import COLORS, SHAPES, ObjectSpec
from vla.envs.tasks.task import scatter
from vla.evaluation.vlm.probes.probe import Probe, by_unit
from vla.evaluation.vlm.probes.scenes import SLOTS, numbers, studio
from vla.evaluation.vlm.scoring.answered import is_empty
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, question_prompt, ratio
from vla.evaluation.vlm.scoring.files import Answers, Entry
from vla.evaluation.vlm.vqa import normalize_answer

SPACING = 0.048
"""The distance between objects [m]; ten fit on the table."""
DISTRACTORS = 4
MOLMO = re.compile(r"""x\d*\s*=\s*["']?\s*([\d.]+)["']?\s+y\d*\s*=\s*["']?\s*([\d.]+)""")
PAIR = re.compile(r"(\d+(?:\.\d+)?)\s*[\s,]\s*(\d+(?:\.\d+)?)")


def entries(n: int, seed: int) -> dict[str, Entry]:
    """Two questions per scene, "count" and "point", about 0 to 10 objects of a color among distractors."""
    found: dict[str, Entry] = {}
    with studio() as camera:
        draws = numbers(seed)
        for scene in range(n):
            while True:
                draw = next(draws)
                objects, color = _layout(draw, scene % (SLOTS + 1))
                picture = camera.show(objects, draw)
                truth = picture.view.count(Query(color=color))
                if truth is not None:
                    break
            visible = [at for at, thing in enumerate(picture.scene.objects) if thing.color == color and thing.centers]
            placed = sum(thing.color == color for thing in objects)
            shared = {
                "image": picture.image,
                "truth": truth,
                "masks": camera.masks()[visible],
                "hidden": "some" if placed > truth else "none",
                "distractors": "some" if placed < len(objects) else "none",
            }
            for kind, text in (
                ("count", f"how many {color} objects are there?"),
                ("point", f"point to all {color} objects"),
            ):
                answer = str(truth) if kind == "count" else f"{truth} points"
                found[f"{scene}/{kind}"] = shared | {"question": text, "answer": answer}
    return found


def _layout(seed: int, count: int) -> tuple[tuple[ObjectSpec, ...], str]:
    """`count` objects of a color and up to `DISTRACTORS` objects of other colors."""
    rng = np.random.default_rng([seed, 23])
    color, *others = (str(name) for name in rng.permutation(list(COLORS)))
    more = int(rng.integers(0, min(DISTRACTORS, SLOTS - count) + 1)) if count else 1 + int(rng.integers(DISTRACTORS))
    points = scatter(rng, count + more, (0.15, 0.32), (-0.15, 0.15), spacing=SPACING)
    colors = [color] * count + [str(rng.choice(others)) for _ in range(more)]
    return tuple(
        ObjectSpec(c, str(rng.choice(SHAPES)), x, y, float(rng.uniform(-np.pi, np.pi)))
        for c, (x, y) in zip(colors, points, strict=True)
    ), color


def number(prediction: str) -> int | None:
    """The first integer of an answer, in digits or as a word up to ten."""
    return next((int(word) for word in normalize_answer(prediction).split() if word.isdecimal()), None)


def points(prediction: str) -> Float[np.ndarray, "p 2"]:
    """The points of an answer as fractions of the image, from Molmo's tags or pairs of numbers, in percent."""
    pairs = MOLMO.findall(prediction) or PAIR.findall(prediction)
    try:
        found = np.array([[float(x), float(y)] for x, y in pairs]).reshape(-1, 2) / 100
    except ValueError:  # such as "1.2.3" in a tag
        return np.zeros((0, 2))
    return found[((found >= 0) & (found <= 1)).all(1)]


def matched(at: Float[np.ndarray, "p 2"], masks: Bool[np.ndarray, "n h w"]) -> int:
    """The size of the maximum matching of points to the objects on which they lie (Kuhn 1955)."""
    from scipy.optimize import linear_sum_assignment

    if not len(at) or not len(masks):
        return 0
    height, width = masks.shape[1:]
    columns = np.minimum((at[:, 0] * width).astype(int), width - 1)
    rows = np.minimum((at[:, 1] * height).astype(int), height - 1)
    on = masks[:, rows, columns]
    return int(on[linear_sum_assignment(on, maximize=True)].sum())


def _units(questions: Mapping[str, Entry], predictions: Answers) -> list[Unit]:
    """One unit per scene. The error of an answer without a number is the true count, at least 1."""
    units = []
    for ids in by_unit(questions).values():
        entry, count = questions[ids["count"]], number(predictions[ids["count"]])
        at, truth = points(predictions[ids["point"]]), entry["truth"]
        error = max(truth, 1) if count is None else abs(count - truth)
        pointed = not is_empty(predictions[ids["point"]]) and len(at) == truth
        right = count == truth, count is not None and error <= 1
        sums = (*right, error, 1, pointed, matched(at, entry["masks"]), len(at), truth)
        groups = (("number", f"{truth:2}"), ("distractors", entry["distractors"]), ("hidden", entry["hidden"]))
        units.append(Unit(tuple(map(float, sums)), groups))
    return units


def _rates(sums: Float[np.ndarray, "k 8"]) -> dict[str, Float[np.ndarray, " k"]]:
    exact, near, error, scenes, pointed, hits, predicted, present = sums.T
    return {
        "exact": ratio(exact, scenes),
        "within_one": ratio(near, scenes),
        "mean_error": ratio(error, scenes),
        "point_then_count": ratio(pointed, scenes),
        "gain_by_pointing": ratio(pointed - exact, scenes),
        "point_precision": ratio(hits, predicted),
        "point_recall": ratio(hits, present),
    }


def _error(entry: Entry, prediction: str) -> float:
    count = len(points(prediction)) if entry["answer"].endswith("points") else number(prediction)
    return float(abs((count or 0) - entry["truth"]) if count is not None else entry["truth"] + 1)


COUNTING = Probe(entries, Benchmark(_units, _rates, question_prompt()), _error, tokens=64)
