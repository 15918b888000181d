"""What refactoring must not change. `python tests/golden.py [CASE ...]` computes it anew into tests/data/golden.json.

Keys and names of files are behaviour too: checkpoints and stores that were written once must load for ever.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from conftest import TOY, tiny_model, toy_episode
from so101_checkpoints import so101_model
from test_heads import HEADS, demonstrations, observed, options, question

from vla.commands.record import demonstrate
from vla.common.msgpack_numpy import pack
from vla.datasets.episodes import EpisodeStore
from vla.envs.make import make_env
from vla.envs.so101 import to_observation
from vla.envs.tasks import TASKS
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.types import Episode, Span

DATA = Path(__file__).parent / "data"
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILE = DATA / "golden.json"
STORE = DATA / "episodes.zarr"
CHECKPOINTS = ("bins", "flow")
"""Heads of the checkpoints in `DATA`."""


def numbers(values: Any) -> list[float]:
    """Every value, flat."""
    return [float(f"{value:.6g}") for value in np.asarray(values, np.float64).ravel()]


def head_model(name: str) -> VLA:
    torch.manual_seed(0)
    return tiny_model(seed=3, smoothing=0.0, points=1, **options(name))


def chunks(model: VLA) -> dict[str, list[float]]:
    """A chunk as it comes, one by the engine, and one that begins with two actions."""
    seen, found = observed(demonstrations()[0]), {}
    first = np.array([[0.1, -0.2, 0.5], [0.2, -0.1, 0.4]])
    for name, policy in (("plain", VlaPolicy(model)), ("engine", VlaPolicy(model, engine="float32"))):
        torch.manual_seed(1)
        chunk = policy.predict(seen)
        found[name] = [] if chunk is None else numbers(chunk.actions)
        torch.manual_seed(1)
        chunk = policy.predict(seen, prefix=first)
        found[f"{name} with a prefix"] = [] if chunk is None else numbers(chunk.actions)
    return found


def head(name: str) -> dict[str, Any]:
    """Losses by row and kind, the logits of a question, and chunks."""
    model = head_model(name)
    batch = model.processor.batch([question(), *(replace(e, prefix_length=n) for n, e in enumerate(demonstrations()))])
    torch.manual_seed(2)
    with torch.no_grad():
        losses, rows, _ = model(batch)
    return {"losses": numbers(losses), "rows": rows.tolist()} | chunks(model)


def expert(task: str) -> dict[str, Any]:
    """A demonstration: its length, its end and its last state."""
    env = make_env(task, images=False)
    episode = demonstrate(env, task, 7, 0.02)
    env.close()
    return {"steps": len(episode), "success": episode.success, "state": numbers(episode.state[-1])}


def rollout() -> list[float]:
    """The joints after ten steps of a random model on the simulated arm."""
    policy = VlaPolicy(so101_model(tiny_model(robot=False)))
    env = make_env("pick", image_size=32)
    values, info = env.reset(seed=5)
    for step in range(10):
        chunk = policy.predict(to_observation(values | {"instruction": info["instruction"]}, step / 10))
        assert chunk is not None
        values, *_ = env.step(chunk.actions[0])
    env.close()
    return numbers(values["state"])


def keys(value: Any, path: str = "") -> list[str]:
    """The dotted keys of a configuration."""
    if not isinstance(value, dict) or not value:
        return [path]
    return [key for name, part in value.items() for key in keys(part, f"{path}.{name}" if path else str(name))]


def configuration() -> dict[str, list[str]]:
    """The options of each command and group, by file."""
    files = sorted(file for file in CONFIGS.rglob("*.yaml") if file.parent.name != "families")
    return {str(file.relative_to(CONFIGS)): keys(yaml.safe_load(file.read_text())) for file in files}


def stored() -> list[Episode]:
    """The episodes of the store in `DATA`."""
    spans = (Span(0, 2, "reach the ring"), Span(2, 5, "lift it"))
    return [
        toy_episode(0, horizon=2, paraphrases=("raise the ring",), spans=spans),
        toy_episode(1, points=np.full((5, 2, 2), 0.25)),
        toy_episode(2, steps=3, success=None, extras={"force": np.linspace(0, 1, 3)}),
    ]


def wire() -> dict[str, str]:
    """Messages as bytes."""
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    observation = {"observation/front": image, "observation/state": np.array([0.5, -1.5]), "prompt": "lift the ring"}
    return {
        "observation": pack(observation).hex(),
        "embodiment": pack(TOY.to_dict()).hex(),
        "actions": pack({"actions": np.ones((2, 3)), "n": np.float32(0.25)}).hex(),
    }


CASES: dict[str, Callable[[], Any]] = {
    **{f"head {name}": lambda name=name: head(name) for name in HEADS},  # type: ignore[misc]
    **{f"expert {task}": lambda task=task: expert(task) for task in TASKS},  # type: ignore[misc]
    "options": configuration,
    "rollout": rollout,
    "wire": wire,
}


def main() -> None:
    DATA.mkdir(exist_ok=True)
    if sys.argv[1:]:  # the names of cases
        known = json.loads(FILE.read_text())
        FILE.write_text(json.dumps(known | {name: CASES[name]() for name in sys.argv[1:]}, indent=1) + "\n")
        return
    FILE.write_text(json.dumps({name: case() for name, case in CASES.items()}, indent=1) + "\n")
    for name in CHECKPOINTS:  # what was written once stays as it is
        if not (folder := DATA / f"checkpoint-{name}").exists():
            head_model(name).save_pretrained(folder)
    if not STORE.exists():
        with EpisodeStore.create(STORE, TOY) as store:
            for episode in stored():
                store.append(episode)


if __name__ == "__main__":
    sys.exit(main())
