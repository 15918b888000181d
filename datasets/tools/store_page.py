"""The page of a store of episodes: `vla data info html=FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from vla.common.html_page import bar, format_bytes, image_uri, percent, sample_evenly, section, tile, write_page
from vla.common.plural import counted
from vla.datasets.episode_index import EpisodeRecord, StoreSummary
from vla.datasets.episodes import EpisodeStore
from vla.datasets.store_schema import SCHEMA_VERSION
from vla.datasets.tools.charts import component_chart, lengths_chart, steps_chart
from vla.datasets.tools.digest import (
    Component,
    Instruction,
    Timing,
    components,
    instructions,
    remarks,
    streams,
    success_rate,
    timing,
)
from vla.errors import InputError
from vla.types import outcome_of

EPISODES = 12
"""Number of episodes with pictures."""
INSTRUCTIONS = 15
"""Maximum number of listed instructions."""
PICTURE = 240
"""Maximum width and height of a picture [px]."""


def write_store_page(store: EpisodeStore, file: str) -> Path:
    """Writes or replaces the page `file`. Raises InputError if the store is empty or the file cannot be written."""
    if not len(store):
        raise InputError(f"{store.path} has no episodes to draw: record some first")
    found, times = list(components(store)), timing(store)
    sections = [
        _head(store),
        section("Remarks", _remarks(remarks(store, found, times))),
        section("Episodes", _episodes(store)),
        section("Success by instruction", _instructions(store)),
        section("Length and time", _curves([lengths_chart(store.records), *_steps(times, store)])),
        section("State and action", _components(found)),
        section("On disk", _facts(store) + _streams(store)),
    ]
    return write_page(Path(file), f"{store.path}: episodes", sections)


def _head(store: EpisodeStore) -> str:
    summary = store.summary
    size = sum(store.folder.sizes().values())
    rate = success_rate(summary.episodes, summary.successes, summary.unknown)
    cameras = "".join(f"<br>{escape(name)} {width}×{height}" for name, (height, width) in summary.images.items())
    tiles = (
        tile("episodes", f"{summary.episodes}", counted(len(instructions(store)), "instruction")),
        tile("hours", f"{summary.seconds / 3600:.2f}", f"{summary.frames} steps at {store.embodiment.control_hz:g} Hz"),
        tile("successful", percent(rate) or "unknown", _outcomes(summary)),
        tile("cameras", f"{len(summary.images)}", cameras.removeprefix("<br>")),
        tile("size", format_bytes(size), f"images as {store.codec}"),
    )
    name = store.path.rstrip("/").rpartition("/")[2]
    return (
        f'<h1>{escape(name)}</h1>\n<p class="lead">Episodes of {escape(summary.embodiment)}</p>'
        f'\n<div class="tiles">{"".join(tiles)}</div>'
    )


def _outcomes(summary: StoreSummary) -> str:
    known = counted(summary.successes, "episode") if summary.episodes > summary.unknown else ""
    unknown = f"{summary.unknown} unknown" if summary.unknown else ""
    return ", ".join(filter(None, (known, unknown)))


def _remarks(remarks: Sequence[str]) -> str:
    if not remarks:
        return "<p>Nothing: no outliers, no missing frames, no episode of unusual length.</p>"
    return "<ul>" + "".join(f'<li class="bad">{escape(remark)}</li>' for remark in remarks) + "</ul>"


def _episodes(store: EpisodeStore) -> str:
    figures = "".join(_episode(store, index) for index in shown(store.records))
    return f'<div class="strips">{figures}</div><p class="soft">First, middle and last frame of each camera.</p>'


def shown(records: Sequence[EpisodeRecord]) -> list[int]:
    """The episodes with pictures: evenly distributed over the store, up to half of them failures."""
    failures = [index for index, record in enumerate(records) if record.success is False]
    others = [index for index, record in enumerate(records) if record.success is not False]
    count = min(len(failures), max(EPISODES // 2, EPISODES - len(others)))
    return sorted([*sample_evenly(failures, count), *sample_evenly(others, min(len(others), EPISODES - count))])


def _episode(store: EpisodeStore, index: int) -> str:
    record = store.records[index]
    moments = record.offset + np.array([0, record.length // 2, record.length - 1])
    pictures = "".join(
        f'<img src="{image_uri(frame, ".jpeg", PICTURE)}" alt="{escape(camera)}, {moment}">'
        for camera in store.embodiment.cameras
        for moment, frame in zip(("first", "middle", "last"), store.frames(camera, moments), strict=True)
    )
    outcome = outcome_of(record.success)
    style = {"success": "good", "failure": "bad", "unknown": "soft"}[outcome]
    return (
        f'<figure class="card"><div class="strip">{pictures}</div><figcaption><b>{index}</b> '
        f"{escape(record.instruction)}<br>"
        f'<span class="{style}">{outcome}</span>, {record.length} steps</figcaption></figure>'
    )


def _instructions(store: EpisodeStore) -> str:
    found = sorted(instructions(store), key=lambda instruction: (instruction.rate is None, instruction.rate))
    rows = [
        bar(item.text, item.rate or 0.0, "unknown" if item.rate is None else _counts(item), "wide")
        for item in found[:INSTRUCTIONS]
    ]
    note = f"The {INSTRUCTIONS} least successful of {len(found)}." if len(found) > INSTRUCTIONS else ""
    return f'<div class="bars wide">{"".join(rows)}</div><p class="soft">{note}</p>'


def _counts(instruction: Instruction) -> str:
    unknown = f", {instruction.unknown} unknown" if instruction.unknown else ""
    return f"{instruction.successes} of {instruction.episodes - instruction.unknown}{unknown}"


def _steps(times: Timing | None, store: EpisodeStore) -> list[str]:
    return [] if times is None else [steps_chart(times, store.embodiment.control_hz)]


def _curves(charts: Sequence[str]) -> str:
    figures = "".join(f'<figure class="card">{chart}</figure>' for chart in charts)
    return f'<div class="curves">{figures}</div>'


def _components(found: Sequence[Component]) -> str:
    figures = []
    head = "".join(f"<span>{name}</span>" for name in ("", "min", "1 %", "99 %", "max"))
    for name in dict.fromkeys(component.name for component in found):
        same = [component for component in found if component.name == name]
        numbers = f'<figcaption class="numbers">{head}{"".join(map(_numbers, same))}</figcaption>'
        figures.append(f'<figure class="card">{component_chart(name, same)}{numbers}</figure>')
    text = (
        '<span class="state">■</span> state, <span class="action">□</span> action; dashed: the 1 % and 99 % '
        "quantiles. Outliers are not drawn."
    )
    return f'<div class="curves small">{"".join(figures)}</div><p class="soft">{text}</p>'


def _numbers(component: Component) -> str:
    values = (component.values.min(), component.q01, component.q99, component.values.max())
    cells = "".join(f"<span>{value:.3g}</span>" for value in values)
    count = sum(component.outliers.values())
    outliers = f'<span class="bad far">{count} outliers</span>' if count else ""
    return f"<span>{component.kind}</span>{cells}{outliers}"


def _facts(store: EpisodeStore) -> str:
    facts = {"path": store.path, "schema version": SCHEMA_VERSION, "images": store.codec, **store.provenance}
    rows = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    return f"<dl>{rows}</dl>"


def _streams(store: EpisodeStore) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("size", "bytes a step", "array", "a row"))
    rows = "".join(
        f"<tr><td>{format_bytes(stream.size)}</td><td>{stream.per_frame:.0f}</td><td>{escape(stream.name)}</td>"
        f"<td>{' × '.join(map(str, stream.row)) or '–'}</td></tr>"
        for stream in streams(store)
    )
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
