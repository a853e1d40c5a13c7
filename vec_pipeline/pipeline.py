"""The loop: what is left to do, annotated chunk by chunk, and saved before the next begins."""

from collections.abc import Callable, Container, Iterable, Iterator
from itertools import islice

from vec_pipeline.record import Record

Chunk = list[Record]
Annotate = Callable[[Iterable[Chunk]], Iterable[Chunk]]
ChunkSize = Callable[[], int]
Ahead = Callable[[Iterable[Record]], Iterable[Record]]
Groups = Callable[[Iterable[Record]], Iterable[Iterable[Record]]]


def run(
    records: Iterable[Record],
    annotate: Annotate,
    done: Container[str],
    save: Callable[[Chunk], None],
    chunk_size: ChunkSize,
    limit: int | None = None,
    ahead: Ahead = lambda records: records,
    in_groups: Groups = lambda records: [records],
) -> None:
    """Annotate every image that is not done, once each, `limit` of them at most.

    done: keys of images that have a row; `save` adds to them.
    save: returns once the rows of a chunk are safe.
    chunk_size: asked before each chunk.
    ahead: fetches what is elsewhere before it is asked for; it may change the order.
    in_groups: cuts what is left to do into groups that no chunk mixes, in the order in which they are done.
    """
    taken: set[str] = set()  # and not saved yet: two sources may name one image
    for group in in_groups(ahead(islice(left_to_do(records, done, taken), limit))):
        for chunk in annotate(chunks(group, chunk_size)):
            save(chunk)  # the commit point
            taken.difference_update(record.key for record in chunk)


def left_to_do(records: Iterable[Record], done: Container[str], taken: set[str]) -> Iterator[Record]:
    for record in records:
        if record.key not in taken and record.key not in done:
            taken.add(record.key)
            yield record


def chunks(records: Iterable[Record], size: ChunkSize) -> Iterator[Chunk]:
    """Cut a stream into lists of `size()` records, the last one shorter. The size is asked when the first is there."""
    iterator = iter(records)
    for first in iterator:
        yield [first, *islice(iterator, size() - 1)]
