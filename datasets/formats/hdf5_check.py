"""Walks HDF5 files in a separate process, since libhdf5 may hang or crash on a damaged one.

A size of 0 in a global heap, for instance, is a loop without end in C, which no signal handler of Python interrupts.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import h5py

LIMIT_S = 20.0
"""Maximum time between two pieces of a file [s]: an object with its attributes, or `ROWS` rows."""
ROWS = 64


def unreadable(files: Sequence[Path]) -> dict[Path, str]:
    """The files on which libhdf5 hangs or crashes, with the reason.

    Structure, attributes and data of variable length are read. Errors that libhdf5 reports are left to the reader.
    """
    faults: dict[Path, str] = {}
    remaining = list(files)
    while remaining:
        finished, reason = _walk_in_process(remaining)
        if finished >= len(remaining):
            break
        file = remaining[finished]
        faults[file] = f"{file} is damaged, libhdf5 {reason}: download it again"
        remaining = remaining[finished + 1 :]
    return faults


def _walk_in_process(files: Sequence[Path]) -> tuple[int, str]:
    """The number of files that were walked to their end, and the reason if it is not all of them."""
    command = [sys.executable, "-m", __name__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None and process.stdout is not None
        with process.stdin as stdin:
            stdin.write(json.dumps([str(file.absolute()) for file in files]).encode())
        finished = 0
        while select.select([process.stdout], [], [], LIMIT_S)[0]:
            if not (pieces := os.read(process.stdout.fileno(), 65536)):
                break
            finished += pieces.count(b"\n")
        else:
            process.kill()
            return finished, f"makes no progress for {LIMIT_S:g} s"
        code = process.wait()
    return finished, f"ends with {signal.Signals(-code).name}" if code < 0 else f"ends with exit code {code}"


def main() -> None:
    """Walks the files of the JSON list in stdin. Prints a dot after each piece, and a newline after each file."""
    import h5py

    for path in json.load(sys.stdin):
        with suppress(Exception), h5py.File(path, "r") as file:
            for _ in _pieces(file, set()):
                print(end=".", flush=True)
        print(flush=True)


def _pieces(item: h5py.Group | h5py.Dataset, visited: set[int]) -> Iterator[None]:
    """Reads what is below an object, except for data of fixed size. Yields after each piece."""
    import h5py

    address = h5py.h5o.get_info(item.id).addr
    if address in visited:  # a damaged group may contain itself
        return
    visited.add(address)
    with suppress(Exception):
        for name in item.attrs:
            with suppress(Exception):
                item.attrs[name]
    yield
    if isinstance(item, h5py.Dataset):
        yield from _rows(item)
        return
    with suppress(Exception):
        for name in item:
            with suppress(Exception):
                if isinstance(item.get(name, getlink=True), h5py.HardLink):
                    yield from _pieces(item[name], visited)


def _rows(dataset: h5py.Dataset) -> Iterator[None]:
    """Reads the index of the chunks, and the data if they are of variable length, which lie in global heaps."""
    with suppress(Exception):
        if dataset.chunks:
            dataset.id.get_num_chunks()
    if dataset.dtype.hasobject:
        for start in range(0, len(dataset) if dataset.shape else 1, ROWS):
            with suppress(Exception):
                dataset[start : start + ROWS] if dataset.shape else dataset[()]
            yield


if __name__ == "__main__":
    main()
