"""`vla data filter` that cuts steps and leaves cameras out, `vla data edit` that changes numbers and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import assert_equal

from vla.commands import cli
from vla.datasets.doctor.fixes import numbers_text
from vla.datasets.episode_cut import cut_spans
from vla.datasets.episode_selection import episodes_of
from vla.datasets.episodes import EpisodeStore
from vla.datasets.tools.cuts import closed_up
from vla.types import Episode, Span

Make = Callable[..., Episode]


def run(*arguments: object) -> int:
    return cli.main(["data", *map(str, arguments)])


@pytest.fixture
def build(tmp_path: Path, make_episode: Make) -> Callable[..., tuple[Path, list[Episode]]]:
    """A store of three episodes of 12 steps with all that an episode may have, and the episodes."""

    def make(codec: str = "zstd", **fields: Any) -> tuple[Path, list[Episode]]:
        path = tmp_path / "a.zarr"
        rng = np.random.default_rng(0)
        episodes = []
        with EpisodeStore.create(path, make_episode().embodiment, codec) as store:
            for seed in range(3):
                said = {
                    "points": rng.uniform(size=(12, 4, 2)),
                    "depth": {"wrist": rng.integers(0, 2000, (12, 4, 6), np.uint16)},
                    "extras": {"force": rng.normal(size=(12, 3))},
                    "spans": (Span(0, 5, "reach"), Span(5, 12, "lift")),
                }
                store.append(make_episode(seed, steps=12, horizon=4, **(said | fields)))
            episodes = list(store)
        return path, episodes

    return make


def cut(episode: Episode, steps: list[int]) -> Episode:
    """The same by slicing every field; time closes up."""
    arrays = ("state", "action", "chunks", "points")
    return replace(
        episode,
        images={name: frames[steps] for name, frames in episode.images.items()},
        depth={name: maps[steps] for name, maps in episode.depth.items()},
        extras={name: values[steps] for name, values in episode.extras.items()},
        time=closed_up(episode.time, np.array(steps))[steps],
        spans=cut_spans(episode.spans, np.array(steps)),
        **{name: getattr(episode, name)[steps] for name in arrays},
    )


@pytest.mark.parametrize("codec", ["zstd", "jpeg"])
def test_steps_are_cut_and_images_stay_as_they_are_coded(
    codec: str, build: Callable[..., tuple[Path, list[Episode]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, episodes = build(codec)
    out = tmp_path / "b.zarr"
    assert run("filter", path, f"out={out}", "drop=0", "steps={1: '2:6,9:', 2: 4}") == 0
    assert "2 of 3 episodes" in (text := capsys.readouterr().out) and "16 steps of theirs removed, 8 left" in text
    source, target = EpisodeStore.open(path), EpisodeStore.open(out)
    for ours, theirs in zip(target, (cut(episodes[1], [2, 3, 4, 5, 9, 10, 11]), cut(episodes[2], [4])), strict=True):
        assert_equal(ours, theirs)
    assert target[0].spans == (Span(0, 3, "reach"), Span(3, 7, "lift"))
    # From the last step before a cut to the first behind it time goes on as it would have.
    np.testing.assert_allclose(np.diff(target[0].time), 0.1)
    stored = [
        store._arrays.stored("images/front", slice(*rows)) for store, rows in ((source, (14, 18)), (target, (0, 4)))
    ]
    assert [bytes(part) for part in stored[0]] == [bytes(part) for part in stored[1]]
    assert run("check", out) == 0


def test_idle_ends_are_cut_and_the_rest_is_not(tmp_path: Path, make_episode: Make) -> None:
    robot = make_episode().embodiment
    path, out = tmp_path / "a.zarr", tmp_path / "b.zarr"
    rng = np.random.default_rng(0)
    with EpisodeStore.create(path, robot) as store:
        for index, (begin, end) in enumerate(((0, 0), (20, 5), (3, 12))):
            steps = np.concatenate([np.zeros(begin, int), np.arange(30), np.full(end, 29)])
            # Each step goes farther than what counts as still.
            state = np.cumsum(rng.uniform(0.1, 0.12, (30, 2)), axis=0)
            action = np.concatenate([state, state[:, :1]], axis=1)
            store.append(make_episode(index, len(steps), state=state[steps], action=action[steps]))
    assert run("filter", path, f"out={out}", "trim=0.5") == 0
    # Five still steps are left, among them the one from which the arm moves.
    assert [len(episode) for episode in EpisodeStore.open(out)] == [30, 4 + 30 + 4, 3 + 30 + 4]
    before, after = EpisodeStore.open(path), EpisodeStore.open(out)
    np.testing.assert_array_equal(after[1].images["front"], before[1].images["front"][16:54])
    assert run("filter", path, f"out={tmp_path / 'c.zarr'}", "trim=0") == 0
    assert [len(episode) for episode in EpisodeStore.open(tmp_path / "c.zarr")] == [30, 30, 30]


def test_actions_move_against_the_rest(build: Callable[..., tuple[Path, list[Episode]]], tmp_path: Path) -> None:
    path, episodes = build()
    for shift, kept in ((2, slice(0, 10)), (-2, slice(2, 12))):
        out = tmp_path / f"{shift}.zarr"
        assert run("filter", path, f"out={out}", f"action_shift={shift}") == 0
        for ours, whole in zip(EpisodeStore.open(out), episodes, strict=True):
            np.testing.assert_array_equal(ours.state, whole.state[kept])
            np.testing.assert_array_equal(ours.images["wrist"], whole.images["wrist"][kept])
            np.testing.assert_array_equal(ours.action, whole.action[kept.start + shift : kept.stop + shift])
            np.testing.assert_array_equal(ours.chunks, whole.chunks[kept.start + shift : kept.stop + shift])
            np.testing.assert_array_equal(ours.time, whole.time[kept])


def test_a_camera_is_left_out_with_its_points(build: Callable[..., tuple[Path, list[Episode]]], tmp_path: Path) -> None:
    path, episodes = build()
    for camera, other, points in (("front", "wrist", slice(2, 4)), ("wrist", "front", slice(0, 2))):
        out = tmp_path / f"{camera}.zarr"
        assert run("filter", path, f"out={out}", f"drop_cameras=[{camera}]") == 0
        store = EpisodeStore.open(out)
        assert store.embodiment.cameras == (other,)
        for ours, whole in zip(store, episodes, strict=True):
            np.testing.assert_array_equal(ours.images[other], whole.images[other])
            np.testing.assert_array_equal(ours.points, whole.points[:, points])
            assert set(ours.depth) == {"wrist"} - {camera}
            np.testing.assert_array_equal(ours.extras["force"], whole.extras["force"])


@pytest.mark.parametrize("codec", ["lz4", "jpeg"])
def test_an_offset_is_added_where_it_is_asked_for(codec: str, build: Callable[..., tuple[Path, list[Episode]]]) -> None:
    path, episodes = build(codec)
    assert run("edit", path, "episodes=1", "action_offset={turn: 0.25, 2: -1}", "instruction=other") == 0
    for index, (ours, whole) in enumerate(zip(EpisodeStore.open(path), episodes, strict=True)):
        offset = np.array([0, 0.25, -1]) * (index == 1)
        assert_equal(
            ours,
            replace(
                whole,
                action=whole.action + offset,
                chunks=whole.chunks + offset,
                instruction="other" if index == 1 else whole.instruction,
            ),
        )


def test_images_are_exchanged_and_turned_with_their_points(build: Callable[..., tuple[Path, list[Episode]]]) -> None:
    path, episodes = build()
    assert run("edit", path, "episodes=0,2", "bgr=[front]", "upside_down=[wrist]") == 0
    for index, (ours, whole) in enumerate(zip(EpisodeStore.open(path), episodes, strict=True)):
        if index == 1:
            assert_equal(ours, whole)
            continue
        np.testing.assert_array_equal(ours.images["front"], whole.images["front"][..., ::-1])
        np.testing.assert_array_equal(ours.images["wrist"], whole.images["wrist"][:, ::-1, ::-1])
        np.testing.assert_array_equal(ours.depth["wrist"], whole.depth["wrist"][:, ::-1, ::-1])
        np.testing.assert_array_equal(ours.points[:, :2], whole.points[:, :2])
        np.testing.assert_allclose(ours.points[:, 2:], 1 - whole.points[:, 2:])
    # Twice is as before.
    assert run("edit", path, "episodes=0,2", "bgr=[front]", "upside_down=[wrist]") == 0
    np.testing.assert_array_equal(EpisodeStore.open(path)[2].images["wrist"], episodes[2].images["wrist"])


BAD_FILTERS = {
    "drop=3": "drop=3: '3' is not among the 3 episodes",
    "drop=:": "no episode would be left",
    "drop_cameras=[top]": "no camera 'top'",
    "trim=-1": "trim=-1",
    "trim=soon": "trim takes seconds",
    "steps={7: 1}": "there are 3 episodes",
    "steps={1: '5:13'}": "episode 1 has the steps 0:12",
    "steps=[1]": "steps takes steps by episode",
    "action_shift=12": "nothing would be left of episode 0",
    "action_shift=1.5": "action_shift takes a whole number",
    "images=false": "belongs to vla data doctor",
}
BAD = [
    *((["filter", "a.zarr", "out=b.zarr", option], message) for option, message in BAD_FILTERS.items()),
    (["edit", "a.zarr", "episodes=0", "action_offset={elbow: 1}"], "no action component 'elbow'"),
    (["edit", "a.zarr", "episodes=0", "bgr=[top]"], "no camera 'top'"),
    (["info", "a.zarr", "drop=1"], "belongs to vla data filter"),
]


def test_bad_input_is_named_and_nothing_is_written(
    build: Callable[..., tuple[Path, list[Episode]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build()
    monkeypatch.chdir(tmp_path)

    def files() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    before = files()
    for arguments, message in BAD:
        assert run(*arguments) == 2, arguments
        assert message in capsys.readouterr().err, arguments
        assert files() == before, arguments


@given(st.integers(1, 30), st.data())
def test_spans_keep_to_their_steps(length: int, data: st.DataObject) -> None:
    steps = np.array(sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1))))
    start = data.draw(st.integers(0, length - 1))
    span = Span(start, data.draw(st.integers(start + 1, length)), "reach")
    inside = [i for i, step in enumerate(steps) if span.start <= step < span.stop]
    cut = cut_spans((span,), steps)
    assert [i for each in cut for i in range(each.start, each.stop)] == inside


@given(st.sets(st.integers(0, 40), min_size=1))
def test_numbers_are_written_as_options_read_them(numbers: set[int]) -> None:
    assert episodes_of(numbers_text(sorted(numbers)), 41) == sorted(numbers)
