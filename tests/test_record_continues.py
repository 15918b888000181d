"""What `vla record` says: of a store that is there, and of the keys. An error leaves no empty store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vla.commands import cli, record
from vla.commands.record_robot import help_of
from vla.datasets.episodes import EpisodeStore
from vla.errors import InputError
from vla.types import Episode


@pytest.fixture
def demonstrated(make_episode: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Episodes as the expert of pick gives them, without an arm; the seeds that were asked for."""
    seeds: list[int] = []

    class Pool:
        def __init__(self, *_: Any) -> None: ...
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None: ...

        def map(self, _: Any, tasks: Any, starts: Any, ends: Any, noises: Any, *more: Any) -> Any:
            for task, start, noise in zip(tasks, starts, noises, strict=True):
                seeds.append(start)
                yield [make_episode(start, info={"task": task, "seed": start, "noise": noise})]

    class Env:
        unwrapped: Any

        def close(self) -> None: ...

    Env.unwrapped = type("Inner", (), {"embodiment": make_episode().embodiment})
    monkeypatch.setattr(record, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr("vla.envs.make.make_env", lambda *_, **__: Env())
    return seeds


def run(out: Path, *options: str) -> int:
    return cli.main(["record", "task=pick", f"out={out}", *options])


def test_what_differs_is_said_and_where_the_result_is(
    demonstrated: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my store.zarr"
    assert run(out, "episodes=2", "seed=5") == 0
    shown = capsys.readouterr().out
    assert f"{out}: 2 new episodes, 2 in all; vla data info '{out}'\n" == shown and demonstrated[0] == 5
    assert run(out, "episodes=2", "codec=raw", "noise=0.1", "seed=3") == 0
    shown = capsys.readouterr().out
    assert "its images stay zstd, not raw; noise 0.03 -> 0.1; seed 3 -> 14, the first missing one" in shown
    assert f"{out}: 2 episodes are there already: set more episodes= to continue; vla data info" in shown
    demonstrated.clear()
    assert run(out, "episodes=3", "seed=1000") == 0 and demonstrated[0] == 1000
    assert "seed" not in capsys.readouterr().out


def test_an_error_leaves_no_empty_store(
    demonstrated: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, kept = tmp_path / "a.zarr", tmp_path / "b.zarr"
    assert run(kept, "episodes=1") == 0

    def fail(*_: Any) -> Any:
        raise InputError("cannot draw images")

    monkeypatch.setattr(record.ProcessPoolExecutor, "map", fail)
    assert run(out, "episodes=1") == 2 and "cannot draw images" in capsys.readouterr().err
    assert not out.exists()
    assert run(kept, "episodes=2") == 2 and len(EpisodeStore.open(kept)) == 1


@pytest.mark.parametrize(
    ("teleop", "has_terminal", "controls"),
    [
        ("leader", True, {"enter", "ctrl-C"}),
        ("leader", False, {"ctrl-C"}),
        ("gamepad", True, {"enter", "ctrl-C", "stick"}),
        ("gamepad", False, {"ctrl-C", "stick"}),
        ("keyboard", True, {"enter", "ctrl-C", "page up"}),
        ("script", True, {"ctrl-C"}),
        ("script", False, {"ctrl-C"}),
    ],
)
def test_the_help_names_the_controls_of_the_teleoperator(teleop: str, has_terminal: bool, controls: set[str]) -> None:
    text = help_of(teleop, has_terminal=has_terminal)
    assert {control for control in ("enter", "ctrl-C", "stick", "page up") if control in text} == controls
