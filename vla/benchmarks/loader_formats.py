"""The formats of `vla bench loader`: writing episodes and reading windows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vla.common.images import Size, sides
from vla.datasets.codecs import CODECS
from vla.datasets.episodes import EpisodeStore
from vla.datasets.windows import Windows
from vla.embodiment import Embodiment
from vla.types import Episode

Read = Callable[[np.ndarray], object]
"""Reads the windows that start at these frames."""
FPS = 30


@dataclass(frozen=True)
class Frames:
    """Episodes of equal length as plain arrays, mapped from `folder`."""

    folder: Path
    robot: Embodiment
    episodes: int
    steps: int
    images: Mapping[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray


@dataclass(frozen=True)
class Format:
    write: Callable[[Frames, Path], None]
    open: Callable[[Path, int], Read]


def create_frames(folder: Path, robot: Embodiment, episodes: int, steps: int, size: Size) -> Frames:
    """Creates arrays of zeros."""
    folder.mkdir(parents=True)
    count = episodes * steps

    def mapped(name: str, *shape: int, dtype: str) -> np.ndarray:
        return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (count, *shape))

    images = {camera: mapped(camera, *sides(size), 3, dtype="uint8") for camera in robot.cameras}
    state, action = (
        mapped("state", len(robot.state), dtype="float32"),
        mapped("action", len(robot.action), dtype="float32"),
    )
    return Frames(folder, robot, episodes, steps, images, state, action)


def _write_memmap(frames: Frames, folder: Path) -> None:
    folder.mkdir()
    for name, values in {**frames.images, "state": frames.state, "action": frames.action}.items():
        np.save(folder / f"{name}.npy", values)
    (folder / "about.json").write_text(json.dumps({"cameras": list(frames.images), "steps": frames.steps}))


def _open_memmap(folder: Path, horizon: int) -> Read:
    meta = json.loads((folder / "about.json").read_text())
    images = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in meta["cameras"]}
    state, action = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("state", "action"))
    steps = meta["steps"]

    def read(starts: np.ndarray) -> object:
        indices = np.minimum(starts[:, None] + np.arange(horizon), (starts // steps * steps + steps - 1)[:, None])
        return {name: frames[starts] for name, frames in images.items()}, state[starts], action[indices]

    return read


def _episodes(frames: Frames) -> list[Callable[[], Episode]]:
    def episode(start: int) -> Episode:
        rows = slice(start, start + frames.steps)
        return Episode(
            images={name: np.asarray(images[rows]) for name, images in frames.images.items()},
            state=frames.state[rows].astype(np.float64),
            action=frames.action[rows].astype(np.float64),
            time=np.arange(frames.steps) / FPS,
            instruction="put the cube into the bowl",
            embodiment=frames.robot,
            success=True,
        )

    return [partial(episode, i * frames.steps) for i in range(frames.episodes)]


def _write_store(codec: str, frames: Frames, folder: Path) -> None:
    with EpisodeStore.create(folder, frames.robot, codec) as store:
        for episode in _episodes(frames):
            store.append(episode())


def _open_store(folder: Path, horizon: int) -> Read:
    return Windows(EpisodeStore.open(folder), horizon).batch


def _write_lerobot(videos: bool, frames: Frames, folder: Path) -> None:
    from datasets.utils.logging import disable_progress_bar
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    disable_progress_bar()
    os.environ.setdefault("SVT_LOG", "1")  # the encoder would print its settings for every episode
    features: dict[str, dict[str, Any]] = {}
    for name, images in frames.images.items():
        kind = "video" if videos else "image"
        axes = ["height", "width", "channels"]
        features[f"observation.images.{name}"] = {"dtype": kind, "shape": images.shape[1:], "names": axes}
    for name, values in (("observation.state", frames.state), ("action", frames.action)):
        features[name] = {"dtype": "float32", "shape": values.shape[1:], "names": None}
    dataset = LeRobotDataset.create("bench/loader", FPS, features, root=folder, use_videos=videos)
    for row in range(len(frames.state)):
        frame: dict[str, Any] = {f"observation.images.{n}": np.asarray(v[row]) for n, v in frames.images.items()}
        frame |= {"observation.state": np.asarray(frames.state[row]), "action": np.asarray(frames.action[row])}
        dataset.add_frame(frame | {"task": "put the cube into the bowl"})
        if (row + 1) % frames.steps == 0:
            dataset.save_episode()
    dataset.finalize()


def _open_lerobot(folder: Path, horizon: int) -> Read:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    chunk = {"action": [i / FPS for i in range(horizon)]}
    dataset = LeRobotDataset("bench/loader", root=folder, delta_timestamps=chunk, video_backend=video_backend())

    def read(starts: np.ndarray) -> object:
        return [dataset[int(start)] for start in starts]

    return read


def video_backend() -> str:
    """LeRobot's fastest decoder if FFmpeg is installed; else the one with its own FFmpeg."""
    if find_spec("torchcodec"):
        try:
            import torchcodec  # noqa: F401

            return "torchcodec"
        except (OSError, RuntimeError):  # there is no compatible FFmpeg
            pass
    return "pyav"


FORMATS = {
    "memmap": Format(_write_memmap, _open_memmap),
    **{name: Format(partial(_write_store, name), _open_store) for name in CODECS},
    "lerobot images": Format(partial(_write_lerobot, False), _open_lerobot),
    "lerobot video": Format(partial(_write_lerobot, True), _open_lerobot),
}
