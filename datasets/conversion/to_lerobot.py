"""Conversion of a source's episodes into a LeRobotDataset. On failure, nothing is left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla.datasets.conversion.selection import Selection, nothing_readable
from vla.datasets.conversion.to_store import Written, naming, readable
from vla.datasets.source_files import read_json_object
from vla.errors import InputError
from vla.types import Episode


def to_lerobot(selection: Selection, dst: Path, use_videos: bool | None) -> Written:
    """Writes a LeRobotDataset next to `dst`, reads it back, and moves it to `dst`; if it is there, nothing is written.

    `use_videos`: whether images are stored as videos (None: as in the source, or videos). Raises InputError that names
    an episode that cannot be read or written, or if none can be; nothing is left then.
    """
    from tqdm import tqdm

    from vla.datasets.formats import lerobot_v3
    from vla.datasets.formats.compare import check_equal
    from vla.datasets.formats.lerobot_v3_writer import LeRobotWriter

    written, written_positions = Written(), []
    if (finished := _finished(dst, selection, use_videos)) is not None:
        written.skipped = finished
        return written
    writer = LeRobotWriter(
        dst,
        selection.embodiment,
        selection.provenance,
        use_videos,
        regular_time=selection.provenance.get("regular_time", False),
        example=_example(selection),
    )
    if writer.started_anew:
        print(f"{dst}: an earlier, unfinished conversion cannot be resumed, and is restarted")
    try:
        positions = tqdm(range(len(selection)), desc="convert", unit="episode")
        for position, episode in readable(selection, positions, writer.check, written.skip):
            with naming(selection.name(position)):
                writer.append(episode)
            written_positions.append(position)
            written.count(episode)
        if not written_positions:
            raise nothing_readable(selection, written.skipped[0]["reason"])
        again = lerobot_v3.open_source(writer.finish(written.skipped))
        for index, position in enumerate(tqdm(written_positions, desc="read back", unit="episode")):
            with naming(selection.name(position)):
                written.errors.append(check_equal(selection[position], again[index]))
        writer.publish()
    finally:
        writer.discard()
    return written


def _finished(dst: Path, selection: Selection, use_videos: bool | None) -> list[dict[str, Any]] | None:
    """The skipped episodes of the dataset at `dst` if this conversion has written it; else None."""
    side, info = dst / "meta" / "vla.json", dst / "meta" / "info.json"
    if not side.is_file() or not info.is_file():
        return None
    provenance: Mapping[str, Any] = read_json_object(side).get("provenance", {})
    kinds = {feature.get("dtype") for feature in read_json_object(info).get("features", {}).values()}
    stored = None if kinds.isdisjoint(("video", "image")) else "video" in kinds
    if provenance.get("conversion") != selection.provenance["conversion"]:
        return None
    if stored is not None and use_videos not in (None, stored):
        return None
    return list(provenance.get("skipped", ()))


def _example(selection: Selection) -> Episode | None:
    """An episode with all optional streams of a store; None for other sources, whose streams are not known."""
    from vla.datasets.formats.vla_store import StoreSource

    source, indices = selection.opened, selection.indices
    if not isinstance(source, StoreSource):
        return None
    for start in indices:
        try:
            return source.example(range(start, indices.stop))
        except InputError:
            if not selection.request.skip:
                raise
    return None
