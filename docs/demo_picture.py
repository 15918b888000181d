"""Writes the picture of the README from a run of `vla demo`: python docs/demo_picture.py outputs/demo docs/demo.png

One scene, two instructions: the first scene in which the policy succeeds with the instruction and with the one for
another object. Its actions are repeated in the simulator, which renders larger images than the policy saw.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vla.datasets.episodes import EpisodeStore
from vla.envs.make import make_env
from vla.errors import InputError
from vla.recording.video import DARK, HEIGHT, WHITE, draw_points
from vla.types import Episode

TASK = "pick"
"""Of the demo."""
BAR = 30
MOMENTS = 4
"""Images of each episode, evenly distributed over it."""


def picture(demo: Path) -> Image.Image:
    with EpisodeStore.open(demo / "rollouts.zarr") as store:
        indices = {(r.info["seed"], r.info["group"]): i for i, r in enumerate(store.records) if r.success}
        pairs = [(indices[seed, "named"], indices[seed, "swap"]) for seed, group in indices
                 if group == "named" and (seed, "swap") in indices]  # fmt: skip
        if not pairs:
            raise InputError(f"in no scene of {demo} the policy succeeds with both instructions")
        rows = [row(store[index]) for index in min(pairs)]
    page = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for number, image in enumerate(rows):
        page.paste(image, (0, number * image.height))
    return page


def row(episode: Episode) -> Image.Image:
    """The instruction above images of the front camera, with the predicted points as rings."""
    env = make_env(TASK, phrasing="heldout", image_size=HEIGHT)
    _, info = env.reset(seed=episode.info["seed"], options={"swap": episode.info["group"] == "swap"})
    assert info["instruction"] == episode.instruction
    result = Image.new("RGB", (MOMENTS * HEIGHT, BAR + HEIGHT), DARK)
    ImageDraw.Draw(result).text((12, BAR / 2), f'"{episode.instruction}"', WHITE, font_size=16, anchor="lm")
    moments = np.linspace(0, len(episode.action) - 1, MOMENTS).round().astype(int).tolist()
    for step, action in enumerate(episode.action):
        if step in moments:
            view = Image.fromarray(np.asarray(env.render()))
            if episode.points is not None:
                draw_points(view, episode.embodiment.by_camera(episode.points[step])["front"])
            result.paste(view, (moments.index(step) * HEIGHT, BAR))
        env.step(action)
    env.close()
    return result


if __name__ == "__main__":
    picture(Path(sys.argv[1])).quantize(256, kmeans=2).save(sys.argv[2], optimize=True)
