"""A weighted mixture of sources, drawn as a function of (seed, step) alone: it resumes anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from vla.datasets.vqa import CONVERSATION, Split, VqaStore
from vla.errors import InputError
from vla.types import Example


@runtime_checkable
class Source(Protocol):
    """Training examples by index; `rng` chooses where an index stands for several."""

    def __len__(self) -> int: ...

    def example(self, index: int, rng: np.random.Generator) -> Example: ...


FIRST_VIEW_ALONE = 0.7


class Conversations:
    """The items of a VQA store, each draw up to `turns` of its questions on one pass over the images.

    Most draws of an item with several views show the first alone, with the questions about it: images are most
    of a row. A recorded conversation keeps its order and its beginning, since later turns refer to earlier ones.
    """

    def __init__(self, store: VqaStore, split: Split | None, turns: int) -> None:
        if turns < 1:
            raise InputError(f"a conversation has at least one turn, not {turns}")
        self._store, self._turns = store, turns
        self._items: list[int] = list(range(len(store))) if split is None else store.split(split).tolist()

    def __len__(self) -> int:
        return len(self._items)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        item = self._store[self._items[index]]
        recorded = any(q.kind == CONVERSATION for q in item.questions)
        images, questions = item.images, item.questions
        if len(images) > 1 and not recorded and rng.random() < FIRST_VIEW_ALONE:
            first = next(iter(images))
            if about := tuple(q for q in questions if q.camera == first):
                images, questions = {first: images[first]}, about
        count = min(self._turns, len(questions))
        order = range(count) if recorded else rng.choice(len(questions), count, replace=False)
        (prompt, target), *turns = ((questions[i].text, questions[i].answer) for i in order)
        return Example(images, prompt, target, turns=tuple(turns), conversation=recorded, source=item.source)


class Mixture:
    """Batches with each source's share of the rows as near its weight as whole rows allow.

    Raises:
        InputError: a source with weight is empty, a weight is negative or none is positive.
    """

    def __init__(self, sources: Mapping[str, Source], weights: Mapping[str, float], seed: int) -> None:
        unknown = {name for name, weight in weights.items() if weight > 0} - set(sources)
        if unknown:
            raise InputError(f"the mixture weighs {sorted(unknown)}, its sources are {sorted(sources)}")
        for name, weight in weights.items():
            if not 0 <= weight < np.inf:
                raise InputError(f"the weight of {name} in the mixture is {weight}: it must be 0 or more")
        self._sources = {name: s for name, s in sources.items() if weights.get(name, 0) > 0}
        if not self._sources:
            raise InputError("the mixture has no source with a positive weight")
        for name, source in self._sources.items():
            if len(source) == 0:
                raise InputError(f"source {name} of the mixture has no examples")
        total = sum(weights[name] for name in self._sources)
        self._shares = np.array([weights[name] / total for name in self._sources])
        self._seed = seed

    def counts(self, step: int, size: int) -> Int[np.ndarray, "n"]:
        """Rows of each source in batch `step`: the whole part of its share, the rest drawn."""
        rng = np.random.default_rng([self._seed, step, 0])
        exact = self._shares * size
        counts = np.floor(exact).astype(np.int64)
        left = size - int(counts.sum())
        if left:
            rest = exact - counts
            counts += rng.multinomial(left, rest / rest.sum())
        return counts

    def batch(self, step: int, size: int) -> list[Example]:
        rng = np.random.default_rng([self._seed, step, 1])
        examples = []
        for (name, source), count in zip(self._sources.items(), self.counts(step, size), strict=True):
            for index in rng.integers(len(source), size=count):
                examples.append(replace(source.example(int(index), rng), source=name))
        return examples
