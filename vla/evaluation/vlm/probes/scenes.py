"""Scenes for probes, and what is truly in the front camera's picture of each."""

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
"""[px]. An object is in the picture if it shows 65 pixels (`truth.CLEAR_PIXELS`) and 30 % of its outline."""
SLOTS = 10
FIRST, APART = 10**12, 10**6
"""Scenes are numbered from here on, where no recording for training takes its seeds, and so far apart."""


@dataclass(frozen=True)
class Picture:
    """`view` says what is surely in it, and what may be."""

    image: UInt8[np.ndarray, "h w 3"]
    scene: Scene
    view: View


class Studio:
    """Draws pictures by seed; `studio()` opens one."""

    def __init__(self, sampler: SceneSampler) -> None:
        self._sampler = sampler

    def sample(self, seed: int) -> Picture:
        """A random scene, as those of `vla record task=scenes`."""
        return _picture(self._sampler.sample(seed))

    def show(self, objects: tuple[ObjectSpec, ...], seed: int, without: int | None = None) -> Picture:
        """These objects; `without` is the place of one that is left away, all else being as with it."""
        return _picture(self._sampler.show(objects, np.random.default_rng([seed, 17]), without))

    def masks(self) -> Bool[np.ndarray, "n h w"]:
        """Where each object shows in the last picture."""
        return self._sampler.masks(MAIN_CAMERA)


def numbers(seed: int) -> Iterator[int]:
    """The scenes of a probe's seed."""
    return count(FIRST + seed * APART)


@contextmanager
def studio() -> Iterator[Studio]:
    sampler = SceneSampler(SIZE, slots=SLOTS)
    try:
        yield Studio(sampler)
    finally:
        sampler.close()


def _picture(sample: SceneSample) -> Picture:
    """The truth without what the other cameras see, for the model is shown this one alone."""
    scene, camera = sample.scene, MAIN_CAMERA
    objects = tuple(
        replace(thing, centers={name: at for name, at in thing.centers.items() if name == camera})
        for thing in scene.objects
    )
    ambiguous = {name: things for name, things in scene.ambiguous.items() if name == camera}
    seen = replace(scene, objects=objects, ambiguous=ambiguous)
    return Picture(sample.images[camera], seen, View.of(seen, camera))
