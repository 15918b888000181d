"""Reference and result files of the benchmarks, as rows: JSON, JSON lines, TSV, parquet, or a folder of such."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vla.datasets.source_files import is_lfs_pointer
from vla.errors import InputError

type Entry = Mapping[str, Any]
"""One row of an official file, its fields named as there."""
type Answers = Mapping[str, str]
"""What was answered, by question id."""

LISTS = ("data", "questions", "annotations")
IDS = ("question_id", "questionId", "q_id", "index", "pid", "image_id", "id")
DATASETS = ("dataset_name", "dataset")
"""Where the ids of a benchmark that was gathered from data sets repeat, an id is one of its data set (OCRBench)."""
# Result files carry the truth as `answer` beside what the model said, so `answer` comes late.
SAID = ("extraction", "prediction", "predict", "response", "caption", "answer", "text")


def entries(path: Path) -> dict[str, Entry]:
    """The rows of a reference by question id: the first of `IDS` that a row has, else its place from 0.

    Where ids repeat, they are "<data set>/<id>". Raises InputError for a file that cannot be read, is empty, or names
    a question twice.
    """
    found = rows(path)
    ids = [name(row) or str(place) for place, row in enumerate(found)]
    if len(set(ids)) < len(ids):
        ids = [_within_dataset(i, row) for i, row in zip(ids, found, strict=True)]
    return by_id(path, list(zip(ids, found, strict=True)))


def answers(
    path: Path, questions: Mapping[str, Entry], read: Callable[[Path, int, Entry], str] | None = None
) -> dict[str, str]:
    """The answers of a result file by question id; without ids, or with the references' ids in their order, in the
    order of `questions`. `read` gives the answer of (file, place, row), by default the first of `SAID` it has.

    Raises InputError for a row without an answer, and for another number of rows where there are no ids.
    """
    found = rows(path)
    ids = [name(row) for row in found]
    if all(ids) and ids == [name(entry) for entry in questions.values()]:
        ids = list(questions)
    if found and not any(ids):
        if len(found) != len(questions):
            raise InputError(
                f"{path} has {len(found)} answers without ids to {len(questions)} questions: add question_id"
            )
        ids = list(questions)
    if None in ids:
        raise InputError(f"{path}: row {ids.index(None)} has no question_id")
    ids = [i if i in questions else _within_dataset(str(i), row) for i, row in zip(ids, found, strict=True)]
    read = read or answer
    return by_id(
        path, [(str(i), read(path, place, row)) for place, (i, row) in enumerate(zip(ids, found, strict=True))]
    )


def _within_dataset(i: str, row: Entry) -> str:
    return next((f"{row[key]}/{i}" for key in DATASETS if row.get(key)), i)


def by_id[T](path: Path, pairs: list[tuple[str, T]]) -> dict[str, T]:
    """Raises InputError where an id comes twice, or nothing does."""
    table = dict(pairs)
    if not table:
        raise InputError(f"{path} holds nothing to score")
    if len(table) != len(pairs):
        twice = Counter(i for i, _ in pairs).most_common(1)[0][0]
        cure = "give one of its files" if path.is_dir() else "keep one, or add the dataset_name that tells them apart"
        raise InputError(f"{path} has two rows of the id {twice!r}: {cure}")
    return table


def name(row: Entry) -> str | None:
    """A number with or without a decimal point, as pandas writes where others are missing, is the same id."""
    found = next((row[key] for key in IDS if row.get(key) is not None), None)
    whole = isinstance(found, float) and found.is_integer()
    return None if found is None else str(int(found) if whole else found)


def rows(path: Path) -> list[Entry]:
    """Raises InputError for what is not there, cannot be read, or is no list of rows."""
    if path.is_dir():
        # MMMU's official code writes <subject>/output.json.
        own = [file for file in sorted(path.iterdir()) if file.suffix in READERS]
        files = own or sorted(path.glob("*/output.json"))
        return [row for file in files for row in rows(file)]
    if not path.is_file() or path.suffix not in READERS:
        raise InputError(f"{path}: a folder or a file {', '.join(READERS)} is needed")
    if is_lfs_pointer(path):
        raise InputError(f"cannot read {path}: it is a Git LFS pointer, not the data: run `git lfs pull` in its folder")
    try:
        found = READERS[path.suffix](path)
    except Exception as error:  # the readers' libraries raise nearly anything over damaged files
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not all(isinstance(row, Mapping) for row in found):
        raise InputError(f"{path} is no list of objects")
    return found


def answer(path: Path, place: int, row: Entry) -> str:
    """What a row of a result file answers; raises InputError where it has nothing that does."""
    if row.get("losses"):  # SEED-Bench ranks the loss of each choice
        losses = list(row["losses"])
        return chr(ord("A") + losses.index(min(losses)))
    key = next((key for key in SAID if key in row), None)
    if key is None:
        raise InputError(f"{path}: row {place} has no answer (one of {', '.join(SAID)})")
    return "" if row[key] is None else str(row[key])


def _json(path: Path) -> list[Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return _lines(path)  # POPE's .json are JSON lines
    if isinstance(value, Mapping):
        value = value.get("imgToEval", value)
        listed = next((value[key] for key in LISTS if isinstance(value.get(key), list)), None)
        if listed is None and not any(key in value for key in IDS):
            return [{"id": i, **(v if isinstance(v, Mapping) else {"answer": v})} for i, v in value.items()]
        value = [value] if listed is None else listed
    return list(value) if isinstance(value, list) else [value]


def _lines(path: Path) -> list[Any]:
    found = []
    # Not splitlines(): an answer may hold other line ends than \n, unescaped.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if text := line.strip().removesuffix(","):  # SEED-Bench's published results have a comma after each line
            try:
                found.append(json.loads(text))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is no JSON: {error.msg} at column {error.colno}") from error
    return found


def _tsv(path: Path) -> list[Any]:
    csv.field_size_limit(2**31 - 1)  # images are columns, in base64
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [{k: v for k, v in row.items() if k != "image"} for row in csv.DictReader(file, delimiter="\t")]


def _parquet(path: Path) -> list[Any]:
    from pyarrow import parquet, types

    schema = parquet.read_schema(path)
    plain = [f.name for f in schema if not types.is_struct(f.type) or f.name == "metadata"]
    found: list[Any] = parquet.read_table(path, columns=plain).to_pylist()
    return found


READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
