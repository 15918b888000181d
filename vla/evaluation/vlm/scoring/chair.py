"""CHAIR: hallucinated objects in captions of COCO images (Rohrbach et al. 2018).

The references are a folder with COCO's instances*.json and captions*.json and the official synonyms.txt: one category
per line, its name and synonyms separated by ", ".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vla.datasets.formats.json_stream import read_list
from vla.errors import InputError
from vla.evaluation.vlm.scoring.answered import answered
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, ratio
from vla.evaluation.vlm.scoring.files import Answers, Entry

# Compounds, so that "hot dog" is not a dog and "home plate" not a plate.
PAIRS = (
    "motor bike,motor cycle,air plane,traffic light,street light,traffic signal,stop light,fire hydrant,stop sign,"
    "parking meter,suit case,sports ball,baseball bat,baseball glove,tennis racket,wine glass,hot dog,cell phone,"
    "mobile phone,teddy bear,hair drier,potted plant,laptop computer,home plate,train track"
)
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
DOUBLE = (
    {pair: pair for pair in PAIRS.split(",")}
    | {f"{age} {animal}": animal for animal in ANIMALS for age in ("baby", "adult")}
    | {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
    | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}
)


@lru_cache(2**16)
def singular(word: str) -> str:
    """The singular by the rules of the package `pattern`, as in the official code; TextBlob has a copy of them.

    A final s is removed from unknown words: "bus" becomes "bu", "glass" "glas", and "ties" "ty".
    """
    from textblob.en.inflect import singularize

    return str(singularize(word))


def tokens(caption: str) -> list[str]:
    """The words and punctuation of a caption in lower case, as NLTK's `word_tokenize`."""
    from nltk.tokenize import NLTKWordTokenizer

    split = NLTKWordTokenizer().tokenize
    return [token for sentence in re.split(r"(?<=[.!?])\s+", caption.lower()) for token in split(sentence)]


@dataclass(frozen=True)
class Vocabulary:
    """The category of each word and compound."""

    category: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Reads synonyms.txt. Raises InputError if it does not exist."""
        try:
            lines = [line.strip().split(", ") for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        except OSError as error:
            raise InputError(f"{path} is missing: copy data/synonyms.txt from CHAIR's official code") from error
        return cls({name: names[0] for names in lines for name in names})

    def mentions(self, caption: str) -> list[str]:
        """The categories of all object mentions in a caption."""
        words = [singular(token) for token in tokens(caption)]
        things: list[str] = []
        index = 0
        while index < len(words):
            double = DOUBLE.get(" ".join(words[index : index + 2]))
            things.append(double or words[index])
            index += 2 if double else 1
        if "toilet" in things:  # its seat is not a chair
            things = [thing for thing in things if thing != "seat"]
        return [self.category[thing] for thing in things if thing in self.category]


def _entries(path: Path) -> dict[str, Entry]:
    """The segmented objects and the captions of each image."""
    words = Vocabulary.read(path / "synonyms.txt")
    images: dict[str, dict[str, object]] = {}
    for kind in ("instances", "captions"):
        files = sorted(path.glob(f"{kind}*.json"))
        if not files:
            raise InputError(f"{path} has no {kind}*.json of COCO: both instances and captions are needed")
        for file in files:
            names = {c["id"]: c["name"] for c in read_list(file, "categories")} if kind == "instances" else {}
            for note in read_list(file, "annotations"):
                image = images.setdefault(
                    str(note["image_id"]), {"objects": set(), "captions": [], "vocabulary": words, "question": ""}
                )
                if kind == "captions":
                    image["captions"].append(note["caption"])  # type: ignore[attr-defined]
                elif (name := names[note["category_id"]]) in words.category:
                    image["objects"].add(words.category[name])  # type: ignore[attr-defined]
                else:
                    raise InputError(f"{path / 'synonyms.txt'} has no category {name!r} of {file}")
    return dict(images)


def _units(questions: Mapping[str, Entry], predictions: Answers) -> list[Unit]:
    """Sums: hallucinated mentions, mentions, captions with a hallucination, captions.

    Objects are present if they are segmented or in a reference caption. Empty answers are excluded, since they would
    count as faultless.
    """
    units = []
    for i, entry in questions.items():
        words: Vocabulary = entry["vocabulary"]
        present = set(entry["objects"]).union(*(words.mentions(caption) for caption in entry["captions"]))
        named = words.mentions(predictions[i])
        wrong = sum(thing not in present for thing in named)
        sums = (wrong, len(named), wrong > 0, 1) if answered(predictions[i]) else (0, 0, 0, 0)
        units.append(Unit(tuple(map(float, sums))))
    return units


def _rates(sums: Float[np.ndarray, "k 4"]) -> dict[str, Float[np.ndarray, " k"]]:
    wrong, named, captions_wrong, captions = sums.T
    return {"chair_i": ratio(wrong, named), "chair_s": ratio(captions_wrong, captions)}


CHAIR = Benchmark(_units, _rates, lambda _: "Please describe this image in detail.", _entries, part=True)
