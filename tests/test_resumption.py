"""Going on with a run: after a copy, beside folders of others, and with other options."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_full_disk import largest_file
from test_run import options, stores
from test_training import mixture, plan

from vla.commands import cli
from vla.common.full_disk import explaining_full_disk
from vla.datasets.mixture import Mixture
from vla.errors import InputError
from vla.models.vla import VLA
from vla.training import checkpoint
from vla.training.checkpoint import STEP, best, checkpoints, latest
from vla.training.cotrain import train
from vla.training.run import train as train_stores
from vla.training.run_options import RunOptions

Models = Callable[..., VLA]


def scores(*errors: float) -> Callable[[VLA], dict[str, float]]:
    told = iter(errors)
    return lambda _: {"action_error": next(told)}


def test_a_run_that_was_copied_with_its_links_followed_goes_on(make_model: Models, tmp_path: Path) -> None:
    run, copy = tmp_path / "run", tmp_path / "elsewhere" / "run 2"
    train(make_model(), mixture(), plan(steps=2, evaluate_every=1), run, scores(0.1, 0.2))
    shutil.copytree(run, copy, symlinks=False)  # as cp -rL
    shutil.rmtree(run)
    outcome = train(make_model(), mixture(), plan(steps=3, evaluate_every=1), copy, scores(0.3))
    assert (outcome.step, outcome.best) == (3, copy / "step-00000001")
    assert (copy / "best").is_symlink() and [p.name for p in checkpoints(copy)] == ["step-00000001", "step-00000003"]
    outcome = train(make_model(), mixture(), plan(steps=4, evaluate_every=1), copy, scores(0.01))
    assert outcome.best == copy / "step-00000004"


def test_a_disk_that_is_full_at_a_checkpoint_ends_in_one_line_and_the_run_goes_on(
    make_model: Models, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(make_model(), mixture(), plan(steps=1), run)
    size = max(file.stat().st_size for file in (run / "step-00000001").rglob("*.safetensors"))
    refused = pytest.raises(InputError, match="cannot be written: File too large: free space")
    with refused, largest_file(size // 2), explaining_full_disk():
        train(make_model(), mixture(), plan(steps=2), run)
    assert not (run / ".partial").exists()
    assert [file.name for file in checkpoints(run)] == ["step-00000001"]
    assert train(make_model(), mixture(), plan(steps=2), run).step == 2


def test_best_alone_is_gone_on_from_and_another_runs_is_refused(make_model: Models, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    train(make_model(), mixture(), plan(steps=2), run)
    shutil.copytree(run / "best", other / "best")
    assert train(make_model(), mixture(), plan(steps=3), other).step == 3
    train(make_model(seed=5), mixture(), plan(steps=3), tmp_path / "third")
    (other / "best").unlink()
    shutil.copytree(tmp_path / "third" / "best", other / "best")
    with pytest.raises(InputError, match="best differs from the checkpoint"):
        train(make_model(), mixture(), plan(steps=4), other)
    shutil.rmtree(other / "best")
    (other / "best").mkdir()
    with pytest.raises(InputError, match="best is not a checkpoint"):
        train(make_model(), mixture(), plan(steps=4), other)


NAMES = st.from_regex(r"step-[0-9a-z.~ -]{0,12}", fullmatch=True)


@given(name=NAMES)
def test_only_names_that_are_ours_to_the_letter_are_ours(name: str) -> None:
    ours = name[5:].isdecimal() and len(name) >= 13
    assert bool(STEP.fullmatch(name)) == ours


def test_folders_of_other_names_are_neither_gone_on_from_nor_removed(make_model: Models, tmp_path: Path) -> None:
    train(make_model(), mixture(), plan(steps=2), tmp_path)
    kept = ["step-00000002-keep", "step-00000009.bak", "step-3", "step-", "step-00000002 (copy)", "step-latest"]
    for name in kept:
        shutil.copytree(tmp_path / "step-00000002", tmp_path / name)
    (tmp_path / "step-00000099").write_text("a note")
    assert latest(tmp_path) == tmp_path / "step-00000002"
    outcome = train(make_model(), mixture(), plan(steps=4, evaluate_every=1), tmp_path)
    assert (outcome.step, outcome.best) == (4, tmp_path / "step-00000004")
    assert all((tmp_path / name / "model.safetensors").is_file() for name in kept)
    assert (tmp_path / "step-00000099").read_text() == "a note"
    assert checkpoints(tmp_path)[-1] == latest(tmp_path) == tmp_path / "step-00000004"


def test_steps_are_ordered_by_number(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        (tmp_path / f"step-{step:08d}").mkdir()
    assert latest(tmp_path) == tmp_path / "step-100000000"
    (tmp_path / "best").symlink_to("step-00000007")
    assert best(tmp_path) is None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("training.json", None),
        ("training.json", "{"),
        ("training.json", "[]"),
        ("training/*", None),
        ("training/*", "x"),
    ],
)
def test_a_damaged_checkpoint_is_named(make_model: Models, tmp_path: Path, file: str, content: str | None) -> None:
    train(make_model(), mixture(), plan(steps=1), tmp_path)
    for path in (tmp_path / "step-00000001").glob(file):
        path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match="step-00000001.* (missing|damaged)"):
        train(make_model(), mixture(), plan(steps=2), tmp_path)


def test_other_options_are_reported(make_model: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(make_model(), mixture(), plan(steps=1, lr=1e-3), tmp_path)
    assert "resumes from" not in capsys.readouterr().out
    train(make_model(), mixture(), plan(steps=2, lr=5e-4, accumulate=2, ema=0.9), tmp_path)
    line = next(line for line in capsys.readouterr().out.splitlines() if "resumes from" in line)
    assert line.startswith(f"{tmp_path} resumes from step 1 of 2, with ")
    for change in ("plan.lr 0.001 -> 0.0005", "plan.steps 1 -> 2", "plan.accumulate 1 -> 2", "plan.ema 0.995 -> 0.9"):
        assert change in line
    train(make_model(), mixture(), plan(steps=3, lr=5e-4, accumulate=2, ema=0.9), tmp_path)
    assert "with plan.steps 2 -> 3\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "weights", "said"),
    [
        ({"seed": 1}, {}, r"another plan.seed \(0 -> 1\)"),
        ({"batch_size": 2}, {}, r"another plan.batch_size \(4 -> 2\).*plan.accumulate"),
        ({}, {"vqa": 3.0}, r"another shares.robot \(0.5 -> 0.25\)"),
        ({}, {"vqa": 0.0}, r"another shares.robot \(0.5 -> 1.0\)"),
    ],
)
def test_what_a_run_cannot_change_is_refused(
    make_model: Models, tmp_path: Path, fields: dict[str, Any], weights: dict[str, float], said: str
) -> None:
    train(make_model(), mixture(), plan(steps=1), tmp_path)
    sources = {name: mixture()._sources[name] for name in ("robot", "vqa")}
    mixed = Mixture(sources, {"robot": 1.0, "vqa": 1.0} | weights, 0)
    with pytest.raises(InputError, match=said):
        train(make_model(), mixed, plan(steps=2, **fields), tmp_path)
    assert latest(tmp_path) == tmp_path / "step-00000001"


def test_a_checkpoint_that_does_not_say_how_it_was_trained_goes_on(make_model: Models, tmp_path: Path) -> None:
    train(make_model(), mixture(), plan(steps=1), tmp_path)
    file = tmp_path / "step-00000001" / "training.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in values.items() if key != "settings"}))
    assert train(make_model(), mixture(), plan(steps=2, batch_size=2), tmp_path).step == 2
    assert checkpoint._training(tmp_path / "step-00000002")["settings"]["plan"]["batch_size"] == 2


def test_a_run_knows_its_data_and_its_backbone(
    make_episode: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = stores(make_episode, tmp_path)["first"]
    moved = tmp_path / "moved.zarr"
    shutil.copytree(data, moved)
    base = options(data, tmp_path / "base", plan={"steps": 1, "batch_size": 2, "precision": "fp32"})
    train_stores(RunOptions(**base))
    policy = base | {"backbone": str(tmp_path / "base"), "out": str(tmp_path / "run")}
    train_stores(RunOptions(**policy))
    longer = {"plan": policy["plan"] | {"steps": 2}}
    train_stores(RunOptions(**policy | longer | {"data": str(moved)}))
    assert f"data {data} -> {moved}" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "base")  # what the run began from is trained anew
    train_stores(RunOptions(**base | {"plan": base["plan"] | {"seed": 1}}))
    with pytest.raises(InputError, match="another backbone_weights"):
        train_stores(RunOptions(**policy | {"plan": policy["plan"] | {"steps": 3}}))
    with pytest.raises(InputError, match="horizon"):
        train_stores(RunOptions(**base | {"horizon": 4, "plan": base["plan"] | {"seed": 1, "steps": 2}}))


def test_the_command_says_what_it_goes_on_with_and_where_the_result_is(
    make_episode: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = stores(make_episode, tmp_path)["first"]
    out = tmp_path / "run (1)"
    given = ["train", f"data={data}", f"out={out}", "mixture.vqa=0", "backbone=scratch", "horizon=3"]
    given += ["plan.batch_size=2", "plan.evaluate_every=1", "plan.precision=fp32"]
    assert cli.main([*given, "plan.steps=1"]) == 0
    shown = capsys.readouterr().out
    assert f"{out}/best" in shown and "vla eval" in shown and "frozen: nothing" in shown
    assert cli.main([*given, "plan.steps=1"]) == 0
    assert f"{out} has its 1 step already" in capsys.readouterr().out
    assert cli.main([*given, "plan.steps=2", "plan.lr=1e-4"]) == 0
    assert "resumes from step 1 of 2, with plan.steps 1 -> 2, plan.lr 0.001 -> 0.0001" in capsys.readouterr().out
    assert cli.main([*given, "plan.steps=3", "plan.seed=4"]) == 2
    shown_error = capsys.readouterr().err
    assert "plan.seed (0 -> 4)" in shown_error and shown_error.count("\n") == 1
