"""What an arm touches in simulation."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from vla.envs.arm import ARM_CONTYPE
from vla.envs.objects import Layout


def touched(env: gymnasium.Env[Any, Any]) -> frozenset[str]:
    """The table and the objects that an arm is in contact with now, but for those that it is to handle.

    Left out are the things that the instruction names, and what two parts of a hand hold between them. The parts of an
    arm do not collide with each other (`vla.envs.arm`). Empty for an environment without a table scene.
    """
    inner = env.unwrapped
    scene = getattr(inner, "scene", None)
    if scene is None or not hasattr(scene, "object_bodies"):
        return frozenset()
    model, data = scene.model, scene.data
    pairs = data.contact.geom[: data.ncon]
    ours = model.geom_contype[pairs] == ARM_CONTYPE
    one = ours[:, 0] != ours[:, 1]
    arm, other = (model.geom_bodyid[np.where(ours[one] == side, pairs[one], -1).max(axis=1)] for side in (True, False))
    by: dict[int, set[int]] = {}
    for link, body in zip(arm.tolist(), other.tolist(), strict=True):
        by.setdefault(body, set()).add(link)
    layout = Layout(scene.objects, scene.goals, scene.fixtures)
    named = inner.task.named(layout, inner.target, inner.goal)  # type: ignore[attr-defined]
    handled = {int(scene.object_bodies[i]) for i in named if i < len(scene.object_bodies)}
    handled |= {body for body, links in by.items() if len(links) > 1}
    objects = set(scene.object_bodies.tolist()) - handled
    table = int(model.geom("table").bodyid[0])
    found = {model.body(body).name for body in by if body in objects}
    return frozenset(found | {"table"} if table in by else found)
