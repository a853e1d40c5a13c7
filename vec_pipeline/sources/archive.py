"""Archives: the pictures in photos.zip, or in a folder of it, which are read in place."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from threading import Lock
from typing import NamedTuple
from zipfile import ZipFile, ZipInfo

from vec_pipeline.picture_names import PictureNames
from vec_pipeline.pictures import kinds
from vec_pipeline.record import NotFound, Record, SourceOptions, UserError
from vec_pipeline.sources import DEFAULT_OPTIONS, glob_finder
from vec_pipeline.sources.folder import key_of, path_of

END = re.compile(r"\.(?:zip|cbz)(?=/|$)", re.IGNORECASE)  # of an archive's path, before a path in it
IS_ENCRYPTED = 0x1
BYTES_PER_MB = 1_000_000
OPEN_ARCHIVES = 8  # whose names stay in memory


class State(NamedTuple):
    """One state of an archive: it may be replaced while it is read."""

    path: str
    size: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class Member:
    """The content of a file in an archive, identified by its checksum and size."""

    archive: str
    name: str  # in `Archive.members`
    limit_mb: int
    link: str = ""

    def read(self) -> bytes:
        """Raises OSError, ValueError for a file that is too large, or BadZipFile and the like for a damaged one."""
        limit = self.limit_mb * BYTES_PER_MB
        opened, info = self._found()
        if info.file_size > limit:
            raise ValueError(f"more than max_download_mb ({self.limit_mb})")
        with opened.open(info) as file:
            return file.read(limit)  # without a number it would take all at once that a bomb decompresses to

    def identity(self) -> str:
        info = self._found()[1]
        return f"{info.CRC:08x} {info.file_size}"

    def size_and_time(self) -> tuple[int, float]:
        info = self._found()[1]
        with suppress(ValueError):  # no date at all, or the 31st of February
            return info.file_size, datetime(*info.date_time).timestamp()
        return info.file_size, 0.0

    def _found(self) -> tuple[ZipFile, ZipInfo]:
        opened, members = opened_archive(self.archive)
        if self.name not in members:
            raise FileNotFoundError(f"{self.archive} holds no {self.name}")
        return opened, members[self.name]


class Archive:
    """A record per picture in an archive, or in a folder of it, in the order in which they lie there.

    What is a picture is told by its suffix, or else by its first bytes. Hidden files and what `exclude` matches are
    left out. Nothing is written to the disk, so a name such as ../x.jpg is one like any other.
    """

    columns: Mapping[str, str] = {}
    is_stream = False

    def __init__(self, argument: str, exclude: Sequence[str] = (), options: SourceOptions = DEFAULT_OPTIONS) -> None:
        archive, self._inner = divided(argument)
        self._archive = os.path.realpath(archive)
        self._limit_mb = options.max_download_mb
        self._names = PictureNames(glob_finder(exclude), self._archive)
        self.failures: list[str] = []
        try:
            opened_archive(self._archive)
        except Exception as error:  # zipfile raises anything for a damaged archive
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{archive} cannot be read ({reason}): it may be incomplete, copy it again") from None

    @classmethod
    def accepts(cls, argument: str) -> bool:
        return bool(divided(argument)[0])

    @property
    def notes(self) -> list[str]:
        return self._names.notes

    def __iter__(self) -> Iterator[Record]:
        self._names.left_out.clear()
        members = opened_archive(self._archive)[1]
        if self._inner in members:
            yield self._record(self._inner, members[self._inner])
            return
        folder = f"{self._inner}/" if self._inner else ""
        if not any(name.startswith(folder) for name in members) and folder:
            raise NotFound(f"{self._archive} holds no {self._inner}")
        for name, info in members.items():
            path = name.removeprefix(folder)
            if name.startswith(folder) and not self._names.is_left_out(path) and self._is_picture(info):
                yield self._record(name, info)

    def _record(self, name: str, info: ZipInfo) -> Record:
        key = key_of(f"{self._archive}/{name}")
        if info.flag_bits & IS_ENCRYPTED:
            return Record(key, {}, "source: Encrypted: unpack the archive with its password, and name the folder")
        return Record(key, {"content": Member(self._archive, name, self._limit_mb)})

    def _is_picture(self, info: ZipInfo) -> bool:
        def looks_like_one() -> bool:
            with suppress(Exception), opened_archive(self._archive)[0].open(info) as file:
                return bool(kinds.kind_of(file.read(kinds.HEAD_BYTES)))
            return False

        return self._names.is_picture(info.filename, looks_like_one)


def divided(argument: str) -> tuple[str, str]:
    """The path of an archive, and that in it; both are empty where there is no such archive."""
    path = os.path.expanduser(path_of(argument))
    for found in END.finditer(path):  # a folder may have such a name, too
        if os.path.isfile(path[: found.end()]):
            return path[: found.end()], path[found.end() + 1 :].rstrip("/")
    return "", ""


def opened_archive(path: str) -> tuple[ZipFile, Mapping[str, ZipInfo]]:
    """An archive as it is now, and its files by names of which each is there once; open for the next who asks.

    The second file of a name is called NAME#2: that ends in no picture's suffix, so it is no other picture's name.
    """
    status = os.stat(path)
    with _opening:  # one thread, that all others wait for
        return _opened(State(path, status.st_size, status.st_mtime_ns))


_opening = Lock()


@lru_cache(OPEN_ARCHIVES)
def _opened(state: State) -> tuple[ZipFile, dict[str, ZipInfo]]:
    archive = ZipFile(open(state.path, "rb"))  # noqa: SIM115 (a ZipFile that opens it counts its readers without a lock)
    members: dict[str, ZipInfo] = {}
    seen: Counter[str] = Counter()
    for info in archive.infolist():
        if not info.is_dir():
            name = info.filename
            while name in members:
                seen[info.filename] += 1
                name = f"{info.filename}#{seen[info.filename] + 1}"
            members[name] = info
    return archive, members
