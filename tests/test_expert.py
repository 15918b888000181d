from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vla.envs import MAX_STEPS
from vla.envs.make import make_env
from vla.envs.objects import SHAPES, ObjectSpec
from vla.envs.scripted_expert import GRIPPER_STEP, MAX_STEP, ScriptedExpert
from vla.envs.tasks import TASKS

NOISE = {"bimanual-lift": 0.01}
"""[rad] where it is not 0.03: twelve noisy joints on one bar."""


def success_rate(task: str, seeds: range, noise: float = 0.0, perturb: bool = False, axes: Sequence[str] = ()) -> float:
    """The part of the seeds that the expert solves, `noise` [rad] added to what is executed."""
    env = make_env(task, images=False, holdout=True, axes=axes)  # the expert does not look
    expert, solved = ScriptedExpert(env), 0
    for seed in seeds:
        _, info = env.reset(seed=seed, options={"perturb": perturb})
        expert.reset()
        rng, drift, over = np.random.default_rng(seed), np.zeros(len(env.unwrapped.embodiment.action)), False
        while not over:
            # Correlated over about three steps, as a policy's own errors are.
            drift = 0.7 * drift + np.sqrt(1 - 0.7**2) * noise * rng.normal(size=len(drift))
            _, _, terminated, truncated, info = env.step(expert.act() + drift)
            over = terminated or truncated
        solved += info["success"] and not info["wrong_object"]
    env.close()
    return solved / len(seeds)


@pytest.mark.parametrize("task", TASKS)
def test_solves_its_task(task: str) -> None:
    assert success_rate(task, range(100, 106 if MAX_STEPS[task] > 200 else 115)) >= 0.95


@pytest.mark.parametrize("task", TASKS)
def test_recovers_from_noise_and_any_start(task: str) -> None:
    seeds = range(200, 203 if MAX_STEPS[task] > 200 else 210)
    assert success_rate(task, seeds, NOISE.get(task, 0.03), perturb=True) >= 0.9


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("axis", ["position", "distractors"])
def test_solves_it_off_the_training_scenes(task: str, axis: str) -> None:
    assert success_rate(task, range(300, 301 if MAX_STEPS[task] > 200 else 304), axes=(axis,)) >= 0.8


@pytest.mark.parametrize("seed", range(4))
def test_finds_the_one_closer_or_farther(seed: int) -> None:
    assert success_rate("relation", range(seed, seed + 1), axes=("relation",)) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("noisy", "perturb"), [(False, False), (False, True), (True, True)])
def test_solves_a_hundred(task: str, noisy: bool, perturb: bool) -> None:
    noise = NOISE.get(task, 0.03) if noisy else 0.0
    assert success_rate(task, range(1000, 1100), noise, perturb) >= (0.9 if noisy else 0.95)


def test_acts_on_the_present_state_alone_and_in_limited_steps() -> None:
    env = make_env("pick")
    unwrapped: Any = env.unwrapped
    expert = ScriptedExpert(env)
    env.reset(seed=2)
    for _ in range(15):
        joints = unwrapped.scene.data.qpos[:6].copy()
        action = expert.act()
        np.testing.assert_array_equal(action, ScriptedExpert(env).act())
        assert np.abs(action - joints)[:5].max() <= MAX_STEP + 1e-9
        assert abs(action[5] - joints[5]) <= GRIPPER_STEP + 1e-9
        env.step(action)
    env.close()


def test_lifts_the_swapped_object() -> None:
    env = make_env("pick")
    env.reset(seed=11, options={"swap": True})
    expert, over, info = ScriptedExpert(env), False, {}
    while not over:
        _, _, terminated, truncated, info = env.step(expert.act())
        over = terminated or truncated
    assert info["success"] and not info["wrong_object"]
    env.close()


@pytest.mark.parametrize("aside", [(0.01, 0.0), (-0.01, 0.0), (0.0, 0.01), (0.0, -0.01)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_grasp_a_centimetre_off_center_holds(shape: str, aside: tuple[float, float]) -> None:
    env = make_env("pick", randomize=False, images=False, max_episode_steps=1000)
    unwrapped: Any = env.unwrapped
    env.reset(seed=0)
    unwrapped.scene.place((ObjectSpec("red", shape, 0.24, 0.03, 0.1), ObjectSpec("blue", "ball", 0.2, -0.1)), ())
    unwrapped.target = 0
    exact = unwrapped.ik.solve
    unwrapped.ik.solve = lambda place, pitch, yaw: exact(place + np.array([*aside, 0.0]), pitch, yaw)
    expert = ScriptedExpert(env)
    heights = []
    for _ in range(70):
        env.step(expert.act())
        heights.append(float(unwrapped.scene.object_position(0)[2]))
    assert min(heights[-20:]) > 0.08
    env.close()
