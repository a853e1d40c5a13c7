"""Local files: the images of a folder, walked recursively in sorted order, or one image."""

import errno
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vec_pipeline.picture_names import notes_of
from vec_pipeline.pictures import kinds
from vec_pipeline.record import NotFound, Record, UserError
from vec_pipeline.sources import glob_finder

REPORT = ("index.html", "gallery")  # what a report's folder holds
MARK_OF_A_PAGE, MARK_WITHIN = b'<meta name="generator" content="vec_pipeline ', 4096  # bytes
ESCAPED_BYTE = re.compile(r"\\x[89a-f][0-9a-f]")  # how a key spells a byte that is not UTF-8
ESCAPE = re.compile(rb"\\(\\|x([89a-f][0-9a-f]))")


@dataclass(frozen=True, slots=True)
class LocalFile:
    """The content of a file, identified by its size and its time of modification."""

    path: str

    def read(self) -> bytes:
        return Path(self.path).read_bytes()

    def identity(self) -> str:
        status = os.stat(self.path)
        return f"{status.st_size} {status.st_mtime_ns}"

    def size_and_time(self) -> tuple[int, float]:
        """Bytes, and seconds since 1970 at which it was modified last. Raises OSError."""
        status = os.stat(self.path)
        return status.st_size, status.st_mtime

    @property
    def link(self) -> str:
        return Path(self.path).as_uri()


class Folder:
    """A record per image file below a folder. What is an image is told by its suffix, or else by its first bytes.

    Hidden files, what `exclude` matches and the galleries of reports are left out. Links are followed; a file or folder
    that two ways lead to is visited once, so loops end. The folder is walked once: further iterations repeat what the
    first one found.
    """

    columns: Mapping[str, str] = {}
    is_stream = False

    def __init__(self, argument: str, exclude: Sequence[str] = ()) -> None:
        path = os.path.expanduser(argument)
        of_key = path_of(path)  # first, since a key must not stand for another file
        self.root = os.path.realpath(of_key if os.path.lexists(of_key) else path)
        self.left_out: Counter[str] = Counter()
        self._excluding = glob_finder(exclude)
        self.failures: list[str] = []
        self._found: list[str] | None = None
        try:
            os.stat(self.root)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{argument} does not exist: name a folder of images, or an image") from None
        except OSError as error:
            raise UserError(f"{argument} cannot be read ({error.strerror}): name another folder or image") from None

    @classmethod
    def accepts(cls, argument: str) -> bool:
        return True

    @property
    def notes(self) -> list[str]:
        """After iteration: how many files and folders were left out, by kind."""
        return notes_of(self.left_out)

    def __iter__(self) -> Iterator[Record]:
        if self._found is not None:
            yield from map(record_of, self._found)
            return
        found: list[str] = []
        for path in [self.root] if os.path.isfile(self.root) else self._images():
            record = record_of(path)
            found.append(record.key if record.key == path else path)  # one string for both
            yield record
        self._found = found

    def _images(self) -> Iterator[str]:
        self.left_out, self.failures = Counter(), []
        seen: set[str] = set()
        for path, is_linked in self._walk(self.root, set(), is_linked=False):
            if is_linked:  # only links can lead to a file twice
                path = os.path.realpath(path)
                is_found_anyway = os.path.isfile(path) and shows_image(path) and self._is_reached_without_links(path)
                if path in seen or is_found_anyway:
                    continue
                seen.add(path)
            yield path

    def _walk(self, folder: str, visited: set[tuple[int, int]], *, is_linked: bool) -> Iterator[tuple[str, bool]]:
        """Yield the image files below a folder, and whether a link led there."""
        try:
            status = os.stat(folder)
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            self.failures.append(f"{key_of(folder)} ({error.strerror})")
            return
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        gallery = gallery_of(folder, {entry.name for entry in entries})
        for entry in entries:
            if reason := self._reason_to_leave_out(entry, gallery):
                self.left_out[reason] += 1
                continue
            try:
                is_dir = is_folder(entry)
                is_file = not is_dir and is_regular(entry)
            except OSError as error:
                self.failures.append(f"{key_of(entry.path)} ({error.strerror})")
                continue
            if is_dir:
                if not (entry.is_symlink() and self._is_reached_without_links(os.path.realpath(entry.path))):
                    yield from self._walk(entry.path, visited, is_linked=is_linked or entry.is_symlink())
            elif is_file and shows_image(entry.path):
                yield entry.path, is_linked or entry.is_symlink()
            else:
                suffix = os.path.splitext(entry.name)[1].lower()
                self.left_out[(suffix or "without a suffix") if is_file else "not a file"] += 1

    def _reason_to_leave_out(self, entry: os.DirEntry[str], gallery: str) -> str:
        """As the note gives it, before anything of the entry but its name is known; empty for what is not left out."""
        if entry.name.startswith("."):
            return "hidden"
        if entry.name == gallery:
            return "as a report's gallery"
        glob = self._excluding(entry.name, entry.path)
        return f"in {os.path.basename(os.path.dirname(entry.path))}/" if glob.startswith("/") else glob

    def _is_reached_without_links(self, path: str) -> bool:
        below = os.path.relpath(path, self.root)
        for part in below.split(os.sep) if below != "." else ():
            if part.startswith(".") or self._excluding(part, path):
                return False
        return True


def is_image(path: str) -> bool:
    """Whether a file is an image by its suffix."""
    return os.path.splitext(path)[1].lower() in kinds.SUFFIXES


def shows_image(path: str) -> bool:
    """Whether a file is an image by its suffix, or by its first bytes where the suffix is no known one."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in kinds.SUFFIXES or suffix in kinds.OTHER_SUFFIXES:
        return suffix in kinds.SUFFIXES
    try:
        with open(path, "rb") as file:
            return bool(kinds.kind_of(file.read(kinds.HEAD_BYTES)))
    except OSError:
        return False


def gallery_of(folder: str, names: Set[str]) -> str:
    """The name of the folder of thumbnails, where `report` or `compare` has made this folder; else empty."""
    index, gallery = REPORT
    if index in names and gallery in names:
        with suppress(OSError), open(os.path.join(folder, index), "rb") as file:
            return gallery if MARK_OF_A_PAGE in file.read(MARK_WITHIN) else ""
    return ""


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a folder, or a link to one. A link to itself is like one to nowhere."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def is_regular(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a file to be tried: a pipe or a device of that name would block the reader."""
    return (entry.is_symlink() and not os.path.exists(entry.path)) or entry.is_file()


def record_of(path: str) -> Record:
    return Record(key_of(path), {"content": LocalFile(path)})


def key_of(path: str) -> str:
    """The path as text: bytes that are not UTF-8 become \\xNN.

    A path that holds such bytes, or those letters, has its backslashes doubled, so that no two files share a key.
    """
    if path.isascii() and "\\x" not in path:
        return path
    name = os.fsencode(path)
    if ESCAPED_BYTE.search(name.decode("utf-8", "backslashreplace")):
        name = name.replace(b"\\", b"\\\\")
    return name.decode("utf-8", "backslashreplace")


def path_of(key: str) -> str:
    """The path of a key."""
    if not ESCAPED_BYTE.search(key):
        return key

    def unescaped(found: re.Match[bytes]) -> bytes:
        return bytes.fromhex(found[2].decode()) if found[2] else b"\\"

    return os.fsdecode(ESCAPE.sub(unescaped, os.fsencode(key)))
