"""Where the files of rows go that `--to txt` and `--to xmp` write: beside the pictures, or into a tree like theirs."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands import blocks_with_bar
from vec_pipeline.record import UserError, Values
from vec_pipeline.sources import local_path

MOST_BYTES = 200  # of a name in a tree; most disks take 255, and a suffix comes after it
NO_FOLDER = "{} (name a folder for their files with --out)"


class Row(NamedTuple):
    """A row without an error.

    picture: the file; None for a picture in an archive or at an address.
    place: of the picture, or what stands for it in the tree: its file gets this folder, and a name made of this one.
    """

    values: Values
    picture: Path | None
    place: Path


class Rows:
    """The rows that get a file; iterate, then read what was counted.

    columns: that each needs, beside those that tell where it goes.
    out: the folder of the tree; None for files beside the pictures.
    left_out: reasons, as the end of `3 rows ...`, and their numbers.
    """

    def __init__(self, reader: CsvReader, columns: Sequence[str], out: Path | None) -> None:
        self.left_out: Counter[str] = Counter()
        self._reader = reader
        self._columns = list(dict.fromkeys(["image_path", "error", *columns]))
        self._out = out
        self._root = common_folder(reader.path) if out else ""

    def __iter__(self) -> Iterator[Row]:
        self.left_out.clear()
        for block in blocks_with_bar(self._reader, self._columns):
            for values in block.table.to_pylist():
                if values["error"]:
                    self.left_out["with an error"] += 1
                elif row := self._placed(values):
                    yield row

    def notes(self) -> list[str]:
        """What was left out, as one text, or nothing."""
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.left_out.most_common())
        return [f"left out: {reasons}"] if reasons else []

    def _placed(self, values: Values) -> Row | None:
        key = values["image_path"]
        path = Path(local_path(key))
        picture = path if "://" not in key and os.path.isfile(path) else None  # False for a name that no disk takes
        if self._out:
            return Row(values, picture, self._out / in_tree(key, self._root))
        if picture is None:
            self.left_out[why_not_beside(key)] += 1
            return None
        return Row(values, picture, path)


def why_not_beside(key: str) -> str:
    if "://" in key:
        return NO_FOLDER.format("at addresses")
    is_in_file = any(os.path.isfile(parent) for parent in Path(local_path(key)).parents)
    return NO_FOLDER.format("in archives") if is_in_file else "whose picture is gone"


def common_folder(csv_path: Path) -> str:
    """The deepest folder that all pictures are in, also those of rows that are filtered out, so that files stay where
    they are; addresses do not count.
    """
    common = ""
    with CsvReader(csv_path, machine=True) as reader:
        for block in reader.blocks(["image_path"]):
            keys = (key for key in block.table["image_path"].to_pylist() if key.startswith("/"))
            folders = {os.path.dirname(local_path(key)) for key in keys}
            common = os.path.commonpath([*folders, *([common] if common else [])]) if folders else common
    return common


def in_tree(key: str, root: str) -> Path:
    """A relative path for a picture, the same for the same key, which never leads out of the tree."""
    query: list[str] = []
    if "://" in key:
        path, *query = re.split("[?#]", key.partition("://")[2], maxsplit=1)
        host, *rest = path.split("/")
        path = "/".join([host.rpartition("@")[2], *rest])  # without a password
    else:
        path = local_path(key).removeprefix(root)
    names = [name for name in path.replace("\0", "").split("/") if name not in ("", ".", "..")] or ["picture"]
    stem, suffix = os.path.splitext(names[-1])
    names[-1] = f"{stem}.{digest(key)}{suffix}" if query else names[-1]
    return Path(*map(shortened, names))


def shortened(name: str) -> str:
    if len(os.fsencode(name)) <= MOST_BYTES:
        return name
    start = os.fsencode(name)[: MOST_BYTES - 20].decode("utf-8", "ignore")
    return f"{start}.{digest(name)}{os.path.splitext(name)[1][:8]}"


def digest(text: str) -> str:
    return blake2b(os.fsencode(text), digest_size=5).hexdigest()


def nothing_written(reader: CsvReader, what: str, notes: Sequence[str]) -> UserError:
    return UserError("; ".join([f"{reader.path} has no row for {what}", *notes]))
