"""Recorders and the replay to Rerun."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rerun as rr
from PIL import Image
from rerun.experimental import RrdReader

from vla.datasets.episodes import EpisodeStore
from vla.errors import InputError
from vla.recording.recorder import Recorder
from vla.recording.replay import drive, replay
from vla.recording.rerun_recorder import RerunRecorder
from vla.recording.zarr_recorder import ZarrRecorder
from vla.types import Episode, Observation, Span

Make = Callable[..., Episode]


@pytest.fixture
def store(tmp_path: Path, make_episode: Make) -> EpisodeStore:
    return EpisodeStore.create(tmp_path / "store", make_episode().embodiment)


def observation(episode: Episode, step: int = 0) -> Observation:
    images = {camera: frames[step] for camera, frames in episode.images.items()}
    return Observation(images, episode.state[step], episode.instruction, float(episode.time[step]))


@pytest.fixture(params=[8192, 2])
def held_numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many go to a file at once."""
    monkeypatch.setattr("vla.recording.spilled_numbers.HELD", request.param)


@pytest.mark.usefixtures("held_numbers")
@pytest.mark.parametrize("horizon", [None, 4])
def test_recorded_equals_driven(store: EpisodeStore, make_episode: Make, horizon: int | None) -> None:
    recorder = ZarrRecorder(store)
    for seed in range(2):
        drive(recorder, make_episode(seed, horizon=horizon))
    for seed, stored in enumerate(store):
        episode = make_episode(seed, horizon=horizon)
        for camera in episode.images:
            np.testing.assert_array_equal(stored.images[camera], episode.images[camera])
        for name in ("state", "action", "time", "chunks"):
            np.testing.assert_array_equal(getattr(stored, name), getattr(episode, name))
        for name in ("instruction", "success", "info"):
            assert getattr(stored, name) == getattr(episode, name)


def test_chunks_in_force_are_padded(store: EpisodeStore, make_episode: Make) -> None:
    """Two steps of a chunk of three, then a step without one."""
    episode = make_episode()
    chunk = np.arange(9.0).reshape(3, 3)
    recorder = ZarrRecorder(store)
    recorder.start("lift the ring")
    recorder.step(observation(episode), chunk[0], chunk=chunk)
    recorder.step(observation(episode), chunk[1], chunk=chunk[1:], latency=0.01)
    recorder.step(observation(episode), chunk[1])
    recorder.finish(True)
    stored = store[0].chunks
    assert stored is not None and stored.shape == (3, 3, 3)
    np.testing.assert_array_equal(stored[0], chunk)
    np.testing.assert_array_equal(stored[1], [*chunk[1:], [np.nan] * 3])
    assert np.isnan(stored[2]).all()


def test_points_are_kept_where_they_were_said(store: EpisodeStore, make_episode: Make) -> None:
    episode, point = make_episode(), np.array([[0.25, 0.5], [-1.0, 0.0]])
    recorder = ZarrRecorder(store)
    recorder.start("lift the ring")
    for points in (None, point):
        recorder.step(observation(episode), np.zeros(3), points=points)
    recorder.finish(True)
    stored = store[0].points
    assert stored is not None
    assert np.isnan(stored[0]).all()
    np.testing.assert_array_equal(stored[1], point)


def test_the_disk_is_full_of_numbers(
    store: EpisodeStore, make_episode: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(**_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vla.recording.spilled_numbers.HELD", 2)
    monkeypatch.setattr("vla.recording.spilled_numbers.TemporaryFile", full)
    recorder = ZarrRecorder(store)
    recorder.start("lift the ring")
    with pytest.raises(OSError, match="No space left"):
        recorder.step(observation(make_episode()), np.zeros(3))
    with pytest.raises(InputError, match="call start first"):
        recorder.finish(True)
    assert len(store) == 0 and not list(tmp_path.rglob("*.partial"))


def test_the_caller_may_reuse_its_buffers(store: EpisodeStore, make_episode: Make) -> None:
    episode = make_episode(steps=2)
    seen, action = observation(episode), np.zeros(3)
    recorder = ZarrRecorder(store)
    recorder.start("lift the ring")
    for step in range(2):
        for camera, frames in episode.images.items():
            seen.images[camera][:] = frames[step]
        seen.state[:], action[:] = step, step
        recorder.step(seen, action)
    recorder.finish(True)
    np.testing.assert_array_equal(store[0].action[:, 0], [0, 1])
    np.testing.assert_array_equal(store[0].state[:, 0], [0, 1])
    np.testing.assert_array_equal(store[0].images["front"][1], episode.images["front"][1])


def test_what_does_not_finish_is_dropped(store: EpisodeStore, make_episode: Make) -> None:
    episode = make_episode()
    recorder = ZarrRecorder(store)
    recorder.start("aborted")
    recorder.step(observation(episode), episode.action[0])
    recorder.abort()
    with pytest.raises(InputError, match="call start first"):
        recorder.finish(True)
    recorder.start("cut off by an exception")
    recorder.step(observation(episode), episode.action[0])
    recorder.start("kept")
    recorder.step(observation(episode), episode.action[1])
    recorder.finish(False)
    assert [(e.instruction, len(e), e.success) for e in store] == [("kept", 1, False)]


def test_bad_steps_are_refused_and_nothing_is_written(store: EpisodeStore, make_episode: Make) -> None:
    episode = make_episode()
    blind = Observation({"front": episode.images["front"][0]}, episode.state[0], "lift", 0.0)
    bad: list[tuple[str, Observation, np.ndarray]] = [
        (r"step 1: action component turn \[rad\] is not finite: nan", observation(episode), np.array([0, np.nan, 0])),
        ("step 1: action has 2 components", observation(episode), np.zeros(2)),
        ("step 1: no image of camera 'wrist'", blind, np.zeros(3)),
    ]
    recorder = ZarrRecorder(store)
    for message, seen, action in bad:
        recorder.start("lift the ring")
        recorder.step(observation(episode), episode.action[0])
        with pytest.raises(InputError, match=message):
            recorder.step(seen, action)
        with pytest.raises(InputError, match="call start first"):
            recorder.finish(True)
    recorder.start("lift the ring")
    with pytest.raises(InputError, match="without steps"):
        recorder.finish(True)
    assert len(store) == 0


def read_rrd(path: Path) -> dict[str, dict[str, list[Any]]]:
    """Entity -> column -> values, of what is not static; times in seconds."""
    entities: dict[str, dict[str, list[Any]]] = {}
    for chunk in RrdReader(path).stream():
        if chunk.is_static:
            continue
        columns = chunk.to_record_batch().to_pydict()
        entity = entities.setdefault(chunk.entity_path, {})
        for name, values in columns.items():
            if name == "time":
                values = [round(value.total_seconds(), 6) for value in values]
            entity.setdefault(name.split(":")[-1], []).extend(values)
    return entities


def curve(entity: dict[str, list[Any]]) -> list[tuple[float, float]]:
    """(time, value) of the points that are drawn."""
    points = zip(entity["time"], (value[0] for value in entity["scalars"]), strict=True)
    return sorted((t, v) for t, v in points if np.isfinite(v))


def test_replay_shows_everything_on_one_timeline(tmp_path: Path, make_episode: Make) -> None:
    episodes = [make_episode(0), make_episode(1, instruction="turn the ring")]
    path = tmp_path / "out" / "episodes.rrd"
    assert replay(episodes, path) == 2
    assert [file.name for file in path.parent.iterdir()] == ["episodes.rrd"]
    entities = read_rrd(path)

    def component(name: str, kind: str) -> str:
        return "/" + rr.new_entity_path(["components", name, kind]).lstrip("/")

    robot = episodes[0].embodiment
    assert {"/cameras/front", "/cameras/wrist", "/instruction", "/outcome"} <= entities.keys()
    assert {component(name, "state") for name in robot.state} <= entities.keys()
    assert {component(name, "action") for name in robot.action} <= entities.keys()
    # The first episode starts at 0 s, the second a second after the first's last step; both run at 10 Hz.
    times = [0.0, 0.1, 0.2, 0.3, 0.4, 1.5, 1.6, 1.7, 1.8, 1.9]
    executed = curve(entities[component("turn [rad]", "action")])
    assert [t for t, _ in executed] == times
    np.testing.assert_array_equal([v for _, v in executed], np.concatenate([e.action[:, 1] for e in episodes]))
    assert sorted(entities["/cameras/front"]["time"]) == times
    outcomes = zip(entities["/outcome"]["time"], entities["/outcome"]["state"], strict=True)
    assert [state[0] for _, state in sorted(outcomes) if "between" not in state[0]] == ["failure", "success"]
    texts = [text[0] for text in entities["/instruction"]["text"]]
    assert any("turn the ring" in text and "**success**" in text and "seed 1" in text for text in texts)
    assert len(RrdReader(path).blueprints()) == 1


def test_a_long_episode_is_few_chunks(tmp_path: Path, make_episode: Make) -> None:
    """Rerun keeps a record of each chunk in memory. Those of 100 s are of 20 s, however fast they come."""
    episode = make_episode(0, steps=1000)
    replay([episode], path := tmp_path / "long.rrd")
    chunks = Counter(chunk.entity_path for chunk in RrdReader(path).stream() if not chunk.is_static)
    entities = read_rrd(path)
    for kind, values in (("state", episode.state), ("action", episode.action)):
        for name, column in zip(getattr(episode.embodiment, kind), values.T, strict=True):
            entity = "/" + rr.new_entity_path(["components", name, kind]).lstrip("/")
            assert 5 <= chunks[entity] <= 6
            assert curve(entities[entity]) == [(round(i * 0.1, 6), value) for i, value in enumerate(column)]
    assert 5 <= chunks["/cameras/front"] <= 6
    assert sorted(entities["/cameras/front"]["time"]) == [round(i * 0.1, 6) for i in range(1000)]


def test_images_are_shown_as_they_were(tmp_path: Path, make_episode: Make) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = np.stack([*np.meshgrid(ramp, ramp), np.full((64, 64), 90, np.uint8)], axis=-1)
    front = np.stack([image, image[::-1]])
    images = {"front": front, "wrist": front[:, :, ::-1]}
    replay([make_episode(0, steps=2, images=images)], path := tmp_path / "ramp.rrd")
    entities = read_rrd(path)
    for camera, frames in images.items():
        entity = entities[f"/cameras/{camera}"]
        assert entity["media_type"] == [["image/jpeg"]] * 2
        shown = [np.asarray(Image.open(BytesIO(bytes(blob[0])))).astype(int) for blob in entity["blob"]]
        order = np.argsort(entity["time"])
        assert np.abs(np.stack(shown)[order] - frames).mean() < 2


def test_replay_draws_each_chunk_once_over_the_actions(tmp_path: Path, make_episode: Make) -> None:
    """Chunks of four at steps 0 and 2: each is drawn at the times it was meant for, though they overlap."""
    plans = np.random.default_rng(0).normal(size=(2, 4, 3))
    chunks = np.full((4, 4, 3), np.nan)
    for step in range(4):
        rest = plans[step // 2][step % 2 :]
        chunks[step, : len(rest)] = rest
    path = tmp_path / "chunks.rrd"
    replay([make_episode(0, steps=4, chunks=chunks)], path)
    lanes = {name: entity for name, entity in read_rrd(path).items() if "lift" in name and "predicted" in name}
    drawn = sorted(curve(entity) for entity in lanes.values())
    expected = [[(round((2 * plan + i) * 0.1, 6), plans[plan, i, 0]) for i in range(4)] for plan in range(2)]
    assert drawn == sorted(expected)


def test_replay_shows_points_in_the_image_they_are_of(tmp_path: Path, make_episode: Make) -> None:
    """One in the front image (8 x 10 pixels), one outside the wrist's."""
    path = tmp_path / "points.rrd"
    replay([make_episode(0, points=np.tile([[0.5, 0.25], [1.5, 0.5]], (5, 1, 1)))], path)
    entities = read_rrd(path)
    assert all(np.allclose(places, [[5.0, 2.0]]) for places in entities["/cameras/front/points"]["positions"])
    assert all(len(places) == 0 for places in entities["/cameras/wrist/points"]["positions"])


def test_points_are_logged_where_they_change(tmp_path: Path, make_episode: Make) -> None:
    """In the front image at steps 0, 1 and 4, in none at 2 and 3; that of the wrist has none ever."""
    points = np.full((5, 2, 2), -1.0)
    points[[0, 1, 4], 0] = [[0.5, 0.25], [0.5, 0.25], [0.1, 0.5]]
    replay([make_episode(0, points=points)], path := tmp_path / "points.rrd")
    entities = read_rrd(path)
    front = entities["/cameras/front/points"]
    shown = sorted(zip(front["time"], front["positions"], strict=True))
    assert [time for time, _ in shown] == [0.0, 0.2, 0.4]
    assert [[list(np.round(place, 3)) for place in places] for _, places in shown] == [[[5, 2]], [], [[1, 4]]]
    assert entities["/cameras/wrist/points"]["positions"] == [[]]


def test_live_and_offline_are_the_same(tmp_path: Path, make_episode: Make) -> None:
    """The recorder on its own, as a control loop drives it, logs what the replay logs."""
    episode = make_episode(3, horizon=4)
    offline, live = tmp_path / "offline.rrd", tmp_path / "live.rrd"
    replay([episode], offline)
    stream = rr.RecordingStream("vla")
    stream.save(live)
    recorder: Recorder = RerunRecorder(stream, episode.embodiment)
    drive(recorder, episode)
    stream.disconnect()
    logged = []
    for path in (offline, live):
        rows = [
            (name, column, sorted(zip(entity["time"], map(str, values), strict=True)))
            for name, entity in read_rrd(path).items()
            for column, values in entity.items()
            if column not in ("log_time", "log_tick", "rerun.controls.RowId")
        ]
        logged.append(sorted(rows))
    assert logged[0] == logged[1]
    assert len(logged[0]) > 20


def test_an_aborted_episode_is_shown_as_such(tmp_path: Path, make_episode: Make) -> None:
    episode = make_episode()
    stream = rr.RecordingStream("vla")
    stream.save(tmp_path / "a.rrd")
    recorder = RerunRecorder(stream, episode.embodiment)
    recorder.abort()
    recorder.start("lift the ring")
    recorder.step(observation(episode), episode.action[0])
    recorder.abort()
    drive(recorder, episode)
    stream.disconnect()
    outcomes = read_rrd(tmp_path / "a.rrd")["/outcome"]["state"]
    assert sorted(state[0] for state in outcomes if "between" not in state[0]) == ["aborted", "failure"]


def test_replay_refuses_and_leaves_nothing(tmp_path: Path, make_episode: Make) -> None:
    with pytest.raises(InputError, match="ending .rrd"):
        replay([make_episode()], tmp_path / "a.mp4")
    with pytest.raises(InputError, match="no episodes"):
        replay([], tmp_path / "a.rrd")

    def failing() -> Any:
        yield make_episode()
        raise InputError("the store is damaged")

    with pytest.raises(InputError, match="damaged"):
        replay(failing(), tmp_path / "a.rrd")
    assert list(tmp_path.iterdir()) == []


def test_episodes_stand_side_by_side(tmp_path: Path, make_episode: Make) -> None:
    path = tmp_path / "two.rrd"
    assert replay([make_episode(0), make_episode(1)], path, names=("episode 4", "episode 7")) == 2
    entities = read_rrd(path)
    for root in ("episode 4", "episode 7"):
        front = "/" + rr.new_entity_path([root, "cameras", "front"]).lstrip("/")
        assert sorted(entities[front]["time"]) == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert "/cameras/front" not in entities
    assert len(RrdReader(path).blueprints()) == 1


def test_depth_and_subtasks_are_shown(tmp_path: Path, make_episode: Make) -> None:
    depth = {"wrist": np.full((5, 6, 4), 700, np.uint16)}
    spans = (Span(0, 2, "reach for it"), Span(2, 4, "raise it"))
    replay([make_episode(0, depth=depth, spans=spans)], tmp_path / "a.rrd")
    entities = read_rrd(tmp_path / "a.rrd")
    assert len(entities["/depth/wrist"]["time"]) == 5
    texts = zip(entities["/instruction"]["time"], entities["/instruction"]["text"], strict=True)
    told = {t: text[0] for t, text in texts}  # of one time, the last is shown
    assert [t for t in sorted(told) if "raise it" in told[t]] == [0.2]
    assert [t for t in sorted(told) if "reach for it" in told[t]] == [0.0]
    assert sorted(told) == [0.0, 0.2, 0.4] and all("**failure**" in text for text in told.values())
