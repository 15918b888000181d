"""`vla record`: demonstrations of a scripted expert or of an operator, or scenes with questions, into a store."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from vla.errors import InputError
from vla.types import Episode, Observation

if TYPE_CHECKING:
    import gymnasium

    from vla.datasets.episodes import EpisodeStore
    from vla.robots.robot import Robot

PERTURBED = 0.5
"""The share of episodes that start from a random pose, in place of the arm's resting pose."""
NOISE_MEMORY = 0.7
"""How much of the noise on an action carries over to the next."""
QUIET = 0.2
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
    """Records until the store `out` holds `episodes` successes of the expert, or as many scenes (task "scenes").

    A new store's images are coded as `codec` (`vla.datasets.codecs`); `questions` says what is asked of scenes
    (`vla.commands.record_scenes`).

    With a `robot` they are an operator's, as `operated` says (`vla.commands.record_robot`), and `task` counts for
    nothing.

    Demonstrations leave out the pairs of colour and shape that evaluation holds out (`vla.envs.axes`).

    A store that a cut-off run left is continued with the seeds that it lacks. Raises InputError for an unknown
    task, a negative seed and a store of something else, before anything is written.
    """
    if robot is not None:
        from vla.commands.record_robot import record_robot

        if out == f"outputs/{task}.zarr":
            raise InputError("say where the demonstrations go: out=outputs/NAME.zarr")
        record_robot(robot=robot, episodes=episodes, out=out, codec=codec, **operated)
        return
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, not {seed}")
    if task == "scenes":
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
    """See `record`. Failed attempts are left out, and the next seed is tried.

    Without `holdout` scenes are of all pairs of colour and shape, as those that the demo is measured on.
    """
    from vla.datasets.episodes import EpisodeStore
    from vla.datasets.open_folder import open_folder
    from vla.envs.make import make_env
    from vla.recording.session_end import print_episode_count, remove_empty_on_error

    if episodes < 1 or workers < 1 or not 0 <= noise < 1:
        raise InputError(f"episodes and workers must be positive and noise in [0, 1): {episodes}, {workers}, {noise}")
    env = make_env(task, randomize=randomize)
    embodiment = env.unwrapped.embodiment  # type: ignore[attr-defined]
    env.close()
    begun = open_folder(out).exists("")
    store = EpisodeStore.open(out, "a") if begun else EpisodeStore.create(out, embodiment, codec)
    before = len(store)
    with store, remove_empty_on_error(out, store):
        store.embodiment.check(embodiment)
        if others := {str(r.info.get("task")) for r in store.records} - {task}:
            raise InputError(f"{out} holds episodes of {', '.join(sorted(others))}: record {task} into another folder")
        following = max((int(r.info["seed"]) + 1 for r in store.records), default=seed)
        if begun:
            _tell_continued(store, out, codec, noise, seed, following)
        following = max(following, seed)
        with (
            ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
            tqdm(total=episodes, initial=len(store), desc=f"record {task}", unit="episode") as bar,
        ):
            chunks = ([s, s + 8] for s in count(following, 8))
            while len(store) < episodes:
                ahead = list(islice(chunks, 4 * workers))
                jobs = zip(*([task, *c, noise, randomize, holdout] for c in ahead), strict=True)
                for found in pool.map(_demonstrations, *jobs):
                    for episode in found[: episodes - len(store)]:
                        store.append(episode)
                        bar.update()
        print_episode_count(out, store, before)


def _tell_continued(store: EpisodeStore, out: str, codec: str, noise: float, seed: int, following: int) -> None:
    """Prints what is asked for and differs from what the store holds; a new store would be made of it."""
    before = {float(r.info.get("noise", 0.0)) for r in store.records} - {0.0}
    told = [f"its images stay {store.codec}, not {codec}"] * (codec != store.codec)
    told += [f"noise {', '.join(f'{one:g}' for one in sorted(before))} -> {noise:g}"] * bool(before - {noise})
    told += [f"seed {seed} -> {following}, the first that it lacks"] * (len(store) > 0 and 0 < seed < following)
    if told:
        print(f"{out} goes on: {'; '.join(told)}", flush=True)


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
    """One attempt of the expert at the episode of `seed`.

    `noise` [rad, or the action's own unit] is the standard deviation of what is added to the executed action,
    correlated in time; the recorded action is the clean one, so the data shows how to come back (DART, Laskey et al.
    2017).
    """
    from vla.envs.scripted_expert import expert_of
    from vla.envs.so101 import to_observation

    rng = np.random.default_rng([seed, 23])
    perturb, quiet = rng.random() < PERTURBED, rng.random() < QUIET
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
        fresh = rng.normal(size=len(disturbance)) * (0.0 if quiet else noise)
        disturbance = NOISE_MEMORY * disturbance + (1 - NOISE_MEMORY**2) ** 0.5 * fresh
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
            "noise": 0.0 if quiet else noise,
            "perturb": bool(perturb),
            "policy": "expert",
        },
    )
