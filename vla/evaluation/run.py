"""`vla eval`: the success rate of a policy in simulation, with its interval."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from vla.datasets.episodes import EpisodeStore
from vla.envs.instructions import check_phrasing
from vla.envs.make import make_env
from vla.errors import InputError
from vla.evaluation.intervals import wilson
from vla.evaluation.rollout import Result, Trial, rollout
from vla.policies.load import load_policy
from vla.recording.zarr_recorder import ZarrRecorder


def evaluate(
    *,
    policy: str,
    task: str,
    seeds: str,
    phrasing: str,
    swap: bool,
    out: str,
    randomize: bool,
    parallel: int,
    execute: int,
) -> None:
    """Rolls `policy` out on each of `seeds`, into `out/eval.json` and the store `out/rollouts.zarr`.

    With `swap` each seed is run a second time, its instruction naming another object of the scene. Raises
    InputError, before anything is written, when a name is unknown, the policy is of another embodiment, or `out`
    holds an evaluation already.
    """
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: remove it, or name another folder with out=")
    if parallel < 1 or execute < 1:
        raise InputError(f"parallel and execute must be at least 1, not {parallel} and {execute}")
    check_phrasing(phrasing)
    make = partial(make_env, task, randomize=randomize, phrasing=phrasing)
    policy_for = load_policy(policy)
    trials = trials_for(parse_seeds(seeds), swap)
    env = make()
    embodiment = env.unwrapped.embodiment  # type: ignore[attr-defined]
    policy_for(env).embodiment.check(embodiment)
    env.close()
    folder.mkdir(parents=True, exist_ok=True)
    with EpisodeStore.create(folder / "rollouts.zarr", embodiment) as store:
        results = rollout(
            make, policy_for, trials, parallel=parallel, execute=execute, recorder=partial(ZarrRecorder, store)
        )
    report = {"policy": policy, "task": task, "phrasing": phrasing} | summarize(results)
    write_json(folder / "eval.json", report | {"results": [asdict(r) for r in results]})
    low, high = report["success_ci95"]
    print(f"success {report['success_rate']:.3f} [{low:.3f}, {high:.3f}] in {report['episodes']} episodes: {folder}")
    if swap:
        print(f"with the instruction swapped: {report['instruction_swap_success']:.3f}")


def trials_for(seeds: Sequence[int], swap: bool) -> list[Trial]:
    """The trials of an evaluation: group "named", and with `swap` group "swap" on the same seeds."""
    trials = [Trial(seed, {}, "named") for seed in seeds]
    return trials + ([Trial(seed, {"swap": True}, "swap") for seed in seeds] if swap else [])


def summarize(results: Sequence[Result]) -> dict[str, Any]:
    """Rates over the group "named", and the success of the group "swap" (None without one)."""
    named, swapped = ([r for r in results if r.group == group] for group in ("named", "swap"))
    successes = sum(r.success for r in named)
    return {
        "success_rate": successes / len(named),
        "success_ci95": list(wilson(successes, len(named))),
        "episodes": len(named),
        "wrong_object_rate": sum(r.wrong_object for r in named) / len(named),
        "instruction_swap_success": sum(r.success for r in swapped) / len(swapped) if swapped else None,
        "mean_length": sum(r.length for r in named) / len(named),
        "invalid_chunks": sum(r.invalid for r in results),
    }


def parse_seeds(text: str) -> range:
    """ "1000:1060" is 1000 … 1059. Raises InputError for anything else, and for no seed at all."""
    match = re.fullmatch(r"(\d+):(\d+)", str(text).strip())
    seeds = range(int(match[1]), int(match[2])) if match else range(0)
    if not seeds:
        raise InputError(f"seeds must be FIRST:END with END beyond FIRST, such as 1000:1060, not {text!r}")
    return seeds


def write_json(path: Path, values: Any) -> None:
    """Whole or not at all."""
    partial_path = path.with_name(f".{path.name}.partial")
    partial_path.write_text(json.dumps(values, indent=1))
    os.replace(partial_path, path)
