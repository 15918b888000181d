"""`vla bench inference`: the latency of an action chunk by part, compared with a bound and with other libraries.

The other libraries are transformers (`generate`) and LeRobot (its policies of the same sizes).
The bound is the sum, over the linear layers and convolutions of a part, of max(weight bytes / bandwidth,
operations / peak rate) (roofline, Williams et al. 2009); attention scores and other operations are not counted.
Bandwidth and peak rate are those of NVIDIA's data sheets on CUDA, and measured on a CPU.
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
from vla.benchmarks.inference_policies import POLICIES, same_weights
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
"""Targets: the maximum ratio to the bound, and minimum ratios of other times to ours. The first three are for pi0's
sizes on an H100."""
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12}
"""Memory bandwidth by substring of the device's name (NVIDIA's data sheets, SXM) [bytes/s]."""
NANOS = ("nano", "nano, 1 past frame", "nano, 2 past frames")
"""Shapes for the cost of past frames of both cameras."""
ON_CUDA = ("pi0", "openvla", "pi0-weights", "pi05-weights")
WARM, ENOUGH = 3, 30.0
"""Warm-up calls; the time limit of the measured calls, at least three [s]."""


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
    """Measures p50, p99 and bound [ms] of each part of an action chunk.

    Args:
        shapes: Names in `inference_shapes.SHAPES`, and of policies with the same weights in LeRobot's class in
            `inference_policies.POLICIES`. By default all published sizes on CUDA; nano, also with past frames, and
            SmolVLA on a CPU.
        precision: By default bfloat16 on CUDA and float32 on a CPU.
        calls: The maximum number of calls.
        others: Whether `generate` and LeRobot are measured as well; the policies are a comparison with LeRobot.
    """
    device = accelerator()
    cuda = device.type == "cuda"
    names = shapes or (*NANOS, "nano bins", "smolvla", "smolvla-weights", *(ON_CUDA if cuda else ()))
    if not others:
        names = [name for name in names if name not in POLICIES]
    precision = precision or ("bfloat16" if cuda else "float32")
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    machine = Machine.of(device, dtype)
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    for name in tqdm(names, desc="shapes", unit="shape"):
        if name in POLICIES:
            same, more = same_weights(name, precision, device, lambda each: timed_in_turn(each, calls, device))
            rows, targets = rows + same, targets + more
            _free()
            continue
        shape = SHAPES[name]
        model = make(shape, device)
        if isinstance(model.processor.head, BinsHead):
            model.processor.head.draft_length = (
                1  # random weights repeat one bin, which speculative decoding would exploit
            )
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
        our_median, rows_of = float(np.median(ours["total"][0])), []
        for contestant, parts in times.items():
            rows_of += [_row(name, contestant, part, *parts[part], our_median) for part in PARTS if part in parts]
        rows += rows_of
        targets += _targets(shape, {k: float(np.median(v["total"][0])) for k, v in times.items()}, ours, cuda)
    return Table(rows, targets)


Measured = Mapping[str, tuple[Sequence[float], float | None]]
"""The times of the calls of each part, and its bound if known [s]."""


def _row(
    name: str, contestant: str, part: str, times: Sequence[float], bound: float | None, our_median: float
) -> dict[str, Any]:
    middle, worst = np.percentile(times, (50, 99))
    return {
        "model": name,
        "by": contestant,
        "part": part,
        "p50 ms": 1000 * float(middle),
        "p99 ms": 1000 * float(worst),
        "bound ms": None if bound is None else 1000 * bound,
        "p50 / bound": None if bound is None else float(middle) / bound,
        "p50 / ours": float(middle) / our_median if part == "total" else None,
    }


def _targets(shape: Shape, totals: dict[str, float], ours: Measured, cuda: bool) -> list[Target]:
    our_median, bound = next(iter(totals.values())), ours["total"][1]
    made = []
    if shape.name == "pi0" and cuda and bound is not None:
        made.append(Target("pi0: time / roofline bound", our_median / bound, ROOFLINE, at_most=True))
        minimums = {"generate": GENERATE, "lerobot pi0": LEROBOT}
    else:
        minimums = {"generate": NANO} if shape.name == "nano" and not cuda else {}
    for contestant, value in minimums.items():
        if contestant in totals:
            made.append(Target(f"{shape.name}: time of {contestant} / ours", totals[contestant] / our_median, value))
    return made


def _ours(model: VLA, precision: str, machine: Machine, calls: int) -> Measured:
    engine, device = Engine(model, precision), model.device
    chunk = _chunk(model, engine)
    with _record_times(engine.backbone, device) as stamps:
        bounds = _bounds(engine, chunk, machine, stamps)
        parts: dict[str, list[float]] = {name: [] for name in PARTS[:-1]}

        def run_once() -> None:
            stamps.clear()
            chunk()
            _wait(device)
            end = time.perf_counter()
            (_, vision_start, vision_end), (_, decoder_start, decoder_end) = stamps
            for name, seconds in zip(
                parts, (vision_end - vision_start, decoder_end - decoder_start, end - decoder_end), strict=True
            ):
                parts[name].append(seconds)

        timed(run_once, calls, device)
    total = timed(chunk, calls, device)
    return {name: (parts[name][WARM:], bounds[name]) for name in parts} | {"total": (total, sum(bounds.values()))}


def _chunk(model: VLA, decoder: Any) -> Callable[[], Any]:
    """A function from a fixed observation to the normalised action chunk."""
    sample_observation = observation(model)
    return lambda: decoder.generate_actions(model.processor.robot_prompt([sample_observation]))


def timed(call: Callable[[], Any], calls: int, device: torch.device) -> list[float]:
    """The times of calls after a warm-up [s]."""
    return timed_in_turn({"": call}, calls, device)[""]


def timed_in_turn(
    contestants: Mapping[str, Callable[[], Any]], calls: int, device: torch.device
) -> dict[str, list[float]]:
    """The times of calls of each contestant after a warm-up, one after the other, so that all share the load [s]."""
    for call in contestants.values():
        for _ in range(WARM):
            call()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for done in range(calls):
        if done >= 3 and max(map(sum, times.values())) >= ENOUGH:
            break
        for name, call in contestants.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            times[name].append(time.perf_counter() - start)
    return times


def _bounds(
    engine: Engine, chunk: Callable[[], Any], machine: Machine, stamps: list[tuple[str, float, float]]
) -> dict[str, float]:
    """The roofline bound of each part, from its modules in one call without CUDA graphs [s]."""
    bounds = dict.fromkeys(PARTS[:-1], 0.0)

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d | WeightOnly) and isinstance(output, Tensor):
            # Weights per output element: a filter of a convolution, or a row of a linear layer.
            per_output = module.weight.numel() // module.weight.shape[0]
            bytes_read = module.weight.numel() * module.weight.element_size()
            part = PARTS[min(len(stamps), 2)]
            bounds[part] += max(bytes_read / machine.bandwidth, 2 * output.numel() * per_output / machine.peak)

    stamps.clear()
    hook, engine.graphs.enabled = register_module_forward_hook(count), False
    try:
        chunk()
    finally:
        hook.remove()
        engine.graphs.enabled = True
    return bounds


@contextmanager
def _record_times(backbone: Any, device: torch.device) -> Iterator[list[tuple[str, float, float]]]:
    """Records the start and end of the vision pass ("encode_images") and of the first decoder pass ("forward")."""
    stamps: list[tuple[str, float, float]] = []

    def timed_call(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            first = len(stamps) < 2  # later passes are in the total only
            if first:
                _wait(device)
            start = time.perf_counter()
            result = function(*arguments, **named)
            if first:
                _wait(device)
                stamps.append((name, start, time.perf_counter()))
            return result

        return run

    for name in ("encode_images", "forward"):
        setattr(backbone, name, timed_call(name, getattr(backbone, name)))
    try:
        yield stamps
    finally:
        for name in ("encode_images", "forward"):
            delattr(backbone, name)


def read_rate(size: int = 64, seconds: float = 1.0) -> float:
    """The highest rate at which this processor reads the weights of a matrix-vector product [bytes/s]."""
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
