"""`vla train backbone=RUN`: with another robot or head, with rows of its former data, and from several runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_run import options, stores

from vla.datasets.episodes import EpisodeStore
from vla.errors import InputError
from vla.models.vla import VLA
from vla.training import soup
from vla.training.replay import Replay
from vla.training.run import train
from vla.training.run_data import RunData
from vla.training.run_options import RunOptions
from vla.types import Episode

pytestmark = pytest.mark.usefixtures("one_thread")
PLAN = {"steps": 1, "batch_size": 10, "precision": "fp32"}


@pytest.fixture(scope="module")
def data(make_episode: Callable[..., Episode], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return stores(make_episode, tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def run(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the store "first"."""
    out = tmp_path_factory.mktemp("runs") / "first"
    train(RunOptions(**options(data["first"], out, plan=PLAN)))
    return out


def more(data: Any, run: Path | list[str], out: Path, **fields: Any) -> RunOptions:
    backbone = run if isinstance(run, list) else str(run)
    return RunOptions(**options(data, out, backbone=backbone, plan=PLAN) | fields)


def test_another_robot_joins_and_rows_of_the_old_data_are_replayed(
    data: dict[str, str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joined = tmp_path / "joined"
    outcome = train(more({"wide": data["wide"]}, run, joined, replay=0.3))
    shown = capsys.readouterr().out
    assert f"wide: joins toy of {run}, with its own normalisation" in shown
    assert "rows/replay_first 0.300, rows/wide 0.700" in shown
    assert {"action_error_wide", "action_error_replay_first"} <= outcome.evaluations[-1].keys()
    model, before = VLA.load(joined / "best"), VLA.load(run / "best")
    assert [robot.name for robot in model.processor.robots] == ["toy", "wide"]
    assert model.processor.robot("toy").action == before.processor.robot("toy").action
    # What was replayed is replayed again.
    again = RunData.open(more(data["second"], joined, tmp_path / "again", replay=0.5))
    assert again.replay is not None and set(again.replay.stores) == {"replay_first", "replay_wide"}
    assert again.weights == pytest.approx({"robot": 0.5, "replay_first": 0.15, "replay_wide": 0.35})
    # A head of another kind is for the robots of the data; by default the head is that of the policy.
    train(more(data["second"], joined, tmp_path / "l1", head="l1"))
    assert "toy: goes on from" in (shown := capsys.readouterr().out)
    assert f"the action head l1, new, replaces parallel of {joined}\nwide: not controlled by the new head" in shown
    train(more(data["second"], tmp_path / "l1", tmp_path / "kept", head={"kind": None, "bidirectional": False}))
    assert VLA.load(tmp_path / "kept/best").processor.head.settings["kind"] == "l1"  # type: ignore[union-attr]


def test_data_that_cannot_be_replayed_are_named(
    make_episode: Callable[..., Episode], data: dict[str, str], run: Path, tmp_path: Path
) -> None:
    other, moved = tmp_path / "run", tmp_path / "moved.zarr"
    shutil.copytree(data["first"], moved)
    shutil.copytree(run, other, symlinks=True)
    file = next(other.glob("step-*")) / "training.json"
    values = json.loads(file.read_text())
    values["settings"]["data"] = str(moved)
    file.write_text(json.dumps(values))
    assert Replay.open([other / "best"]).paths == {"replay_moved": str(moved)}
    for fields, message in (
        ({"replay": 1.0}, "replay=1.0: takes a share of the rows"),
        ({"replay": 0.2, "temperature": 2.0}, "set one of them"),
        ({"replay": 0.2, "backbone": "scratch"}, "needs a policy in backbone= .* there is none does not"),
        ({"replay": 0.2, "data": None}, "there are none: set data="),
        (
            {"replay": 0.2, "data": {"wide": data["wide"]}, "head": "l1"},
            "moved.zarr does not fit the model: .* not toy",
        ),
    ):
        with pytest.raises(InputError, match=message):
            train(RunOptions(**vars(more(data["second"], other, tmp_path / "none")) | fields))
    with EpisodeStore.open(moved, "a") as store:
        store.append(make_episode(99, steps=60))
    with pytest.raises(InputError, match="has changed since .*: 72 steps for training in place of 12"):
        Replay.open([other / "best"])
    shutil.rmtree(moved)
    with pytest.raises(InputError, match=r"was trained on .*moved.zarr, which cannot be read now"):
        Replay.open([other / "best"])
    assert not (tmp_path / "none").exists()


def test_fast_tokens_of_other_robots_are_checked(data: dict[str, str], tmp_path: Path) -> None:
    head = {"kind": "fast", "tokenizer": None}
    train(RunOptions(**options(data["first"], tmp_path / "run", plan=PLAN, head=head)))
    with pytest.raises(InputError, match=r"FAST tokens do not represent \d+% of the action chunks of wide"):
        train(more({"wide": data["wide"]}, tmp_path / "run", tmp_path / "none", head=head))


@pytest.mark.slow  # three trainings
def test_several_runs_are_averaged_if_that_is_not_worse(
    data: dict[str, str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        train(more(data["first"], run, tmp_path / str(seed), plan=PLAN | {"seed": seed}))
    parents = [str(tmp_path / str(seed)) for seed in (1, 2)]
    weights = [load_file(f"{parent}/best/model.safetensors") for parent in parents]
    capsys.readouterr()
    for better, out in ((0.1, tmp_path / "average"), (0.9, tmp_path / "best")):
        errors = iter([0.4, 0.3, better, 0.5])
        monkeypatch.setattr(
            "vla.training.run_data.HeldoutScores", lambda *_, e=errors: lambda _: {"action_error": next(e)}
        )
        train(more(data["first"], parents, out, plan=PLAN | {"steps": 0}))
        shown = capsys.readouterr().out
        assert f"{parents[1]}: action_error 0.3\ntheir average: action_error {better}\n" in shown
        found = load_file(out / "best/model.safetensors")
        expected = {n: (w + weights[1][n]) / 2 for n, w in weights[0].items()} if better < 0.3 else weights[1]
        assert ("starts from the average" in shown) == (better < 0.3)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    monkeypatch.undo()
    # A run from the average resumes without its parents' scores.
    train(more(data["first"], parents, tmp_path / "average", plan=PLAN | {"steps": 1}))
    assert "resumes from step 0 of 1" in capsys.readouterr().out


def test_models_that_cannot_be_averaged_are_named(data: dict[str, str], run: Path, tmp_path: Path) -> None:
    train(more(data["second"], run, tmp_path / "new", statistics="new"))
    for parents, message in (
        ([str(run)], "takes two or more checkpoints"),
        ([str(run), "paligemma"], "paligemma is not the folder of one"),
        ([str(run), "nano"], "nano has no action head"),
        ([str(run), str(tmp_path / "new")], r"cannot be averaged: robots\.toy\.state\.low is \[.*\] and \["),
    ):
        with pytest.raises(InputError, match=message):
            train(more(data["first"], parents, tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    model = VLA.load(run / "best")
    values = soup._values(model)
    assert soup._difference(values, values) == ""
    assert soup._difference(values, values | {"tokenizer": "x" * 99, "start": 1}).startswith("tokenizer is {")
    assert np.isfinite(model.smoothing)
