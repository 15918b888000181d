"""The files of a store, in a local folder or in an object store (s3://, gs://, az://).

Files are replaced atomically: a reader gets the old or the new one. Only one process writes at a time.
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
from typing import TYPE_CHECKING, Any, Protocol, override, runtime_checkable

from vla.errors import InputError

if TYPE_CHECKING:  # half a second, which the checks of a command do without
    import zarr
    from zarr.abc.store import Store

REMOTE = re.compile(r"(s3|gs|az|azure)://")
Buffer = bytes | memoryview


@runtime_checkable
class File(Protocol):
    """A file that is read in ranges. It stays readable with its old content if it is replaced or removed meanwhile."""

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        ...

    def ranges(self, starts: Sequence[int], ends: Sequence[int]) -> Sequence[Buffer]:
        """The bytes of each range, from its start to before its end."""
        ...


@runtime_checkable
class Folder(Protocol):
    """Files by name ("images/front/c/0/0/0/0"). `str(folder)` never contains a credential."""

    @property
    def name(self) -> str:
        """The last part of its path or address."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        ...

    def open(self, name: str) -> File:
        """Opens a file for reading. Raises FileNotFoundError."""
        ...

    def read(self, name: str) -> Buffer:
        """The full content of a file at one point in time. Raises FileNotFoundError."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Replaces a file atomically."""
        ...

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Creates the folder with these files, or nothing on failure. Raises InputError if it exists."""
        ...

    def stage(self, inside: str) -> Staging:
        """A new local folder for files that `take` will move here: within `inside`, if possible on the same disk.

        The caller removes it. Staging folders of killed writers are removed by the next `lock`.
        """
        ...

    def take(self, staging: Staging, name: str) -> None:
        """Moves a file from a staging folder to here. Replaces the file of that name."""
        ...

    def remove(self, name: str) -> None:
        """Removes all files under `name`, if there are any."""
        ...

    def sizes(self) -> dict[str, int]:
        """The size of each file in bytes."""
        ...

    def lock(self, force: bool = False) -> Callable[[], None]:
        """Locks out other writers until the returned function is called. Raises InputError if another one is active.

        `force` takes over the lock of a killed writer, which only remains in an object store.
        """
        ...

    def zarr(self) -> Store:
        """The folder as a store of zarr-python."""
        ...


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode: int | None = None

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """See `Folder.name`."""
        return self.path.name

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        return os.path.exists(self.path / name)  # also False without permission to look

    def open(self, name: str) -> MappedFile:
        """Raises FileNotFoundError, or InputError if the folder was replaced by another one since `zarr()`."""
        file = MappedFile(self.path / name)
        if self._inode not in (None, self.path.stat().st_ino):
            raise InputError(f"{self} was replaced while it was open (by vla data?): open it again")
        return file

    def read(self, name: str) -> Buffer:
        """Raises as `open`."""
        file = self.open(name)
        return file.ranges([0], [file.size])[0]

    def write(self, name: str, content: bytes) -> None:
        """Writes a temporary file and renames it to `name`. Raises OSError with the file's path."""
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
        """Writes the files to a temporary folder and renames it. Raises InputError also if it lies inside a store."""
        if self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
            raise InputError(f"{self} exists: choose another folder, or remove it first")
        enclosing = [parent for parent in self.path.absolute().parents if (parent / "zarr.json").is_file()]
        if enclosing:
            raise InputError(f"{self} would lie inside the store {enclosing[0]}: choose another folder")
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
        """Creates a temporary folder within `inside`, whose files `take` can rename."""
        return Staging(Path(mkdtemp(f".{os.getpid()}.partial", "staged.", self.path / inside)))

    def take(self, staging: Staging, name: str) -> None:
        """Renames a staged file to `name`."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.file(name).replace(path)

    def remove(self, name: str) -> None:
        """Removes the folder `name` with its files, if it exists."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def sizes(self) -> dict[str, int]:
        """The size in bytes of each file, by its path relative to the folder."""
        sizes = {}
        for file in self.path.rglob("*"):
            with suppress(FileNotFoundError):  # a writer renames finished files
                if stat.S_ISREG((status := file.stat()).st_mode):
                    sizes[file.relative_to(self.path).as_posix()] = status.st_size
        return sizes

    def lock(self, force: bool = False) -> Callable[[], None]:
        """An flock, which ends with the process. Also removes the unfinished files of killed writers."""
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
            # A process forked meanwhile also holds the descriptor, and with it the lock.
            if os.getpid() == owner:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

        return release

    def zarr(self) -> Store:
        """The folder as a zarr `LocalStore`; from then on `open` detects that the folder was replaced."""
        from zarr.storage import LocalStore

        self._inode = self.path.stat().st_ino
        return LocalStore(self.path)


class Staging(LocalFolder):
    """Staged files for another folder, all in one directory: creating and removing directories is slow."""

    def file(self, name: str) -> Path:
        """The path of a staged file; slashes of its name become dots."""
        return self.path / name.replace("/", ".")

    @override
    def open(self, name: str) -> MappedFile:
        return MappedFile(self.file(name))


class MappedFile:
    """A memory-mapped file. Its pages are shared by all processes."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            # An empty file cannot be mapped.
            self._data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b"")

    def ranges(self, starts: Sequence[int], ends: Sequence[int]) -> list[memoryview]:
        """The bytes of each range, as views of the mapped memory without a copy."""
        return [self._data[start:end] for start, end in zip(starts, ends, strict=True)]


def array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """The array `name`, for reading and writing. Raises KeyError if there is none, TypeError if it is a group."""
    import zarr

    member = group[name]
    if not isinstance(member, zarr.Array):
        raise TypeError(f"{name} is not an array")
    # All-zero chunks are written too, so that a missing chunk always means damage.
    return member.with_config({"write_empty_chunks": True})


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Converts zarr's errors on damaged files into an InputError that names `path`."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{path} is damaged or half-written ({error}): restore it from a copy or record again"
        ) from error
