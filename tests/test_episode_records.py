"""The index of a store: records that are read when asked for, and a layout that is made anew where it is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import batched
from pathlib import Path
from typing import Any

import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.datasets import episode_records
from vla.datasets.episode_index import EpisodeRecord
from vla.datasets.episode_layout import EpisodeLayout, create_layout
from vla.datasets.episode_records import EpisodeRecords
from vla.datasets.folder import LocalFolder
from vla.datasets.open_folder import open_folder
from vla.datasets.text_chunks import TEXTS_PER_CHUNK, TextChunks, create_texts
from vla.errors import InputError

SETS: tuple[tuple[str, ...], ...] = ((), ("points",), ("points", "extras/force"))


def record(number: int, offset: int) -> EpisodeRecord:
    """One of a length, words and streams of its own."""
    return EpisodeRecord(offset, 1 + number % 7, f"task {number}", number % 2 == 0, {}, number, SETS[number % 3])


def listed(count: int) -> Iterator[EpisodeRecord]:
    offset = 0
    for number in range(count):
        yield (one := record(number, offset))
        offset += one.length


def index_at(path: Path) -> EpisodeRecords:
    return EpisodeRecords(open_folder(path), zarr.open_group(path, mode="r+"))


def write(path: Path, count: int) -> None:
    group = zarr.create_group(path, attributes={"index": "episodes"})
    create_layout(group)
    create_texts(group, "episodes")
    layout, texts = EpisodeLayout(open_folder(path), group, 0, None), TextChunks(open_folder(path), group, "episodes")
    texts.resize(count)
    for number, batch in enumerate(batched(enumerate(listed(count)), TEXTS_PER_CHUNK)):
        for index, one in batch:
            layout.put(index, one)
        texts.write(number, [one.to_json() for _, one in batch])
    layout.write()


def without_layout(path: Path) -> None:
    """As a program wrote that knew of none."""
    shutil.rmtree(path / "layout")
    zarr.open_group(path, mode="r+").update_attributes({"stream_sets": []})


COUNT = 2 * TEXTS_PER_CHUNK + 30


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write(path := tmp_path_factory.mktemp("records") / "store", COUNT)
    return path


@pytest.fixture
def path(many: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(many, tmp_path / "store"))


def check(records: EpisodeRecords, count: int) -> None:
    expected = list(listed(count))
    assert list(records) == expected and len(records) == count
    assert records.ends.tolist() == [one.frames.stop for one in expected]
    assert [records.frames(i) for i in range(count)] == [one.frames for one in expected]
    assert records.streams == {name for one in expected for name in one.streams}


@settings(max_examples=20)
@given(data=st.data())
def test_it_is_a_sequence(many: Path, data: st.DataObject) -> None:
    records, expected = index_at(many), list(listed(COUNT))
    index = data.draw(st.integers(-COUNT, COUNT - 1))
    assert records[index] == expected[index]
    bound = st.none() | st.integers(-COUNT - 2, COUNT + 2)
    part = slice(data.draw(bound), data.draw(bound), data.draw(st.sampled_from((None, 1, 97, -150))))
    assert list(records[part]) == expected[part]
    for outside in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError):
            records[outside]


def test_opening_parses_one_record(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    read = EpisodeRecord.from_json
    monkeypatch.setattr(EpisodeRecord, "from_json", lambda text: parsed.append(text) or read(text))
    records = index_at(many)
    assert records.streams == {"points", "extras/force"} and records.ends[-1] == sum(r.length for r in listed(COUNT))
    assert len(parsed) == 1
    assert [one.checksum for one in records.holding('"task 300"')] == [300] and len(parsed) == 2


def test_a_store_from_before_there_was_a_layout(path: Path) -> None:
    without_layout(path)
    records = index_at(path)
    check(records, COUNT)
    assert not (path / "layout").exists()
    records.append(list(listed(COUNT + 1))[-1])
    check(records, COUNT + 1)
    group: Any = zarr.open_group(path, mode="r")
    assert group["layout"][:, 0].tolist() == records.ends.tolist()
    assert [tuple(group.attrs["stream_sets"][i]) for i in group["layout"][:, 1]] == [one.streams for one in records]


@pytest.mark.parametrize("cut_off", [False, True])
@pytest.mark.parametrize("more", [1, 2, 20])
def test_a_program_that_knows_no_layout_wrote_more(path: Path, tmp_path: Path, cut_off: bool, more: int) -> None:
    """Also behind an append that was cut off, whose row of the layout is there."""
    if cut_off:
        layout = index_at(path)._layout
        layout.put(COUNT, EpisodeRecord(int(layout.ends[-1]), 99, "", False, {}, 0))
        layout.write()
    shutil.copytree(path / "layout", tmp_path / "layout")
    records = index_at(path)
    for one in list(listed(COUNT + more))[COUNT:]:
        records.append(one)
    shutil.rmtree(path / "layout")
    (tmp_path / "layout").rename(path / "layout")
    check(index_at(path), COUNT + more)
    records = index_at(path)
    records.append(list(listed(COUNT + more + 1))[-1])
    assert zarr.open_array(path / "layout", mode="r").shape == (COUNT + more + 1, 2)
    check(index_at(path), COUNT + more + 1)


def test_trim_takes_back_an_append_that_was_cut_off(path: Path) -> None:
    records = index_at(path)
    records._layout.put(COUNT, record(COUNT, records.frames(-1).stop))
    records._layout.write()
    records._texts.resize(COUNT + 1)
    again = index_at(path)
    again.trim()
    assert [zarr.open_array(path / name, mode="r").shape[0] for name in ("layout", "episodes")] == [COUNT, COUNT]
    again.append(list(listed(COUNT + 1))[-1])
    check(index_at(path), COUNT + 1)


@pytest.mark.parametrize("file", ["zarr.json", "c/0/0"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00" * 50, None], ids=["empty", "json", "random", "missing"])
def test_a_layout_that_cannot_be_read_is_read_from_the_records(path: Path, file: str, content: bytes | None) -> None:
    if content is None:
        (path / "layout" / file).unlink()
    else:
        (path / "layout" / file).write_bytes(content)
    check(index_at(path), COUNT)


@pytest.mark.parametrize(("row", "value"), [(100, 0), (COUNT - 1, 10**6), (7, -1)])
def test_a_layout_that_cannot_be_true_is_read_from_the_records(path: Path, row: int, value: int) -> None:
    group: Any = zarr.open_group(path, mode="r+")
    group["layout"][row, 0] = value
    check(index_at(path), COUNT)


def test_a_layout_that_is_off_by_a_frame_is_noticed_where_it_is_read(path: Path) -> None:
    group: Any = zarr.open_group(path, mode="r+")
    wrong = next(i for i, one in enumerate(listed(COUNT)) if i > 300 and one.length > 2)
    group["layout"][wrong, 0] -= 1
    records = index_at(path)
    assert records[wrong - 1] == list(listed(COUNT))[wrong - 1]
    with pytest.raises(InputError, match=f"episode {wrong} of .* disagrees with layout"):
        records[wrong]
    shutil.rmtree(path / "layout")
    check(index_at(path), COUNT)


def test_lost_records_are_not_taken_for_a_shorter_store(path: Path) -> None:
    (path / "episodes" / "c" / "2").unlink()
    with pytest.raises(InputError, match=f"{COUNT} episodes were committed, but only {2 * TEXTS_PER_CHUNK} records"):
        index_at(path)


def test_a_chunk_of_records_that_is_missing_is_named(path: Path) -> None:
    (path / "episodes" / "c" / "0").unlink()
    records = index_at(path)
    assert records[-1].checksum == COUNT - 1
    with pytest.raises(InputError, match=r"store/episodes is damaged.*c/0"):
        records[3]


def test_a_reader_follows_an_edit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode_records, "HELD_CHUNKS", 1)
    early = index_at(path)
    assert early[0].instruction == "task 0"
    words = EpisodeRecord(0, 1, "said otherwise", True, {}, 0)
    index_at(path).replace({0: words})
    assert early[300].instruction == "task 300"  # of another chunk: its file was removed by the edit
    assert index_at(path)[0] == words
    assert [one.instruction for one in early][:2] == ["said otherwise", "task 1"]


def test_an_append_writes_the_last_of_each_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, files, replace = index_at(path), list[str](), LocalFolder.write

    def counted(self: LocalFolder, name: str, content: bytes) -> None:
        files.append(name)
        replace(self, name, content)

    monkeypatch.setattr(LocalFolder, "write", counted)
    monkeypatch.setattr(EpisodeRecord, "from_json", None)  # no record is parsed
    records.append(list(listed(COUNT + 1))[-1])
    assert files == ["layout/zarr.json", "layout/c/0/0", "episodes/zarr.json", "episodes/c/2"]
