"""Two evaluations beside each other: what is told apart, what is not, and what must not be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vla.commands import cli
from vla.commands.compare import compare
from vla.errors import InputError
from vla.evaluation.rollouts.trial import Result

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """The folder of an evaluation in which the seeds below `good` succeed."""

    def make(name: str, good: int, count: int = 40, first: int = 0, crash: int | None = None, **settings: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        results = [
            Result(s, group, f"go to {s}", s < good, False, 10, 0, seconds=1.0, crash="it fell" if s == crash else "")
            for group in ("named", "swap")
            for s in range(first, first + count)
        ]
        report = {"policy": name, "task": "pick", "phrasing": "train", "axes": [], "randomize": True} | settings
        report = {"stopped_after": None, "measured": None} | report | {"results": [asdict(r) for r in results]}
        (folder / "eval.json").write_text(json.dumps(report))
        return str(folder)

    return make


def rows(out: Path) -> list[dict[str, Any]]:
    return list(json.loads((out / "compare.json").read_text())["rows"])


def test_a_clear_difference_is_told_and_drawn(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["compare", write("old", 10), write("new", 30), f"out={out}"]) == 0
    named, swap = rows(out)
    assert (named["pairs"], named["won"], named["lost"], named["verdict"]) == (40, 20, 0, "better")
    assert named["difference"] == 0.5 and named["p"] == pytest.approx(2 / 2**20)
    low, high = named["difference_ci95"]
    assert 0 < low < 0.5 < high and swap["group"] == "swap"
    assert named["a"]["success_rate"] == 0.25 and named["b"]["seconds"] == 1.0
    assert "named: a 0.250" in (said := capsys.readouterr().out) and "b is better" in said
    with Image.open(out / "compare.png") as image:
        assert image.width > image.height


def test_a_small_difference_is_not_told(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(a=write("old", 30), b=write("new", 33), out=str(tmp_path / "out"))
    assert rows(tmp_path / "out")[0]["verdict"] == "no significant difference"
    assert "no significant difference" in capsys.readouterr().out


def test_an_ensemble_is_compared_with_ensembles_only(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write(name, good) for name, good in (("old", 30), ("new", 33), ("rtc", 33))]
    for folder, execution in zip(folders, ("ensemble", "ensemble", "rtc"), strict=True):
        path = Path(folder) / "eval.json"
        report = json.loads(path.read_text())
        path.write_text(json.dumps(report | {"results": [r | {"execution": execution} for r in report["results"]]}))
    compare(a=folders[0], b=folders[1], out=str(tmp_path / "out"))
    assert "named, ensemble: a" in capsys.readouterr().out
    with pytest.raises(InputError, match="no seed in common"):
        compare(a=folders[0], b=folders[2], out=str(tmp_path / "out"))


def test_only_seeds_of_both_are_compared_and_crashes_are_none(write: Write, tmp_path: Path) -> None:
    compare(a=write("old", 30, first=10, crash=20), b=write("new", 30), out=str(tmp_path / "out"))
    assert rows(tmp_path / "out")[0]["pairs"] == 29


def test_other_scenes_are_refused_and_nothing_is_written(write: Write, tmp_path: Path) -> None:
    base = write("base", 5)
    out = str(tmp_path / "out")
    for other, said in (
        (write("task", 5, task="place"), "not of the same scenes: task: 'pick' and 'place'"),
        (write("axes", 5, axes=["light"]), "axes"),
        (write("seeds", 5, first=100), "no seed in common"),
        (write("stopped", 5, stopped_after=12), "stopped early"),
        (write("group", 5, by_task={}), "holds several tasks"),
        (str(tmp_path), "holds no eval.json"),
    ):
        with pytest.raises(InputError, match=said):
            compare(a=base, b=other, out=out)
    report = json.loads((Path(base) / "eval.json").read_text())
    report["results"][3]["instruction"] = "stay"
    (tmp_path / "task/eval.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match="seed 3 is a different scene"):
        compare(a=base, b=str(tmp_path / "task"), out=out)
    for missing in ("task", "policy", "results"):
        damaged = {key: value for key, value in report.items() if key != missing}
        (tmp_path / "task/eval.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=r"eval\.json .* is damaged"):
            compare(a=base, b=str(tmp_path / "task"), out=out)
    for text, said in (("[1", "line 1"), ('{"results": 3}', "is damaged"), ("[]", "not a JSON object")):
        (tmp_path / "task/eval.json").write_text(text)
        with pytest.raises(InputError, match=said):
            compare(a=base, b=str(tmp_path / "task"), out=out)
    assert not Path(out).exists()


def test_each_policy_is_as_late_as_it_was_measured(write: Write, tmp_path: Path) -> None:
    folders = [write(name, 30, measured=late) for name, late in (("quick", 0.05), ("slow", 0.31))]
    for folder, late in zip(folders, (0.05, 0.31), strict=True):
        path = Path(folder) / "eval.json"
        report = json.loads(path.read_text())
        path.write_text(json.dumps(report | {"results": [r | {"delay": late} for r in report["results"]]}))
    compare(a=folders[0], b=folders[1], out=str(tmp_path / "out"))
    row = rows(tmp_path / "out")[0]
    assert (row["pairs"], row["delay"], row["a"]["delay"], row["b"]["delay"]) == (40, "measured", 0.05, 0.31)
