"""Outputs in object stores and remote folders: made on this machine, then put there, so that no half is ever seen."""

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import copyfileobj
from threading import Condition, Thread
from typing import BinaryIO

from vec_pipeline.object_stores import (
    OBJECT_STORES,
    disconnect,
    explained,
    is_address,
    opened,
    scheme_of,
    without_login,
)
from vec_pipeline.record import UserError

MIRROR_EVERY_S = 60.0
MIRROR_PAUSE = 5  # times as long as the last upload took: a large CSV is not copied all the time

logger = logging.getLogger("vec_pipeline")


def path_or_address(text: str) -> Path | str:
    """The value of an option: an address as it is, else a path."""
    return text if is_address(text) else Path(os.path.expanduser(text))


@contextmanager
def uploading(address: str) -> Iterator[Path]:
    """Give the path of a local file, which is put at an address, in place of what is there, once the block succeeds.

    Raises UserError where the address cannot be used.
    """
    target = Target(address)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / target.name
        yield local
        target.put(local)


@contextmanager
def uploading_folder(address: str, index: str, parts: str) -> Iterator[Path]:
    """Give a local folder that stands for the one at an address, which is brought to its state after the block.

    Files that are there already are empty in it, all but `index`, and are not put again. `index` is put after all
    others, and what has gone from the local folder is removed after that.

    parts: a folder in it. If neither it nor `index` is there, but anything else, nothing is written.

    Raises UserError where the address cannot be used.
    """
    target = Target(address.rstrip("/"))
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / target.name
        old = target.fill(folder, index, parts)
        try:
            yield folder
        except UserError as error:
            raise UserError(str(error).replace(str(folder), target.shown)) from None
        target.put_folder(folder, index, old)


class Target:
    """An address to put a file or a folder at. Raises UserError where that cannot be done."""

    def __init__(self, address: str) -> None:
        self.shown = without_login(address)
        self.name = address.rpartition("/")[2]
        self._address = address
        self._is_object_store = scheme_of(address) in OBJECT_STORES
        if not self.name:
            raise UserError(f"{self.shown} names a folder: name a file in it")
        with self._explained():
            self._filesystem, self._path = opened(address)
            if self._is_object_store:  # known now, and not when all the work is done
                with suppress(PermissionError):  # it may be allowed to write only
                    self._filesystem.info(self._path.partition("/")[0])

    def put(self, local: Path) -> None:
        """Put a file there: others see the former file or the new one, and the former one after a failure."""
        with self._explained():
            self._put(local, self._path)

    def fill(self, folder: Path, index: str, parts: str) -> set[str]:
        """Make a local folder of empty files with the names of those that are there; return the names."""
        folder.mkdir()
        with self._explained():
            if not self._has(""):
                return set()
            if not self._has(index) and not self._has(parts):
                raise UserError(f"{self.shown} is not empty and has no {index}: name a new folder")
            root = f"{self._path}/"
            found = {path.removeprefix(root) for path in self._filesystem.find(self._path)}
            names = {name for name in found if not name.endswith("/") and ".." not in name.split("/")}
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
            if index in names:
                self._filesystem.get_file(root + index, str(folder / index))
        return names

    def put_folder(self, folder: Path, index: str, old: set[str]) -> None:
        """Put the files of a local folder there, and remove those of the old names that it lacks."""
        now = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        new = [name for name, path in now.items() if name != index and (name not in old or path.stat().st_size)]
        gone = sorted(old - now.keys())
        with self._explained():
            self._filesystem.put([str(now[name]) for name in new], [f"{self._path}/{name}" for name in new])
            self._put(now[index], f"{self._path}/{index}")
            if gone:
                self._filesystem.rm([f"{self._path}/{name}" for name in gone])

    def _has(self, name: str) -> bool:
        try:
            self._filesystem.info(f"{self._path}/{name}".rstrip("/"))
        except FileNotFoundError:
            return False
        return True

    def _put(self, local: Path, path: str) -> None:
        if self._is_object_store:  # an object is there as a whole, or not at all
            self._filesystem.put_file(str(local), path)
            return
        folder, _, name = path.rpartition("/")
        new = f"{folder}/.{name}.new"
        try:
            self._filesystem.makedirs(folder, exist_ok=True)
            self._filesystem.put_file(str(local), new)
            self._filesystem.mv(new, path)
        except BaseException:
            with suppress(Exception):  # it may not be there
                self._filesystem.rm_file(new)
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any library
            disconnect(self._address, error)
            raise explained(self._address, error) from None


class Mirror:
    """Copies a CSV to an address while it grows: whole rows, at most once a minute, in a thread of its own.

    A copy that fails is logged, and leaves the former one in its place; the next one may succeed.

    failures: after `close`, why the copy is not up to date, a line.

    Raises UserError where the target cannot be used.
    """

    def __init__(self, path: Path, target: str) -> None:
        self.failures: list[str] = []
        self._path = path
        self._address = target
        self._name = Target(target).shown
        self._changed = Condition()
        self._waiting: BinaryIO | None = None  # the CSV of the last checkpoint, even if it has been replaced since
        self._state = self._copied = (0, 0)  # its inode and size in bytes, and those of the last copy
        self._is_closing = False
        self._thread = Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def note_checkpoint(self) -> None:
        """All rows in the CSV are whole now: they can be copied."""
        with self._changed:
            self._note()

    def close(self, wait_s: float | None = None) -> None:
        """Copy the last state, and wait for it: `wait_s`, or as long as the store takes to answer or to give up."""
        with self._changed:
            self._note()
            self._is_closing = True
        self._thread.join(wait_s)
        if self._thread.is_alive():
            self.failures = ["the mirror is not up to date: the last copy was not finished in time"]

    def _note(self) -> None:
        if self._waiting:
            self._waiting.close()
        self._waiting = None
        with suppress(FileNotFoundError):  # no row has been written yet
            self._waiting = self._path.open("rb")
            status = os.fstat(self._waiting.fileno())
            self._state = status.st_ino, status.st_size
        self._changed.notify()

    def _work(self) -> None:
        next_s = 0.0
        while not self._is_closing or self._waiting:
            with self._changed:
                while not self._is_closing and (not self._waiting or time.monotonic() < next_s):
                    self._changed.wait(max(0.0, next_s - time.monotonic()) if self._waiting else None)
                file, state, self._waiting = self._waiting, self._state, None
            start_s = time.monotonic()
            if file:
                with file:
                    self._copy(file, state)
            next_s = start_s + max(MIRROR_EVERY_S, MIRROR_PAUSE * (time.monotonic() - start_s))

    def _copy(self, file: BinaryIO, state: tuple[int, int]) -> None:
        if state == self._copied:
            return
        try:
            with uploading(self._address) as local, local.open("wb") as copy:
                copyfileobj(file, copy)
                copy.truncate(state[1])  # what came after the checkpoint may end within a row
        except Exception as error:  # a full disk, too: it never ends the run
            logger.warning("%s: %s", self._name, error)
            self.failures = [f"the mirror is not up to date: {error}"]
        else:
            self.failures, self._copied = [], state
