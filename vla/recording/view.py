"""`vla view`: recorded episodes in Rerun."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from vla.datasets.episodes import EpisodeStore
from vla.errors import InputError

STORES = ("rollouts.zarr", "demos.zarr")
"""The stores of a run's folder, the one to show first."""
FEW = 20
"""How many episodes are shown unless others are asked for: a viewer holds them all in memory."""


def view(*, path: str, episodes: str | int | None, save: str | None) -> None:
    """Shows episodes of a store, or of a run's folder that holds one, in the viewer or as the file `save` (.rrd).

    `episodes` is FIRST:END with END left out; either may be missing. Raises InputError, before anything is written,
    when there is no store, no such episode, or no screen for the viewer.
    """
    from vla.recording.replay import replay

    store = EpisodeStore.open(find_store(Path(path)))
    # A lone number on the command line arrives as one.
    chosen = choose(None if episodes is None else str(episodes), len(store))
    if save is None and not has_screen():
        raise InputError("there is no screen for the viewer: write a file with --save x.rrd, and open it elsewhere")
    shown = f"episodes {chosen.start} to {chosen.stop - 1} of {len(store)}" if len(store) > 1 else "its one episode"
    print(f"{store.path}: {shown}")
    if episodes is None and len(chosen) < len(store):
        print(f"  the others: --episodes {chosen.stop}:{min(chosen.stop + FEW, len(store))}")
    replay((store[index] for index in chosen), save)
    if save is not None:
        print(f"wrote {save} ({Path(save).stat().st_size / 1e6:.1f} MB); open it with: rerun {save}")


def find_store(path: Path) -> Path:
    """`path` itself, or the store in it that comes first in `STORES`; says so where there are several.

    Raises InputError when `path` is a folder without either.
    """
    if not path.is_dir() or (path / "zarr.json").is_file():
        return path
    found = [path / name for name in STORES if (path / name).is_dir()]
    if not found:
        others = ", ".join(str(other) for other in sorted(path.glob("*.zarr")))
        advice = f"give one of {others}" if others else "give the path of an episode store"
        raise InputError(f"{path} holds neither {' nor '.join(STORES)}: {advice}")
    if len(found) > 1:
        print(f"{path} holds {', '.join(store.name for store in found)}; showing {found[0].name}")
    return found[0]


def choose(episodes: str | None, count: int) -> range:
    """The episodes of a store of `count` that FIRST:END names; None: the first few.

    Raises InputError for what is no such range, and where it holds no episode.
    """
    if episodes is None:
        chosen = range(min(count, FEW))
    else:
        match = re.fullmatch(r"(\d*):(\d*)", episodes)
        if match is None:
            raise InputError(f"episodes must be FIRST:END, such as 0:10, not {episodes!r}")
        chosen = range(count)[int(match[1] or 0) : int(match[2] or count)]
    if not chosen:
        raise InputError(f"there is no episode to show: the store has {count}, asked for were {episodes or 'all'}")
    return chosen


def has_screen() -> bool:
    """Whether a window can open; only Linux and its like can do without one."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY"))
