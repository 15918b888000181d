"""A conversion by several processes: each makes stores of parts of the episodes, which are put together at the end.

The parts lie in the hidden folder `.NAME.parts` beside the store until they are in it, each the store of an ordinary
conversion, so that all goes on where it was cut off. Which episodes are a part depends on their number alone, and the
result is, to the bit, that of one process.
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
    """The episodes from position `start` to before `stop`, and where their store is made."""

    start: int
    stop: int
    path: Path


def parts_folder(dst: str) -> Path:
    """Where the parts of a conversion to `dst` lie until they are in it."""
    path = Path(dst)
    return path.with_name(f".{path.name}.parts")


def to_store_in_parts(selection: Selection, dst: str, codec: str, workers: int) -> Written:
    """As `to_store`, by `workers` processes. Raises InputError too where `dst` is in an object store."""
    from tqdm import tqdm

    if "://" in dst:
        raise InputError(f"workers={workers} needs a DST on this machine for its parts: convert there, and copy it")
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
            # In the order of the parts: what a part holds enters the store as soon as all before it has.
            for part, done in zip(parts, pool.map(_convert, parts, repeat(codec), repeat(settings)), strict=True):
                written.errors += done.errors
                written.steps += done.steps
                written.unsaid += done.unsaid
                written.episodes += _take(part, done, target)
                shutil.rmtree(part.path, ignore_errors=True)
                bar.update(target.done - bar.n)
    except BrokenProcessPool as error:
        raise InputError(
            "a process of the conversion was killed, perhaps for want of memory: give fewer workers; the same command "
            "goes on"
        ) from error
    finally:
        target.close()
    shutil.rmtree(folder, ignore_errors=True)
    written.skipped = target.skipped
    return written


def _parts(count: int, done: int, folder: Path) -> list[Part]:
    """The parts of `count` episodes that have some beyond the first `done`."""
    size = -(-count // MOST_PARTS)
    ranges = [(start, min(start + size, count)) for start in range(0, count, size)]
    return [Part(start, stop, folder / f"{start}-{stop}.zarr") for start, stop in ranges if stop > done]


def _take(part: Part, done: Written, target: StoreTarget) -> int:
    """Puts the part's episodes into the store, in their order, and notes those that were skipped; how many it put."""
    chosen = target.selection.chosen
    skipped = {entry["episode"]: entry["reason"] for entry in done.skipped}
    kept = [position for position in range(part.start, part.stop) if chosen[position] not in skipped]
    stored = EpisodeStore.open(part.path) if kept else None
    count = 0
    for position in range(max(part.start, target.done), part.stop):
        if chosen[position] in skipped:
            target.skip(chosen[position], skipped[chosen[position]])
        elif stored is not None:
            target.copy(stored, kept.index(position))
            count += 1
    return count


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end at once when the block is left by an exception: what they have stored is whole."""
    others = set(active_children())
    # ctrl-C reaches them too, and must not print a traceback for each.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_DFL))
    try:
        yield pool
    except BaseException:
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# In the processes


@cache
def _selection(settings: str) -> Selection:
    """The source, opened once in each process."""
    values = json.loads(settings)
    return Selection(Request(**values["request"]), Embodiment.from_dict(values["embodiment"]))


def _convert(part: Part, codec: str, settings: str) -> Written:
    return to_store(_selection(settings).part(part.start, part.stop), str(part.path), codec, quiet=True)
