"""The loop: what is left, annotated chunk by chunk, and saved before the next begins."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tests.fakes import ListSink, ListSource, records
from vec_pipeline import pipeline
from vec_pipeline.pipeline import Chunk, chunks
from vec_pipeline.record import Record


def untouched(chunked: Iterable[Chunk]) -> Iterable[Chunk]:
    return chunked


def run(source: Iterable[Record], sink: ListSink, size: int, annotate: Any = untouched, **options: Any) -> list[str]:
    """Run the loop, and return the keys of each write, in one word."""
    pipeline.run(source, annotate, sink.done, sink.write, lambda: size, **options)
    return ["".join(record.key for record in write) for write in sink.writes]


def test_rows_are_written_chunk_by_chunk_in_order() -> None:
    assert run(ListSource("abcdefg"), ListSink(), 3) == ["abc", "def", "g"]


def test_images_that_have_a_row_are_skipped() -> None:
    assert run(ListSource("abcdefg"), ListSink(done="acf"), 3) == ["bde", "g"]


def test_nothing_left_is_nothing_written() -> None:
    assert run(ListSource("abc"), ListSink(done="abc"), 3) == []


@pytest.mark.parametrize(("names", "size"), [("abacb", 5), ("abacb", 2), ("abacb", 1), ("aaabbbc", 3)])
def test_an_image_that_the_source_names_twice_is_annotated_once(names: str, size: int) -> None:
    """In one chunk, in the next while the first is at work, and once its row is there."""
    annotated = []

    def annotate(chunked: Iterable[Chunk]) -> Iterator[Chunk]:
        ahead: list[Chunk] = []
        for chunk in chunked:  # one chunk is read while another is at work, as the executor does
            annotated.extend(record.key for record in chunk)
            ahead.append(chunk)
            if len(ahead) > 1:
                yield ahead.pop(0)
        yield from ahead

    written = run(ListSource(names), ListSink(), size, annotate)
    assert (annotated, "".join(written)) == (list("abc"), "abc")


def test_only_what_is_taken_and_not_saved_is_remembered() -> None:
    """A source of a million images: their keys are in the sink already."""

    class Key(str):
        """One that can be watched."""

    watched: list[weakref.ref[Key]] = []
    alive: list[int] = []

    def source() -> Iterator[Record]:
        for number in range(100):
            alive.append(sum(each() is not None for each in watched))
            key = Key(number)
            watched.append(weakref.ref(key))
            yield Record(key)

    done: set[str] = set()
    pipeline.run(source(), untouched, done, lambda chunk: done.update(str(r.key) for r in chunk), lambda: 10)
    assert len(done) == 100
    assert max(alive) <= 20


@pytest.mark.parametrize(("limit", "expected"), [(4, ["bdf", "g"]), (1, ["b"]), (0, []), (9, ["bdf", "gh"])])
def test_the_limit_counts_images_that_are_left(limit: int, expected: list[str]) -> None:
    assert run(ListSource("abcdefgh"), ListSink(done="ace"), 3, limit=limit) == expected


def test_the_limit_counts_an_image_that_is_named_twice_once() -> None:
    assert run(ListSource("aabbcc"), ListSink(), 3, limit=2) == ["ab"]


def test_groups_come_in_their_order_and_no_chunk_mixes_them() -> None:
    def vowels_last(left: Iterable[Record]) -> Iterator[list[Record]]:
        held_back = []
        yield [record for record in left if record.key not in "aeiou" or held_back.append(record)]  # type: ignore[func-returns-value]
        yield held_back

    assert run(ListSource("abcdefg"), ListSink(done="c"), 3, in_groups=vowels_last) == ["bdf", "g", "ae"]
    assert run(ListSource("abcdefg"), ListSink(), 3, limit=3, in_groups=vowels_last) == ["bc", "a"]


def test_a_chunk_is_saved_before_the_next_is_annotated() -> None:
    sink = ListSink()
    saved_before = []

    def annotate(chunked: Iterable[Chunk]) -> Iterator[Chunk]:
        for chunk in chunked:
            saved_before.append(len(sink.writes))
            yield chunk

    run(ListSource("abcdef"), sink, 2, annotate)
    assert saved_before == [0, 1, 2]


def test_what_was_annotated_before_a_failure_is_saved() -> None:
    sink = ListSink()

    def annotate(chunked: Iterable[Chunk]) -> Iterator[Chunk]:
        for chunk in chunked:
            yield chunk
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ListSource("abcdef"), sink, 2, annotate)
    assert sink.done == set("ab")


def test_the_source_is_read_as_far_as_needed() -> None:
    source = ListSource("abcdef")
    run(source, ListSink(), 2, limit=3)
    assert source.taken == ["a", "b", "c"]


def test_chunks_of_a_stream() -> None:
    sizes = iter([2, 1, 5, 5])
    cut = chunks(iter(records(*"abcde")), lambda: next(sizes))
    assert [[record.key for record in chunk] for chunk in cut] == [["a", "b"], ["c"], ["d", "e"]]
