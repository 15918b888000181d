"""The benchmark of loaders, small: every format is written, read and held against the targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla.benchmarks import loader, loader_scale, loader_training
from vla.benchmarks.loader_formats import FORMATS, Frames, create_frames
from vla.datasets.episodes import EpisodeStore
from vla.datasets.windows import WindowBatch
from vla.embodiment import Embodiment
from vla.envs.make import make_env


def test_formats_read_the_same_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    robot = Embodiment("r", ("a", "b"), ("x", "y"), ("x", "y"), (0.0, 0.0), (1.0, 1.0), 30.0)
    frames = create_frames(tmp_path / "frames", robot, episodes=2, steps=6, size=64)
    rng = np.random.default_rng(0)
    for images in frames.images.values():
        images[:] = rng.integers(0, 256, (12, 1, 1, 3))
    frames.state[:], frames.action[:] = rng.normal(size=(2, 12, 2))
    starts = np.array([0, 4, 11, 7])
    wanted = np.minimum(starts[:, None] + np.arange(4), (starts // 6 * 6 + 5)[:, None])
    for name, known in FORMATS.items():
        known.write(frames, tmp_path / name)
        found = known.open(tmp_path / name, 4)(starts)
        if isinstance(found, WindowBatch):
            images, state, action = found.images["b"], found.state, found.action
        elif name == "memmap":
            images, state, action = found[0]["b"], *found[1:]
        else:
            samples = [{key: np.asarray(value) for key, value in s.items() if key != "task"} for s in found]
            images = np.stack([255 * s["observation.images.b"].transpose(1, 2, 0) for s in samples])
            state, action = (np.stack([s[key] for s in samples]) for key in ("observation.state", "action"))
        assert np.abs(images.astype(float) - frames.images["b"][starts]).max() < 12, name
        np.testing.assert_array_equal(state, frames.state[starts], name)
        np.testing.assert_array_equal(action, frames.action[wanted], name)


@pytest.mark.slow  # seven formats, each written and read in a process of its own
def test_the_table_has_every_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loader, "SECONDS", 0.03)
    monkeypatch.setattr(loader, "FORMATS", {n: FORMATS[n] for n in ("memmap", "jpeg")})
    monkeypatch.setattr(loader, "_targets", lambda rows, sizes: [])
    monkeypatch.setattr(loader_training, "measure_training", lambda folder: ([{"loader": "none"}], []))
    table = loader.bench_loader(episodes=1, steps=3, sizes=(32,), many=2, scale=(16, 32))
    formats, others = table.rows[:2], table.rows[2:]
    assert [row["format"] for row in formats] == ["memmap", "jpeg"]
    assert all(row["random/s"] > 0 and row["MB"] > 0 for row in formats)
    assert formats[0]["of memmap"] == 1 and table.targets[0].value > 0
    assert [row["episodes"] for row in others[:2]] == [16, 32] and others[2:] == [{"loader": "none"}]
    text = table.to_text()
    assert text.index("format") < text.index("episodes") < text.index("loader")  # the heads of three tables


def test_what_many_episodes_cost(tmp_path: Path) -> None:
    rows, targets = loader_scale.measure_scale(tmp_path / "scale", (320, 640))
    assert [row["episodes"] for row in rows] == [320, 640]
    assert all(row["open ms"] > 0 and row["append ms"] > 0 and row["record ms"] > 0 for row in rows)
    assert len(targets) == 3


def test_a_store_of_many_episodes_is_one(tmp_path: Path) -> None:
    loader_scale.write_store(tmp_path / "many", 704)
    store = EpisodeStore.open(tmp_path / "many")
    assert len(store) == 704 and store.total_frames == 704 * loader_scale.STEPS
    assert [record.info["seed"] for record in store.records] == list(range(704))
    assert store.records[703].frames == slice(703 * loader_scale.STEPS, 704 * loader_scale.STEPS)


@pytest.mark.slow
def test_both_loaders_of_training_make_the_same_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name, value in {"HEIGHT": 48, "WIDTH": 64, "BATCH": 400, "HORIZON": 3}.items():
        monkeypatch.setattr(loader_training, name, value)
    frames = tinted(tmp_path / "frames")
    made = {}
    for name, batches in (("jpeg", loader_training.our_batches), ("lerobot images", loader_training.lerobot_batches)):
        FORMATS[name].write(frames, tmp_path / name)
        made[name] = next(batches(tmp_path / name, 32, 0))
    ours, theirs = made["jpeg"], made["lerobot images"]
    assert ours.shape == theirs.shape == (400, 2, 3, 32, 32)
    assert ours[:, :, :, :4].eq(theirs[0, 0, 0, 0, 0]).all()  # the bars
    apart = (ours[:20, None] - theirs[None]).abs().mean((2, 3, 4, 5))
    assert apart.min(1).values.max() < 0.1 < apart.max()


@pytest.mark.slow  # steps at the benchmark's own size
def test_a_step_of_nano_tells_what_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HEIGHT": 48, "WIDTH": 64, "HORIZON": 3}.items():
        monkeypatch.setattr(loader_training, name, value)
    asked: list[tuple[str, int, int]] = []

    def stub(name: str) -> tuple[object, ...]:
        def rate(path: Path, size: int, workers: int) -> float:
            asked.append((name, size, workers))
            return 1.0 + workers

        return lambda frames, path: path.mkdir(), rate, (0, 2)

    monkeypatch.setattr(loader_training, "LOADERS", {name: stub(name) for name in loader_training.LOADERS})
    rows, targets = loader_training.measure_training(tmp_path, sizes=(32, 48), episodes=2, steps=4, nano_steps=1)
    rates, waits = rows[:16], rows[16:]
    assert {(row["cameras"], row["size"], row["workers"]) for row in rates} == {
        (c, s, 2) for c in (2, 3) for s in (32, 48)
    }
    assert asked.count(("vla webp", 48, 2)) == 2 and asked.count(("vla webp", 32, 0)) == 1
    assert [row["workers"] for row in waits] == [0, 1] and all(row["step ms"] > 0 for row in waits)
    assert all(0 <= row["wait %"] <= 100 for row in waits) and targets[-1].value == waits[0]["wait %"]


def tinted(folder: Path) -> Frames:
    """40 frames, each of a colour of its own, that get lighter to the right."""
    env = make_env("pick")
    robot = env.unwrapped.embodiment  # type: ignore[attr-defined]
    env.close()
    frames = create_frames(folder, robot, episodes=2, steps=20, size=(48, 64))
    rng = np.random.default_rng(0)
    for images in frames.images.values():
        images[:] = rng.integers(0, 190, (40, 1, 1, 3)) + np.arange(64)[:, None]
    frames.state[:], frames.action[:] = rng.normal(size=frames.state.shape), rng.normal(size=frames.action.shape)
    return frames
