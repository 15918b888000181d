"""`vla data merge`, `split` and `filter`: make stores from episodes of other stores, without re-encoding images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vla.common.plural import counted
from vla.datasets.codecs import DEFAULT
from vla.datasets.episode_cut import append_cut
from vla.datasets.episode_selection import episodes_of, matching, unknown_of
from vla.datasets.episodes import EpisodeStore
from vla.datasets.store_arrays import PADDED
from vla.datasets.tools.atomic_store import atomic_create
from vla.datasets.tools.cuts import Cuts
from vla.embodiment import Embodiment
from vla.errors import InputError


def merge(path: str, *, others: Sequence[str], out: str) -> None:
    """Makes the store `out` with all episodes of the store at `path` and of the `others`, in this order.

    Images keep their codec; if the codecs differ, `out` is lossless. The number of points and the chunk length are the
    maximum over the stores.

    Raises:
        InputError: The embodiments differ; the message names the component.
    """
    with ExitStack() as stack:
        stores = [stack.enter_context(EpisodeStore.open(location)) for location in (path, *others)]
        for store in stores[1:]:
            _check_fit(stores[0], store)
        codecs = {store.codec for store in stores}
        new = stack.enter_context(atomic_create(out))
        provenance = {"merged from": [_origin(store) for store in stores]}
        codec = codecs.pop() if len(codecs) == 1 else DEFAULT
        with EpisodeStore.create(new, stores[0].embodiment, codec, provenance) as target:
            target.room = {n: max(s.rows(n).shape[1] if n in s.streams else 0 for s in stores) for n in PADDED}
            for store in stores:
                copy_episodes(store, range(len(store)), target)
            count = len(target)
    print(f"{out}: {counted(count, 'episode')} of {counted(len(stores), 'store')}")
    for store in stores[1:]:
        if store.embodiment.name != stores[0].embodiment.name:
            print(f"  {store.path}: the robot {store.embodiment.name} is renamed to {stores[0].embodiment.name}")


def split(path: str, *, out: str, parts: Mapping[str, float], seed: int = 0) -> None:
    """Makes the folder `out` with one store per part, and randomly assigns each episode to a part.

    Each part keeps the order of the episodes.

    Args:
        path: The source store.
        out: The new folder.
        parts: Share of each part, {name: share}.
        seed: Seed of the assignment.

    Raises:
        InputError: The shares are not positive, do not sum to 1, or a part would be empty.
    """
    if not parts or any(not name or "/" in name or name.startswith(".") for name in parts):
        raise InputError(f"the names of parts must be valid folder names, not {', '.join(map(repr, parts)) or 'none'}")
    with EpisodeStore.open(path) as source:
        indices_by_part = draw_parts(len(source), parts, seed)
        with atomic_create(out) as folder:
            for name, indices in indices_by_part.items():
                provenance = {"split": {"part": name, "parts": dict(parts), "seed": seed}, "from": _origin(source)}
                with _like(source, folder / f"{name}.zarr", provenance) as target:
                    copy_episodes(source, indices, target)
    summary = (f"{name}.zarr with {counted(len(indices), 'episode')}" for name, indices in indices_by_part.items())
    print(f"{out}: {', '.join(summary)}")


def filter(
    path: str,
    *,
    out: str,
    episodes: str | None = None,
    success: bool | str | None = None,
    instruction: str | None = None,
    min_steps: int | None = None,
    max_steps: int | None = None,
    drop: str | None = None,
    drop_cameras: Sequence[str] = (),
    trim: float | None = None,
    steps: Mapping[int, str | int] | None = None,
    action_shift: int = 0,
) -> None:
    """Makes the store `out` with the selected episodes, steps and cameras of the store at `path`.

    Args:
        path: The source store.
        out: The new store.
        episodes: A condition of `matching`, as the following four.
        success: Outcome of the episodes.
        instruction: Pattern of the instruction.
        min_steps: Minimum length.
        max_steps: Maximum length.
        drop: Episodes to remove: "3,7,9:12".
        drop_cameras: Cameras to remove.
        trim: As in `Cuts`, as the following two [s].
        steps: Steps to keep, by episode.
        action_shift: Number of steps by which actions are shifted.

    Raises:
        InputError: No selection is requested, an episode or camera does not exist, or nothing is left.
    """
    conditions: dict[str, Any] = {
        "episodes": episodes,
        "success": success,
        "instruction": instruction,
        "min_steps": min_steps,
        "max_steps": max_steps,
    }
    changes = {
        "drop": drop,
        "drop_cameras": list(drop_cameras) or None,
        "trim": trim,
        "steps": None if steps is None else {str(episode): str(text) for episode, text in steps.items()},
        "action_shift": action_shift or None,
    }
    options = {name: value for name, value in {**conditions, **changes}.items() if value is not None}
    if not options:
        raise InputError(f"set at least one of {', '.join(f'{name}=…' for name in {**conditions, **changes})}")
    cuts = Cuts(trim, steps, action_shift)
    with EpisodeStore.open(path) as source:
        selected = matching(source.records, **conditions)
        if drop is not None:
            dropped = set(episodes_of(drop, len(source), "drop"))
            if not (selected := [index for index in selected if index not in dropped]):
                raise InputError(f"drop={drop}: no episode would be left")
        body = without_cameras(source.embodiment, drop_cameras)
        steps_by_episode = cuts.of(source, selected) if cuts.active or drop_cameras else {}
        provenance = {"filter": options, "from": _origin(source)}
        with atomic_create(out) as new, EpisodeStore.create(new, body, source.codec, provenance) as target:
            if steps_by_episode:
                for index, rows in tqdm(steps_by_episode.items(), desc=f"copy {path}", unit="episode", leave=False):
                    append_cut(target, source, index, rows, cuts.rows(source, index, rows))
            else:
                copy_episodes(source, selected, target)
            steps_left, steps_before = target.total_frames, sum(source.records[index].length for index in selected)
        print(f"{out}: {len(selected)} of {counted(len(source), 'episode')} of {path}")
        if steps_left < steps_before:
            print(f"  {counted(steps_before - steps_left, 'step')} of theirs removed, {steps_left} left")
        if isinstance(success, bool) and (unknown := unknown_of(source.records, range(len(source)))):
            print(f"  without {counted(len(unknown), 'episode')} of unknown success; success=unknown selects those")


def without_cameras(body: Embodiment, cameras: Sequence[str]) -> Embodiment:
    """The embodiment without these cameras. Raises InputError if one does not exist."""
    if unknown := set(cameras) - set(body.cameras):
        raise InputError(f"there is no camera {min(unknown)!r}: there are {', '.join(body.cameras) or 'none'}")
    return replace(body, cameras=tuple(camera for camera in body.cameras if camera not in cameras))


def copy_episodes(source: EpisodeStore, indices: Iterable[int], target: EpisodeStore) -> None:
    """Appends episodes of `source` to `target`, with a progress bar."""
    for index in tqdm(list(indices), desc=f"copy {source.path}", unit="episode", leave=False):
        target.append_from(source, index)


def draw_parts(count: int, parts: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Randomly assigns the indices of `count` episodes to parts, whose sizes differ by at most 1 from their shares.

    Raises:
        InputError: As `split`, or the seed is negative.
    """
    shares = np.array([float(share) for share in parts.values()])
    if not (np.all(shares > 0) and math.isclose(shares.sum(), 1, abs_tol=1e-6)):
        raise InputError(f"the shares of the parts must be positive and sum to 1, not {dict(parts)}")
    ends = np.rint(np.cumsum(shares) * count).astype(int)
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, not {seed}")
    drawn = np.split(np.random.default_rng(seed).permutation(count), ends[:-1])
    for name, indices in zip(parts, drawn, strict=True):
        if len(indices) == 0:
            raise InputError(f"{name}: {parts[name]:g} of {count} episodes is none; give it a larger share")
    return {name: sorted(indices.tolist()) for name, indices in zip(parts, drawn, strict=True)}


def _like(source: EpisodeStore, path: Path, provenance: Mapping[str, Any]) -> EpisodeStore:
    return EpisodeStore.create(path, source.embodiment, source.codec, provenance)


def _origin(store: EpisodeStore) -> dict[str, Any]:
    return {"store": store.folder.name, "episodes": len(store), **store.provenance}


def _check_fit(first: EpisodeStore, other: EpisodeStore) -> None:
    """Raises InputError if the stores cannot be merged."""
    try:
        first.embodiment.union([other.embodiment])
    except InputError as error:
        raise InputError(f"{first.path} and {other.path} cannot be merged: {error}") from error
    theirs = other.summary.images
    for camera, (height, width) in first.summary.images.items():
        other_height, other_width = theirs.get(camera, (height, width))
        if (height, width) != (other_height, other_width):
            sizes = f"{width}x{height} pixels in {first.path}, {other_width}x{other_height} in {other.path}"
            raise InputError(f"camera {camera} has {sizes}")
