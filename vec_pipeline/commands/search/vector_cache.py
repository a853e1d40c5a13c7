"""The vectors of one column as a matrix on disk, in a folder beside the CSV, which follows the CSV as it grows."""

import fcntl
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from vec_pipeline.annotations import Block, CsvReader, arrays
from vec_pipeline.commands import blocks_with_bar, writing
from vec_pipeline.corrections import VERIFIED
from vec_pipeline.query import Query
from vec_pipeline.record import UserError, Values, beside

TAIL_BYTES = 4096
ROWS_AT_ONCE = 256  # read and compared with the matrix
CENTRED_AT_ONCE = 256  # rows, which fit into the processor's cache
SHORTEST = 1e-12  # length of a vector that has a direction
ATTEMPTS = 3  # a CSV that is edited all the time cannot be searched

Vector = np.ndarray[Any, np.dtype[np.float32]]
Matrix = np.ndarray[Any, np.dtype[np.float32]]
Places = np.ndarray[Any, np.dtype[np.int64]]


class NoVectors(UserError):  # noqa: N818 (it says what is the matter)
    """No row has a vector yet."""


class Vectors:
    """The vectors of one column, and the rows they belong to, all of one file even if a run replaces it meanwhile.

    The cache lies in a folder beside the CSV, or in a temporary one where that cannot be written. Deleting it costs
    time, never data.

    matrix: float32 of shape (rows, dimensions), mapped from disk; rows without a vector are left out.
    places: where each row begins and ends in the CSV, in bytes; int64 of shape (rows, 2), mapped from disk.

    machine, where: as of CsvReader; only rows that match can be found.

    Raises UserError where the CSV has no such column, no vector in it, or vectors of different lengths; and where no
    row that matches has one.
    """

    def __init__(self, csv_path: Path, column: str, *, machine: bool = False, where: str = "") -> None:
        self.csv_path = csv_path
        self.column = column
        self._machine = machine
        self._where = where
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()

    def nearest(self, query: Vector, top: int, mean: Vector | None = None) -> list[Values]:
        """Compare with every vector (nothing is approximated); return the best rows, best first.

        query: of length 1, as the vectors are, so that a score is a cosine.
        mean: is taken from every vector before it is compared, if given, whose lengths then do not matter.

        Each row's vector is compared with that of the matrix. Where they differ, the CSV has been edited in place: the
        cache is rebuilt, and searched again. Raises UserError where that does not help.
        """
        for attempt in range(ATTEMPTS):
            if attempt:
                self.close()
                self._open(rebuild=True)
            if query.shape != self.matrix.shape[1:]:
                raise UserError(
                    f"{self.csv_path} was made with another model than its settings name: run with --refresh"
                )
            scores = self.matrix @ query if mean is None else centred_cosines(self.matrix, query, mean)
            scores[self._excluded] = -np.inf
            top = min(top, int((~self._excluded).sum()))
            best = np.argpartition(-scores, top - 1)[:top]
            best = best[np.argsort(-scores[best], kind="stable")]
            if (rows := self._rows(best)) is not None:
                return [
                    {"rank": rank, "score": round(float(score), 4), **row}
                    for rank, (score, row) in enumerate(zip(scores[best], rows, strict=True), 1)
                ]
        raise UserError(f"{self.csv_path} is being rewritten: search again once that has finished")

    def _open(self, rebuild: bool = False) -> None:
        with ExitStack() as on_failure:
            self._reader = on_failure.enter_context(CsvReader(self.csv_path, machine=self._machine))
            if self._reader.types.get(self.column) != "vector":
                raise UserError(
                    f"{self.csv_path} has no vectors {self.column}: add a stage that writes them and run with --refresh"
                )
            self.matrix, self.places = open_cache(self._reader, self.column, rebuild)
            self._excluded = self._not_matching()
            on_failure.pop_all()

    def _not_matching(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Which rows of the matrix the query excludes: bools of shape (rows,)."""
        query = Query(self._where, {**self._reader.types, VERIFIED: "text"})
        if not query.columns:
            return np.zeros(len(self.matrix), bool)
        matching = [
            block.starts[query.mask(block.table).to_numpy(zero_copy_only=False)]
            for block in blocks_with_bar(self._reader, query.columns)
        ]
        excluded = ~np.isin(self.places[:, 0], np.concatenate(matching))
        if excluded.all():
            raise UserError(f"{self.csv_path} has no row with {self.column} that matches --where {self._where!r}")
        return excluded

    def _rows(self, indices: Places) -> list[Values] | None:
        """Key and description of some rows of the matrix; None where their vectors in the CSV are others."""
        found: list[Values] = []
        for start in range(0, len(indices), ROWS_AT_ONCE):
            chosen = indices[start : start + ROWS_AT_ONCE]
            try:
                table = self._reader.rows(self.places[chosen], ("image_path", "description", self.column))
                vectors = arrays([table[self.column]], "")
            except UserError:
                return None
            for vector, expected in zip(vectors, self.matrix[chosen], strict=True):
                if vector is None or not np.array_equal(vector, expected):
                    return None
            found += table.drop_columns([self.column]).to_pylist()
        return found


def centred_cosines(matrix: Matrix, query: Vector, mean: Vector) -> Vector:
    """Cosines of a query, of length 1, with the rows of a matrix without their mean: float32 of shape (rows,)."""
    scores = np.zeros(len(matrix), np.float32)
    for start in range(0, len(matrix), CENTRED_AT_ONCE):
        centred = matrix[start : start + CENTRED_AT_ONCE] - mean
        lengths = np.sqrt(np.einsum("ij,ij->i", centred, centred))
        scores[start : start + CENTRED_AT_ONCE] = centred @ query / np.maximum(lengths, SHORTEST)
    return scores


def open_cache(reader: CsvReader, column: str, rebuild: bool) -> tuple[Matrix, Places]:
    """Bring the cache up to date and map its files; where its folder cannot be written, a temporary one."""
    folder = beside(reader.path, "vectors")
    try:
        return Cache(reader, column, folder).followed(rebuild)
    except OSError as error:
        print(f"{folder} cannot be used ({error.strerror}): reading all vectors from the CSV", file=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:  # what is mapped outlives its name
        return Cache(reader, column, Path(temporary)).followed()


@dataclass
class State:
    """What the files of a cache hold.

    inode, tail: of the CSV, and of the last bytes read of it: they tell a file that grew from one that was replaced.
    """

    rows: int = 0
    dimensions: int = 0
    csv_end: int = 0  # how far the CSV has been read, in bytes
    inode: int = 0
    tail: str = ""


class Cache:
    """Three files: vectors and places, which are only appended to, and a state, which says how much of them counts."""

    def __init__(self, reader: CsvReader, column: str, folder: Path) -> None:
        self.reader = reader
        self.column = column
        self.folder = folder
        self.vectors_path, self.places_path, self.state_path = (
            folder / f"{column}.{suffix}" for suffix in ("float32", "places", "json")
        )

    def followed(self, rebuild: bool = False) -> tuple[Matrix, Places]:
        """Read what the CSV has gained since, and map the files. Raises OSError where they cannot be written."""
        state = None if rebuild else self._state()
        if state and state.csv_end >= self.reader.status().st_size:
            with suppress(ValueError, FileNotFoundError):  # of files that another search is replacing
                return self._mapped(state)
        self.folder.mkdir(exist_ok=True)
        with locked(self.folder / "lock"):
            state = None if rebuild else self._state()
            return self._mapped(self._append(state or self._emptied()))

    def _mapped(self, state: State) -> tuple[Matrix, Places]:
        if not state.rows:
            raise NoVectors(f"{self.reader.path} has no {self.column} in any row: there is nothing to search")
        return (
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
        tail = self.reader.read(max(0, end - TAIL_BYTES), end)
        return self.reader.status().st_ino, hashlib.blake2b(tail, digest_size=16).hexdigest()

    def _emptied(self) -> State:
        for path in (self.state_path, self.vectors_path, self.places_path):
            path.unlink(missing_ok=True)  # not truncated: another search may have them mapped
        self.vectors_path.touch()
        self.places_path.touch()
        return State()

    def _append(self, state: State) -> State:
        """Append the rows after `state.csv_end`; what was read is kept however this ends."""
        with self.vectors_path.open("r+b") as vectors, self.places_path.open("r+b") as places:
            vectors.seek(4 * state.rows * state.dimensions)  # what a killed search left after these is overwritten
            places.seek(16 * state.rows)
            try:
                for block in blocks_with_bar(self.reader, (self.column,), start=state.csv_end):
                    values, rows, dimensions = self._vectors_of(block, state.dimensions)
                    vectors.write(values.tobytes())
                    places.write(rows.tobytes())
                    state = State(state.rows + len(rows), dimensions, int(block.ends[-1]))  # Ctrl-C may follow
            finally:
                for file in (vectors, places):
                    file.flush()
                    os.fsync(file.fileno())
                state.inode, state.tail = self._identity(state.csv_end)
                with writing(self.state_path) as state_file:
                    state_file.write(json.dumps(asdict(state)).encode())
        return state

    def _vectors_of(self, block: Block, dimensions: int) -> tuple[Vector, Places, int]:
        """The numbers of a block's vectors one after the other, the places of their rows, and their dimensions.

        dimensions: those of the vectors before it, 0 where there were none.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        column = block.table[self.column]
        is_flat = pa.types.is_list(column.type)
        lengths = pc.list_value_length(column).fill_null(0).to_numpy() if is_flat else np.zeros(0, np.int32)
        there = lengths > 0
        dimensions = dimensions or int(max(lengths, default=0))
        if not is_flat or not (lengths[there] == dimensions).all():
            raise UserError(
                f"{self.reader.path}: {self.column} has vectors of different lengths, of two models: run with --refresh"
            )
        places = np.stack([block.starts[there], block.ends[there]], axis=1)
        return pc.list_flatten(column).to_numpy(), places, dimensions


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for another search that appends, and keep further ones out."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
