"""In which order rows are looked at: those first of which a look is worth most."""

from typing import Literal

import numpy as np
import pyarrow.compute as pc

from vec_pipeline.commands.serve.review.table import Array, Table
from vec_pipeline.corrections import VERIFIED

Order = Literal["worth", "csv", "newest", "random"]


def ordered(table: Table, order: Order, groups: Array, undecided: int | None = None) -> Array:
    """The numbers of all rows in an order: int64 of shape (rows,).

    worth: as `by_worth` says. newest: by timestamp. random: the same each time, as long as no rows come.
    undecided: a row that is placed as if nobody had verified it.
    """
    if order == "worth":
        return by_worth(table, groups, undecided)
    if order == "newest":
        times = pc.fill_null(table.column("timestamp").cast("int64"), 0).to_numpy()
        return np.lexsort((-np.arange(len(table)), -times))
    return np.random.default_rng(0).permutation(len(table)) if order == "random" else np.arange(len(table))


def by_worth(table: Table, groups: Array, undecided: int | None = None) -> Array:
    """Rows that nobody has verified first; of them, one of each group of near-duplicates first; then by doubt.

    groups: int64 of shape (rows,), 0 for none. No row of a group comes early of which another one is verified.
    """
    by_doubt = np.argsort(-table.doubts, kind="stable")
    is_verified = pc.not_equal(table.column(VERIFIED), "").to_numpy().copy()
    if undecided is not None:
        is_verified[undecided] = False
    is_seen = np.isin(groups, np.unique(groups[is_verified & (groups > 0)]))
    is_repeated = is_seen[by_doubt] | ~firsts(groups[by_doubt])
    order: Array = by_doubt[np.lexsort((is_repeated, is_verified[by_doubt]))]
    return order


def firsts(groups: Array) -> Array:
    """Where each group appears first, and what is in no group: bools of shape (rows,)."""
    is_first: Array = groups == 0
    is_first[np.unique(groups, return_index=True)[1]] = True
    return is_first
