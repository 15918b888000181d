"""Files that other programs wrote: each fault is named with its file, and its line where it has one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vla.datasets.source_files import check_file, is_lfs_pointer, read_json, read_json_lines, reading_file
from vla.errors import InputError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_encoding_of_json_is_read(tmp_path: Path, encoding: str) -> None:
    values = {"task": "über die Brücke", "list": [1, 2.5, None]}
    (tmp_path / "x.json").write_text(json.dumps(values, ensure_ascii=False), encoding=encoding)
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{"a": "\\u2028"}\n', encoding=encoding)
    assert read_json(tmp_path / "x.json") == values
    assert read_json_lines(tmp_path / "x.jsonl") == [{"a": 1}, {"a": "\u2028"}]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"a": 1,\n "b": }', r"x\.json is broken JSON at line 2 column 7"),
        (b'{"a": 1', "broken JSON at line 1 column 8"),
        (b'{"a": "\n\xe9"}', r"x\.json line 2: this is not UTF-8 text"),
        (b"", r"x\.json is empty"),
        (POINTER.encode(), r"x\.json is a Git LFS pointer.*git lfs pull"),
        (b"[" * 100_000, "cannot be read as JSON|broken JSON"),
    ],
)
def test_broken_json_is_named(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=named):
        read_json(tmp_path / "x.json")


def test_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for content, named in (('{"a": 1}\n\n{"a": \n', "line 3 column"), ('{"a": 1}\n[1]\n', "line 2 holds a list")):
        path.write_text(content)
        with pytest.raises(InputError, match=named):
            read_json_lines(path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "x.parquet is missing"),
        (POINTER, "x.parquet is a Git LFS pointer"),
        ("", "x.parquet is empty"),
        ("PAR1", "x.parquet cannot be read as Parquet, it is cut short, damaged or was never"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, content: str | None, named: str) -> None:
    path = tmp_path / "x.parquet"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=named), reading_file(path, "Parquet"):
        raise OverflowError("whatever the library raises")
    assert is_lfs_pointer(path) == (content == POINTER)


def test_sound_file_passes(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    check_file(tmp_path / "x")
