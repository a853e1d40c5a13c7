"""Vectors of pictures -> groups of near-duplicates, what to keep of each, and the side of a split that it goes to."""

import math
import mmap
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

Array = np.ndarray[Any, Any]
Step = TypeVar("Step")

EXACT_BELOW = 50_000  # different vectors: every pair of them is compared, which takes a core 15 s
CELLS = 1 << 22  # cosines computed at a time: 17 MB
ROWS = 4_096  # vectors read at a time
LISTS_PER_ROOT = 4  # lists per square root of the number of vectors
PROBES = 16  # lists, those nearest to a vector, with whose members it is compared
SAMPLES_PER_LIST, ROUNDS = 24, 4  # what k-means sees, and how often
ROUNDING = 1e-6  # by which the cosine of equal vectors may fall short of 1
SHORTEST = 1e-12  # length of a vector that has a direction
LEADERS_AT_ONCE = 512
SHORT = 100  # steps that need no progress bar


def unit(vectors: Array) -> Array:
    """Scale rows of shape (n, dimensions) to length 1, as float32; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Array = (vectors / np.maximum(lengths, SHORTEST)).astype(np.float32, copy=False)
    return result


def group(vectors: Array, cosine: float) -> Array:
    """Number groups of near-duplicates: int64 of shape (n,), 0 for a vector without any; group 1 is the largest.

    Two vectors are in one group if their cosine is at least `cosine`, directly or through others. So a series of
    pictures that change slowly is one group, though its ends differ: `kept` says what can be left out of it.

    vectors: of shape (n, dimensions), finite numbers, in memory or mapped from a file; zeros are in no group.

    Equal vectors are compared once. Below EXACT_BELOW different ones, every pair is compared; from there on, each with
    those in the lists that it is near to (`lists_of`), as SemDeDup does (Abbas et al. 2023). All cosines are computed
    in float32: no pair is found wrongly, and a few may be missed. benchmarks/duplicates.py counts them.
    """
    firsts, inverse = distinct(vectors)
    links = [np.zeros((2, 0), np.int64)]
    for rows, own in lists_of(vectors, firsts):
        labels = compared(directions_of(vectors, rows), own, cosine)
        of_label = np.unique(labels, return_index=True)[1]
        links.append(np.stack([rows, rows[of_label[labels]]])[:, of_label[labels] != np.arange(len(rows))])
    first, second = np.concatenate(links, axis=1)
    return numbered(components(first, second, len(vectors))[inverse])


def distinct(vectors: Array) -> tuple[Array, Array]:
    """Where different vectors that have a direction stand first, in order; and for each vector where its equal does."""
    hashes, has_direction = np.empty(len(vectors), np.int64), np.empty(len(vectors), bool)
    for start in range(0, len(vectors), ROWS):
        block = np.ascontiguousarray(vectors[start : start + ROWS])
        hashes[start : start + ROWS] = [hash(row.tobytes()) for row in block]  # of 64 bits: no two of a million collide
        has_direction[start : start + ROWS] = np.linalg.norm(block, axis=1) > SHORTEST
        let_go(vectors)
    _, first, number = np.unique(hashes, return_index=True, return_inverse=True)
    return np.sort(first[has_direction[first]]), np.where(has_direction, first[number], np.arange(len(vectors)))


def directions_of(vectors: Array, rows: Array) -> Array:
    """Some of the vectors, of length 1: float32 of shape (len(rows), dimensions)."""
    found = np.empty((len(rows), vectors.shape[1]), np.float32)
    for start in range(0, len(rows), ROWS):
        found[start : start + ROWS] = unit(vectors[rows[start : start + ROWS]])
        let_go(vectors)
    return found


def let_go(vectors: Array) -> None:
    """Let pages of a file that is mapped to be read go: they count as this process's memory until that is short."""
    file = vectors.base if isinstance(vectors, np.memmap) and vectors.mode == "r" else None
    if isinstance(file, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)


def lists_of(vectors: Array, chosen: Array) -> Iterator[tuple[Array, int]]:
    """Yield rows of some vectors to compare: int64 of shape (m,), and how many of them, the first, with all m.

    chosen: where those vectors stand. From EXACT_BELOW on they are divided into lists by k-means: each yields those it
    is the nearest to, and after them the others to which it is one of the PROBES nearest. So the work grows with the
    power 1.5 of their number.
    """
    if len(chosen) < EXACT_BELOW:
        yield chosen, len(chosen)
        return
    centres = centres_of(vectors, chosen)
    probes = min(PROBES, len(centres))
    nearest = np.empty((len(chosen), probes), np.int32)
    for start in bar(range(0, len(chosen), ROWS), "vectors to lists"):
        cosines = directions_of(vectors, chosen[start : start + ROWS]) @ centres.T
        best = np.argpartition(cosines, -probes, axis=1)[:, -probes:]
        order = np.argsort(-np.take_along_axis(cosines, best, 1), axis=1)
        nearest[start : start + ROWS] = 2 * np.take_along_axis(best, order, 1)
    nearest[:, 1:] += 1  # the place of a vector: among the first of its nearest list, and among the others of others
    order = np.argsort(nearest, axis=None, kind="stable")
    ends = np.searchsorted(nearest.ravel(), np.arange(-1, 2 * len(centres)), side="right", sorter=order)
    for start, middle, end in bar(list(zip(ends[:-1:2], ends[1::2], ends[2::2], strict=True)), "near-duplicates"):
        yield chosen[order[start:end] // probes], middle - start


def centres_of(vectors: Array, chosen: Array) -> Array:
    """The centres of the lists for some vectors, by k-means of a sample: float32 of shape (lists, dimensions)."""
    from sklearn.cluster import KMeans

    lists = LISTS_PER_ROOT * math.isqrt(len(chosen))
    rows = np.random.default_rng(0).choice(chosen, min(SAMPLES_PER_LIST * lists, len(chosen)), replace=False)
    means = KMeans(lists, init="random", n_init=1, max_iter=ROUNDS, random_state=0, copy_x=False)
    return unit(means.fit(directions_of(vectors, rows)).cluster_centers_)


def compared(directions: Array, own: int, cosine: float) -> Array:
    """Compare the first `own` of unit vectors of shape (m, dimensions) with all; return the label of each: (m,).

    Those with equal labels are near-duplicates of each other, directly or through others.
    """
    number = len(directions)
    labels, step = np.arange(number), max(1, CELLS // max(1, number))
    for start in bar(range(0, own, step), "near-duplicates"):
        stop = min(own, start + step)
        near = directions[start:stop] @ directions[start:].T >= cosine - ROUNDING
        np.fill_diagonal(near, False)
        while near.any():  # of many equal pictures few pairs are looked at: after one link most have the same label
            near &= labels[start:stop, None] != labels[start:]
            column = np.flatnonzero(near.any(axis=0))
            row = near.argmax(axis=0)[column]
            labels = components(labels[start + row], labels[start + column], number)[labels]
    return labels


def components(first: Array, second: Array, number: int) -> Array:
    """Label `number` nodes, of which first[i] and second[i] are linked, by what they are connected with: (number,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(number, number))
    labels: Array = connected_components(links, directed=False)[1]
    return labels


def numbered(labels: Array) -> Array:
    """Labels of components, (n,), to group numbers from 1, the largest first; components of one image become 0."""
    _, firsts, inverse, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((firsts, -sizes))
    numbers = np.empty_like(order)
    numbers[order] = np.arange(1, len(order) + 1)
    numbers[sizes == 1] = 0
    result: Array = numbers[inverse]
    return result


def kept(vectors: Array, groups: Array, order: Array, cosine: float) -> tuple[Array, Array]:
    """Choose what to keep: for each of n vectors the one that is kept for it, int64 (n,), and their cosine, (n,).

    groups: as `group` returns them. order: of shape (n,), where the vectors stand from the best to the worst.

    A vector is kept unless its cosine with one of its group that is kept before it is at least `cosine`, so that
    nothing is left out for the sake of a vector that it is not near to. One that is kept has itself, and a cosine of 1.
    """
    found, cosines = np.arange(len(vectors)), np.ones(len(vectors), np.float32)
    members = order[np.argsort(groups[order], kind="stable")]
    ends = np.searchsorted(groups[members], np.arange(groups.max(initial=0) + 1), side="right")
    for number in bar(range(1, len(ends)), "what to keep"):
        rows = members[ends[number - 1] : ends[number]]
        leaders, cosines[rows] = leaders_of(vectors, rows, cosine)
        found[rows] = rows[leaders]
    return found, cosines


def leaders_of(vectors: Array, rows: Array, cosine: float) -> tuple[Array, Array]:
    """`kept` within one group: rows of vectors from the best to the worst -> indices into rows, and cosines, (m,)."""
    found, cosines = np.arange(len(rows)), np.ones(len(rows), np.float32)
    leaders: list[int] = []
    before = np.empty((0, vectors.shape[1]), np.float32)  # the leaders of earlier blocks
    for start in range(0, len(rows), LEADERS_AT_ONCE):
        block = directions_of(vectors, rows[start : start + LEADERS_AT_ONCE])
        best, nearest = np.full(len(block), -1, np.float32), np.zeros(len(block), np.int64)
        if leaders:
            all_of = block @ before.T
            best, nearest = all_of.max(1), np.array(leaders)[all_of.argmax(1)]
        within = block @ block.T
        for index in range(len(block)):
            if best[index] < cosine - ROUNDING:
                leaders.append(start + index)
                nearer = within[index] > best
                nearer[: index + 1] = False
                best[nearer], nearest[nearer] = within[index][nearer], start + index
                best[index], nearest[index] = 1, start + index
        found[start : start + len(block)], cosines[start : start + len(block)] = nearest, best
        before = np.concatenate([before, block[[each - start for each in leaders if each >= start]]])
    return found, cosines


def splits(groups: Array, share: float, keys: Sequence[str]) -> Array:
    """Divide rows into "train" and "validation", whole groups to one side: an array of these texts, of shape (n,).

    groups: int of shape (n,), 0 for a row in none. share: of "train", from 0 to 1; it is met within chance.
    keys: of the rows. The hash of the smallest of a group decides, so that rows that are added later move no others,
    unless they join groups.
    """
    smallest: dict[int, str] = {}
    for number, key in zip(groups.tolist(), keys, strict=True):
        smallest[number] = min(key, smallest.get(number, key))
    sides = (
        fraction_of(smallest[number] if number else key) < share
        for number, key in zip(groups.tolist(), keys, strict=True)
    )
    return np.where(np.fromiter(sides, bool, len(keys)), "train", "validation")


def fraction_of(key: str) -> float:
    """A hash of a text, from 0 to below 1."""
    return int.from_bytes(blake2b(key.encode(errors="surrogatepass"), digest_size=4).digest()) / 2**32


def bar(steps: Sequence[Step], what: str) -> Iterator[Step]:
    """Walk through steps with a progress bar if stderr is a terminal and there are many."""
    yield from tqdm(steps, what, unit=" blocks", leave=False, disable=None if len(steps) > SHORT else True)
