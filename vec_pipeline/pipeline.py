"""The loop: what is left to do, annotated chunk by chunk, and saved before the next begins."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from vec_pipeline.record import Record, Sink, Source

Chunk = list[Record]
Annotate = Callable[[Iterable[Chunk]], Iterable[Chunk]]


def run(source: Source, annotate: Annotate, sink: Sink, chunk_size: int, limit: int | None = None) -> None:
    """Annotate every image of the source that the sink has no row of, `limit` of them at most."""
    done = sink.keys()
    todo = (record for record in source if record.key not in done)
    for chunk in annotate(chunks(islice(todo, limit), chunk_size)):
        sink.write(chunk)  # the commit point


def chunks(records: Iterable[Record], size: int) -> Iterator[Chunk]:
    """Cut a stream into lists of `size` records, the last one shorter."""
    iterator = iter(records)
    while chunk := list(islice(iterator, size)):
        yield chunk
