"""`vla convert`: episodes and questions of other formats into our stores, and episodes into a LeRobotDataset."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.errors import InputError

if TYPE_CHECKING:
    from vla.datasets.episodes import EpisodeStore
    from vla.datasets.formats.source import EpisodeSource
    from vla.types import Episode

TARGETS = ("vla", "lerobot")


def convert(
    *,
    src: str,
    dst: str,
    format: str,
    to: str,
    codec: str,
    episodes: str | int | None,
    fps: float | None,
    instruction: str | None,
    state: str | Sequence[str] | None,
    action: str | Sequence[str] | None,
    cameras: str | Sequence[str] | None,
    use_videos: bool | None,
    images: str | None,
    size: int,
) -> None:
    """Writes what is at `src` to `dst`, reads it back, and says how much it was and what was left out.

    A store goes on after its last episode when the same command is given again. Raises InputError when the source or
    an option cannot be used, before anything is written, or names the episode that cannot be read or written; the
    episodes before it stay in a store, and of a LeRobotDataset nothing does.
    """
    if to not in ("auto", *TARGETS):
        raise InputError(f"to={to}: choose auto, {' or '.join(TARGETS)}")
    target = to if to != "auto" else "vla" if dst.endswith(".zarr") else "lerobot"
    if target == "lerobot" and "://" in dst:
        raise InputError("a LeRobotDataset is written into a folder of this machine: give one as DST, and copy it")
    from vla.datasets.formats.registry import FORMATS, find_format

    name = find_format(src, format)
    if name not in FORMATS:
        from vla.datasets.formats.vqa_import import import_vqa

        if to == "lerobot":
            raise InputError(f"{src} holds questions ({name}), of which LeRobot keeps none")
        import_vqa(Path(src), Path(dst), name, None if images is None else Path(images), size, codec)
        return
    several = {"state": state, "action": action, "cameras": cameras}
    lists = {key: [value] if isinstance(value, str) else value for key, value in several.items()}
    asked = {"fps": fps, "instruction": instruction, **lists}
    options = {key: value for key, value in asked.items() if value is not None}
    # A lone number on the command line arrives as one.
    selection = Selection(src, name, options, None if episodes is None else str(episodes))
    selection.report()
    if target == "vla":
        _to_store(selection, dst, codec)
    else:
        _to_lerobot(selection, Path(dst), use_videos)


class Selection:
    """Some episodes of a source, and what tells whether a store was begun from the same ones."""

    def __init__(self, src: str, format: str, options: Mapping[str, Any], episodes: str | None) -> None:
        """Raises InputError when the source cannot be opened, takes no such option, or has no such episode."""
        from vla.datasets.formats.registry import FORMATS
        from vla.recording.view import choose

        open_source = import_module(FORMATS[format]).open_source
        taken = inspect.signature(open_source).parameters
        for key in options:
            if key not in taken:
                raise InputError(f"{key} is no option for {format} sources: leave it out")
        chosen = {"episodes": episodes} if "episodes" in taken else {}
        self.src = src
        self.format = format
        self.options = options
        self.source: EpisodeSource = open_source(src if "://" in src else Path(src), **options, **chosen)
        self.chosen = choose(episodes or ":", len(self.source))
        self.provenance = {
            **{key: value for key, value in self.source.provenance.items() if key != "conversion"},
            "conversion": {
                "source": Path(src).name,
                "format": format,
                "options": json.loads(json.dumps(dict(options), default=list)),
                "episodes": [self.chosen.start, self.chosen.stop],
            },
        }

    def report(self) -> None:
        """Prints what is read as what, and what is left out."""
        embodiment = self.source.embodiment
        print(
            f"{self.src}: {len(self.chosen)} of {len(self.source)} episodes of {embodiment.name} ({self.format}), "
            f"{len(embodiment.state)} state and {len(embodiment.action)} action components at "
            f"{embodiment.control_hz:g} Hz, cameras {', '.join(embodiment.cameras) or 'none'}"
        )
        for kind in ("state", "action"):
            parts = self.provenance.get(kind, ())
            if len(parts) > 1 and kind not in self.options:
                print(f"  {kind} is {', '.join(parts)} side by side; {kind}=[...] chooses")
        reasons: dict[str, list[str]] = {}
        for name, why in self.provenance.get("left_out", {}).items():
            reasons.setdefault(why, []).append(name)
        for why, names in reasons.items():
            print(f"  left out ({why}): {', '.join(names)}")

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, position: int) -> Episode:
        """Episode number `position` of the chosen ones. Raises InputError that names it in the source."""
        try:
            return self.source[self.chosen[position]]
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.name(position)} cannot be read ({type(error).__name__}: {error})") from error

    def name(self, position: int) -> str:
        return f"episode {self.chosen[position]} of {self.src}"


def _to_store(selection: Selection, dst: str, codec: str) -> None:
    """Appends the episodes that the store at `dst` does not have yet, each read back."""
    from tqdm import tqdm

    from vla.datasets.formats.compare import check_equal

    started, steps, errors = time.monotonic(), 0, []
    with _open_store(selection, dst, codec) as store:
        first = len(store)
        if first:
            print(f"{dst}: going on after {first} episodes")
            try:
                check_equal(selection[first - 1], store[first - 1])
            except InputError as error:
                raise InputError(f"{dst} was not begun from {selection.name(first - 1)}: {error}") from error
        positions = range(first, len(selection))
        for position in tqdm(positions, desc="convert", unit="episode", initial=first, total=len(selection)):
            episode = selection[position]
            with naming(selection.name(position)):
                store.append(episode)
                errors.append(check_equal(episode, store[position]))
            steps += len(episode)
    _print_done(selection, dst, steps, errors, time.monotonic() - started)


def _open_store(selection: Selection, dst: str, codec: str) -> EpisodeStore:
    """A new store, or the one that the same conversion began. Raises InputError for one of other data."""
    from vla.datasets.episodes import EpisodeStore
    from vla.datasets.folder import open_folder

    if not open_folder(dst).exists("zarr.json"):
        return EpisodeStore.create(dst, selection.source.embodiment, codec=codec, provenance=selection.provenance)
    store = EpisodeStore.open(dst, "a")
    begun = {"codec": store.codec, **store.provenance.get("conversion", {})}
    asked = {"codec": codec, **selection.provenance["conversion"]}
    for key, value in asked.items():
        if begun.get(key) != value:
            store.close()
            raise InputError(
                f"{dst} is there already, and not of this conversion (its {key} is {begun.get(key)}, not {value}): "
                "choose another DST, or remove it"
            )
    return store


def _to_lerobot(selection: Selection, dst: Path, use_videos: bool | None) -> None:
    """Writes a LeRobotDataset beside `dst`, reads it back, and moves it there."""
    from tqdm import tqdm

    from vla.datasets.formats import lerobot_v3
    from vla.datasets.formats.compare import check_equal
    from vla.datasets.formats.lerobot_v3_writer import LeRobotWriter
    from vla.datasets.formats.vla_store import StoreSource

    started, steps = time.monotonic(), 0
    provenance = selection.provenance
    source = selection.source
    writer = LeRobotWriter(
        dst,
        source.embodiment,
        provenance,
        use_videos,
        regular_time=provenance.get("regular_time", False),
        example=source.example(selection.chosen) if isinstance(source, StoreSource) else None,
    )
    if writer.started_anew:
        print(f"{dst}: what an earlier run left unfinished cannot be gone on from, and is begun anew")
    try:
        for position in tqdm(range(len(selection)), desc="convert", unit="episode"):
            episode = selection[position]
            with naming(selection.name(position)):
                writer.append(episode)
            steps += len(episode)
        written = lerobot_v3.open_source(writer.finish())
        errors = []
        for position in tqdm(range(len(selection)), desc="read back", unit="episode"):
            with naming(selection.name(position)):
                errors.append(check_equal(selection[position], written[position]))
        writer.publish()
    finally:
        writer.discard()
    _print_done(selection, str(dst), steps, errors, time.monotonic() - started)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Says of which episode an InputError speaks."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def _print_done(selection: Selection, dst: str, steps: int, errors: Sequence[float], seconds: float) -> None:
    if not errors:
        print(f"{dst}: all {len(selection)} episodes are there already")
        return
    # A part of a source has no size of its own.
    before = _size(selection.src) if len(selection) == len(selection.source) else 0
    sizes = " -> ".join(f"{size / 1e6:.1f} MB" for size in (before, _size(dst)) if size)
    error = sum(errors) / len(errors)
    told = [
        f"{dst}: {len(errors)} episodes, {steps} steps written in {seconds:.1f} s",
        *([sizes] if sizes else []),
        "read back equal, " + (f"pixels differ by {error:.2f} of 255 in the mean" if error else "images included"),
    ]
    print("; ".join(told))


def _size(location: str) -> int:
    """Bytes of a file or folder; 0 for what is elsewhere."""
    path = Path(location)
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
