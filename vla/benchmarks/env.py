"""`vla bench env`: the time of rendering, stepping and sampling scenes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from vla.common.result_table import Table, Target
from vla.envs.make import make_env
from vla.envs.random_scene import SceneSampler
from vla.envs.scripted_expert import ScriptedExpert


def bench_env() -> Table:
    """Measures the time of a frame by camera and size, of a control step with images, and of a random scene."""
    rows: list[dict[str, Any]] = []
    for size in (96, 224):
        env = make_env("pick", image_size=size)
        env.reset(seed=0)
        render, expert = env.unwrapped.scene.render, ScriptedExpert(env)  # type: ignore[attr-defined]
        for camera in ("front", "wrist"):
            rows.append({"what": f"frame, {camera}", "size": size, "ms": _milliseconds(partial(render, camera))})
        step = _milliseconds(partial(_step, env, expert))
        rows.append({"what": "control step with both images", "size": size, "ms": step})
        env.close()
    sampler = SceneSampler()
    seeds = count()
    scene = _milliseconds(lambda: sampler.sample(next(seeds)))
    rows.append({"what": "random scene with its truth", "size": 96, "ms": scene})
    sampler.close()
    frame = max(row["ms"] for row in rows if row["size"] == 96 and row["what"].startswith("frame"))
    return Table(rows, [Target("ms for a 96x96 frame", frame, 1.0, at_most=True)])


def _step(env: Any, expert: ScriptedExpert) -> None:
    env.step(expert.act())


def _milliseconds(work: Callable[[], object], repeats: int = 20, rounds: int = 5) -> float:
    """The time of one call in the fastest of several rounds, which other processes disturb least [ms]."""
    work()
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        best = min(best, (time.perf_counter() - start) / repeats)
    return best * 1000
