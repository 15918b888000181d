"""Contacts of the robot arm in simulation."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from vla.envs.arm import ARM_CONTYPE
from vla.envs.objects import Layout


def touched(env: gymnasium.Env[Any, Any]) -> frozenset[str]:
    """The table and the objects in contact with the arm, except objects that it may handle.

    Excluded are the objects of the instruction and objects in contact with two links (grasped). Links do not collide
    with each other (`vla.envs.arm`). Empty for an environment without a table scene.
    """
    inner = env.unwrapped
    scene = getattr(inner, "scene", None)
    if scene is None or not hasattr(scene, "object_bodies"):
        return frozenset()
    model, data = scene.model, scene.data
    pairs = data.contact.geom[: data.ncon]
    ours = model.geom_contype[pairs] == ARM_CONTYPE
    mixed = ours[:, 0] != ours[:, 1]
    arm, other = (
        model.geom_bodyid[np.where(ours[mixed] == side, pairs[mixed], -1).max(axis=1)] for side in (True, False)
    )
    links_of: dict[int, set[int]] = {}
    for link, body in zip(arm.tolist(), other.tolist(), strict=True):
        links_of.setdefault(body, set()).add(link)
    layout = Layout(scene.objects, scene.goals, scene.fixtures)
    named = inner.task.named(layout, inner.target, inner.goal)  # type: ignore[attr-defined]
    handled = {int(scene.object_bodies[i]) for i in named if i < len(scene.object_bodies)}
    handled |= {body for body, links in links_of.items() if len(links) > 1}
    objects = set(scene.object_bodies.tolist()) - handled
    table = int(model.geom("table").bodyid[0])
    names = {model.body(body).name for body in links_of if body in objects}
    return frozenset(names | {"table"} if table in links_of else names)
