"""Bytes that are kept only as long as they are needed: few in memory, many in a file that goes by itself."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any, Self
from zlib import crc32

from vec_pipeline.record import Content, UserError

MEMORY_BYTES = 65_536  # of one content that are held in memory


@dataclass(frozen=True, slots=True)
class InMemory:
    """Content that is held in memory."""

    data: bytes = field(repr=False)
    version: str
    link: str

    def read(self) -> bytes:
        return self.data

    def identity(self) -> str:
        return self.version


@dataclass(frozen=True, slots=True, eq=False)
class TemporaryFile:
    """Content in a file that is removed with this object, which therefore cannot be copied or pickled."""

    path: str
    version: str
    link: str

    def read(self) -> bytes:
        return Path(self.path).read_bytes()

    def identity(self) -> str:
        return self.version

    def __reduce__(self) -> Any:
        raise TypeError("a temporary file cannot be pickled: it is removed with its object")

    def __del__(self) -> None:
        with suppress(OSError):
            os.unlink(self.path)


def temporary_content(data: bytes, identity: str, link: str = "", folder: Path | None = None) -> Content:
    """Content of bytes that can be had only now, while a stream is read.

    folder: of the files of large ones, None for the system's.

    Raises UserError where it is full.
    """
    if len(data) <= MEMORY_BYTES:
        return InMemory(data, identity, link)
    with Incoming(folder) as incoming:
        if folder:
            with saving(folder):
                folder.mkdir(parents=True, exist_ok=True)
        incoming.write(data)
        return TemporaryFile(incoming.detached(), identity, link)


class Incoming:
    """Bytes that are being received: in memory, or in a file once there are many.

    Leaving its context removes the file, unless it was taken by `detached` before.
    """

    def __init__(self, folder: Path | None, *, is_identified: bool = True) -> None:
        """is_identified: whether `identity` will be asked for, which costs a millisecond per MB."""
        self._folder = folder
        self._is_identified = is_identified
        self._file: Any = None
        self._path = ""
        self._crc = 0
        self.size = 0
        self.memory = bytearray()  # all of it, or its beginning

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a full disk has been told of already
            if self._file:
                self._file.close()
        with suppress(OSError):
            if self._path:
                os.unlink(self._path)

    @property
    def is_in_memory(self) -> bool:
        return self._file is None

    @property
    def identity(self) -> str:
        """Of the bytes so far: the same for the same bytes."""
        return f"{self.size} {self._crc:08x}"

    def write(self, data: bytes) -> None:
        """Raises UserError where there is no space left."""
        self.size += len(data)
        if self._is_identified:
            self._crc = crc32(data, self._crc)
        if self._file is None and self.size <= MEMORY_BYTES:
            self.memory += data
            return
        with saving(self._folder):
            if self._file is None:
                self._open()
            self._file.write(data)

    def detached(self) -> str:
        """The path of a file that holds all of it; its removal is now up to the caller. Raises as `write`."""
        with saving(self._folder):
            if self._file is None:
                self._open()
            self._file.close()
        path, self._path = self._path, ""
        return path

    def _open(self) -> None:
        path = f"{self._folder or tempfile.gettempdir()}/{token_hex(8)}"
        mode = 0o666 if self._folder else 0o600  # the system's folder is everybody's
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")
        self._path = path
        self._file.write(self.memory)


@contextmanager
def saving(folder: Path | None) -> Iterator[None]:
    """Turn what prevents a file from being written into a UserError: it would be the same for every picture."""
    try:
        yield
    except OSError as error:
        place = folder or Path(tempfile.gettempdir())
        raise UserError(
            f"{place}: {error.strerror or error}: free some disk space or name another folder, then rerun"
        ) from None
