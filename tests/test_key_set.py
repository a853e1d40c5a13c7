"""Sets of keys that keep their hashes alone: they answer as sets of texts do, in eight bytes each."""

import sys
import threading
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vec_pipeline import key_set
from vec_pipeline.key_set import KeySet

KEYS = st.sampled_from([f"/photos/{number}.jpg" for number in range(12)])
STEPS = st.lists(st.tuples(st.booleans(), KEYS), max_size=60)


@pytest.mark.parametrize("merged_together", [1, 3, 1 << 16])
@given(steps=STEPS)
def test_it_answers_as_a_set_of_texts(merged_together: int, steps: list[tuple[bool, str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_set, "MERGED_TOGETHER", merged_together)
        keys, texts = KeySet(), set[str]()
        for is_added, key in steps:
            for each in (keys, texts):
                each.add(key) if is_added else each.discard(key)
            assert_same(keys, texts)


@given(first=st.sets(KEYS), second=st.sets(KEYS))
def test_sets_are_subtracted_intersected_and_joined(first: set[str], second: set[str]) -> None:
    one, other = KeySet(first), KeySet(second)
    assert_same(one - other, first - second)
    assert_same(one & other, first & second)
    assert_same(one | other, first | second)
    assert_same(one, first)
    assert_same(other, second)


def test_a_result_is_a_set_of_its_own() -> None:
    first = KeySet(["a", "b"])
    rest = first - KeySet(["b"])
    rest.add("c")
    first.discard("a")
    assert_same(first, {"b"})
    assert_same(rest, {"a", "c"})


def test_names_that_are_not_utf8_are_keys_too() -> None:
    assert "/photos/\udcff.jpg" in KeySet(["/photos/\udcff.jpg"])
    assert 7 not in KeySet(["7"])


def test_keys_are_found_while_another_thread_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop asks for keys in the thread that reads, while rows are saved in another."""
    monkeypatch.setattr(key_set, "MERGED_TOGETHER", 3)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    keys = KeySet(f"done {number}" for number in range(50))
    adding = threading.Thread(target=lambda: keys.update(f"new {number}" for number in range(4_000)))
    adding.start()
    try:
        while adding.is_alive():
            assert all(f"done {number}" in keys for number in range(50))
    finally:
        sys.setswitchinterval(interval_s)
        adding.join()


def test_a_key_takes_little_more_than_eight_bytes() -> None:
    number = 300_000
    tracemalloc.start()
    keys = KeySet(f"https://pictures.example/{index:09}.jpg" for index in range(number))
    keys = keys | KeySet()  # merged
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(keys) == number
    assert used < 12 * number


def assert_same(keys: KeySet, texts: Iterable[str]) -> None:
    texts = set(texts)
    assert keys == KeySet(texts)
    assert len(keys) == len(texts)
    assert bool(keys) == bool(texts)
    assert {each for each in (f"/photos/{number}.jpg" for number in range(12)) if each in keys} == {
        each for each in texts if each.startswith("/photos/")
    }
