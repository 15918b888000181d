"""Chunks and delays in steps and in seconds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_run import options, stores

from vla.commands import cli
from vla.datasets.episodes import EpisodeStore
from vla.datasets.windows import Windows
from vla.errors import InputError
from vla.models.action_heads.build import HEADS
from vla.training.demonstrations import Demonstrations
from vla.training.horizon import SECONDS, horizon_steps, prefix_steps
from vla.training.run import train
from vla.training.run_options import RunOptions

rates = st.sampled_from([5.0, 10.0, 15.0, 30.0, 50.0])


@given(st.integers(1, 200), rates)
def test_steps_are_those_of_the_time(steps: int, rate: float) -> None:
    for text in (f"{steps / rate} s", f"{steps / rate:.6f}s", f"{1000 * steps / rate:.4f} ms", f"{steps}", steps):
        assert horizon_steps(text, [rate, rate], "flow") == steps
    assert prefix_steps(steps / rate, rate, steps + 1) == steps
    assert prefix_steps(f"{1000 * (steps - 0.5) / rate:.4f} ms", rate, steps + 1) == steps  # a part of a step is one
    with pytest.raises(InputError, match="longer horizon"):
        prefix_steps(steps / rate, rate, steps)


def test_every_head_has_its_own_and_nano_six_steps() -> None:
    assert SECONDS.keys() == HEADS.keys()
    assert [horizon_steps(None, [rate], head) for head, rate in (("parallel", 10.0), ("flow", 50.0), ("l1", 25.0))] == [
        6,
        50,
        25,
    ]
    assert horizon_steps(None, [], "flow") == 1 and horizon_steps(None, [1.0], "bins") == 1


@pytest.mark.parametrize("text", ["1.0", "one second", "", "-1 s", "1 m", "0.01 s", 0])
def test_what_is_no_horizon_is_refused(text: Any) -> None:
    with pytest.raises(InputError):
        horizon_steps(text, [10.0], "flow")


@pytest.mark.parametrize("delay", ["soon", -0.1, float("nan")])
def test_what_is_no_delay_is_refused(delay: Any) -> None:
    with pytest.raises(InputError, match="delay is a time"):
        prefix_steps(delay, 10.0, 6)


def test_robots_of_different_rates_have_one_horizon_in_steps() -> None:
    with pytest.raises(InputError, match="10 and 30 steps.*horizon=10"):
        horizon_steps("1 s", [10.0, 30.0], "flow")
    assert horizon_steps(8, [10.0, 30.0], "flow") == 8


def test_prefixes_are_as_long_as_the_delay_each_alike_often(make_episode: Callable[..., Any], tmp_path: Path) -> None:
    with EpisodeStore.create(tmp_path / "a.zarr", make_episode().embodiment) as store:
        for seed in range(3):
            store.append(make_episode(seed, steps=20))
    demonstrations, rng = Demonstrations.open(str(tmp_path / "a.zarr")), np.random.default_rng(0)
    windows = demonstrations.windows(8, delay=0.25)  # at 10 Hz, three steps
    drawn = Counter(windows.example(i % len(windows), rng).prefix_length for i in range(800))
    assert drawn.keys() == {0, 1, 2, 3} and min(drawn.values()) > 150
    before = Windows(demonstrations.store, 8, episodes=demonstrations.train_episodes)
    drawn = Counter(before.example(i % len(before), rng).prefix_length for i in range(800))
    assert drawn.keys() == {0, 1, 2, 3, 4} and 560 < drawn[0] < 720


@pytest.mark.slow  # three trainings
def test_a_training_takes_seconds_and_a_policy_that_goes_on_keeps_its_own(
    make_episode: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"first": stores(make_episode, tmp_path)["first"]}
    train(RunOptions(**options(data, tmp_path / "a", horizon="300 ms", delay=0.1)))
    found = json.loads((tmp_path / "a/best/processor.json").read_text())
    assert found["robots"][0]["horizon"] == 3
    assert json.loads((tmp_path / "a/best/training.json").read_text())["settings"]["horizon"] == 3
    train(RunOptions(**options(data, tmp_path / "b", horizon=None, backbone=str(tmp_path / "a/best"))))
    assert json.loads((tmp_path / "b/best/processor.json").read_text())["robots"][0]["horizon"] == 3
    with pytest.raises(InputError, match="another delay"):
        train(RunOptions(**options(data, tmp_path / "a", horizon=3, delay=0.2, plan={"steps": 3, "batch_size": 3})))
    command = ["train", f"data={data['first']}", "mixture.vqa=0", "backbone=scratch", f"out={tmp_path / 'c'}"]
    assert cli.main([*command, "horizon=1.0"]) == 2
    assert "horizon is a number of steps (6) or a time" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
