"""CHAIR-sim: hallucinated objects and recall of captions (Rohrbach et al. 2018)."""

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
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, question_prompt, ratio
from vla.evaluation.vlm.scoring.chair import Vocabulary, singular
from vla.evaluation.vlm.scoring.files import Answers, Entry

WORDS = Vocabulary(
    {"cube": "cube", "box": "cube", "ball": "ball", "sphere": "ball", "cylinder": "cylinder", "can": "cylinder"}
    | {"brick": "brick", "block": "brick", "cone": "cone", "bowl": "bowl", "drawer": "drawer", "button": "button"}
    | {"cup": "cup", "mug": "cup", "bottle": "bottle", "book": "book", "plate": "plate", "apple": "apple"}
)
"""The objects of the tasks, and other objects that captions of tables often mention."""
QUESTION = "describe the image"


def entries(n: int, seed: int) -> dict[str, Entry]:
    """The images of n random scenes, with the names of their visible and possibly visible objects."""
    with studio() as camera:
        pictures = [camera.sample(number) for number in islice(numbers(seed), n)]
    found: dict[str, Entry] = {}
    for number, picture in enumerate(pictures):
        visible = sorted(thing.name for thing in picture.view.visible)
        possible = sorted({thing.name for thing in (*picture.view.visible, *picture.view.unsure)})
        answer = ", ".join(f"a {name}" for name in visible) or "no objects"
        found[str(number)] = {
            "image": picture.image,
            "question": QUESTION,
            "answer": answer,
            "visible": visible,
            "possible": possible,
        }
    return found


def attributed(caption: str) -> list[str]:
    """The objects of a caption with a color up to two words before them, as "<color> <object>"."""
    words = re.findall(r"[a-z]+|[.,;]", caption.lower())
    found = []
    for index, word in enumerate(words):
        thing = WORDS.category.get(singular(word))
        color = next((w for w in reversed(words[max(index - 2, 0) : index]) if w in COLORS or w in ".,;"), None)
        if thing and color in COLORS:
            found.append(f"{color} {thing}")
    return found


def _judge(entry: Entry, prediction: str) -> tuple[float, ...]:
    """The sums of a caption.

    Hallucinated mentions, mentions, whether any is hallucinated, captions, recalled objects, visible objects, wrong
    coloured mentions, coloured mentions.
    """
    kinds = {name.split()[1] for name in entry["possible"]}
    named, colored = WORDS.mentions(prediction), attributed(prediction)
    wrong = sum(thing not in kinds for thing in named)
    present = {name.split()[1] for name in entry["visible"]}
    attributes = sum(name not in entry["possible"] for name in colored)
    captions, found = answered(prediction), len(present & set(named))
    counts = (wrong, len(named), wrong > 0, captions, found, len(present), attributes, len(colored))
    return tuple(map(float, counts))


def _units(questions: Mapping[str, Entry], predictions: Answers) -> list[Unit]:
    return [Unit(_judge(entry, predictions[i])) for i, entry in questions.items()]


def _rates(sums: Float[np.ndarray, "k 8"]) -> dict[str, Float[np.ndarray, " k"]]:
    wrong, named, captions_wrong, captions, found, present, attributes, colored = sums.T
    return {
        "chair_i": ratio(wrong, named),
        "chair_s": ratio(captions_wrong, captions),
        "recall": ratio(found, present),
        "attribute_chair_i": ratio(attributes, colored),
        "mentions": ratio(named, captions),
    }


def _error(entry: Entry, prediction: str) -> float:
    wrong, *_, attributes, _ = _judge(entry, prediction)
    return wrong + attributes / 10


CHAIR_SIM = Probe(entries, Benchmark(_units, _rates, question_prompt()), _error, tokens=96, role="annotator")
