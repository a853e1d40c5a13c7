"""What flows through the worker, and the three shapes that can be plugged into it."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

Values = dict[str, Any]

COLUMNS = (  # the contract: every CSV begins with these, in this order
    "image_path",
    "text",
    "description",
    "categories",
    "keywords",
    "image_text",
    "text_vector",
    "word2vec_vector",
    "image_vector",
    "timestamp",
    "error",
    "llama_extracted",
)
VECTOR_COLUMNS = ("text_vector", "word2vec_vector", "image_vector")


class UserError(Exception):
    """Something only the user can mend. The message is one sentence that says what and how; the exit status is 2."""


@dataclass(slots=True)
class Record:
    """One image on its way from source to sink."""

    key: str  # the absolute path as text: what resume compares, and the column image_path
    values: Values = field(default_factory=dict)  # every column and working value so far, by name
    error: str = ""  # the first failure; stages that need nothing of the failed one still run


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
    It raises freely and knows nothing of memory, retries or files.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    may_read: ClassVar[tuple[str, ...]] = ()  # given to `run` where it is there
    writes: ClassVar[tuple[str, ...]] = ()  # columns
    makes: ClassVar[tuple[str, ...]] = ()  # working values for later stages, never saved
    tuning: ClassVar[tuple[str, ...]] = ("batch_size", "device")  # options that change speed and memory, not results
    runs_ahead: ClassVar[bool] = False  # run in the reading threads, image by image, before the models' turn
    runs_apart: ClassVar[bool] = False  # computes in a process of its own, so other stages need not wait for it
    window: ClassVar[int] = 1  # `run` gets so many rows for each it has at once; over 1 where it refills free places
    is_kept: ClassVar[bool] = True  # results are worth a place in the ledger

    batch_size: int | Literal["auto"] = 1  # rows at once

    @property
    def name(self) -> str:
        """The name that `use:` gives in config.yaml: the module's own."""
        return type(self).__module__.rpartition(".")[2]

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

    def auto_batch_size(self, model: Any) -> int:
        """Rows at once that suit the free memory, where `batch_size` is auto."""
        return 16

    def run(self, model: Any, rows: list[Values]) -> list[Values]:
        """Annotate a batch: one dict of new values per row, in order.

        A value under "error" marks that row as failed although the batch went well.
        """
        raise NotImplementedError


class Source(Protocol):
    """Where images come from: yields a record per image, in a stable order."""

    def __iter__(self) -> Iterator[Record]: ...


class Sink(Protocol):
    """Where rows go. `keys` are the images that need no work; `write` returns once the rows are safe on disk."""

    def keys(self) -> Collection[str]: ...
    def write(self, records: Sequence[Record]) -> None: ...
