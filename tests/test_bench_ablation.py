"""The ablation, small: each recipe is trained, rolled out and asked, and a second start only reads what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla.benchmarks import ablation


@pytest.mark.slow  # five small trainings, each with its rollouts and probes
def test_every_recipe_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {name: ablation.RECIPES[name] for name in ("frozen backbone", "knowledge insulation")}
    monkeypatch.setattr(ablation, "RECIPES", chosen)
    small = {"episodes": 3, "scenes": 8, "steps": 1, "batch_size": 2, "evaluations": 1, "questions": 2, "probes": 2}
    table = ablation.bench_ablation(str(tmp_path), seeds=(0, 1), **small)
    assert [row["recipe"] for row in table.rows] == ["before", *chosen]
    before, frozen, _ = table.rows
    assert before["success"] == "" and "±" not in before["VQA"]
    assert "±" in frozen["success"] and "±" in frozen["VQA"] and "±" in frozen["pope-sim"]
    # A backbone that stays answers as it did.
    assert all(frozen[name] == f"{before[name]} ±0.00" for name in ("VQA", "counting", "modality-gap"))
    monkeypatch.setattr(ablation, "train", None)
    assert ablation.bench_ablation(str(tmp_path), seeds=(0, 1), **small).rows == table.rows
