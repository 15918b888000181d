"""Preference pairs of answers: from ground truth, and from the files of RLHF-V and LLaVA-RLHF.

If a store's answers are the simulator's ground truth, the rejected answer is the true one with one error inserted:

| error    | in a description ("detail", or "caption" beside one), or in a short answer           |
|----------|--------------------------------------------------------------------------------------|
| object   | an object is replaced by an absent one; for "existence", the opposite                |
| color    | an object gets a color with which it is absent; for "color", another color           |
| shape    | an object gets a shape with which it is absent; for "shape", another shape           |
| count    | another number of objects                                                            |
| relation | another object is closest to the robot; for "relation", the opposite                 |

| file       | fields                                                                              |
|------------|-------------------------------------------------------------------------------------|
| RLHF-V     | parquet: image {bytes, path}, text: JSON {question, chosen, rejected}               |
|            | (Yu et al. 2024, arXiv 2312.00849)                                                  |
| LLaVA-RLHF | JSON: image, conversations, output_1, output_2 {value}, preference: 1 or 2          |
|            | (Sun et al. 2023, arXiv 2309.14525)                                                 |
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vla.datasets.formats.json_stream import read_list
from vla.datasets.formats.vqa_entries import BadEntry, path_inside, pixels
from vla.datasets.instructions import NUMBERS
from vla.datasets.questions import COLORS, SHAPES, Question
from vla.datasets.source_files import reading_file
from vla.datasets.vqa import Split, VqaStore
from vla.errors import InputError
from vla.types import Example

OBJECT = re.compile(r"\b(an?|another) (\w+) (?!table\b)(\w+)")
COUNT = re.compile(r"^there (is|are) (\w+) objects?")
CLOSEST = re.compile(r"the (\w+ \w+) is closest")
OPPOSITE = {"yes": "no", "no": "yes", "left": "right", "right": "left"}


@dataclass(frozen=True)
class Pair:
    """A prompt with two answers, of which `chosen` is preferred.

    `history` are the earlier turns of the conversation. `kind` is the error in the rejected answer. `facts` is the
    simulator's description of the image, if there is one.
    """

    images: Callable[[], Mapping[str, UInt8[np.ndarray, "_h _w 3"]]]
    prompt: str
    chosen: str
    rejected: str
    kind: str
    history: tuple[tuple[str, str], ...] = ()
    facts: str = ""

    def informed(self) -> Pair:
        """The pair with the facts in its prompt (LLaVA-RLHF: Sun et al. 2023, arXiv 2309.14525, sec. 2.3)."""
        return replace(self, prompt=f"{self.prompt} facts: {self.facts}") if self.facts else self

    def examples(self) -> tuple[Example, Example]:
        """The conversations with the chosen and with the rejected answer."""
        images = self.images()
        first, second = (self._example(images, answer) for answer in (self.chosen, self.rejected))
        return first, second

    def _example(self, images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]], answer: str) -> Example:
        (prompt, target), *turns = (*self.history, (self.prompt, answer))
        return Example(images, prompt, target, turns=tuple(turns), conversation=True, source=self.kind)


def pairs_of(store: VqaStore, split: Split, seed: int = 0) -> list[Pair]:
    """Preference pairs, one for each question of the split for which a false answer is known; fixed by `seed`."""
    made: list[Pair] = []
    for i in store.split(split).tolist():
        questions = store.item_questions(i)
        # An item has a detailed description only if all of its objects are known; a caption alone may be incomplete.
        complete = any(question.kind == "detail" for question in questions)
        answers = {question.kind: question.answer for question in questions}
        facts = answers.get("detail", answers.get("caption", ""))
        for j, question in enumerate(questions):
            if question.kind == "caption" and not complete:
                continue
            false = corrupted(question, np.random.default_rng([seed, i, j]))
            if false is not None:
                kind, rejected = false
                made.append(Pair(_reader(store, i), question.text, question.answer, rejected, kind, facts=facts))
    return made


def corrupted(question: Question, rng: np.random.Generator) -> tuple[str, str] | None:
    """The kind of error and a false answer to the question; None if no answer is known to be false."""
    answer = question.answer
    if question.kind in ("caption", "detail"):
        for name in rng.permutation(list(CORRUPTIONS)).tolist():
            if (false := CORRUPTIONS[name](answer, rng)) is not None:
                return name, false
    elif question.kind in ("existence", "relation") and answer in OPPOSITE:
        return "object" if question.kind == "existence" else "relation", OPPOSITE[answer]
    elif question.kind == "color" and answer in COLORS:
        return "color", _other(rng, COLORS, {answer})
    elif question.kind == "shape" and answer in SHAPES:
        return "shape", _other(rng, SHAPES, {answer})
    elif question.kind == "count" and answer.isdecimal():
        return "count", str(max(0, int(answer) + (1 if answer == "0" else int(rng.choice([-1, 1])))))
    return None


def _misnamed(answer: str, rng: np.random.Generator, color: bool, shape: bool) -> str | None:
    """Replaces the color, the shape or both of one object, such that no object matches."""
    mentions, present = _objects(answer)
    if not mentions:
        return None
    one = _pick(rng, mentions)
    absent = [
        f"{c} {s}"
        for c in COLORS
        for s in SHAPES
        if (c != one[2], s != one[3]) == (color, shape) and f"{c} {s}" not in present
    ]
    return _renamed(answer, one, _pick(rng, absent)) if absent else None


def _count(answer: str, rng: np.random.Generator) -> str | None:
    if (match := COUNT.search(answer)) is None or match[2] not in NUMBERS:
        return None
    number = NUMBERS.index(_other(rng, NUMBERS[1:], {match[2]}))
    new = f"there {'is' if number == 1 else 'are'} {NUMBERS[number]} object{'s' if number > 1 else ''}"
    return new + answer[match.end() :]


def _relation(answer: str, rng: np.random.Generator) -> str | None:
    """Replaces the closest object by another one, if the answer names one."""
    match = CLOSEST.search(answer)
    others = sorted(_objects(answer)[1] - {match[1]}) if match else []
    return answer[: match.start(1)] + _pick(rng, others) + answer[match.end(1) :] if match and others else None


CORRUPTIONS: Mapping[str, Callable[[str, np.random.Generator], str | None]] = {
    "object": partial(_misnamed, color=True, shape=True),
    "color": partial(_misnamed, color=True, shape=False),
    "shape": partial(_misnamed, color=False, shape=True),
    "count": _count,
    "relation": _relation,
}


def objects_named(answer: str) -> list[str]:
    """The objects in a description ("red cube"), with repetitions."""
    return [f"{one[2]} {one[3]}" for one in OBJECT.finditer(answer)]


def _objects(answer: str) -> tuple[list[re.Match[str]], set[str]]:
    return list(OBJECT.finditer(answer)), set(objects_named(answer))


def _renamed(answer: str, one: re.Match[str], name: str) -> str:
    """Replaces the name of one object in the list. A statement about the closest object is unchanged."""
    article = "an" if name[0] in "aeiou" else "a"
    return f"{answer[: one.start()]}{article} {name}{answer[one.end() :]}"


def _other(rng: np.random.Generator, options: Sequence[str], but: set[str]) -> str:
    return _pick(rng, [option for option in options if option not in but])


def _pick[T](rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _reader(store: VqaStore, index: int) -> Callable[[], Mapping[str, UInt8[np.ndarray, "_h _w 3"]]]:
    return lambda: store[index].images


def read_pairs(path: str | Path, images: str | Path | None = None) -> list[Pair]:
    """The pairs in a file of RLHF-V (.parquet) or LLaVA-RLHF (.json).

    `images` is the folder of LLaVA-RLHF's images (None: the file's folder). Raises InputError with the entry's number
    if an entry is malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file of preferences at {path}")
    folder = path.parent if images is None else Path(images)
    entries, read = (_rows(path), _rlhf_v) if path.suffix == ".parquet" else (read_list(path), _llava_rlhf)
    made: list[Pair] = []
    for number, entry in enumerate(entries):
        try:
            pair = read(entry, folder)
        except (KeyError, TypeError, ValueError, AttributeError, BadEntry) as error:
            raise InputError(f"{path}, entry {number} is no pair of RLHF-V or LLaVA-RLHF: {error!r}") from error
        if pair.chosen.strip() != pair.rejected.strip():
            made.append(pair)
    return made


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with reading_file(path, "parquet"), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=64):
            yield from batch.to_pylist()


def _rlhf_v(entry: Mapping[str, Any], folder: Path) -> Pair:
    text = json.loads(entry["text"]) if isinstance(entry["text"], str) else entry["text"]
    image = entry["image"]
    content: bytes | Path = image["bytes"] or path_inside(folder, image["path"])
    return Pair(lambda: {"image": pixels(content)}, text["question"], text["chosen"], text["rejected"], "rlhf-v")


def _llava_rlhf(entry: Mapping[str, Any], folder: Path) -> Pair:
    messages = [str(turn["value"]).replace("<image>", "").strip() for turn in entry["conversations"]]
    if len(messages) % 2 == 0 or entry["preference"] not in (1, 2):
        raise ValueError("the conversation does not end in a question, or preference is neither 1 nor 2")
    outputs = [str(entry[name]["value"]) for name in ("output_1", "output_2")]
    better = outputs[entry["preference"] - 1]
    worse = outputs[2 - entry["preference"]]
    history = tuple(zip(messages[:-1:2], messages[1::2], strict=True))
    file = path_inside(folder, entry["image"])
    return Pair(lambda: {"image": pixels(file)}, messages[-1], better, worse, "llava-rlhf", history)
