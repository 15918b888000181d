"""POPE-sim: is an object there that is not? (POPE: Li et al. 2023; pairs as in MME: Fu et al. 2023.)"""

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
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, ask, ratio
from vla.evaluation.vlm.scoring.files import Answers, Entry
from vla.evaluation.vlm.scoring.yesno import POPE, yes_or_no

EVERY = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)


def entries(n: int, seed: int) -> dict[str, Entry]:
    """Two questions of each scene in each category, one whose answer is yes and one whose is no.

    What the negative names: random: any object; popular: the one that most scenes of the probe have; adversarial: one
    that was there, in the same picture without it (the counterfactual of the positive).
    """
    pairs = _pairs(n, seed)
    common = Counter(thing.name for whole, *_ in pairs for thing in whole.view.visible)
    popular = sorted(EVERY, key=lambda name: -common[name])
    found: dict[str, Entry] = {}
    for number, (whole, without, target) in enumerate(pairs):
        rng = np.random.default_rng([seed, number, 1])
        there = sorted({thing.name for thing in whole.view.visible})
        absent = [name for name in popular if _count(whole, name) == 0]
        asked = {
            "random": (str(rng.choice(there)), whole, str(rng.choice(absent))),
            "popular": (str(rng.choice(there)), whole, absent[0]),
            "adversarial": (target, without, target),
        }
        for category, (present, other, missing) in asked.items():
            for label, picture, name in (("yes", whole, present), ("no", other, missing)):
                article = "an" if name[0] in "aeiou" else "a"
                found[f"{number}/{category}/{label}"] = {
                    "image": picture.image,
                    "question": f"is there {article} {name}?",
                    "answer": label,
                    "category": category,
                }
    return found


def _pairs(n: int, seed: int) -> list[tuple[Picture, Picture, str]]:
    """Scenes, each with an object of which there is one alone, and the same without it."""
    found: list[tuple[Picture, Picture, str]] = []
    with studio() as camera:
        scenes = numbers(seed)
        while len(found) < n:
            number = next(scenes)
            objects = random_objects(np.random.default_rng([number, 7]))
            whole = camera.show(objects, number)
            place = number % len(objects)
            name = whole.scene.objects[place].name
            if _count(whole, name) != 1 or len(whole.view.visible) < 2:
                continue
            without = camera.show(objects, number, without=place)
            if _count(without, name) == 0:
                found.append((whole, without, name))
    return found


def _count(picture: Picture, name: str) -> int | None:
    return picture.view.count(Query(*name.split()))


def _units(questions: Mapping[str, Entry], said: Answers) -> list[Unit]:
    """Sums: POPE's, then the counterfactual pairs that are both right, and all such pairs."""
    units = []
    for (_, category), ids in by_unit(questions).items():
        yes, no = (yes_or_no(said[ids[label]]) for label in ("yes", "no"))
        pair = (yes == "yes" and no == "no", True) if category == "adversarial" else (False, False)
        cells = (yes == "yes", no == "yes", no == "no", yes != "yes", not no)
        units.append(Unit(tuple(map(float, (*cells, *pair))), (("category", category),)))
    return units


def _rates(sums: Float[np.ndarray, "k 7"]) -> dict[str, Float[np.ndarray, " k"]]:
    return POPE.rates(sums[:, :5]) | {"counterfactual_pairs": ratio(sums[:, 5], sums[:, 6])}


def _wrong(entry: Entry, said: str) -> float:
    """Objects that are not there come before those that are missed."""
    return float(yes_or_no(said) != entry["answer"]) * (1 + (entry["answer"] == "no"))


POPE_SIM = Probe(entries, Benchmark(_units, _rates, ask()), _wrong)
