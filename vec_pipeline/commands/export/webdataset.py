"""Rows to shards: tar files as WebDataset reads them, with a picture or a pair, a text and a JSON object per row."""

import argparse
import json
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from io import BytesIO
from pathlib import Path

from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands.export.files import Written
from vec_pipeline.commands.export.training import REQUEST, Example, Examples

SHARD_MB = 1_000
PICTURE = "jpg"  # whatever its kind: readers look at the bytes, and `datasets` wants the same names in each sample


def write(reader: CsvReader, folder: Path, options: argparse.Namespace) -> Written:
    """Write 000000.tar and so on, or train-000000.tar and validation-000000.tar where the rows are divided.

    The same rows make the same bytes: no time, user or machine is noted.
    """
    examples = Examples(reader, options.caption)
    with ExitStack() as stack:
        made = {side: Shards(folder, side and f"{side}-", options.shard_mb) for side in examples.sides}
        shards = {side: stack.enter_context(closing(each)) for side, each in made.items()}
        for example in examples:
            shards[example.side].add(example)
    return examples.written


class Shards:
    """Tar files of one side, each of at most `shard_mb` (1e6 bytes), or of one row that is larger."""

    def __init__(self, folder: Path, start: str, shard_mb: int | None) -> None:
        self._folder, self._start = folder, start
        self._most = (shard_mb or SHARD_MB) * 1e6
        self._number = 0
        self._tar: tarfile.TarFile | None = None

    def add(self, example: Example) -> None:
        if self._tar and self._tar.offset + size_of(example) > self._most:
            self.close()
        if not self._tar:
            name = self._folder / f"{self._start}{self._number:06}.tar"
            self._tar = tarfile.open(name, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (of several rows)
            self._number += 1
        for suffix, content in members(example):
            entry = tarfile.TarInfo(f"{example.key}.{suffix}")
            entry.size = len(content)
            self._tar.addfile(entry, BytesIO(content))

    def close(self) -> None:
        if self._tar:
            self._tar.close()
            self._tar = None


def members(example: Example) -> Iterator[tuple[str, bytes]]:
    """Suffix and content of each file of a row."""
    is_pair = example.request is not None
    for name, picture in example.pictures.items():
        yield f"{name}.{PICTURE}" if is_pair else PICTURE, picture.content
    if example.request is not None:
        yield f"{REQUEST}.txt", example.request.encode()
    yield "txt", example.caption.encode()
    yield "json", json.dumps(example.row, ensure_ascii=False).encode()


def size_of(example: Example) -> int:
    """Bytes in the tar file, about."""
    return sum(len(content) + 2 * tarfile.BLOCKSIZE for _, content in members(example))
