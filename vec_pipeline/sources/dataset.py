"""Data sets as the library `datasets` streams them: of the Hugging Face hub, or a local folder."""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from vec_pipeline.lists.columns import ADDRESS_NAMES, kept_columns, similar
from vec_pipeline.record import Content, NotFound, Record, SourceOptions, UserError, Values
from vec_pipeline.sources.folder import LocalFile, key_of

if TYPE_CHECKING:
    from vec_pipeline.downloads import Fetched
    from vec_pipeline.downloads.client import Client

SCHEME = "hf://"
PARAMETERS = ("split", "name", "revision", "column")  # in the order in which keys have them
HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
BYTES_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
# What a row may name of the hub, and of a local set's archives: nothing else, and no address within the address.
ON_THE_HUB = re.compile(r"(?:zip://[^:]*::)?hf://(?:(?!::).)*")
IN_AN_ARCHIVE = re.compile(r"zip://[^:]*::/(?:(?!::).)*")
NUMBER = re.compile(r"u?int\d+|float\d+")  # types of the library
POSITIONS_EVERY_S = 5.0
LONGEST_ERROR = 300  # characters: some of the library's print whole schemas
GUESSED_FROM = 100  # rows, of data sets that do not say which columns they have


@dataclass(frozen=True, slots=True)
class Address:
    """`hf://OWNER/NAME?split=train&name=CONFIG&revision=COMMIT`; a local set has an absolute path for OWNER/NAME."""

    path: str
    split: str = ""
    name: str = ""
    revision: str = ""
    column: str = ""  # that has the pictures, where it is not the usual one

    @property
    def is_local(self) -> bool:
        return self.path.startswith("/")

    def __str__(self) -> str:
        given = [(each, getattr(self, each)) for each in PARAMETERS if getattr(self, each)]
        return SCHEME + quote(os.fsencode(self.path)) + (f"?{urlencode(given)}" if given else "")


def parsed(argument: str) -> tuple[Address, str]:
    """The address of an argument or a key, and what a key has behind its #. Raises UserError."""
    address, _, place = argument[len(SCHEME) :].partition("#")
    path, _, query = address.partition("?")
    path = unquote(path, errors="surrogateescape")
    given = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := given.keys() - set(PARAMETERS):
        raise UserError(
            f"{argument.partition('?')[0]} has no parameter {min(unknown)!r}: it takes split, name, revision, column"
        )
    if path.startswith(("/", "./", "../", "~")) or path in (".", ".."):
        path = os.path.realpath(os.path.expanduser(path))
        if not os.path.isdir(path):
            raise NotFound(f"{argument} is not a folder: name a data set of the hub, or a folder that holds one")
    elif not HUB_NAME.fullmatch(path):
        raise UserError(f"{argument} is not the name of a data set: write hf://OWNER/NAME or hf://./FOLDER")
    elif os.path.isdir(path):  # which the library would take for it, under the keys of the other
        raise UserError(f"{argument} is also a folder here: write hf://./{path}, or run elsewhere for the hub's")
    return Address(path, **given), place


@dataclass(frozen=True, slots=True)
class FileInSet:
    """A picture that a row names and does not hold: on the hub, or in an archive."""

    path: str
    link: str = ""

    def read(self) -> bytes:
        import fsspec

        with fsspec.open(self.path, "rb") as file:
            return bytes(file.read())

    def identity(self) -> str:
        return self.path  # those of the hub name their commit

    async def fetch(self, client: "Client") -> "Fetched":
        return await client.read(self.read, self.link)


@dataclass(frozen=True)
class Opened:
    """A data set that is ready to be iterated, part by part.

    stream: a datasets.IterableDataset of the columns that are wanted, undecoded.
    parts: names of its files in order, or their numbers where the library does not say which file a row is of; and
        what changes with each file.
    column: has the picture.
    keep: columns of the data set -> names in the CSV.
    """

    address: Address
    stream: Any
    parts: Mapping[str, str]
    column: str
    keep: Mapping[str, str]

    def groups(self, part: str) -> Any:
        """The stream of one file, whose shards are the row groups of a file of Parquet; any other is one shard."""
        return self.stream.shard(len(self.parts), list(self.parts).index(part)).reshard()

    @property
    def holds_addresses(self) -> bool:
        return is_text(self.stream.features[self.column])


class DataSet:
    """A record per row. The key names the file of the data set, the row group in it, and the row in that.

    So a file that cannot be read today changes no other key. A row group that cannot be read to its end is one record
    with an error, and the next group is read. A row that holds the URL of a picture is treated as an entry of a list.
    """

    is_stream = False
    is_counted = False

    def __init__(
        self,
        argument: str,
        exclude: Sequence[str] = (),
        options: SourceOptions = SourceOptions(),  # noqa: B008
    ) -> None:
        address, self._place = parsed(argument)
        self._options = options
        self._set = opened(replace(address, column=address.column or options.column), options.keep)
        self._positions = Positions(options.positions, str(self._set.address))
        self._done: Container[str] = ()
        self._counts: Counter[str] = Counter()
        self.failures: list[str] = []

    @classmethod
    def accepts(cls, argument: str) -> bool:
        return argument.lower().startswith(SCHEME)

    @property
    def columns(self) -> Mapping[str, str]:
        kept = {own: column_type(self._set.stream.features[name]) for name, own in self._set.keep.items()}
        if self._set.holds_addresses:
            from vec_pipeline.downloads.web import WEB_COLUMNS

            kept |= WEB_COLUMNS
        return kept

    @property
    def notes(self) -> list[str]:
        """After iteration: what of the data set has no row of its own."""
        several = self._counts["several"]
        return [f"{several:,} rows hold several pictures: the first one was taken"] if several else []

    def resume(self, done: Container[str]) -> None:
        """Row groups whose pictures are all done need not be read. Called before the iteration."""
        self._done = done

    def __iter__(self) -> Iterator[Record]:
        if self._place:
            yield self._one()
            return
        self._counts.clear()
        with closing(self._positions):
            for part in self._set.parts:
                counts = self._positions.of(part, self._set.parts[part])
                if not counts or not all(self._is_done(part, group, rows) for group, rows in enumerate(counts)):
                    yield from self._rows_of_part(part)

    def _is_done(self, part: str, group: int, rows: int | None) -> bool:
        key = self._key(part, group)
        return rows is not None and all(f"{key}/{row}" in self._done for row in range(rows))

    def _rows_of_part(self, part: str) -> Iterator[Record]:
        try:
            groups = self._set.groups(part)
        except Exception as error:  # whatever the library and the formats raise
            yield failed(self._key(part), error)
            return
        counts = self._positions.begin(part, self._set.parts[part], groups.num_shards)
        for number, count in enumerate(counts):
            if self._is_done(part, number, count):
                continue
            key, rows = self._key(part, number), 0
            try:
                for row in groups.shard(len(counts), number):
                    yield self._record(f"{key}/{rows}", row)
                    rows += 1
            except UserError:
                raise
            except Exception as error:
                yield failed(key, error)
            else:
                counts[number] = rows
                self._positions.save_now_and_then()

    def _key(self, *place: str | int) -> str:
        return f"{self._set.address}#{'/'.join(map(str, place))}"

    def _record(self, key: str, row: Values) -> Record:
        features = self._set.stream.features
        try:
            record = self._picture(key, row[self._set.column])
            record.values |= {own: as_column(row[name], features[name]) for name, own in self._set.keep.items()}
        except ValueError as error:
            record = failed(key, error)
        return record

    def _picture(self, key: str, value: Any) -> Record:
        """The record of what a row has in its column of pictures. Raises ValueError where that is none."""
        if isinstance(value, list):
            self._counts["several"] += len(value) > 1
            value = value[0] if value else None
        if isinstance(value, str):
            from vec_pipeline.downloads.web import web_record

            if not value.strip().lower().startswith(("http://", "https://")):
                raise ValueError(f"{value[:200]!r} is not an address")
            return web_record(value, self._options)
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if data:
            return Record(key, {"content": content_of_bytes(data, self._options.temporary)})
        if not path:
            raise ValueError("the row holds no picture")
        return Record(key, {"content": content_at(path, self._set.address)})

    def _one(self) -> Record:
        """The record of a key. Raises NotFound where there is no such row any more."""
        part, numbers = place_of(self._place, self._set.parts)
        key = self._key(part, *numbers)
        if len(numbers) < 2:  # the key of what could not be read
            for record in self._rows_of_part(part):
                if record.key == key:
                    return record
            raise NotFound(f"{key} can be read now: it is no picture")
        group, row = numbers
        found = cursor(self._set.address, self._options.keep, part, group).row(row)
        return self._record(key, found)


def failed(key: str, error: Exception) -> Record:
    return Record(key, {}, f"source: {first_line(error)}")


def place_of(place: str, parts: Container[str]) -> tuple[str, list[int]]:
    """The file, and the numbers of the row group and the row as far as they are named. Raises NotFound."""
    for depth in range(3):
        part, *numbers = place.rsplit("/", depth)
        if part in parts and all(number.isdecimal() for number in numbers):
            return part, [int(number) for number in numbers]
    raise NotFound(f"the data set has no file {place}: it was renamed, or deleted")


# -- what the library says ------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def opened(address: Address, keep: tuple[str, ...]) -> Opened:
    """A data set, of the split that is named or the usual one. Raises UserError where it cannot be had."""
    try:
        import datasets
    except ImportError:
        raise UserError("hf:// needs datasets: pip install 'vec-pipeline[datasets]'") from None
    try:
        stream, builder, split = loaded(datasets, address)
        features = stream.features or guessed_features(datasets, stream)
    except UserError:
        raise
    except FileNotFoundError as error:
        if address.is_local:
            raise NotFound(f"{address} holds no data set: {first_line(error)}") from None
        raise UserError(f"{address} does not exist, or needs a token (HF_TOKEN): {first_line(error)}") from None
    except Exception as error:  # whatever the library, the network and the formats raise
        raise UserError(f"{address} cannot be loaded: {first_line(error)}") from None
    address = replace(address, split=split)
    column, kept = picture_column(features, address), columns_to_keep(features, keep, address)
    names = list(dict.fromkeys([column, *kept]))
    if hasattr(builder.config, "columns"):  # of Parquet, no others are read
        builder.config.columns = names
        stream = builder.as_streaming_dataset(split=split)
    else:
        stream = stream.select_columns(names).cast(datasets.Features({name: features[name] for name in names}))
    return Opened(address, stream.decode(False), parts_of(builder, split, stream.num_shards, address), column, kept)


def loaded(datasets: Any, address: Address) -> tuple[Any, Any, str]:
    """The stream of a split, the library's builder of it, and the name of the split."""
    datasets.disable_progress_bars()
    builder = datasets.load_dataset_builder(
        address.path, address.name or None, revision=address.revision or None if not address.is_local else None
    )
    is_lenient = hasattr(builder.config, "on_bad_files")
    if is_lenient:  # where the first file is damaged, the columns are those of the next
        builder.config.on_bad_files = "warn"
    splits = builder.as_streaming_dataset()
    if is_lenient:  # later, a file that cannot be read must not be passed over in silence
        builder.config.on_bad_files = "error"
    split = address.split or ("train" if "train" in splits or len(splits) > 1 else next(iter(splits)))
    if split not in splits:
        one = f"no split {address.split!r}" if address.split else "several splits"
        raise UserError(f"{address} has {one}: write ?split= and one of {', '.join(splits)}")
    return splits[split], builder, split


def guessed_features(datasets: Any, stream: Any) -> Any:
    """The columns of a data set that does not say which it has, as the first rows have them."""
    import pyarrow

    return datasets.Features.from_arrow_schema(pyarrow.Table.from_pylist(list(stream.take(GUESSED_FROM))).schema)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:LONGEST_ERROR]}"


def parts_of(builder: Any, split: str, number: int, address: Address) -> dict[str, str]:
    """Names of the files below the data set, where each is a part of the stream, otherwise numbers; and their versions.

    A version is the commit of a data set of the hub, and the time of modification of a file.
    """
    files = (builder.config.data_files or {}).get(split, ())
    versions = ["/".join(map(str, each)) for each in getattr(files, "origin_metadata", ())]
    if len(versions) != len(files):  # it has those of files of other kinds, too
        versions = [blake2b("\n".join(versions).encode(), digest_size=16).hexdigest()] * len(files)
    below = re.compile(re.escape(f"{address.path}/") if address.is_local else r"hf://datasets/[^@]+@[^/]+/")
    if len(files) == number and all(below.match(each) for each in files):
        return {key_of(below.sub("", each, count=1)): version for each, version in zip(files, versions, strict=True)}
    version = blake2b("\n".join(versions).encode(), digest_size=16).hexdigest()
    return dict.fromkeys(map(str, range(number)), version)


def picture_column(features: Mapping[str, Any], address: Address) -> str:
    """The column that has the pictures or their addresses. Raises UserError."""
    if wanted := address.column:
        if wanted not in features:
            raise UserError(f"{address} has no column {wanted!r}{similar(wanted, list(features))}")
        if not (is_picture(features[wanted]) or is_text(features[wanted]) or is_bytes(features[wanted])):
            raise UserError(
                f"the column {wanted!r} of {address} holds neither pictures nor addresses: name another one"
            )
        return wanted
    usual = {name.lower(): name for name in features}
    found = [
        *(name for name, feature in features.items() if is_picture(feature)),
        *(usual[name] for name in BYTES_COLUMNS if name in usual and is_bytes(features[usual[name]])),
        *(usual[name] for name in ADDRESS_NAMES if name in usual and is_text(features[usual[name]])),
    ]
    if not found:
        raise UserError(f"{address} has no column of pictures: name it with --column, of {', '.join(features)}")
    return found[0]


def columns_to_keep(features: Mapping[str, Any], keep: Sequence[str], address: Address) -> dict[str, str]:
    """Columns of the data set -> names in the CSV, of texts such as title or title=caption. Raises UserError."""
    kept = kept_columns(keep, list(features), str(address))
    for name in kept:
        if is_bytes(features[name]) or hasattr(inner(features[name]), "decode"):  # pictures, sounds, films
            raise UserError(f"--keep: the column {name!r} of {address} holds files: keep texts and numbers")
    return kept


def inner(feature: Any) -> Any:
    """What a list is of, or the feature itself."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)


def is_picture(feature: Any) -> bool:
    one = inner(feature)
    return type(one).__name__ == "Image" or (isinstance(one, dict) and {"bytes", "path"} == one.keys())


def is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("string", "large_string", "string_view")


def is_bytes(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("binary", "large_binary", "binary_view")


def is_number(feature: Any) -> bool:
    return bool(NUMBER.fullmatch(getattr(feature, "dtype", None) or ""))


def column_type(feature: Any) -> str:
    """The type of a column in the CSV; text for what has no other, such as times and the names of classes."""
    if hasattr(feature, "int2str"):
        return "text"
    if is_number(feature):
        return "number"
    if inner(feature) is not feature and is_number(inner(feature)):
        return "vector"
    is_nested = isinstance(feature, dict | list) or inner(feature) is not feature
    return "json" if is_nested or getattr(feature, "dtype", "") == "bool" else "text"


def as_column(value: Any, feature: Any) -> Any:
    """A value of a row as the CSV has it; a class has its name. Raises ValueError."""
    kind = column_type(feature)
    if value is None:
        return None
    if hasattr(feature, "int2str"):
        return "" if value < 0 else feature.int2str(value)  # -1: without a label
    if kind == "vector" and None in value:
        raise ValueError("a list of numbers has a gap")
    if kind == "json":
        return json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)  # JSON has no NaN
    return str(value) if kind == "text" else value


# -- the pictures ---------------------------------------------------------------------------------------------------


def content_of_bytes(data: bytes, folder: Path | None) -> Content:
    from vec_pipeline.downloads.temporary import temporary_content

    return temporary_content(data, blake2b(data, digest_size=16).hexdigest(), folder=folder)


def content_at(path: str, address: Address) -> Content:
    """The content of a row that has a path alone. Raises ValueError where it must not be opened."""
    if (IN_AN_ARCHIVE if address.is_local else ON_THE_HUB).fullmatch(path):
        return FileInSet(path)
    if not address.is_local or "://" in path:
        raise ValueError(f"the row holds no picture, and its path {path[:200]!r} is not of the data set")
    return LocalFile(os.path.join(address.path, path))


# -- where rows are -------------------------------------------------------------------------------------------------


class Positions:
    """The rows in each row group that has been read to its end, by file of the data set, kept in a file for all sets.

    With them, a group whose pictures all have a row is passed over without being opened.
    """

    def __init__(self, path: Path | None, address: str) -> None:
        self._path = path
        self._address = address
        self._saved_s = time.monotonic()
        found = self._all().get(address)
        self._parts: dict[str, Any] = dict(found or {}) if are_counts(found) else {}

    def of(self, part: str, version: str) -> Sequence[int | None]:
        """The rows of each group, None for one that is not known; nothing where the number of groups is not."""
        found = self._parts.get(part)
        return found[1] if found and found[0] == version else ()

    def begin(self, part: str, version: str, groups: int) -> list[int | None]:
        """The counts of a file that has so many groups, to be changed in place."""
        if len(self.of(part, version)) != groups:
            self._parts[part] = [version, [None] * groups]
        counts: list[int | None] = self._parts[part][1]
        return counts

    def save_now_and_then(self) -> None:
        if time.monotonic() > self._saved_s + POSITIONS_EVERY_S:
            self.close()

    def close(self) -> None:
        """Save them. They only save time, so a disk that is full is no reason to stop."""
        self._saved_s = time.monotonic()
        if self._path is None:
            return
        with suppress(OSError):
            temporary = self._path.with_name(f"{self._path.name}.partial")
            temporary.write_text(json.dumps({**self._all(), self._address: self._parts}))
            temporary.replace(self._path)

    def _all(self) -> dict[str, Any]:
        """Those of every data set in the file; none where it is damaged."""
        with suppress(OSError, ValueError):
            found = json.loads(self._path.read_bytes()) if self._path else {}
            return found if isinstance(found, dict) else {}
        return {}


def are_counts(found: Any) -> bool:
    """Whether that is what was noted of a data set: the version of each file, and the rows of each of its groups."""
    try:
        return all({type(count) for count in counts} <= {int, type(None)} for _, counts in found.values())
    except (AttributeError, TypeError, ValueError):
        return False


class Cursor:
    """Rows of one row group by their numbers; asked in order, they are read once."""

    def __init__(self, rows: Callable[[], Iterator[Values]]) -> None:
        self._make = rows
        self._rows = rows()
        self._next = 0
        self._lock = Lock()

    def row(self, number: int) -> Values:
        """Raises NotFound where there are fewer."""
        with self._lock:
            if number < self._next:
                self._rows, self._next = self._make(), 0
            for row in self._rows:
                self._next += 1
                if self._next > number:
                    return row
            raise NotFound(f"the data set has no row {number} there any more: it holds {self._next:,}")


@lru_cache(maxsize=8)
def cursor(address: Address, keep: tuple[str, ...], part: str, group: int) -> Cursor:
    groups = opened(address, keep).groups(part)
    if group >= groups.num_shards:
        raise NotFound(f"{part} of {address} has no row group {group} any more")
    return Cursor(lambda: iter(groups.shard(groups.num_shards, group)))
