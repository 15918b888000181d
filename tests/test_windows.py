"""Training windows: the right frames and actions, padded and masked at the end; the split by episode."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import write_store
from hypothesis import given
from hypothesis import strategies as st

from vla.datasets.episodes import EpisodeStore
from vla.datasets.windows import Windows, split
from vla.errors import InputError
from vla.types import Episode

LENGTHS = (5, 1, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("windows") / "store"


@pytest.fixture
def episodes(make_episode: Callable[..., Episode]) -> list[Episode]:
    return [make_episode(i, steps=n, instruction=f"task {i}") for i, n in enumerate(LENGTHS)]


@pytest.fixture
def store(folder: Path, episodes: list[Episode]) -> EpisodeStore:
    if not folder.exists():
        write_store(folder, episodes)
    return EpisodeStore.open(folder)


@pytest.mark.parametrize("horizon", [1, 4, 30])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("chosen", [None, (2, 0)])
def test_windows_are_the_episodes_steps(
    store: EpisodeStore, episodes: list[Episode], horizon: int, stride: int, chosen: tuple[int, ...] | None
) -> None:
    windows = Windows(store, horizon, stride, chosen)
    expected = [
        (episodes[i], t)
        for i in (range(len(episodes)) if chosen is None else chosen)
        for t in range(0, LENGTHS[i], stride)
    ]
    assert len(windows) == len(expected)
    for example, (episode, t) in zip((windows[i] for i in range(len(windows))), expected, strict=True):
        inside = min(horizon, len(episode) - t)
        assert isinstance(example.target, np.ndarray) and example.state is not None and example.mask is not None
        np.testing.assert_array_equal(example.target[:inside], episode.action[t : t + inside])
        np.testing.assert_array_equal(example.target[inside:], np.repeat(episode.action[-1:], horizon - inside, 0))
        assert example.mask.tolist() == [True] * inside + [False] * (horizon - inside)
        np.testing.assert_array_equal(example.state, episode.state[t])
        for camera, frames in episode.images.items():
            np.testing.assert_array_equal(example.images[camera], frames[t])
        assert (example.prompt, example.source) == (episode.instruction, "robot")


def test_changing_an_example_does_not_change_the_next(store: EpisodeStore) -> None:
    windows = Windows(store, 3)
    before = windows[2]
    assert isinstance(before.target, np.ndarray) and before.state is not None
    kept = before.target.copy(), before.state.copy()
    before.target[:], before.state[:] = 9.0, 9.0
    after = windows[2]
    np.testing.assert_array_equal(after.target, kept[0])
    np.testing.assert_array_equal(after.state, kept[1])


@pytest.mark.parametrize(("horizon", "stride"), [(0, 1), (4, 0)])
def test_horizon_and_stride_are_positive(store: EpisodeStore, horizon: int, stride: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        Windows(store, horizon, stride)


@given(st.integers(0, 300), st.floats(0.01, 0.99), st.integers(0, 5))
def test_split_covers_all_and_overlaps_nowhere(episodes: int, held_out: float, seed: int) -> None:
    train, test = (part.tolist() for part in split(episodes, held_out, seed))
    assert sorted((*train, *test)) == list(range(episodes)) and train == sorted(train) and test == sorted(test)
    if episodes > 1:
        assert train and test
        assert abs(len(test) - episodes * held_out) <= 1
    # The same at every version: a run that goes on must not evaluate on what it was trained on.
    ranked = sorted(range(episodes), key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).digest())
    assert sorted(ranked[: len(test)]) == test


@given(st.integers(2, 200), st.integers(1, 20))
def test_appended_episodes_move_few_of_the_old_ones(episodes: int, more: int) -> None:
    before, after = (set(split(count, 0.2)[1].tolist()) for count in (episodes, episodes + more))
    # An old episode leaves the held-out side only where a new one takes its place, and none joins beyond the quota.
    new = {i for i in after if i >= episodes}
    assert len(before - after) <= len(new)


def test_seeds_split_differently() -> None:
    assert len({tuple(split(50, 0.2, seed)[1].tolist()) for seed in range(4)}) == 4


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.5])
def test_split_needs_a_fraction(held_out: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        split(10, held_out)
