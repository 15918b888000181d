"""Each axis of evaluation changes one thing of an episode, and training data hold nothing that is held out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vla.envs.axes import AXES, is_held_out
from vla.envs.objects import HELD_OUT, ODD_COLORS, Layout
from vla.envs.so101 import SO101Env
from vla.envs.tasks import TASKS
from vla.envs.tasks.relation import HELD_OUT_RELATIONS, RELATIONS

SEEDS = range(6)


def aspects(env: SO101Env, seed: int) -> dict[str, Any]:
    """What an axis may change of an episode, by the axis; `rest` is what none may."""
    _, info = env.reset(seed=seed)
    scene, model = env.scene, env.scene.model
    things = Layout(scene.objects, scene.goals, scene.fixtures).things
    where = np.array([(t.x, t.y) for t in things])
    template = next(t for split in env.task.templates.values() for t in split if matches(t, info["instruction"]))
    return {
        "object": [t.color for t in things],
        "position": where - where.mean(axis=0) if env.task.name == "relation" else where,
        "relation": info["instruction"].split(" the ")[1:],
        "phrasing": template,
        "distractors": scene.distractors,
        "light": np.concatenate([model.light_diffuse, model.light_dir, [model.vis.headlight.ambient]]),
        "camera": np.concatenate([model.cam_pos, model.cam_quat], axis=1),
        "rest": (env.target, env.goal, scene.goals, [t.kind for t in things], scene.data.ctrl.copy()),
    }


def matches(template: str, text: str) -> bool:
    """Whether a text may be the template with its fields filled."""
    parts = template.replace("}", "{").split("{")[::2]
    return text.startswith(parts[0]) and text.endswith(parts[-1]) and all(part in text for part in parts)


@pytest.fixture(scope="module")
def make() -> Any:
    """Environments by task and axes, each made once."""
    made: dict[tuple[str, tuple[str, ...]], SO101Env] = {}

    def get(task: str, *axes: str) -> SO101Env:
        if (task, axes) not in made:
            made[task, axes] = SO101Env(task, images=False, holdout=True, axes=axes)
        return made[task, axes]

    yield get
    for env in made.values():
        env.close()


@pytest.mark.parametrize("axis", [axis for axis in AXES if axis != "relation"])
@pytest.mark.parametrize("task", TASKS)
def test_an_axis_changes_that_and_only_that(make: Callable[..., SO101Env], task: str, axis: str) -> None:
    plain, changed = make(task), make(task, axis)
    differ = 0
    for seed in SEEDS:
        one, other = aspects(plain, seed), aspects(changed, seed)
        same = one.keys() - {axis} - ({"relation"} if axis in ("object", "phrasing") else set())
        for aspect in sorted(same):
            np.testing.assert_equal(one[aspect], other[aspect], err_msg=f"{task} {axis} {aspect}")
        try:
            np.testing.assert_equal(one[axis], other[axis])
        except AssertionError:
            differ += 1
    assert differ == len(SEEDS) or (task, axis) == ("relation", "position")


def test_relations_of_the_axis_are_none_of_training(make: Callable[..., SO101Env]) -> None:
    said: dict[bool, set[str]] = {True: set(), False: set()}
    for seed in range(20):
        for unfamiliar in (True, False):
            env = make("relation", "relation") if unfamiliar else make("relation")
            _, info = env.reset(seed=seed)
            said[unfamiliar] |= {r for r in (*RELATIONS, *HELD_OUT_RELATIONS) if r in info["instruction"]}
            one, third = env.scene.objects[env.target], env.scene.objects[2]
            if "left of" in info["instruction"]:
                assert one.y > third.y + 0.05
            if "closer to the robot" in info["instruction"]:
                assert one.x < third.x - 0.05
    assert said == {True: set(HELD_OUT_RELATIONS), False: set(RELATIONS)}


@pytest.mark.parametrize("task", TASKS)
def test_held_out_pairs_are_named_on_the_axis_and_never_in_training(make: Callable[..., SO101Env], task: str) -> None:
    plain, changed = make(task), make(task, "object")
    for seed in range(40):
        plain.reset(seed=seed)
        layout = Layout(plain.scene.objects, plain.scene.goals, plain.scene.fixtures)
        assert not any(is_held_out(thing) for thing in layout.things)
        changed.reset(seed=seed)
        layout = Layout(changed.scene.objects, changed.scene.goals, changed.scene.fixtures)
        named = changed.task.named(layout, changed.target, changed.goal)
        assert all(is_held_out(layout.things[i]) for i in named)


def test_holding_out_recolors_only_what_is_held_out() -> None:
    plain, rid = SO101Env(images=False), SO101Env(images=False, holdout=True)
    changed = 0
    for seed in range(40):
        plain.reset(seed=seed)
        rid.reset(seed=seed)
        for one, other in zip(plain.scene.objects, rid.scene.objects, strict=True):
            assert (one == other) is not is_held_out(one)
            changed += one != other
        assert len({o.color for o in rid.scene.objects}) == len(rid.scene.objects)
    assert changed > 0
    plain.close()
    rid.close()


def test_positions_of_the_axis_are_none_of_training(make: Callable[..., SO101Env]) -> None:
    for seed in range(40):
        env = make("pick", "position")
        env.reset(seed=seed)
        target = env.scene.objects[env.target]
        assert not (0.16 <= target.x <= 0.31 and abs(target.y) <= 0.145)


def test_distractors_are_of_no_kind_that_is_named(make: Callable[..., SO101Env]) -> None:
    for task in TASKS:
        env = make(task, "distractors")
        env.reset(seed=1)
        assert env.scene.distractors
        for odd in env.scene.distractors:
            assert odd.shape not in HELD_OUT and odd.color in ODD_COLORS
            assert all(np.hypot(odd.x - o.x, odd.y - o.y) > 0.06 for o in env.scene.objects)


def test_light_and_cameras_of_the_axes_are_beyond_those_of_training(make: Callable[..., SO101Env]) -> None:
    spread: dict[str, list[Any]] = {"light": [], "camera": []}
    for seed in range(40):
        shown = aspects(make("pick"), seed)
        for axis, values in spread.items():
            values.append(shown[axis])
    for axis, values in spread.items():
        low, high = np.min(values, axis=0), np.max(values, axis=0)
        for seed in range(10):
            odd = aspects(make("pick", axis), seed)[axis]
            beyond = (odd < low - 1e-9) | (odd > high + 1e-9)
            assert beyond.any(axis=1).all(), (axis, seed, odd)
