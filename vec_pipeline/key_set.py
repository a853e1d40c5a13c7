"""Which keys are in a set, in eight bytes each: ten million take 80 MB, where their texts would take two GB."""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Self

import numpy as np

MERGED_TOGETHER = 1 << 16  # keys added or removed since the array was sorted; more make it be sorted again


class KeySet:
    """A set of texts that knows their 64-bit hashes alone, so it cannot list them.

    While one thread adds keys, others may ask for some.

    Two of ten million keys share a hash with a chance of 1 to 370,000.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._added: set[int] = set()  # and not in `_sorted`
        self._removed: set[int] = set()  # and still in `_sorted`
        self.update(keys)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._has(hash_of(key))

    def __len__(self) -> int:
        return len(self._sorted) + len(self._added) - len(self._removed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeySet) and np.array_equal(self._array(), other._array())

    def __sub__(self, other: Self) -> Self:
        """Those that the other set does not hold."""
        return self._of(np.setdiff1d(self._array(), other._array(), assume_unique=True))

    def __and__(self, other: Self) -> Self:
        return self._of(np.intersect1d(self._array(), other._array(), assume_unique=True))

    def __or__(self, other: Self) -> Self:
        return self._of(np.union1d(self._array(), other._array()))

    def update(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.add(key)

    def add(self, key: str) -> None:
        number = hash_of(key)
        self._removed.discard(number)
        if not self._has(number):
            self._added.add(number)
            self._merge_if_many()

    def discard(self, key: str) -> None:
        number = hash_of(key)
        if number in self._added:
            self._added.remove(number)
        elif self._has(number):
            self._removed.add(number)
            self._merge_if_many()

    def _has(self, number: int) -> bool:
        if number in self._added:
            return True
        removed, array = self._removed, self._sorted  # in this order: another thread may be merging them
        place = int(np.searchsorted(array, np.uint64(number)))
        is_there = place < len(array) and int(array[place]) == number
        return is_there and number not in removed

    def _merge_if_many(self) -> None:
        if len(self._added) + len(self._removed) >= MERGED_TOGETHER:
            self._array()

    def _array(self) -> "np.ndarray[Any, np.dtype[np.uint64]]":
        """All of it, sorted, with what has been added and removed since."""
        if self._removed:
            removed = np.fromiter(self._removed, np.uint64, len(self._removed))
            self._sorted = np.setdiff1d(self._sorted, removed, assume_unique=True)
        if self._added:
            added = np.sort(np.fromiter(self._added, np.uint64, len(self._added)))
            merged = np.concatenate([self._sorted, added])
            merged.sort(kind="stable")  # two sorted runs: union1d takes twice the time, and leaves gaps in the heap
            self._sorted = merged
        self._added, self._removed = set(), set()
        return self._sorted

    def _of(self, numbers: "np.ndarray[Any, np.dtype[np.uint64]]") -> Self:
        made = type(self)()
        made._sorted = numbers
        return made


def hash_of(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")
