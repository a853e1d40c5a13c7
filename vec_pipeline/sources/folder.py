"""Images of a folder, or one image: walked recursively in sorted order."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from vec_pipeline.record import Record, UserError

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".mpo",
        ".avif",
        ".heic",
        ".heif",
        ".hif",
    ]
)
SPELLED_BYTE = re.compile(r"\\x[89a-f][0-9a-f]")  # as a byte that is no UTF-8 is written


class Folder:
    """A record per image file below a folder; hidden files and one other folder are left out.

    Links are followed; a file or folder that two ways lead to is visited once, so loops end.

    Raises UserError when there is no such file or folder.
    """

    def __init__(self, root: Path, left_out: Path | None = None) -> None:
        if not root.exists():
            raise UserError(f"{root} does not exist: name a folder of images, or one image")
        if root.is_dir() and not os.access(root, os.R_OK | os.X_OK):
            raise UserError(f"{root} cannot be read: check its permissions")
        self.root = root
        self.left_out = left_out.resolve() if left_out else None

    @property
    def is_leaving_out(self) -> bool:
        """Whether the folder that is left out lies below the root."""
        return self.left_out is not None and self.root.resolve() in self.left_out.parents and self.left_out.is_dir()

    def __iter__(self) -> Iterator[Record]:
        if self.root.is_file():
            yield record_of(os.path.realpath(self.root))
            return
        seen: set[str] = set()
        for path, is_linked in self._walk(os.path.realpath(self.root), set(), is_linked=False):
            if is_linked:  # only links can lead to a file twice
                path = os.path.realpath(path)
                if path in seen or (os.path.isfile(path) and is_image(path) and self._is_reached_without_links(path)):
                    continue
                seen.add(path)
            yield record_of(path)

    def _walk(self, folder: str, visited: set[tuple[int, int]], *, is_linked: bool) -> Iterator[tuple[str, bool]]:
        """Yield the image files below a folder, and whether a link led there."""
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            return  # a folder that may not be read holds nothing that could get a row
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if is_folder(entry):
                real = os.path.realpath(entry.path)
                if entry.is_symlink() and self._is_reached_without_links(real):
                    continue
                if self.left_out is None or real != str(self.left_out):
                    yield from self._walk(entry.path, visited, is_linked=is_linked or entry.is_symlink())
            elif is_image(entry.name) and is_regular(entry):
                yield entry.path, is_linked or entry.is_symlink()

    def _is_reached_without_links(self, path: str) -> bool:
        below = os.path.relpath(path, os.path.realpath(self.root))
        return below == "." or not any(part.startswith(".") for part in below.split(os.sep))


def is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_regular(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a file to be tried: a pipe or a device of that name would block the reader."""
    try:
        return entry.is_file() or (entry.is_symlink() and not entry.is_dir() and not os.path.exists(entry.path))
    except OSError:
        return True


def record_of(path: str) -> Record:
    """Make the record of a file. Its key is the path, with bytes that are no UTF-8 written as \\xNN.

    A path that holds such bytes, or those letters, has its backslashes doubled, so that no two files share a key.
    """
    name = os.fsencode(path)
    if SPELLED_BYTE.search(spelled(name)):
        name = name.replace(b"\\", b"\\\\")
    return Record(spelled(name), {"path": path})


def spelled(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
