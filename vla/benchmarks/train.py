"""`vla bench train`: the training loops of `vla train` and LeRobot on the same demonstrations and model sizes.

Each side trains in a separate process, which is stopped while another is measured; figures are medians over turns. Both
train all weights with AdamW, with the same precision, batch size, images and action chunks, and one noise sample per
row of a flow. SmolVLA has the same weights on both sides. LeRobot has its loader of four processes, `vla train` its
augmentation and moving average. `vla train` with its defaults (Muon, four noise samples per row) is measured as well.
"""

from __future__ import annotations

import io
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from vla.benchmarks import train_ours
from vla.benchmarks.train_contestant import Contestant
from vla.benchmarks.train_shapes import REAL, TINY, Shape, save_for_lerobot
from vla.commands.convert import convert
from vla.commands.options import bind, compose
from vla.commands.record import demonstrate
from vla.common.device import accelerator
from vla.common.result_table import Table, Target
from vla.datasets.episodes import EpisodeStore
from vla.envs.make import make_env
from vla.training.step import uses_bf16
from vla.training.train_config import Precision

RATIO, MFU = 1.3, 0.45
H100 = 989e12
"""Peak of an H100 or H200 in dense bfloat16 (NVIDIA's data sheet) [FLOP/s]."""
WARM = 32
"""Warm-up steps: twice the number of batches that LeRobot prefetches during its slow first steps."""
BIG = "3 B"
"""The shape whose utilisation has a target."""


def bench_train(
    shapes: Sequence[Shape] | None = None,
    stored: Sequence[str] = ("video", "images"),
    episodes: int = 40,
    batch_size: int = 32,
    steps: int = 10,
    turns: int = 7,
    workers: int = 4,
    precision: Precision = "auto",
) -> Table:
    """Measures samples/s, step time, time waiting for data, and utilisation of each side.

    Args:
        shapes: The models; by default real sizes on CUDA and tiny ones on a CPU.
        stored: How the LeRobotDataset stores images: "video" or "images".
        episodes: The number of demonstrations.
        batch_size: Rows per step.
        steps: Steps per turn.
        turns: Turns per side.
        workers: Loader processes of LeRobot.
        precision: The precision of training.
    """
    device = accelerator()
    real = device.type == "cuda"
    shapes = shapes or (REAL if real else TINY)
    bf16 = uses_bf16(precision, device)
    peak = H100 if real else gemm_peak(torch.bfloat16 if bf16 else torch.float32)
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    for shape in shapes:
        with tempfile.TemporaryDirectory(prefix="vla-bench-") as folder:
            entries = _entries(shape, Path(folder), stored, episodes, batch_size, precision, bf16, workers)
            measured = _measure(entries, steps, turns, Path(folder), together=shape in TINY)
        our_seconds = median(turn["s"] for turn in measured["vla"])
        for name, measured_turns in measured.items():
            seconds, waited = (
                median(turn["s"] for turn in measured_turns),
                median(turn["waited"] for turn in measured_turns),
            )
            rate, flops = batch_size * steps / seconds, measured_turns[0]["flops"]
            rows.append(
                {
                    "policy": f"{shape.policy} {shape.parameters}",
                    "loop": name,
                    "samples/s": rate,
                    "step ms": 1000 * seconds / steps,
                    "of it data ms": 1000 * waited / steps,
                    "CPU ms": 1000 * median(turn["cpu"] for turn in measured_turns) / steps,
                    "GFLOP/sample": flops / 1e9,
                    "MFU": rate * flops / peak,
                    "vla / it": seconds / our_seconds,
                }
            )
            if name.startswith("lerobot"):
                targets.append(Target(f"samples/s of vla / {name}, {shape.policy}", seconds / our_seconds, RATIO))
            elif name == "vla" and shape.parameters == BIG and real:
                targets.append(Target(f"MFU of a {BIG} backbone", rate * flops / peak, MFU))
    tqdm.write(f"peak {peak / 1e12:.3g} TFLOP/s in {'bf16' if bf16 else 'fp32'}, {torch.get_num_threads()} thread(s)")
    return Table(rows, targets)


def gemm_peak(dtype: torch.dtype, size: int = 1024, seconds: float = 2.0) -> float:
    """The highest rate of this processor on square matrix products, with the threads of training [FLOP/s]."""
    left, right = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    best, stop = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < stop:
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


Entry = tuple[Callable[..., None], tuple[Any, ...]]


def _entries(
    shape: Shape,
    folder: Path,
    stored: Sequence[str],
    episodes: int,
    batch_size: int,
    precision: Precision,
    bf16: bool,
    workers: int,
) -> dict[str, Entry]:
    """The loop of each side with its arguments; the episodes are recorded once and converted."""
    data = str(folder / "demos.zarr")
    _record(data, episodes, shape.image_size)
    (folder / "sizes").mkdir()
    policy = None
    if shape.policy == "smolvla":
        policy = folder / "sizes" / "policy"
        _save_smolvla(shape, data, folder / "sizes")
    else:
        save_for_lerobot(shape, data, folder / "sizes")
    entries: dict[str, Entry] = {}
    for name, default in (("vla", False), ("vla as by default", True)):
        arguments = (shape, data, batch_size, precision, default, policy, folder / f"run-{default}")
        entries[name] = (train_ours.loop, arguments)
    for kind in stored:
        written = folder / kind
        with redirect_stdout(io.StringIO()):
            bind(convert, compose("convert", [f"src={data}", f"dst={written}", f"use_videos={kind == 'video'}"]))()
        entries[f"lerobot {kind}"] = (
            _lerobot,
            (shape, written, batch_size, bf16, folder / "sizes", workers, folder / f"run-{kind}"),
        )
    return entries


def _save_smolvla(shape: Shape, data: str, folder: Path) -> None:
    """Saves a SmolVLA of LeRobot with random weights for the robot of the store in `folder`/policy."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from vla.benchmarks.lerobot_policies import save_policy, smolvla_settings

    with EpisodeStore.open(data) as store:
        robot = store.embodiment
    settings = {"chunk_size": shape.chunk, "n_action_steps": shape.chunk, "device": accelerator().type}
    settings |= smolvla_settings(shape, folder)
    settings |= {"freeze_vision_encoder": False, "train_expert_only": False}
    cameras = dict.fromkeys(robot.cameras, (shape.image_size, shape.image_size))
    save_policy("smolvla", folder, cameras, len(robot.state), settings)


def _lerobot(*arguments: Any) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from vla.benchmarks.train_lerobot import loop

    loop(*arguments)


def _record(path: str, episodes: int, size: int) -> None:
    env = make_env("pick", image_size=size, randomize=True)
    with EpisodeStore.create(path, env.unwrapped.embodiment) as store:  # type: ignore[attr-defined]
        for seed in tqdm(range(episodes), desc="record", unit="episode"):
            store.append(demonstrate(env, "pick", seed, 0.0))
    env.close()


def _measure(
    entries: dict[str, Entry], steps: int, turns: int, folder: Path, together: bool
) -> dict[str, list[dict[str, float]]]:
    """The measured turns of each side, interleaved if all fit into memory `together`."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in entries}
    groups = [list(entries)] if together else [[name] for name in entries]
    for group in groups:
        with ExitStack() as stack:
            # A stopped side would otherwise outlive this process.
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)))
            sides = {}
            for name in group:
                loop, arguments = entries[name]
                sides[name] = stack.enter_context(_running(loop, steps, folder / f"{name}.log", arguments))
            warm = math.ceil(WARM / steps)
            for number in tqdm(range(warm + turns), desc=", ".join(group), unit="turn"):
                for name, side in sides.items():
                    turn = side.turn()
                    if number >= warm:
                        measured[name].append(turn)
    return measured


@contextmanager
def _running(loop: Callable[..., None], steps: int, log: Path, arguments: Sequence[Any]) -> Iterator[Contestant]:
    side = Contestant(loop, steps, log, *arguments)
    try:
        yield side
    finally:
        side.close()
