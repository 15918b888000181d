"""The benchmark of training, small: each side trains in its turn, and the figures are held against the targets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contestant_loops import count, fail

from vla.benchmarks import train as benchmark
from vla.benchmarks.train_contestant import Contestant
from vla.benchmarks.train_shapes import TINY, Shape, ours
from vla.training.cotrain import train
from vla.training.train_config import TrainConfig


def test_turns_follow_one_another_and_nothing_happens_between_them(tmp_path: Path) -> None:
    side = Contestant(count, 7, tmp_path / "log", tmp_path / "number")
    try:
        assert [side.turn()["flops"] for _ in range(3)] == [7, 14, 21]
        measured = side.turn()
        assert measured["s"] > 0 and measured["cpu"] >= 0
        assert (tmp_path / "number").read_text() == "28"
    finally:
        side.close()
    assert not side.alive


def test_a_loop_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        Contestant(fail, 1, tmp_path / "log")


@pytest.mark.parametrize("shape", TINY, ids=lambda shape: shape.policy)
def test_every_tiny_shape_trains(shape: Shape, pick_demonstrations: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, mixture = ours(shape, pick_demonstrations)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    outcome = train(model, mixture, TrainConfig(1, 2, ema=0.0, optimizer="adamw"), tmp_path / "run")
    assert outcome.finished
    assert any((weight != before[name]).any() for name, weight in model.named_parameters())


def test_the_peak_is_measured() -> None:
    assert benchmark.gemm_peak(torch.float32, size=64, seconds=0.01) > 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", TINY, ids=lambda shape: shape.policy)
def test_both_loops_are_measured(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("num2words")  # what LeRobot's SmolVLA needs
    monkeypatch.setattr(benchmark, "WARM", 1)
    table = benchmark.bench_train(
        [shape], ("images",), episodes=1, batch_size=2, steps=1, turns=2, workers=0, precision="fp32"
    )
    assert [row["loop"] for row in table.rows] == ["vla", "vla as by default", "lerobot images"]
    for row in table.rows:
        assert 0 <= row["of it data ms"] < row["step ms"] and 0 < row["MFU"] < 1.5
    mine, default, theirs = (row["GFLOP/sample"] for row in table.rows)
    assert 0.5 < mine / theirs < 2 and default >= mine
    assert [target.target for target in table.targets] == [benchmark.RATIO]
