"""A FAST tokenizer from a store: of the chunks that training asks for, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla.commands import cli
from vla.datasets.episodes import EpisodeStore
from vla.datasets.windows import Windows
from vla.models.action_tokenizers.fast import FastTokenizer
from vla.training.demonstrations import Demonstrations, robot_specs
from vla.types import Episode

MakeEpisode = Callable[..., Episode]


@pytest.fixture
def store(make_episode: MakeEpisode, tmp_path: Path) -> Path:
    path = tmp_path / "a.zarr"
    episodes = [make_episode(seed, steps=20) for seed in range(6)]
    with EpisodeStore.create(path, episodes[0].embodiment) as store:
        for episode in episodes:
            store.append(replace(episode, action=np.cumsum(episode.action * 0.1, axis=0)))
    return path


def test_chunks_are_those_that_training_asks_for(store: Path) -> None:
    one = Demonstrations.open(str(store))
    (robot,) = robot_specs([one], 4)
    windows = Windows(one.store, 4, episodes=one.train_episodes)
    chunks = np.concatenate(list(one.chunks(robot, one.train_episodes)))
    assert len(chunks) == len(windows)
    for i, chunk in enumerate(chunks):
        window = windows[i]
        assert isinstance(window.target, np.ndarray) and window.state is not None
        expected = robot.normalize_actions(window.target, window.state)
        np.testing.assert_allclose(chunk, expected, atol=1e-9, err_msg=str(i))


def test_the_command_writes_a_tokenizer_once(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "fast"
    arguments = ["train-tokenizer", f"data={store}", f"out={out}", "horizon=4", "vocab=256"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "times fewer" in shown and "vla train head=fast head.tokenizer=" in shown
    assert [path.name for path in out.parent.iterdir()] == ["fast"]
    tokenizer = FastTokenizer.load(out)
    assert tokenizer.vocab_size <= 256
    one = Demonstrations.open(str(store))
    (robot,) = robot_specs([one], 4)
    for chunk in np.concatenate(list(one.chunks(robot, one.train_episodes))):
        decoded = tokenizer.decode(tokenizer.encode(chunk), *chunk.shape)
        assert decoded is not None and np.abs(decoded - chunk).max() <= tokenizer.error_bound(4) + 1e-9
    before = (out / "tokenizer.json").read_bytes()
    assert cli.main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert (out / "tokenizer.json").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "message"),
    [("vocab=2", "more than the 2 tokens"), ("horizon=0", "horizon must be"), ("scale=0.0", "0.0")],
)
def test_what_cannot_be_leaves_nothing(
    option: str, message: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train-tokenizer", f"data={store}", f"out={tmp_path / 'fast'}", option]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_without_data_the_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train-tokenizer"]) == 2
    assert "set data=…" in capsys.readouterr().err
