"""The order in which records are annotated: `--order`, `--first` and the priorities of a list."""

import argparse
import pickle
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from hashlib import blake2b

from vec_pipeline.record import Record, UserError
from vec_pipeline.sources import glob_finder

RANDOM = "random:"  # and the seed
ORDERS = ("path", "newest", "oldest", "largest", "smallest", f"{RANDOM}SEED")
ORDER_HELP = f"what is annotated first: {', '.join(ORDERS)} (default: as the source lists them)"
NEEDED = {"newest": "times", "oldest": "times", "largest": "sizes", "smallest": "sizes"}
LOOKED_AT = 100  # records, of which one at least must have a size and a time where these are needed
SELECT = "SELECT number, record FROM records ORDER BY place, value IS NULL, value, number"

Value = bytes | float | None  # what records are sorted by, ascending; None comes last


def order_type(text: str) -> str:
    """A value of --order; empty for the source's own. Raises ArgumentTypeError for an unknown one."""
    if text in ("", "path", *NEEDED) or (text.startswith(RANDOM) and text != RANDOM):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not an order: choose from {', '.join(ORDERS)}")


def ordered(records: Iterable[Record], order: str, first: Sequence[str] = ()) -> Iterator[Record]:
    """Yield records in another order; those of equal rank as they come.

    All are read before the first is yielded. They wait in a temporary file, so memory does not grow with their number.

    order: empty for as they come, "priority" for the largest number of that name first, else as `order_type` takes it.
    first: globs of names and of paths; what they match comes before all others, in the order of the globs.

    Raises UserError where the source does not know what the order needs, or the temporary file cannot grow.
    """
    if not order and not first:
        yield from records
        return
    try:
        with closing(sqlite3.connect("", check_same_thread=False)) as database:  # a temporary file
            yield from sorted_on_disk(database, with_needed(records, order), placed_by(first), valued_by(order))
    except sqlite3.Error as error:
        message = f"sorting needs a temporary file ({error}): free some disk space, or set TMPDIR to another folder"
        raise UserError(message) from None


def sorted_on_disk(
    database: sqlite3.Connection,
    records: Iterable[Record],
    place: Callable[[Record], int],
    value: Callable[[Record], Value],
) -> Iterator[Record]:
    """Yield records by place, then by value."""
    unpicklable: dict[int, Record] = {}  # of a source that is not of this package

    def rows() -> Iterator[tuple[int, int, Value, bytes | None]]:
        for number, record in enumerate(records):
            if (data := pickled(record)) is None:
                unpicklable[number] = record
            yield number, place(record), value(record), data

    database.execute("PRAGMA journal_mode = OFF")  # nobody else reads it, and nothing is rolled back
    database.execute("CREATE TABLE records (number INTEGER PRIMARY KEY, place INTEGER, value, record BLOB)")
    database.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", rows())
    for number, data in database.execute(SELECT):
        yield pickle.loads(data) if data is not None else unpicklable.pop(number)


def pickled(record: Record) -> bytes | None:
    try:
        return pickle.dumps(record, pickle.HIGHEST_PROTOCOL)
    except Exception:  # whatever the classes of its values raise
        return None


def placed_by(first: Sequence[str]) -> Callable[[Record], int]:
    """A function that returns the number of the first glob that a record matches, or that of all globs."""
    globs = list(first)
    find = glob_finder(globs)

    def place(record: Record) -> int:
        glob = find(record.key.rpartition("/")[2], record.key)
        return globs.index(glob) if glob else len(globs)

    return place


def valued_by(order: str) -> Callable[[Record], Value]:
    """A function that returns what a record is sorted by."""
    if order.startswith(RANDOM):
        seed = order.removeprefix(RANDOM)
        return lambda record: blake2b(encoded(f"{seed} {record.key}"), digest_size=8).digest()
    values: dict[str, Callable[[Record], Value]] = {
        "": lambda record: None,
        "path": lambda record: encoded(record.key),
        "newest": lambda record: size_and_time(record, -1)[1],
        "oldest": lambda record: size_and_time(record, 1)[1],
        "largest": lambda record: size_and_time(record, -1)[0],
        "smallest": lambda record: size_and_time(record, 1)[0],
        "priority": priority,
    }
    return values[order]


def encoded(text: str) -> bytes:
    """Bytes that sort as the text does, by code points."""
    return text.encode("utf-8", "surrogatepass")


def size_and_time(record: Record, sign: int) -> tuple[Value, Value]:
    """Size and time of modification of a record's content, times `sign`; None where they are not known."""
    try:
        size_bytes, time_s = record.values["content"].size_and_time()
    except (KeyError, AttributeError, OSError):  # a record with an error, no such method, a file that has gone
        return None, None
    return sign * size_bytes, sign * time_s


def priority(record: Record) -> Value:
    try:
        return -float(record.values["priority"])  # what is not a number is NULL to SQLite
    except (KeyError, TypeError, ValueError):
        return None


def with_needed(records: Iterable[Record], order: str) -> Iterator[Record]:
    """Pass records on. Raises UserError where the order needs sizes or times, and the first ones do not have any."""
    without = 0  # of the records so far, where none has had them
    is_known = order not in NEEDED
    for record in records:
        if not is_known and "content" in record.values:
            is_known = hasattr(record.values["content"], "size_and_time")
            without += not is_known
        if not is_known and without >= LOOKED_AT:
            break
        yield record
    if not is_known and without:
        message = f"--order {order} needs {NEEDED[order]}, which this source does not have: use path or {RANDOM}SEED"
        raise UserError(message)
