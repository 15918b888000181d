"""`vla train` over stores: several robots in one run, that resumes to the bit and knows its data again."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_store
from safetensors.torch import load_file

from vla.datasets.episodes import EpisodeStore
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.training.loop import Outcome
from vla.training.run import train
from vla.training.run_data import RunData
from vla.training.run_options import RunOptions
from vla.types import Episode

pytestmark = pytest.mark.usefixtures("one_thread")


def equal_files(one: Path, other: Path) -> None:
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []


def stores(make_episode: Callable[..., Episode], folder: Path) -> dict[str, str]:
    """Two stores of a robot with two cameras, and one of a wider robot with one camera."""
    wide = Embodiment(
        name="wide",
        cameras=("top",),
        state=("x [m]", "y [m]", "z [m]"),
        action=("x [m]", "y [m]", "z [m]", "grip [m]"),
        action_low=(-9.0,) * 4,
        action_high=(9.0,) * 4,
        control_hz=5.0,
    )
    paths = {name: str(folder / f"{name}.zarr") for name in ("first", "second", "wide")}
    for number, (name, path) in enumerate(paths.items()):
        episodes = [make_episode(10 * number + seed, steps=6) for seed in range(3)]
        if name == "wide":
            rng = np.random.default_rng(0)
            numbers = {"state": rng.normal(size=(6, 3)), "action": rng.normal(size=(6, 4))}
            episodes = [replace(e, embodiment=wide, images={"top": e.images["front"]}, **numbers) for e in episodes]
        write_store(path, episodes)
    return paths


def options(data: str | Mapping[str, str] | None, out: Path, **fields: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "data": data,
        "vqa": {},
        "out": str(out),
        "backbone": "scratch",
        "mixture": {"robot": 1.0},
        "horizon": 3,
        "turns": 1,
        "heldout_questions": 0,
        "plan": {"steps": 2, "batch_size": 3, "precision": "fp32"},
    }
    return values | fields


def stopped_after_a_step(values: dict[str, Any]) -> Outcome:
    """Trains until SIGTERM, which arrives in the evaluation of the first step."""

    def stop(_: VLA) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vla.training.run_data.HeldoutScores", lambda *_: stop)
        return train(RunOptions(**values | {"plan": {**values["plan"], "evaluate_every": 1}}))


@pytest.mark.slow  # three trainings
def test_robots_train_together_and_resume_to_the_bit(
    make_episode: Callable[..., Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = stores(make_episode, tmp_path)
    straight = train(RunOptions(**options(data, tmp_path / "a")))
    cut = stopped_after_a_step(options(data, tmp_path / "b"))
    assert (cut.step, cut.finished) == (1, False)
    resumed = train(RunOptions(**options(data, tmp_path / "b")))
    assert resumed.finished and straight.finished
    for name in ("training/shard-00001-model-00001-of-00001.safetensors", "model.safetensors"):
        equal_files(tmp_path / "a/step-00000002" / name, tmp_path / "b/step-00000002" / name)
    saved = [json.loads((tmp_path / run / "step-00000002/training.json").read_text()) for run in "ab"]
    # Each third of the rows has its tokens: three actions of three or of four components, where inside the episode.
    assert saved[0]["tokens"] == saved[1]["tokens"]
    assert saved[0]["tokens"].keys() == data.keys() and all(n > 0 for n in saved[0]["tokens"].values())
    assert "rows/first 0.333, rows/second 0.333, rows/wide 0.333, tokens/first" in capsys.readouterr().out
    assert {"action_error", "action_error_first", "action_error_wide"} <= straight.evaluations[-1].keys()
    # The two stores of one robot share its numbers; the checkpoint drives either robot.
    model = VLA.load(tmp_path / "a/best")
    assert [robot.name for robot in model.processor.robots] == ["toy", "wide"]
    assert VlaPolicy(model, "wide").embodiment.cameras == ("top",)
    # Other data are refused by the name of what differs.
    with EpisodeStore.open(data["second"], "a") as store:
        store.append(make_episode(99, steps=60, state=np.full((60, 2), 7.0)))
    other = (
        r"other demonstrations: state lift \[rad\]: the range's start is -\S+ in the checkpoint, -\S+ in the data "
        rf"\(second: 12 rows -> 72\)\. Restore them, or continue .* backbone={tmp_path / 'b'} out=NEW"
    )
    with pytest.raises(InputError, match=other):
        train(RunOptions(**options(data, tmp_path / "b")))


def test_a_policy_goes_on_with_its_weights_on_its_own_data(
    make_episode: Callable[..., Episode], tmp_path: Path
) -> None:
    data = stores(make_episode, tmp_path)["first"]
    first = options(data, tmp_path / "a", plan={"steps": 1, "batch_size": 2, "precision": "fp32"})
    assert train(RunOptions(**first)).finished
    again = first | {"backbone": str(tmp_path / "a/best"), "out": str(tmp_path / "b")}
    assert train(RunOptions(**again | {"plan": first["plan"] | {"lr": 0.0}})).finished
    equal_files(tmp_path / "a/best/model.safetensors", tmp_path / "b/best/model.safetensors")


def test_a_policy_goes_on_with_new_data_and_says_whose_ranges_it_has(
    make_episode: Callable[..., Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = stores(make_episode, tmp_path)
    plan = {"steps": 1, "batch_size": 2, "precision": "fp32"}
    train(RunOptions(**options({"first": data["first"]}, tmp_path / "a", plan=plan)))
    with EpisodeStore.open(data["second"], "a") as store:
        store.append(make_episode(99, steps=60, state=np.full((60, 2), 7.0)))
    policy = options({"second": data["second"]}, tmp_path, plan=plan, backbone=str(tmp_path / "a"))
    ranges = {}
    for choice in (None, "new", "merge"):
        out = tmp_path / str(choice)
        said = "estimate" if choice == "new" else choice  # its earlier name
        train(RunOptions(**policy | {"out": str(out), "statistics": said}))
        (robot,) = VLA.load(out / "best").processor.robots
        assert robot.statistics is not None
        ranges[choice] = (robot.state, robot.action, robot.statistics["state"].count)
        assert f"toy: goes on from {tmp_path / 'a'}, statistics: {choice or 'keep'}" in capsys.readouterr().out
    (before,) = VLA.load(tmp_path / "a/best").processor.robots
    assert before.statistics is not None
    kept, new, both = ranges[None], ranges["new"], ranges["merge"]
    assert kept == (before.state, before.action, before.statistics["state"].count)
    assert new[0].high[0] == 7.0 != kept[0].high[0] and both[2] == kept[2] + new[2]
    out = policy | {"out": str(tmp_path / "none")}
    for options_, message in (
        ({"statistics": "mean"}, "keep, new or merge, not 'mean'"),
        ({"normalization": "min-max"}, "normalization= is for new ranges"),
        ({"predict": "unchanged"}, "predicts lift .rad., turn .rad. relative to the state, but predict is nothing"),
        ({"backbone": "scratch", "statistics": "keep"}, "statistics=keep: scratch is not a policy"),
        ({"data": {"wide": data["wide"]}, "statistics": "merge"}, "statistics=merge: .* is not a policy of this robot"),
    ):
        with pytest.raises(InputError, match=message):
            train(RunOptions(**out | options_))
    assert not (tmp_path / "none").exists()


def test_how_actions_are_predicted_and_ranges_taken(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    data = stores(make_episode, tmp_path)["first"]
    plan = {"steps": 1, "batch_size": 2, "precision": "fp32"}
    chosen = {"predict": {"turn [rad]": "unchanged"}, "normalization": {"turn [rad]": "min-max"}}
    train(RunOptions(**options(data, tmp_path / "a", plan=plan, **chosen)))
    (robot,) = VLA.load(tmp_path / "a/best").processor.robots
    assert robot.relative == (True, False, False) and robot.statistics is not None
    assert robot.action.low[1] == robot.statistics["action"].min[1]
    assert robot.action.low[2] == robot.statistics["action"].q01[2]
    with pytest.raises(InputError, match="predict: no robot has a component 'knee'"):
        train(RunOptions(**options(data, tmp_path / "b", predict={"knee": "relative"})))


def test_stores_are_weighed_by_name(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    data = stores(make_episode, tmp_path)
    with pytest.raises(InputError, match=r"weights for \['third'\], but its sources are \['first', 'second', 'wide'\]"):
        train(RunOptions(**options(data, tmp_path / "a", mixture={"third": 1.0, "robot": 1.0})))
    with pytest.raises(InputError, match="first names a store in data and one in vqa"):
        train(RunOptions(**options(data, tmp_path / "a", vqa={"first": data["first"]})))
    assert not (tmp_path / "a").exists()
    one_step = {"steps": 1, "batch_size": 10, "precision": "fp32"}
    train(RunOptions(**options(data, tmp_path / "a", mixture={"robot": 0.2, "wide": 0.6}, plan=one_step)))
    tokens = json.loads((tmp_path / "a/best/training.json").read_text())["tokens"]
    assert 6 * 4 <= tokens["wide"] <= 6 * 12 and tokens["first"] + tokens["second"] <= 4 * 9


@pytest.mark.parametrize(
    "head",
    [
        {"kind": "fast", "tokenizer": None},
        pytest.param("text", marks=pytest.mark.slow),
        pytest.param({"kind": "flow", "knowledge_insulation": True, "tokens": "fast"}, marks=pytest.mark.slow),
    ],
)
def test_a_head_trains_and_resumes_to_the_bit(
    make_episode: Callable[..., Episode], tmp_path: Path, head: str | dict[str, Any]
) -> None:
    data = stores(make_episode, tmp_path)
    train(RunOptions(**options(data, tmp_path / "a", head=head)))
    assert not stopped_after_a_step(options(data, tmp_path / "b", head=head)).finished
    assert train(RunOptions(**options(data, tmp_path / "b", head=head))).finished
    last = "step-00000002/model.safetensors"
    equal_files(tmp_path / "a" / last, tmp_path / "b" / last)
    with pytest.raises(InputError, match="another action head"):
        train(RunOptions(**options(data, tmp_path / "b", head="l1")))
    with pytest.raises(InputError, match="no head diffusion"):
        train(RunOptions(**options(data, tmp_path / "c", head="diffusion")))
    assert not (tmp_path / "c").exists()


def test_a_store_that_is_not_trained_on_is_named(
    make_episode: Callable[..., Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = stores(make_episode, tmp_path)
    RunData.open(RunOptions(**options(data, tmp_path / "a", mixture={"robot": 0.5, "wide": 0})))
    assert "wide: weight 0 in the mixture, only evaluated and not trained on\n" in capsys.readouterr().out
