"""Stores of one robot that know where two things are, one, or none, in all episodes or in some, train one policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla.datasets.episodes import EpisodeStore
from vla.models.batch import IGNORE
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.training.demonstrations import Demonstrations, robot_specs
from vla.training.run import train
from vla.training.run_options import RunOptions
from vla.types import Episode, Observation

Make = Callable[..., Episode]
KNOWN = {"two": (2, 2, 2), "one": (1, 1, 1), "none": (0, 0, 0), "some": (0, 1, 0)}
"""Of how many things each episode of a store knows where they are."""


@pytest.fixture(scope="module")
def stores(make_episode: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, rng = tmp_path_factory.mktemp("stores"), np.random.default_rng(0)
    paths = {name: str(folder / f"{name}.zarr") for name in KNOWN}
    for number, (name, path) in enumerate(paths.items()):
        with EpisodeStore.create(path, make_episode().embodiment) as store:
            for i, things in enumerate(KNOWN[name]):
                points = rng.random((5, 2 * things, 2)) if things else None
                store.append(make_episode(10 * number + i, points=points))
    return paths


def options(data: Any, out: Path, **fields: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"vqa": {}, "backbone": "scratch", "mixture": {"robot": 1.0}, "horizon": 3, "turns": 1}
    plan = {"steps": 2, "batch_size": 8, "precision": "fp32"}
    return values | {"heldout_questions": 0, "data": data, "out": str(out), "plan": plan} | fields


@pytest.mark.slow  # three trainings
def test_one_policy_is_trained_on_all_and_goes_on_with_fewer(stores: dict[str, str], tmp_path: Path) -> None:
    outcome = train(RunOptions(**options(stores, tmp_path / "run")))
    assert outcome.finished and {f"action_error_{name}" for name in stores} <= outcome.evaluations[-1].keys()
    model = VLA.load(tmp_path / "run/best")
    (robot,) = model.processor.robots
    assert robot.points == 4
    for name, known in KNOWN.items():
        one = Demonstrations.open(stores[name])
        windows = one.windows(3)
        batch = model.processor.batch([windows[i] for i in range(len(windows))])
        # All rows have as many places, and where an episode knows things those bear a loss, that there are no more too.
        counts = ((batch.labels != IGNORE) & (batch.labels < model.processor.text_vocab)).sum(1).tolist()
        points = {tuple(row) for row in batch.points[..., 2].int().tolist()}
        assert set(counts) <= {8 if things else 0 for things in known}, name
        assert points <= {(1, 1, 1, 1) if n == 2 else (1, 0, 1, 0) if n == 1 else (0, 0, 0, 0) for n in known}
        assert batch.prompt_length.unique().numel() == 1
    example = Demonstrations.open(stores["one"]).windows(3)[0]
    assert example.state is not None
    chunk = VlaPolicy(model).predict(Observation(example.images, example.state, example.prompt, 0.0))
    assert chunk is not None and chunk.points is not None and chunk.points.shape == (4, 2)
    # The checkpoint says as many points when it goes on, with the data of its own numbers.
    again = options(stores, tmp_path / "again", backbone=str(tmp_path / "run/best"))
    assert train(RunOptions(**again)).finished
    assert VLA.load(tmp_path / "again/best").processor.robots[0].points == 4


def test_the_number_of_things_is_no_matter_of_the_order(stores: dict[str, str]) -> None:
    parts = [Demonstrations.open(path) for path in stores.values()]
    assert robot_specs(parts, 3) == robot_specs(parts[::-1], 3)
