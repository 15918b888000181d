"""`vla data doctor` on stores: what is planted in numbers and images is found, and the command that it names repairs
it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import HZ, arm, smooth

from vla.commands import cli
from vla.datasets.episodes import EpisodeStore
from vla.types import Episode

EPISODES, ODD = 14, [4, 9, 10]
SIZE = 32, 48
Change = Callable[[int, Episode], Episode]


def scene(rng: np.random.Generator, color: bool = True) -> np.ndarray:
    """A room: patches of warm colours that stay where they are."""
    image = np.full((*SIZE, 3), (150, 120, 90), np.float64)
    for _ in range(20):
        y, x = rng.integers(0, SIZE[0] - 4), rng.integers(0, SIZE[1] - 4)
        image[y : y + rng.integers(2, 9), x : x + rng.integers(2, 9)] = rng.uniform(40, 220) * np.array([1, 0.8, 0.6])
    return image


def film(background: np.ndarray, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The arm as a bar that goes where the state is, over the background, with the noise of a sensor."""
    images = np.repeat(background[None], len(state), axis=0)
    for image, (x, y) in zip(images, state[:, :2], strict=True):
        row, column = int(14 + 6 * np.clip(y, -1, 1)), int(20 + 10 * np.clip(x, -1.5, 1.5))
        image[row : row + 4, column : column + 12] = (230, 225, 220)
    return np.clip(images + rng.normal(0, 1.5, images.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def clean() -> list[Episode]:
    """Episodes of one room before two cameras."""
    body = arm(cameras=("front", "side"))
    rng = np.random.default_rng(7)
    rooms = {camera: scene(rng) for camera in body.cameras}
    episodes = []
    for index in range(EPISODES):
        steps = int(rng.integers(30, 40))
        path = smooth(rng, steps + 1, HZ)
        state = path[:-1] + rng.normal(0, 0.005, (steps, 4))
        episodes.append(
            Episode(
                images={camera: film(room, state, rng) for camera, room in rooms.items()},
                state=state,
                action=path[1:],
                time=np.arange(steps) / HZ,
                instruction="wave",
                embodiment=body,
                success=True,
                info={"index": index},
            )
        )
    return episodes


@pytest.fixture
def diagnose(tmp_path: Path, clean: list[Episode]) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """The store of the episodes, each changed, and what the doctor says of it as JSON."""

    def run(
        change: Change = lambda index, episode: episode, *options: str, cameras: tuple[str, ...] = ("front",)
    ) -> tuple[Path, dict[str, Any]]:
        path = tmp_path / "a.zarr"
        body = replace(clean[0].embodiment, cameras=cameras)
        with EpisodeStore.create(path, body, "lz4") as store:
            for index, episode in enumerate(clean):
                store.append(replace(change(index, episode), embodiment=body))
        return path, report(path, *options)

    return run


def report(path: Path, *options: str) -> dict[str, Any]:
    out = path.parent / "out.json"
    assert cli.main(["data", "doctor", str(path), f"json={out}", *options]) == 0
    return json.loads(out.read_text())  # type: ignore[no-any-return]


def checks(told: dict[str, Any]) -> dict[str, list[int]]:
    return {finding["check"]: finding["episodes"] for finding in told["findings"]}


def camera(change: Callable[[np.ndarray], np.ndarray], name: str = "front", odd: Any = ODD) -> Change:
    """Changes the images of a camera in some episodes."""

    def to(index: int, episode: Episode) -> Episode:
        if index not in odd:
            return episode
        return replace(episode, images={**episode.images, name: change(episode.images[name].copy())})

    return to


def numbers(change: Callable[[Episode], dict[str, Any]], odd: Any = ODD) -> Change:
    return lambda index, episode: replace(episode, **change(episode)) if index in odd else episode


def still(episode: Episode) -> dict[str, Any]:
    """Two seconds at the beginning in which nothing happens."""
    wait = np.zeros(20, int)
    steps = np.concatenate([wait, np.arange(len(episode))])
    action = episode.action[steps]
    action[:20] = episode.state[0]
    images = {name: frames[steps] for name, frames in episode.images.items()}
    return {"images": images, "state": episode.state[steps], "action": action, "time": np.arange(len(steps)) / HZ}


def delayed(episode: Episode) -> dict[str, Any]:
    return {"action": episode.action[np.clip(np.arange(len(episode)) + 2, 0, len(episode) - 1)]}


def frozen(frames: np.ndarray) -> np.ndarray:
    frames[8:] = frames[8]
    return frames


def moved(frames: np.ndarray) -> np.ndarray:
    return np.roll(frames, 7, axis=2)


def halting(frames: np.ndarray) -> np.ndarray:
    """Every third image is the one before."""
    frames[2::3] = frames[1::3][: len(frames[2::3])]
    return frames


def flashing(frames: np.ndarray) -> np.ndarray:
    frames[15:] = np.clip(frames[15:] * 1.4, 0, 255)
    return frames


def dark(frames: np.ndarray) -> np.ndarray:
    return frames // 8


def off(frames: np.ndarray) -> np.ndarray:
    frames[12:18] = 0
    return frames


def bgr(frames: np.ndarray) -> np.ndarray:
    return frames[..., ::-1].copy()


def turned(frames: np.ndarray) -> np.ndarray:
    return frames[:, ::-1, ::-1].copy()


def black(frames: np.ndarray) -> np.ndarray:
    return np.zeros_like(frames)


EVERY = range(EPISODES)
FAULTS = {
    "idle-start": numbers(still),
    "offset": numbers(lambda episode: {"action": episode.action + [0, np.deg2rad(17), 0, 0]}),
    "action-delay": numbers(delayed),
    "frozen-camera": camera(frozen),
    "camera-moved": camera(moved),
    "repeated-frames": camera(halting),
    "exposure-jump": camera(flashing),
    "exposure": camera(dark),
    "blank-images": camera(off),
    "exchanged-colors": camera(bgr),
    "upside-down": camera(turned),
    "blank-camera": camera(black),
}
OF_ALL = {
    "offset": numbers(lambda episode: {"action": episode.action + [0, np.deg2rad(17), 0, 0]}, EVERY),
    "action-delay": numbers(delayed, EVERY),
    "blank-camera": camera(black, odd=EVERY),
    "exchanged-colors": camera(bgr, odd=EVERY),
}


def test_nothing_is_found_in_clean_episodes(
    diagnose: Callable[..., tuple[Path, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, told = diagnose(cameras=("front", "side"))
    assert (told["findings"], told["faults"], told["hints"], told["fix"]) == ([], 0, 0, None)
    assert "14 episodes" in (text := capsys.readouterr().out) and "nothing found" in text


@pytest.mark.parametrize("check", FAULTS)
def test_what_is_planted_is_found_and_the_command_repairs_it(
    check: str, diagnose: Callable[..., tuple[Path, dict[str, Any]]]
) -> None:
    path, told = diagnose(FAULTS[check], cameras=cameras_for(check))
    assert checks(told).get(check) == ODD, told["findings"]
    for finding in told["findings"]:
        assert finding["episodes"] == ODD
    (command,) = (finding["fix"] for finding in told["findings"] if finding["check"] == check)
    repaired(path, command)


@pytest.mark.parametrize("check", OF_ALL)
def test_what_is_so_in_all_episodes_is_found_and_repaired(
    check: str, diagnose: Callable[..., tuple[Path, dict[str, Any]]]
) -> None:
    path, told = diagnose(OF_ALL[check], cameras=cameras_for(check))
    assert checks(told).get(check) == list(EVERY), told["findings"]
    (command,) = (finding["fix"] for finding in told["findings"] if finding["check"] == check)
    repaired(path, command)


def cameras_for(check: str) -> tuple[str, ...]:
    """None for what is in the numbers, which is quicker; two where one is to be left out."""
    if check in ("idle-start", "offset", "action-delay"):
        return ()
    return ("front", "side") if check == "blank-camera" else ("front",)


def repaired(path: Path, command: str) -> None:
    """Runs the command as it is printed, and the doctor again on what came out."""
    program, *arguments = shlex.split(command)
    assert program == "vla" and cli.main(arguments) == 0
    out = [argument.removeprefix("out=") for argument in arguments if argument.startswith("out=")]
    after = Path(out[0]) if out else path
    assert report(after)["findings"] == []
    assert cli.main(["data", "check", str(after)]) == 0


def test_several_faults_are_repaired_by_one_command(diagnose: Callable[..., tuple[Path, dict[str, Any]]]) -> None:
    def several(index: int, episode: Episode) -> Episode:
        for odd, change in (([4], FAULTS["idle-start"]), ([9], FAULTS["offset"]), ([10], FAULTS["frozen-camera"])):
            episode = change(index, episode) if index in odd else episode
        return camera(black, "side", EVERY)(index, episode)

    path, told = diagnose(several, cameras=("front", "side"))
    assert {"idle-start": [4], "offset": [9], "frozen-camera": [10], "blank-camera": list(EVERY)} == checks(told)
    repaired(path, told["fix"])
    assert EpisodeStore.open(path.with_name("a-clean.zarr")).embodiment.cameras == ("front",)
    # The next proposal does not name a place that is taken.
    assert "out=" + str(path.with_name("a-clean-2.zarr")) in shlex.split(report(path)["fix"])


def test_episodes_and_cameras_can_be_left_out(diagnose: Callable[..., tuple[Path, dict[str, Any]]]) -> None:
    path, told = diagnose(camera(frozen), "images=false")
    assert (told["findings"], told["cameras"]) == ([], [])
    assert report(path, "episodes=9")["episodes"] == 1
    assert checks(report(path, "episodes=0:10")) == {"frozen-camera": [4, 9]}


def test_the_page_shows_what_was_found(diagnose: Callable[..., tuple[Path, dict[str, Any]]], tmp_path: Path) -> None:
    def both(index: int, episode: Episode) -> Episode:
        return FAULTS["offset"](index, camera(moved, odd=[3])(index, episode))

    _, told = diagnose(both, f"html={tmp_path / 'new' / 'a.html'}")
    page = (tmp_path / "new" / "a.html").read_text()
    for words in ("offset: lift [rad]", "camera moved: front", "episodes 4,9:11", "vla data filter", "swapped"):
        assert words in page, words
    assert page.count("data:image/jpeg") >= 8 and page.count("<svg") == 2
    assert told["findings"][0]["fix"] in unescape(page)


def test_an_empty_store_and_a_missing_one_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    EpisodeStore.create(tmp_path / "a.zarr", arm()).close()
    assert cli.main(["data", "doctor", str(tmp_path / "a.zarr")]) == 2
    assert "no episodes" in capsys.readouterr().err
    assert cli.main(["data", "doctor", str(tmp_path / "b.zarr")]) == 2
    assert "no episode store" in capsys.readouterr().err
