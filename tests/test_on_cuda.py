"""A GPU's policy has all of its tensors there, and says what the CPU's says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOY
from fake_cuda import OnCuda, fake_cuda
from test_inference import observe

from vla.benchmarks import inference
from vla.benchmarks.inference import Machine, bench_inference
from vla.benchmarks.inference_shapes import make
from vla.evaluation.vlm.answerer import BackboneAnswerer, open_answerer
from vla.models.vla import VLA
from vla.policies.load import load_realtime
from vla.policies.vla import VlaPolicy
from vla.types import ActionChunk, RTCPrefix


def chunks(policy: VlaPolicy) -> list[ActionChunk | None]:
    """The last are of what was captured for those before."""
    found, prefix = list[ActionChunk | None](), RTCPrefix(np.zeros((2, 1, len(TOY.action))))
    for given in (None, prefix, prefix):
        torch.manual_seed(0)
        found += policy.predict_batch(observe(2), prefix=given)
    return found


@pytest.mark.parametrize("head", ["parallel", "bins", pytest.param("text", marks=pytest.mark.slow), "l1", "flow"])
def test_an_engines_chunks_are_those_of_the_cpu(
    head: str, make_model: Callable[..., VLA], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, model = chunks(VlaPolicy(make_model(head=head, points=2))), make_model(head=head, points=2)
    with fake_cuda(monkeypatch):
        said = chunks(VlaPolicy(model.to("cuda"), engine="float32"))
    for one, other in zip(said, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            np.testing.assert_allclose(one.actions, other.actions, atol=1e-3)


@pytest.mark.parametrize("head", ["bins", "flow"])
def test_graphs_are_of_as_many_images_as_a_row_has(
    head: str, make_model: Callable[..., VLA], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an episode's start there are fewer past frames, and rows of a batch need not have as many."""

    def said(model: VLA, engine: str | None) -> list[ActionChunk | None]:
        assert model.processor.head is not None
        robot = replace(model.processor.robot(), history=(6, 3))
        model.processor = model.processor.with_robots([robot], model.processor.head.settings, "numbers")
        policy, found = VlaPolicy(model, engine=engine), list[ActionChunk | None]()
        past = [({}, {}), ({}, observe(1, 5)[0].images), (observe(1, 4)[0].images, observe(1, 5)[0].images)]
        for chosen in ([0], [1], [2], [0], [2], [0, 1], [2, 2], [1, 0]):
            torch.manual_seed(0)
            rows = observe(len(chosen), chosen[0])
            found += policy.predict_batch([replace(o, past=past[n]) for o, n in zip(rows, chosen, strict=True)])
        return found

    wanted, model = said(make_model(head=head), None), make_model(head=head)
    with fake_cuda(monkeypatch):
        found = said(model.to("cuda"), "float32")
    assert len(found) == len(wanted) == 11
    for one, other in zip(found, wanted, strict=True):
        assert one is not None and other is not None
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-3)


def test_what_is_mixed_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch):
        there = torch.ones(3).to("cuda")
        assert there.device.type == "cuda" and (2 * there).sum().item() == 6
        with pytest.raises(RuntimeError, match="one device"):
            there + torch.ones(3)


def test_checkpoints_are_put_there(
    tmp_path: Path, make_model: Callable[..., VLA], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(points=2).save_pretrained(tmp_path / "model")
    seen = observe(1)[0]
    with fake_cuda(monkeypatch):
        policy = load_realtime(str(tmp_path / "model"))
        assert all(isinstance(value, OnCuda) for value in policy.model.state_dict().values())
        assert policy.predict(seen) is not None
        answerer = open_answerer(str(tmp_path / "model"))
        assert isinstance(answerer, BackboneAnswerer) and answerer.model.device.type == "cuda"
        assert len(answerer(["what color?"], [seen.images], 4, "")) == 1
        images, texts = answerer.embed([seen.images], ["red"])
    assert np.isfinite(images).all() and np.isfinite(texts).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["nano", "smolvla tiny", "pi0 tiny"])
def test_the_benchmark_of_inference_runs_there(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "of", lambda *_: Machine(1e9, 1e12))
    monkeypatch.setattr(inference, "WARM", 1)
    monkeypatch.setattr(inference, "make", lambda shape, device: make(shape, torch.device("cpu")).to(device))
    with fake_cuda(monkeypatch):
        table = bench_inference([shape], calls=1)
    assert {row["by"] for row in table.rows} >= {"vla bfloat16", "generate"}
    assert [target.name for target in table.targets if "same weights" not in target.name] == []
