"""Reads reference and result files of benchmarks as rows: JSON, JSON lines, TSV, parquet, or a folder of these."""

from __future__ import annotations

import csv
import json
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vla.datasets.source_files import is_lfs_pointer
from vla.errors import InputError

type Entry = Mapping[str, Any]
"""A row of an official file, with its field names."""
type Answers = Mapping[str, str]
"""Answers by question id."""

LISTS = ("data", "questions", "annotations")
IDS = ("question_id", "questionId", "q_id", "index", "pid", "image_id", "id")
DATASETS = ("dataset_name", "dataset")
"""Fields with the data set of a row; ids are unique only within it if they repeat (OCRBench)."""
# Result files may have the truth as `answer` in addition to the model's answer, so `answer` comes late.
ANSWER_FIELDS = ("extraction", "prediction", "predict", "response", "caption", "answer", "text")


def entries(path: Path) -> dict[str, Entry]:
    """The rows of a reference file by question id.

    The id is the first of `IDS` that a row has, else its index. Repeated ids become "<data set>/<id>".

    Raises:
        InputError: the file cannot be read, is empty, or has duplicate ids.
    """
    found = rows(path)
    ids = [name(row) or str(index) for index, row in enumerate(found)]
    if len(set(ids)) < len(ids):
        ids = [_within_dataset(i, row) for i, row in zip(ids, found, strict=True)]
    return by_id(path, list(zip(ids, found, strict=True)))


def answers(
    path: Path, questions: Mapping[str, Entry], read: Callable[[Path, int, Entry], str] | None = None
) -> dict[str, str]:
    """The answers of a result file by question id; files without ids are in the order of `questions`.

    Args:
        path: The result file.
        questions: The references.
        read: Returns the answer of (file, index, row); by default the first of `ANSWER_FIELDS`.

    Raises:
        InputError: a row has no answer, or a file without ids has another number of rows.
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
        path, [(str(i), read(path, index, row)) for index, (i, row) in enumerate(zip(ids, found, strict=True))]
    )


def _within_dataset(i: str, row: Entry) -> str:
    return next((f"{row[key]}/{i}" for key in DATASETS if row.get(key)), i)


def by_id[T](path: Path, pairs: list[tuple[str, T]]) -> dict[str, T]:
    """A dictionary of the pairs. Raises InputError if it is empty or an id is duplicate."""
    table = dict(pairs)
    if not table:
        raise InputError(f"{path} has nothing to score")
    if len(table) != len(pairs):
        duplicate = Counter(i for i, _ in pairs).most_common(1)[0][0]
        remedy = "select one of its files" if path.is_dir() else "remove one, or add dataset_name to distinguish them"
        raise InputError(f"{path} has two rows with the id {duplicate!r}: {remedy}")
    return table


def name(row: Entry) -> str | None:
    """The id of a row; 1.0, which pandas writes for 1 in a column with missing values, is the same as 1."""
    found = next((row[key] for key in IDS if row.get(key) is not None), None)
    is_integer = isinstance(found, float) and found.is_integer()
    return None if found is None else str(int(found) if is_integer else found)


def as_list(value: object) -> list[str]:
    """The texts of a field with several values: a list, the Python text of a list (in tables), or a single value.

    Raises:
        InputError: a text begins with a bracket, but is not a list.
    """
    if isinstance(value, str) and value.startswith("["):
        try:
            value = literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise InputError(f"the references have {value!r}, which is not a list: {error}") from error
    return [] if value is None else [str(v) for v in value] if isinstance(value, list) else [str(value)]


def rows(path: Path) -> list[Entry]:
    """The rows of a file or folder. Raises InputError if it is missing, unreadable, or not a list of rows."""
    if path.is_dir():
        # MMMU's official code writes <subject>/output.json.
        direct = [file for file in sorted(path.iterdir()) if file.suffix in READERS]
        files = direct or sorted(path.glob("*/output.json"))
        return [row for file in files for row in rows(file)]
    if not path.is_file() or path.suffix not in READERS:
        raise InputError(f"{path}: a folder or a file {', '.join(READERS)} is needed")
    if is_lfs_pointer(path):
        raise InputError(f"cannot read {path}: it is a Git LFS pointer, not the data: run `git lfs pull` in its folder")
    try:
        found = READERS[path.suffix](path)
    except Exception as error:  # the libraries raise many types for damaged files
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not all(isinstance(row, Mapping) for row in found):
        raise InputError(f"{path} is not a list of objects")
    return found


def answer(path: Path, index: int, row: Entry) -> str:
    """The answer in a row of a result file. Raises InputError if it has none."""
    if row.get("losses"):  # SEED-Bench has the loss of each choice
        losses = list(row["losses"])
        return chr(ord("A") + losses.index(min(losses)))
    key = next((key for key in ANSWER_FIELDS if key in row), None)
    if key is None:
        raise InputError(f"{path}: row {index} has no answer (one of {', '.join(ANSWER_FIELDS)})")
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
    # Not splitlines(): an answer may contain other unescaped line ends than \n.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if text := line.strip().removesuffix(","):  # SEED-Bench's published results have a comma after each line
            try:
                found.append(json.loads(text))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error.msg} at column {error.colno}") from error
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
