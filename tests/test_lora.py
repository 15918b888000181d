"""Adapters: nothing at the start, merged when saved, and exact when resumed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import embed, make_rows
from test_training import demonstrations, mixture, plan, questions
from tiny_families import MODELS, config_of
from torch import Tensor

from vla.errors import InputError
from vla.models.backbone_inputs import DecoderInput
from vla.models.backbones.build import build
from vla.models.vla import VLA
from vla.training.cotrain import train
from vla.training.lora import adapt, inject, merged
from vla.training.optimizer import Optimizers, freeze

Models = Callable[..., VLA]


def loss(model: VLA) -> Tensor:
    return model(model.processor.batch([*demonstrations(), *questions()]))[0]


def trained(model: VLA) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def perturbed(model: VLA) -> VLA:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


EVERY = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
SEEING = {"1", "3", "pwconv1", "pwconv2"}


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        ("all-linear", EVERY | SEEING),
        (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        (["self_attn.q_proj", "pwconv1"], {"q_proj", "pwconv1"}),
        (r"language\..*", EVERY),
        (r"(vision|connector)\..*", SEEING),
    ],
)
def test_an_adapted_model_begins_as_its_base_and_only_adapters_rows_and_head_learn(
    make_model: Models, targets: Any, adapted: set[str]
) -> None:
    model = make_model()
    expected = loss(model)
    adapt(model, 4, 8, targets)
    assert torch.equal(loss(model), expected)
    loss(model).mean().backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None}
    assert reached == trained(model)
    layers = {n.split(".lora_")[0].rpartition(".")[2] for n in reached if ".lora_" in n}
    assert layers == adapted
    rest = {n for n in reached if ".lora_" not in n}
    rows = {"backbone.language.model.embed_tokens.new_rows", "backbone.language.lm_head.new_rows"}
    assert rest == rows | {n for n in reached if n.startswith(("action_position_embedding.", "conditioning_mlp."))}


@pytest.mark.parametrize("tied", [False, True])
def test_merged_weights_are_those_of_the_adapted_model(make_model: Models, tied: bool) -> None:
    model, plain = make_model(), make_model()
    if tied:
        for one in (model, plain):
            one.backbone.language.lm_head.weight = one.backbone.language.model.embed_tokens.weight
    adapt(model, 4, 8)
    perturbed(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    weights = merged(model, {n: p.detach() for n, p in model.named_parameters()})
    lacking = plain.load_state_dict(weights, strict=False)
    assert not lacking.unexpected_keys
    assert lacking.missing_keys == (["backbone.language.lm_head.weight"] if tied else [])
    torch.testing.assert_close(loss(plain), loss(model), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    same = {n: p.detach() for n, p in plain.named_parameters()}
    assert merged(plain, same).keys() == same.keys()


@pytest.mark.parametrize("name", ["smolvlm", "mllama", "idefics", "paligemma"])
def test_rows_of_a_released_family_are_said_by_the_merged_weights(make_model: Models, name: str) -> None:
    model = make_model()
    body: Any = build(config_of(name))
    body.add_token_embeddings(3)
    plain: Any = build(body.config)
    plain.load_state_dict(body.state_dict())
    model.backbone, model.text_vocab = body.eval(), body.vocab_size - 3
    adapt(model, 2)
    perturbed(model)
    weights = merged(model, {n: p.detach() for n, p in model.named_parameters() if n.startswith("backbone.")})
    plain.load_state_dict({n.removeprefix("backbone."): w for n, w in weights.items()}, strict=False)
    ids = torch.tensor([[5, 6, body.vocab_size - 2, 7, body.vocab_size - 1]])
    mask, hidden = torch.ones(1, 5, dtype=torch.bool), torch.randn(1, 5, body.hidden_size)
    torch.testing.assert_close(plain.embed_tokens(ids), body.embed_tokens(ids))
    torch.testing.assert_close(plain.logits(hidden), body.logits(hidden), atol=1e-5, rtol=1e-5)
    told = plain.embed_tokens(ids).detach()
    found, wanted = (b.forward(DecoderInput(told, mask, b.new_cache()))[0] for b in (plain.eval(), body))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", ["parallel", "flow"])
def test_a_run_saves_the_merged_model_and_resumes_exactly(make_model: Models, tmp_path: Path, head: str) -> None:
    def adapted(seed: int) -> VLA:
        model = make_model(head=head, seed=seed)
        adapt(model, 4)
        return model

    whole = plan(steps=4, evaluate_every=2, lr=1e-2, ema=0.5)
    ours = adapted(1)
    train(ours, mixture(), whole, tmp_path / "a")
    saved = VLA.load(tmp_path / "a/step-00000004")
    assert not [name for name in saved.state_dict() if "lora" in name or "new_rows" in name]
    torch.manual_seed(0)
    expected = loss(ours.eval())  # its weights are the average now
    torch.manual_seed(0)
    torch.testing.assert_close(loss(saved), expected, atol=1e-5, rtol=1e-5)

    def stop(_: VLA) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return {}

    assert train(adapted(1), mixture(), whole, tmp_path / "b", stop).step == 2
    resumed = adapted(2)
    assert train(resumed, mixture(), whole, tmp_path / "b").finished
    for name, weight in ours.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name
    with pytest.raises(InputError, match="of another model"):
        train(make_model(head=head), mixture(), plan(steps=5), tmp_path / "b")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_family_is_adapted_whole_and_read_through_its_adapters(name: str) -> None:
    """An adapter that a layer of torch's own reads past would change nothing."""
    body: Any = build(config_of(name)).eval()
    inject(body, 2, 4)
    adapters = {n.partition(".lora_A")[0]: p for n, p in body.named_parameters() if ".lora_A." in n}
    parts = {p: {id(m) for m in module.modules()} for p, module in body.freezable_modules().items()}
    found = {p for n in adapters for p, inside in parts.items() if id(body.get_submodule(n)) in inside}
    assert found >= {"vision", "language"}
    for n, p in body.named_parameters():
        if ".lora_" in n:
            torch.nn.init.normal_(p, std=0.3)
        if "alpha" in n or n.endswith("_gate"):  # of cross-attention, which is shut at first
            torch.nn.init.constant_(p, 0.5)
    rows = make_rows(body)
    segments = (torch.arange(rows.ids.shape[1]) >= rows.prompt).long().expand(rows.ids.shape)
    embeds, vision = embed(body, rows)
    hidden, _ = body.forward(DecoderInput(embeds, rows.mask, vision=vision, segments=segments))
    hidden.square().mean().backward()
    unread = [n for n, p in adapters.items() if p.grad is None or not p.grad.any()]
    # The last layers of some encoders are not read at all.
    assert all(any(word in n for word in ("vision", "visual", "qformer")) for n in unread), unread


def test_new_rows_learn_at_the_heads_rate(make_model: Models) -> None:
    """Of an embedding that trains whole, at a fifth of the rate; frozen; and beside adapters."""
    moved = {}
    for name, lr_multipliers, frozen in (
        ("whole", {"language": 0.2}, ()),
        ("plain", {}, ()),
        ("frozen", {"language": 0.2}, ("language",)),
    ):
        model = make_model(smoothing=0.0)
        before = {n: w.detach().clone() for n, w in zip("io", model.backbone.vocab_weights(), strict=True)}
        freeze(model, frozen)
        optimizer = Optimizers(model, 0.1, lr_multipliers, "adamw")
        loss(model).mean().backward()
        optimizer.step(1e-3)
        after = merged(model, dict(model.named_parameters()))
        names = ("backbone.language.model.embed_tokens.weight", "backbone.language.lm_head.weight")
        moved[name] = [after[long].detach() - before[n] for n, long in zip("io", names, strict=True)]
    count = 257
    for whole, plain, still in zip(*moved.values(), strict=True):
        torch.testing.assert_close(whole[-count:], plain[-count:], atol=2e-6, rtol=1e-3)
        torch.testing.assert_close(whole[:-count] / 0.2, plain[:-count], atol=2e-6, rtol=1e-3)
        assert not still[:-count].any()
        # What is added decays by itself.
        torch.testing.assert_close(still[-count:], plain[-count:], atol=3e-4, rtol=0)
    with pytest.raises(InputError, match="freeze"):
        Optimizers(make_model(), 0.0, {"language": 0.0})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rank": 0}, "rank"),
        ({"targets": ["query"]}, "no linear layers query"),
        ({"targets": "q_proj"}, "list"),
        ({"targets": "("}, "is not a regular expression"),
    ],
)
def test_wrong_adapters_are_named(make_model: Models, options: dict[str, Any], named: str) -> None:
    model = make_model()
    with pytest.raises(InputError, match=named):
        adapt(model, **options)
    assert trained(model) == {n for n, _ in model.named_parameters()}
