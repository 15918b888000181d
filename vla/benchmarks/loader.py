"""`vla bench loader`: reading speed of the same episodes as our store, a LeRobotDataset and raw arrays.

A sample is one observation (the images of all cameras, the state) and the following 16 actions. Each format is written,
read by a separate process, and removed. Files are in the page cache (warm). In addition: the cost of stores with many
episodes (`loader_scale`), and training loaders (`loader_training`).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vla.benchmarks.loader_formats import FORMATS, Frames
from vla.benchmarks.loader_scale import blank_episode, measure_scale, memory
from vla.common.result_table import Table, Target
from vla.datasets.episodes import EpisodeStore
from vla.embodiment import Embodiment

HORIZON = 16
BATCH = 64
SECONDS = 3.0
"""The duration of each measurement, after a warm-up [s]."""
MANY = 1000
"""The number of episodes in the timing of statistics."""


def bench_loader(
    episodes: int = 10,
    steps: int = 200,
    sizes: tuple[int, ...] = (96, 224),
    many: int = MANY,
    scale: tuple[int, ...] = (10_000, 100_000),
) -> Table:
    """Measures each format and image size, stores of `scale` episodes, and training loaders.

    The figures of a format are samples/s at random and in order, size on disk, memory, and time to open and to write.
    """
    from vla.benchmarks.loader_training import measure_training  # imports modules that reading processes must not have

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="vla-bench-") as folder:
        root = Path(folder)
        source = _record(root / "source", episodes, steps, max(sizes))
        for size in sizes:
            frames = _resized(source, root / f"frames-{size}", size)
            for name in tqdm(FORMATS, desc=f"{size} x {size}", unit="format"):
                rows.append({"size": size} | _measure(name, frames, root / "written"))
            shutil.rmtree(frames.folder)
        statistics = _statistics_seconds(root / "many", many)
        scaled, scale_targets = measure_scale(root / "scale", scale)
        trained, training_targets = measure_training(root / "training")
    for row in rows:
        memmap = next(r for r in rows if r["size"] == row["size"] and r["format"] == "memmap")
        row["of memmap"] = row["random/s"] / memmap["random/s"]
    targets = [*_targets(rows, sizes), Target(f"s for statistics of {many} episodes", statistics, 5.0, at_most=True)]
    return Table([*rows, *scaled, *trained], [*targets, *scale_targets, *training_targets])


def _targets(rows: list[dict[str, Any]], sizes: tuple[int, ...]) -> list[Target]:
    found: list[Target] = []
    for size in sizes:
        by_name = {row["format"]: row for row in rows if row["size"] == size}

        def ratio(column: str, name: str, base: str, of: Mapping[str, Any] = by_name) -> float:
            return of[name][column] / of[base][column]

        for ours in ("jpeg", "webp", "zstd"):
            found.append(Target(f"{ours} / video, random, {size}", ratio("random/s", ours, "lerobot video"), 10))
        for ours in ("jpeg", "zstd"):
            found.append(Target(f"{ours} / images, random, {size}", ratio("random/s", ours, "lerobot images"), 3))
        found += [
            Target(f"raw / memmap, random, {size}", ratio("random/s", "raw", "memmap"), 0.5),
            Target(f"lz4 / memmap, random, {size}", ratio("random/s", "lz4", "memmap"), 0.25),
            Target(f"webp / video, bytes, {size}", ratio("MB", "webp", "lerobot video"), 2, at_most=True),
            Target(f"jpeg / video, bytes, {size}", ratio("MB", "jpeg", "lerobot video"), 4.5, at_most=True),
            Target(
                f"MB that reading adds, {size}", max(by_name[n]["grows MB"] for n in ("raw", "jpeg", "zstd")), 50, True
            ),
        ]
    return found


def _record(folder: Path, episodes: int, steps: int, size: int) -> Frames:
    """Records experts in randomized scenes, without camera noise."""
    from vla.benchmarks.loader_formats import create_frames
    from vla.envs.make import make_env
    from vla.envs.scripted_expert import ScriptedExpert

    env = make_env("pick", image_size=size, randomize=True)
    robot: Embodiment = env.unwrapped.embodiment  # type: ignore[attr-defined]
    frames = create_frames(folder, robot, episodes, steps, size)
    expert = ScriptedExpert(env)
    for episode in tqdm(range(episodes), desc="record", unit="episode"):
        for step in range(steps):
            if step % 50 == 0:
                observation, _ = env.reset(seed=1000 * episode + step)
            action = expert.act()
            row = episode * steps + step
            for camera in robot.cameras:
                frames.images[camera][row] = observation["images"][camera]
            frames.state[row], frames.action[row] = observation["state"], action
            observation, *_ = env.step(action)
    env.close()
    return frames


def _resized(source: Frames, folder: Path, size: int) -> Frames:
    from vla.benchmarks.loader_formats import create_frames
    from vla.common.images import resize

    frames = create_frames(folder, source.robot, source.episodes, source.steps, size)
    frames.state[:], frames.action[:] = source.state, source.action
    for camera, images in source.images.items():
        for row, image in enumerate(images):
            frames.images[camera][row] = resize(np.asarray(image), size)
    return frames


def _measure(name: str, frames: Frames, folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    FORMATS[name].write(frames, folder)
    written = time.perf_counter() - start
    try:
        # A spawned process does not share memory with this one.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            measured = pool.submit(read_speed, name, folder, len(frames.state)).result()
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    finally:
        shutil.rmtree(folder)
    return {"format": name} | measured | {"MB": size / 1e6, "write s": written}


def read_speed(name: str, folder: Path, count: int) -> dict[str, Any]:
    """Opens the format and reads it, in this process."""
    FORMATS[name].open(folder, HORIZON)  # imports the modules of the format
    start = time.perf_counter()
    read = FORMATS[name].open(folder, HORIZON)
    read(np.array([0]))
    opened = time.perf_counter() - start
    rng = np.random.default_rng(0)
    _rate(lambda: read(rng.integers(count, size=BATCH)), SECONDS / 3)
    before = memory()
    at_random = _rate(lambda: read(rng.integers(count, size=BATCH)), SECONDS)
    position = iter(range(0, 10**9, BATCH))
    in_order = _rate(lambda: read((next(position) + np.arange(BATCH)) % count), SECONDS)
    held = memory()
    return {
        "random/s": at_random,
        "in order/s": in_order,
        "open ms": opened * 1000,
        "memory MB": held,
        "grows MB": max(0.0, held - before),
    }


def _rate(read: Callable[[], object], seconds: float) -> float:
    """Samples per second in the best of three rounds, to reduce the effect of other processes."""
    best = 0.0
    for _ in range(3):
        batches, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds / 3 or batches == 0:
            read()
            batches += 1
        best = max(best, batches * BATCH / elapsed)
    return best


def _statistics_seconds(folder: Path, episodes: int, steps: int = 200) -> float:
    rng = np.random.default_rng(0)
    names = tuple(f"joint {i} [rad]" for i in range(6))
    robot = Embodiment("bench", ("front",), names, names, (-3.0,) * 6, (3.0,) * 6, 30.0)
    blank = blank_episode(robot, steps)
    with EpisodeStore.create(folder, robot, "raw") as store:
        for _ in range(episodes):
            store.append(replace(blank, state=rng.normal(size=(steps, 6)), action=rng.normal(size=(steps, 6))))
    start = time.perf_counter()
    EpisodeStore.open(folder).statistics()
    return time.perf_counter() - start
