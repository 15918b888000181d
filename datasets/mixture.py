"""A weighted mixture of sources, drawn as a function of (seed, step) alone: it resumes anywhere."""

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
    """Training examples by index; `rng` chooses where an index stands for several."""

    def __len__(self) -> int: ...

    def example(self, index: int, rng: np.random.Generator) -> Example: ...


DRAWS_PER_BLOCK = 1024
"""Whose items are computed together."""
FIRST_VIEW_ALONE = 0.7


class Conversations:
    """The items of a VQA store, each draw up to `turns` of its questions on one pass over the images.

    Most draws of an item with several views show the first alone, with the questions about it: images are most
    of a row. One of an item's recorded conversations keeps its order and its beginning, since later turns refer to
    earlier ones. With `kinds`, of these alone.
    """

    def __init__(self, store: VqaStore, split: Split | None, turns: int, kinds: Sequence[str] | None = None) -> None:
        if turns < 1:
            raise InputError(f"a conversation has at least one turn, not {turns}")
        self._store, self._turns, self._kinds = store, turns, kinds
        items: list[int] = list(range(len(store))) if split is None else store.split(split).tolist()
        self._items = [item for item in items if store.asks(item, kinds)]

    def __len__(self) -> int:
        return len(self._items)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        images, source = self._store.stored(self._items[index])
        asked = self._store.asked(self._items[index])
        questions = tuple(q for q in asked if self._kinds is None or q.kind in self._kinds)
        alone = tuple(question for question in questions if question.kind != CONVERSATION)
        talks = sorted({question.talk for question in questions if question.kind == CONVERSATION})
        # Each conversation is as likely as all the questions that stand alone.
        chosen = int(rng.integers(len(talks) + bool(alone))) if talks else len(talks)
        recorded = chosen < len(talks)
        questions = (
            tuple(q for q in questions if q.kind == CONVERSATION and q.talk == talks[chosen]) if recorded else alone
        )
        if len(images) > 1 and not recorded and rng.random() < FIRST_VIEW_ALONE:
            first = next(iter(images))
            if about := tuple(q for q in questions if q.camera == first):
                images, questions = {first: images[first]}, about
        count = min(self._turns, len(questions))
        order = range(count) if recorded else rng.choice(len(questions), count, replace=False)
        (prompt, target), *turns = ((questions[i].text, questions[i].answer) for i in order)
        return Example(images, prompt, target, turns=tuple(turns), conversation=recorded, source=source)


class Mixture:
    """Batches with each source's share of the rows as near its weight as whole rows allow.

    Every source is gone through in epochs, each item once an epoch, in its own order (`Order`). What a batch holds is
    a formula of the seed and the step, whatever was drawn before it, by whom and with which other sources' data.
    With a `temperature` T a weight is multiplied by the source's size to the power of 1 / T: 1 draws every item alike
    often, a large T every source (mT5, sec. 3.1, with its alpha = 1 / T).

    Raises:
        InputError: a source with weight is empty, a weight is negative or none is positive, or T is not positive.
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
            raise InputError(f"the mixture weighs {sorted(unknown)}, its sources are {sorted(sources)}")
        for name, weight in weights.items():
            if not 0 <= weight < np.inf:
                raise InputError(f"the weight of {name} in the mixture is {weight}: it must be 0 or more")
        if temperature is not None and not temperature > 0:
            raise InputError(f"the temperature of the mixture is {temperature}: it must be above 0")
        # By name, so that the order in which options list them is no part of what a run draws.
        self._sources = {name: sources[name] for name in sorted(sources) if weights.get(name, 0) > 0}
        if not self._sources:
            raise InputError("the mixture has no source with a positive weight")
        for name, source in self._sources.items():
            if len(source) == 0:
                raise InputError(f"source {name} of the mixture has no examples")
        # Fractions of decimal texts: floor() below must be the same on every machine and at any step.
        try:
            scales = [1.0 if temperature is None else len(s) ** (1 / temperature) for s in self._sources.values()]
        except OverflowError:
            raise InputError(f"the temperature of the mixture is {temperature}: it is too near 0") from None
        exact = [
            Fraction(f"{weights[name]:.12g}") * Fraction(f"{scale:.12g}")
            for name, scale in zip(self._sources, scales, strict=True)
        ]
        self._up_to = list(accumulate(exact))
        self._seeds = {name: _seed(seed, name) for name in self._sources}
        self._orders = {name: Order(len(source), self._seeds[name]) for name, source in self._sources.items()}
        self._blocks: dict[str, tuple[int, list[int]]] = {}
        """The block of draws of each source that was computed last, and the item of each of them."""

    @property
    def shares(self) -> dict[str, float]:
        """The share of the rows that each source is to have."""
        before = [Fraction(0), *self._up_to]
        shares = ((after - b) / self._up_to[-1] for b, after in zip(before, self._up_to, strict=False))
        return dict(zip(self._sources, map(float, shares), strict=True))

    def drawn(self, rows: int) -> dict[str, int]:
        """How many of the first `rows` rows of a run are of each source: off its share by fewer than there are sources.

        The last source takes what its share rounds up to, the one before it its share of what is left, and so on: a
        count never falls as `rows` grows, and all add up to `rows`.
        """
        counts = {}
        for i, name in reversed(list(enumerate(self._sources))):
            left = rows * self._up_to[i - 1] // self._up_to[i] if i else 0
            counts[name], rows = rows - left, left
        return {name: counts[name] for name in self._sources}

    def counts(self, step: int, size: int) -> dict[str, int]:
        """Rows of each source in batch `step`."""
        before, after = self.drawn(step * size), self.drawn((step + 1) * size)
        return {name: after[name] - before[name] for name in self._sources}

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> list[Example]:
        """The rows of batch `step`, source by source; of `world` ranks each takes every `world`-th row of the same."""
        if not 0 <= rank < world:
            raise InputError(f"rank {rank} is not one of a world of {world}")
        before, counts = self.drawn(step * size), self.counts(step, size)
        rows = [(name, before[name] + i) for name, count in counts.items() for i in range(count)][rank::world]
        examples: list[Example] = []
        for name, source in self._sources.items():
            draws = [draw for own, draw in rows if own == name]
            for draw in draws:
                item = self._item(name, draw)
                rng = np.random.default_rng([self._seeds[name], draw])
                examples.append(replace(source.example(item, rng), source=name))
        return examples

    def _item(self, source: str, draw: int) -> int:
        """The item of a draw. Those of a block are computed together: one alone takes a hundred times as long."""
        block, place = divmod(draw, DRAWS_PER_BLOCK)
        number, items = self._blocks.get(source, (-1, []))
        if number != block:
            items = self._orders[source](block * DRAWS_PER_BLOCK + np.arange(DRAWS_PER_BLOCK)).tolist()
            self._blocks[source] = block, items
        return items[place]


def _seed(seed: int, name: str) -> int:
    """A seed of each source's own, so that a source is drawn alike whatever is mixed with it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8])
