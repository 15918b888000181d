"""The benchmark of forgetting, small: each variant starts from the same policy, and all from the same scenes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vla.benchmarks import forgetting


@pytest.mark.timeout(600)
@pytest.mark.slow  # four small trainings, each with its rollouts
def test_every_variant_is_trained_from_the_same_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"episodes": 3, "steps": 1, "new_steps": 1, "batch_size": 5, "evaluations": 1}
    table = forgetting.bench_forgetting(str(tmp_path), seeds=(0,), **small)
    assert [row["training"] for row in table.rows] == ["pick only, before", *forgetting.VARIANTS]
    for row in table.rows:
        assert 0 <= row["pick low"] <= row["pick"] <= row["pick high"] <= 1 and row["rollouts"] == 1
    assert table.rows[1]["place difference"] == 0 and table.rows[1]["place p"] == 1
    settings = json.loads((tmp_path / "replay-0.2-0/best/training.json").read_text())["settings"]
    assert settings["shares"] == {"replay_pick": 0.2, "robot": 0.8}
    assert settings["backbone"] == str(tmp_path / "pick-0")
    monkeypatch.setattr(forgetting, "train", None)
    assert forgetting.bench_forgetting(str(tmp_path), seeds=(0,), **small).rows == table.rows


def test_outcomes_are_compared_in_pairs() -> None:
    plain = {"pick": [True, False, False, False], "place": [True] * 4}
    row = forgetting._row("replay", {"pick": [True, True, True, False], "place": [True, True, False, True]}, plain)
    assert (row["pick"], row["pick difference"], row["pick p"]) == (0.75, 0.5, 0.5)
    assert row["place difference"] == -0.25 and row["place from"] < -0.25 < row["place to"]
