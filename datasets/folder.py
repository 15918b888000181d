"""Where a store's files lie: a folder of this machine, or an object store (s3://, gs://, az://).

Files are replaced whole: a reader finds the old one or the new one. One process writes at a time.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol, runtime_checkable

import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore

from vla.errors import InputError

REMOTE = re.compile(r"(s3|gs|az|azure)://")
Buffer = bytes | memoryview


@runtime_checkable
class File(Protocol):
    """A file to read pieces of; it stays readable as it was when it is replaced or removed meanwhile."""

    @property
    def size(self) -> int: ...

    def ranges(self, starts: Sequence[int], ends: Sequence[int]) -> Sequence[Buffer]:
        """The bytes from each start to before its end."""
        ...


@runtime_checkable
class Folder(Protocol):
    """Files by name ("images/front/c/0/0/0/0"). `str(folder)` never holds a credential."""

    def exists(self, name: str) -> bool: ...

    def open(self, name: str) -> File:
        """Raises FileNotFoundError."""
        ...

    def read(self, name: str) -> Buffer:
        """The whole file, as it was at one moment. Raises FileNotFoundError."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Replaces the file."""
        ...

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Makes the folder with these files, whole or not at all. Raises InputError when something is there."""
        ...

    def stage(self, inside: str) -> Staging:
        """A new folder of this machine for files that are to come here (`take`), where it can on the same disk: within
        the folder `inside`. The caller removes it; what a killed writer left there, the next `lock`."""
        ...

    def take(self, staging: Staging, name: str) -> None:
        """Moves a file from such a folder to here, in the place of the one with that name."""
        ...

    def remove(self, name: str) -> None:
        """Removes what lies under `name`, if anything does."""
        ...

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        ...

    def lock(self, force: bool = False) -> Callable[[], None]:
        """Keeps other writers away until the returned function is called. Raises InputError when one is there.

        `force` takes over a lock that a killed writer left; only an object store has such.
        """
        ...

    def zarr(self) -> Store:
        """The folder, as zarr-python sees it."""
        ...


class LocalFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode: int | None = None

    def __str__(self) -> str:
        return str(self.path)

    def exists(self, name: str) -> bool:
        return os.path.exists(self.path / name)  # False too where we may not look

    def open(self, name: str) -> MappedFile:
        """Raises FileNotFoundError, and InputError when another folder has taken this one's place since `zarr()`."""
        file = MappedFile(self.path / name)
        if self._inode not in (None, self.path.stat().st_ino):
            raise InputError(f"{self} was replaced while it was open (by vla data?): open it again")
        return file

    def read(self, name: str) -> Buffer:
        """Raises as `open`."""
        file = self.open(name)
        return file.ranges([0], [file.size])[0]

    def write(self, name: str, content: bytes) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            unfinished.write_bytes(content)
            unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)  # a full disk needs the space
            raise OSError(error.errno, error.strerror, str(path)) from error

    def publish(self, files: Mapping[str, bytes]) -> None:
        if self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
            raise InputError(f"{self} exists: choose another folder, or remove it first")
        around = [parent for parent in self.path.absolute().parents if (parent / "zarr.json").is_file()]
        if around:
            raise InputError(f"{self} would lie inside the store {around[0]}: choose another folder")
        unfinished = LocalFolder(self.path.with_name(f".{self.path.name}.{os.getpid()}.partial"))
        try:
            for name, content in files.items():
                unfinished.write(name, content)
            unfinished.path.rename(self.path)
        except OSError as error:
            raise InputError(f"cannot create {self}: {error.strerror}") from error
        finally:
            shutil.rmtree(unfinished.path, ignore_errors=True)

    def stage(self, inside: str) -> Staging:
        return Staging(Path(mkdtemp(f".{os.getpid()}.partial", "staged.", self.path / inside)))

    def take(self, staging: Staging, name: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.file(name).replace(path)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.path / name, ignore_errors=True)

    def sizes(self) -> dict[str, int]:
        found = {}
        for file in self.path.rglob("*"):
            with suppress(FileNotFoundError):  # a writer renames what it has finished
                if stat.S_ISREG((about := file.stat()).st_mode):
                    found[file.relative_to(self.path).as_posix()] = about.st_size
        return found

    def lock(self, force: bool = False) -> Callable[[], None]:
        """An flock: it ends with the process. Also removes what a killed writer left unfinished."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(f"another process is writing to {self}: wait for it, or use another store") from None
        for leftover in list(self.path.rglob("*.partial")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        owner = os.getpid()

        def release() -> None:
            # A process that was forked meanwhile holds the descriptor too, and the lock with it.
            if os.getpid() == owner:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

        return release

    def zarr(self) -> Store:
        self._inode = self.path.stat().st_ino
        return LocalStore(self.path)


class Staging(LocalFolder):
    """Files that are to come into another folder, all in one directory: directories take long to make and to remove."""

    def file(self, name: str) -> Path:
        return self.path / name.replace("/", ".")

    def open(self, name: str) -> MappedFile:
        return MappedFile(self.file(name))


class MappedFile:
    """A file in the page cache, which all processes share."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            # An empty file cannot be mapped.
            self._data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b"")

    def ranges(self, starts: Sequence[int], ends: Sequence[int]) -> list[memoryview]:
        return [self._data[start:end] for start, end in zip(starts, ends, strict=True)]


def array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """The array `name`, to read and to write. Raises KeyError when there is none, TypeError when it is a group."""
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise TypeError(f"{name} is not an array")
    # All-zero chunks are written too, so that a missing one always means damage.
    return found.with_config({"write_empty_chunks": True})


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Turns what zarr raises over damaged files into an InputError that names `path`."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{path} is damaged or half-written ({error}): restore it from a copy or record again"
        ) from error
