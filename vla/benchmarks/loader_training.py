"""Training loaders: `vla train`'s and LeRobot's, from stored images to model inputs, with the same work and cores.

A sample is one observation of two or three cameras of 640 x 480 pixels and the following actions. Its images are
decoded, resized to the model's size (bilinear with antialiasing, letterboxed), normalised and collated into batches of
16. `vla train`'s loader also makes the tokens of each row. Each loader has its best number of workers. In addition, the
step time of `vla train` with nano on such images is measured, with the time that it waits for data.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vla.benchmarks.loader_formats import FORMATS, FPS, Frames, create_frames, video_backend
from vla.commands.options import compose
from vla.common.images import fitted
from vla.common.result_table import Target
from vla.datasets.mixture import Mixture
from vla.models.build import build
from vla.models.preprocessing.frames import Pad
from vla.models.preprocessing.settings import Preprocessing
from vla.models.vla import VLA
from vla.training.action_head import head_settings
from vla.training.backbone_defaults import backbone_defaults
from vla.training.demonstrations import Demonstrations, robot_specs
from vla.training.distributed import DistributedContext
from vla.training.loader import prefetch
from vla.training.optimizer import freeze
from vla.training.state import Progress, TrainState
from vla.training.step import run_step
from vla.training.train_config import TrainConfig, make_train_config

HEIGHT, WIDTH = 480, 640
CAMERAS = ("front", "wrist", "side")
HORIZON, BATCH = 16, 16
SECONDS = 5.0
"""The minimum duration of a measurement, after a batch of each worker [s]; it has at least one batch of each."""
NOISE = 2.0
"""The standard deviation of sensor noise, for pixel values up to 255."""
VIDEO, IMAGES, WAIT = 8.0, 3.0, 5.0
ALONE = DistributedContext(torch.device("cpu"))


def measure_training(
    folder: Path, sizes: Sequence[int] = (96, 224, 384, 512), episodes: int = 2, steps: int = 100, nano_steps: int = 6
) -> tuple[list[dict[str, Any]], list[Target]]:
    """Measures samples/s of each loader by image size and number of cameras, and a training step of nano."""
    rows: list[dict[str, Any]] = []
    frames = record(folder / "frames", episodes, steps)
    FORMATS["jpeg"].write(_of_cameras(frames, 2), folder / "written")
    waits = [step_of_nano(folder / "written", workers, nano_steps) for workers in (0, 1)]
    shutil.rmtree(folder / "written")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # workers have the cores
    for name, (write, rate, choices) in LOADERS.items():
        for count in (2, 3):
            write(_of_cameras(frames, count), folder / "written")
            tried = {workers: rate(folder / "written", sizes[0], workers) for workers in choices}
            best = max(tried, key=lambda workers: tried[workers])
            choices = (best,)  # the same for three cameras
            for size in tqdm(sizes, desc=f"{name}, {count} cameras", unit="size"):
                found = {"loader": name, "cameras": count, "size": size, "workers": best}
                measured = tried[best] if size == sizes[0] else rate(folder / "written", size, best)
                rows.append(found | {"samples/s": measured})
            shutil.rmtree(folder / "written")
    torch.set_num_threads(threads)
    return [*rows, *waits], [*_targets(rows), Target("% of a step of nano that waits", waits[0]["wait %"], WAIT, True)]


def _targets(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    rates = {(row["loader"], row["cameras"], row["size"]): row["samples/s"] for row in rows}
    found = []
    for (name, cameras, size), rate in rates.items():
        if name.startswith("lerobot"):
            continue
        for other, target in (("lerobot video", VIDEO), ("lerobot images", IMAGES)):
            label = f"{name} / {other}, {cameras} cameras, {size}"
            found.append(Target(label, rate / rates[other, cameras, size], target))
    return found


def record(folder: Path, episodes: int, steps: int) -> Frames:
    """Records an expert with three cameras; the third image is the first one mirrored."""
    from vla.envs.make import make_env
    from vla.envs.scripted_expert import ScriptedExpert

    env, rng = make_env("pick", image_size=WIDTH, randomize=True), np.random.default_rng(0)
    robot = replace(env.unwrapped.embodiment, cameras=CAMERAS)  # type: ignore[attr-defined]
    frames = create_frames(folder, robot, episodes, steps, (HEIGHT, WIDTH))
    expert, top = ScriptedExpert(env), (WIDTH - HEIGHT) // 2
    for row in tqdm(range(episodes * steps), desc="record", unit="step"):
        if row % steps == 0:
            observation, _ = env.reset(seed=row)
        images = observation["images"]
        for camera, image in {**images, "side": images["front"][:, ::-1]}.items():
            noisy = image[top : top + HEIGHT] + rng.normal(0, NOISE, (HEIGHT, WIDTH, 3))
            frames.images[camera][row] = np.clip(np.rint(noisy), 0, 255)
        frames.state[row], frames.action[row] = observation["state"], expert.act()
        observation, *_ = env.step(frames.action[row])
    env.close()
    return frames


def _of_cameras(frames: Frames, count: int) -> Frames:
    selected = CAMERAS[:count]
    return replace(
        frames, robot=replace(frames.robot, cameras=selected), images={name: frames.images[name] for name in selected}
    )


def our_batches(path: Path, size: int, workers: int) -> Iterator[Tensor]:
    """Normalised images of `vla train`'s loader."""
    model, mixture = _nano(path)
    shown = Preprocessing(Pad((size, size)), model.processor.images.markup)
    model.processor.image_size, model.processor.cameras = size, (shown,)
    plan = TrainConfig(steps=10**6, batch_size=BATCH, augment=0, loader_workers=workers)
    with prefetch(model.processor, mixture, plan, 0, ALONE) as steps:
        for micro in steps:
            yield model.processor.pixels(micro[0].images)


def lerobot_batches(path: Path, size: int, workers: int) -> Iterator[Tensor]:
    """Normalised images of LeRobot's loader, with its defaults; the dataset resizes them."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.transforms import v2

    left, top, width, height = fitted(HEIGHT, WIDTH, size)
    bars = (left, top, size - width - left, size - height - top)
    dataset = LeRobotDataset(
        "bench/loader",
        root=path,
        delta_timestamps={"action": [i / FPS for i in range(HORIZON)]},
        video_backend=video_backend(),
        image_transforms=v2.Compose([v2.Resize((height, width), antialias=True), v2.Pad(bars)]),
    )
    options: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "spawn"}
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        sampler=RandomSampler(dataset, replacement=True, num_samples=10**7),
        **(options if workers else {}),
    )
    normalise = v2.Normalize([0.5] * 3, [0.25] * 3)
    for batch in loader:
        yield torch.stack([normalise(batch[key]) for key in dataset.meta.camera_keys], 1)


def _rate(batches: Callable[[Path, int, int], Iterator[Tensor]]) -> Callable[[Path, int, int], float]:
    def rate(path: Path, size: int, workers: int) -> float:
        """Samples/s."""
        made = batches(path, size, workers)
        minimum = max(1, workers)
        for _ in range(minimum):
            next(made)
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < SECONDS or count < minimum:
            next(made)
            count += 1
        made.close()  # type: ignore[attr-defined]
        return count * BATCH / elapsed

    return rate


LOADERS: Mapping[str, tuple[Callable[[Frames, Path], None], Callable[[Path, int, int], float], tuple[int, ...]]] = {
    "vla jpeg": (FORMATS["jpeg"].write, _rate(our_batches), (0, 2)),
    "vla webp": (FORMATS["webp"].write, _rate(our_batches), (0, 2)),
    "lerobot video": (FORMATS["lerobot video"].write, _rate(lerobot_batches), (2, 4)),
    "lerobot images": (FORMATS["lerobot images"].write, _rate(lerobot_batches), (2, 4)),
}
"""The writer and the reading speed of each loader, and the numbers of workers to try."""


def _nano(path: Path) -> tuple[VLA, Mixture]:
    demonstrations = Demonstrations.open(str(path))
    robots = robot_specs([demonstrations], HORIZON)
    model = build("nano", robots, [], head_settings("parallel", [demonstrations], robots))
    return model, Mixture({"robot": demonstrations.windows(HORIZON)}, {"robot": 1.0}, 0)


def step_of_nano(path: Path, workers: int, steps: int) -> dict[str, Any]:
    """The time of a step with the defaults of `vla train` [ms], and the share that waits for data."""
    model, mixture = _nano(path)
    options: Any = compose("train", [])
    plan = make_train_config(
        {**options.plan, "steps": steps + 1, "loader_workers": workers}, backbone_defaults(model.backbone)
    )
    freeze(model, plan.freeze)
    waits, ends = [], []
    with prefetch(model.train().processor, mixture, plan, 0, ALONE) as batches, TemporaryDirectory() as run:
        state = TrainState(model, plan, Path(run), ["robot"], ALONE, Progress())
        for _ in range(steps + 1):
            start = time.perf_counter()
            micro = next(batches)
            waits.append(time.perf_counter() - start)
            run_step(state, micro)
            ends.append(time.perf_counter())
    step_seconds, wait = (ends[-1] - ends[0]) / steps, sum(waits[1:]) / steps
    return {
        "nano": f"{HEIGHT} x {WIDTH} jpeg",
        "workers": workers,
        "step ms": 1000 * step_seconds,
        "wait %": 100 * wait / step_seconds,
    }
