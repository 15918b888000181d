"""What a recipe tells of its stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from test_contrastive_stage import options
from test_preference_train import colors

from vla.errors import InputError
from vla.evaluation.vlm.probes.registry import PROBES
from vla.models.vla import VLA
from vla.training.run import train
from vla.training.run_options import RunOptions
from vla.training.stage_report import START


@pytest.mark.slow  # three stages with every probe before and after
def test_every_probe_is_put_before_and_after_each_stage(
    make_model: Callable[..., VLA], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(robot=False).save_pretrained(tmp_path / "start")
    stages = {"instruct": {"plan": {"freeze": ["vision"]}}, "preference": {"preference": {"beta": 0.5}}}
    given = options(
        colors(tmp_path / "s.zarr"),
        tmp_path / "run",
        backbone=str(tmp_path / "start"),
        stages=stages,
        probe_scenes=dict.fromkeys(PROBES, 2),
    )
    train(RunOptions(**given))
    told = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert list(told["stages"]) == [START, *stages]
    for stage in told["stages"].values():
        assert stage["probes"].keys() == {"vqa", *PROBES}
        (accuracy,) = stage["probes"]["vqa"]["scores"].values()
        low, high = accuracy["ci95"]
        assert 0 <= low <= accuracy["value"] <= high <= 1
    for before, after in pairwise(told["stages"].values()):
        for name, probe in after["probes"].items():
            for label, score in probe["scores"].items():
                was, (low, high) = before["probes"][name]["scores"][label]["value"], score["change"]["ci95"]
                assert low <= (change := score["change"]["value"]) <= high or low == high
                assert change == score["value"] - was
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<svg" in page and all(f"<h2>{name}</h2>" in page for name in ("vqa", *PROBES))
    for stage in told["stages"]:
        assert f'href="{stage}/probes.html"' in page and (tmp_path / "run" / stage / "probes.html").is_file()

    # The same again measures nothing, and tells the same.
    monkeypatch.setattr("vla.training.stage_report.open_answerer", None)
    train(RunOptions(**given))
    assert json.loads((tmp_path / "run" / "stages.json").read_text()) == told


def test_an_unknown_probe_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    given = options(
        colors(tmp_path / "s.zarr"), tmp_path / "run", backbone="nano", stages={"one": {}}, probe_scenes={"chair": 2}
    )
    with pytest.raises(InputError, match="unknown probe 'chair'"):
        train(RunOptions(**given))
    assert not (tmp_path / "run").exists()
