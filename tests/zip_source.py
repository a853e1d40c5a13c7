"""A source that the worker does not know: images in a zip file. `sources: [tests.zip_source]` is all it takes."""

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vec_pipeline.record import NotFound, Record


@dataclass(frozen=True)
class Member:
    archive: str
    name: str
    link: str = ""

    def read(self) -> bytes:
        with zipfile.ZipFile(self.archive) as archive:
            return archive.read(self.name)

    def identity(self) -> str:
        with zipfile.ZipFile(self.archive) as archive:
            return f"{archive.getinfo(self.name).CRC}"


class Zip:
    columns: Mapping[str, str] = {"caption": "text"}
    is_stream = False

    def __init__(self, argument: str, exclude: Sequence[str] = ()) -> None:
        head, _, self.member = argument.partition(".zip/")
        self.archive = os.path.abspath(head.removesuffix(".zip") + ".zip")
        self.notes: list[str] = []
        self.failures: list[str] = []

    @classmethod
    def accepts(cls, argument: str) -> bool:
        return not argument.startswith(("stream:", "odd:")) and (argument.endswith(".zip") or ".zip/" in argument)

    def __iter__(self) -> Iterator[Record]:
        with zipfile.ZipFile(self.archive) as archive:
            names = [name for name in sorted(archive.namelist()) if self.member in ("", name)]
        if not names:
            raise NotFound(f"{self.archive} holds no {self.member}")
        for name in names:
            yield Record(f"{self.archive}/{name}", {"content": Member(self.archive, name), "caption": Path(name).stem})


class ZipStream(Zip):
    """`stream:photos.zip`: the same, but it can be read once only and nobody knows how long it is."""

    is_stream = True

    def __init__(self, argument: str, exclude: Sequence[str] = ()) -> None:
        super().__init__(argument.removeprefix("stream:"))
        self.is_read = False

    @classmethod
    def accepts(cls, argument: str) -> bool:
        return argument.startswith("stream:")

    def __iter__(self) -> Iterator[Record]:
        assert not self.is_read
        self.is_read = True
        yield from super().__iter__()
        yield Record("torn", {}, "source: ValueError: this item of the stream is damaged")


class OddZip(Zip):
    """`odd:photos.zip`: its captions are not of the type that it declares."""

    def __init__(self, argument: str, exclude: Sequence[str] = ()) -> None:
        super().__init__(argument.removeprefix("odd:"))

    @classmethod
    def accepts(cls, argument: str) -> bool:
        return argument.startswith("odd:")

    def __iter__(self) -> Iterator[Record]:
        for record in super().__iter__():
            yield Record(record.key, {**record.values, "caption": Path(record.values["caption"])})
