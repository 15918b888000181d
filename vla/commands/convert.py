"""`vla convert`: converts episodes and questions of other formats into stores, and episodes into a LeRobotDataset."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.common.plural import counted
from vla.datasets.conversion.selection import Request, Selection, full_command, nothing_readable, print_skipped
from vla.errors import InputError

if TYPE_CHECKING:
    from vla.datasets.conversion.to_store import Written

TARGETS = ("vla", "lerobot")


READING = ("fps", "instruction", "state", "action", "cameras", "rename", "bgr", "flip")
ACTIONS = ("actions", "grippers", "rotations")
LISTS = ("state", "action", "cameras")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """The options of `vla convert`; configs/convert.yaml describes each."""

    src: str
    dst: str
    format: str
    to: str
    codec: str | None
    episodes: str | int | None
    skip: bool
    workers: int
    fps: float | None
    instruction: str | None
    state: str | Sequence[str] | None
    action: str | Sequence[str] | None
    cameras: str | Sequence[str] | None
    rename: Mapping[str, str] | None
    actions: str | Mapping[str, str] | None
    grippers: Sequence[str] | None
    rotations: Mapping[str, Sequence[str]] | None
    bgr: bool | str | Sequence[str] | None
    flip: str | Mapping[str, str] | None
    use_videos: bool | None
    images: str | None
    size: int | None

    @property
    def target(self) -> str:
        """The format to write, of `TARGETS`. Raises InputError if the destination does not allow it."""
        if self.to not in ("auto", *TARGETS):
            raise InputError(f"to={self.to}: choose auto, {' or '.join(TARGETS)}")
        target = self.to if self.to != "auto" else "vla" if self.dst.endswith(".zarr") else "lerobot"
        if target == "lerobot" and "://" in self.dst:
            raise InputError("a LeRobotDataset is written to a local folder: set DST to a local folder, then copy it")
        return target

    def values(self, *names: str) -> dict[str, Any]:
        """Those of the options that are set, with single names as lists."""
        found = {name: getattr(self, name) for name in names}
        off = {"bgr": not self.bgr, "flip": not self.flip, "skip": not self.skip, "workers": self.workers == 1}
        kept = {name: value for name, value in found.items() if value is not None and not off.get(name, False)}
        return {name: [v] if name in LISTS and isinstance(v, str) else v for name, v in kept.items()}


def convert(options: ConvertOptions) -> None:
    """Converts `src` to `dst`, verifies the result by reading it back, and prints a summary and the skipped episodes.

    Running the same command again continues a store after its last episode. With `skip`, episodes that cannot be read
    or stored are skipped and listed. Each of the `workers` processes converts a part of the episodes into a store next
    to `dst`; the parts are merged at the end. On several machines, use one `episodes=FIRST:END` and DST per job (`-m`
    and a Hydra launcher, see `configs/convert.yaml`) and `vla data merge`.

    Raises:
        InputError: The source or an option cannot be used (nothing is written), or an episode cannot be read or
            written. In the second case a store keeps the episodes before it; a LeRobotDataset is removed.
    """
    options = replace(options, dst=options.dst.rstrip("/") or options.dst)
    target = options.target
    if options.workers < 1:
        raise InputError(f"workers={options.workers}: must be 1 or more")
    # A single number on the command line is parsed as an int.
    numbers = None if options.episodes is None else str(options.episodes)
    from vla.datasets.codecs import codec as known_codec
    from vla.datasets.episode_selection import check_range
    from vla.datasets.format_registry import FORMATS, find_format

    if numbers is not None:
        check_range(numbers)
    if options.codec is not None:
        known_codec(options.codec)
    if target == "vla":
        _refuse(options.values("use_videos"), "a zarr store")
    name = find_format(options.src, options.format)
    if name not in FORMATS:
        episodes = options.values(*READING, *ACTIONS, "episodes", "skip", "workers", "use_videos")
        _refuse(episodes, f"a set of questions ({name})")
        _import_questions(options, name)
        return
    _refuse(options.values("images", "size"), f"episodes ({name})")
    if target == "lerobot":
        _refuse(options.values("codec", "workers"), "a LeRobotDataset")
    request = Request(options.src, name, options.values(*READING), numbers, options.skip, options.values(*ACTIONS))
    selection = _select(request, options.dst)
    selection.report()
    _convert(selection, target, options)


def _refuse(options: Mapping[str, Any], target: str) -> None:
    """Raises InputError if an option is set that does not apply to the target."""
    for key in options:
        raise InputError(f"{key} is no option for {target}: leave it out")


def _import_questions(options: ConvertOptions, name: str) -> None:
    from vla.datasets.formats.vqa_import import import_vqa

    if options.to == "lerobot":
        raise InputError(f"{options.src} holds questions ({name}), which a LeRobotDataset cannot store")
    values = options.values("images", "size", "codec")
    values |= {"images": Path(values["images"])} if "images" in values else {}
    import_vqa(Path(options.src), Path(options.dst), name, **values)
    print(_next_step(options.dst))


def _select(request: Request, dst: str) -> Selection:
    """Raises InputError with a complete example command if the user must choose an option."""
    from vla.datasets.formats.columns import MissingChoice

    try:
        return Selection(request)
    except MissingChoice as error:
        episodes = {"episodes": request.episodes} if request.episodes else {}
        options = {
            **request.options,
            **request.actions,
            **error.options,
            **episodes,
            **({"skip": "true"} if request.skip else {}),
        }
        command = full_command(request.src, dst, options)
        raise InputError(f"{error.message}: choose it, for example: {command}") from error


def _convert(selection: Selection, target: str, options: ConvertOptions) -> None:
    started, dst = time.monotonic(), options.dst
    if target == "lerobot":
        from vla.datasets.conversion.to_lerobot import to_lerobot

        written = to_lerobot(selection, Path(dst), options.use_videos)
    else:
        written = _to_store(selection, dst, options.codec, options.workers)
    _print_done(selection, dst, written, time.monotonic() - started)


def _to_store(selection: Selection, dst: str, codec: str | None, workers: int) -> Written:
    """Raises InputError if every episode was skipped."""
    from vla.datasets.codecs import DEFAULT
    from vla.datasets.conversion.parallel import parts_folder, to_store_in_parts
    from vla.datasets.conversion.to_store import to_store

    codec = codec or DEFAULT
    # A conversion that several processes started is continued in parts.
    in_parts = workers > 1 or ("://" not in dst and parts_folder(dst).is_dir())
    written = to_store_in_parts(selection, dst, codec, workers) if in_parts else to_store(selection, dst, codec)
    if len(written.skipped) == len(selection):
        raise nothing_readable(selection, written.skipped[0]["reason"])
    return written


def _print_done(selection: Selection, dst: str, written: Written, seconds: float) -> None:
    if not written.episodes:
        count = len(selection) - len(written.skipped)
        print(f"{dst}: all {counted(count, 'episode')} are there already")
    else:
        # The size of a part of the source is unknown.
        before = _size(selection.src) if len(selection) == len(selection.source) else 0
        sizes = " -> ".join(f"{size / 1e6:.1f} MB" for size in (before, _size(dst)) if size)
        error = sum(written.errors) / max(1, len(written.errors))
        amount = f"{counted(written.episodes, 'episode')}, {counted(written.steps, 'step')}"
        remarks = [
            f"{dst}: {amount} written in {seconds:.1f} s",
            *([sizes] if sizes else []),
            f"read back: numbers equal, pixels within {error:.2f} of 255 in the mean" if error else "read back equal",
        ]
        print("; ".join(remarks))
    if written.without_instruction:
        missing = f"{written.without_instruction} of {counted(written.episodes, 'episode')}"
        print(f"  {missing} have no instruction: set it by instruction='…', or by `vla data edit` in a store")
    print_skipped(written.skipped)
    print(_next_step(dst))


def _next_step(dst: str) -> str:
    """The command that shows a result: a store, or a LeRobotDataset."""
    is_dataset = "://" not in dst and (Path(dst) / "meta" / "info.json").is_file()
    return f"vla {'view' if is_dataset else 'data info'} {shlex.quote(dst)}"


def _size(location: str) -> int:
    """Bytes of a local file or folder; 0 for other locations."""
    path = Path(location)
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
