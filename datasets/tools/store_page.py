"""The page of a store of episodes: `vla data info html=FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla.common.html_page import format_bytes, sample_evenly, write_page
from vla.datasets.episode_index import EpisodeRecord
from vla.datasets.episodes import EpisodeStore
from vla.datasets.store_schema import SCHEMA_VERSION
from vla.datasets.tools.charts import component_chart, lengths_chart, steps_chart
from vla.datasets.tools.digest import components, instructions, remarks, streams, success_rate, timing
from vla.errors import InputError
from vla.types import outcome_of

EPISODES = 12
"""Number of episodes with pictures."""
INSTRUCTIONS = 15
"""Maximum number of listed instructions."""


def write_store_page(store: EpisodeStore, file: str) -> Path:
    """Writes or replaces the page `file`. Raises InputError if the store is empty or the file cannot be written."""
    if not len(store):
        raise InputError(f"{store.path} has no episodes to draw: record some first")
    found, times, summary = list(components(store)), timing(store), store.summary
    names = dict.fromkeys(component.name for component in found)
    pairs = {name: [component for component in found if component.name == name] for name in names}
    listed = sorted(instructions(store), key=lambda instruction: (instruction.rate is None, instruction.rate))
    return write_page(
        Path(file),
        f"{store.path}: episodes",
        "episode_store.html",
        store=store,
        rate=success_rate(summary.episodes, summary.successes, summary.unknown),
        remarks=remarks(store, found, times),
        episodes=[_episode(store, index) for index in shown(store.records)],
        instructions=listed,
        most=INSTRUCTIONS,
        charts=[
            lengths_chart(store.records),
            *([] if times is None else [steps_chart(times, store.embodiment.control_hz)]),
        ],
        components=[(component_chart(name, pair), pair) for name, pair in pairs.items()],
        facts={"path": store.path, "schema version": SCHEMA_VERSION, "images": store.codec, **store.provenance},
        streams=[
            (s.name, " × ".join(map(str, s.row)) or "–", format_bytes(s.size), f"{s.per_frame:.0f}")
            for s in streams(store)
        ],
    )


def shown(records: Sequence[EpisodeRecord]) -> list[int]:
    """The episodes with pictures: evenly distributed over the store, up to half of them failures."""
    failures = [index for index, record in enumerate(records) if record.success is False]
    others = [index for index, record in enumerate(records) if record.success is not False]
    count = min(len(failures), max(EPISODES // 2, EPISODES - len(others)))
    return sorted([*sample_evenly(failures, count), *sample_evenly(others, min(len(others), EPISODES - count))])


def _episode(store: EpisodeStore, index: int) -> dict[str, Any]:
    """An episode's record, and for each camera its first, middle and last image."""
    record = store.records[index]
    steps = record.offset + np.array([0, record.length // 2, record.length - 1])
    images = {camera: store.frames(camera, steps) for camera in store.embodiment.cameras}
    return {"index": index, "record": record, "outcome": outcome_of(record.success), "images": images}
