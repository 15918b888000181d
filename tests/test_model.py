from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import UInt8

from vla.errors import InputError
from vla.models.action_heads.decoding import median_bins
from vla.models.backbone_inputs import DecoderInput
from vla.models.processor import IGNORE, Processor
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.training.optimizer import freeze
from vla.types import Example, Observation, RTCPrefix

Models = Callable[..., VLA]
Views = Mapping[str, UInt8[np.ndarray, "h w 3"]]
TEXTS = ("lift the ring", "lift the blue cube that is left of the ring", "what")


def views(seed: int) -> Views:
    rng = np.random.default_rng(seed)
    return {camera: rng.integers(0, 256, (32, 32, 3), np.uint8) for camera in ("front", "wrist")}


def observations() -> list[Observation]:
    rng = np.random.default_rng(1)
    return [Observation(views(i), rng.uniform(-1, 1, 2), text, 0.5) for i, text in enumerate(TEXTS)]


def examples() -> list[Example]:
    rng = np.random.default_rng(2)
    robot = [
        Example(o.images, o.instruction, rng.uniform(0, 1, (4, 3)), o.state, source="robot") for o in observations()
    ]
    return [*robot, Example(views(7), "what color is the cube?", "red", source="vqa")]


@pytest.fixture(scope="module")
def model(make_model: Models) -> VLA:
    return make_model()


@torch.no_grad()
def whole_pass(model: VLA, observation: Observation, given: int = 0, **fields: Any) -> list[float]:
    """The bins that one training pass over a row without padding holds for the median, after `given` actions."""
    example = Example(observation.images, observation.instruction, np.zeros((4, 3)), observation.state, **fields)
    batch = model.processor.batch([replace(example, prefix_length=given)])
    hidden, _ = model.backbone.forward(DecoderInput(model._prefix(batch)[0], batch.attention_mask))
    asked = torch.nonzero(batch.labels[0] >= model.text_vocab)[:, 0] - 1
    return median_bins(
        model.backbone.logits(hidden[0, asked])[:, model.text_vocab : model.processor.action_query_token]
    ).tolist()


def decoded(model: VLA, bins: list[float]) -> Any:
    return model.processor.robot().bins.decode(np.array(bins), 4, 3)


@pytest.mark.parametrize("points", [0, 2])
def test_cached_and_padded_decoding_equals_the_training_pass(make_model: Models, points: int) -> None:
    model = make_model(points=points)
    batch = model.processor.robot_prompt(observations())
    assert not batch.attention_mask.all()
    chunks, said = model.generate_actions(batch)
    assert said.shape == (3, points, 2)
    for chunk, where, observation in zip(chunks, said, observations(), strict=True):
        fields = {"points": where.astype(np.float64)} if points else {}
        np.testing.assert_allclose(chunk, decoded(model, whole_pass(model, observation, **fields)), atol=1e-4)
    assert len({tuple(np.ravel(chunk)) for chunk in chunks if chunk is not None}) > 1


def test_a_point_is_said_as_likeliest(make_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(points=1)
    for token, expected in ((model.processor.points[30], 0.305), (model.processor.eos, -0.005)):
        row = F.one_hot(torch.tensor(token), model.backbone.vocab_size).float()
        monkeypatch.setattr(model.backbone, "logits", lambda hidden, row=row: row.expand(*hidden.shape[:-1], -1))
        _, said = model.generate_actions(model.processor.robot_prompt(observations()))
        np.testing.assert_allclose(said, expected, atol=1e-6)


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=40))
def test_the_median_bin_halves_the_probability(logits: list[float]) -> None:
    probability = torch.tensor(logits, dtype=torch.float64).softmax(-1)
    median = float(median_bins(torch.tensor([logits], dtype=torch.float64))[0])
    whole, part = divmod(median + 0.5, 1)
    below = probability[: int(whole)].sum() + (probability[int(whole)] * part if part else 0)
    assert float(below) == pytest.approx(0.5, abs=1e-6)


def test_padding_on_the_left_does_not_show(model: VLA) -> None:
    together = model.processor.robot_prompt(observations())
    alone = model.processor.robot_prompt(observations()[:1])
    with torch.no_grad():
        hidden = [
            model.backbone.forward(DecoderInput(model._prefix(b)[0], b.attention_mask))[0][0, -1]
            for b in (together, alone)
        ]
    torch.testing.assert_close(hidden[0], hidden[1], rtol=1e-4, atol=1e-5)


def test_a_batch_equals_its_rows(model: VLA) -> None:
    images = [{"front": views(i)["front"]} for i in range(3)]
    together = model.generate_text(model.processor.question_prompt(TEXTS, images), max_tokens=6)
    alone = [
        model.generate_text(model.processor.question_prompt([t], [v]), max_tokens=6)[0]
        for t, v in zip(TEXTS, images, strict=True)
    ]
    assert together == alone
    policy = VlaPolicy(model)
    batch = policy.predict_batch(observations())
    for chunk, observation in zip(batch, observations(), strict=True):
        one = policy.predict(observation)
        assert chunk is not None
        assert one is not None
        np.testing.assert_allclose(chunk.actions, one.actions, atol=1e-5)
        assert (chunk.start, chunk.dt) == (0.5, 0.1)


def test_the_loss_does_not_depend_on_the_company(model: VLA) -> None:
    with torch.no_grad():
        losses, rows, _ = model(model.processor.batch(examples()))
        for i, example in enumerate(examples()):
            alone, *_ = model(model.processor.batch([example]))
            torch.testing.assert_close(losses[rows == i], alone, rtol=1e-4, atol=1e-5)


QUESTIONS = (("what color is the cube?", "red"), ("where is it?", "12 34"), ("is the ring blue or red?", "blue"))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_independent_turns_cost_what_each_costs_alone(make_model: Models, attention: str) -> None:
    model = make_model()
    model.backbone.language.set_attn_implementation(attention)
    (prompt, target), *turns = QUESTIONS
    together = Example(views(3), prompt, target, turns=tuple(turns))
    alone = [Example(views(3), p, t) for p, t in QUESTIONS]
    with torch.no_grad():
        losses, rows, _ = model(model.processor.batch([alone[2], together, examples()[0]]))
        expected = torch.cat([model(model.processor.batch([e]))[0] for e in alone])
    torch.testing.assert_close(losses[rows == 1], expected, rtol=1e-4, atol=1e-5)


def test_turns_of_a_conversation_see_the_earlier_ones(model: VLA) -> None:
    (prompt, target), *turns = QUESTIONS
    talk = Example(views(3), prompt, target, turns=tuple(turns), conversation=True)
    with torch.no_grad():
        together, alone = (model(model.processor.batch([e]))[0] for e in (talk, replace(talk, conversation=False)))
    first = len(model.processor.batch([replace(talk, turns=())]).labels.unique()) - 1
    torch.testing.assert_close(together[:first], alone[:first], rtol=1e-4, atol=1e-5)
    assert not torch.isclose(together[first:], alone[first:], rtol=1e-3).all()


def test_save_and_load_are_equal_to_the_bit(model: VLA, tmp_path: Path) -> None:
    model.save(tmp_path)
    loaded = VLA.load(tmp_path)
    for (name, ours), (other, theirs) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs), name
    batch = model.processor.batch(examples())
    with torch.no_grad():
        assert torch.equal(model(batch)[0], loaded(loaded.processor.batch(examples()))[0])
    prompts = model.processor.robot_prompt(observations())
    np.testing.assert_array_equal(model.generate_actions(prompts)[0], loaded.generate_actions(prompts)[0])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "processor.json", "tokenizer.json"])
def test_a_checkpoint_with_a_missing_or_damaged_file_is_refused(model: VLA, tmp_path: Path, name: str) -> None:
    model.save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="damaged"):
        VLA.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        VLA.load(tmp_path)


@torch.no_grad()
def prefer(model: VLA, rows: slice) -> None:
    """Makes the output head choose among `rows` of the vocabulary whatever it sees."""
    weight = model.backbone.language.get_output_embeddings().weight
    weight.mul_(1e-3)
    # Two opposite directions: one of them has a large logit for any hidden state.
    weight[rows] = torch.randn(weight.shape[1]) * 100
    weight[rows][::2] *= -1


def test_actions_are_decoded_from_action_rows_alone(make_model: Models) -> None:
    model = make_model()
    prefer(model, slice(0, model.text_vocab))
    chunks, _ = model.generate_actions(model.processor.robot_prompt(observations()))
    assert [np.shape(chunk) for chunk in chunks] == [(4, 3)] * 3


def test_text_is_decoded_from_text_rows_alone(make_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    prefer(model, slice(model.text_vocab, None))
    seen: list[Sequence[int]] = []
    monkeypatch.setattr(model.processor, "text", lambda ids: seen.append(ids) or "")
    model.generate_text(model.processor.question_prompt(["what"], [views(0)]), max_tokens=8)
    assert len(seen[0]) == 8
    assert max(seen[0]) < model.text_vocab


def test_an_answer_ends_at_the_end_token(make_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    red, blue = (model.processor.encoder.reply(word)[0] for word in ("red", "blue"))
    end = model.processor.eos
    said = iter([[red, end, blue], [end, red, blue], [blue, blue, end], [blue, blue, blue]])

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        return F.one_hot(torch.tensor(next(said)), model.backbone.vocab_size).float()

    monkeypatch.setattr(model.backbone, "logits", logits)
    prompts = model.processor.question_prompt(TEXTS, [views(i) for i in range(3)])
    assert model.generate_text(prompts, max_tokens=16) == ["red", "", "blue blue"]
    # All rows had ended: the fourth was not asked for.
    assert next(said) == [blue, blue, blue]


def test_an_action_prefix_is_kept_and_equals_training_with_one(model: VLA) -> None:
    policy = VlaPolicy(model)
    free = policy.predict_batch(observations())
    prefix = RTCPrefix(np.zeros((3, 2, 3)))
    for chunk, before, observation in zip(
        policy.predict_batch(observations(), prefix=prefix), free, observations(), strict=True
    ):
        assert chunk is not None and before is not None
        np.testing.assert_array_equal(chunk.actions[:2], 0)
        assert (chunk.actions[2:] != before.actions[2:]).any()
        rest = decoded(model, [0.0] * 6 + whole_pass(model, observation, given=2))
        expected = model.processor.robot().denormalize_actions(rest, observation.state)
        np.testing.assert_allclose(chunk.actions[2:], expected[2:], atol=1e-3)


def test_a_prefix_as_long_as_the_chunk_is_refused(model: VLA) -> None:
    with pytest.raises(InputError, match="leaves nothing"):
        VlaPolicy(model).predict(observations()[0], prefix=RTCPrefix(np.zeros((4, 3))))


@pytest.mark.parametrize("name", ["vision", "connector", "language", "vision.encoder.stages.0"])
def test_freezing_reaches_the_named_part_alone(make_model: Models, name: str) -> None:
    model = make_model()
    freeze(model, (name,))
    part, _, inner = name.partition(".")
    named = model.backbone.freezable_modules()[part].get_submodule(inner).named_parameters()
    # What was added of the action head's rows trains wherever it is.
    frozen = {id(p) for n, p in named if not n.endswith("new_rows")}
    assert frozen
    assert {id(p) for p in model.parameters() if not p.requires_grad} == frozen
    model(model.processor.batch(examples()))[0].mean().backward()
    for parameter in model.parameters():
        assert (parameter.grad is None) == (id(parameter) in frozen)


def test_freezing_an_unknown_part_is_refused(model: VLA) -> None:
    for name in ("head", "", "cells", "vision.tail"):
        with pytest.raises(InputError, match=f"cannot freeze {name}"):
            freeze(model, (name,))


def test_without_smoothing_the_loss_is_plain_cross_entropy(make_model: Models) -> None:
    model = make_model(smoothing=0.0)
    batch = model.processor.batch(examples())
    with torch.no_grad():
        losses, rows, _ = model(batch)
        hidden, _ = model.backbone.forward(DecoderInput(model._prefix(batch)[0], batch.attention_mask))
        logits = model.backbone.logits(hidden[:, :-1])
    expected = F.cross_entropy(logits.transpose(1, 2), batch.labels[:, 1:], ignore_index=IGNORE, reduction="none")
    labelled = batch.labels[:, 1:] != IGNORE
    torch.testing.assert_close(losses, expected[labelled])
    assert rows.tolist() == torch.nonzero(labelled)[:, 0].tolist()


def test_smoothing_forgives_a_neighbour_and_not_a_stranger(make_model: Models) -> None:
    model = make_model(smoothing=1.0)
    batch = model.processor.batch(examples()[:1])
    place = int(torch.nonzero(batch.labels[0] != IGNORE)[0])
    target = int(batch.labels[0, place])
    with torch.no_grad():
        losses = []
        for offset in (0, 1, 100):
            logits = torch.zeros(12, model.backbone.vocab_size)
            logits[:, model.text_vocab + (target - model.text_vocab + offset) % 256] = 10.0
            model.backbone.logits = lambda _, logits=logits: logits  # type: ignore[method-assign]
            losses.append(float(model(batch)[0][0]))
    assert losses[0] < losses[1] < losses[2] - 1


def test_a_vision_language_model_has_no_action_head(make_model: Models) -> None:
    vlm, robot = make_model(robot=False), make_model()
    assert vlm.backbone.vocab_size == vlm.text_vocab
    assert robot.backbone.vocab_size == robot.text_vocab + 257
    with pytest.raises(InputError, match="no action head"):
        vlm.generate_actions(vlm.processor.question_prompt(["what"], [views(0)]))
    with pytest.raises(InputError, match="no action head"):
        VlaPolicy(vlm)


def test_adding_actions_leaves_the_language_as_it_was(make_model: Models) -> None:
    vlm = make_model(robot=False)
    prompts = vlm.processor.question_prompt(TEXTS, [views(i) for i in range(3)])
    before = vlm.generate_text(prompts, max_tokens=6)
    extended = VLA(vlm.backbone, make_model().processor)
    assert extended.eval().generate_text(prompts, max_tokens=6) == before


def test_a_backbone_with_other_rows_is_refused(make_model: Models) -> None:
    vlm = make_model(robot=False)
    vlm.backbone.add_token_embeddings(7)
    with pytest.raises(InputError, match="token embeddings"):
        VLA(vlm.backbone, make_model().processor)


def test_a_checkpoint_from_before_there_were_several_robots_loads(model: VLA, tmp_path: Path) -> None:
    model.save(tmp_path)
    values = json.loads((tmp_path / "processor.json").read_text())
    (robot,) = values.pop("robots")
    (tmp_path / "processor.json").write_text(json.dumps(values | {"robot": robot}))
    loaded = VLA.load(tmp_path)
    assert loaded.processor.robot() == replace(model.processor.robot(), statistics_hash="")
    prompts = model.processor.robot_prompt(observations())
    np.testing.assert_array_equal(model.generate_actions(prompts)[0], loaded.generate_actions(prompts)[0])
    # As the shipped backbone is: no robot at all.
    (tmp_path / "processor.json").write_text(json.dumps(values | {"robot": None}))
    assert Processor.load(tmp_path).robots == ()
