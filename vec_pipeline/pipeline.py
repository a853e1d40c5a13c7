"""The loop: what is left to do, annotated chunk by chunk, and saved before the next begins."""

import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from itertools import islice
from typing import Protocol

from vec_pipeline.record import Record, Sink, Source

Chunk = list[Record]
ChunkSize = Callable[[], int]


class Annotate(Protocol):
    """Annotates chunk by chunk, with at most so many images in flight at once."""

    def __call__(self, chunks: Iterable[Chunk], most_in_flight: int = sys.maxsize) -> Iterable[Chunk]: ...


def run(
    source: Source,
    annotate: Annotate,
    sink: Sink,
    chunk_size: ChunkSize,
    limit: int | None = None,
    suspects: Mapping[str, int] | None = None,
) -> None:
    """Annotate every image of the source that the sink has no row of, `limit` of them at most.

    chunk_size: asked before each chunk.
    suspects: images that may kill the process, and how many of them may be in flight at once. They come last, with
        nothing else in flight, so that another kill shows which one it was, or narrows it down.
    """
    suspects = suspects or {}
    done = sink.keys()
    todo = islice((record for record in source if record.key not in done), limit)
    held_back: Chunk = []
    for chunk in annotate(chunks(calm(todo, suspects, held_back), chunk_size)):
        sink.write(chunk)  # the commit point
    for most_in_flight in sorted(set(suspects.values()), reverse=True):
        those = [record for record in held_back if suspects[record.key] == most_in_flight]
        for alone in chunks(those, chunk_size):
            for chunk in annotate([alone], most_in_flight):
                sink.write(chunk)


def calm(records: Iterable[Record], suspects: Container[str], held_back: Chunk) -> Iterator[Record]:
    """Pass on what is not suspect, and hold back what is."""
    for record in records:
        if record.key in suspects:
            held_back.append(record)
        else:
            yield record


def chunks(records: Iterable[Record], size: ChunkSize) -> Iterator[Chunk]:
    """Cut a stream into lists of `size()` records, the last one shorter."""
    iterator = iter(records)
    while chunk := list(islice(iterator, size())):
        yield chunk
