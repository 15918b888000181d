"""The memory benchmark: the formula against what autograd keeps, and what is held against a real optimizer."""

from __future__ import annotations

import pytest
import torch

from vla.benchmarks import memory
from vla.training.lora import inject


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if i else []) for i, name in enumerate(memory.SHAPES)]
)
def test_the_formula_is_what_is_measured(name: str) -> None:
    table = memory.bench_memory({name: memory.SHAPES[name]})
    assert all(target.met for target in table.targets)
    full, again, lora, lora_again, fsdp, fsdp_again = table.rows
    for row in table.rows:
        assert abs(row["check"] - 1) < memory.TOLERANCE
        assert row["total"] == pytest.approx(sum(row[k] for k in (*memory.STATE, "activations")))
    assert again["activations"] < full["activations"] and lora_again["activations"] < lora["activations"]
    assert fsdp["weights"] * memory.RANKS == pytest.approx(full["weights"])
    assert lora["moments"] < full["moments"] / 20
    assert fsdp_again["total"] < min(again["total"], fsdp["total"])


@pytest.mark.parametrize("lora", [False, True])
def test_what_is_held_is_what_an_optimizer_holds(lora: bool) -> None:
    model = memory.SHAPES["0.5B, SmolVLM2"].backbone(memory.NARROWER)
    if lora:
        inject(model, 4, 8)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [m for state in optimizer.state.values() for m in state.values() if m.ndim]
    found = {
        "weights": sum(p.nbytes for p in model.parameters()),
        "gradients": sum(p.grad.nbytes for p in trained if p.grad is not None),
        "moments": sum(m.nbytes for m in moments),
    }
    held = memory.held(model, 1)
    assert {k: held[k] * memory.GIB for k in found} == pytest.approx(found)
