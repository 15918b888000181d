"""Spatial relations: each pair of objects asked four ways, so that an answer can contradict another."""

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
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, ask, ratio
from vla.evaluation.vlm.scoring.files import Answers, Entry
from vla.evaluation.vlm.scoring.yesno import yes_or_no

RELATIONS = {
    "left, in the image": ("left of the", "right of the", ""),
    "left, of the robot": ("left of the", "right of the", "as the robot sees it, "),
    "closer to the robot": ("closer to the robot than the", "farther from the robot than the", ""),
}
"""Each with its opposite, and the frame that the question names."""
WAYS = ("plain", "swapped", "opposite", "negated")


def _gaps(a: SceneObject, b: SceneObject) -> dict[str, float]:
    """How far the relation holds of a and b, in margins: below -1 it does not, between it is unclear."""
    image = (b.centers[MAIN_CAMERA][0] - a.centers[MAIN_CAMERA][0]) / LATERAL_MARGIN
    robot = (a.position[1] - b.position[1]) / DEPTH_MARGIN  # y is to the robot's left
    ahead = (b.position[0] - a.position[0]) / DEPTH_MARGIN
    radial = (math.hypot(*b.position[:2]) - math.hypot(*a.position[:2])) / DEPTH_MARGIN
    closer = math.copysign(min(abs(ahead), abs(radial)), ahead) if ahead * radial > 0 else 0.0
    return dict(zip(RELATIONS, (image, robot, closer), strict=True))


def _pair(picture: Picture, rng: np.random.Generator) -> tuple[SceneObject, SceneObject] | None:
    """Two objects, of each of which there is one alone, for which every relation is clear."""
    named = [thing for thing in picture.view.visible if picture.view.references(thing)]
    clear = [pair for pair in permutations(named, 2) if min(map(abs, _gaps(*pair).values())) > 1]
    clear = [(a, b) for a, b in clear if a.name != b.name]
    return clear[int(rng.integers(len(clear)))] if clear else None


def entries(n: int, seed: int) -> dict[str, Entry]:
    """Of a pair of objects of each scene each relation: as it is, with the objects swapped, its opposite, denied."""
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
                for way, text in zip(WAYS, texts, strict=True):
                    answer = "yes" if (gap > 0) == (way == "plain") else "no"
                    found[f"{scene}/{relation}/{way}"] = {
                        "image": picture.image,
                        "question": text,
                        "answer": answer,
                    }
    return found


def _units(questions: Mapping[str, Entry], said: Answers) -> list[Unit]:
    """A pair and relation is a unit. Sums: right answers, answers, whether all agree, 1."""
    units = []
    for (_, relation), ids in by_unit(questions).items():
        read = {way: yes_or_no(said[i]) for way, i in ids.items()}
        right = sum(read[way] == questions[i]["answer"] for way, i in ids.items())
        agree = all({read[way], read["plain"]} == {"yes", "no"} for way in WAYS[1:])
        units.append(Unit((float(right), float(len(ids)), float(agree), 1.0), (("relation", relation),)))
    return units


def _rates(sums: Float[np.ndarray, "k 4"]) -> dict[str, Float[np.ndarray, " k"]]:
    return {"accuracy": ratio(sums[:, 0], sums[:, 1]), "consistency": ratio(sums[:, 2], sums[:, 3])}


def _error(entry: Entry, said: str) -> float:
    return float(yes_or_no(said) != entry["answer"])


SPATIAL = Probe(entries, Benchmark(_units, _rates, ask()), _error)
