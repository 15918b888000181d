"""A weighted mixture of sources. Draws depend only on (seed, step), so that training can resume at any step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from typing import Protocol, runtime_checkable

import numpy as np

from vla.datasets.order import Order
from vla.datasets.vqa import CONVERSATION, Split, VqaStore
from vla.errors import InputError
from vla.types import Example


@runtime_checkable
class Source(Protocol):
    """Training examples by index. `rng` chooses among alternatives where an index has several."""

    def __len__(self) -> int: ...

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """The example at `index`."""
        ...


DRAWS_PER_BLOCK = 1024
"""Draws whose items are computed together."""
FIRST_VIEW_ALONE = 0.7
"""Share of the draws of an item with several views that show only the first view."""


class Conversations:
    """The items of a VQA store as conversations: each example has up to `turns` questions about one item.

    Most examples of an item with several views show only the first view and the questions about it, since images make
    up most of an example's length. A recorded conversation keeps its order and starts at its first turn, since later
    turns refer to earlier ones. `kinds` restricts the kinds of questions.
    """

    def __init__(self, store: VqaStore, split: Split | None, turns: int, kinds: Sequence[str] | None = None) -> None:
        if turns < 1:
            raise InputError(f"a conversation has at least one turn, not {turns}")
        self._store, self._turns, self._kinds = store, turns, kinds
        items: list[int] = list(range(len(store))) if split is None else store.split(split).tolist()
        self._items = [item for item in items if store.has_questions(item, kinds)]

    def __len__(self) -> int:
        return len(self._items)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """A conversation about item `index`, with up to `turns` questions drawn by `rng`."""
        images, source = self._store.stored(self._items[index])
        stored = self._store.item_questions(self._items[index])
        questions = tuple(q for q in stored if self._kinds is None or q.kind in self._kinds)
        single_questions = tuple(question for question in questions if question.kind != CONVERSATION)
        talks = sorted({question.talk for question in questions if question.kind == CONVERSATION})
        # Each conversation is as likely as all single questions together.
        choice = int(rng.integers(len(talks) + bool(single_questions))) if talks else len(talks)
        recorded = choice < len(talks)
        questions = (
            tuple(q for q in questions if q.kind == CONVERSATION and q.talk == talks[choice])
            if recorded
            else single_questions
        )
        if len(images) > 1 and not recorded and rng.random() < FIRST_VIEW_ALONE:
            first = next(iter(images))
            if first_view_questions := tuple(q for q in questions if q.camera == first):
                images, questions = {first: images[first]}, first_view_questions
        count = min(self._turns, len(questions))
        order = range(count) if recorded else rng.choice(len(questions), count, replace=False)
        (prompt, target), *turns = ((questions[i].text, questions[i].answer) for i in order)
        return Example(images, prompt, target, turns=tuple(turns), conversation=recorded, source=source)


class Mixture:
    """Batches in which each source's share of the rows approximates its weight as closely as integer counts allow.

    Each source is drawn in epochs, each item once per epoch, in its own order (`Order`). The content of a batch depends
    only on the seed and the step, not on earlier draws, the process, or the data of other sources. With a
    `temperature` T, a weight is multiplied by the source's size to the power of 1 / T: T = 1 draws all items equally
    often, a large T all sources equally often (mT5, sec. 3.1, with its alpha = 1 / T).

    Raises:
        InputError: a source with a weight is empty or unknown, a weight is negative, none is positive, or T is not
            positive.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: Mapping[str, float],
        seed: int,
        temperature: float | None = None,
    ) -> None:
        unknown = {name for name, weight in weights.items() if weight > 0} - set(sources)
        if unknown:
            raise InputError(f"the mixture has weights for {sorted(unknown)}, but its sources are {sorted(sources)}")
        for name, weight in weights.items():
            if not 0 <= weight < np.inf:
                raise InputError(f"the weight of {name} in the mixture is {weight}: it must be 0 or more")
        if temperature is not None and not temperature > 0:
            raise InputError(f"the temperature of the mixture is {temperature}: it must be above 0")
        # Sorted by name, so that the order of the options does not change the draws.
        self._sources = {name: sources[name] for name in sorted(sources) if weights.get(name, 0) > 0}
        if not self._sources:
            raise InputError("the mixture has no source with a positive weight")
        for name, source in self._sources.items():
            if len(source) == 0:
                raise InputError(f"source {name} of the mixture has no examples")
        # Exact fractions: the integer divisions below must give the same result on every machine and at any step.
        try:
            scales = [1.0 if temperature is None else len(s) ** (1 / temperature) for s in self._sources.values()]
        except OverflowError:
            raise InputError(f"the temperature of the mixture is {temperature}: it is too close to 0") from None
        exact = [
            Fraction(f"{weights[name]:.12g}") * Fraction(f"{scale:.12g}")
            for name, scale in zip(self._sources, scales, strict=True)
        ]
        self._cumulative = list(accumulate(exact))
        self._seeds = {name: _seed(seed, name) for name in self._sources}
        self._orders = {name: Order(len(source), self._seeds[name]) for name, source in self._sources.items()}
        self._blocks: dict[str, tuple[int, list[int]]] = {}
        """By source: the number of the last computed block of draws, and the items of its draws."""

    @property
    def shares(self) -> dict[str, float]:
        """The target share of the rows of each source."""
        before = [Fraction(0), *self._cumulative]
        shares = ((after - b) / self._cumulative[-1] for b, after in zip(before, self._cumulative, strict=False))
        return dict(zip(self._sources, map(float, shares), strict=True))

    def drawn(self, rows: int) -> dict[str, int]:
        """The number of rows of each source among the first `rows` rows of a run.

        It differs from the exact share by less than the number of sources. The last source gets its share rounded up,
        the one before it its share of the remaining rows, and so on. Counts never decrease as `rows` grows, and they
        add up to `rows`.
        """
        counts = {}
        for i, name in reversed(list(enumerate(self._sources))):
            remaining = rows * self._cumulative[i - 1] // self._cumulative[i] if i else 0
            counts[name], rows = rows - remaining, remaining
        return {name: counts[name] for name in self._sources}

    def counts(self, step: int, size: int) -> dict[str, int]:
        """The number of rows of each source in batch `step`."""
        before, after = self.drawn(step * size), self.drawn((step + 1) * size)
        return {name: after[name] - before[name] for name in self._sources}

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> list[Example]:
        """The rows of batch `step`, grouped by source. Each of `world` ranks gets every `world`-th row."""
        if not 0 <= rank < world:
            raise InputError(f"rank {rank} is not among the {world} ranks")
        before, counts = self.drawn(step * size), self.counts(step, size)
        rows = [(name, before[name] + i) for name, count in counts.items() for i in range(count)][rank::world]
        examples: list[Example] = []
        for name, source in self._sources.items():
            draws = [draw for row_source, draw in rows if row_source == name]
            for draw in draws:
                item = self._item(name, draw)
                rng = np.random.default_rng([self._seeds[name], draw])
                examples.append(replace(source.example(item, rng), source=name))
        return examples

    def _item(self, source: str, draw: int) -> int:
        """The item of a draw. Blocks of draws are computed together, which is a hundred times as fast per draw."""
        block, offset = divmod(draw, DRAWS_PER_BLOCK)
        number, items = self._blocks.get(source, (-1, []))
        if number != block:
            items = self._orders[source](block * DRAWS_PER_BLOCK + np.arange(DRAWS_PER_BLOCK)).tolist()
            self._blocks[source] = block, items
        return items[offset]


def _seed(seed: int, name: str) -> int:
    """A seed per source, so that the draws of a source do not depend on the other sources."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8])
