"""Damaged HDF5 files on which libhdf5 itself never returns."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import h5py
import pytest
from test_hdf5 import demonstration, write_robomimic

from vla.datasets.formats import hdf5, hdf5_check
from vla.errors import InputError

GLOBAL_HEAP = b"GCOL"
HEADER = 16
"""Bytes before the first object of a global heap."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files; reading an attribute of the second one is a loop without end in libhdf5."""
    for name in ("a", "b"):
        write_robomimic(tmp_path / f"{name}.hdf5", {"demo_0": demonstration(0, 4)}, env_args='{"env_name": "Lift"}')
    content = bytearray((tmp_path / "b.hdf5").read_bytes())
    start = content.index(GLOBAL_HEAP) + HEADER
    content[start : start + 512] = bytes(512)
    (tmp_path / "b.hdf5").write_bytes(content)
    return tmp_path


def test_a_file_on_which_libhdf5_hangs_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_check, "LIMIT_S", 2.0)
    with pytest.raises(InputError, match=r"b\.hdf5 is damaged, libhdf5 makes no progress for 2 s"):
        hdf5.open_source(folder, fps=20.0)


def test_it_is_skipped_on_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_check, "LIMIT_S", 2.0)
    source = hdf5.open_source(folder, fps=20.0, skip=True)
    assert source[0].state.shape[0] == 4
    assert list(source.faults()) == [1]
    assert "b.hdf5" in source.faults()[1]


def test_a_group_that_contains_itself_is_walked_once(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        group = file.create_group("data")
        group["again"] = group
        group["lines"] = ["one", "two"]
        group["elsewhere"] = h5py.ExternalLink("missing.hdf5", "/")
    assert hdf5_check.unreadable([path]) == {}


def test_a_crash_is_the_fault_of_the_file_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{name}.hdf5" for name in "abc"]
    for path in paths:
        h5py.File(path, "w").close()
    program = tmp_path / "python"  # crashes on b.hdf5, as libhdf5 does on some files
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "for path in json.load(sys.stdin):\n"
        f"    'b.hdf5' in path and os.kill(os.getpid(), {int(signal.SIGSEGV)})\n"
        "    print(flush=True)\n"
    )
    os.chmod(program, 0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    faults = hdf5_check.unreadable(paths)
    assert list(faults) == [paths[1]]
    assert "SIGSEGV" in faults[paths[1]]
