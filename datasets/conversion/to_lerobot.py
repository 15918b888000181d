"""Episodes of a source into a LeRobotDataset, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from vla.datasets.conversion.selection import Selection, nothing_readable
from vla.datasets.conversion.to_store import Written, naming
from vla.errors import InputError
from vla.types import Episode


def to_lerobot(selection: Selection, dst: Path, use_videos: bool | None) -> Written:
    """Writes a LeRobotDataset beside `dst`, reads it back, and moves it there.

    Raises InputError that names the episode that cannot be read or written, or when none can be; nothing is left then.
    """
    from tqdm import tqdm

    from vla.datasets.formats import lerobot_v3
    from vla.datasets.formats.compare import check_equal
    from vla.datasets.formats.lerobot_v3_writer import LeRobotWriter

    written, kept = Written(), []
    writer = LeRobotWriter(
        dst,
        selection.embodiment,
        selection.provenance,
        use_videos,
        regular_time=selection.provenance.get("regular_time", False),
        example=_example(selection),
    )
    if writer.started_anew:
        print(f"{dst}: what an earlier run left unfinished cannot be gone on from, and is begun anew")
    try:
        for position in tqdm(range(len(selection)), desc="convert", unit="episode"):
            try:
                episode = selection[position]
                with naming(selection.name(position)):
                    writer.check(episode)
            except InputError as error:
                if not selection.request.skip:
                    raise InputError(f"{error}; {selection.advice}") from error
                reason = selection.reason(position, error)
                written.skipped.append({"episode": selection.chosen[position], "reason": reason})
                continue
            with naming(selection.name(position)):
                writer.append(episode)
            kept.append(position)
            written.episodes += 1
            written.steps += len(episode)
            written.unsaid += not episode.instruction
        if not kept:
            raise nothing_readable(selection, written.skipped[0]["reason"])
        again = lerobot_v3.open_source(writer.finish(written.skipped))
        for index, position in enumerate(tqdm(kept, desc="read back", unit="episode")):
            with naming(selection.name(position)):
                written.errors.append(check_equal(selection[position], again[index]))
        writer.publish()
    finally:
        writer.discard()
    return written


def _example(selection: Selection) -> Episode | None:
    """An episode with all streams that any has, of a source that knows them: a store of ours."""
    from vla.datasets.formats.vla_store import StoreSource

    source, chosen = selection.opened, selection.chosen
    if not isinstance(source, StoreSource):
        return None
    for start in chosen:
        try:
            return source.example(range(start, chosen.stop))
        except InputError:
            if not selection.request.skip:
                raise
    return None
