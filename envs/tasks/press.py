"""Press the named button."""

from __future__ import annotations

from typing import override

import numpy as np
from jaxtyping import Float

from vla.envs.fixtures import BUTTON_HEIGHT, BUTTON_TRAVEL
from vla.envs.objects import COLORS, FixtureSpec, Furniture, Layout
from vla.envs.primitives import CLOSED, HOVER, Command, direction, radial_yaw, tip_of, to_fingers
from vla.envs.scene import TableScene
from vla.envs.tasks.task import FixtureTask, shifted

PRESSED = 0.6 * BUTTON_TRAVEL
ABOVE, ALIGNED = 0.035, 0.010
"""The closed fingers stay ABOVE the button until they are ALIGNED with it [m]."""


class Press(FixtureTask):
    """Success: the button is pressed."""

    name = "press"
    furniture = Furniture(shapes=(), goals=0, fixture="button", fixtures=3)
    vocabulary = {"button": tuple(f"{color} button" for color in COLORS)}
    templates = {
        "train": (
            "press the {button}",
            "push the {button}",
            "press the {button} down",
            "please press the {button}",
            "hit the {button}",
        ),
        "heldout": ("could you press down the {button}", "the {button}, press it"),
    }

    @override
    def layout(self, rng: np.random.Generator) -> Layout:
        colors = rng.permutation(list(COLORS))
        spots = [(rng.uniform(0.185, 0.235), y + rng.uniform(-0.015, 0.015)) for y in (0.09, 0.0, -0.09)]
        placed = zip(colors, spots, strict=False)
        return Layout(fixtures=tuple(FixtureSpec("button", str(c), float(x), float(y)) for c, (x, y) in placed))

    @override
    def move_outside(self, layout: Layout, named: tuple[int, ...], rng: np.random.Generator) -> Layout:
        return shifted(layout, 0.055, 0.0)

    @override
    def points(self, scene: TableScene, target: int, goal: int) -> list[Float[np.ndarray, "3"]]:
        cap = scene.fixture_position(target)
        return [cap, cap - (0, 0, BUTTON_TRAVEL + scene.fixture_travel(target))]

    @override
    def done(self, scene: TableScene, target: int, goal: int) -> bool:
        return scene.fixture_travel(target) < -PRESSED

    @override
    def plan(self, scene: TableScene, target: int, goal: int) -> Command:
        button, tip = scene.fixtures[target], tip_of(scene)
        yaw = radial_yaw(np.array([button.x, button.y]))
        goto = np.array([button.x, button.y]) - to_fingers(direction(yaw))
        distance = float(np.hypot(*(goto - tip[:2])))
        down = distance < ALIGNED and scene.data.qpos[5] < 0.05
        height = BUTTON_HEIGHT - BUTTON_TRAVEL - 0.008 if down else BUTTON_HEIGHT + ABOVE
        if tip[2] < height - 0.02:  # rise before crossing the table
            goto, height = tip[:2], BUTTON_HEIGHT + HOVER
        return Command(np.array([*goto, height]), yaw, CLOSED)
