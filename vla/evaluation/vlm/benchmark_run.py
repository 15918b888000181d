"""Runs a benchmark with official prompts and files, resumable; answers are scored by `vla.evaluation.vlm.scoring`."""

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
from vla.evaluation.vlm.benchmark_images import UPRIGHT, ImageFiles
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
"""The name pattern of the official files, anywhere in their folder."""
FOLDERS = ("chartqa", "mme", "chair")
"""Benchmarks whose references are all files of a folder."""
QUESTIONS = "v2_OpenEnded_mscoco_*_questions.json"
"""The separate file with the questions of VQAv2."""
ANSWERS = "answers.jsonl"
ANSWER_KEYS = ("weights", "preprocessing", "questions", "answer tokens")
"""The settings that identify saved answers: the digests of the weights, of the preprocessing (`Processor.digest`) and
of the questions with their images, and the maximum number of tokens of an answer."""
TOKENS = {"chair": 256, "mathvista": 256, "mmmu": 128}
"""The maximum number of tokens of an answer, if not 32."""


@dataclass(frozen=True)
class Files:
    """A benchmark's questions by id, and their images."""

    benchmark: Benchmark
    questions: Mapping[str, Entry]
    images: ImageFiles
    tokens: int

    @classmethod
    def open(cls, name: str, data: Path, limit: int | None = None) -> Files:
        """Opens the official files of a benchmark.

        Args:
            name: The benchmark.
            data: The folder of the official files, or one file in it if there are several of one kind.
            limit: The approximate number of questions, evenly spaced; rotations and pairs are not split.

        Raises:
            InputError: a file, an image or a field is missing.
        """
        bench = known(name)
        folder = data if data.is_dir() else data.parent
        files = [data] if data.is_file() else _references(folder, REFERENCES[name], name)
        sources = [files[0].parent] if name in FOLDERS else files
        questions = {i: entry for source in sources for i, entry in bench.entries(source).items()}
        if name == "vqav2":
            texts = bench.entries(_references(folder, QUESTIONS, name)[0])
            questions = {i: {**texts.get(i, {}), **entry} for i, entry in questions.items()}
        # SEED-Bench has questions about videos as well.
        questions = {i: entry for i, entry in questions.items() if entry.get("data_type") != "video"}
        if limit is not None:
            questions = subsample(questions, limit)
        images = ImageFiles(folder, files, upright=name in UPRIGHT)
        for i, entry in questions.items():
            images.check(i, entry)
            try:
                bench.prompt(entry)
            except KeyError as error:
                raise InputError(f"question {i!r} of {files[0]} has no field {error}: is it of {name}?") from error
        return cls(bench, questions, images, TOKENS.get(name, 32))

    @property
    def digest(self) -> str:
        """The SHA-256 of the prompts and of the image files."""
        prompts = [
            [i, self.benchmark.prompt(entry), self.images.digest(i, entry)]
            for i, entry in sorted(self.questions.items())
        ]
        return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()

    def run(self, answerer: Answerer, file: Path | None = None) -> dict[str, Any]:
        """Answers and scores the questions (`Benchmark.score`).

        Args:
            answerer: The model.
            file: The file in which answers are saved; questions with saved answers are not repeated.
        """
        answers = {} if file is None else read_answers(file)
        answers = {i: answers[i] for i in self.questions if i in answers}
        missing = [i for i in self.questions if i not in answers]
        with tqdm(total=len(self.questions), initial=len(answers), unit="question", leave=False) as bar:
            for group in batched(missing, ROWS):
                prompts = [self.benchmark.prompt(self.questions[i]) for i in group]
                images = [self.images.of(i, self.questions[i]) for i in group]
                found = dict(zip(group, answerer(prompts, images, self.tokens, "plain"), strict=True))
                answers |= found
                if file is not None:
                    _note(file, found)
                bar.update(len(group))
        return self.benchmark.score(self.questions, answers)


def _references(folder: Path, pattern: str, name: str) -> list[Path]:
    """The reference file of a benchmark, or all files if it has several."""
    found = sorted(folder.rglob(pattern))
    if not found:
        raise InputError(f"{folder} has no {pattern}: set data to the folder of {name}'s official files")
    sources = {file.parent for file in found} if name in FOLDERS else set(found)
    if len(sources) > 1 and name != "mmmu":
        raise InputError(f"{folder} has several: set data to one of {', '.join(map(str, sorted(sources)))}")
    return found


def subsample(questions: Mapping[str, Entry], limit: int) -> dict[str, Entry]:
    """About `limit` of the questions, evenly spaced; questions that are scored together (`_unit`) are not split."""
    if limit < 1:
        raise InputError(f"limit must be at least 1, not {limit}")
    units: dict[object, list[str]] = {}
    for i, entry in questions.items():
        units.setdefault(_unit(i, entry), []).append(i)
    groups = list(units.values())
    count = max(1, round(limit * len(groups) / len(questions)))
    indices = np.unique(np.linspace(0, len(groups) - 1, min(count, len(groups))).astype(int))
    return {i: questions[i] for index in indices for i in groups[int(index)]}


def _unit(i: str, entry: Entry) -> object:
    """The key of the questions that are scored together: an MME image, an MMBench question with its rotations."""
    if "task" in entry and "image" in entry:
        return entry["task"], entry["image"]
    return int(i) % ROTATION if "A" in entry and i.isdecimal() else i


def read_answers(path: Path) -> dict[str, str]:
    """Saved answers by question; truncated lines are skipped."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            found[row["question_id"]] = row["answer"]
    return found


def _note(path: Path, answers: Mapping[str, str]) -> None:
    lines = (json.dumps({"question_id": i, "answer": answer}) for i, answer in answers.items())
    with path.open("a", encoding="utf-8") as file:
        # Starts a new line after one that an interrupted run truncated.
        file.write("\n" * (file.tell() > 0) + "\n".join(lines))


def prepare(folder: Path, settings: Mapping[str, Any]) -> None:
    """Saves the settings in `folder`, and selects the saved answers that belong to them.

    Answers of other weights, preprocessing or questions (`ANSWER_KEYS`) are renamed, and restored when these settings
    are used again.

    Raises:
        InputError: the folder has answers with other settings.
    """
    path, answers = folder / "settings.json", folder / ANSWERS
    saved = json.loads(path.read_text()) if path.exists() else settings
    if changed := sorted(key for key in settings if saved.get(key) != settings[key] and key not in ANSWER_KEYS):
        raise InputError(f"{folder} holds answers with another {', '.join(changed)}: set out=")
    folder.mkdir(parents=True, exist_ok=True)
    if other := [key for key in ANSWER_KEYS if saved.get(key) != settings[key]]:
        previous, current = (folder / f"answers-{_key(values)}.jsonl" for values in (saved, settings))
        if answers.exists():
            os.replace(answers, previous)
            print(f"{folder}: answers of other {' and '.join(other)} are kept as {previous.name}", flush=True)
        if current.exists():
            os.replace(current, answers)
    write_json(path, settings)


def _key(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([settings.get(key) for key in ANSWER_KEYS]).encode()).hexdigest()[:12]
