"""Open or close the named one of two drawers."""

from __future__ import annotations

from typing import override

import numpy as np
from jaxtyping import Float

from vla.envs.fixtures import DRAWER_TRAVEL
from vla.envs.objects import COLORS, FixtureSpec, Furniture, Layout
from vla.envs.primitives import CLOSED, Command, close_on, contacts, direction, present_yaw, tip_of
from vla.envs.scene import TableScene
from vla.envs.tasks.task import FixtureTask, Span, shifted

DRAWERS = tuple(f"{color} drawer" for color in COLORS)
WIDE = 0.6
"""The gripper angle before a grasp of the handle [rad]."""
ALMOST, PRESS = 0.3, 0.005
"""Below the gripper angle ALMOST [rad] the fixed finger is pressed against the handle by PRESS [m]."""
EMPTY = 0.02
"""Below this gripper angle the jaws have missed the handle, and retry from above [rad]."""
OPENED, SHUT = 0.75, 0.1
"""Shares of its travel above which the drawer is open, and below which it is closed."""
PULL = 0.03
"""The distance of the commanded position ahead of the hand along the drawer [m]."""


class _Drawer(FixtureTask):
    furniture = Furniture(shapes=(), goals=0, fixture="drawer", fixtures=2)
    vocabulary = {"drawer": DRAWERS}
    OPENING: tuple[float, float]
    AHEAD: float

    @override
    def layout(self, rng: np.random.Generator) -> Layout:
        colors = rng.permutation(list(COLORS))
        x, y = float(rng.uniform(0.290, 0.302)), float(rng.uniform(-0.012, 0.012))
        openings = rng.uniform(*self.OPENING, 2)
        placed = zip(colors, (y + 0.058, y - 0.058), openings, strict=False)
        return Layout(fixtures=tuple(FixtureSpec("drawer", str(c), x, side, float(o)) for c, side, o in placed))

    @override
    def move_outside(self, layout: Layout, named: tuple[int, ...], rng: np.random.Generator) -> Layout:
        return shifted(layout, 0.0, 0.035 * rng.choice([-1, 1]))

    @override
    def occupied(self, layout: Layout) -> list[Span]:
        # From the handle of the open drawer to the back of the case.
        return [(f.x + dx, f.y) for f in layout.fixtures for dx in (-0.11, -0.06, 0.0, 0.045, 0.09)]

    @override
    def points(self, scene: TableScene, target: int, goal: int) -> list[Float[np.ndarray, "3"]]:
        handle, out = scene.fixture_position(target), scene.fixture_travel(target)
        return [handle, handle + (out - (DRAWER_TRAVEL if self.AHEAD < 0 else 0.0), 0, 0)]

    @override
    def done(self, scene: TableScene, target: int, goal: int) -> bool:
        travel = scene.fixture_travel(target)
        return travel > OPENED * DRAWER_TRAVEL if self.AHEAD < 0 else travel < SHUT * DRAWER_TRAVEL

    @override
    def plan(self, scene: TableScene, target: int, goal: int) -> Command:
        handle, yaw = scene.fixture_position(target), -np.pi / 2
        if contacts(scene, scene.fixture_geom(target)) < 2:
            if scene.data.qpos[5] < EMPTY:
                return Command(tip_of(scene) + (0, 0, PULL), yaw, WIDE)
            if scene.data.qpos[5] < ALMOST:
                handle[:2] += PRESS * direction(yaw)
            return close_on(scene, scene.arms[0], handle, yaw, WIDE)
        tip = tip_of(scene)
        return Command(np.array([tip[0] + self.AHEAD, tip[1], tip[2]]), present_yaw(scene), CLOSED)


class DrawerOpen(_Drawer):
    """Success: the drawer is open by more than three quarters of its travel; both start closed."""

    name = "drawer-open"
    OPENING, AHEAD = (0.0, 0.004), -PULL
    templates = {
        "train": (
            "open the {drawer}",
            "pull the {drawer} open",
            "pull out the {drawer}",
            "please open the {drawer}",
        ),
        "heldout": ("could you pull the {drawer} out", "the {drawer} should be open"),
    }


class DrawerClose(_Drawer):
    """Success: the drawer is open by less than a tenth of its travel; both start open."""

    name = "drawer-close"
    OPENING, AHEAD = (0.062, 0.076), PULL
    templates = {
        "train": (
            "close the {drawer}",
            "shut the {drawer}",
            "push the {drawer} shut",
            "please close the {drawer}",
        ),
        "heldout": ("could you push the {drawer} in", "the {drawer} should be closed"),
    }
