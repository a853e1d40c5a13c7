"""The folder of downloaded files: each under the SHA-1 of its key, in two levels of folders."""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

from vec_pipeline.downloads.temporary import Incoming, saving

PARTIAL = ".partial"  # the folder within the store of files that are being received


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Content of a file in the store, identified by its size and its time of modification."""

    path: str
    link: str

    def read(self) -> bytes:
        return Path(self.path).read_bytes()

    def identity(self) -> str:
        status = os.stat(self.path)
        return f"{status.st_size} {status.st_mtime_ns}"


class Store:
    """Finds and keeps files. What is being received lies in a folder of its own, which no two processes share.

    `close` removes that folder; one that a killed process has left is removed by the next store.
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError where the folder cannot be written."""
        self._folder = folder
        with saving(folder):
            self._partial, self._lock = locked_folder(folder / PARTIAL)

    def incoming(self) -> Incoming:
        return Incoming(self._partial, is_identified=False)  # a stored file is, by its size and time

    def keep(self, incoming: Incoming, key: str) -> StoredFile:
        """Put what was received in its place, at once and whole. Raises UserError."""
        path = path_in(self._folder, key)
        received = incoming.detached()
        with saving(self._folder):
            try:
                os.replace(received, path)
            except FileNotFoundError:
                make_folders(os.path.dirname(path))
                os.replace(received, path)
        return StoredFile(path, key)

    def close(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)
        os.close(self._lock)
        for folder in (self._partial.parent, self._folder):
            with suppress(OSError):  # another process receives, or something is stored
                folder.rmdir()


def stored(folder: Path | None, key: str) -> StoredFile | None:
    """The file of a key, if it is there. An empty one is what a machine leaves that has lost its power."""
    if folder:
        path = path_in(folder, key)
        with suppress(OSError):
            if os.stat(path).st_size:
                return StoredFile(path, key)
    return None


def make_folders(folder: str) -> None:
    """The folder, and the one it is in: in this order, most of which are there after a while."""
    try:
        os.mkdir(folder)
    except FileExistsError:
        pass
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)


def path_in(folder: Path, key: str) -> str:
    name = sha1(key.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()
    return f"{folder}/{name[:2]}/{name[2:4]}/{name}"


def locked_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder; return it and a descriptor that locks it as long as this process has it open.

    Those of processes that have ended are removed.
    """
    while True:
        parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(parent)
        try:
            folder = Path(tempfile.mkdtemp(dir=parent))
        except FileNotFoundError:  # another process has ended and removed the parent
            continue
        descriptor = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # some network drives have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():  # and another process has not taken it for one that was left over
            return folder, descriptor
        os.close(descriptor)


def remove_left_over(parent: Path) -> None:
    """Remove the folders of processes that have ended."""
    for folder in parent.iterdir():
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
