"""`vla record`: records demonstrations of a scripted expert or an operator, or scenes with questions, into a store."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from vla.commands.operation_checks import check_demonstrations, check_own_store, check_seed
from vla.errors import InputError
from vla.types import Episode, Observation

if TYPE_CHECKING:
    import gymnasium

    from vla.datasets.episodes import EpisodeStore
    from vla.robots.robot import Robot

PERTURBED = 0.5
"""The share of episodes that start from a random pose instead of the arm's resting pose."""
NOISE_CORRELATION = 0.7
"""The correlation of the noise on consecutive actions."""
NOISE_FREE = 0.2
"""The share of episodes without noise."""


def record(
    *,
    task: str,
    episodes: int,
    out: str,
    codec: str,
    seed: int,
    noise: float,
    randomize: bool,
    workers: int,
    questions: str = "short",
    robot: Robot | None = None,
    **operated: Any,
) -> None:
    """Records until the store holds the requested number of successful episodes or scenes.

    Scripted demonstrations exclude the pairs of colour and shape that evaluation holds out (`vla.envs.axes`). The store
    of an interrupted run is continued with the missing seeds.

    Args:
        task: Task of the scripted expert, or "scenes"; ignored with a robot.
        episodes: Number of episodes, or of scenes, in the complete store.
        out: The store.
        codec: Image codec of a new store (`vla.datasets.codecs`).
        seed: Seed of the first scene.
        noise: Standard deviation of the noise on executed actions [rad, or the action's unit].
        randomize: Varies light, colours, cameras and textures.
        workers: Number of processes.
        questions: Kind of the questions about scenes (`vla.commands.record_scenes`).
        robot: A robot that an operator moves instead of the expert.
        **operated: Options of `vla.commands.record_robot.record_robot`.

    Raises:
        InputError: The task is unknown, the seed is negative, or the store holds other data. Nothing is written.
    """
    if robot is not None:
        from vla.commands.record_robot import record_robot

        check_own_store(out, task)
        record_robot(robot=robot, episodes=episodes, out=out, codec=codec, **operated)
        return
    if task == "scenes":
        check_seed(seed)
        from vla.commands.record_scenes import record_scenes

        record_scenes(out, episodes, seed, randomize, workers, codec, questions)
    else:
        record_demonstrations(task, episodes, out, seed, noise, randomize, workers, codec, holdout=True)


def record_demonstrations(
    task: str,
    episodes: int,
    out: str,
    seed: int,
    noise: float,
    randomize: bool,
    workers: int,
    codec: str = "zstd",
    *,
    holdout: bool = False,
) -> None:
    """Records demonstrations of a scripted expert (see `record`); failed attempts are skipped.

    With `holdout`, scenes exclude the held-out pairs of colour and shape. The demo records all pairs.
    """
    from vla.datasets.episodes import EpisodeStore
    from vla.datasets.open_folder import open_folder
    from vla.envs.make import make_env
    from vla.recording.session_end import print_episode_count, remove_empty_on_error

    check_demonstrations(episodes, workers, noise, seed)
    env = make_env(task, randomize=randomize)
    embodiment = env.unwrapped.embodiment  # type: ignore[attr-defined]
    env.close()
    resumed = open_folder(out).exists("")
    store = EpisodeStore.open(out, "a") if resumed else EpisodeStore.create(out, embodiment, codec)
    before = len(store)
    with store, remove_empty_on_error(out, store):
        store.embodiment.check(embodiment)
        if others := {str(r.info.get("task")) for r in store.records} - {task}:
            raise InputError(f"{out} holds episodes of {', '.join(sorted(others))}: record {task} into another folder")
        next_seed = max((int(r.info["seed"]) + 1 for r in store.records), default=seed)
        if resumed:
            _print_differences(store, out, codec, noise, seed, next_seed)
        next_seed = max(next_seed, seed)
        with (
            ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
            tqdm(total=episodes, initial=len(store), desc=f"record {task}", unit="episode") as bar,
        ):
            seed_ranges = ([s, s + 8] for s in count(next_seed, 8))
            while len(store) < episodes:
                batch = list(islice(seed_ranges, 4 * workers))
                jobs = zip(*([task, *seeds, noise, randomize, holdout] for seeds in batch), strict=True)
                for found in pool.map(_demonstrations, *jobs):
                    for episode in found[: episodes - len(store)]:
                        store.append(episode)
                        bar.update()
        print_episode_count(out, store, before, finished=before >= episodes)


def _print_differences(store: EpisodeStore, out: str, codec: str, noise: float, seed: int, next_seed: int) -> None:
    """Prints the options that differ from the settings with which the store was recorded."""
    before = {float(r.info.get("noise", 0.0)) for r in store.records} - {0.0}
    lines = [f"its images stay {store.codec}, not {codec}"] * (codec != store.codec)
    lines += [f"noise {', '.join(f'{value:g}' for value in sorted(before))} -> {noise:g}"] * bool(before - {noise})
    lines += [f"seed {seed} -> {next_seed}, the first missing one"] * (len(store) > 0 and 0 < seed < next_seed)
    if lines:
        print(f"{out} is continued: {'; '.join(lines)}", flush=True)


def _demonstrations(task: str, first: int, end: int, noise: float, randomize: bool, holdout: bool) -> list[Episode]:
    from vla.envs.make import make_env

    env = make_env(task, randomize=randomize, holdout=holdout)
    try:
        return list(_successes(env, task, range(first, end), noise))
    finally:
        env.close()


def _successes(env: gymnasium.Env, task: str, seeds: range, noise: float) -> Iterator[Episode]:
    for seed in seeds:
        episode = demonstrate(env, task, seed, noise)
        if episode.success:
            yield episode


def demonstrate(env: gymnasium.Env, task: str, seed: int, noise: float) -> Episode:
    """Runs the expert on one episode.

    The executed action has noise that is correlated in time; the recorded action is the clean one, so that the data
    shows recovery (DART, Laskey et al. 2017).

    Args:
        env: The environment.
        task: Name of the task, stored with the episode.
        seed: Seed of the scene and of the noise.
        noise: Standard deviation of the noise [rad, or the action's unit].

    Returns:
        The episode, successful or not.
    """
    from vla.envs.scripted_expert import expert_of
    from vla.envs.so101 import to_observation

    rng = np.random.default_rng([seed, 23])
    perturb, noise_free = rng.random() < PERTURBED, rng.random() < NOISE_FREE
    values, info = env.reset(seed=seed, options={"perturb": bool(perturb)})
    expert, embodiment = expert_of(env), env.unwrapped.embodiment  # type: ignore[attr-defined]
    observations: list[Observation] = []
    actions: list[Float[np.ndarray, "a"]] = []
    points: list[Float[np.ndarray, "p 2"]] = []
    disturbance = np.zeros(len(embodiment.action))
    done = False
    while not done:
        observations.append(to_observation(values, len(observations) / embodiment.control_hz))
        if "points" in info:
            points.append(info["points"])
        actions.append(expert.act())
        innovation = rng.normal(size=len(disturbance)) * (0.0 if noise_free else noise)
        disturbance = NOISE_CORRELATION * disturbance + (1 - NOISE_CORRELATION**2) ** 0.5 * innovation
        values, _, terminated, truncated, info = env.step(actions[-1] + disturbance)
        done = terminated or truncated
    return Episode(
        images={c: np.stack([o.images[c] for o in observations]) for c in embodiment.cameras},
        state=np.stack([o.state for o in observations]).astype(np.float64),
        action=np.stack(actions),
        time=np.array([o.time for o in observations]),
        points=np.stack(points) if points else None,
        instruction=info["instruction"],
        embodiment=embodiment,
        success=bool(info["success"]),
        info={
            "task": task,
            "seed": seed,
            "noise": 0.0 if noise_free else noise,
            "perturb": bool(perturb),
            "policy": "expert",
        },
    )
