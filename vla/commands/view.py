"""`vla view`: episodes in Rerun, of our stores and of any format that we read; or a scene of a task."""

from __future__ import annotations

from pathlib import Path

from vla.common.screen import has_screen
from vla.datasets.episode_selection import FEW, choose
from vla.datasets.format_registry import open_episodes
from vla.errors import InputError

STORES = ("rollouts.zarr", "demos.zarr")
"""The stores of a run's folder, the one to show first."""
ABREAST = 4
"""Episodes that can stand side by side."""


def view(
    *,
    path: str | None,
    episodes: str | int | None,
    side_by_side: bool,
    save: str | None,
    task: str | None = None,
    seed: int = 0,
) -> None:
    """Shows episodes of a store, of a run's folder that holds one, or of any format that `vla convert` reads, in the
    viewer or as the file `save` (.rrd). With `task`, in place of a path, the scene of `seed` in MuJoCo's viewer, or as
    the picture `save` (.png), which without a screen is outputs/TASK-SEED.png.

    `episodes` is FIRST:END with END left out; either may be missing. Raises InputError, before anything is written,
    when there is nothing to show, no such episode, too many for `side_by_side`, or no screen for the viewer.
    """
    if (path is None) == (task is None):
        raise InputError("say what to view: path=STORE, or task=TASK seed=0")
    if task is not None:
        from vla.envs.viewer import look

        picture = None if has_screen() else f"outputs/{Path(task).stem}-{seed}.png"
        look(task, seed, picture if save is None else save)
    else:
        _replay(str(path), episodes, side_by_side, save)


def _replay(path: str, episodes: str | int | None, side_by_side: bool, save: str | None) -> None:
    from vla.recording.replay import replay

    path = path if "://" in path else str(find_store(Path(path)))
    source = open_episodes(path)
    # A lone number on the command line arrives as one.
    chosen = choose(None if episodes is None else str(episodes), len(source))
    if side_by_side and len(chosen) > ABREAST:
        raise InputError(f"{len(chosen)} episodes are too many side by side: choose up to {ABREAST}, episodes=0:3")
    if save is None and not has_screen():
        raise InputError("there is no screen for the viewer: write a file with --save x.rrd, and open it elsewhere")
    shown = f"episodes {chosen.start} to {chosen.stop - 1} of {len(source)}" if len(source) > 1 else "its one episode"
    print(f"{path}: {shown}")
    if episodes is None and len(chosen) < len(source):
        print(f"  the others: --episodes {chosen.stop}:{min(chosen.stop + FEW, len(source))}")
    names = [f"episode {index}" for index in chosen] if side_by_side else []
    replay((source[index] for index in chosen), save, names)
    if save is not None:
        print(f"wrote {save} ({Path(save).stat().st_size / 1e6:.1f} MB); open it with: rerun {save}")


def find_store(path: Path) -> Path:
    """`path` itself, or the store in it that comes first in `STORES`; says so where there are several.

    Raises InputError when `path` is a folder of stores of other names.
    """
    found = [path / name for name in STORES if (path / name).is_dir()]
    if not found:
        others = ", ".join(str(other) for other in sorted(path.glob("*.zarr")))
        if others:
            raise InputError(f"{path} holds neither {' nor '.join(STORES)}: give one of {others}")
        return path
    if len(found) > 1:
        print(f"{path} holds {', '.join(store.name for store in found)}; showing {found[0].name}")
    return found[0]
