"""`vla view`: which store, which episodes, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerun.experimental import RrdReader

from vla.commands import cli
from vla.commands.view import view
from vla.datasets.episode_selection import FEW, choose
from vla.datasets.episodes import EpisodeStore
from vla.errors import InputError
from vla.types import Episode

Make = Callable[..., Episode]


@pytest.fixture
def make_store(tmp_path: Path, make_episode: Make) -> Callable[..., Path]:
    def make(name: str, episodes: int = 3) -> Path:
        with EpisodeStore.create(tmp_path / name, make_episode().embodiment) as store:
            for seed in range(episodes):
                store.append(make_episode(seed, steps=2, instruction=f"lift ring {seed} of {name}"))
        return tmp_path / name

    return make


@pytest.fixture(autouse=True)
def no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def instructions(path: Path) -> str:
    """All that is written under `instruction` in a Rerun file."""
    chunks = [chunk for chunk in RrdReader(path).stream() if str(chunk.entity_path) == "/instruction"]
    return " ".join(str(chunk.to_record_batch().to_pydict()) for chunk in chunks)


def test_a_store_becomes_a_file(
    make_store: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save = tmp_path / "shown.rrd"
    view(path=str(make_store("x.zarr")), episodes=None, side_by_side=False, save=str(save))
    assert all(f"lift ring {i} of x.zarr" in instructions(save) for i in range(3))
    said = capsys.readouterr().out
    assert "episodes 0 to 2 of 3" in said and f"rerun {save}" in said


def test_only_the_episodes_asked_for(make_store: Callable[..., Path], tmp_path: Path) -> None:
    view(path=str(make_store("x.zarr")), episodes="1:2", side_by_side=False, save=str(tmp_path / "shown.rrd"))
    shown = instructions(tmp_path / "shown.rrd")
    assert "lift ring 1" in shown and "lift ring 0" not in shown and "lift ring 2" not in shown


def test_a_long_store_is_cut_and_says_so(
    make_store: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view(path=str(make_store("x.zarr", FEW + 3)), episodes=None, side_by_side=False, save=str(tmp_path / "shown.rrd"))
    assert f"--episodes {FEW}:{FEW + 3}" in capsys.readouterr().out
    assert f"lift ring {FEW} " not in instructions(tmp_path / "shown.rrd")


def test_a_runs_folder_shows_its_rollouts(
    make_store: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store("demos.zarr")
    view(path=str(tmp_path), episodes=None, side_by_side=False, save=str(tmp_path / "one.rrd"))
    assert "of demos.zarr" in instructions(tmp_path / "one.rrd")
    make_store("rollouts.zarr")
    view(path=str(tmp_path), episodes=None, side_by_side=False, save=str(tmp_path / "two.rrd"))
    assert "of rollouts.zarr" in instructions(tmp_path / "two.rrd")
    assert "holds rollouts.zarr, demos.zarr; showing rollouts.zarr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "episodes", "save", "named"),
    [
        ("nowhere", None, "x.rrd", "nowhere"),
        ("", None, "x.rrd", "other.zarr"),
        ("other.zarr", "5:9", "x.rrd", "the store has 3"),
        ("other.zarr", "2:1", "x.rrd", "2:1"),
        ("other.zarr", "two", "x.rrd", "FIRST:END"),
        ("other.zarr", None, "x.mp4", "x.mp4"),
        ("other.zarr", None, None, "--save"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    where: str, episodes: str | None, save: str | None, named: str, make_store: Callable[..., Path], tmp_path: Path
) -> None:
    make_store("other.zarr")
    with pytest.raises(InputError, match=named):
        view(path=str(tmp_path / where), episodes=episodes, side_by_side=False, save=save and str(tmp_path / save))
    assert [path.name for path in tmp_path.iterdir()] == ["other.zarr"]


def test_a_lone_number_is_no_range(make_store: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["view", str(make_store("x.zarr")), "--episodes", "3"]) == 2
    assert "FIRST:END" in capsys.readouterr().err


def test_a_file_may_be_called_by_a_number(make_store: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["view", str(make_store("x.zarr")), "--save", "5"]) == 2
    assert "5 is not a Rerun file" in capsys.readouterr().err


def test_a_store_without_episodes(make_store: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no episode to show"):
        view(path=str(make_store("x.zarr", 0)), episodes=None, side_by_side=False, save=str(tmp_path / "shown.rrd"))


@given(first=st.integers(0, 50), end=st.integers(0, 50), count=st.integers(1, 50))
def test_a_range_names_the_episodes_a_slice_would(first: int, end: int, count: int) -> None:
    expected = list(range(count))[first:end]
    if expected:
        assert list(choose(f"{first}:{end}", count)) == expected
    else:
        with pytest.raises(InputError):
            choose(f"{first}:{end}", count)
