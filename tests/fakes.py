"""A few believable stages, a source and a sink: they fail as real models do, and note what they were asked."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar, Literal

from PIL import Image

from vec_pipeline.record import Record, Stage, Values, Worker

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
    """content -> an image of one colour, large for content that says so, and what the content says."""

    reads: ClassVar[tuple[str, ...]] = ("content",)
    intermediates: ClassVar[Mapping[str, str]] = {"image": "image", "content_text": "text"}
    worker: ClassVar[Worker] = "reader"

    name: str = field(default="read", compare=False)

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [self._open(row["content"].read().decode()) for row in rows]

    def _open(self, text: str) -> Values:
        if "broken" in text:
            raise OSError("image file is truncated")
        side_px = LARGE_SIDE_PX if "large" in text else SIDE_PX
        colour = tuple(blake2b(text.encode(), digest_size=3).digest())
        return {"image": Image.new("RGB", (side_px, side_px), colour), "content_text": text}


@dataclass(frozen=True, kw_only=True)
class Describe(Stage):
    """image -> text that says its size; notes every load and batch in the journal."""

    reads: ClassVar[tuple[str, ...]] = ("image", "content_text")
    writes: ClassVar[Mapping[str, str]] = {"text": "text"}
    speed_options: ClassVar[tuple[str, ...]] = ("batch_size", "journal")

    name: str = field(default="describe", compare=False)

    batch_size: int | Literal["auto"] = 8
    journal: Journal = field(default_factory=Journal, compare=False, repr=False)

    def load(self) -> Model:
        self.journal.loads.append(self.name)
        return Model(self.name, self.journal)

    def run(self, model: Model, rows: list[Values], at_once: int) -> list[Values]:
        assert model.name == self.name
        self.journal.batches.append((self.name, [row[self.reads[-1]] for row in rows]))
        return [self.answer(row) for row in rows]

    def answer(self, row: Values) -> Values:
        return {"text": f"{row['content_text']}, {row['image'].width} px"}


@dataclass(frozen=True, kw_only=True)
class EmbedText(Describe):
    """text -> text_vector, in a child process as far as the executor knows."""

    worker: ClassVar[Worker] = "child"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    writes: ClassVar[Mapping[str, str]] = {"text_vector": "vector"}

    name: str = field(default="embed_text", compare=False)

    def answer(self, row: Values) -> Values:
        return {"text_vector": [float(len(row["text"]))]}


@dataclass(frozen=True, kw_only=True)
class EmbedImage(Describe):
    """image -> image_vector."""

    writes: ClassVar[Mapping[str, str]] = {"image_vector": "vector"}

    name: str = field(default="embed_image", compare=False)

    def answer(self, row: Values) -> Values:
        return {"image_vector": [float(row["image"].width)]}


@dataclass(frozen=True, kw_only=True)
class HungryDescribe(Describe):
    """Runs out of memory above a batch size, or with an image above a number of pixels."""

    largest_batch: int = 10**9
    largest_px: int = 10**9

    def run(self, model: Model, rows: list[Values], at_once: int) -> list[Values]:
        answers = super().run(model, rows, at_once)
        pixels = (row["image"].width * row["image"].height for row in rows)
        if len(rows) > self.largest_batch or max(pixels) > self.largest_px:
            raise RuntimeError(OUT_OF_MEMORY)
        return answers


@dataclass(frozen=True, kw_only=True)
class PickyDescribe(Describe):
    """Fails on one image, and with it on each batch that holds it."""

    poison: str

    def answer(self, row: Values) -> Values:
        if row["content_text"] == self.poison:
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


@dataclass(frozen=True)
class TextContent:
    """Content that a test writes down: its letters are its bytes, and identify it."""

    text: str
    link: str = ""

    def read(self) -> bytes:
        return self.text.encode()

    def identity(self) -> str:
        return self.text


class ListSource:
    """Records of a list, made when asked for; `taken` are the keys handed out so far."""

    columns: Mapping[str, str] = {}
    is_stream = False

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.taken: list[str] = []
        self.notes: list[str] = []
        self.failures: list[str] = []

    def __iter__(self) -> Iterator[Record]:
        for name in self.names:
            self.taken.append(name)
            yield record_of(name)


class ListSink:
    """Keeps what is written, write by write; `done` are the keys of its rows."""

    def __init__(self, done: Sequence[str] = ()) -> None:
        self.done = set(done)
        self.writes: list[list[Record]] = []

    def write(self, records: Sequence[Record]) -> None:
        self.writes.append(list(records))
        self.done.update(record.key for record in records)


def record_of(name: str, content: str | None = None) -> Record:
    """A record; two of the same content are copies of one image."""
    return Record(name, {"content": TextContent(content or name)})


def records(*names: str) -> list[Record]:
    return [record_of(name) for name in names]
