"""`vla record task=scenes`: random scenes with questions from the simulator's truth, into a VQA store."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from itertools import batched

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from vla.datasets.folder import open_folder
from vla.datasets.questions import questions
from vla.datasets.vqa import VqaItem, VqaStore
from vla.errors import InputError
from vla.scene import Scene

FRONT_KINDS = (*["point", "identify"] * 3, "existence", "color", "shape", "count", "relation", "relation")
FRONT_QUESTIONS, WRIST_QUESTIONS = 18, 4
BLOCK = 128
"""Scenes a task of a worker, and a committed batch of the store."""


def record_scenes(out: str, scenes: int, seed: int, randomize: bool, workers: int, codec: str = "zstd") -> VqaStore:
    """Fills `out` up to `scenes` scenes, seeds from `seed` on; what a cut-off run wrote is kept and continued.

    Raises InputError when `out` exists and is no VQA store.
    """
    if scenes < 1 or workers < 1:
        raise InputError(f"scenes and workers must be at least 1, not {scenes} and {workers}")
    from vla.envs.scene import CAMERAS

    store = VqaStore(out) if open_folder(out).exists("") else VqaStore.create(out, CAMERAS, 96, 96, codec)
    blocks = list(batched(range(seed + len(store), seed + scenes), BLOCK))
    with (
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
        tqdm(total=scenes, initial=len(store), desc="scenes", unit="scene") as bar,
    ):
        for items in pool.map(sample_items, blocks, [randomize] * len(blocks)):
            store.append(items)
            bar.update(len(items))
    return store


def sample_items(seeds: tuple[int, ...], randomize: bool) -> list[VqaItem]:
    """One item a seed; the same seed gives the same item, in whatever process."""
    from vla.envs.random_scene import SceneSampler

    sampler = SceneSampler(randomize=randomize)
    try:
        return [_item(seed, *sampler.sample(seed)) for seed in seeds]
    finally:
        sampler.close()


def _item(seed: int, images: dict[str, UInt8[np.ndarray, "h w 3"]], scene: Scene) -> VqaItem:
    rng = np.random.default_rng([seed, 11])
    asked = questions(scene, rng, FRONT_KINDS, FRONT_QUESTIONS)
    asked += questions(scene, rng, ("point", "existence"), WRIST_QUESTIONS, camera="wrist")
    return VqaItem(images, tuple(asked), "scenes")
