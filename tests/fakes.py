"""A few believable stages, a source and a sink: they fail as real models do, and note what they were asked."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from PIL import Image

from vec_pipeline.record import Record, Stage, Values

SIDE_PX = 40
LARGE_SIDE_PX = 800
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB"


@dataclass
class Journal:
    """What stages did, in order: models loaded and closed, and the images of every batch."""

    loads: list[str] = field(default_factory=list)
    closes: list[str] = field(default_factory=list)
    batches: list[tuple[str, list[Any]]] = field(default_factory=list)

    def sizes(self, stage_name: str) -> list[int]:
        return [len(batch) for name, batch in self.batches if name == stage_name]


class Model:
    """A loaded model: it must be closed by whoever evicts it."""

    def __init__(self, name: str, journal: Journal) -> None:
        self.name = name
        self.journal = journal

    def close(self) -> None:
        self.journal.closes.append(self.name)


@dataclass(frozen=True, kw_only=True)
class Read(Stage):
    """path -> an image, large for a path that says so, and the path as its content hash."""

    reads: ClassVar[tuple[str, ...]] = ("path",)
    makes: ClassVar[tuple[str, ...]] = ("image", "content_hash")
    runs_ahead: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "read"

    def run(self, model: Any, rows: list[Values]) -> list[Values]:
        return [self._open(row["path"]) for row in rows]

    def _open(self, path: str) -> Values:
        if "broken" in path:
            raise OSError("image file is truncated")
        side_px = LARGE_SIDE_PX if "large" in path else SIDE_PX
        return {"image": Image.new("RGB", (side_px, side_px)), "content_hash": path}


@dataclass(frozen=True, kw_only=True)
class Describe(Stage):
    """image -> text that says its size; notes every load and batch in the journal."""

    reads: ClassVar[tuple[str, ...]] = ("image", "content_hash")
    writes: ClassVar[tuple[str, ...]] = ("text",)
    tuning: ClassVar[tuple[str, ...]] = ("batch_size", "journal")

    batch_size: int | Literal["auto"] = 8
    journal: Journal = field(default_factory=Journal, compare=False, repr=False)

    @property
    def name(self) -> str:
        return "describe"

    def load(self) -> Model:
        self.journal.loads.append(self.name)
        return Model(self.name, self.journal)

    def run(self, model: Model, rows: list[Values]) -> list[Values]:
        assert model.name == self.name
        self.journal.batches.append((self.name, [row[self.reads[-1]] for row in rows]))
        return [self.answer(row) for row in rows]

    def answer(self, row: Values) -> Values:
        return {"text": f"{row['content_hash']}, {row['image'].width} px"}


@dataclass(frozen=True, kw_only=True)
class EmbedText(Describe):
    """text -> text_vector, in a process of its own as far as the annotator knows."""

    runs_apart: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("text",)
    writes: ClassVar[tuple[str, ...]] = ("text_vector",)

    @property
    def name(self) -> str:
        return "embed_text"

    def answer(self, row: Values) -> Values:
        return {"text_vector": [float(len(row["text"]))]}


@dataclass(frozen=True, kw_only=True)
class EmbedImage(Describe):
    """image -> image_vector."""

    writes: ClassVar[tuple[str, ...]] = ("image_vector",)

    @property
    def name(self) -> str:
        return "embed_image"

    def answer(self, row: Values) -> Values:
        return {"image_vector": [float(row["image"].width)]}


@dataclass(frozen=True, kw_only=True)
class HungryDescribe(Describe):
    """Runs out of memory above a batch size, or with an image above a number of pixels."""

    largest_batch: int = 10**9
    largest_px: int = 10**9

    def run(self, model: Model, rows: list[Values]) -> list[Values]:
        answers = super().run(model, rows)
        pixels = (row["image"].width * row["image"].height for row in rows)
        if len(rows) > self.largest_batch or max(pixels) > self.largest_px:
            raise RuntimeError(OUT_OF_MEMORY)
        return answers


@dataclass(frozen=True, kw_only=True)
class PickyDescribe(Describe):
    """Fails on one image, and with it on each batch that holds it."""

    poison: str

    def answer(self, row: Values) -> Values:
        if row["content_hash"] == self.poison:
            raise ValueError("absolute aspect ratio must be\n smaller than 200")
        return super().answer(row)


@dataclass(frozen=True, kw_only=True)
class StubbornDescribe(Describe):
    """Its model cannot be loaded the first few times."""

    failures: int

    def load(self) -> Model:
        model = super().load()
        if Counter(self.journal.loads)[self.name] <= self.failures:
            raise RuntimeError(OUT_OF_MEMORY)
        return model


class ListSource:
    """Records of a list, made when asked for; `taken` are the keys handed out so far."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[Record]:
        for name in self.names:
            self.taken.append(name)
            yield record_of(name)


class ListSink:
    """Keeps what is written, write by write."""

    def __init__(self, done: Sequence[str] = ()) -> None:
        self.done = done
        self.writes: list[list[Record]] = []

    def keys(self) -> set[str]:
        return set(self.done)

    def write(self, records: Sequence[Record]) -> None:
        self.writes.append(list(records))


def record_of(name: str, content: str | None = None) -> Record:
    """A record; two of the same content are duplicates of one image."""
    return Record(name, {"path": content or name})


def records(*names: str) -> list[Record]:
    return [record_of(name) for name in names]
