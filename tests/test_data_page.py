"""The page on a store: whole in itself, true to the store, and one that shows what stands out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla.commands import cli
from vla.datasets.episodes import EpisodeStore
from vla.datasets.questions import Question
from vla.datasets.tools.digest import components, timing
from vla.datasets.tools.store_page import EPISODES, shown
from vla.datasets.vqa import VqaItem, VqaStore
from vla.embodiment import Embodiment
from vla.types import Episode

Make = Callable[..., Episode]


class Page(HTMLParser):
    """Collects the text and what is referred to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.references: list[str] = []
        self.source = path.read_text()
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [str(value) for name, value in attrs if name in ("src", "href", "data", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def write(tmp_path: Path, make_episode: Make) -> Callable[..., Page]:
    """The page on a store of the episodes of these seeds, each changed by `change`."""

    def page(seeds: range, change: Callable[[Episode], Episode] = lambda episode: episode) -> Page:
        with EpisodeStore.create(tmp_path / "store.zarr", make_episode().embodiment) as store:
            for seed in seeds:
                store.append(change(make_episode(seed, steps=10 + seed, instruction=f"lift <ring> {seed % 3}")))
        assert cli.main(["data", "info", str(tmp_path / "store.zarr"), f"html={tmp_path / 'new' / 'a.html'}"]) == 0
        return Page(tmp_path / "new" / "a.html")

    return page


def test_the_page_is_whole_in_itself(write: Callable[..., Page], tmp_path: Path) -> None:
    page = write(range(4))
    pictures = [reference for reference in page.references if reference.startswith("data:image/jpeg;base64,")]
    assert len(pictures) == 4 * 2 * 3
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    assert not re.search(r"@import|url\((?!#)|<script|<link", page.source)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.html"]


def test_it_says_what_the_store_holds(write: Callable[..., Page], tmp_path: Path) -> None:
    text = write(range(4)).text
    for words in ("store.zarr Episodes of toy", "episodes 4 3 instructions", "successful 50 % 2 episodes", "46 steps"):
        assert words in text
    assert "front 10×8 wrist 10×8" in text
    assert "lift <ring> 0 1 of 2" in text and "lift <ring> 1 1 of 1" in text
    assert "Nothing: no outliers" in text
    statistics = EpisodeStore.open(tmp_path / "store.zarr").statistics()["action"]
    extremes = (statistics.min, statistics.q01, statistics.q99, statistics.max)
    assert "action " + " ".join(f"{values[2]:.3g}" for values in extremes) in text


def test_what_stands_out_is_said(write: Callable[..., Page]) -> None:
    def break_one(episode: Episode) -> Episode:
        if episode.info["seed"] != 2:
            return episode
        action, time = episode.action.copy(), episode.time.copy()
        action[3, 1] = 500.0
        time[5:] += 1.0
        return replace(episode, action=action, time=time)

    text = write(range(30), break_one).text
    assert "action turn [rad]: 1 outliers in episode 2" in text
    assert "1 steps are late: frames are missing in episode 2" in text


def test_pictures_are_from_all_over_and_show_failures(write: Callable[..., Page], tmp_path: Path) -> None:
    write(range(40), lambda episode: replace(episode, success=episode.info["seed"] != 17))
    chosen = shown(EpisodeStore.open(tmp_path / "store.zarr").records)
    assert len(chosen) == EPISODES and chosen == sorted(set(chosen))
    assert {0, 17, 39} <= set(chosen)


def test_time_steps_do_not_cross_episodes(tmp_path: Path, make_episode: Make) -> None:
    with EpisodeStore.create(tmp_path / "store", make_episode().embodiment) as store:
        for seed, steps in enumerate((1, 4, 1, 3)):
            store.append(make_episode(seed, steps=steps, time=100.0 * seed + np.arange(steps) / 10))
        found = timing(store)
    assert found is not None
    np.testing.assert_allclose(found.steps, 0.1)
    assert (len(found.steps), found.late, found.backwards) == (5, {}, ())


def test_constant_and_rare_values_are_drawn(tmp_path: Path, make_episode: Make) -> None:
    episode = make_episode(steps=30)
    action = np.zeros_like(episode.action)
    action[4, 0] = 1e6
    with EpisodeStore.create(tmp_path / "store", episode.embodiment) as store:
        store.append(replace(episode, action=action))
        far = {component.name: component.outliers for component in components(store) if component.kind == "action"}
    assert far == {"lift [rad]": {}, "turn [rad]": {}, "grip [rad]": {}}
    assert cli.main(["data", "info", str(tmp_path / "store"), f"html={tmp_path / 'a.html'}"]) == 0


def test_visual_questions_have_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = VqaStore.create(tmp_path / "vqa", ["front", "wrist"], 8, 10)
    command = ["data", "info", str(tmp_path / "vqa"), f"html={tmp_path / 'a.html'}"]
    assert cli.main(command) == 2
    assert "no items to show" in capsys.readouterr().err
    image = np.full((8, 10, 3), 99, np.uint8)
    asked = Question("color", "what <color>?", "red", "wrist"), Question("count", "how many?", "2", "front")
    store.append([VqaItem({"wrist": image}, asked, "toy")] * 3 + [VqaItem({}, asked[1:], "words")])
    assert cli.main(command) == 0
    page = Page(tmp_path / "a.html")
    assert sum(reference.startswith("data:image/jpeg") for reference in page.references) == 3
    for words in (
        "items 4",
        "questions 7 of 2 kinds",
        "what <color>? red",
        "how many? 2",
        "count 4",
        "toy 3",
        "words 1",
    ):
        assert words in page.text


def test_an_empty_store_has_no_page_and_one_without_cameras_has(
    tmp_path: Path, make_episode: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    robot: Embodiment = replace(make_episode().embodiment, cameras=())
    path, page = tmp_path / "store", f"html={tmp_path / 'a.html'}"
    EpisodeStore.create(path, robot).close()
    assert cli.main(["data", "info", str(path), page]) == 2
    assert "has no episodes to draw" in capsys.readouterr().err
    blind: dict[str, Any] = {"embodiment": robot, "images": {}}
    with EpisodeStore.open(path, "a") as store:
        store.append(make_episode(**blind))
    assert cli.main(["data", "info", str(path), page]) == 0
    assert "data:image/jpeg" not in (tmp_path / "a.html").read_text()
