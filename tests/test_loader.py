"""What is read ahead of training: the same batches by a thread and by any number of processes, and how that ends."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stores import ReadableHere

from vla.common.images import resize
from vla.datasets.episodes import EpisodeStore
from vla.datasets.mixture import Conversations, Mixture
from vla.datasets.questions import Question
from vla.datasets.vqa import VqaItem, VqaStore
from vla.datasets.windows import Windows
from vla.errors import InputError
from vla.models.batch import Batch
from vla.models.vla import VLA
from vla.training.distributed import DistributedContext
from vla.training.loader import loader_workers, prefetch
from vla.training.train_config import TrainConfig
from vla.types import Episode

CPU = torch.device("cpu")
ALONE = DistributedContext(CPU)


@pytest.fixture
def mixture(tmp_path: Path, make_episode: Callable[..., Episode]) -> Mixture:
    """Episodes of two cameras in JPEG, and questions about one or two images, or none."""
    with EpisodeStore.create(tmp_path / "demos", make_episode().embodiment, "jpeg") as store:
        for seed in range(3):
            store.append(make_episode(seed, steps=20))
    rng = np.random.default_rng(0)
    questions = VqaStore.create(tmp_path / "vqa", ("front", "wrist"), 40, 30)
    for number, cameras in enumerate((("front",), ("front", "wrist"), ()) * 4):
        images = {camera: rng.integers(0, 256, (40, 30, 3), np.uint8) for camera in cameras}
        asked = (Question("color", f"what color? {number}", "red " * (1 + number), cameras[0] if cameras else ""),)
        questions.append([VqaItem(images, asked, "test")])
    return Mixture(
        {"robot": Windows(EpisodeStore.open(tmp_path / "demos"), 4), "vqa": Conversations(questions, None, 2)},
        {"robot": 0.5, "vqa": 0.5},
        0,
    )


def made(
    model: VLA, mixture: Mixture, workers: int, start: int = 0, world: DistributedContext = ALONE, **fields: Any
) -> list[Any]:
    """Every value of every micro-batch of every step."""
    plan = TrainConfig(**({"steps": 6, "batch_size": 8, "loader_workers": workers} | fields))
    with prefetch(model.processor, mixture, plan, start, world) as steps:
        return [[copied(batch) for batch in micro] for micro in steps]


def copied(batch: Batch) -> dict[str, Any]:
    values = {field.name: getattr(batch, field.name) for field in fields(Batch)}
    return {name: v.numpy().copy() if isinstance(v, torch.Tensor) else v for name, v in values.items()}


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    assert [len(micro) for micro in ours] == [len(micro) for micro in theirs]
    for a, b in ((a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)):
        assert a["source"] == b["source"]
        for name in a.keys() - {"source"}:
            assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
            np.testing.assert_array_equal(a[name], b[name], name)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_make_what_a_thread_makes(make_model: Callable[..., VLA], mixture: Mixture, accumulate: int) -> None:
    model = make_model(head="flow")
    expected = made(model, mixture, 0, accumulate=accumulate)
    assert len({batch["seed"].tobytes() for micro in expected for batch in micro}) == 6 * accumulate
    assert_same(
        made(model, mixture, accumulate, start=accumulate - 1, accumulate=accumulate), expected[accumulate - 1 :]
    )


def test_ranks_have_processes_of_their_own(make_model: Callable[..., VLA], mixture: Mixture) -> None:
    model, world = make_model(head="flow"), DistributedContext(CPU, 1, 2)
    assert_same(made(model, mixture, 2, world=world), made(model, mixture, 0, world=world))


def test_images_are_those_of_the_store(make_model: Callable[..., VLA], mixture: Mixture, tmp_path: Path) -> None:
    model, store = make_model(), EpisodeStore.open(tmp_path / "demos")
    frames = [store.frames(camera, range(60)) for camera in store.embodiment.cameras]
    seen = np.stack([[resize(frame, 32) for frame in camera] for camera in frames], 1)
    windows = Mixture({"robot": Windows(store, 4)}, {"robot": 1.0}, 0)
    rows = np.concatenate([micro[0]["images"] for micro in made(model, windows, 0, steps=5, batch_size=12)])
    assert sorted(row.tobytes() for row in rows) == sorted(row.tobytes() for row in seen)


def test_what_cannot_be_read_is_named(make_model: Callable[..., VLA], mixture: Mixture, tmp_path: Path) -> None:
    shard = tmp_path / "demos" / "images" / "wrist" / "c" / "0" / "0" / "0" / "0"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    with pytest.raises(InputError, match=f"shard {shard} is damaged"):
        made(make_model(), mixture, 0)


def test_what_a_process_cannot_read_is_named(make_model: Callable[..., VLA]) -> None:
    source = Mixture({"here": ReadableHere()}, {"here": 1.0}, 0)
    with pytest.raises(InputError, match=r"^example \d is damaged$"):
        made(make_model(robot=False), source, 1)


def test_another_process_opens_the_same_store(
    mixture: Mixture, tmp_path: Path, make_episode: Callable[..., Episode]
) -> None:
    path = tmp_path / "demos"
    store = EpisodeStore.open(path)
    sent = pickle.dumps(store)
    with EpisodeStore.open(path, "a") as writer:
        writer.append(make_episode(9))
    np.testing.assert_array_equal(pickle.loads(sent).state[:60], store.state[:])
    path.rename(tmp_path / "old")
    with EpisodeStore.create(path, make_episode().embodiment, "jpeg") as other:
        for seed in range(3):
            other.append(make_episode(seed, steps=21))
    with pytest.raises(InputError, match="was replaced while it was open"):
        pickle.loads(sent)


def test_a_process_that_dies_ends_the_run_with_a_word(make_model: Callable[..., VLA], mixture: Mixture) -> None:
    plan = TrainConfig(steps=1000, batch_size=4, loader_workers=1)
    with (
        prefetch(make_model().processor, mixture, plan, 0, ALONE) as steps,
        pytest.raises(InputError, match=r"a process that reads data died: .*smaller plan.loader_workers"),
    ):
        for number, _ in enumerate(steps):
            if number == 2:
                (reader,) = active_children()
                reader.kill()


def test_nothing_is_left_when_the_loop_ends_early(make_model: Callable[..., VLA], mixture: Mixture) -> None:
    plan = TrainConfig(steps=1000, batch_size=4, loader_workers=2)
    with prefetch(make_model().processor, mixture, plan, 0, ALONE) as steps:
        for _ in range(3):
            next(steps)
        assert len(active_children()) == 2 and any("vla-loader" in file for file in opened())
    assert active_children() == [] and not any("vla-loader" in file for file in opened())


TRAIN = """
from pathlib import Path
from vla.datasets.episodes import EpisodeStore
from vla.datasets.mixture import Mixture
from vla.datasets.windows import Windows
from vla.models.vla import VLA
from vla.training.cotrain import train
from vla.training.train_config import TrainConfig

mixture = Mixture({"robot": Windows(EpisodeStore.open("demos"), 4)}, {"robot": 1.0}, 0)
plan = TrainConfig(steps=10**6, batch_size=4, loader_workers=2, evaluate_every=3, augment=0)
try:
    outcome = train(VLA.load("model"), mixture, plan, Path("run"), lambda model: print("evaluated", flush=True) or {})
    print("stopped at", outcome.step)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "stopped at")],
)
@pytest.mark.slow  # `vla train` with two loader processes
@pytest.mark.usefixtures("mixture")
def test_a_signal_to_all_processes_leaves_a_checkpoint(
    make_model: Callable[..., VLA], tmp_path: Path, number: signal.Signals, said: str
) -> None:
    (tmp_path / "model").mkdir()
    make_model().save(tmp_path / "model")
    command = [sys.executable, "-c", TRAIN]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True, cwd=tmp_path) as training:
        assert training.stdout is not None
        assert training.stdout.readline() == "evaluated\n"  # batches come from the processes by now
        os.killpg(training.pid, number)
        out, errors = training.communicate()  # until all of them have ended
    assert training.returncode == 0 and said in out and "Traceback" not in errors, errors
    assert list((tmp_path / "run").glob("step-*"))


def opened() -> Iterator[str]:
    """The files that this process has open."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            yield os.readlink(descriptor)


def test_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla.training.loader.cores", lambda: 16)
    plan, gpu = TrainConfig(steps=1), DistributedContext(torch.device("cuda", 0))
    assert loader_workers(plan, ALONE) == 0
    assert loader_workers(plan, gpu) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader_workers(plan, gpu) == 3
    assert loader_workers(replace(plan, loader_workers=5), gpu) == 5
    monkeypatch.setattr("vla.training.loader.cores", lambda: 2)
    assert loader_workers(plan, gpu) == 0
    with pytest.raises(InputError, match="loader_workers must be 0 or more, not -1"):
        TrainConfig(steps=1, loader_workers=-1)
