"""POPE-sim: object existence (POPE: Li et al. 2023; pairs as in MME: Fu et al. 2023)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from vla.datasets.questions import Query
from vla.envs.objects import COLORS, SHAPES
from vla.envs.random_scene import random_objects
from vla.evaluation.vlm.probes.probe import Probe, by_unit
from vla.evaluation.vlm.probes.scenes import Picture, numbers, studio
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, question_prompt, ratio
from vla.evaluation.vlm.scoring.files import Answers, Entry
from vla.evaluation.vlm.scoring.yesno import POPE, yes_or_no

EVERY = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)


def entries(n: int, seed: int) -> dict[str, Entry]:
    """Two questions per scene and category, one with the answer yes and one with the answer no.

    The object of the negative question: random: any absent object; popular: the absent object that most scenes of the
    probe have; adversarial: the object that was removed from the scene (the counterfactual of the positive question).
    """
    pairs = _pairs(n, seed)
    common = Counter(thing.name for full, *_ in pairs for thing in full.view.visible)
    popular = sorted(EVERY, key=lambda name: -common[name])
    found: dict[str, Entry] = {}
    for number, (full, without, target) in enumerate(pairs):
        rng = np.random.default_rng([seed, number, 1])
        present_names = sorted({thing.name for thing in full.view.visible})
        absent = [name for name in popular if _count(full, name) == 0]
        cases = {
            "random": (str(rng.choice(present_names)), full, str(rng.choice(absent))),
            "popular": (str(rng.choice(present_names)), full, absent[0]),
            "adversarial": (target, without, target),
        }
        for category, (present, other, missing) in cases.items():
            for label, picture, name in (("yes", full, present), ("no", other, missing)):
                article = "an" if name[0] in "aeiou" else "a"
                found[f"{number}/{category}/{label}"] = {
                    "image": picture.image,
                    "question": f"is there {article} {name}?",
                    "answer": label,
                    "category": category,
                }
    return found


def _pairs(n: int, seed: int) -> list[tuple[Picture, Picture, str]]:
    """Pairs of scenes: with a unique object, and the same scene without it."""
    found: list[tuple[Picture, Picture, str]] = []
    with studio() as camera:
        scenes = numbers(seed)
        while len(found) < n:
            number = next(scenes)
            objects = random_objects(np.random.default_rng([number, 7]))
            full = camera.show(objects, number)
            index = number % len(objects)
            name = full.scene.objects[index].name
            if _count(full, name) != 1 or len(full.view.visible) < 2:
                continue
            without = camera.show(objects, number, without=index)
            if _count(without, name) == 0:
                found.append((full, without, name))
    return found


def _count(picture: Picture, name: str) -> int | None:
    return picture.view.count(Query(*name.split()))


def _units(questions: Mapping[str, Entry], predictions: Answers) -> list[Unit]:
    """Sums: those of POPE, correct counterfactual pairs, and counterfactual pairs."""
    units = []
    for (_, category), ids in by_unit(questions).items():
        yes, no = (yes_or_no(predictions[ids[label]]) for label in ("yes", "no"))
        pair = (yes == "yes" and no == "no", True) if category == "adversarial" else (False, False)
        cells = (yes == "yes", no == "yes", no == "no", yes != "yes", not no)
        units.append(Unit(tuple(map(float, (*cells, *pair))), (("category", category),)))
    return units


def _rates(sums: Float[np.ndarray, "k 7"]) -> dict[str, Float[np.ndarray, " k"]]:
    return POPE.rates(sums[:, :5]) | {"counterfactual_pairs": ratio(sums[:, 5], sums[:, 6])}


def _wrong(entry: Entry, prediction: str) -> float:
    """Hallucinated objects weigh more than missed ones."""
    return float(yes_or_no(prediction) != entry["answer"]) * (1 + (entry["answer"] == "no"))


POPE_SIM = Probe(entries, Benchmark(_units, _rates, question_prompt()), _wrong)
