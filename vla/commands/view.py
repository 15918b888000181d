"""`vla view`: shows episodes of any readable format in Rerun, or a scene of a task in MuJoCo's viewer."""

from __future__ import annotations

from pathlib import Path

from vla.common.screen import has_screen
from vla.datasets.episode_selection import FEW, choose
from vla.datasets.format_registry import open_episodes
from vla.errors import InputError

STORES = ("rollouts.zarr", "demos.zarr")
"""The stores in the folder of a run, in order of preference."""
MAX_SIDE_BY_SIDE = 4
"""Episodes that can be shown side by side."""


def view(
    *,
    path: str | None,
    episodes: str | int | None,
    side_by_side: bool,
    save: str | None,
    task: str | None = None,
    seed: int = 0,
) -> None:
    """Shows episodes in Rerun, or a scene of a task in MuJoCo's viewer; or saves them to a file.

    Args:
        path: A store, the folder of a run that contains one, or any format that `vla convert` reads.
        episodes: FIRST:END without END; both ends are optional. None: the first episodes.
        side_by_side: Shows the episodes next to each other.
        save: File instead of the viewer: .rrd for episodes, .png for a scene.
        task: A task whose scene is shown, instead of `path`. Without a screen the default of `save` is
            outputs/TASK-SEED.png.
        seed: Seed of the scene.

    Raises:
        InputError: There is nothing to show, an episode does not exist, too many are requested side by side, or there
            is no screen. Nothing is written.
    """
    if (path is None) == (task is None):
        raise InputError("set either path=STORE, or task=TASK seed=0")
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
    # A single number on the command line is parsed as an int.
    selected = choose(None if episodes is None else str(episodes), len(source))
    if side_by_side and len(selected) > MAX_SIDE_BY_SIDE:
        raise InputError(
            f"{len(selected)} episodes are too many side by side: choose up to {MAX_SIDE_BY_SIDE}, episodes=0:3"
        )
    if save is None and not has_screen():
        raise InputError(
            "there is no screen for the viewer: write a file with --save x.rrd, and open it on another machine"
        )
    shown = (
        f"episodes {selected.start} to {selected.stop - 1} of {len(source)}" if len(source) > 1 else "its one episode"
    )
    print(f"{path}: {shown}")
    if episodes is None and len(selected) < len(source):
        print(f"  the others: --episodes {selected.stop}:{min(selected.stop + FEW, len(source))}")
    names = [f"episode {index}" for index in selected] if side_by_side else []
    replay((source[index] for index in selected), save, names)
    if save is not None:
        print(f"wrote {save} ({Path(save).stat().st_size / 1e6:.1f} MB); open it with: rerun {save}")


def find_store(path: Path) -> Path:
    """The preferred store in the folder `path` (`STORES`), or `path` itself; prints a line if there are several.

    Raises:
        InputError: `path` is a folder of stores with other names.
    """
    found = [path / name for name in STORES if (path / name).is_dir()]
    if not found:
        others = ", ".join(str(other) for other in sorted(path.glob("*.zarr")))
        if others:
            raise InputError(f"{path} holds neither {' nor '.join(STORES)}: choose one of {others}")
        return path
    if len(found) > 1:
        print(f"{path} holds {', '.join(store.name for store in found)}; showing {found[0].name}")
    return found[0]
