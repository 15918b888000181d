"""`vla data info`: prints a summary of a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vla.common.plural import counted
from vla.datasets.episode_index import StoreSummary
from vla.datasets.episodes import EpisodeStore
from vla.datasets.store_schema import SCHEMA_VERSION
from vla.datasets.tools.digest import (
    Component,
    Instruction,
    Timing,
    components,
    instructions,
    meanings,
    named,
    remarks,
    streams,
    success_rate,
    timing,
)
from vla.datasets.tools.store_kind import format_of
from vla.datasets.tools.vqa_info import describe_vqa
from vla.datasets.vqa import FORMAT as VQA_FORMAT
from vla.datasets.vqa import VqaStore
from vla.embodiment import Embodiment

MAX_INSTRUCTIONS = 10
"""Maximum number of listed instructions."""


def info(path: str, *, html: str | None = None) -> None:
    """Prints a summary of a store of episodes or of visual questions; decodes only a few images.

    Args:
        path: The store.
        html: File for a page with plots and images; replaced if it exists.

    Raises:
        InputError: There is no readable store, or a page is requested for an empty store.
    """
    # Pages are imported only if needed: matplotlib takes a second to import.
    if format_of(path) == VQA_FORMAT:
        questions = VqaStore(path)
        print("\n".join(describe_vqa(questions)))
        if html is not None:
            from vla.datasets.tools.vqa_page import write_vqa_page

            print(f"wrote {write_vqa_page(questions, html)}")
        return
    with EpisodeStore.open(path) as store:
        print("\n".join(describe(store)))
        if html is not None:
            from vla.datasets.tools.store_page import write_store_page

            print(f"wrote {write_store_page(store, html)}")


def describe(store: EpisodeStore) -> Iterator[str]:
    """The lines of the summary."""
    summary, count = store.summary, len(store)
    yield f"{store.path}: {counted(count, 'episode')} of {summary.embodiment}, {_outcomes(summary)}"
    lengths = [record.length for record in store.records] or [0]
    yield (
        f"  {summary.frames} steps, {summary.seconds / 3600:.2f} h at {store.embodiment.control_hz:g} Hz, "
        f"{min(lengths)} to {max(lengths)} an episode (mean {np.mean(lengths):.0f})"
    )
    times = timing(store)
    if times is not None:
        yield from _timing(times)
    yield from _labels(store)
    yield from _provenance(store.provenance)
    yield from _sizes(store)
    yield from _instructions(instructions(store))
    found = list(components(store)) if count else []
    if found:
        yield from _components(found, store.embodiment)
    yield from (f"  ! {remark}" for remark in remarks(store, found, times))


def _outcomes(summary: StoreSummary) -> str:
    """The number of successful episodes, and of those with an unknown outcome."""
    rate = success_rate(summary.episodes, summary.successes, summary.unknown)
    if summary.episodes and rate is None:
        return "success unknown"
    known = f"{summary.successes} successful" + ("" if rate is None else f" ({100 * rate:.3g}%)")
    return f"{known}, success of {summary.unknown} unknown" if summary.unknown else known


def _timing(found: Timing) -> Iterator[str]:
    rate = f" ({1 / found.median:.4g} Hz)" if found.median > 0 else ""
    yield (
        f"  time between steps: median {1000 * found.median:.4g} ms{rate}, "
        f"longest {1000 * found.worst:.4g} ms (episode {found.worst_episode})"
    )


def _labels(store: EpisodeStore) -> Iterator[str]:
    """The optional data of the store: sub-tasks, paraphrases and additional arrays."""
    spans = [len(record.spans) for record in store.records if record.spans]
    phrased = [len(record.paraphrases) for record in store.records if record.paraphrases]
    if spans:
        yield f"  {counted(sum(spans), 'sub-task')} in {counted(len(spans), 'episode')}"
    if phrased:
        yield f"  {counted(sum(phrased), 'paraphrase')} in {counted(len(phrased), 'episode')}"
    for name in sorted(store.streams):
        if not name.startswith("images/") and name not in ("state", "action", "time"):
            count = sum(name in record.streams for record in store.records)
            yield f"  {name} in {counted(count, 'episode')}"


def _provenance(provenance: Mapping[str, Any]) -> Iterator[str]:
    for name, value in provenance.items():
        yield f"  {name}: {short(value)}"


def _sizes(store: EpisodeStore) -> Iterator[str]:
    found = streams(store)
    total = sum(stream.size for stream in found)
    yield f"  {total / 1e6:.1f} MB; images as {store.codec}; schema version {SCHEMA_VERSION}"
    yield f"    {'stream':24}{'row':>12}{'MB':>10}{'bytes a frame':>16}"
    for stream in found:
        row = "x".join(map(str, stream.row[::-1] if "/" in stream.name else stream.row)) or "-"
        yield f"    {stream.name:24}{row:>12}{stream.size / 1e6:>10.2f}{stream.per_frame:>16.0f}"


def _instructions(found: list[Instruction]) -> Iterator[str]:
    yield f"  {counted(len(found), 'instruction')}{'; successful:' if found else ''}"
    for instruction in found[:MAX_INSTRUCTIONS]:
        yield f"    {instruction.episodes:6} x {instruction.text} ({_share(instruction.rate)})"
    if rest := found[MAX_INSTRUCTIONS:]:
        count, successes, unknown = (sum(getattr(i, key) for i in rest) for key in ("episodes", "successes", "unknown"))
        yield f"    {count:6} x {len(rest)} others ({_share(success_rate(count, successes, unknown))})"


def _share(rate: float | None) -> str:
    return "unknown" if rate is None else f"{rate:.0%}"


def _components(found: Iterable[Component], body: Embodiment) -> Iterator[str]:
    """One line per component: quantiles, extremes, number of outliers, and the meaning of an action."""
    meaning_of = dict(zip(body.action, meanings(body), strict=True))
    yield f"  {'':28}{'1 %':>11}{'99 %':>11}{'min':>11}{'max':>11}  outliers; what an action is"
    for component in found:
        numbers = (component.q01, component.q99, component.values.min(), component.values.max())
        row = "".join(f" {_number(float(number)):>10}" for number in numbers)
        outliers = f"{sum(component.outliers.values())} ({named(component.outliers)})" if component.outliers else "-"
        meaning = f"; {meaning_of[component.name]}" if component.kind == "action" else ""
        yield f"  {f'{component.kind} {component.name}':28}{row}  {outliers}{meaning}"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1e5 else f"{value:.3g}"


def short(value: Any) -> str:
    """A JSON value as text on one line, truncated to 100 characters."""
    text = ", ".join(f"{k}: {short(v)}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
    return text if len(text) < 100 else f"{text[:97]}..."
