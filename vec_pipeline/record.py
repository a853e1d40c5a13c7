"""What flows through the worker, and the shapes that plug into it: stages, sources, sinks."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

Values = dict[str, Any]
Worker = Literal["reader", "local", "child"]

COLUMNS = {  # the contract: every CSV begins with these columns, in this order; and their types
    "image_path": "text",
    "text": "text",
    "description": "text",
    "categories": "text",
    "keywords": "text",
    "image_text": "text",
    "text_vector": "vector",
    "word2vec_vector": "vector",
    "image_vector": "vector",
    "timestamp": "text",
    "error": "text",
    "llama_extracted": "text",
}
COLUMN_TYPES = ("text", "number", "vector", "json", "file")  # vector: an array of numbers of any shape; file: its path
SOURCE_VALUES = {"image_path": "text", "content": "content"}  # what every source provides
OF_FILE = "file."  # how names of values begin that an image's file has; a prompt calls them by the rest


class UserError(Exception):
    """Something only the user can fix. The message is one sentence that says what and how; the exit status is 2."""


class Interrupted(UserError):  # noqa: N818 (it says what happened)
    """What ends the run in the middle of a batch.

    results: of the batch, in order, as a stage returns them, or an engine its answers; None where there is none yet.
    """

    def __init__(self, message: str, results: Sequence[Any]) -> None:
        super().__init__(message)
        self.results = results


class NotFound(UserError):  # noqa: N818 (it says what happened)
    """What an argument or a key names does not exist."""


def beside(output: Path, ending: str) -> Path:
    """A file beside an output: annotations.lock for annotations.csv, a.v1.lock for a.v1, which a.v2 must not share."""
    return output.with_name(f"{output.name.removesuffix('.csv')}.{ending}")


class Content(Protocol):
    """The bytes of one image, wherever they are.

    link: an address that a browser opens, or empty.
    """

    @property
    def link(self) -> str: ...

    def read(self) -> bytes:
        """Return the bytes. Raises OSError, or what the place they come from raises."""
        ...

    def identity(self) -> str:
        """Return what changes with the bytes, without reading them: size and time, an ETag, a CRC. Raises as `read`."""
        ...


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """How pictures are downloaded; config.yaml explains each."""

    downloads_at_once: int = 64
    downloads_per_host: int = 32
    download_timeout_s: float = 60.0
    download_attempts: int = 4
    max_download_mb: int = 100
    contact: str = ""
    ignore_noai: bool = False
    allow_private: bool = True


@dataclass(frozen=True, kw_only=True)
class SourceOptions(DownloadOptions):
    """What the command line and config.yaml say of sources; each uses what concerns it.

    exclude: globs of names and of paths to leave out, where the argument holds several images.
    column: of a list or a data set, which holds the address, the path or the picture; empty: one of the usual names.
    keep: columns of a list or a data set that come along, each NAME or NAME=AS.
    store: the folder of pictures that were downloaded; None where they are not kept.
    temporary: the folder of files that are needed for a moment; a run empties it. None for the system's.
    positions: the file in which a data set notes where it can start again; None for nowhere.
    salt: the file of what names of authors are hashed with; None for nowhere.
    """

    exclude: tuple[str, ...] = ()
    column: str = ""
    keep: tuple[str, ...] = ()
    store: Path | None = None
    temporary: Path | None = None
    positions: Path | None = None
    salt: Path | None = None


ContentOf = Callable[[str], Content]  # the content of a key; raises UserError, of which NotFound is one


@dataclass(slots=True)
class Record:
    """One image on its way from source to sink."""

    key: str  # the absolute path as text, or the address: what resume compares, and the column image_path
    values: Values = field(default_factory=dict)  # `content`, and every column and intermediate so far, by name
    error: str = ""  # the first failure; stages that need nothing of the failed one still run
    done: set[str] = field(default_factory=set)  # names of the stages that have succeeded
    hashes: dict[str, bytes] = field(default_factory=dict)  # of `values`, as far as the result cache has needed them
    without: Container[str] = ()  # names of stages that are not to run for it
    corrected: Values = field(default_factory=dict)  # what people gave columns, which other stages read then
    of_machine: Values = field(default_factory=dict)  # of these columns, what stages wrote, which the row keeps

    def give(self, values: Values) -> None:
        """Add values; one that is None is left out. A corrected column has what people gave it until `take_back`."""
        for name, value in values.items():
            if name in self.corrected:
                self.of_machine[name], value = value, self.corrected[name]
            if value is not None:
                self.values[name] = value

    def written(self, name: str) -> Any:
        """What was given for a name, whatever people have corrected; None where there was nothing."""
        return self.of_machine[name] if name in self.of_machine else self.values.get(name)

    def take_back(self) -> None:
        """Let corrected columns have what stages wrote."""
        for name in self.of_machine:
            self.values.pop(name, None)
        self.values |= {name: value for name, value in self.of_machine.items() if value is not None}


@dataclass(frozen=True)
class Need:
    """Memory a loaded model takes, in GB (1e9 bytes).

    rows_gb: of the same kind, beside the model, for as many rows at once as make it fast.
    smaller: options that need less: what to set, and the GB it leaves.
    """

    gpu_gb: float = 0.0
    host_gb: float = 0.0
    rows_gb: float = 0.0
    smaller: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the annotation.

    A subclass is a frozen dataclass whose fields are its options in config.yaml, so it can be a key and hold no model.
    It raises freely and knows nothing of memory, retries or files. Two stages with equal options share results for
    equal inputs, whatever they are called and whichever columns they read and write. Two that differ in `call_options`
    alone share one model.

    name: in messages, settings and `--set`; that of the module if it is empty.
    read, write: the names in the record of what the stage calls by other names, such as {"text": "title"}.
    batch_size: rows that take memory at the same time.
    csv_folder: the folder of the CSV, which the run fills in: values of type file are paths from there on.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()  # read as well where it is there
    placeholders: ClassVar[tuple[str, ...]] = ()  # of these, the ones in a prompt: there must be such a value or column
    writes: ClassVar[Mapping[str, str]] = {}  # columns, and their types: COLUMN_TYPES
    intermediates: ClassVar[Mapping[str, str]] = {}  # values for later stages, never saved; also of type image
    speed_options: ClassVar[tuple[str, ...]] = ("batch_size", "device")  # they change speed and memory, not results
    call_options: ClassVar[tuple[str, ...]] = ()  # that `run` alone uses: what `load` returns fits any value of them
    newer_options: ClassVar[tuple[str, ...]] = ()  # which, at their defaults, leave results as they were without them
    in_files: ClassVar[tuple[str, ...]] = ()  # intermediates that `restored` reads in files: no cache holds them too
    version: ClassVar[int] = 1  # raised whenever the stage's code changes what it returns
    worker: ClassVar[Worker] = "local"  # where it runs: in the reading threads, in this process, in a child process
    refills: ClassVar[bool] = False  # `run` wants several times `at_once` rows: a finished row is replaced by the next

    name: str = field(default="", compare=False)
    read: Mapping[str, str] = field(default_factory=dict, compare=False)
    write: Mapping[str, str] = field(default_factory=dict, compare=False)
    batch_size: int | Literal["auto"] = 1
    csv_folder: Path = field(default=Path("output"), compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or type(self).__module__.rpartition(".")[2])

    @property
    def is_remote(self) -> bool:
        """Whether a server has the model: what `load` returns takes no memory, and no model makes way for it."""
        return False

    @cached_property
    def loaded_as(self) -> "Stage":
        """Equal for stages that share one model: this stage with the defaults of its `call_options`."""
        options = [each for each in fields(self) if each.name in self.call_options]
        defaults: dict[str, Any] = {each.name: each.default for each in options}
        return replace(self, **defaults) if defaults else self

    def fetch(self) -> None:
        """Make sure the weights are on this machine; download them if need be. Raises UserError where that fails."""

    def need(self) -> Need:
        """Estimate the memory of the loaded model; zero where it is not known."""
        return Need()

    def identity(self) -> str:
        """What decides the results beside the options: the text that an empty option stands for, say."""
        return ""

    def load(self) -> Any:
        """Return the model that `run` is given."""
        return None

    def auto_batch_size(self, model: Any, reserved_gb: float) -> int:
        """Rows at once where `batch_size` is auto: what suits the free memory without the `reserved_gb` of others."""
        return 16

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        """Annotate rows, each a dict of `reads` and what there is of `optional`.

        at_once: rows that may take memory at the same time.

        Return one dict per row, in order, whose keys are `writes` and `intermediates`; a value that is missing is
        None. A row that fails alone has a message under "error", beside whatever was found.
        """
        raise NotImplementedError

    def save_memory(self, model: Any) -> bool:
        """Let the model compute with less memory, though it is slower; False where nothing more can be done.

        It is asked where one row alone does not fit, before its picture is made smaller.
        """
        return False

    def inputs(self, values: Values) -> Values:
        """What the stage reads of a record's values, by the stage's own names."""
        names = {own: self.read.get(own, own) for own in (*self.reads, *self.optional)}
        return {own: values[name] for own, name in names.items() if name in values}

    def is_ready(self, values: Values) -> bool:
        """Whether all that the stage must read is there."""
        return all(self.read.get(own, own) in values for own in self.reads)

    def has_files(self, result: Values) -> bool:
        """Whether the files that a result names, under the stage's own names, are still there."""
        names = [result.get(own) for own, kind in self.writes.items() if kind == "file"]
        return all((self.csv_folder / name).exists() for name in names if name)

    def restored(self, result: Values) -> Values | None:
        """A result of the cache as `run` returned it; None where a file that it names is gone."""
        return result if self.has_files(result) else None

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names in the record of what the stage reads, optional inputs included."""
        return tuple(self.read.get(own, own) for own in (*self.reads, *self.optional))

    @property
    def outputs(self) -> dict[str, str]:
        """Own names of every value in a result -> names in the record."""
        return {own: self.write.get(own, own) for own in (*self.writes, *self.intermediates)}

    @property
    def columns(self) -> dict[str, str]:
        """Names in the CSV of the columns that the stage writes -> their types."""
        return {self.write.get(own, own): kind for own, kind in self.writes.items()}


class Source(Protocol):
    """Where images come from: yields a record per image, in a stable order, with `content` among its values.

    A class of a module in `sources/`, or of one that `sources:` in config.yaml names. It is made with one argument of
    the command line; a key of one of its records is such an argument too, and stands for that image alone. An item that
    cannot be read is a record with an error, never the end of the stream.

    exclude: globs of names and of paths to leave out, where the argument holds several images. An `__init__` that also
        has a parameter `options` is given the SourceOptions.

    columns: that come with each record, and their types; one of type content is fetched and read as `content` is, and
        is no column of the CSV.
    is_stream: it can be read once only, and its length is not known before.
    is_counted: optional, False where it can be read again, and is too long to be counted before.
    has_priority: optional, whether its records have the value `priority`, a number that is higher for what comes first.
    __length_hint__: optional, about how many records there are, where that is known at once.
    resume: optional, a method that is given the keys that need no work, before the iteration that may begin after them.
    notes: after iteration, what was left out, a line each.
    failures: after iteration, what could not be listed and why, a line each; the exit status is 1 then.

    Raises UserError where the argument cannot be used.
    """

    columns: Mapping[str, str]
    is_stream: bool
    notes: list[str]
    failures: list[str]

    def __init__(self, argument: str, exclude: Sequence[str] = ()) -> None: ...

    @classmethod
    def accepts(cls, argument: str) -> bool:
        """Whether an argument of the command line, or a key, is this source's."""
        ...

    def __iter__(self) -> Iterator[Record]: ...


class Sink(Protocol):
    """Where rows go.

    rows: how many it holds.
    failed: the rows that have an error.
    error_examples: the first few of these, with their errors.
    """

    rows: int
    failed: Sized
    error_examples: Sequence[tuple[str, str]]

    def keys(self) -> Container[str]:
        """The images that need no work; `write` adds to them."""
        ...

    def write(self, records: Sequence[Record]) -> None:
        """Return once the rows are safe. Raises UserError where there is no space left."""
        ...

    def replace_rows(self) -> int:
        """Put rows that were annotated again in the place of the old ones, atomically; return how many changed."""
        ...

    def close(self) -> bool:
        """Let go of it; return whether all rows that were written are saved."""
        ...
