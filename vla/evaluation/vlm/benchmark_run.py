"""Running a benchmark: the official prompts over the official files, resumable, answers scored by
`vla.evaluation.vlm.scoring`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vla.common.atomic import write_json
from vla.errors import InputError
from vla.evaluation.vlm.answerer import ROWS, Answerer
from vla.evaluation.vlm.benchmark_images import UPRIGHT, Pictures
from vla.evaluation.vlm.scoring.benchmark import Benchmark
from vla.evaluation.vlm.scoring.choice import ROTATION
from vla.evaluation.vlm.scoring.files import Entry
from vla.evaluation.vlm.scoring.registry import benchmark as known

REFERENCES = {
    "vqav2": "v2_mscoco_*_annotations.json",
    "textvqa": "TextVQA_*.json",
    "docvqa": "*val*.json",
    "chartqa": "test_*.json",
    "mme": "existence.txt",
    "mmbench": "*.tsv",
    "seed-bench": "SEED-Bench*.json",
    "mmmu": "validation*.parquet",
    "mathvista": "testmini.json",
    "ocrbench": "OCRBench*.json",
    "chair": "synonyms.txt",
    "pope": "coco_pope_*.json",
}
"""What the official files are called, anywhere in their folder."""
FOLDERS = ("chartqa", "mme", "chair")
"""Those whose references are all files of a folder."""
QUESTIONS = "v2_OpenEnded_mscoco_*_questions.json"
"""VQAv2's questions are in a file of their own."""
ANSWERS = "answers.jsonl"
KEYED = ("weights", "preprocessing", "questions", "answer tokens")
"""Settings that answers belong to: the digests of the weights that gave them, of what these are shown of an image and
read of a question (`Processor.digest`), of the questions with their images, and how long an answer may be."""
TOKENS = {"chair": 256, "mathvista": 256, "mmmu": 128}
"""How long an answer may be, where 32 tokens are not enough."""


@dataclass(frozen=True)
class Files:
    """A benchmark's questions by id, and their images. `open` finds them in a folder of the official files."""

    benchmark: Benchmark
    questions: Mapping[str, Entry]
    pictures: Pictures
    tokens: int

    @classmethod
    def open(cls, name: str, data: Path, limit: int | None = None) -> Files:
        """`data` is the folder, or in it the file to take where there are several of one kind. `limit` takes about so
        many questions from all over them, rotations and pairs whole. Raises InputError for what is missing."""
        bench = known(name)
        folder = data if data.is_dir() else data.parent
        files = [data] if data.is_file() else _references(folder, REFERENCES[name], name)
        parts = [files[0].parent] if name in FOLDERS else files
        questions = {i: entry for part in parts for i, entry in bench.entries(part).items()}
        if name == "vqav2":
            asked = bench.entries(_references(folder, QUESTIONS, name)[0])
            questions = {i: {**asked.get(i, {}), **entry} for i, entry in questions.items()}
        # SEED-Bench asks of videos too.
        questions = {i: entry for i, entry in questions.items() if entry.get("data_type") != "video"}
        if limit is not None:
            questions = some(questions, limit)
        pictures = Pictures(folder, files, upright=name in UPRIGHT)
        for i, entry in questions.items():
            pictures.check(i, entry)
            try:
                bench.prompt(entry)
            except KeyError as error:
                raise InputError(f"question {i!r} of {files[0]} has no field {error}: is it of {name}?") from error
        return cls(bench, questions, pictures, TOKENS.get(name, 32))

    @property
    def digest(self) -> str:
        """The SHA-256 of the questions as they are asked, and of the files that hold their images."""
        asked = [
            [i, self.benchmark.prompt(entry), self.pictures.digest(i, entry)]
            for i, entry in sorted(self.questions.items())
        ]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def run(self, answerer: Answerer, ledger: Path | None = None) -> dict[str, Any]:
        """The report of `Benchmark.score`. Answers are noted in `ledger` as they come, and those there are kept."""
        said = {} if ledger is None else read_ledger(ledger)
        said = {i: said[i] for i in self.questions if i in said}
        missing = [i for i in self.questions if i not in said]
        with tqdm(total=len(self.questions), initial=len(said), unit="question", leave=False) as bar:
            for group in batched(missing, ROWS):
                prompts = [self.benchmark.prompt(self.questions[i]) for i in group]
                images = [self.pictures.of(i, self.questions[i]) for i in group]
                found = dict(zip(group, answerer(prompts, images, self.tokens, "plain"), strict=True))
                said |= found
                if ledger is not None:
                    _note(ledger, found)
                bar.update(len(group))
        return self.benchmark.score(self.questions, said)


def _references(folder: Path, pattern: str, name: str) -> list[Path]:
    """One file, or where its benchmark has several, all of them."""
    found = sorted(folder.rglob(pattern))
    if not found:
        raise InputError(f"{folder} holds no {pattern}: give the folder of {name}'s official files as data")
    places = {file.parent for file in found} if name in FOLDERS else set(found)
    if len(places) > 1 and name != "mmmu":
        raise InputError(f"{folder} holds several: give one as data, of {', '.join(map(str, sorted(places)))}")
    return found


def some(questions: Mapping[str, Entry], limit: int) -> dict[str, Entry]:
    """About `limit` of the questions, evenly spaced; what is scored as one (`_unit`) stays whole."""
    if limit < 1:
        raise InputError(f"limit must be at least 1, not {limit}")
    units: dict[object, list[str]] = {}
    for i, entry in questions.items():
        units.setdefault(_unit(i, entry), []).append(i)
    groups = list(units.values())
    count = max(1, round(limit * len(groups) / len(questions)))
    places = np.unique(np.linspace(0, len(groups) - 1, min(count, len(groups))).astype(int))
    return {i: questions[i] for place in places for i in groups[int(place)]}


def _unit(i: str, entry: Entry) -> object:
    """An image of MME, a question of MMBench with its rotations; else the question."""
    if "task" in entry and "image" in entry:
        return entry["task"], entry["image"]
    return int(i) % ROTATION if "A" in entry and i.isdecimal() else i


def read_ledger(path: Path) -> dict[str, str]:
    """Answers by question; a line that was cut off is passed over."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            found[row["question_id"]] = row["answer"]
    return found


def _note(path: Path, answers: Mapping[str, str]) -> None:
    lines = (json.dumps({"question_id": i, "answer": answer}) for i, answer in answers.items())
    with path.open("a", encoding="utf-8") as file:
        # What a killed run left of a line must not join the next.
        file.write("\n" * (file.tell() > 0) + "\n".join(lines))


def prepare(folder: Path, settings: Mapping[str, Any]) -> None:
    """Notes the settings in `folder`, and makes its answers those that belong to them.

    Answers that other weights gave, with other preprocessing or to other questions (`KEYED`), are put aside under the
    name of these, and taken up again when these are back. Raises InputError where the folder holds answers that were
    given with other settings.
    """
    path, answers = folder / "settings.json", folder / ANSWERS
    saved = json.loads(path.read_text()) if path.exists() else settings
    if changed := sorted(key for key in settings if saved.get(key) != settings[key] and key not in KEYED):
        raise InputError(f"{folder} holds answers with another {', '.join(changed)}: set out=")
    folder.mkdir(parents=True, exist_ok=True)
    if other := [key for key in KEYED if saved.get(key) != settings[key]]:
        kept, own = (folder / f"answers-{_key(some)}.jsonl" for some in (saved, settings))
        if answers.exists():
            os.replace(answers, kept)
            print(f"{folder}: answers of other {' and '.join(other)} are kept as {kept.name}", flush=True)
        if own.exists():
            os.replace(own, answers)
    write_json(path, settings)


def _key(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([settings.get(key) for key in KEYED]).encode()).hexdigest()[:12]
