"""Stores of schema version 1 open as a source to convert from, and by nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from stores import assert_equal
from zarr.codecs import Crc32cCodec, ZstdCodec

from vla.datasets.episode_index import checksum
from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats.vla_store import open_source
from vla.errors import InputError
from vla.types import Episode

Make = Callable[..., Episode]


def write_v1(path: Path, episodes: list[Episode]) -> None:
    """As version 1 of the program did: rows in plain compressed chunks, one frame a chunk of 256 a shard."""
    robot = episodes[0].embodiment
    attributes = {"format": "vla.episodes", "schema_version": 1, "embodiment": robot.to_dict()}
    group = zarr.create_group(path, attributes=attributes)
    rows = {name: np.concatenate([getattr(e, name) for e in episodes]) for name in ("state", "action", "time")}
    rows["points"] = np.concatenate(
        [np.full((len(e), 2, 2), np.nan) if e.points is None else e.points for e in episodes]
    )
    for name, values in rows.items():
        group.create_array(name, data=values, chunks=(4096, *values.shape[1:]), fill_value=np.nan)
    for camera in robot.cameras:
        frames = np.concatenate([e.images[camera] for e in episodes])
        shape = frames.shape[1:]
        images = group.create_array(
            f"images/{camera}",
            shape=frames.shape,
            chunks=(1, *shape),
            shards=(256, *shape),
            dtype="uint8",
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
            config={"write_empty_chunks": True},
        )
        images[:] = frames
    records, offset = [], 0
    for e in episodes:
        arrays = [*e.images.values(), e.state, e.action, e.time] + ([] if e.points is None else [e.points])
        record = {"offset": offset, "length": len(e), "instruction": e.instruction, "success": e.success}
        record |= {"info": e.info, "has_chunks": False, "has_points": e.points is not None}
        records.append(json.dumps(record | {"checksum": checksum(arrays)}))
        offset += len(e)
    index = group.create_array("episodes", shape=(len(records),), chunks=(256,), dtype=str)
    index[:] = np.array(records, object)


def test_version_1_is_a_source(tmp_path: Path, make_episode: Make) -> None:
    points = np.random.default_rng(0).uniform(size=(7, 2, 2))
    episodes = [make_episode(0), make_episode(1, steps=7, points=points)]
    write_v1(tmp_path / "old", episodes)
    with pytest.raises(InputError, match=r"version 1, this program reads 2: vla convert .*old NEW.zarr"):
        EpisodeStore.open(tmp_path / "old")
    source = open_source(tmp_path / "old")
    with EpisodeStore.create(tmp_path / "new", source.embodiment) as store:
        for index, episode in enumerate(episodes):
            assert_equal(source[index], episode)
            store.append(source[index])


def test_a_damaged_one_is_named(tmp_path: Path, make_episode: Make) -> None:
    write_v1(tmp_path / "old", [make_episode(0)])
    group = zarr.open_group(tmp_path / "old")
    group["state"][1, 0] = 5.0  # type: ignore[index]
    with pytest.raises(InputError, match="episode 0 of .*old does not match its checksum"):
        open_source(tmp_path / "old")[0]
