"""The changes of actions and images by `vla data edit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from vla.datasets.episode_cut import append_cut
from vla.datasets.episodes import EpisodeStore
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode


@dataclass(frozen=True)
class ContentChange:
    """Changes to an episode.

    Attributes:
        offset: Added to each action, in the units of the action.
        bgr: Cameras whose red and blue channels are swapped.
        upside_down: Cameras whose images are rotated by 180 degrees.
    """

    offset: Float[np.ndarray, "a"]
    bgr: frozenset[str]
    upside_down: frozenset[str]

    @classmethod
    def of(
        cls, body: Embodiment, action_offset: Mapping[str | int, float], bgr: Sequence[str], upside_down: Sequence[str]
    ) -> ContentChange:
        """The changes for an embodiment; components are named with or without their unit, or by their index.

        Raises:
            InputError: A component or camera does not exist, or an offset applies to a rotation.
        """
        offset = np.zeros(len(body.action))
        for name, amount in action_offset.items():
            offset[_component(body, str(name))] = amount
        if unknown := {*bgr, *upside_down} - set(body.cameras):
            raise InputError(f"there is no camera {min(unknown)!r}: there are {', '.join(body.cameras) or 'none'}")
        return cls(offset, frozenset(bgr), frozenset(upside_down))

    def append(self, target: EpisodeStore, source: EpisodeStore, index: int) -> None:
        """Appends the changed episode `index` of `source` to `target`."""
        if self.bgr or self.upside_down:
            target.append(self.changed(source[index]))
            return
        record = source.records[index]
        rows = {"action": np.asarray(source.action[record.frames]) + self.offset}
        if "chunks" in record.streams:
            rows["chunks"] = np.asarray(source.rows("chunks")[record.frames]) + self.offset
        append_cut(target, source, index, np.arange(record.length), rows)

    def changed(self, episode: Episode) -> Episode:
        """The episode with the changes."""
        images, depth = dict(episode.images), dict(episode.depth)
        for camera in self.bgr:
            images[camera] = np.ascontiguousarray(images[camera][..., ::-1])
        for camera in self.upside_down:
            images[camera] = np.ascontiguousarray(images[camera][:, ::-1, ::-1])
            if camera in depth:
                depth[camera] = np.ascontiguousarray(depth[camera][:, ::-1, ::-1])
        points = episode.points
        if points is not None and self.upside_down:
            by_camera = np.split(points.copy(), len(episode.embodiment.cameras), axis=1)
            for camera, values in zip(episode.embodiment.cameras, by_camera, strict=True):
                values[...] = 1 - values if camera in self.upside_down else values
            points = np.concatenate(by_camera, axis=1)
        return replace(
            episode,
            images=images,
            depth=depth,
            points=points,
            action=episode.action + self.offset,
            chunks=None if episode.chunks is None else episode.chunks + self.offset,
        )


def _component(body: Embodiment, name: str) -> int:
    bare = [component.partition(" [")[0] for component in body.action]
    if name in body.action or name in bare:
        index = (body.action if name in body.action else bare).index(name)
    elif name.isdecimal() and int(name) < len(body.action):
        index = int(name)
    else:
        raise InputError(f"there is no action component {name!r}: there are {', '.join(body.action)}")
    if any(index in rotation.action for rotation in body.rotations if not rotation.turn):
        raise InputError(f"{body.action[index]} is part of a rotation, to which an offset cannot be added")
    return index
