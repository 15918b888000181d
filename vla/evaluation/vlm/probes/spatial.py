"""Spatial relations: four variants of each question, which test consistency."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import permutations

import numpy as np
from jaxtyping import Float

from vla.common.scene_objects import SceneObject
from vla.datasets.questions import DEPTH_MARGIN, LATERAL_MARGIN, MAIN_CAMERA
from vla.evaluation.vlm.probes.probe import Probe, by_unit
from vla.evaluation.vlm.probes.scenes import Picture, numbers, studio
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, question_prompt, ratio
from vla.evaluation.vlm.scoring.files import Answers, Entry
from vla.evaluation.vlm.scoring.yesno import yes_or_no

RELATIONS = {
    "left, in the image": ("left of the", "right of the", ""),
    "left, of the robot": ("left of the", "right of the", "as the robot sees it, "),
    "closer to the robot": ("closer to the robot than the", "farther from the robot than the", ""),
}
"""The text of each relation and of its opposite, and the reference frame in the question."""
VARIANTS = ("plain", "swapped", "opposite", "negated")


def _gaps(a: SceneObject, b: SceneObject) -> dict[str, float]:
    """The signed distance of each relation of a and b, in margins: true above 1, false below -1, else ambiguous."""
    image = (b.centers[MAIN_CAMERA][0] - a.centers[MAIN_CAMERA][0]) / LATERAL_MARGIN
    robot = (a.position[1] - b.position[1]) / DEPTH_MARGIN  # y is to the robot's left
    ahead = (b.position[0] - a.position[0]) / DEPTH_MARGIN
    radial = (math.hypot(*b.position[:2]) - math.hypot(*a.position[:2])) / DEPTH_MARGIN
    closer = math.copysign(min(abs(ahead), abs(radial)), ahead) if ahead * radial > 0 else 0.0
    return dict(zip(RELATIONS, (image, robot, closer), strict=True))


def _pair(picture: Picture, rng: np.random.Generator) -> tuple[SceneObject, SceneObject] | None:
    """Two unique objects for which no relation is ambiguous."""
    named = [thing for thing in picture.view.visible if picture.view.references(thing)]
    clear = [pair for pair in permutations(named, 2) if min(map(abs, _gaps(*pair).values())) > 1]
    clear = [(a, b) for a, b in clear if a.name != b.name]
    return clear[int(rng.integers(len(clear)))] if clear else None


def entries(n: int, seed: int) -> dict[str, Entry]:
    """Questions about each relation of a pair of objects per scene: plain, swapped, opposite and negated."""
    found: dict[str, Entry] = {}
    with studio() as camera:
        draws = numbers(seed)
        for scene in range(n):
            pair = None
            while pair is None:
                number = next(draws)
                picture = camera.sample(number)
                pair = _pair(picture, np.random.default_rng([number, 31]))
            a, b = (thing.name for thing in pair)
            for relation, gap in _gaps(*pair).items():
                words, opposite, frame = RELATIONS[relation]
                texts = (
                    f"{frame}is the {a} {words} {b}?",
                    f"{frame}is the {b} {words} {a}?",
                    f"{frame}is the {a} {opposite} {b}?",
                    f"{frame}is it false that the {a} is {words} {b}?",
                )
                for variant, text in zip(VARIANTS, texts, strict=True):
                    answer = "yes" if (gap > 0) == (variant == "plain") else "no"
                    found[f"{scene}/{relation}/{variant}"] = {
                        "image": picture.image,
                        "question": text,
                        "answer": answer,
                    }
    return found


def _units(questions: Mapping[str, Entry], predictions: Answers) -> list[Unit]:
    """One unit per pair and relation. Sums: correct answers, answers, whether all are consistent, 1."""
    units = []
    for (_, relation), ids in by_unit(questions).items():
        read = {variant: yes_or_no(predictions[i]) for variant, i in ids.items()}
        right = sum(read[variant] == questions[i]["answer"] for variant, i in ids.items())
        agree = all({read[variant], read["plain"]} == {"yes", "no"} for variant in VARIANTS[1:])
        units.append(Unit((float(right), float(len(ids)), float(agree), 1.0), (("relation", relation),)))
    return units


def _rates(sums: Float[np.ndarray, "k 4"]) -> dict[str, Float[np.ndarray, " k"]]:
    return {"accuracy": ratio(sums[:, 0], sums[:, 1]), "consistency": ratio(sums[:, 2], sums[:, 3])}


def _error(entry: Entry, prediction: str) -> float:
    return float(yes_or_no(prediction) != entry["answer"])


SPATIAL = Probe(entries, Benchmark(_units, _rates, question_prompt()), _error)
