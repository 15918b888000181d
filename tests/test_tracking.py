"""Trackers get what TensorBoard gets, without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_training import mixture, plan

from vla.errors import InputError
from vla.models.vla import VLA
from vla.training.cotrain import train
from vla.training.tracking import tracked
from vla.training.train_config import TrainConfig

Models = Callable[..., VLA]


@pytest.mark.slow
def test_wandb_keeps_a_run_offline_in_its_folder(tmp_path: Path) -> None:
    """In a process of its own, since wandb leaves a service behind; what it wrote is read back by wandb itself."""
    code = f"""
from pathlib import Path
from vla.training.tracking import tracked
with tracked("wandb", Path({str(tmp_path)!r}), {{"lr": 0.1}}) as tracker:
    tracker.scalars({{"loss/robot": 2.5}}, 10)
    tracker.scalars({{"heldout/vqa": 0.5}}, 10)
    tracker.scalars({{"loss/robot": 1.5}}, 20)
"""
    offline = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DISABLE_GIT": "true"}
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    store, seen = DataStore(), list[dict[str, Any]]()
    store.open_for_scan(str(file))
    while data := store.scan_data():
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            seen.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
    store.close()
    assert [(row["_step"], row["loss/robot"]) for row in seen] == [(10, 2.5), (20, 1.5)]
    assert seen[0]["heldout/vqa"] == 0.5


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_training_is_tracked(name: str, make_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[dict[str, Any]] = []
    told: dict[int, set[str]] = {}
    ended: list[bool] = []
    fake = SimpleNamespace(
        init=lambda **given: began.append(given),
        log=lambda values, step: told.setdefault(step, set()).update(values),
        finish=lambda: ended.append(True),
    )
    monkeypatch.setattr("vla.training.tracking.import_module", lambda _: fake)
    monkeypatch.setattr("vla.training.tracking.find_spec", lambda _: object())
    train(make_model(), mixture(), plan(steps=10, evaluate_every=5, log=name), tmp_path, lambda _: {"vqa": 0.5})
    assert [one["config"]["steps"] for one in began] == [10] and ended == [True]
    assert {"loss/robot", "share/loss/vqa", "heldout/vqa"} <= told[10] and "heldout/vqa" in told[5]


def test_what_cannot_track_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="choose of wandb, trackio"):
        TrainConfig(1, log="mlflow")
    monkeypatch.setattr("vla.training.tracking.find_spec", lambda _: None)
    with pytest.raises(InputError, match="uv pip install trackio"):
        TrainConfig(1, log="trackio")
    monkeypatch.setattr("vla.training.tracking.find_spec", lambda _: object())

    def refuse(**_: Any) -> None:
        raise RuntimeError("no\napi key")

    monkeypatch.setattr("vla.training.tracking.import_module", lambda _: SimpleNamespace(init=refuse))
    with pytest.raises(InputError, match="no api key"), tracked("wandb", tmp_path, {}):
        pass
