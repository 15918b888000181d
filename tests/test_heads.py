"""Every head on the same small backbone: it learns a chunk, keeps an action prefix, and decodes only allowed tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import UInt8

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.action_heads.fast import to_json
from vla.models.action_tokenizers.fast import FastTokenizer
from vla.models.processor import Processor
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.training.balance import count, element_weights
from vla.training.optimizer import Optimizers
from vla.types import Example, Observation, RTCPrefix

Models = Callable[..., VLA]

HEADS: dict[str, dict[str, Any]] = {
    "parallel": {"head": "parallel"},
    "bins": {"head": "bins"},
    "fast": {"head": "fast"},
    "text": {"head": "text"},
    "l1": {"head": "l1"},
    "parallel bidirectional": {"head": "parallel", "bidirectional": True},
    "l1 bidirectional": {"head": "l1", "bidirectional": True},
    "flow": {"head": "flow"},
    "insulated bins": {"head": "flow", "knowledge_insulation": True, "tokens": "bins"},
    "insulated fast": {"head": "flow", "knowledge_insulation": True, "tokens": "fast"},
}
ERROR = {"parallel": 0.02, "parallel bidirectional": 0.02, "bins": 0.02, "fast": 0.11, "text": 0.002}
"""Of a normalised action that has been learned by heart; 0.15 for those that are learned as numbers."""


LEARNED = [
    pytest.param(name, marks=[pytest.mark.slow] if "bidirectional" in name or "insulated" in name else [])
    for name in HEADS
    if name != "insulated fast"
]


def fast_tokenizer() -> dict[str, Any]:
    chunks = np.random.default_rng(0).uniform(-1.2, 1.2, (50, 4, 3))
    return to_json(FastTokenizer.train(lambda: [chunks], vocab_size=128))


def options(name: str) -> dict[str, Any]:
    return HEADS[name] | ({"tokenizer": fast_tokenizer()} if name.endswith("fast") else {})


def views(seed: int) -> Mapping[str, UInt8[np.ndarray, "h w 3"]]:
    rng = np.random.default_rng(seed)
    return {camera: rng.integers(0, 256, (32, 32, 3), np.uint8) for camera in ("front", "wrist")}


def demonstrations(embodiment: str = "", points: int = 1) -> list[Example]:
    rng = np.random.default_rng(1)
    examples = []
    for i, word in enumerate(("red", "blue")):
        state = rng.uniform(-0.3, 0.3, 2)
        target = rng.uniform([-0.6, -0.6, 0.1], [0.6, 0.6, 0.9], (4, 3))
        where = rng.random((points, 2))
        examples.append(Example(views(i), f"lift the {word} ring", target, state, points=where, embodiment=embodiment))
    return examples


def question() -> Example:
    return Example({"front": views(5)["front"]}, "what color is the cube?", "red")


def observed(example: Example) -> Observation:
    assert example.state is not None
    return Observation(example.images, example.state, example.prompt, 0.0)


@pytest.fixture(scope="module", params=LEARNED)
def learned(request: pytest.FixtureRequest, make_model: Models) -> tuple[str, VLA]:
    """A model overfitted to two demonstrations, with and without an action prefix, and to a question."""
    torch.manual_seed(0)
    model = make_model(smoothing=0.0, points=1, **options(request.param)).train()
    batch = model.processor.batch(
        [question(), *demonstrations(), *(replace(example, prefix_length=2) for example in demonstrations())]
    )
    optimizer, rows = Optimizers(model, 0.0, {}), torch.zeros(len(batch.source), dtype=torch.long)
    steps = {"l1": 200, "l1 bidirectional": 200, "flow": 300, "insulated bins": 300}.get(request.param, 120)
    for step in range(steps):
        losses, _, kinds = model(batch)
        optimizer.zero_grad()
        (losses * element_weights(count(rows, *model.elements(batch), 2), ["all"], {})[0, kinds]).sum().backward()
        optimizer.step(5e-3 * min(1.0, 2 * (1 - step / steps)))
    return request.param, model.eval()


def test_a_chunk_is_learned_and_said_within_the_representations_error(learned: tuple[str, VLA]) -> None:
    name, model = learned
    robot = model.processor.robot()
    for example in demonstrations():
        chunk = VlaPolicy(model).predict(observed(example))
        assert chunk is not None and chunk.points is not None
        error = np.abs(chunk.actions - example.target) / (np.subtract(robot.action.high, robot.action.low) / 2)
        assert error.max() < ERROR.get(name, 0.15)
        np.testing.assert_allclose(chunk.points, example.points, atol=0.0051)


def test_an_action_prefix_is_kept_and_continued(learned: tuple[str, VLA]) -> None:
    name, model = learned
    robot = model.processor.robot()
    for example in demonstrations():
        committed = np.asarray(example.target)[:2]
        chunk = VlaPolicy(model).predict(observed(example), prefix=RTCPrefix(committed))
        assert chunk is not None
        np.testing.assert_array_equal(chunk.actions[:2], committed)
        error = np.abs(chunk.actions - example.target) / (np.subtract(robot.action.high, robot.action.low) / 2)
        assert error.max() < ERROR.get(name, 0.15)


def test_a_saved_model_says_the_same(learned: tuple[str, VLA], tmp_path: Path) -> None:
    _, model = learned
    model.save(tmp_path)
    loaded = VlaPolicy.load(tmp_path)
    head, saved = model.processor.head, loaded.model.processor.head
    assert head is not None and saved is not None and head.settings == saved.settings
    for example in demonstrations():
        ours, theirs = VlaPolicy(model).predict(observed(example)), loaded.predict(observed(example))
        assert ours is not None and theirs is not None
        np.testing.assert_array_equal(ours.actions, theirs.actions)


def test_questions_cost_what_they_cost_without_a_robot(learned: tuple[str, VLA]) -> None:
    _, model = learned
    with torch.no_grad():
        losses, rows, weights = model(model.processor.batch([*demonstrations(), question()]))
        alone, *_ = model(model.processor.batch([question()]))
    assert losses.shape == rows.shape == weights.shape
    torch.testing.assert_close(losses[rows == 2], alone, rtol=1e-4, atol=1e-5)


def test_a_batch_says_what_its_rows_say(learned: tuple[str, VLA]) -> None:
    _, model = learned
    examples = [replace(e, prompt=e.prompt + " now" * i) for i, e in enumerate(demonstrations())]
    prefix = RTCPrefix(np.stack([np.asarray(e.target)[:1] for e in demonstrations()]) * [1.0, 1.0, 0.99])
    policy = VlaPolicy(model)
    together = policy.predict_batch([observed(e) for e in examples], prefix=prefix)
    for i, (chunk, example) in enumerate(zip(together, examples, strict=True)):
        alone = policy.predict(observed(example), prefix=prefix.row(i))
        assert (chunk is None) == (alone is None)
        if chunk is not None and alone is not None:
            np.testing.assert_allclose(chunk.actions, alone.actions, atol=1e-3)


@pytest.mark.parametrize("name", ["fast", "text"])
def test_words_that_are_no_chunk_hold(make_model: Models, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = options(name)
    if name == "fast":  # as of another's tokenizer, of which it is not known what a token spells
        settings["tokenizer"]["bpe"]["decoder"] = None
    model = make_model(**settings)
    favourite = model.processor.eos
    monkeypatch.setattr(
        model.backbone,
        "logits",
        lambda hidden: (
            torch.nn.functional.one_hot(torch.tensor(favourite), model.backbone.vocab_size)
            .float()
            .expand(*hidden.shape[:-1], -1)
        ),
    )
    assert VlaPolicy(model).predict(observed(demonstrations()[0])) is None
    favourite = model.processor.tokenizer.token_to_id(
        "<answer>"
    )  # which is not allowed: the first allowed token is decoded, without an end
    assert VlaPolicy(model).predict(observed(demonstrations()[0])) is None


def test_our_fast_tokens_spell_a_whole_chunk_whatever_the_model_thinks(make_model: Models) -> None:
    for seed in range(5):
        chunk = VlaPolicy(make_model(seed=seed, **options("fast"))).predict(observed(demonstrations()[0]))
        assert chunk is not None and chunk.actions.shape == (4, 3)


@pytest.mark.parametrize("name", ["l1", "flow"])
def test_numbers_that_are_not_finite_hold(make_model: Models, name: str) -> None:
    model = make_model(**options(name))
    with torch.no_grad():
        for parameter in model.continuous_head.parameters():
            parameter.fill_(float("nan"))
    assert VlaPolicy(model).predict(observed(demonstrations()[0])) is None


@pytest.mark.parametrize("name", HEADS)
def test_several_robots_share_a_head(make_model: Models, name: str) -> None:
    toy = make_model().processor.robot()
    body = make_model(robot=False)
    slim = replace(
        toy,
        embodiment=Embodiment(
            "slim", toy.embodiment.cameras, toy.embodiment.state, ("turn [rad]",), (-1.0,), (1.0,), 10.0
        ),
        action=replace(toy.action, low=(-2.0,), high=(2.0,)),
        relative=(),
    )
    settings = options(name)
    processor = Processor(
        body.processor.tokenizer,
        32,
        body.backbone.tokens_per_image,
        (toy, slim),
        head={"kind": settings.pop("head")} | settings,
    )
    model = VLA(body.backbone, processor).eval()
    narrow = [replace(e, target=np.asarray(e.target)[:, 1:2], embodiment="slim") for e in demonstrations("", 0)]
    examples = [demonstrations("toy", 0)[0], narrow[0], question(), replace(narrow[1], mask=np.arange(4) < 3)]
    losses, rows, _ = model(processor.batch(examples))
    for i, example in enumerate(examples):
        alone, *_ = model(processor.batch([example]))
        assert len(alone) == (rows == i).sum()
        if model.processor.head and "flow" not in HEADS[name]["head"]:  # whose noise differs
            torch.testing.assert_close(losses[rows == i], alone, rtol=1e-4, atol=1e-5)
    losses.sum().backward()
    for robot, width in (("toy", 3), ("slim", 1)):
        chunk = VlaPolicy(model, robot).predict(observed(examples[0]), prefix=RTCPrefix(np.zeros((1, width))))
        assert chunk is None or chunk.actions.shape == (4, width)


@pytest.mark.parametrize("head", ["parallel", "l1"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_slots_look_at_each_other_where_they_are_to(make_model: Models, head: str, bidirectional: bool) -> None:
    """What stands in the last slot reaches the first one's hidden state, in training and in decoding alike."""
    model = make_model(head=head, points=0, bidirectional=bidirectional)
    example = demonstrations("", 0)[0]
    batch = model.processor.batch([example])
    slots = batch.input_ids[0] == model.processor.action_query_token
    seen: list[Any] = []
    hidden = model.backbone.forward
    model.backbone.forward = lambda *a: (out := hidden(*a), seen.append(out[0]))[0]  # type: ignore[method-assign]
    prompt = model.processor.robot_prompt([observed(example)])
    with torch.no_grad():
        for shift in (0.0, 5.0):
            model.action_position_embedding.weight[-1] += shift
            model(batch)
            model.generate_actions(prompt)
    trained, _, decoded, again, _, later = seen
    torch.testing.assert_close(trained[:, slots], decoded, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(again[:, slots], later, atol=1e-5, rtol=1e-4)
    assert torch.equal(trained[0, slots][0], again[0, slots][0]) != bidirectional
    settings = model.processor.head.settings if model.processor.head else {}
    assert ("bidirectional" in settings) == bidirectional  # earlier checkpoints do not have it


@pytest.mark.parametrize(("knowledge_insulation", "reached"), [(True, False), (False, True)])
def test_insulation_keeps_the_experts_loss_from_the_backbone(
    make_model: Models, knowledge_insulation: bool, reached: bool
) -> None:
    model = make_model(head="flow", knowledge_insulation=knowledge_insulation, tokens="bins")
    batch = model.processor.batch(demonstrations("", 0))
    losses, *_ = model(batch)
    numbers = int(batch.continuous_mask.sum())
    assert len(losses) == numbers + (numbers if knowledge_insulation else 0)
    losses[-numbers:].sum().backward()
    weights = model.backbone.language.model.layers[0].self_attn.k_proj.weight
    assert (weights.grad is not None and bool(weights.grad.any())) == reached
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.continuous_head.parameters())


def test_the_expert_does_not_see_the_tokens(make_model: Models) -> None:
    model = make_model(head="flow", knowledge_insulation=True, tokens="bins")
    batch = model.processor.batch(demonstrations("", 0))
    spoilt = torch.where(batch.input_ids >= model.text_vocab, model.processor.action_query_token, batch.input_ids)
    numbers = int(batch.continuous_mask.sum())
    found = []
    with torch.no_grad():
        for ids in (batch.input_ids, spoilt):
            torch.manual_seed(3)
            found.append(model(replace(batch, input_ids=ids))[0])
    torch.testing.assert_close(found[0][-numbers:], found[1][-numbers:])
    assert not torch.isclose(found[0][:-numbers], found[1][:-numbers]).all()


def test_some_digits_are_masked_in_training_and_all_have_labels(make_model: Models) -> None:
    processor = make_model(head="text").processor
    plain = processor.batch(demonstrations("", 0))
    examples = demonstrations("", 0)
    masked = processor.batch(examples, [np.random.default_rng(row) for row in range(len(examples))])
    assert torch.equal(plain.labels, masked.labels)
    changed = plain.input_ids != masked.input_ids
    digits = (plain.labels >= 0) & (plain.labels != processor.eos)
    assert (masked.input_ids[changed] == processor.pad).all()
    assert 0.2 < changed.sum() / digits.sum() < 0.5
    # Split or not, a batch is masked alike.
    for row, example in enumerate(examples):
        half = processor.batch([example], [np.random.default_rng(row)]).input_ids[0]
        assert torch.equal(masked.input_ids[row, : len(half)], half)


def test_a_state_can_be_encoded_as_text(make_model: Models, tmp_path: Path) -> None:
    model = make_model()
    processor = Processor(
        model.processor.tokenizer, 32, model.processor.tokens_per_image, model.processor.robots, state_encoding="text"
    )
    example = demonstrations("", 0)[0]
    batch = processor.batch([example])
    assert batch.state.shape == (1, 0)
    assert processor.robot_prompt([observed(example)]).input_ids.shape[1] + 13 == batch.input_ids.shape[1]
    ids = batch.input_ids[0].tolist()
    words = processor.tokenizer.decode(ids[: ids.index(processor.tokenizer.token_to_id("<answer>"))])
    state = processor.robot().encode_state(observed(example).state)
    assert words.endswith("state " + " ".join(str(int((value + 1) * 128)) for value in state))
    processor.save(tmp_path)
    assert Processor.load(tmp_path).state_encoding == "text"
    assert VlaPolicy(VLA(make_model(robot=False).backbone, processor)).predict(observed(example)) is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "diffusion"}, "no head diffusion: choose of parallel, bins"),
        ({"head": "l1", "layers": 3}, "does not take these settings"),
        ({"head": "fast"}, "needs a tokenizer"),
        ({"head": "flow", "knowledge_insulation": True, "tokens": "text"}, "fast or bins, not text"),
    ],
)
def test_settings_of_no_head_are_refused(make_model: Models, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_model(**settings)
