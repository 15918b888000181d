"""What `vla data edit` changes in the numbers and images of an episode."""

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
    """`offset` is added to each action; of the cameras of `bgr` red and blue are exchanged, and the images of those of
    `upside_down` turned by half a turn."""

    offset: Float[np.ndarray, "a"]
    bgr: frozenset[str]
    upside_down: frozenset[str]

    @classmethod
    def of(
        cls, body: Embodiment, action_offset: Mapping[str | int, float], bgr: Sequence[str], upside_down: Sequence[str]
    ) -> ContentChange:
        """Components are named with their unit or without it, or by their number. Raises InputError for a component or
        a camera that is not there, and for an offset of a rotation."""
        offset = np.zeros(len(body.action))
        for name, amount in action_offset.items():
            offset[_component(body, str(name))] = amount
        if unknown := {*bgr, *upside_down} - set(body.cameras):
            raise InputError(f"there is no camera {min(unknown)!r}: there are {', '.join(body.cameras) or 'none'}")
        return cls(offset, frozenset(bgr), frozenset(upside_down))

    def append(self, target: EpisodeStore, source: EpisodeStore, index: int) -> None:
        """Adds episode `index` of `source` to `target`, changed."""
        if self.bgr or self.upside_down:
            target.append(self.changed(source[index]))
            return
        record = source.records[index]
        rows = {"action": np.asarray(source.action[record.frames]) + self.offset}
        if "chunks" in record.streams:
            rows["chunks"] = np.asarray(source.rows("chunks")[record.frames]) + self.offset
        append_cut(target, source, index, np.arange(record.length), rows)

    def changed(self, episode: Episode) -> Episode:
        images, depth = dict(episode.images), dict(episode.depth)
        for camera in self.bgr:
            images[camera] = np.ascontiguousarray(images[camera][..., ::-1])
        for camera in self.upside_down:
            images[camera] = np.ascontiguousarray(images[camera][:, ::-1, ::-1])
            if camera in depth:
                depth[camera] = np.ascontiguousarray(depth[camera][:, ::-1, ::-1])
        points = episode.points
        if points is not None and self.upside_down:
            parts = np.split(points.copy(), len(episode.embodiment.cameras), axis=1)
            for camera, part in zip(episode.embodiment.cameras, parts, strict=True):
                part[...] = 1 - part if camera in self.upside_down else part
            points = np.concatenate(parts, axis=1)
        return replace(
            episode,
            images=images,
            depth=depth,
            points=points,
            action=episode.action + self.offset,
            chunks=None if episode.chunks is None else episode.chunks + self.offset,
        )


def _component(body: Embodiment, name: str) -> int:
    bare = [each.partition(" [")[0] for each in body.action]
    if name in body.action or name in bare:
        at = (body.action if name in body.action else bare).index(name)
    elif name.isdecimal() and int(name) < len(body.action):
        at = int(name)
    else:
        raise InputError(f"there is no action component {name!r}: there are {', '.join(body.action)}")
    if any(at in rotation.action for rotation in body.rotations if not rotation.turn):
        raise InputError(f"{body.action[at]} is part of a rotation, which an offset would not turn")
    return at
