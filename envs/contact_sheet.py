"""A contact sheet of the tasks: `python -m vla.envs.contact_sheet docs/tasks.png`."""

from __future__ import annotations

import sys
from textwrap import fill

import numpy as np
from PIL import Image, ImageDraw

from vla.common.mujoco_gl import mujoco
from vla.envs.make import make_env
from vla.envs.scripted_expert import ScriptedExpert
from vla.envs.tasks import TASKS

SIZE, COLUMNS, CAPTION = 224, 4, 50
PROGRESS = 0.6
"""The fraction of the expert's episode at which the image is taken."""


def sheet(seed: int = 3) -> Image.Image:
    """The front camera's image of each task during the expert's episode, with its name and the instruction below."""
    rows = -(-len(TASKS) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * SIZE, rows * (SIZE + CAPTION)), "white")
    for number, task in enumerate(TASKS):
        x, y = number % COLUMNS * SIZE, number // COLUMNS * (SIZE + CAPTION)
        picture, instruction = _picture(task, seed)
        page.paste(picture, (x, y))
        draw = ImageDraw.Draw(page)
        draw.text((x + 4, y + SIZE + 3), task, "black", font_size=12, stroke_width=0.3)
        draw.text((x + 4, y + SIZE + 18), fill(instruction, 40), "dimgray", font_size=11)
    return page


def _picture(task: str, seed: int) -> tuple[Image.Image, str]:
    env = make_env(task, images=False, randomize=False, image_size=SIZE)
    expert, states, over = ScriptedExpert(env), [], False
    _, info = env.reset(seed=seed)
    scene = env.unwrapped.scene  # type: ignore[attr-defined]
    while not over:
        states.append(scene.data.qpos.copy())
        _, _, terminated, truncated, _ = env.step(expert.act())
        over = terminated or truncated
    scene.data.qpos[:] = states[int(PROGRESS * len(states))]
    mujoco.mj_forward(scene.model, scene.data)
    picture = Image.fromarray(np.asarray(env.render()))
    env.close()
    return picture, info["instruction"]


if __name__ == "__main__":
    sheet().quantize(256, kmeans=2).save(sys.argv[1], optimize=True)
