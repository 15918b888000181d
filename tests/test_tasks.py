"""When a task is met and when another was done, judged on states that are put there by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import pytest

from vla.envs.make import make_env
from vla.envs.objects import Layout
from vla.envs.so101 import HOLD_STEPS, SO101Env
from vla.envs.tasks import TASKS
from vla.envs.tasks.rearrange import ORDERS


@pytest.fixture
def env(request: pytest.FixtureRequest) -> Iterator[SO101Env]:
    env = SO101Env(request.param, images=False, randomize=False)
    env.reset(seed=1, options={"target": 0})
    yield env
    env.close()


def put(env: SO101Env, *places: tuple[int, float, float, float]) -> None:
    """Moves objects to (x, y, z) [m], at rest."""
    model, data = env.scene.model, env.scene.data
    for index, *place in places:
        joint = model.joint(f"object{index}").id
        data.qpos[model.jnt_qposadr[joint] : model.jnt_qposadr[joint] + 7] = (*place, 1, 0, 0, 0)
        data.qvel[model.jnt_dofadr[joint] : model.jnt_dofadr[joint] + 6] = 0


def slide(env: SO101Env, joint: str, to: float) -> None:
    env.scene.data.qpos[env.scene.model.jnt_qposadr[env.scene.model.joint(joint).id]] = to


def wait(env: SO101Env, steps: int = 12) -> dict[str, Any]:
    info: dict[str, Any] = {}
    for _ in range(steps):
        *_, info = env.step(env.scene.data.ctrl.copy())
    return info


@pytest.mark.parametrize("task", TASKS)
def test_nothing_is_done_at_the_start(task: str) -> None:
    env = SO101Env(task, images=False)
    for seed in range(8):
        env.reset(seed=seed)
        targets, goals = env.task.choices(Layout(env.scene.objects, env.scene.goals, env.scene.fixtures))
        which = [(t, g) for t in range(targets) for g in range(goals)]
        assert not any(env.task.done(env.scene, *w) or env.task.wrong(env.scene, *w) for w in which)
    env.close()


@pytest.mark.parametrize("env", ["stack"], indirect=True)
def test_stacked_is_on_top_at_rest(env: SO101Env) -> None:
    base, other = (env.target + 1 + env.goal) % 3, (env.target + 2 - env.goal) % 3
    place = env.scene.objects[base]
    put(env, (env.target, place.x, place.y, 0.06))
    info = wait(env)
    assert info["success"] and not info["wrong_object"]
    place = env.scene.objects[other]
    put(env, (env.target, place.x, place.y, 0.055))
    info = wait(env)
    assert not info["success"] and info["wrong_object"]


@pytest.mark.parametrize("env", ["order"], indirect=True)
@pytest.mark.parametrize("order", range(6))
def test_a_row_is_judged_by_its_order(env: SO101Env, order: int) -> None:
    put(env, *((i, 0.25, y, 0.018) for i, y in zip(ORDERS[order], (0.1, 0.02, -0.06), strict=True)))
    info = wait(env)
    assert (info["success"], info["wrong_object"]) == (order == 0, order != 0)


@pytest.mark.parametrize("env", ["count"], indirect=True)
@pytest.mark.parametrize(("inside", "success", "wrong"), [((0,), 1, 0), ((0, 1), 0, 1), ((3,), 0, 1), ((), 0, 0)])
def test_one_is_not_two(env: SO101Env, inside: tuple[int, ...], success: int, wrong: int) -> None:
    bowl = env.scene.goals[0]
    put(env, *((i, bowl.x + 0.02 - 0.04 * n, bowl.y, 0.03) for n, i in enumerate(inside)))
    info = wait(env)
    assert (info["success"], info["wrong_object"]) == (bool(success), bool(wrong))


@pytest.mark.parametrize("env", ["sort"], indirect=True)
@pytest.mark.parametrize("right", [True, False])
def test_sorted_is_all_in_their_bowls(env: SO101Env, right: bool) -> None:
    colors = [o.color for o in env.scene.objects]
    for i, color in enumerate(colors):
        bowl = env.scene.goals[(color != colors[0]) == right]
        put(env, (i, bowl.x + (0.02 if i < 2 else -0.02), bowl.y, 0.03))
        info = wait(env, 6)
        assert info["success"] is False or i == 2
    info = wait(env)
    assert (info["success"], info["wrong_object"]) == (right, not right)


@pytest.mark.parametrize("env", ["press", "drawer-open", "drawer-close"], indirect=True)
@pytest.mark.parametrize("number", [0, 1])
def test_a_fixture_is_judged_by_how_far_it_moved(env: SO101Env, number: int) -> None:
    kind = env.scene.fixtures[0].kind
    info: dict[str, Any] = {}
    for _ in range(HOLD_STEPS):
        slide(env, f"{kind}{number}", {"press": -0.012, "drawer-open": 0.079, "drawer-close": 0.001}[env.task.name])
        if kind == "button":  # hold it down against its spring
            env.scene.model.dof_damping[env.scene.model.jnt_dofadr[env.scene.model.joint(f"button{number}").id]] = 1e4
        info = wait(env, 1)
    assert (info["success"], info["wrong_object"]) == (number == 0, number == 1)


@pytest.mark.parametrize("env", ["bimanual-lift"], indirect=True)
def test_a_bar_in_the_air_without_hands_is_not_lifted(env: SO101Env) -> None:
    put(env, (0, 0.2, 0.0, 0.15))
    mujoco.mj_forward(env.scene.model, env.scene.data)
    assert not env.task.done(env.scene, 0, 0)
    assert len(env.embodiment.action) == 12 and env.embodiment.cameras == ("front", "left_wrist", "right_wrist")
    np.testing.assert_allclose(env.embodiment.action_low[:6], env.embodiment.action_low[6:])


def test_every_task_has_a_gymnasium_id() -> None:
    for task in TASKS:
        env = make_env(task, images=False)
        name = "".join(word.capitalize() for word in task.split("-"))
        assert env.spec is not None and env.spec.id == f"vla/SO101-{name}-v1"
        env.close()
