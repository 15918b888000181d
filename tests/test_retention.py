"""What a checkpoint must keep: probes and benchmarks whose drop rejects it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_run import options, stores

from vla.errors import InputError
from vla.evaluation.vlm.answerer import Answerer
from vla.evaluation.vlm.probes.probe import ProbeResult
from vla.evaluation.vlm.probes.registry import PROBES
from vla.models.vla import VLA
from vla.training.checkpoint_gate import choose
from vla.training.regression_gates import RegressionGates
from vla.training.run import train
from vla.training.run_options import RunOptions
from vla.types import Episode

pytestmark = pytest.mark.usefixtures("one_thread")
SCORES = st.lists(
    st.fixed_dictionaries(
        {"vqa": st.floats(0, 1), "action_error": st.floats(0, 1)}, optional={"retention": st.floats(-1, 1)}
    ),
    min_size=1,
    max_size=8,
)


@given(SCORES, st.floats(0, 0.2))
def test_what_was_not_retained_is_never_chosen(evaluations: list[dict[str, float]], margin: float) -> None:
    kept = [e for e in evaluations if e.get("retention", 0) >= 0]
    index = choose(evaluations, margin)
    assert (index is None) == (not kept)
    if index is not None:
        assert evaluations[index] in kept
        # Among these the gate is as it was.
        plain = [{k: v for k, v in e.items() if k != "retention"} for e in evaluations]
        candidates = [i for i, e in enumerate(evaluations) if e in kept]
        assert index == choose(plain, margin, candidates)


def says(monkeypatch: pytest.MonkeyPatch, name: str, values: Sequence[float]) -> None:
    """The probe of that name has these values, one after the other."""
    left = iter(values)

    def run(answerer: Answerer, n: int, seed: int, baseline: bool = True) -> ProbeResult:
        assert not baseline
        return ProbeResult({"scores": {"main": {"value": next(left)}, "other": {"value": 0.0}}}, {}, {})

    monkeypatch.setitem(PROBES, name, run)  # type: ignore[arg-type]


def test_the_one_that_fell_the_most_counts(monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., VLA]) -> None:
    model = make_model(robot=False).train()
    says(monkeypatch, "pope-sim", [0.9, 0.85, 0.95])
    says(monkeypatch, "chair-sim", [0.2, 0.1, 0.5])  # less is better
    kept = RegressionGates(model, {"pope-sim": {"margin": 0.02}, "chair-sim": {"margin": 0.1, "n": 3}})
    assert kept(model) == {"pope-sim": 0.85, "chair-sim": 0.1, "retention": pytest.approx(-0.03)}
    assert kept(model)["retention"] == pytest.approx(-0.2)
    assert model.training and model.device.type == "cpu"


@pytest.mark.parametrize(("values", "best"), [([0.9, 0.5, 0.5], False), ([0.9, 0.5, 0.89], True)])
def test_training_rejects_a_checkpoint_that_fell(
    values: list[float],
    best: bool,
    make_episode: Callable[..., Episode],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    says(monkeypatch, "counting", values)
    data = {"first": stores(make_episode, tmp_path)["first"]}
    plan = {"steps": 2, "batch_size": 3, "precision": "fp32", "evaluate_every": 1}
    found = train(
        RunOptions(**options(data, tmp_path / "out", plan=plan, regression_gates={"counting": {"margin": 0.02}}))
    )
    assert [e["counting"] for e in found.evaluations] == values[1:]
    assert (found.best is not None) == best
    assert found.best is None or found.best.name == "step-00000002"


def test_a_real_probe_and_a_benchmark_are_measured(tmp_path: Path, make_model: Callable[..., VLA]) -> None:
    rows = [{"question_id": i, "image": "a.png", "text": "?", "label": label} for i, label in ((1, "yes"), (2, "no"))]
    (tmp_path / "coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    wanted = {"detail": {"margin": 0.1, "n": 2}, "pope": {"margin": 0.1, "data": str(tmp_path)}}
    model = make_model(robot=False)
    kept = RegressionGates(model, wanted)
    assert kept.start.keys() == wanted.keys()
    assert kept(model) == kept.start | {"retention": pytest.approx(0.1)}


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"vqa": {"margin": 0.1}}, "neither a probe"),
        ({"pope": {"margin": 0.1}}, "official files"),
        ({"pope-sim": {"margin": -0.1}}, "0 or more"),
        ({"pope": {"margin": 0.1, "data": "nowhere"}}, "coco_pope"),
        ({"pope-sim": {"n": 3}}, "regression_gates.pope-sim"),
    ],
)
def test_what_cannot_be_retained_is_said(
    wanted: dict[str, dict[str, object]], reason: str, make_model: Callable[..., VLA]
) -> None:
    with pytest.raises(InputError, match=reason):
        RegressionGates(make_model(robot=False), wanted)
