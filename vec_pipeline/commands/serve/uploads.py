"""Keeps what was uploaded: one file for a picture and what is asked of it, under a hash of both."""

import os
import tempfile
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

    def keep(self, content: bytes, asked: str) -> Path:
        """Save a picture, and return its path; it may be there already. Raises NotAPicture, OSError."""
        if not (kind := kind_of(content[:HEAD_BYTES])):
            raise NotAPicture
        name = blake2b(asked.encode() + b"\0" + content, digest_size=ID_BYTES).hexdigest()
        path = self._folder_of(name) / f"{name}{SUFFIXES.get(kind, '.' + kind.lower())}"
        if not path.exists():
            self._save(content, path)
        return path

    def path(self, name: str) -> Path | None:
        """The file of an upload, by its hash; None where there is none."""
        if not is_id(name):
            return None
        return next(self._folder_of(name).glob(f"{name}.*"), None)

    def _folder_of(self, name: str) -> Path:
        return self.folder / name[:2] / name[2:4]

    def _save(self, content: bytes, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.temporary, delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise


def is_id(name: str) -> bool:
    """Whether a name has the form of an upload's hash."""
    return len(name) == 2 * ID_BYTES and set(name) <= set("0123456789abcdef")


def id_of(path: str | Path) -> str:
    """The hash in the name of an upload's file, by which clients ask for it."""
    return Path(path).stem
