"""Statistics of a store of episodes, for the printed summary and the page."""

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
"""Distance of outliers from the range of 98 % of the values, in multiples of that range."""
LATE = 1.5
"""Length of a time step [control periods] above which a frame is missing."""
DRIFT = 0.05
"""Largest relative deviation of the median rate from the control rate."""
CHECKED_EPISODES = 100
"""Maximum number of episodes from which an image is checked."""
BLANK, BLACK = 8, 16
"""An image is blank if its values span less than the first, and black if they are also below the second."""


@dataclass(frozen=True)
class Component:
    """A component of state or action over all steps. `outliers` is the number of outliers in each episode."""

    kind: str
    name: str
    values: Float[np.ndarray, "n"]
    q01: float
    q99: float
    outliers: dict[int, int]


@dataclass(frozen=True)
class Timing:
    """Times between consecutive steps of all episodes [s]. `late` is the number of late steps in each episode."""

    steps: Float[np.ndarray, "n"]
    worst_episode: int
    late: dict[int, int]
    backwards: tuple[int, ...]
    """Episodes in which time does not increase."""

    @property
    def median(self) -> float:
        """The median time [s]."""
        return float(np.median(self.steps))

    @property
    def worst(self) -> float:
        """The longest time [s], in `worst_episode`."""
        return float(self.steps.max())


@dataclass(frozen=True)
class Stream:
    """An array on disk: shape of a row, total bytes, and bytes per step."""

    name: str
    row: tuple[int, ...]
    size: int
    per_frame: float


@dataclass(frozen=True)
class Instruction:
    """An instruction, with the number of episodes that have it as an instruction or as that of a sub-task."""

    text: str
    episodes: int
    successes: int
    unknown: int

    @property
    def rate(self) -> float | None:
        """The share of successes among the episodes with a known outcome."""
        return success_rate(self.episodes, self.successes, self.unknown)


def components(store: EpisodeStore) -> Iterator[Component]:
    """Each component of state, then each of action."""
    for kind, statistics in store.statistics().items():
        values = np.asarray(getattr(store, kind)[:])
        margin = FAR * (statistics.q99 - statistics.q01)
        # If 98 % of the values are equal, as for a gripper that rarely opens, there are no outliers.
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
    """The meaning of each action component: mode, state that measures it, gripper, rotation, wrapping."""
    rotated = {i: rotation.representation for rotation in body.rotations for i in rotation.action}
    meanings = []
    for i, (name, mode) in enumerate(zip(body.action, body.action_mode, strict=True)):
        properties = [mode]
        measured = body.action_state[i]
        properties.append("not measured" if measured is None else f"of state {measured}" if measured != name else "")
        properties.append("gripper" if name in body.grippers else "")
        properties.append(f"rotation {rotated[i]}" if i in rotated else "")
        properties.append(f"wraps after {body.action_turn[i]:.4g}" if body.action_turn[i] else "")
        meanings.append(", ".join(filter(None, properties)))
    return meanings


def blank_cameras(store: EpisodeStore) -> dict[str, str]:
    """Blank cameras, "black" or "of one colour", by the middle image of up to `CHECKED_EPISODES` episodes."""
    ends = store.records.ends
    checked = np.unique(np.linspace(0, len(ends) - 1, min(len(ends), CHECKED_EPISODES)).astype(int))
    middles = (np.where(checked, ends[checked - 1], 0) + ends[checked]) // 2
    found = {}
    for camera in store.embodiment.cameras:
        images = store.frames(camera, middles).reshape(len(middles), -1, 3)
        if (np.ptp(images, axis=1) < BLANK).all():
            found[camera] = "black" if images.max() < BLACK else "of one colour"
    return found


def timing(store: EpisodeStore) -> Timing | None:
    """The timing of the steps; None if no episode has two steps."""
    times = np.asarray(store.time[:])
    lengths = np.array([record.length for record in store.records], int)
    inside = np.ones(max(len(times) - 1, 0), bool)
    inside[np.cumsum(lengths)[:-1] - 1] = False
    steps, first = np.diff(times)[inside], np.flatnonzero(inside)
    if len(steps) == 0:
        return None
    period = 1 / store.embodiment.control_hz
    worst = int(np.argmax(steps))
    return Timing(
        steps=steps,
        worst_episode=next(iter(_by_episode(store, first[worst : worst + 1]))),
        late=_by_episode(store, first[steps > LATE * period]),
        backwards=tuple(_by_episode(store, first[steps <= 0])),
    )


def streams(store: EpisodeStore) -> list[Stream]:
    """The arrays of the store: images first, then other arrays; all other files are the last one, "index"."""
    sizes: Counter[str] = Counter()
    names = store.streams
    for name, size in store.folder.sizes().items():
        array = name.rpartition("/c/")[0] or name.removesuffix("/zarr.json")
        sizes[array if array in names else "index"] += size
    images = sorted(name for name in store.streams if name.startswith("images/"))
    order = [*images, *sorted(store.streams - set(images)), "index"]
    frames = max(store.total_frames, 1)
    return [Stream(name, _row(store, name), sizes[name], sizes[name] / frames) for name in order]


def instructions(store: EpisodeStore) -> list[Instruction]:
    """The instructions of episodes and sub-tasks, the most frequent first."""
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
    """The share of `successes` among the `episodes` with a known outcome; None if there are none."""
    return successes / (episodes - unknown) if episodes > unknown else None


def remarks(store: EpisodeStore, components: Sequence[Component], times: Timing | None) -> list[str]:
    """Problems that should be checked before training on the store, one sentence each."""
    found = []
    for component in components:
        if component.outliers:
            count = sum(component.outliers.values())
            found.append(f"{component.kind} {component.name}: {count} outliers in {named(component.outliers)}")
    if times is not None:
        rate, declared = (1 / times.median if times.median > 0 else np.inf), store.embodiment.control_hz
        if abs(rate - declared) > DRIFT * declared:
            found.append(f"the rate of the steps is {rate:.4g} Hz, not the control rate of {declared:g} Hz")
        if times.late:
            found.append(f"{sum(times.late.values())} steps are late: frames are missing in {named(times.late)}")
        if times.backwards:
            found.append(f"time does not increase in {named(times.backwards)}")
    if len(store):
        many = len(store) > CHECKED_EPISODES
        scope = f"each of {CHECKED_EPISODES} checked episodes" if many else "every episode"
        found += [f"camera {camera} is {kind} in {scope}" for camera, kind in blank_cameras(store).items()]
    lengths = np.array([record.length for record in store.records])
    if len(lengths):
        low, high = np.quantile(lengths, [0.25, 0.75])
        margin = FAR * max(high - low, 1)
        if short := np.flatnonzero(lengths < low - margin).tolist():
            found.append(f"much shorter than the others: {named(short)}")
        if long := np.flatnonzero(lengths > high + margin).tolist():
            found.append(f"much longer than the others: {named(long)}")
    return found


def _by_episode(store: EpisodeStore, steps: np.ndarray) -> dict[int, int]:
    """The number of the steps in each episode."""
    starts = np.array([record.offset for record in store.records], int)
    episodes, counts = np.unique(np.searchsorted(starts, steps, side="right") - 1, return_counts=True)
    return dict(zip(episodes.tolist(), counts.tolist(), strict=True))


def _row(store: EpisodeStore, name: str) -> tuple[int, ...]:
    if name == "index":
        return ()
    kind, _, camera = name.partition("/")
    if kind == "images":
        return store.summary.images[camera]
    if kind == "depth":
        return store.depth(camera, []).shape[1:]
    return store.rows(name).shape[1:]
