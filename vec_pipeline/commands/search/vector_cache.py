"""The vectors of one column as a matrix on disk, in a folder beside the CSV, which follows the CSV as it grows."""

import fcntl
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vec_pipeline.annotations import Block, column_names, read_row
from vec_pipeline.commands import in_one_step, read_with_bar
from vec_pipeline.record import UserError

TAIL_BYTES = 4096


@dataclass
class Vectors:
    """The vectors of one column.

    matrix: float32 of shape (rows, dimensions), mapped from disk; rows without a vector are left out.
    places: where each row begins and ends in the CSV, in bytes; int64 of shape (rows, 2), mapped from disk.
    """

    csv_path: Path
    matrix: "np.ndarray[Any, np.dtype[np.float32]]"
    places: "np.ndarray[Any, np.dtype[np.int64]]"

    def nearest(self, query: "np.ndarray[Any, np.dtype[np.float32]]", top: int) -> list[dict[str, Any]]:
        """Compare with every vector (nothing is approximated); return the best rows, best first.

        query: of length 1, as the vectors are, so that a score is a cosine.
        """
        if query.shape != self.matrix.shape[1:]:
            raise UserError(f"{self.csv_path} was made with another model than its settings name: annotate it again")
        scores = self.matrix @ query
        top = min(top, len(scores))
        best = np.argpartition(-scores, top - 1)[:top]
        found = []
        for rank, row in enumerate(best[np.argsort(-scores[best], kind="stable")], 1):
            cells = read_row(self.csv_path, *self.places[row].tolist())
            found.append(
                {
                    "rank": rank,
                    "score": round(float(scores[row]), 4),
                    "image_path": cells["image_path"],
                    "description": cells["description"],
                }
            )
        return found


@dataclass
class State:
    """What the files of a cache hold.

    inode, tail: of the CSV, and of the last bytes read of it: by these a replaced file is told from one that grew.
    """

    rows: int = 0
    dimensions: int = 0
    csv_end: int = 0  # how far the CSV has been read, in bytes
    inode: int = 0
    tail: str = ""


def open_vectors(csv_path: Path, column: str) -> Vectors:
    """Bring the cache up to date and open it; where its place cannot be written, a temporary one.

    Deleting the folder costs time, never data. Raises UserError where the CSV has no vector in that column, or has
    vectors of different lengths.
    """
    column_names(csv_path)  # raises where the file is none of ours
    folder = csv_path.with_suffix(".vectors")
    try:
        return Cache(csv_path, column, folder).followed()
    except OSError as error:
        print(f"{folder} cannot be used ({error.strerror}): the vectors are read from the CSV anew", file=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:  # what is mapped outlives its name
        return Cache(csv_path, column, Path(temporary)).followed()


class Cache:
    """Three files: vectors and places, which are only appended to, and a state, which says how much of them counts."""

    def __init__(self, csv_path: Path, column: str, folder: Path) -> None:
        self.csv_path = csv_path
        self.column = column
        self.folder = folder
        self.vectors_path, self.places_path, self.state_path = (
            folder / f"{column}.{suffix}" for suffix in ("float32", "places", "json")
        )

    def followed(self) -> Vectors:
        """Read what the CSV has gained since, and map the files. Raises OSError where they cannot be written."""
        state = self._state()
        if state is None or state.csv_end < self.csv_path.stat().st_size:
            self.folder.mkdir(exist_ok=True)
            with locked(self.folder / "lock"):
                state = self._append(self._state() or self._emptied())
        if not state.rows:
            raise UserError(f"{self.csv_path} has no {self.column} in any row: nothing can be found in it")
        return Vectors(
            self.csv_path,
            np.memmap(self.vectors_path, np.float32, "r", shape=(state.rows, state.dimensions)),
            np.memmap(self.places_path, np.int64, "r", shape=(state.rows, 2)),
        )

    def _state(self) -> State | None:
        """The state; None where there is none, it is of another CSV, or the files hold less than it says."""
        try:
            state = State(**json.loads(self.state_path.read_bytes()))
            is_whole = self.vectors_path.stat().st_size >= 4 * state.rows * state.dimensions
            is_whole = is_whole and self.places_path.stat().st_size >= 16 * state.rows
            return state if is_whole and self._identity(state.csv_end) == (state.inode, state.tail) else None
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _identity(self, end: int) -> tuple[int, str]:
        with self.csv_path.open("rb") as file:
            file.seek(max(0, end - TAIL_BYTES))
            tail = hashlib.blake2b(file.read(min(end, TAIL_BYTES)), digest_size=16).hexdigest()
            return os.fstat(file.fileno()).st_ino, tail

    def _emptied(self) -> State:
        for path in (self.state_path, self.vectors_path, self.places_path):
            path.unlink(missing_ok=True)  # and made anew: another search may have the old ones mapped
        self.vectors_path.touch()
        self.places_path.touch()
        return State()

    def _append(self, state: State) -> State:
        """Append the rows after `state.csv_end`; what was read is kept however this ends."""
        with self.vectors_path.open("r+b") as vectors, self.places_path.open("r+b") as places:
            vectors.seek(4 * state.rows * state.dimensions)  # what a killed search left after these is overwritten
            places.seek(16 * state.rows)
            try:
                for block in read_with_bar(self.csv_path, (self.column,), start=state.csv_end):
                    values, rows, dimensions = self._vectors_of(block, state.dimensions)
                    vectors.write(values.tobytes())
                    places.write(rows.tobytes())
                    state = State(state.rows + len(rows), dimensions, int(block.ends[-1]))  # at once: Ctrl-C may come
            finally:
                for file in (vectors, places):
                    file.flush()
                    os.fsync(file.fileno())
                state.inode, state.tail = self._identity(state.csv_end)
                with in_one_step(self.state_path) as new:
                    new.write_text(json.dumps(asdict(state)))
        return state

    def _vectors_of(self, block: Block, dimensions: int) -> tuple[Any, Any, int]:
        """The numbers of a block's vectors, one after the other, the places of the rows that have one, and dimensions.

        dimensions: those of the vectors before it, 0 where there were none.
        """
        import pyarrow.compute as pc

        column = block.table[self.column]
        lengths = pc.list_value_length(column).fill_null(0).to_numpy()
        there = lengths > 0
        dimensions = dimensions or int(max(lengths))
        if not (lengths[there] == dimensions).all():
            raise UserError(
                f"{self.csv_path} holds {self.column}s of different lengths, of two models: annotate it again"
            )
        places = np.stack([block.starts[there], block.ends[there]], axis=1)
        return pc.list_flatten(column).to_numpy(), places, dimensions


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for, and keep out, another search that appends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
