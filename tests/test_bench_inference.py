"""The benchmark of inference, small."""

from __future__ import annotations

import pytest
import torch
from lerobot_policies import small_gemma

from vla.benchmarks import inference, inference_policies, lerobot_policies
from vla.benchmarks.inference import PARTS, Machine, bench_inference
from vla.benchmarks.inference_policies import Policy

LEROBOT = {
    "nano": (),
    "nano, 2 past frames": (),
    "smolvla tiny": ("lerobot smolvla",),
    "pi0 tiny": ("lerobot pi0_fast",),
}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow one, so that bounds are above what is measured, and nothing is measured for long."""
    monkeypatch.setattr(Machine, "of", lambda *_: Machine(1e9, 1e12))
    monkeypatch.setattr(inference, "WARM", 1)


@pytest.mark.parametrize("name", [*[*LEROBOT][:-1], pytest.param("pi0 tiny", marks=pytest.mark.slow)])
def test_each_part_is_measured_and_bounded(name: str) -> None:
    table = bench_inference([name], calls=2)
    own = [row for row in table.rows if row["model"] == name]
    ours = {row["part"]: row for row in own if row["by"] == "vla float32"}
    assert tuple(ours) == PARTS
    assert all(0 < row["p50 ms"] <= row["p99 ms"] and row["bound ms"] > 0 for row in ours.values())
    assert ours["total"]["bound ms"] == pytest.approx(sum(ours[part]["bound ms"] for part in PARTS[:-1]))
    others = {row["by"] for row in own} - {"vla float32"}
    assert others == {"vla without an engine", "generate", *LEROBOT[name]}
    targets = {target.name: target for target in table.targets}
    assert [*targets] == (["nano: time of generate / ours"] if name == "nano" else [])


@pytest.mark.parametrize("name", ["smolvla-tiny-weights", "pi0-weights", "pi05-weights"])
def test_the_same_weights_give_the_same_chunk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lerobot.policies.pi0 import modeling_pi0
    from lerobot.policies.pi05 import modeling_pi05

    for modeling in (modeling_pi0, modeling_pi05):
        small_gemma(modeling, monkeypatch)
    if name.startswith("pi"):
        policy = Policy(name.removesuffix("-weights"), {"image_resolution": (28, 28)})
        monkeypatch.setitem(inference_policies.POLICIES, name, policy)
    monkeypatch.setattr(lerobot_policies, "WORDS", 64)
    table = bench_inference([name], calls=2)
    assert {row["by"] for row in table.rows} == {"lerobot", "vla without an engine", "vla float32"}
    targets = {target.name: target for target in table.targets}
    assert targets.pop(f"{name}: difference of the chunks").met
    assert [*targets] == [f"{name}: time of LeRobot / ours"]


def test_bound_is_that_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """With operations for nothing, int8 weights take a quarter of the time of float32 ones."""
    monkeypatch.setattr(Machine, "of", lambda *_: Machine(1e9, 1e30))
    bounds = {}
    for precision in ("float32", "int8"):
        rows = bench_inference(["nano"], precision, calls=1, others=False).rows
        bounds[precision] = next(row["bound ms"] for row in rows if row["part"] == "decode")
    assert 3.5 < bounds["float32"] / bounds["int8"] <= 4.0
    assert torch.get_default_dtype() == torch.float32
