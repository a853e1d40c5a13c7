"""Files that stages write beside the CSV: each gets its name when it is whole."""

import contextlib
import os
import time
from pathlib import Path
from uuid import uuid4

from vec_pipeline.record import UserError

ABANDONED_S = 3600  # age of a temporary file that no worker is still writing


def check_folder(folder: Path, stage_name: str) -> None:
    """Raise UserError where a file has the name of a folder that a stage writes into."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and {stage_name} writes into a folder of that name: rename it")


def save(path: Path, content: bytes) -> None:
    """Write a file, and its folder if need be. Raises UserError on a full disk."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): free some disk space, then rerun") from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that gets its name when it is whole; another worker may write the same one. Raises OSError.

    A kill may leave it under its temporary name, for `remove_abandoned`.
    """
    temporary = path.with_name(f".{uuid4().hex}.new")  # short, whatever the length of the name
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before the row that names it
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files that kills have left. Those of the last hour may be another worker's."""
    for path in folder.glob(".*.new"):
        with contextlib.suppress(OSError):  # another worker has removed it, or it is another user's
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink()
