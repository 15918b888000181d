"""Stores of before actions said what they are: read as they were, not trained on until they say it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla.commands.data import data
from vla.datasets.episodes import EpisodeStore
from vla.errors import InputError
from vla.training.demonstrations import Demonstrations
from vla.types import Episode

MakeEpisode = Callable[..., Episode]
NEW = ("action_mode", "action_state", "action_turn", "grippers", "rotations")


def old_store(path: Path, make_episode: MakeEpisode, kind: str) -> Path:
    """A store without what an embodiment says of its actions; those of `kind` delta share the state's names."""
    rng = np.random.default_rng(0)
    with EpisodeStore.create(path, make_episode().embodiment) as store:
        for seed in range(3):
            state = np.cumsum(rng.normal(0, 0.05, (30, 2)), axis=0)
            later = np.concatenate([state[1:], state[-1:]])
            action = later - (state if kind == "delta" else 0)
            grip = np.repeat(rng.integers(0, 2, 6), 5)[:, None]
            store.append(make_episode(seed, steps=30, state=state, action=np.concatenate([action, grip], axis=1)))
    file = path / "zarr.json"
    content = json.loads(file.read_text())
    for name in NEW:
        del content["attributes"]["embodiment"][name]
    file.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("kind", ["absolute", "delta"])
def test_a_store_says_what_its_actions_are_once_it_is_migrated(
    kind: str, make_episode: MakeEpisode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = old_store(tmp_path / "old.zarr", make_episode, kind)
    before = EpisodeStore.open(path)
    assert not before.declares_actions and before[1].action.shape == (30, 3)
    with pytest.raises(InputError, match="vla data migrate"):
        Demonstrations.open(str(path))
    data(action="migrate", path=str(path))
    assert f"actions are {kind}: lift [rad], turn [rad]" in capsys.readouterr().out
    store = EpisodeStore.open(path)
    assert store.declares_actions and store.embodiment.action_mode == (kind, kind, "absolute")
    assert store.embodiment.grippers == ("grip [rad]",)
    np.testing.assert_array_equal(store[2].action, before[2].action)
    assert Demonstrations.open(str(path)).store.embodiment == store.embodiment
    data(action="migrate", path=str(path))
    assert "already declares" in capsys.readouterr().out
    data(action="migrate", path=str(path), actions={"grip [rad]": "force"}, grippers=[])
    assert EpisodeStore.open(path).embodiment.action_mode == (kind, kind, "force")


def test_nothing_is_written_where_the_numbers_do_not_tell(make_episode: MakeEpisode, tmp_path: Path) -> None:
    path = tmp_path / "random.zarr"
    with EpisodeStore.create(path, make_episode().embodiment) as store:
        for seed in range(3):
            store.append(make_episode(seed, steps=40))
    file = path / "zarr.json"
    content = json.loads(file.read_text())
    for name in NEW:
        del content["attributes"]["embodiment"][name]
    file.write_text(json.dumps(content))
    before = file.read_bytes()
    with pytest.raises(InputError, match="do not show.*actions=absolute"):
        data(action="migrate", path=str(path))
    assert file.read_bytes() == before
    data(action="migrate", path=str(path), actions="velocity")
    assert set(EpisodeStore.open(path).embodiment.action_mode) == {"velocity"}
    for option, message in (("speed", "not 'speed'"), (3, "actions takes a mode")):
        with pytest.raises(InputError, match=message):
            data(action="migrate", path=str(path), actions=option)


def test_only_what_the_actions_are_can_change(make_episode: MakeEpisode, tmp_path: Path) -> None:
    body = make_episode().embodiment
    with (
        EpisodeStore.create(tmp_path / "a.zarr", body) as store,
        pytest.raises(InputError, match="the cameras of a store cannot change"),
    ):
        store.set_embodiment(replace(body, cameras=("top",)))
