"""Join CSVs that were made with the same settings, such as the shards of a run, into one."""

import argparse
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vec_pipeline.commands import path, writing
from vec_pipeline.record import UserError, beside
from vec_pipeline.terminal import plural

if TYPE_CHECKING:
    from vec_pipeline.key_set import KeySet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("csv", nargs="+", type=path, metavar="FILE", help="the CSVs to join; each is left as it is")
    parser.add_argument("--out", type=path, required=True, metavar="FILE", help="the CSV with the rows of all")


def run(options: argparse.Namespace) -> int:
    from vec_pipeline.sinks.csv_file import lock_beside

    inputs = list(dict.fromkeys(each.resolve() for each in options.csv))
    check(inputs, options.out)
    with ExitStack() as stack:
        for each in dict.fromkeys([*inputs, options.out.resolve()]):
            stack.enter_context(lock_beside(each))  # no run appends to it meanwhile
        merge(inputs, options.out)
    return 0


def check(inputs: Sequence[Path], out: Path) -> None:
    """Raise UserError for files that are missing, or that were made with other settings than the first one."""
    from vec_pipeline.annotations import CsvReader
    from vec_pipeline.settings import recorded_settings
    from vec_pipeline.sinks.csv_rows import contents_of

    for each in inputs:
        CsvReader(each).close()
        contents_of(each, header_of(each))  # which names a row that is damaged
    if out.exists() and out.resolve() not in inputs:
        raise UserError(f"{out} exists: name it among the files to join, or another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    first = recorded_settings(inputs[0]).stages
    for each in inputs[1:]:
        if other := difference(first, recorded_settings(each).stages):
            raise UserError(
                f"{each} was made with other settings than {inputs[0]} ({other}): bring its rows up to date by "
                "`run --refresh` with the same configuration first"
            )


def difference(first: dict[str, dict[str, object]], other: dict[str, dict[str, object]]) -> str:
    """The first setting, as STAGE.KEY, that two CSVs were made with differently; empty where there is none."""
    for name in dict.fromkeys([*first, *other]):
        if name not in first or name not in other:
            return name
        for key in dict.fromkeys([*first[name], *other[name]]):
            if first[name].get(key) != other[name].get(key):
                return f"{name}.{key}"
    return ""


class Best(NamedTuple):
    """What ranks the rows of one picture: one without an error before one with it, then the latest."""

    is_fine: bool
    timestamp: str
    file: int
    end_bytes: int


def merge(inputs: Sequence[Path], out: Path) -> None:
    """Write the rows of all, one for each picture, and what belongs to them. Raises UserError."""
    from vec_pipeline.settings import column_types
    from vec_pipeline.sinks.csv_file import encode_row, with_columns

    best = best_rows(inputs, doubled_keys(inputs))
    header = list(dict.fromkeys(name for each in inputs for name in header_of(each)))
    of_files = [name for name, kind in column_types(inputs[0], header).items() if kind == "file"]
    written = failed = 0
    with writing(out) as file:
        file.write(encode_row(header))
        for number, each in enumerate(inputs):
            own = header_of(each)
            for row in rows_of(each):
                if row.key in best and best[row.key][2:] != (number, row.end_bytes):
                    continue
                file.write(row.data if own == header else with_columns(row.data, own, header))
                for name in files_named(row.data, own, of_files if each.parent != out.parent.resolve() else ()):
                    link(each.parent / name, out.parent / name)
                written, failed = written + 1, failed + bool(row.error)
        join_corrections(inputs, out)  # before there is a CSV that lacks them
    join_settings(inputs, out)
    join_caches(inputs, out, best)
    doubles = f"; {plural(len(best), 'picture')} with several rows: the best one is kept" if best else ""
    print(f"{plural(written, 'row')} in {out}, {failed:,} of them with an error{doubles}")


class Row(NamedTuple):
    key: str
    error: str
    end_bytes: int
    data: bytes


def rows_of(csv_path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV that are whole."""
    from vec_pipeline.sinks.csv_rows import key_and_error, whole_rows

    with csv_path.open("rb", buffering=0) as file:
        for is_header, end, data in whole_rows(file):
            if not is_header:
                yield Row(*key_and_error(data), end, data)


def header_of(csv_path: Path) -> list[str]:
    from vec_pipeline.sinks.csv_rows import read_header

    with csv_path.open("rb", buffering=0) as file:
        return list(read_header(file)[0])


def doubled_keys(inputs: Sequence[Path]) -> "KeySet":
    """The pictures that have more than one row."""
    from vec_pipeline.key_set import KeySet

    seen, doubled = KeySet(), KeySet()
    for each in inputs:
        for row in rows_of(each):
            (doubled if row.key in seen else seen).add(row.key)
    return doubled


def best_rows(inputs: Sequence[Path], keys: "KeySet") -> dict[str, Best]:
    """The row to keep of each picture in `keys`."""
    from vec_pipeline.sinks.csv_rows import TIMESTAMP_COLUMN, cells_of

    best: dict[str, Best] = {}
    for number, each in enumerate(inputs if len(keys) else ()):
        for row in rows_of(each):
            if row.key in keys:
                found = Best(not row.error, cells_of(row.data)[TIMESTAMP_COLUMN], number, row.end_bytes)
                best[row.key] = max(found, best.get(row.key, found))
    return best


def files_named(row: bytes, header: Sequence[str], columns: Sequence[str]) -> list[str]:
    """The files that a row names in columns of type file, by their paths from the CSV's folder."""
    from vec_pipeline.sinks.csv_rows import cells_of

    cells = dict(zip(header, cells_of(row), strict=False)) if columns else {}
    return [cells[name] for name in columns if cells.get(name)]


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it to another disk; one that is gone is made again by `run --refresh`."""
    if not source.exists() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def link_store(source: Path, target: Path) -> None:
    """Let the downloaded pictures of one CSV be those of another, too."""
    for folder, _, names in os.walk(source):
        for name in names:
            link(Path(folder, name), target / Path(folder, name).relative_to(source))


def join_settings(inputs: Sequence[Path], out: Path) -> None:
    """Write the settings beside the new CSV: those of the first, with the columns and the sources of all."""
    from vec_pipeline import settings

    all_of = [settings.recorded_settings(each) for each in inputs]
    joined = replace(
        all_of[0],
        columns={name: kind for each in all_of for name, kind in each.columns.items()},
        sources=list(dict.fromkeys(name for each in all_of for name in each.sources)),
        source_columns=list(dict.fromkeys(name for each in all_of for name in each.source_columns)),
        store=beside(out, "images").name if any(each.store for each in all_of) else "",
    )
    settings.write_recorded(out, joined)
    for csv_path, recorded in zip(inputs, all_of, strict=True):
        if recorded.store:
            link_store(csv_path.parent / recorded.store, out.parent / joined.store)


def join_caches(inputs: Sequence[Path], out: Path, best: Mapping[str, Best]) -> None:
    """Put the results that the CSVs have into the cache of the new one, so that nothing is computed again."""
    from vec_pipeline.result_cache import ResultCache, hash_of
    from vec_pipeline.settings import fingerprint

    results = ResultCache(beside(out, "cache.sqlite"), fingerprint)
    try:
        for number, each in enumerate(inputs):
            of_others = {hash_of(key) for key, row in best.items() if row.file != number}
            results.take_over(beside(each, "cache.sqlite"), of_others)
    finally:
        results.close()


def join_corrections(inputs: Sequence[Path], out: Path) -> None:
    """Put what people have corrected in the CSVs beside the new one."""
    from vec_pipeline.corrections import Corrections

    corrections = Corrections(out)
    try:
        for each in inputs:
            corrections.take_over(each)
    finally:
        corrections.close()
