"""The loop: what is left to do, annotated chunk by chunk, and saved before the next begins."""

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice

from vec_pipeline.record import Record, Sink, Source

Chunk = list[Record]
Annotate = Callable[[Iterable[Chunk]], Iterable[Chunk]]
ChunkSize = Callable[[], int]


def run(
    source: Source,
    annotate: Annotate,
    sink: Sink,
    chunk_size: ChunkSize,
    limit: int | None = None,
    suspects: Collection[str] = (),
) -> None:
    """Annotate every image of the source that the sink has no row of, `limit` of them at most.

    chunk_size: asked before each chunk.
    suspects: images that may kill the process: they come last and one by one, with nothing else in flight, so that
        a kill costs no other image and shows which one it was.
    """
    done = sink.keys()
    todo = islice((record for record in source if record.key not in done), limit)
    held_back: Chunk = []
    for chunk in annotate(chunks(calm(todo, suspects, held_back), chunk_size)):
        sink.write(chunk)  # the commit point
    for record in held_back:
        for chunk in annotate([[record]]):
            sink.write(chunk)


def calm(records: Iterable[Record], suspects: Collection[str], held_back: Chunk) -> Iterator[Record]:
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
