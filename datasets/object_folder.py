"""A store's files in an object store, through obstore.

Credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT_URL, …), never from the path. Objects appear atomically when their upload ends.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore, from_url
from zarr.abc.store import Store

from vla.datasets.folder import Buffer, Staging
from vla.errors import InputError

LOCK = ".writer"
ROOT = "zarr.json"


class ObjectFolder:
    """A folder in an object store."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        if "@" in address.netloc or address.query:
            redacted = f"{address.scheme}://…@{address.netloc.rpartition('@')[2]}{address.path}"
            raise InputError(f"{redacted}: give credentials in the environment (AWS_ACCESS_KEY_ID, …), not in the path")
        self.url = url.rstrip("/")
        try:
            self._store: ObjectStore = from_url(self.url)
        except Exception as error:
            raise self._unreachable(error) from error

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """See `Folder.name`."""
        return self.url.rstrip("/").rpartition("/")[2]

    def exists(self, name: str) -> bool:
        """Whether the object exists. For the folder itself (""): whether it contains a store.

        Raises InputError if the object store does not answer, or rejects the credentials.
        """
        try:
            obstore.head(self._store, name or ROOT)
        except FileNotFoundError:
            return False
        except BaseError as error:
            raise self._unreachable(error) from error
        return True

    def open(self, name: str) -> RemoteFile:
        """Opens an object for reading in ranges. Raises FileNotFoundError."""
        return RemoteFile(self._store, name)

    def read(self, name: str) -> Buffer:
        """The full content of an object. Raises FileNotFoundError."""
        return memoryview(obstore.get(self._store, name).bytes())

    def write(self, name: str, content: bytes) -> None:
        """Uploads an object, which appears when the upload ends."""
        obstore.put(self._store, name, content)

    def stage(self, inside: str) -> Staging:
        """A folder among the temporary files. If the writer is killed, its files are not cleaned up."""
        return Staging(Path(mkdtemp(f".{os.getpid()}.partial", "vla-staged.")))

    def take(self, staging: Staging, name: str) -> None:
        """Uploads a staged file as `name`, then removes the local file."""
        obstore.put(self._store, name, staging.file(name))
        staging.file(name).unlink()

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Uploads the root's metadata last: without them there is no store."""
        if self.exists(ROOT):
            raise InputError(f"{self} exists: choose another address, or remove it first")
        try:
            for name, content in files.items():
                if name != ROOT:
                    self.write(name, content)
            obstore.put(self._store, ROOT, files[ROOT], mode="create")
        except AlreadyExistsError:
            raise InputError(f"{self} was created by another process meanwhile") from None
        except (BaseError, FileNotFoundError) as error:  # FileNotFoundError: there is no such bucket
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> InputError:
        # The first line describes the error; the lines after it are obstore's internal structures.
        return InputError(f"cannot reach {self}: {str(error).splitlines()[0]}")

    def remove(self, name: str) -> None:
        """Deletes all objects under `name`."""
        obstore.delete(self._store, [path for path in self.sizes() if path.startswith(f"{name}/")])

    def sizes(self) -> dict[str, int]:
        """The size in bytes of each object, by its path relative to the folder."""
        return {item["path"]: item["size"] for page in obstore.list(self._store) for item in page}

    def lock(self, force: bool = False) -> Callable[[], None]:
        """Creates the lock object, which only one writer can create."""
        mine = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": time.ctime()}).encode()
        try:
            obstore.put(self._store, LOCK, mine, mode="overwrite" if force else "create")
        except AlreadyExistsError:
            holder = bytes(obstore.get(self._store, LOCK).bytes()).decode()
            raise InputError(
                f"another process is writing to {self}: {holder}; if it was killed, "
                f"`vla data check {self} repair=true` removes its lock; of visual questions, remove {self}/{LOCK}"
            ) from None

        owner = os.getpid()

        def release() -> None:
            if os.getpid() == owner:
                obstore.delete(self._store, LOCK)

        return release

    def zarr(self) -> Store:
        """The folder as a zarr `ObjectStore`."""
        from zarr.storage import ObjectStore as ZarrObjectStore

        return ZarrObjectStore(self._store)


class RemoteFile:
    """An object that is read in ranges. Raises FileNotFoundError if it does not exist."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store, self._name = store, name
        self.size = int(obstore.head(store, name)["size"])

    def ranges(self, starts: Sequence[int], ends: Sequence[int]) -> list[Buffer]:
        """The bytes of the ranges. Ranges near each other share one request."""
        return [memoryview(piece) for piece in obstore.get_ranges(self._store, self._name, starts=starts, ends=ends)]
