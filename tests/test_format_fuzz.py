"""Damaged data sets of every format: converted, or refused with one line, and never half-written."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from test_diffusion_policy import push_t
from test_diffusion_policy import write as write_replay_buffer
from test_lerobot_v21 import write_v21
from test_rlds import episode
from test_rlds import write as write_rlds

from vla.commands.convert import ConvertOptions, convert
from vla.datasets.episodes import EpisodeStore
from vla.errors import InputError
from vla.types import Episode


def v21(root: Path) -> dict[str, Any]:
    write_v21(root, {"ego": range(3)})
    return {"actions": "absolute"}


def v3(root: Path) -> dict[str, Any]:
    """The same as version 3, in two data files."""
    write_v21(root, {"ego": [0]})
    info = json.loads((root / "meta/info.json").read_text())
    info |= {"codebase_version": "v3.0", "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"}
    info |= {"video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4", "total_frames": 18}
    (root / "meta/info.json").write_text(json.dumps(info))
    tables = [
        pq.read_table(path).append_column("episode_index", pa.array([index] * 6))
        for index, path in enumerate(sorted(root.rglob("episode_*.parquet")))
    ]
    video = next(path for path in root.rglob("*.mp4") if path.stat().st_size)
    content = video.read_bytes()
    for folder in ("data", "videos"):
        shutil.rmtree(root / folder)
    for path in (root / "data/chunk-000", root / "videos/video.ego/chunk-000", root / "meta/episodes/chunk-000"):
        path.mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables[:2]), root / "data/chunk-000/file-000.parquet")
    pq.write_table(tables[2], root / "data/chunk-000/file-001.parquet")
    for index in range(3):
        (root / f"videos/video.ego/chunk-000/file-{index:03d}.mp4").write_bytes(content)
    rows = {"episode_index": [0, 1, 2], "length": [6] * 3, "data/chunk_index": [0] * 3, "data/file_index": [0, 0, 1]}
    rows |= {"dataset_from_index": [0, 6, 12], "dataset_to_index": [6, 12, 18]}
    rows |= {
        f"videos/video.ego/{name}": values for name, values in (("chunk_index", [0] * 3), ("file_index", [0, 1, 2]))
    }
    rows |= {"videos/video.ego/from_timestamp": [0.0] * 3}
    pq.write_table(pa.table(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task": ["lift"], "task_index": [0]}), root / "meta/tasks.parquet")
    return {"actions": "absolute"}


def rlds(root: Path) -> dict[str, Any]:
    write_rlds(root, [[episode(0, 3), episode(1, 4)], [episode(2, 3)]])
    return {"actions": "delta"}


def replay_buffer(root: Path) -> dict[str, Any]:
    write_replay_buffer(root, push_t())
    return {"actions": "absolute", "fps": 10.0}


def hdf5(root: Path) -> dict[str, Any]:
    root.mkdir()
    rng = np.random.default_rng(0)
    with h5py.File(root / "demo.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "env_kwargs": {"control_freq": 20}}
        )
        for index in range(3):
            demo = file.create_group(f"data/demo_{index}")
            demo["actions"], demo["obs/robot0_eef_pos"] = rng.normal(size=(4, 7)), rng.normal(size=(4, 3))
            demo["obs/front_image"] = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    return {"actions": "delta"}


WRITERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "lerobot v2.1": v21,
    "lerobot v3": v3,
    "rlds": rlds,
    "diffusion policy": replay_buffer,
    "hdf5": hdf5,
}


def damage(root: Path, dice: random.Random) -> str:
    """Does one thing to a data set that a disk, a download or a careless copy may do, and says what."""
    found = sorted(path for path in root.rglob("*") if path.is_file())
    file = dice.choice(found)
    content = file.read_bytes()
    kind = dice.choice(["truncate", "flip", "zero", "swap", "remove", "empty", "pointer", "insert"])
    if kind == "truncate":
        file.write_bytes(content[: dice.randrange(len(content) + 1)])
    elif kind == "flip":
        changed = bytearray(content)
        for _ in range(dice.choice([1, 8, 64])):
            if changed:
                changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
        file.write_bytes(changed)
    elif kind == "zero":
        start = dice.randrange(len(content) + 1)
        stop = min(len(content), start + dice.choice([4, 64, 4096]))
        file.write_bytes(content[:start] + b"\0" * (stop - start) + content[stop:])
    elif kind == "swap":
        other = dice.choice(found)
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == "remove":
        file.unlink()
    else:
        at = dice.randrange(len(content) + 1)
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
        changes = {"empty": b"", "pointer": pointer, "insert": content[:at] + dice.randbytes(9) + content[at:]}
        file.write_bytes(changes[kind])
    return f"{kind} {file.relative_to(root)}"


def check(name: str, folder: Path, seeds: range) -> None:
    whole, broken, out = folder / "whole", folder / "broken", folder / "x.zarr"
    defaults = OmegaConf.to_container(OmegaConf.load(files("vla.configs") / "convert.yaml"))  # type: ignore[arg-type]
    options: dict[str, Any] = {**defaults, "src": str(broken), "dst": str(out), **WRITERS[name](whole)}  # type: ignore[dict-item]
    expected = 3
    for seed in seeds:
        shutil.copytree(whole, broken)
        what = damage(broken, random.Random(seed))
        for skip in (False, True):
            refused = ""
            try:
                convert(ConvertOptions(**{**options, "skip": skip}))
            except InputError as error:
                refused = str(error)
            stored: list[Episode] = list(EpisodeStore.open(out)) if out.exists() else []
            assert refused or 0 < len(stored) <= expected, f"seed {seed}: {what}"
            assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [], f"seed {seed}: {what}"
        shutil.rmtree(broken)
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_data_are_converted_or_refused(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, range(12))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", WRITERS)
def test_much_damaged_data_are_converted_or_refused(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, range(12, 500))
