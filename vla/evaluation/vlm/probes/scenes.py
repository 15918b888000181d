"""Scenes for probes, with the ground truth of the front camera's image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
from jaxtyping import Bool, UInt8

from vla.common.scene_objects import Scene
from vla.datasets.questions import MAIN_CAMERA, View
from vla.envs.objects import ObjectSpec
from vla.envs.random_scene import SceneSample, SceneSampler

SIZE = 224
"""Image size [px]. An object is visible with at least 65 pixels (`truth.CLEAR_PIXELS`) and 30 % of its outline."""
SLOTS = 10
FIRST, APART = 10**12, 10**6
"""The first seed of a scene, outside the seeds of recordings for training, and the distance between probe seeds."""


@dataclass(frozen=True)
class Picture:
    """An image with its scene; `view` has the visible objects and those of uncertain visibility."""

    image: UInt8[np.ndarray, "h w 3"]
    scene: Scene
    view: View


class Studio:
    """Renders images by seed; opened by `studio()`."""

    def __init__(self, sampler: SceneSampler) -> None:
        self._sampler = sampler

    def sample(self, seed: int) -> Picture:
        """A random scene, as in `vla record task=scenes`."""
        return _picture(self._sampler.sample(seed))

    def show(self, objects: tuple[ObjectSpec, ...], seed: int, without: int | None = None) -> Picture:
        """A scene of these objects; `without` is the index of an object to remove from the otherwise equal scene."""
        return _picture(self._sampler.show(objects, np.random.default_rng([seed, 17]), without))

    def masks(self) -> Bool[np.ndarray, "n h w"]:
        """The mask of each object in the last image."""
        return self._sampler.masks(MAIN_CAMERA)


def numbers(seed: int) -> Iterator[int]:
    """The scene seeds of a probe's seed."""
    return count(FIRST + seed * APART)


@contextmanager
def studio() -> Iterator[Studio]:
    """Opens a `Studio`, and frees its renderer on exit."""
    sampler = SceneSampler(SIZE, slots=SLOTS)
    try:
        yield Studio(sampler)
    finally:
        sampler.close()


def _picture(sample: SceneSample) -> Picture:
    """The image and ground truth of the main camera, without those of the other cameras."""
    scene, camera = sample.scene, MAIN_CAMERA
    objects = tuple(
        replace(thing, centers={name: at for name, at in thing.centers.items() if name == camera})
        for thing in scene.objects
    )
    ambiguous = {name: things for name, things in scene.ambiguous.items() if name == camera}
    visible = replace(scene, objects=objects, ambiguous=ambiguous)
    return Picture(sample.images[camera], visible, View.of(visible, camera))
