"""CHAIR: the objects that captions of COCO's images name and that are not there (Rohrbach et al. 2018).

The references are a folder with COCO's instances*.json and captions*.json and the official list of synonyms,
synonyms.txt: a category a line, its name and what else names it, parted by ", ".
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

# Two words that are one thing, so that "hot dog" is no dog and "home plate" no plate.
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
    """By the rules of the package `pattern` as the official code uses it, of which TextBlob has a copy.

    They take a final s off whatever they do not know: "bus" becomes "bu", "glass" "glas", and "ties" "ty".
    """
    from textblob.en.inflect import singularize

    return str(singularize(word))


def tokens(caption: str) -> list[str]:
    """The words and marks of a caption in lower case, parted as NLTK's `word_tokenize` does."""
    from nltk.tokenize import NLTKWordTokenizer

    split = NLTKWordTokenizer().tokenize
    return [token for sentence in re.split(r"(?<=[.!?])\s+", caption.lower()) for token in split(sentence)]


@dataclass(frozen=True)
class Vocabulary:
    """`category` of each word and pair of words."""

    category: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Raises InputError where there is no such file."""
        try:
            lines = [line.strip().split(", ") for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        except OSError as error:
            raise InputError(f"{path} is needed: the file data/synonyms.txt of CHAIR's official code") from error
        return cls({name: names[0] for names in lines for name in names})

    def mentions(self, caption: str) -> list[str]:
        """The categories of the objects that a caption names, as often as it does."""
        words = [singular(token) for token in tokens(caption)]
        things: list[str] = []
        place = 0
        while place < len(words):
            double = DOUBLE.get(" ".join(words[place : place + 2]))
            things.append(double or words[place])
            place += 2 if double else 1
        if "toilet" in things:  # whose seat is no chair
            things = [thing for thing in things if thing != "seat"]
        return [self.category[thing] for thing in things if thing in self.category]


def _entries(path: Path) -> dict[str, Entry]:
    """By image: its objects by segmentation, and its captions."""
    words = Vocabulary.read(path / "synonyms.txt")
    images: dict[str, dict[str, object]] = {}
    for kind in ("instances", "captions"):
        files = sorted(path.glob(f"{kind}*.json"))
        if not files:
            raise InputError(f"{path} holds no {kind}*.json of COCO: both kinds are needed")
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


def _units(questions: Mapping[str, Entry], said: Answers) -> list[Unit]:
    """What is there: what is segmented or named by a reference caption. Sums: hallucinated mentions, mentions,
    captions with a hallucination, captions. An answer that says nothing is no caption: it would be without fault."""
    units = []
    for i, entry in questions.items():
        words: Vocabulary = entry["vocabulary"]
        there = set(entry["objects"]).union(*(words.mentions(caption) for caption in entry["captions"]))
        named = words.mentions(said[i])
        wrong = sum(thing not in there for thing in named)
        sums = (wrong, len(named), wrong > 0, 1) if answered(said[i]) else (0, 0, 0, 0)
        units.append(Unit(tuple(map(float, sums))))
    return units


def _rates(sums: Float[np.ndarray, "k 4"]) -> dict[str, Float[np.ndarray, " k"]]:
    wrong, named, captions_wrong, captions = sums.T
    return {"chair_i": ratio(wrong, named), "chair_s": ratio(captions_wrong, captions)}


CHAIR = Benchmark(_units, _rates, lambda _: "Please describe this image in detail.", _entries, part=True)
