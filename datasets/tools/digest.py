"""What is worth knowing of a store of episodes, in numbers: for the summary to read and for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vla.datasets.episode_selection import named
from vla.datasets.episodes import EpisodeStore
from vla.embodiment import Embodiment

FAR = 3.0
"""An outlier lies this many times the range of 98 % of the values beyond that range."""
LATE = 1.5
"""A time step is late from this many control periods on: a frame is missing."""
DRIFT = 0.05
"""How far the median rate may lie from the control rate, as a share of it."""
LOOKED_AT = 100
"""Episodes of which an image is looked at, at most."""
BLANK, BLACK = 8, 16
"""An image whose values span less shows nothing, and is black below that."""


@dataclass(frozen=True)
class Component:
    """A component of state or action over all steps. `outliers` counts values by episode."""

    kind: str
    name: str
    values: Float[np.ndarray, "n"]
    q01: float
    q99: float
    outliers: dict[int, int]


@dataclass(frozen=True)
class Timing:
    """Time between the steps of one episode, over all episodes [s]. `late` counts steps by episode."""

    steps: Float[np.ndarray, "n"]
    median: float
    worst: float
    worst_episode: int
    late: dict[int, int]
    backwards: tuple[int, ...]
    """Episodes in which time does not grow."""


@dataclass(frozen=True)
class Stream:
    """An array on disk: a row's shape, and bytes in all and a step."""

    name: str
    row: tuple[int, ...]
    size: int
    per_frame: float


@dataclass(frozen=True)
class Instruction:
    """In how many episodes, and successful ones, an instruction is that of the episode or of a sub-task."""

    text: str
    episodes: int
    successes: int
    unknown: int

    @property
    def rate(self) -> float | None:
        """The share of successes among the episodes whose outcome is known."""
        return success_rate(self.episodes, self.successes, self.unknown)


def components(store: EpisodeStore) -> Iterator[Component]:
    """Each component of state, then each of action."""
    for kind, statistics in store.statistics().items():
        values = np.asarray(getattr(store, kind)[:])
        margin = FAR * (statistics.q99 - statistics.q01)
        # Where 98 % of the values are one, as of a gripper that rarely opens, no distance from it is far.
        far = ((values < statistics.q01 - margin) | (values > statistics.q99 + margin)) & (margin > 0)
        for i, name in enumerate(getattr(store.embodiment, kind)):
            yield Component(
                kind,
                name,
                values[:, i],
                float(statistics.q01[i]),
                float(statistics.q99[i]),
                _by_episode(store, np.flatnonzero(far[:, i])),
            )


def meanings(body: Embodiment) -> list[str]:
    """What each action component is: its mode, what measures it, and whether it is a gripper, an angle that wraps or
    part of a rotation."""
    turned = {i: rotation.representation for rotation in body.rotations for i in rotation.action}
    found = []
    for i, (name, mode) in enumerate(zip(body.action, body.action_mode, strict=True)):
        parts = [mode]
        measured = body.action_state[i]
        parts.append("not measured" if measured is None else f"of state {measured}" if measured != name else "")
        parts.append("gripper" if name in body.grippers else "")
        parts.append(f"rotation {turned[i]}" if i in turned else "")
        parts.append(f"wraps after {body.action_turn[i]:.4g}" if body.action_turn[i] else "")
        found.append(", ".join(filter(None, parts)))
    return found


def blank_cameras(store: EpisodeStore) -> dict[str, str]:
    """What cameras that show nothing are, "black" or "of one colour", from one image in each of up to `LOOKED_AT`
    episodes."""
    ends = store.records.ends
    chosen = np.unique(np.linspace(0, len(ends) - 1, min(len(ends), LOOKED_AT)).astype(int))
    middles = (np.where(chosen, ends[chosen - 1], 0) + ends[chosen]) // 2
    found = {}
    for camera in store.embodiment.cameras:
        images = store.frames(camera, middles).reshape(len(middles), -1, 3)
        if (np.ptp(images, axis=1) < BLANK).all():
            found[camera] = "black" if images.max() < BLACK else "of one colour"
    return found


def timing(store: EpisodeStore) -> Timing | None:
    """None where no episode has two steps."""
    times = np.asarray(store.time[:])
    lengths = np.array([record.length for record in store.records], int)
    inside = np.ones(max(len(times) - 1, 0), bool)
    inside[np.cumsum(lengths)[:-1] - 1] = False
    steps, first = np.diff(times)[inside], np.flatnonzero(inside)
    if len(steps) == 0:
        return None
    period = 1 / store.embodiment.control_hz
    median, worst = float(np.median(steps)), int(np.argmax(steps))
    return Timing(
        steps=steps,
        median=median,
        worst=float(steps[worst]),
        worst_episode=next(iter(_by_episode(store, first[worst : worst + 1]))),
        late=_by_episode(store, first[steps > LATE * period]),
        backwards=tuple(_by_episode(store, first[steps <= 0])),
    )


def streams(store: EpisodeStore) -> list[Stream]:
    """Images first, the index last, with all that is none of frames."""
    sizes: Counter[str] = Counter()
    there = store.streams
    for name, size in store.folder.sizes().items():
        array = name.rpartition("/c/")[0] or name.removesuffix("/zarr.json")
        sizes[array if array in there else "index"] += size
    images = sorted(name for name in store.streams if name.startswith("images/"))
    order = [*images, *sorted(store.streams - set(images)), "index"]
    frames = max(store.total_frames, 1)
    return [Stream(name, _row(store, name), sizes[name], sizes[name] / frames) for name in order]


def instructions(store: EpisodeStore) -> list[Instruction]:
    """Those of episodes and of their sub-tasks, the most frequent first."""
    counts: Counter[str] = Counter()
    successes: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for record in store.records:
        texts = {record.instruction, *(span.instruction for span in record.spans)}
        counts.update(texts)
        successes.update(texts if record.success else ())
        unknown.update(texts if record.success is None else ())
    return [Instruction(text, count, successes[text], unknown[text]) for text, count in counts.most_common()]


def success_rate(episodes: int, successes: int, unknown: int) -> float | None:
    """The share of `successes` among the `episodes` whose outcome is known; None where none is."""
    return successes / (episodes - unknown) if episodes > unknown else None


def remarks(store: EpisodeStore, found: Sequence[Component], times: Timing | None) -> list[str]:
    """What a person should look at before training on the store: a sentence each."""
    said = []
    for component in found:
        if component.outliers:
            count = sum(component.outliers.values())
            said.append(f"{component.kind} {component.name}: {count} outliers in {named(component.outliers)}")
    if times is not None:
        rate, wanted = (1 / times.median if times.median > 0 else np.inf), store.embodiment.control_hz
        if abs(rate - wanted) > DRIFT * wanted:
            said.append(f"steps come at {rate:.4g} Hz, not at the control rate of {wanted:g} Hz")
        if times.late:
            said.append(f"{sum(times.late.values())} steps are late: frames are missing in {named(times.late)}")
        if times.backwards:
            said.append(f"time does not grow in {named(times.backwards)}")
    if len(store):
        where = "every episode" if len(store) <= LOOKED_AT else f"each of {LOOKED_AT} episodes that were looked at"
        said += [f"camera {camera} is {look} in {where}" for camera, look in blank_cameras(store).items()]
    lengths = np.array([record.length for record in store.records])
    if len(lengths):
        low, high = np.quantile(lengths, [0.25, 0.75])
        margin = FAR * max(high - low, 1)
        if short := np.flatnonzero(lengths < low - margin).tolist():
            said.append(f"much shorter than the others: {named(short)}")
        if long := np.flatnonzero(lengths > high + margin).tolist():
            said.append(f"much longer than the others: {named(long)}")
    return said


def _by_episode(store: EpisodeStore, steps: np.ndarray) -> dict[int, int]:
    """How many of the steps lie in each episode."""
    starts = np.array([record.offset for record in store.records], int)
    found = np.searchsorted(starts, steps, side="right") - 1
    return dict(zip(*(part.tolist() for part in np.unique(found, return_counts=True)), strict=True))


def _row(store: EpisodeStore, name: str) -> tuple[int, ...]:
    if name == "index":
        return ()
    kind, _, camera = name.partition("/")
    if kind == "images":
        return store.summary.images[camera]
    if kind == "depth":
        return store.depth(camera, []).shape[1:]
    return store.rows(name).shape[1:]
