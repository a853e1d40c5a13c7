"""Rows to shards: tar files as WebDataset reads them, with a picture or a pair, a text and a JSON object per row."""

import json
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from vec_pipeline.commands.export.training import REQUEST, Example, Examples

SHARD_MB = 1_000
PICTURE = "jpg"  # whatever its kind: readers look at the bytes, and `datasets` wants the same names in each sample


def write(examples: Examples, folder: Path, shard_mb: int = SHARD_MB) -> None:
    """Write 000000.tar and so on, each of at most `shard_mb` (1e6 bytes), or of one row that is larger.

    The same rows make the same bytes: no time, user or machine is noted.
    """
    waiting = iter(examples)
    example = next(waiting, None)
    number = 0
    while example:
        with tarfile.open(folder / f"{number:06}.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
            while example and (not shard.offset or shard.offset + size_of(example) <= shard_mb * 1e6):
                for suffix, content in members(example):
                    entry = tarfile.TarInfo(f"{example.key}.{suffix}")
                    entry.size = len(content)
                    shard.addfile(entry, BytesIO(content))
                example = next(waiting, None)
        number += 1


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
