"""`vla bench inference`: how long a chunk takes, part by part, beside the least that the machine allows, and beside
transformers' `generate` and LeRobot's policies of the same sizes in the same run.

The bound is the sum, over the linear maps and convolutions of a part, of max(weight bytes / bandwidth,
operations / peak rate) (roofline, Williams et al. 2009); attention's scores and all else are not counted. On CUDA the
figures are those of NVIDIA's data sheets, on a CPU measured here.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from tqdm import tqdm

from vla.benchmarks.inference_others import generated, lerobot
from vla.benchmarks.inference_shapes import SHAPES, Shape, make, observation
from vla.benchmarks.train import H100, gemm_peak
from vla.common.device import accelerator
from vla.common.result_table import Table, Target
from vla.models.action_heads.bins import BinsHead
from vla.models.engine.engine import Engine
from vla.models.engine.layers import WeightOnly
from vla.models.vla import VLA

PARTS = ("vision", "prefill", "decode", "total")
ROOFLINE, LEROBOT, GENERATE, NANO = 1.7, 4.0, 8.0, 3.0
"""To reach: of the bound, at most; of others' times, at least: the first three with pi0's sizes on an H100."""
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12}
"""[bytes/s] By a part of the device's name (NVIDIA's data sheets, SXM)."""
NANOS = ("nano", "nano, 1 past frame", "nano, 2 past frames")
"""What past frames of both cameras cost."""
WARM, ENOUGH = 3, 30.0
"""Calls that do not count; [s] after which no more are made, but three."""


@dataclass(frozen=True)
class Machine:
    bandwidth: float
    """[bytes/s]"""
    peak: float
    """[FLOP/s]"""

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> Machine:
        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
            return cls(next((rate for key, rate in BANDWIDTH.items() if key in name), 3.35e12), H100)
        return cls(read_rate(), gemm_peak(dtype, seconds=1.0))


def bench_inference(
    shapes: Sequence[str] | None = None,
    precision: str | None = None,
    calls: int = 30,
    others: bool = True,
) -> Table:
    """p50, p99 and bound [ms] of each part of a chunk, for models of these `shapes` (`inference_shapes.SHAPES`).

    Without `shapes`: on CUDA all published sizes, elsewhere nano, also with past frames, and SmolVLA's. Without
    `precision`: bfloat16 on CUDA, float32 elsewhere. `others`: measure `generate` and LeRobot as well.
    """
    device = accelerator()
    cuda = device.type == "cuda"
    names = shapes or (*NANOS, "nano bins", "smolvla", *(("pi0", "openvla") if cuda else ()))
    precision = precision or ("bfloat16" if cuda else "float32")
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    machine = Machine.of(device, dtype)
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    for name in tqdm(names, desc="shapes", unit="shape"):
        shape = SHAPES[name]
        model = make(shape, device)
        if isinstance(model.processor.head, BinsHead):
            model.processor.head.draft_length = 1  # random weights say the same bin again and again, too easy a guess
        ours = _ours(model, precision, machine, calls)
        times: dict[str, Measured] = {f"vla {precision}": ours}
        if not cuda:
            times["vla without an engine"] = {"total": (timed(_chunk(model, model), calls, device), None)}
        if others:
            times["generate"] = {"total": (timed(generated(model, shape.tokens, dtype), calls, device), None)}
        del model
        _free()
        for policy in shape.lerobot if others else ():
            peer = lerobot(policy, shape, device, dtype)
            times[f"lerobot {policy}"] = {"total": (timed(peer, calls, device), None)}
            del peer
            _free()
        mine, rows_of = float(np.median(ours["total"][0])), []
        for who, parts in times.items():
            rows_of += [_row(name, who, part, *parts[part], mine) for part in PARTS if part in parts]
        rows += rows_of
        targets += _targets(shape, {k: float(np.median(v["total"][0])) for k, v in times.items()}, ours, cuda)
    return Table(rows, targets)


Measured = Mapping[str, tuple[Sequence[float], float | None]]
"""Of each part the times of its calls [s], and its bound [s] where one is known."""


def _row(name: str, who: str, part: str, times: Sequence[float], bound: float | None, mine: float) -> dict[str, Any]:
    middle, worst = np.percentile(times, (50, 99))
    return {
        "model": name,
        "by": who,
        "part": part,
        "p50 ms": 1000 * float(middle),
        "p99 ms": 1000 * float(worst),
        "bound ms": None if bound is None else 1000 * bound,
        "p50 / bound": None if bound is None else float(middle) / bound,
        "p50 / ours": float(middle) / mine if part == "total" else None,
    }


def _targets(shape: Shape, totals: dict[str, float], ours: Measured, cuda: bool) -> list[Target]:
    mine, bound = next(iter(totals.values())), ours["total"][1]
    made = []
    if shape.name == "pi0" and cuda and bound is not None:
        made.append(Target("pi0: time / roofline bound", mine / bound, ROOFLINE, at_most=True))
        wanted = {"generate": GENERATE, "lerobot pi0": LEROBOT}
    else:
        wanted = {"generate": NANO} if shape.name == "nano" and not cuda else {}
    for who, value in wanted.items():
        if who in totals:
            made.append(Target(f"{shape.name}: time of {who} / ours", totals[who] / mine, value))
    return made


def _ours(model: VLA, precision: str, machine: Machine, calls: int) -> Measured:
    engine, device = Engine(model, precision), model.device
    chunk = _chunk(model, engine)
    with _noted(engine.backbone, device) as stamps:
        bounds = _bounds(engine, chunk, machine, stamps)
        parts: dict[str, list[float]] = {name: [] for name in PARTS[:-1]}

        def once() -> None:
            stamps.clear()
            chunk()
            _wait(device)
            end = time.perf_counter()
            (_, see, seen), (_, fill, filled) = stamps
            for name, seconds in zip(parts, (seen - see, filled - fill, end - filled), strict=True):
                parts[name].append(seconds)

        timed(once, calls, device)
    total = timed(chunk, calls, device)
    return {name: (parts[name][WARM:], bounds[name]) for name in parts} | {"total": (total, sum(bounds.values()))}


def _chunk(model: VLA, decoder: Any) -> Callable[[], Any]:
    """From an observation to the normalised chunk."""
    seen = observation(model)
    return lambda: decoder.generate_actions(model.processor.robot_prompt([seen]))


def timed(call: Callable[[], Any], calls: int, device: torch.device) -> list[float]:
    """[s] Of each call, after a few that do not count."""
    for _ in range(WARM):
        call()
    times: list[float] = []
    while len(times) < calls and (len(times) < 3 or sum(times) < ENOUGH):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - start)
    return times


def _bounds(
    engine: Engine, chunk: Callable[[], Any], machine: Machine, stamps: list[tuple[str, float, float]]
) -> dict[str, float]:
    """The least time [s] of each part, of what its modules compute in one call without graphs."""
    bounds = dict.fromkeys(PARTS[:-1], 0.0)

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d | WeightOnly) and isinstance(output, Tensor):
            # Of a convolution each output is a product with one filter; of a linear map with one row.
            each = module.weight.numel() // module.weight.shape[0]
            bytes_read = module.weight.numel() * module.weight.element_size()
            part = PARTS[min(len(stamps), 2)]
            bounds[part] += max(bytes_read / machine.bandwidth, 2 * output.numel() * each / machine.peak)

    stamps.clear()
    hook, engine.graphs.enabled = register_module_forward_hook(count), False
    try:
        chunk()
    finally:
        hook.remove()
        engine.graphs.enabled = True
    return bounds


@contextmanager
def _noted(backbone: Any, device: torch.device) -> Iterator[list[tuple[str, float, float]]]:
    """When each pass of vision ("encode_images") and of the decoder ("forward") begins and ends."""
    noted: list[tuple[str, float, float]] = []

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            first = len(noted) < 2  # of further passes the end is that of all
            if first:
                _wait(device)
            start = time.perf_counter()
            result = function(*arguments, **named)
            if first:
                _wait(device)
                noted.append((name, start, time.perf_counter()))
            return result

        return run

    for name in ("encode_images", "forward"):
        setattr(backbone, name, noting(name, getattr(backbone, name)))
    try:
        yield noted
    finally:
        for name in ("encode_images", "forward"):
            delattr(backbone, name)


def read_rate(size: int = 64, seconds: float = 1.0) -> float:
    """[bytes/s] At which this processor reads the weights of a product with one row: the best of many."""
    weight, row = torch.randn(size * 512, 512), torch.randn(512)
    best, stop = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < stop:
        torch.mv(weight, row)
        best = min(best, time.perf_counter() - start)
    return weight.numel() * 4 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
