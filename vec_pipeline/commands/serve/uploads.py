"""Keeps what was uploaded: one file for a picture and what is asked of it, under a hash of both."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from vec_pipeline.pictures.kinds import HEAD_BYTES, kind_of

ID_BYTES = 16
SUFFIXES = {"JPEG": ".jpg", "JPEG2000": ".jp2", "HEIF": ".heic", "TIFF": ".tif"}  # of other kinds, their names


class NotAPicture(ValueError):  # noqa: N818 (it says what is wrong)
    """By its first bytes, the content is of no kind of picture that is known."""


class Uploads:
    """A folder of files such as `ab/cd/abcd…ef.jpg`: no name, and nothing else that a client chose, is part of a path.

    temporary: a folder beside it, for files that are not whole yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.temporary = self.folder / "new"
        self.temporary.mkdir(parents=True, exist_ok=True)
        for left_over in self.temporary.iterdir():
            left_over.unlink()

    def path_for(self, content: bytes, wishes: str) -> Path:
        """Where a picture and what is asked of it belong. Raises NotAPicture."""
        if not (kind := kind_of(content[:HEAD_BYTES])):
            raise NotAPicture
        name = blake2b(wishes.encode() + b"\0" + content, digest_size=ID_BYTES).hexdigest()
        return self._folder_of(name) / f"{name}{SUFFIXES.get(kind, '.' + kind.lower())}"

    @contextmanager
    def written(self, content: bytes) -> Iterator[Path]:
        """A file of its own with this content, which goes with the block unless `put` has moved it. Raises OSError."""
        descriptor, name = tempfile.mkstemp(dir=self.temporary)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def put(self, new: Path, path: Path) -> None:
        """Move a file to where it belongs, unless it is there already, and whole. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.stat().st_size != new.stat().st_size:  # after a power failure, say
            os.replace(new, path)

    def path(self, name: str) -> Path | None:
        """The file of an upload, by its hash; None where there is none."""
        if not is_id(name):
            return None
        return next(self._folder_of(name).glob(f"{name}.*"), None)

    def _folder_of(self, name: str) -> Path:
        return self.folder / name[:2] / name[2:4]


def is_id(name: str) -> bool:
    """Whether a name has the form of an upload's hash."""
    return len(name) == 2 * ID_BYTES and set(name) <= set("0123456789abcdef")


def id_of(path: str | Path) -> str:
    """The hash in the name of an upload's file, by which clients ask for it."""
    return Path(path).stem
