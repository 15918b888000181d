"""`vla data`: what is said of a store, what of a damaged one, and what a repair leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from vla.commands import cli
from vla.datasets.episodes import EpisodeStore
from vla.datasets.questions import Question
from vla.datasets.tools.info import describe
from vla.datasets.vqa import VqaItem, VqaStore
from vla.types import Episode, Span

Make = Callable[..., Episode]


@pytest.fixture
def path(tmp_path: Path, make_episode: Make) -> Path:
    with EpisodeStore.create(tmp_path / "store", make_episode().embodiment) as store:
        for seed in range(3):
            store.append(make_episode(seed, steps=4 + seed, instruction=f"lift ring {seed % 2}"))
    return tmp_path / "store"


def info(path: Path) -> str:
    with EpisodeStore.open(path) as store:
        return "\n".join(describe(store))


def test_info_says_what_is_there(path: Path) -> None:
    text = info(path)
    for words in ("3 episodes of toy, 1 successful (33.3%)", "15 steps", "4 to 6 an episode", "2 x lift ring 0 (0%)"):
        assert words in text
    assert "time between steps: median 100 ms (10 Hz)" in text
    statistics = EpisodeStore.open(path).statistics()["action"]
    (line,) = (line for line in text.splitlines() if "action grip [rad]" in line)
    assert f"{statistics.q01[2]:.3f}" in line and f"{statistics.max[2]:.3f}" in line
    assert "!" not in text


def test_info_lists_every_array_with_its_size(tmp_path: Path, make_episode: Make) -> None:
    depth = {"wrist": np.full((5, 4, 6), 900, np.uint16)}
    extras = {"force": np.zeros((5, 3)), "reward": np.zeros(5), "touch/left": np.zeros((5, 2))}
    episode = make_episode(spans=(Span(0, 3, "reach"),), paraphrases=("take it",), depth=depth, extras=extras)
    with EpisodeStore.create(tmp_path / "store", episode.embodiment, "lz4", {"recorded by": "a test"}) as store:
        store.append(episode)
    text = info(tmp_path / "store")
    for words in (
        "images as lz4",
        "recorded by: a test",
        "1 sub-task in 1 episode",
        "1 paraphrase in 1",
        "force in 1 episo",
    ):
        assert words in text
    table = text[text.index("bytes a frame") : text.index("instructions;")].splitlines()[1:-1]
    rows = {line.split()[0]: line.split()[1] for line in table}
    assert rows.pop("index") == "-"
    assert rows == {
        "images/front": "10x8",
        "images/wrist": "10x8",
        "depth/wrist": "6x4",
        "action": "3",
        "state": "2",
        "time": "-",
        "extras/force": "3",
        "extras/reward": "-",
        "extras/touch/left": "2",
    }
    assert all(float(line.split()[3]) > 0 for line in table)
    size = sum(file.stat().st_size for file in (tmp_path / "store").rglob("*") if file.is_file())
    assert sum(float(line.split()[2]) for line in table) == pytest.approx(size / 1e6, abs=0.05)


def test_info_flags_what_stands_out(tmp_path: Path, make_episode: Make) -> None:
    episodes = [make_episode(seed, steps=40) for seed in range(8)]
    action, state = episodes[1].action.copy(), episodes[2].state.copy()
    action[7, 1], state[3:5, 0] = 1e3, -1e3
    late, back = episodes[3].time.copy(), episodes[4].time.copy()
    late[20:] += 0.3
    back[6] = back[4]
    odd = [episodes[0], replace(episodes[1], action=action), replace(episodes[2], state=state)]
    odd += [replace(episodes[3], time=late), replace(episodes[4], time=back), *episodes[5:], make_episode(9, steps=2)]
    with EpisodeStore.create(tmp_path / "store", episodes[0].embodiment) as store:
        for episode in odd:
            store.append(episode)
    lines = info(tmp_path / "store").splitlines()
    assert [line.strip() for line in lines if line.startswith("  !")] == [
        "! state lift [rad]: 2 outliers in episode 2",
        "! action turn [rad]: 1 outliers in episode 1",
        "! 2 steps are late: frames are missing in episodes 3, 4",
        "! time does not increase in episode 4",
        "! much shorter than the others: episode 8",
    ]
    assert "longest 400 ms (episode 3)" in "\n".join(lines)


def test_info_compares_the_rate_with_the_control_rate(tmp_path: Path, make_episode: Make) -> None:
    episode = make_episode(steps=20)
    with EpisodeStore.create(tmp_path / "store", episode.embodiment) as store:
        store.append(replace(episode, time=np.arange(20) / 8.0))
    assert "! the rate of the steps is 8 Hz, not the control rate of 10 Hz" in info(tmp_path / "store")


def test_info_of_an_empty_store(tmp_path: Path, make_episode: Make) -> None:
    EpisodeStore.create(tmp_path / "store", make_episode().embodiment).close()
    assert "0 episodes of toy" in info(tmp_path / "store")


def test_info_of_visual_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    questions = (Question("color", "what color?", "red", "front"), Question("count", "how many?", "2", "front"))
    store = VqaStore.create(tmp_path / "vqa", ["front"], 8, 10)
    store.append(
        [
            VqaItem({"front": rng.integers(0, 256, (8, 10, 3), np.uint8)}, questions[: 1 + i % 2], "toy")
            for i in range(9)
        ]
    )
    assert cli.main(["data", "info", str(tmp_path / "vqa")]) == 0
    text = capsys.readouterr().out
    assert "9 items with 13 questions" in text and "images 10x8" in text and "9 items from toy" in text
    kinds = {line.split()[0]: sum(map(int, line.split()[1:])) for line in text.splitlines()[-2:]}
    assert kinds == {"color": 9, "count": 4}


def test_a_sound_store_is_called_sound(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", str(path)]) == 0
    assert "3 episodes, all sound" in capsys.readouterr().out


def test_damage_is_named_and_fails(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = zarr.open_group(path, mode="r+")["state"]
    assert isinstance(state, zarr.Array)
    state[5] = 9.0
    assert cli.main(["data", "check", str(path)]) == 2
    assert "1 of 3 episodes" in (error := capsys.readouterr().err)
    assert "episode 1 of" in error


def test_repair_removes_what_a_killed_writer_left(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = zarr.open_group(path, mode="r+")
    for name in ("state", "images/front"):
        stream = group[name]
        assert isinstance(stream, zarr.Array)
        stream.resize((40, *stream.shape[1:]))
    (path / "state" / "left.partial").write_bytes(b"half")
    before = list(EpisodeStore.open(path))
    assert cli.main(["data", "check", str(path)]) == 0
    assert "25 steps" in capsys.readouterr().out
    assert cli.main(["data", "check", str(path), "repair=true"]) == 0
    assert "removed 25 steps" in capsys.readouterr().out
    store = EpisodeStore.open(path)
    assert store.unfinished_frames == 0
    assert not list(path.rglob("*.partial"))
    for ours, theirs in zip(store, before, strict=True):
        np.testing.assert_array_equal(ours.images["front"], theirs.images["front"])
        np.testing.assert_array_equal(ours.state, theirs.state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "erase", "x"], "unknown action 'erase'"),
        (["data", "info", "nowhere.zarr"], "no episode store"),
        (["data", "info", "x", "repair=true"], "belongs to vla data check"),
        (["data", "info"], "path="),
        (["data", "info", "a", "b"], "cannot use others=b: it belongs to vla data merge"),
        (["data", "merge", "a", "b"], "needs out="),
        (["data", "merge", "a", "out=c"], "needs others="),
        (["data", "delete", "a", "out=c", "episodes=1"], "vla data delete cannot use out=c"),
        (["data", "filter", "a", "out=c", "success=maybe"], "success takes true, false or unknown"),
        (["data", "filter", "a", "out=c", "min_steps=1.5"], "min_steps takes a whole number"),
        (["data", "split", "a", "out=c", "parts=test"], "parts takes names with their shares"),
        (["data", "split", "a", "out=c", "parts={train: most}"], "parts takes names with their shares"),
        (["data", "split", "a", "out=c", "parts={1: 0.5, 2: 0.5}"], "parts takes names with their shares"),
        (["data", "edit", "a", "episodes=0", "paraphrases=[1, 2]"], "paraphrases takes a list of texts"),
        (["data", "rename", "a", "cameras={front: 1}"], "cameras takes names"),
        (["data", "rename", "a", "instructions={lift: 5}"], "instructions takes texts"),
        (["record", "seed=-1"], "the seed must be 0 or more"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("a", "x"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_quantiles_of_a_constant_component_are_its_own(tmp_path: Path, make_episode: Make) -> None:
    episode = make_episode(steps=20)
    action = episode.action.copy()
    action[:, 1] = 0.25
    with EpisodeStore.create(tmp_path / "store", episode.embodiment) as store:
        store.append(replace(episode, action=action))
    (line,) = (line for line in info(tmp_path / "store").splitlines() if "action turn [rad]" in line)
    assert line.count(" 0.250") == 4 and "1.250" not in line


def test_a_camera_that_is_black_in_every_episode_is_named(tmp_path: Path, make_episode: Make) -> None:
    episodes = [make_episode(seed) for seed in range(3)]
    with EpisodeStore.create(tmp_path / "store", episodes[0].embodiment) as store:
        for episode in episodes:
            images = {**episode.images, "wrist": np.zeros_like(episode.images["wrist"])}
            store.append(replace(episode, images=images))
    assert "! camera wrist is black in every episode" in info(tmp_path / "store")
    assert "camera front" not in info(tmp_path / "store")


def test_info_says_what_the_actions_are(tmp_path: Path, make_episode: Make) -> None:
    robot = make_episode().embodiment
    robot = replace(robot, action_mode=("absolute", "delta", "absolute"), action_turn=(6.2832, 0.0, 0.0))
    robot = replace(robot, grippers=("grip [rad]",))
    with EpisodeStore.create(tmp_path / "store", robot) as store:
        store.append(make_episode(embodiment=robot))
    lines = {line.split("  ")[1]: line for line in info(tmp_path / "store").splitlines() if line.startswith("  action")}
    assert lines["action lift [rad]"].endswith("absolute, wraps after 6.283")
    assert lines["action turn [rad]"].endswith("; delta")
    assert lines["action grip [rad]"].endswith("absolute, not measured, gripper")
