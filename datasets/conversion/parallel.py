"""Conversion by several processes. Each converts parts of the episodes, which are then merged into one store.

The parts are in the hidden folder `.NAME.parts` next to the store until they are merged. Each is the store of an
ordinary conversion, so that an interrupted conversion can be resumed. The division into parts depends only on the
number of episodes, and the result is bitwise equal to that of one process.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from itertools import repeat
from multiprocessing import active_children, get_context
from pathlib import Path

from vla.datasets.conversion.selection import Request, Selection
from vla.datasets.conversion.to_store import StoreTarget, Written, to_store
from vla.datasets.episodes import EpisodeStore
from vla.embodiment import Embodiment
from vla.errors import InputError

MOST_PARTS = 128


@dataclass(frozen=True)
class Part:
    """The episodes at the positions `start` to before `stop`, and the path of their store."""

    start: int
    stop: int
    path: Path


def parts_folder(dst: str) -> Path:
    """The folder for the parts of a conversion to `dst` until they are merged."""
    path = Path(dst)
    return path.with_name(f".{path.name}.parts")


def to_store_in_parts(selection: Selection, dst: str, codec: str, workers: int) -> Written:
    """Like `to_store`, with `workers` processes. Raises InputError also if `dst` is in an object store."""
    from tqdm import tqdm

    if "://" in dst:
        raise InputError(f"workers={workers} needs a local DST for its parts: convert to a local folder, and copy it")
    folder = parts_folder(dst)
    target, written = StoreTarget(selection, dst, codec), Written()
    try:
        parts = _parts(len(selection), target.done, folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = json.dumps({"request": asdict(selection.request), "embodiment": selection.embodiment.to_dict()})
        with (
            _pool(workers) as pool,
            tqdm(desc="convert", unit="episode", initial=target.done, total=len(selection)) as bar,
        ):
            # In the order of the parts: a part is merged as soon as all earlier ones are.
            for part, done in zip(parts, pool.map(_convert, parts, repeat(codec), repeat(settings)), strict=True):
                written.errors += done.errors
                written.steps += done.steps
                written.without_instruction += done.without_instruction
                written.episodes += _take(part, done, target)
                shutil.rmtree(part.path, ignore_errors=True)
                bar.update(target.done - bar.n)
    except BrokenProcessPool as error:
        raise InputError(
            "a process of the conversion was killed, perhaps because the memory is full: use fewer workers; the same "
            "command resumes the conversion"
        ) from error
    finally:
        target.close()
    shutil.rmtree(folder, ignore_errors=True)
    written.skipped = target.skipped
    return written


def _parts(count: int, done: int, folder: Path) -> list[Part]:
    """The parts of `count` episodes that are not completely within the first `done`."""
    size = -(-count // MOST_PARTS)
    ranges = [(start, min(start + size, count)) for start in range(0, count, size)]
    return [Part(start, stop, folder / f"{start}-{stop}.zarr") for start, stop in ranges if stop > done]


def _take(part: Part, done: Written, target: StoreTarget) -> int:
    """Copies the part's episodes into the store, in order, and records the skipped ones. Returns the number copied."""
    indices = target.selection.indices
    skipped = {entry["episode"]: entry["reason"] for entry in done.skipped}
    unskipped = [position for position in range(part.start, part.stop) if indices[position] not in skipped]
    stored = EpisodeStore.open(part.path) if unskipped else None
    count = 0
    for position in range(max(part.start, target.done), part.stop):
        if indices[position] in skipped:
            target.skip(indices[position], skipped[indices[position]])
        elif stored is not None:
            target.copy(stored, unskipped.index(position))
            count += 1
    return count


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes are terminated if the block raises. The episodes that they have stored are complete."""
    others = set(active_children())
    # Ctrl-C also reaches the processes, which must not each print a traceback.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_DFL))
    try:
        yield pool
    except BaseException:
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# The functions below run in the worker processes.


@cache
def _selection(settings: str) -> Selection:
    """The source, opened once per process."""
    values = json.loads(settings)
    return Selection(Request(**values["request"]), Embodiment.from_dict(values["embodiment"]))


def _convert(part: Part, codec: str, settings: str) -> Written:
    return to_store(_selection(settings).subset(part.start, part.stop), str(part.path), codec, quiet=True)
