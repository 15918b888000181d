"""The cost of stores with many episodes: opening, starting to train, reading and appending an episode.

The stores have the records and the layout of all episodes, but frames of only one, since none are read. Each is opened
by a separate process, with its files in the page cache.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import batched
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from tqdm import tqdm

from vla.common.result_table import Target
from vla.datasets.array_length import ArrayLength
from vla.datasets.episode_layout import EpisodeLayout
from vla.datasets.episodes import EpisodeStore
from vla.datasets.order import Order
from vla.datasets.shards import FRAMES_PER_SHARD, ROWS_PER_SHARD
from vla.datasets.text_chunks import TEXTS_PER_CHUNK, TextChunks
from vla.datasets.windows import Windows, split
from vla.embodiment import Embodiment
from vla.types import Episode

MILLION = 1_000_000
STEPS = FRAMES_PER_SHARD
EPISODES_PER_SHARD = ROWS_PER_SHARD // STEPS
"""Stores have multiples of this number of episodes, so that the next append starts new shards."""
READS, APPENDS = 200, 30


def measure_scale(folder: Path, sizes: tuple[int, ...]) -> tuple[list[dict[str, Any]], list[Target]]:
    """Measures a store of each size [episodes], and extrapolates linearly to a million episodes."""
    rows: list[dict[str, Any]] = []
    for episodes in tqdm(sizes, desc="stores of many episodes", unit="store"):
        write_store(folder, episodes)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows.append({"episodes": episodes, **pool.submit(_cost, folder).result()})
        shutil.rmtree(folder)
    few, many = rows[0], rows[-1]
    appends = f"append at {many['episodes']:,} / {few['episodes']:,}"

    def at_a_million(column: str) -> float:
        slope = (many[column] - few[column]) / (many["episodes"] - few["episodes"])
        return few[column] + slope * (MILLION - few["episodes"])

    return rows, [
        Target("s to open 1,000,000 episodes", at_a_million("open ms") / 1000, 1.0, at_most=True),
        Target("MB of 1,000,000 episodes", at_a_million("MB"), 100, at_most=True),
        Target(appends, many["append ms"] / few["append ms"], 1.5, at_most=True),
    ]


def write_store(folder: Path, episodes: int) -> None:
    """Writes a store with the records of `episodes` episodes, and frames of the first only.

    Raises:
        ValueError: `episodes` is not a multiple of `EPISODES_PER_SHARD`.
    """
    if episodes % EPISODES_PER_SHARD:
        raise ValueError(f"{episodes} episodes are not a multiple of {EPISODES_PER_SHARD}")
    names = tuple(f"joint {i} [rad]" for i in range(6))
    robot = Embodiment("bench", ("front",), names, names, (-3.0,) * 6, (3.0,) * 6, 30.0)
    with EpisodeStore.create(folder, robot, "raw") as store:
        store.append(_episode(robot))
        first = store.records[0]
        group, streams = zarr.open_group(folder, mode="r+"), sorted(store.streams)
        layout, texts = EpisodeLayout(store.folder, group, 1, first), TextChunks(store.folder, group, "episodes")
        for name in streams:
            ArrayLength(store.folder, name).set(episodes * STEPS)
        texts.resize(episodes)
        for chunk, indices in enumerate(batched(range(episodes), TEXTS_PER_CHUNK)):
            records = [replace(first, offset=i * STEPS, info={**first.info, "seed": i}) for i in indices]
            for index, record in zip(indices, records, strict=True):
                layout.put(index, record)
            texts.write(chunk, [record.to_json() for record in records])
        layout.write()


def blank_episode(robot: Embodiment, steps: int) -> Episode:
    """An episode of zeros and black images, of a robot with 6 joints and the camera "front"."""
    return Episode(
        images={"front": np.zeros((steps, 8, 8, 3), np.uint8)},
        state=np.zeros((steps, 6)),
        action=np.zeros((steps, 6)),
        time=np.arange(steps) / 30,
        instruction="",
        embodiment=robot,
        success=True,
    )


def _episode(robot: Embodiment) -> Episode:
    return replace(
        blank_episode(robot, STEPS),
        instruction="put the cube into the bowl",
        info={"task": "pick", "group": "train", "policy": "expert"},
        paraphrases=("place the cube in the bowl", "lift the cube and put it into the bowl"),
    )


def _cost(folder: Path) -> dict[str, float]:
    """The time of each operation [ms], and the memory of the store and its windows [MB]."""
    before = memory()
    start = time.perf_counter()
    store = EpisodeStore.open(folder)
    opened = time.perf_counter()
    windows = Windows(store, 16, episodes=split(len(store), 0.05)[0])
    order = Order(len(windows), 0)
    order(np.arange(64))
    ready = time.perf_counter()
    held = memory() - before
    rng = np.random.default_rng(0)
    read = _seconds(lambda: [store.records[index] for index in rng.integers(len(store), size=READS)])
    episode = _episode(store.embodiment)
    with EpisodeStore.open(folder, "a") as writer:
        appends = [_seconds(lambda: writer.append(episode)) for _ in range(APPENDS)]
    return {
        "open ms": 1000 * (opened - start),
        "split, windows, order ms": 1000 * (ready - opened),
        "MB": held,
        "record ms": 1000 * read / READS,
        "append ms": 1000 * float(np.median(appends)),
    }


def _seconds(do: Callable[[], object]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def memory() -> float:
    """The private memory of the process [MB], without pages of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))
