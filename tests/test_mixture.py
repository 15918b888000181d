from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.common.stored_image import decoded
from vla.datasets.mixture import Conversations, Mixture
from vla.datasets.questions import Question
from vla.datasets.vqa import CONVERSATION, VqaItem, VqaStore
from vla.errors import InputError
from vla.types import Example


class Numbers:
    """Examples that say which number they are, and what was drawn with them."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count

    def __len__(self) -> int:
        return self.count

    def example(self, index: int, rng: np.random.Generator) -> Example:
        return Example({}, f"{self.name} {index}", str(rng.integers(100)), source="itself")


SIZES = {"a": 50, "b": 7, "c": 200}


def mixture(seed: int = 0, temperature: float | None = None, **weights: float) -> Mixture:
    sources = {name: Numbers(name, count) for name, count in SIZES.items()}
    return Mixture(sources, weights or {"a": 1.0, "b": 2.0}, seed, temperature)


weights_of = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats(0.01, 10), min_size=1)


@given(st.integers(0, 2**31), st.integers(0, 10**6), st.integers(1, 40))
def test_a_batch_is_a_function_of_seed_and_step(seed: int, step: int, size: int) -> None:
    walked = mixture(seed)
    walked.batch(0, 7)
    assert walked.batch(step, size) == mixture(seed).batch(step, size)


def test_other_seeds_and_steps_give_other_batches() -> None:
    batches = [mixture(seed).batch(step, 20) for seed in (0, 1) for step in (0, 1)]
    assert all(one != other for i, one in enumerate(batches) for other in batches[:i])


@given(weights_of, st.integers(0, 10**9), st.integers(1, 5000))
def test_every_source_has_its_share_at_any_time(weights: dict[str, float], step: int, size: int) -> None:
    mixed = mixture(**weights)
    before, counts, after = mixed.drawn(step * size), mixed.counts(step, size), mixed.drawn((step + 1) * size)
    assert sum(counts.values()) == size and min(counts.values()) >= 0
    assert all(after[name] == before[name] + counts[name] for name in counts)
    total = sum(map(Fraction, weights.values()))
    for name, count in after.items():
        assert abs(count - Fraction(weights[name]) / total * (step + 1) * size) < 2 + 1e-9 * count


@pytest.mark.parametrize("weights", [{"a": 0.7, "c": 0.3}, {"a": 1.0, "b": 0.001, "c": 1.0}])
def test_a_source_is_gone_through_before_it_begins_again(weights: dict[str, float]) -> None:
    drawn: dict[str, list[str]] = {name: [] for name in weights}
    for example in itertools.chain.from_iterable(mixture(**weights).batch(step, 7) for step in range(60)):
        drawn[example.source].append(example.prompt)
    for name, prompts in drawn.items():
        for start in range(0, len(prompts), SIZES[name]):
            part = prompts[start : start + SIZES[name]]
            assert len(set(part)) == len(part)
    assert len(drawn["a"]) > 2 * SIZES["a"]
    assert drawn["a"][:50] != drawn["a"][50:100]


@given(weights_of, st.integers(0, 1000), st.integers(1, 30), st.integers(1, 9))
def test_ranks_share_the_rows_of_one_batch(weights: dict[str, float], step: int, size: int, world: int) -> None:
    mixed = mixture(**weights)
    parts = [mixed.batch(step, size, rank, world) for rank in range(world)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    together, whole = itertools.chain.from_iterable(parts), mixed.batch(step, size)
    key = operator.attrgetter("source", "prompt", "target")
    assert sorted(map(key, together)) == sorted(map(key, whole))


def test_a_source_is_drawn_alike_in_any_company() -> None:
    def drawn(mixed: Mixture, size: int) -> list[tuple[str, object]]:
        rows = itertools.chain.from_iterable(mixed.batch(step, size) for step in range(40))
        return [(e.prompt, e.target) for e in rows if e.source == "a"][:60]

    assert drawn(mixture(a=1.0), 3) == drawn(mixture(a=1.0, b=1.0, c=0.5), 8)


def test_the_order_of_the_options_is_no_part_of_it() -> None:
    sources = {name: Numbers(name, 9) for name in "ab"}
    turned = Mixture(dict(reversed(sources.items())), {"b": 0.3, "a": 0.7}, 0)
    assert turned.batch(5, 10) == Mixture(sources, {"a": 0.7, "b": 0.3}, 0).batch(5, 10)


@pytest.mark.parametrize(
    ("temperature", "shares"),
    [(1.0, (50 / 257, 7 / 257, 200 / 257)), (1e9, (1 / 3, 1 / 3, 1 / 3)), (2.0, None), (None, (1 / 3, 1 / 3, 1 / 3))],
)
def test_a_temperature_weighs_sources_by_their_size(temperature: float | None, shares: Sequence[float] | None) -> None:
    expected = shares or [size**0.5 / sum(s**0.5 for s in SIZES.values()) for size in SIZES.values()]
    mixed = mixture(temperature=temperature, a=1.0, b=1.0, c=1.0)
    np.testing.assert_allclose(list(mixed.shares.values()), expected, rtol=1e-6)
    np.testing.assert_allclose([n / 10**6 for n in mixed.drawn(10**6).values()], expected, atol=3e-6)


def test_weights_multiply_what_the_temperature_gives() -> None:
    assert mixture(temperature=1.0, a=4.0, c=1.0).shares == {"a": 0.5, "c": 0.5}


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), 1e-6])
def test_a_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(InputError, match="temperature"):
        mixture(temperature=temperature)


def test_a_rank_is_one_of_the_world() -> None:
    with pytest.raises(InputError, match="rank 2"):
        mixture().batch(0, 4, rank=2, world=2)


def test_rows_come_from_their_source_and_carry_its_name() -> None:
    examples = mixture(a=1.0, b=2.0, c=0.0).batch(3, 30)
    assert [e.source for e in examples] == ["a"] * 10 + ["b"] * 20
    assert all(e.prompt.startswith(e.source) for e in examples)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0, "d": 1.0}, r"weights for \['d'\]"),
        ({"a": 0.0}, "no source with a positive weight"),
        ({}, "no source with a positive weight"),
        ({"empty": 1.0}, "source empty of the mixture has no examples"),
        ({"a": -1.0, "b": 1.0}, "weight of a"),
        ({"a": float("nan"), "b": 1.0}, "weight of a"),
    ],
)
def test_weights_that_make_no_mixture_are_refused(weights: dict[str, float], message: str) -> None:
    sources = {"a": Numbers("a", 3), "b": Numbers("b", 3), "empty": Numbers("empty", 0)}
    with pytest.raises(InputError, match=message):
        Mixture(sources, weights, 0)


def test_a_source_without_weight_may_be_empty() -> None:
    assert len(Mixture({"a": Numbers("a", 3), "b": Numbers("b", 0)}, {"a": 1.0}, 0).batch(0, 4)) == 4


@pytest.fixture
def store(tmp_path: Path) -> VqaStore:
    rng = np.random.default_rng(0)
    made = VqaStore.create(tmp_path / "vqa", ("front",), 8, 8)
    for i in range(30):
        kind = CONVERSATION if i == 0 else "color"
        asked = tuple(Question(kind, f"question {i} {j}?", f"answer {i} {j}", "front") for j in range(4))
        made.append([VqaItem({"front": rng.integers(0, 256, (8, 8, 3), np.uint8)}, asked, "toy")])
    return made


def turns(example: Example) -> list[tuple[str, object]]:
    return [(example.prompt, example.target), *example.turns]


def test_a_draw_is_a_conversation_about_one_image(store: VqaStore) -> None:
    source = Conversations(store, None, 3)
    assert len(source) == 30
    orders = set()
    for seed in range(20):
        example = source.example(5, np.random.default_rng(seed))
        np.testing.assert_array_equal(decoded(example.images)["front"], store[5].images["front"])
        asked = turns(example)
        assert len(set(asked)) == 3
        assert set(asked) <= {(q.text, q.answer) for q in store[5].questions}
        orders.add(tuple(asked))
    assert len(orders) > 5


def test_a_recorded_conversation_keeps_its_order_and_its_beginning(store: VqaStore) -> None:
    example = Conversations(store, None, 3).example(0, np.random.default_rng(0))
    assert turns(example) == [(f"question 0 {j}?", f"answer 0 {j}") for j in range(3)]


def test_questions_shown_with_one_view_are_about_it(tmp_path: Path) -> None:
    views = {camera: np.full((8, 8, 3), i, np.uint8) for i, camera in enumerate(("front", "wrist"))}
    asked = tuple(Question("color", f"{camera} {j}?", "red", camera) for camera in views for j in range(3))
    store = VqaStore.create(tmp_path / "two", ("front", "wrist"), 8, 8)
    store.append([VqaItem(views, asked, "toy")])
    source = Conversations(store, None, 6)
    shown = [source.example(0, np.random.default_rng(seed)) for seed in range(40)]
    alone = [example for example in shown if len(example.images) == 1]
    assert 15 < len(alone) < 40
    assert {len(turns(example)) for example in alone} == {3}
    assert all(text.startswith("front") for example in alone for text, _ in turns(example))
    assert {len(turns(example)) for example in shown if len(example.images) == 2} == {6}


def test_one_of_an_images_conversations_or_what_stands_alone_is_drawn(tmp_path: Path) -> None:
    said = [
        Question("conversation", f"{who} {i}", "yes", "front", talk=t) for i in range(2) for t, who in enumerate("ab")
    ]
    alone = Question("color", "what color?", "red", "front")
    store = VqaStore.create(tmp_path / "talks", ("front",), 8, 8)
    store.append([VqaItem({"front": np.zeros((8, 8, 3), np.uint8)}, (alone, *said), "toy")])
    source = Conversations(store, None, 5)
    drawn = [source.example(0, np.random.default_rng(seed)) for seed in range(40)]
    asked = {(example.conversation, tuple(text for text, _ in turns(example))) for example in drawn}
    assert asked == {(True, ("a 0", "a 1")), (True, ("b 0", "b 1")), (False, ("what color?",))}


def test_no_more_turns_than_questions(store: VqaStore) -> None:
    assert len(turns(Conversations(store, None, 9).example(1, np.random.default_rng(0)))) == 4


def test_a_split_draws_from_its_items_alone(store: VqaStore) -> None:
    held_out = set(store.split("held-out").tolist())
    source = Conversations(store, "train", 1)
    drawn = {int(source.example(i, np.random.default_rng(0)).prompt.split()[1]) for i in range(len(source))}
    assert held_out
    assert drawn == set(range(30)) - held_out


def test_a_conversation_without_turns_is_refused(store: VqaStore) -> None:
    with pytest.raises(InputError, match="at least one turn"):
        Conversations(store, None, 0)


def test_an_item_that_asks_nothing_is_not_drawn(tmp_path: Path) -> None:
    image = {"front": np.zeros((8, 8, 3), np.uint8)}
    store = VqaStore.create(tmp_path / "some", ("front",), 8, 8)
    store.append(
        [VqaItem(image, (), "toy"), VqaItem(image, (Question("color", "what color?", "red", "front"),), "toy")]
    )
    source = Conversations(store, None, 2)
    assert len(source) == 1
    assert turns(source.example(0, np.random.default_rng(0))) == [("what color?", "red")]
