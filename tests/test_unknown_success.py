"""Whether an episode succeeded may be unknown: stored, shown, filtered and exported as that, everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vla.commands import cli
from vla.datasets.episode_index import EpisodeRecord
from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats import lerobot_v3
from vla.datasets.formats.lerobot_v3_writer import LeRobotWriter
from vla.recording.replay import drive
from vla.recording.rerun_recorder import RerunRecorder
from vla.recording.video import GREEN, GREY, RED, compose
from vla.recording.zarr_recorder import ZarrRecorder
from vla.types import Episode, outcome_of

Make = Callable[..., Episode]


def store_of(path: Path, make_episode: Make, *outcomes: bool | None) -> Path:
    with EpisodeStore.create(path, make_episode().embodiment) as store:
        for seed, success in enumerate(outcomes):
            store.append(make_episode(seed, success=success))
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> str:
    capsys.readouterr()
    assert cli.main(list(map(str, arguments))) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


@pytest.mark.parametrize("success", [None, True, False])
def test_it_is_kept(make_episode: Make, tmp_path: Path, success: bool | None) -> None:
    store = EpisodeStore.open(store_of(tmp_path / "a.zarr", make_episode, success))
    assert store[0].success is success and store.records[0].success is success
    assert EpisodeRecord.from_json(store.records[0].to_json()).success is success
    assert outcome_of(success) == {None: "unknown", True: "success", False: "failure"}[success]
    with EpisodeStore.create(tmp_path / "b.zarr", store.embodiment) as copy:
        drive(ZarrRecorder(copy), store[0])
        assert copy[0].success is success


@pytest.mark.parametrize(
    ("outcomes", "line"),
    [
        ([None, None], "2 episodes of toy, success unknown"),
        ([True, None], "2 episodes of toy, 1 successful (100%), success of 1 unknown"),
        ([True, False, None], "3 episodes of toy, 1 successful (50%), success of 1 unknown"),
        ([True], "1 episode of toy, 1 successful (100%)\n"),
    ],
)
def test_summary_counts_what_is_known(
    make_episode: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], outcomes: list[bool | None], line: str
) -> None:
    path = store_of(tmp_path / "a.zarr", make_episode, *outcomes)
    assert line in told(capsys, "data", "info", path)
    summary = EpisodeStore.open(path).summary
    assert (summary.successes, summary.unknown) == (outcomes.count(True), outcomes.count(None))


def test_page_shows_it(make_episode: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = store_of(tmp_path / "a.zarr", make_episode, None, None)
    told(capsys, "data", "info", path, f"html={tmp_path / 'x.html'}")
    page = (tmp_path / "x.html").read_text()
    assert '<span class="soft">unknown</span>' in page and "2 unknown" in page
    assert (
        "success</span>" not in page and "failure</span>" not in page and "100" not in page.partition("</h1>")[2][:900]
    )


def test_filter_takes_what_is_known(make_episode: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = store_of(tmp_path / "a.zarr", make_episode, None, True, False, None)
    for wanted, seeds in (("true", [1]), ("false", [2]), ("unknown", [0, 3])):
        out = tmp_path / f"{wanted}.zarr"
        shown = told(capsys, "data", "filter", path, f"out={out}", f"success={wanted}")
        assert ("without 2 episodes of unknown success" in shown) == (wanted != "unknown")
        assert [episode.info["seed"] for episode in EpisodeStore.open(out)] == seeds
    none = store_of(tmp_path / "b.zarr", make_episode, None)
    error = told(capsys, "data", "filter", none, f"out={tmp_path / 'x'}", "success=true", code=2)
    assert "success=unknown fits some" in error


def test_it_can_be_said_and_unsaid(make_episode: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = store_of(tmp_path / "a.zarr", make_episode, None, True)
    for value, expected in (("true", True), ("unknown", None), ("false", False)):
        told(capsys, "data", "edit", path, "episodes=:", f"success={value}")
        assert [record.success for record in EpisodeStore.open(path).records] == [expected] * 2


@pytest.mark.parametrize("success", [None, True, False])
def test_exported_dataset_says_no_more(make_episode: Make, tmp_path: Path, success: bool | None) -> None:
    episode = make_episode(success=success)
    writer = LeRobotWriter(tmp_path / "x", episode.embodiment, {}, use_videos=False)
    writer.append(episode)
    writer.finish()
    writer.publish()
    assert lerobot_v3.open_source(tmp_path / "x")[0].success is success
    side = tmp_path / "x/meta/vla.json"
    assert json.loads(side.read_text())["episodes"][0]["success"] is success
    assert not any("success" in name for name in json.loads((tmp_path / "x/meta/info.json").read_text())["features"])
    side.unlink()
    assert lerobot_v3.open_source(tmp_path / "x")[0].success is None


def test_films_and_rerun_show_it(make_episode: Make) -> None:
    import rerun as rr

    for success, color in ((None, GREY), (True, GREEN), (False, RED)):
        frame = next(compose(make_episode(success=success)))
        assert tuple(frame[-1, -1]) == color
    stream = rr.RecordingStream("vla-test")
    logged: list[Any] = []
    recorder = RerunRecorder(stream, make_episode().embodiment)
    recorder._end = logged.append  # type: ignore[method-assign]
    for success in (None, True, False):
        recorder.start("x")
        recorder.finish(success)
    assert logged == ["unknown", "success", "failure"]


def test_formats_that_do_not_say_it_leave_it_unknown(tmp_path: Path) -> None:
    from test_diffusion_policy import push_t
    from test_diffusion_policy import write as write_replay_buffer
    from test_rlds import STEP, episode
    from test_rlds import write as write_rlds

    from vla.datasets.formats import diffusion_policy, rlds

    source = diffusion_policy.open_source(write_replay_buffer(tmp_path / "a.zarr", push_t()), fps=10.0)
    assert [source[index].success for index in range(3)] == [None] * 3
    rewarded = [episode(seed, 3) for seed in range(3)]  # the odd ones end with a reward
    assert [
        one.success for one in map(rlds.open_source(write_rlds(tmp_path / "b", [rewarded])).__getitem__, range(3))
    ] == [
        False,
        True,
        False,
    ]
    plain = [episode(seed, 3) for seed in (0, 2)]
    assert rlds.open_source(write_rlds(tmp_path / "c", [plain]))[0].success is None
    step = {name: feature for name, feature in STEP.items() if name != "reward"}
    without = [{key: values for key, values in one.items() if key != "steps/reward"} for one in rewarded]
    assert rlds.open_source(write_rlds(tmp_path / "d", [without], step))[1].success is None
