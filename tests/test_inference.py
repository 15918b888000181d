"""An engine gives the chunks of the plain model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vla.benchmarks.inference_shapes import SHAPES, make, observation
from vla.benchmarks.train_shapes import TINY
from vla.errors import InputError
from vla.models.action_heads.bins import BinsHead
from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones.build import build as build_backbone
from vla.models.engine.backbone import FusedBackbone, decoder_of
from vla.models.engine.engine import Engine, padded
from vla.models.engine.graphs import Graphs
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.types import Observation, RTCPrefix

HEADS: dict[str, dict[str, Any]] = {
    "parallel": {"head": "parallel"},
    "bins": {"head": "bins"},
    "points": {"head": "bins", "points": 2},
    "text": {"head": "text"},
    "l1": {"head": "l1"},
    "bidirectional": {"head": "l1", "bidirectional": True},
    "flow": {"head": "flow"},
    "adaptive": {"head": "flow", "adaptive": True},
    "insulated": {"head": "flow", "knowledge_insulation": True, "tokens": "bins"},
}
Make = Callable[..., VLA]


def observe(count: int = 3, seed: int = 0) -> list[Observation]:
    """With instructions of different lengths, so that rows are padded."""
    rng = np.random.default_rng(seed)
    words = "lift the ring " * 3
    return [
        Observation(
            {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ("front", "wrist")},
            rng.normal(size=2).astype(np.float32),
            words[: 4 + 9 * i],
            0.0,
        )
        for i in range(count)
    ]


def build(make_model: Make, name: str, **more: Any) -> VLA:
    model = make_model(**HEADS[name], **more)
    with torch.no_grad():  # what begins at zero or one must count as well
        for key, value in model.named_parameters():
            if "norm" in key or "modulation" in key:
                value.add_(0.3 * torch.randn_like(value))
    return model


def same(first: Any, second: Any, tolerance: float = 1e-4) -> None:
    for one, other in zip(first, second, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, atol=tolerance)


@pytest.mark.parametrize("rows", (1, 3))
@pytest.mark.parametrize("fast", (False, True))
def test_drafted_bins_equal_those_decoded_one_at_a_time(
    make_model: Make, fast: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(make_model, "points")
    batch = model.processor.robot_prompt(observe(rows), model.processor.robot().name)
    passes = []
    decode_tokens = VLA._decode_tokens
    monkeypatch.setattr(
        VLA, "_decode_tokens", lambda self, *args: passes.append(args[-1]) or decode_tokens(self, *args)
    )
    for prefix in (None, RTCPrefix(np.random.default_rng(1).uniform(-1, 1, (rows, 2, 3)))):
        chunks = {}
        for draft_length in (1, 5, 8):
            monkeypatch.setattr(BinsHead, "draft_length", draft_length)
            passes.clear()
            decoder = Engine(model) if fast else model
            chunks[draft_length] = decoder.generate_actions(batch, prefix)[0]
            assert len(passes) <= (12 if prefix is None else 6)
        same(chunks[5], chunks[1])
        same(chunks[8], chunks[1])
    # Drafts of a head that repeats one bin are right: eight tokens a pass for one row, without drafts for several.
    for weight in model.backbone.vocab_weights():
        weight.data.zero_()
    passes.clear()
    model.generate_actions(batch)
    assert len(passes) == (2 if rows == 1 else 12)


@pytest.mark.parametrize("rows", (1, 3))
@pytest.mark.parametrize("name", HEADS)
def test_chunks_are_those_of_the_model(make_model: Make, name: str, rows: int) -> None:
    model = build(make_model, name)
    engine, robot = Engine(model), model.processor.robot()
    assert engine.fuses
    for seed in range(2):  # the cache is written over
        batch = model.processor.robot_prompt(observe(rows, seed), robot.name)
        for prefix in (None, RTCPrefix(np.random.default_rng(1).uniform(-1, 1, (rows, 2, robot.action_dim)))):
            (chunks, points), (expected, expected_points) = (m.generate_actions(batch, prefix) for m in (engine, model))
            same(chunks, expected)
            np.testing.assert_array_equal(points, expected_points)


FAMILIES = {str(shape.policy): shape for shape in TINY}
"""Language models of Llama, with shared key heads, and of Gemma, a prefix-LM."""


@pytest.mark.parametrize("padding", (False, True))
@pytest.mark.parametrize("name", FAMILIES)
def test_backbone_of_other_families(name: str, padding: bool) -> None:
    shape = FAMILIES[name]
    settings = {"image_token_id": 3, "image_size": shape.image_size, "mean": [0.5] * 3, "std": [0.5] * 3}
    model: Any = {"family": shape.model["model_type"], "model": shape.model, "attention": "eager"}
    plain: Any = build_backbone(model | settings).eval()  # type: ignore[attr-defined]
    with torch.no_grad():
        for key, value in plain.named_parameters():
            value.add_(0.1 * torch.randn_like(value)) if "norm" in key else value.mul_(3)
    decoder = decoder_of(plain)
    assert decoder is not None
    fast = FusedBackbone(plain, decoder, "float32", Graphs())
    ids = torch.randint(10, 100, (2, 20 + plain.tokens_per_image))
    ids[:, 4 : 4 + plain.tokens_per_image] = plain.image_token_id
    mask = torch.ones_like(ids, dtype=torch.bool)
    if padding:
        mask[1, :3] = False
    pixels, one = torch.randn(2, 1, 3, shape.image_size, shape.image_size), torch.ones(2, 1, dtype=torch.bool)
    got: list[list[torch.Tensor]] = []
    with torch.inference_mode():
        for backbone in (plain, fast):
            vision = backbone.encode_images(ImageInput(pixels, one))
            seen, cache = mask, backbone.new_cache()
            hidden, cache = backbone.forward(DecoderInput(backbone.embed(ids, vision), seen, cache, vision))
            steps = [hidden[:, -1], backbone.logits(hidden[:, -1])[:, 5:9]]
            for count in (1, 3, 80):  # more than there is room for
                seen = torch.nn.functional.pad(seen, (0, count), value=True)
                words = backbone.embed_tokens(torch.arange(20, 20 + count).expand(2, -1))
                hidden, cache = backbone.forward(DecoderInput(words, seen, cache, vision))
                # Keys of tokens that nothing looks at may differ.
                steps += [hidden, *(torch.where(seen[:, None, :, None], kept.keys, 0) for kept in cache.layers)]
            got.append(steps)
    for mine, expected in zip(got[1], got[0], strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("precision", ("bfloat16", "int8", "fp8"))
@pytest.mark.parametrize("name", ("l1", "flow", "adaptive"))
def test_lower_precision_is_close(make_model: Make, name: str, precision: str) -> None:
    model = build(make_model, name)
    batch = model.processor.robot_prompt(observe())
    exact, _ = model.generate_actions(batch)
    rounded, _ = Engine(model, precision).generate_actions(batch)
    off = np.mean(
        [np.abs(a - b).mean() for a, b in zip(exact, rounded, strict=True) if a is not None and b is not None]
    )
    assert off < 0.25 * np.std([chunk for chunk in exact if chunk is not None])


def test_rows_padded_further_say_the_same(make_model: Make) -> None:
    model = build(make_model, "flow")
    batch = model.processor.robot_prompt(observe())
    longer = padded(batch, 32, model.processor.pad)
    assert longer.input_ids.shape[1] % 32 == 0 and longer.input_ids.shape[1] > batch.input_ids.shape[1]
    engine = Engine(model)
    same(engine.generate_actions(longer)[0], model.generate_actions(batch)[0])


@pytest.mark.parametrize("name", ("smolvla tiny", "pi0 tiny"))
def test_flow_on_other_families(name: str) -> None:
    """With fewer heads of keys than of queries, in the backbone or in the expert, and after a prefix-LM's prompt."""
    model = make(SHAPES[name], torch.device("cpu"))
    batch = model.processor.robot_prompt([observation(model)])
    same(Engine(model).generate_actions(batch)[0], model.generate_actions(batch)[0])


def test_what_cannot_be_fused_works_as_it_is(make_model: Make) -> None:
    model = build(make_model, "bins")
    backbone: Any = model.backbone
    backbone.language.model.config.hidden_act = "relu"
    engine = Engine(model)
    batch = model.processor.robot_prompt(observe())
    assert not engine.fuses
    same(engine.generate_actions(batch)[0], model.generate_actions(batch)[0])


def test_policy_uses_the_engine(make_model: Make) -> None:
    model, prefix = build(make_model, "flow"), RTCPrefix(np.full((2, 3), 0.3, np.float32))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain, fast = VlaPolicy(model), VlaPolicy(model, engine="float32")
    for rtc_prefix in (None, prefix):
        one, other = (p.predict(observe(1)[0], prefix=rtc_prefix) for p in (plain, fast))
        assert one is not None and other is not None
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-4)
    assert fast.model is model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_unknown_precision(make_model: Make) -> None:
    with pytest.raises(InputError, match="int4"):
        Engine(make_model(), "int4")
