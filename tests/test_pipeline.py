"""The loop: what is left, annotated chunk by chunk, and saved before the next begins."""

from collections.abc import Iterable, Iterator

import pytest

from tests.fakes import ListSink, ListSource, records
from vec_pipeline.pipeline import Chunk, chunks, run


def untouched(chunked: Iterable[Chunk]) -> Iterable[Chunk]:
    return chunked


def written(sink: ListSink) -> list[str]:
    """The keys of each write, in one word."""
    return ["".join(record.key for record in write) for write in sink.writes]


def test_rows_are_written_chunk_by_chunk_in_order() -> None:
    sink = ListSink()
    run(ListSource("abcdefg"), untouched, sink, chunk_size=lambda: 3)
    assert written(sink) == ["abc", "def", "g"]


def test_images_that_have_a_row_are_skipped() -> None:
    sink = ListSink(done="acf")
    run(ListSource("abcdefg"), untouched, sink, chunk_size=lambda: 3)
    assert written(sink) == ["bde", "g"]


def test_nothing_left_is_nothing_written() -> None:
    sink = ListSink(done="abc")
    run(ListSource("abc"), untouched, sink, chunk_size=lambda: 3)
    assert written(sink) == []


@pytest.mark.parametrize(("limit", "expected"), [(4, ["bdf", "g"]), (1, ["b"]), (0, []), (9, ["bdf", "gh"])])
def test_the_limit_counts_images_that_are_left(limit: int, expected: list[str]) -> None:
    sink = ListSink(done="ace")
    run(ListSource("abcdefgh"), untouched, sink, chunk_size=lambda: 3, limit=limit)
    assert written(sink) == expected


def test_a_chunk_is_saved_before_the_next_is_annotated() -> None:
    sink = ListSink()
    saved_before = []

    def annotate(chunked: Iterable[Chunk]) -> Iterator[Chunk]:
        for chunk in chunked:
            saved_before.append(len(sink.writes))
            yield chunk

    run(ListSource("abcdef"), annotate, sink, chunk_size=lambda: 2)
    assert saved_before == [0, 1, 2]


def test_the_source_is_read_as_far_as_needed() -> None:
    source = ListSource("abcdef")
    run(source, untouched, ListSink(), chunk_size=lambda: 2, limit=3)
    assert source.taken == ["a", "b", "c"]


def test_chunks_of_a_stream() -> None:
    cut = chunks(iter(records(*"abcde")), lambda: 2)
    assert [[record.key for record in chunk] for chunk in cut] == [["a", "b"], ["c", "d"], ["e"]]
