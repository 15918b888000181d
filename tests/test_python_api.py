"""The package from Python: environments, policies and stores by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vla
from vla.datasets.episodes import EpisodeStore
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.policies.loaded import LoadedPolicy
from vla.types import ActionChunk, Episode, Observation

BODY = Embodiment("toy", ("front",), ("x [m]",), ("x [m]",), (-1.0,), (1.0,), 10.0)


class Recorded:
    """Keeps the observations; its chunk is the number of past frames that have an image."""

    embodiment, history = BODY, (0.1,)

    def __init__(self) -> None:
        self.observations: list[Observation] = []

    def reset(self) -> None:
        self.observations = []

    def predict(self, observation: Observation, *, prefix: Any = None) -> ActionChunk:
        self.observations.append(observation)
        return ActionChunk(np.full((1, 1), float(sum(map(bool, observation.past)))), observation.time, 0.1)


def entries(**more: Any) -> dict[str, Any]:
    return {"images": {"front": np.zeros((4, 4, 3), np.uint8)}, "state": [0.5], "instruction": "go", **more}


def test_gymnasium_makes_environments_once_vla_is_imported_in_either_order() -> None:
    for imports in ("import vla, gymnasium", "import gymnasium, vla", "import vla.envs, gymnasium"):
        code = f"{imports}; gymnasium.make('vla/SO101-Pick-v1', images=False).close()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, vla; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"numpy", "torch", "gymnasium", "mujoco", "zarr"}.isdisjoint(loaded)


@pytest.mark.parametrize("before", ["", "import weakref; weakref.finalize(vla.make_env, print); "])
def test_an_environment_without_close_ends_without_a_word(before: str) -> None:
    """Other packages, such as torch, create finalizers before MuJoCo registers what it does at exit."""
    code = f"import vla; {before}env = vla.make_env('pick'); env.reset(seed=0); env.render()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("pick", "wrong", r"unknown environment argument 'wrong'; known: image_size, randomize, .*max_episode_steps"),
        ("vla/SO101-Pick-v1", "imagesize", r"'imagesize' \(did you mean 'image_size'\?\)"),
        ("metaworld/reach-v3", "image_sise", r"'image_sise' \(did you mean 'image_size'\?\)"),
        ("pikc", "wrong", "unknown task 'pikc'"),
    ],
)
def test_an_unknown_argument_of_an_environment_is_named(name: str, argument: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        vla.make_env(name, **{argument: 1})


def test_a_policy_takes_what_the_environment_returns() -> None:
    env = vla.make_env("pick", image_size=32)
    policy, (observation, _) = vla.load_policy("expert", env), env.reset(seed=1)
    chunk = policy.predict(observation)
    assert chunk is not None and policy.embodiment.action == env.unwrapped.embodiment.action  # type: ignore[attr-defined]
    env.step(chunk.actions[0])
    env.close()


def test_past_frames_are_kept_until_reset() -> None:
    policy = LoadedPolicy(Recorded())
    counts = [policy.predict(entries(time=time)).actions.item() for time in (0.0, 0.1, 0.2)]  # type: ignore[union-attr]
    policy.reset()
    assert [*counts, policy.predict(entries(time=0.3)).actions.item()] == [0, 1, 1, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"state": [0.5], "instruction": "go"}, "the observation has no images"),
        (entries(), "add the time"),
        (entries(time=0.0, images={"side": np.zeros((4, 4, 3), np.uint8)}), "no image of front, only of side"),
    ],
)
def test_what_an_observation_lacks_is_named(observation: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoadedPolicy(Recorded()).predict(observation)


def test_a_scripted_policy_needs_an_environment() -> None:
    with pytest.raises(InputError, match="acts in one environment"):
        vla.load_policy("expert")
    with pytest.raises(InputError, match="no policy 'nowhere'"):
        vla.load_policy("nowhere")


def test_a_store_is_opened(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    episode = make_episode(0)
    with EpisodeStore.create(tmp_path / "a.zarr", episode.embodiment) as store:
        store.append(episode)
    with vla.open_store(tmp_path / "a.zarr") as store:
        assert len(store) == 1 and store[0].instruction == episode.instruction
    with pytest.raises(InputError, match="no episode store"):
        vla.open_store(tmp_path / "b.zarr")
    with pytest.raises(InputError, match="unknown mode 'w'; known: r, a"):
        vla.open_store(tmp_path / "a.zarr", "w")
