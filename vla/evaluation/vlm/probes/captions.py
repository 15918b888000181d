"""CHAIR-sim: what captions name that is not in the picture, and what of it they name (Rohrbach et al. 2018)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice

import numpy as np
from jaxtyping import Float

from vla.envs.objects import COLORS
from vla.evaluation.vlm.probes.probe import Probe
from vla.evaluation.vlm.probes.scenes import numbers, studio
from vla.evaluation.vlm.scoring.answered import answered
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, ask, ratio
from vla.evaluation.vlm.scoring.chair import Vocabulary, singular
from vla.evaluation.vlm.scoring.files import Answers, Entry

WORDS = Vocabulary(
    {"cube": "cube", "box": "cube", "ball": "ball", "sphere": "ball", "cylinder": "cylinder", "can": "cylinder"}
    | {"brick": "brick", "block": "brick", "cone": "cone", "bowl": "bowl", "drawer": "drawer", "button": "button"}
    | {"cup": "cup", "mug": "cup", "bottle": "bottle", "book": "book", "plate": "plate", "apple": "apple"}
)
"""The tasks' objects, and what captions of tables often name besides."""
QUESTION = "describe the image"


def entries(n: int, seed: int) -> dict[str, Entry]:
    with studio() as camera:
        pictures = [camera.sample(number) for number in islice(numbers(seed), n)]
    found: dict[str, Entry] = {}
    for number, picture in enumerate(pictures):
        seen = sorted(thing.name for thing in picture.view.visible)
        perhaps = sorted({thing.name for thing in (*picture.view.visible, *picture.view.unsure)})
        answer = ", ".join(f"a {name}" for name in seen) or "no objects"
        found[str(number)] = {
            "image": picture.image,
            "question": QUESTION,
            "answer": answer,
            "seen": seen,
            "perhaps": perhaps,
        }
    return found


def attributed(caption: str) -> list[str]:
    """ "<color> <object>" of each object that a caption gives a color right before it, a word between them at most."""
    words = re.findall(r"[a-z]+|[.,;]", caption.lower())
    found = []
    for place, word in enumerate(words):
        thing = WORDS.category.get(singular(word))
        color = next((w for w in reversed(words[max(place - 2, 0) : place]) if w in COLORS or w in ".,;"), None)
        if thing and color in COLORS:
            found.append(f"{color} {thing}")
    return found


def _judge(entry: Entry, said: str) -> tuple[float, ...]:
    """Hallucinated and all mentions; whether any is; 1; named and all objects; wrong and all colored mentions."""
    kinds = {name.split()[1] for name in entry["perhaps"]}
    named, colored = WORDS.mentions(said), attributed(said)
    wrong = sum(thing not in kinds for thing in named)
    there = {name.split()[1] for name in entry["seen"]}
    attributes = sum(name not in entry["perhaps"] for name in colored)
    captions, found = answered(said), len(there & set(named))
    counts = (wrong, len(named), wrong > 0, captions, found, len(there), attributes, len(colored))
    return tuple(map(float, counts))


def _units(questions: Mapping[str, Entry], said: Answers) -> list[Unit]:
    return [Unit(_judge(entry, said[i])) for i, entry in questions.items()]


def _rates(sums: Float[np.ndarray, "k 8"]) -> dict[str, Float[np.ndarray, " k"]]:
    wrong, named, captions_wrong, captions, found, there, attributes, colored = sums.T
    return {
        "chair_i": ratio(wrong, named),
        "chair_s": ratio(captions_wrong, captions),
        "recall": ratio(found, there),
        "attribute_chair_i": ratio(attributes, colored),
        "mentions": ratio(named, captions),
    }


def _error(entry: Entry, said: str) -> float:
    wrong, *_, attributes, _ = _judge(entry, said)
    return wrong + attributes / 10


CHAIR_SIM = Probe(entries, Benchmark(_units, _rates, ask()), _error, tokens=96, role="annotator")
