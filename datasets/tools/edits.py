"""`vla data delete`, `edit` and `rename`: changes of a store in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from vla.common.plural import counted
from vla.datasets.episode_index import EpisodeRecord
from vla.datasets.episode_selection import episodes_of, success_of
from vla.datasets.episodes import EpisodeStore
from vla.datasets.tools.atomic_store import changing
from vla.datasets.tools.content_change import ContentChange
from vla.datasets.tools.copies import copy_episodes
from vla.embodiment import Embodiment
from vla.errors import InputError


def delete(path: str, *, episodes: str) -> None:
    """Removes episodes ("3,7,9:12") from the store at `path`; those behind them move up."""
    with changing(path) as (old, new):
        gone = set(episodes_of(episodes, len(old)))
        kept = [index for index in range(len(old)) if index not in gone]
        if not kept:
            raise InputError(f"these are all episodes of {path}: remove the folder instead")
        with EpisodeStore.create(new, old.embodiment, old.codec, old.provenance) as store:
            copy_episodes(old, kept, store)
    print(f"{path}: deleted {counted(len(gone), 'episode')}, {len(kept)} left")


def edit(
    path: str,
    *,
    episodes: str,
    instruction: str | None = None,
    success: bool | str | None = None,
    paraphrases: Sequence[str] | None = None,
    action_offset: Mapping[str | int, float] | None = None,
    bgr: Sequence[str] = (),
    upside_down: Sequence[str] = (),
) -> None:
    """Sets what is given for each of the episodes ("3,7,9:12", ":" for all) of the store at `path`.

    `success` is true, false or "unknown". `action_offset` is added to action components, in their unit. Of the cameras
    of `bgr` red and blue are exchanged, and images of those of `upside_down` turned by half a turn, with the points in
    them; lossy images are coded once more for it.
    """
    given = {"instruction": instruction, "success": success, "paraphrases": paraphrases}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if success is not None:
        changes["success"] = success_of(success)
    content = {"action_offset": action_offset, "bgr": bgr, "upside_down": upside_down}
    changed = [name for name, value in content.items() if value]
    if not changes and not changed:
        raise InputError("say what to set: " + ", ".join(f"{name}=…" for name in {**given, **content}))
    if not changed:
        with EpisodeStore.open(path, "a") as store:
            chosen = episodes_of(episodes, len(store))
            store.edit(dict.fromkeys(chosen, changes))
    else:
        with changing(path) as (old, new):
            chosen = episodes_of(episodes, len(old))
            change = ContentChange.of(old.embodiment, action_offset or {}, bgr, upside_down)
            with EpisodeStore.create(new, old.embodiment, old.codec, old.provenance) as store:
                for index in tqdm(range(len(old)), desc="copy", unit="episode", leave=False):
                    if index not in chosen:
                        store.append_from(old, index)
                    else:
                        change.append(store, old, index)
                        store.edit({len(store) - 1: changes} if changes else {})
    print(f"{path}: set {', '.join([*changes, *changed])} of {counted(len(chosen), 'episode')}")


def rename(
    path: str,
    *,
    embodiment: str | None = None,
    cameras: Mapping[str, str] | None = None,
    instructions: Mapping[str, str] | None = None,
) -> None:
    """Gives the embodiment of the store at `path` another name (`embodiment`), and others, {old: new}, to cameras and
    to instructions wherever they stand: of episodes, paraphrases and sub-tasks.

    Raises InputError when an old name is not there or a new camera is taken.
    """
    if not (embodiment or cameras or instructions):
        raise InputError("say what to rename: embodiment=…, cameras={old: new}, instructions={old: new}")
    if embodiment or cameras:
        with changing(path) as (old, new):
            body = renamed(old.embodiment, embodiment or old.embodiment.name, cameras or {})
            changes = reworded(old.records, instructions or {})
            with EpisodeStore.create(new, body, old.codec, old.provenance) as store:
                for index in tqdm(range(len(old)), desc="copy", unit="episode", leave=False):
                    store.append_from(old, index, cameras, **changes.get(index, {}))
        print(f"{path}: {body.name} with cameras {', '.join(body.cameras)}")
    else:
        # What is said of episodes is in the index alone.
        with EpisodeStore.open(path, "a") as store:
            changes = reworded(store.records, instructions or {})
            store.edit(changes)
    if instructions:
        print(f"{path}: changed the words of {counted(len(changes), 'episode')}")


def renamed(embodiment: Embodiment, robot: str, cameras: Mapping[str, str]) -> Embodiment:
    """Raises InputError when a camera is not there, or two would have one name."""
    if unknown := cameras.keys() - set(embodiment.cameras):
        raise InputError(f"there is no camera {min(unknown)!r}: there are {', '.join(embodiment.cameras)}")
    names = tuple(cameras.get(camera, camera) for camera in embodiment.cameras)
    if unfit := [name for name in names if not name or "/" in name or name.startswith(("_", "."))]:
        raise InputError(f"a camera cannot be called {unfit[0]!r}: it is the name of a folder")
    if len(set(names)) < len(names):
        raise InputError(f"two cameras would have one name: {', '.join(names)}")
    return replace(embodiment, name=robot, cameras=names)


def reworded(records: Sequence[EpisodeRecord], words: Mapping[str, str]) -> dict[int, dict[str, Any]]:
    """What to set for each episode that says one of `words`, {old: new}. Raises InputError when none says one."""
    changes: dict[int, dict[str, Any]] = {}
    unsaid = set(words)
    for index, record in enumerate(records):
        said = {record.instruction, *record.paraphrases, *(span.instruction for span in record.spans)}
        unsaid -= said
        if said & words.keys():
            changes[index] = {
                "instruction": words.get(record.instruction, record.instruction),
                "paraphrases": tuple(words.get(text, text) for text in record.paraphrases),
                "spans": tuple(
                    replace(span, instruction=words.get(span.instruction, span.instruction)) for span in record.spans
                ),
            }
    if unsaid:
        raise InputError(f"no episode says {min(unsaid)!r}: `vla data info` shows the instructions")
    return changes
