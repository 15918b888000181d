"""`vla record task=scenes`: records random scenes, with questions from the simulator's ground truth, into a store."""

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
from vla.recording.session_end import are_requested

FRONT_KINDS = (*["point", "identify"] * 3, "existence", "color", "shape", "count", "relation", "relation")
FRONT_QUESTIONS, WRIST_QUESTIONS = 18, 4
QUESTION_SETS = ("short", "instruct", "all")
BLOCK = 128
"""Scenes of one task of a worker, which are committed to the store together."""


def record_scenes(
    out: str, scenes: int, seed: int, randomize: bool, workers: int, codec: str = "zstd", question_set: str = "short"
) -> VqaStore:
    """Adds scenes to a store until it holds `scenes`, continuing an interrupted run.

    Args:
        out: The store.
        scenes: Number of scenes in the complete store.
        seed: Seed of the first scene.
        randomize: Varies light, colours, cameras and textures.
        workers: Number of processes.
        codec: Image codec of a new store.
        question_set: "short" (`vla.datasets.questions`), "instruct" (`vla.datasets.instructions`), "all" (both), or a
            hosted model that writes instruction data: `hosted:FAMILY`, `hosted:MODEL@URL`.

    Raises:
        InputError: `out` is not a VQA store, or `question_set` is unknown.
    """
    if scenes < 1 or workers < 1:
        raise InputError(f"scenes and workers must be at least 1, not {scenes} and {workers}")
    hosted = None
    if question_set.startswith(HOSTED):
        hosted = open_hosted(question_set.removeprefix(HOSTED))
    elif question_set not in QUESTION_SETS:
        raise InputError(f"questions are {', '.join(QUESTION_SETS)} or hosted:MODEL, not {question_set!r}")
    from vla.envs.scene import CAMERAS

    store = VqaStore(out) if open_folder(out).exists("") else VqaStore.create(out, CAMERAS, 96, 96, codec)
    before = len(store)
    blocks = list(batched(range(seed + len(store), seed + scenes), BLOCK))
    with (
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
        tqdm(total=scenes, initial=len(store), desc="scenes", unit="scene") as bar,
    ):
        for samples in pool.map(_sampled, blocks, [randomize] * len(blocks), [question_set] * len(blocks)):
            items = [item for item, _ in samples]
            if hosted is not None:
                generated = hosted_instructions([scene for _, scene in samples], hosted)
                pairs = zip(items, generated, strict=True)
                items = [replace(item, questions=qs, source=f"scenes, {question_set}") for item, qs in pairs]
            store.append(items)
            bar.update(len(items))
    already = f" {are_requested(before)}" if before >= scenes else ""
    print(f"{out}: {len(store)} scenes{already}; vla data info {shlex.quote(out)}", flush=True)
    return store


def sample_items(seeds: tuple[int, ...], randomize: bool, question_set: str = "short") -> list[VqaItem]:
    """One item per seed; the same seed gives the same item in any process."""
    return [item for item, _ in _sampled(seeds, randomize, question_set)]


def _sampled(seeds: tuple[int, ...], randomize: bool, question_set: str) -> list[tuple[VqaItem, Scene]]:
    from vla.envs.random_scene import SceneSampler

    sampler = SceneSampler(randomize=randomize)
    try:
        samples = [(seed, *sampler.sample(seed)) for seed in seeds]
        return [(_item(seed, images, scene, question_set), scene) for seed, images, scene in samples]
    finally:
        sampler.close()


def _item(seed: int, images: dict[str, UInt8[np.ndarray, "h w 3"]], scene: Scene, question_set: str) -> VqaItem:
    generated: list[Question] = []
    if question_set in ("short", "all"):
        rng = np.random.default_rng([seed, 11])
        generated = questions(scene, rng, FRONT_KINDS, FRONT_QUESTIONS)
        generated += questions(scene, rng, ("point", "existence"), WRIST_QUESTIONS, camera="wrist")
    if question_set in ("instruct", "all"):
        generated += instructions(scene, np.random.default_rng([seed, 12]))
    return VqaItem(images, tuple(generated), "scenes")
