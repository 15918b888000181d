"""Layers that are recomputed or compiled: the same numbers and names, and less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_molmo
import test_qwen_vl
import torch
from backbones import make_rows, uncached
from test_cross_attention import make as make_flamingo
from test_cross_attention import open_gates
from test_training import demonstrations, questions
from tiny_families import MODELS, config_of
from torch import Tensor, nn

from vla.errors import InputError
from vla.models.backbones.build import build
from vla.models.vla import VLA
from vla.training.blocks import blocks, compile_blocks, recompute_blocks

CONFIGS = {name: config_of(name) for name in MODELS} | {
    "qwen-vl": test_qwen_vl.CONFIG,
    "molmo": test_molmo.config_of("qwen2"),
}


def saved_bytes(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What `run` returns, and the bytes that autograd keeps until its backward pass, each once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    return result, sum(kept.values())


def gradients(model: nn.Module, run: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(0)  # of dropout
    loss = run()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same_when_recomputed(model: nn.Module, run: Callable[[], Tensor], tolerance: float = 1e-6) -> None:
    model.train()
    names = list(model.state_dict())
    loss, expected = gradients(model, run)
    # Weights, and what is outside of the layers, are kept in either case.
    _, before = saved_bytes(run)
    recompute_blocks(model)
    again, found = gradients(model, run)
    _, after = saved_bytes(run)
    torch.testing.assert_close(again, loss, rtol=0, atol=0)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m)
    assert after < before
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_has_layers_that_can_be_recomputed(name: str) -> None:
    backbone: Any = build(CONFIGS[name])
    rows = make_rows(backbone)
    layered = {id(p) for block in blocks(backbone) for p in block.parameters()}
    for part in ("vision", "language") if name != "mllama" else ("language",):
        assert layered & {id(p) for p in backbone.freezable_modules()[part].parameters()}, part
    same_when_recomputed(backbone, lambda: uncached(backbone, rows)[rows.mask].logsumexp(-1).mean())


@pytest.mark.parametrize("language", ["llama", "mpt"])
def test_cross_attention_before_a_layer_is_a_layer(language: str) -> None:
    backbone = make_flamingo(language)
    open_gates(backbone)
    rows = make_rows(backbone)
    same_when_recomputed(backbone, lambda: uncached(backbone, rows, language != "mpt")[rows.mask].logsumexp(-1).mean())


@pytest.mark.parametrize("head", ["parallel", "bins", "l1", "flow"])
def test_a_policy_learns_the_same_also_from_its_cache(make_model: Callable[..., VLA], head: str) -> None:
    model = make_model(head=head)
    assert {type(b).__name__ for b in blocks(model)} == {
        "LlamaDecoderLayer",
        *(["ActionExpertLayer"] * (head == "flow")),
    }
    batch = model.processor.batch([*demonstrations(), *questions()])

    def loss() -> Tensor:
        torch.manual_seed(0)  # of the flow's noise
        return model(batch)[0].mean()

    same_when_recomputed(model, loss)


def test_layers_inside_layers_are_one() -> None:
    layer = nn.TransformerEncoderLayer(8, 2)
    layer.register_module("inner", nn.TransformerEncoderLayer(8, 2))
    assert blocks(nn.Sequential(layer, nn.Linear(8, 8))) == [layer]
    assert blocks(nn.Linear(8, 8)) == []


@pytest.mark.slow
# The compiler meets warnings of its own.
@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_learn_the_same(make_model: Callable[..., VLA]) -> None:
    model = make_model().train()
    batch = model.processor.batch([*demonstrations(), *questions()])
    names = list(model.state_dict())
    loss, expected = gradients(model, lambda: model(batch)[0].mean())
    compile_blocks(model)
    recompute_blocks(model)
    again, found = gradients(model, lambda: model(batch)[0].mean())
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names


def test_layers_that_fill_a_cache_are_not_compiled(make_model: Callable[..., VLA]) -> None:
    with pytest.raises(InputError, match="plan.compile=false"):
        compile_blocks(make_model(head="flow"))
