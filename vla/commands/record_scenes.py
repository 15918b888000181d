"""`vla record task=scenes`: random scenes with questions from the simulator's truth, into a VQA store."""

from __future__ import annotations

import multiprocessing
import shlex
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import batched

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from vla.common.scene_objects import Scene
from vla.datasets.hosted_instructions import hosted_instructions
from vla.datasets.instructions import instructions
from vla.datasets.open_folder import open_folder
from vla.datasets.questions import Question, questions
from vla.datasets.vqa import VqaItem, VqaStore
from vla.errors import InputError
from vla.evaluation.vlm.answerer import HOSTED, open_hosted

FRONT_KINDS = (*["point", "identify"] * 3, "existence", "color", "shape", "count", "relation", "relation")
FRONT_QUESTIONS, WRIST_QUESTIONS = 18, 4
ASKED = ("short", "instruct", "all")
BLOCK = 128
"""Scenes a task of a worker, and a committed batch of the store."""


def record_scenes(
    out: str, scenes: int, seed: int, randomize: bool, workers: int, codec: str = "zstd", asked: str = "short"
) -> VqaStore:
    """Fills `out` up to `scenes` scenes, seeds from `seed` on; what a cut-off run wrote is kept and continued.

    `asked` is "short" (`vla.datasets.questions`), "instruct" (`vla.datasets.instructions`), both as "all", or a hosted
    model that writes instruction data: `hosted:FAMILY`, `hosted:MODEL@URL`.
    Raises InputError when `out` exists and is no VQA store, and where there is no such `asked`.
    """
    if scenes < 1 or workers < 1:
        raise InputError(f"scenes and workers must be at least 1, not {scenes} and {workers}")
    hosted = None
    if asked.startswith(HOSTED):
        hosted = open_hosted(asked.removeprefix(HOSTED))
    elif asked not in ASKED:
        raise InputError(f"questions are {', '.join(ASKED)} or hosted:MODEL, not {asked!r}")
    from vla.envs.scene import CAMERAS

    store = VqaStore(out) if open_folder(out).exists("") else VqaStore.create(out, CAMERAS, 96, 96, codec)
    blocks = list(batched(range(seed + len(store), seed + scenes), BLOCK))
    with (
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
        tqdm(total=scenes, initial=len(store), desc="scenes", unit="scene") as bar,
    ):
        for samples in pool.map(_sampled, blocks, [randomize] * len(blocks), [asked] * len(blocks)):
            items = [item for item, _ in samples]
            if hosted is not None:
                wrote = hosted_instructions([scene for _, scene in samples], hosted)
                pairs = zip(items, wrote, strict=True)
                items = [replace(item, questions=qs, source=f"scenes, {asked}") for item, qs in pairs]
            store.append(items)
            bar.update(len(items))
    print(f"{out}: {len(store)} scenes; vla data info {shlex.quote(out)}", flush=True)
    return store


def sample_items(seeds: tuple[int, ...], randomize: bool, asked: str = "short") -> list[VqaItem]:
    """One item a seed; the same seed gives the same item, in whatever process."""
    return [item for item, _ in _sampled(seeds, randomize, asked)]


def _sampled(seeds: tuple[int, ...], randomize: bool, asked: str) -> list[tuple[VqaItem, Scene]]:
    from vla.envs.random_scene import SceneSampler

    sampler = SceneSampler(randomize=randomize)
    try:
        samples = [(seed, *sampler.sample(seed)) for seed in seeds]
        return [(_item(seed, images, scene, asked), scene) for seed, images, scene in samples]
    finally:
        sampler.close()


def _item(seed: int, images: dict[str, UInt8[np.ndarray, "h w 3"]], scene: Scene, asked: str) -> VqaItem:
    made: list[Question] = []
    if asked in ("short", "all"):
        rng = np.random.default_rng([seed, 11])
        made = questions(scene, rng, FRONT_KINDS, FRONT_QUESTIONS)
        made += questions(scene, rng, ("point", "existence"), WRIST_QUESTIONS, camera="wrist")
    if asked in ("instruct", "all"):
        made += instructions(scene, np.random.default_rng([seed, 12]))
    return VqaItem(images, tuple(made), "scenes")
