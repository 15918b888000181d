"""`vla data delete`, `edit` and `rename`: change a store in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from vla.common.plural import counted
from vla.datasets.episode_index import EpisodeRecord
from vla.datasets.episode_selection import episodes_of, success_of
from vla.datasets.episodes import EpisodeStore
from vla.datasets.tools.atomic_store import atomic_replace_store
from vla.datasets.tools.content_change import ContentChange
from vla.datasets.tools.copies import copy_episodes
from vla.embodiment import Embodiment
from vla.errors import InputError


def delete(path: str, *, episodes: str) -> None:
    """Removes episodes ("3,7,9:12") from the store at `path`; the following episodes are renumbered."""
    with atomic_replace_store(path) as (old, new):
        deleted = set(episodes_of(episodes, len(old)))
        retained = [index for index in range(len(old)) if index not in deleted]
        if not retained:
            raise InputError(f"these are all episodes of {path}: remove the folder instead")
        with EpisodeStore.create(new, old.embodiment, old.codec, old.provenance) as store:
            copy_episodes(old, retained, store)
    print(f"{path}: deleted {counted(len(deleted), 'episode')}, {len(retained)} left")


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
    """Edits episodes of the store at `path`; changes of lossy images re-encode them.

    Args:
        path: The store.
        episodes: Indices and ranges: "3,7,9:12", ":" for all.
        instruction: New instruction.
        success: New outcome: true, false or "unknown".
        paraphrases: New alternative wordings.
        action_offset: Offsets of action components, in their unit.
        bgr: Cameras whose red and blue channels are swapped.
        upside_down: Cameras whose images, and points in them, are rotated by 180 degrees.

    Raises:
        InputError: No change is requested, or an episode, component or camera does not exist.
    """
    fields = {"instruction": instruction, "success": success, "paraphrases": paraphrases}
    changes: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    if success is not None:
        changes["success"] = success_of(success)
    content = {"action_offset": action_offset, "bgr": bgr, "upside_down": upside_down}
    changed = [name for name, value in content.items() if value]
    if not changes and not changed:
        raise InputError("set at least one of " + ", ".join(f"{name}=…" for name in {**fields, **content}))
    if not changed:
        with EpisodeStore.open(path, "a") as store:
            selected = episodes_of(episodes, len(store))
            store.edit(dict.fromkeys(selected, changes))
    else:
        with atomic_replace_store(path) as (old, new):
            selected = episodes_of(episodes, len(old))
            change = ContentChange.of(old.embodiment, action_offset or {}, bgr, upside_down)
            with EpisodeStore.create(new, old.embodiment, old.codec, old.provenance) as store:
                for index in tqdm(range(len(old)), desc="copy", unit="episode", leave=False):
                    if index not in selected:
                        store.append_from(old, index)
                    else:
                        change.append(store, old, index)
                        store.edit({len(store) - 1: changes} if changes else {})
    print(f"{path}: set {', '.join([*changes, *changed])} of {counted(len(selected), 'episode')}")


def rename(
    path: str,
    *,
    embodiment: str | None = None,
    cameras: Mapping[str, str] | None = None,
    components: Mapping[str, str] | None = None,
    instructions: Mapping[str, str] | None = None,
) -> None:
    """Renames the embodiment, cameras, components and instructions of the store at `path`.

    Args:
        path: The store.
        embodiment: New name of the embodiment.
        cameras: New names of cameras, {old: new}.
        components: New names, with their units, of state and action components, {old: new}.
        instructions: New texts of instructions, {old: new}, in episodes, paraphrases and sub-tasks.

    Raises:
        InputError: An old name does not exist, or a new name of a camera or component is in use.
    """
    if not (embodiment or cameras or components or instructions):
        raise InputError("set at least one of embodiment=…, cameras=, components=, instructions={old: new}")
    if embodiment or cameras or components:
        with atomic_replace_store(path) as (old, new):
            body = renamed(old.embodiment, embodiment or old.embodiment.name, cameras or {}, components or {})
            changes = reworded(old.records, instructions or {})
            with EpisodeStore.create(new, body, old.codec, old.provenance) as store:
                for index in tqdm(range(len(old)), desc="copy", unit="episode", leave=False):
                    store.append_from(old, index, body, **changes.get(index, {}))
        print(f"{path}: {body.name} with cameras {', '.join(body.cameras)}, state {', '.join(body.state)}")
    else:
        # Instructions are stored only in the index.
        with EpisodeStore.open(path, "a") as store:
            changes = reworded(store.records, instructions or {})
            store.edit(changes)
    if instructions:
        print(f"{path}: changed the instructions of {counted(len(changes), 'episode')}")


def renamed(
    embodiment: Embodiment, robot: str, cameras: Mapping[str, str], components: Mapping[str, str]
) -> Embodiment:
    """The embodiment with new names.

    Raises:
        InputError: A camera or component does not exist, or two have the same name.
    """
    names = _renamed("camera", embodiment.cameras, cameras)
    if invalid := [name for name in names if not name or "/" in name or name.startswith(("_", "."))]:
        raise InputError(f"{invalid[0]!r} is not a valid camera name, because it cannot name a folder")
    body = replace(embodiment, name=robot, cameras=names)
    if not components:
        return body
    if body.kinematics is not None:
        raise InputError("the kinematics of a store with tool poses has the names of its components: derive it again")
    known = dict.fromkeys((*body.state, *body.action))
    _renamed("component", tuple(known), {old: new for old, new in components.items() if old not in known})
    state, action, grippers = (
        _renamed("component", part, {old: new for old, new in components.items() if old in part})
        for part in (body.state, body.action, body.grippers)
    )
    measured = tuple(None if name is None else components.get(name, name) for name in body.action_state)
    return replace(body, state=state, action=action, grippers=grippers, action_state=measured)


def _renamed(kind: str, names: Sequence[str], changes: Mapping[str, str]) -> tuple[str, ...]:
    """The names with changes {old: new}. Raises InputError if one does not exist, or if two become equal."""
    if unknown := changes.keys() - set(names):
        raise InputError(f"there is no {kind} {min(unknown)!r}: there are {', '.join(names)}")
    result = tuple(changes.get(name, name) for name in names)
    if len(set(result)) < len(result):
        raise InputError(f"two {kind}s would have the same name: {', '.join(result)}")
    return result


def reworded(records: Sequence[EpisodeRecord], texts: Mapping[str, str]) -> dict[int, dict[str, Any]]:
    """The changed fields of each episode with one of the old texts, {old: new}.

    Raises:
        InputError: An old text occurs in no episode.
    """
    changes: dict[int, dict[str, Any]] = {}
    unused = set(texts)
    for index, record in enumerate(records):
        present = {record.instruction, *record.paraphrases, *(span.instruction for span in record.spans)}
        unused -= present
        if present & texts.keys():
            changes[index] = {
                "instruction": texts.get(record.instruction, record.instruction),
                "paraphrases": tuple(texts.get(text, text) for text in record.paraphrases),
                "spans": tuple(
                    replace(span, instruction=texts.get(span.instruction, span.instruction)) for span in record.spans
                ),
            }
    if unused:
        raise InputError(f"no episode has the instruction {min(unused)!r}: `vla data info` lists the instructions")
    return changes
