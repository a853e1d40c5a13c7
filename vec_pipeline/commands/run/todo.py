"""Compares the source with the rows that are there: what is new, what has changed, what has gone."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from operator import length_hint
from pathlib import Path

from vec_pipeline.key_set import KeySet
from vec_pipeline.pipeline import chunks
from vec_pipeline.record import ContentOf, NotFound, Record, Source, UserError
from vec_pipeline.result_cache import ResultCache
from vec_pipeline.settings import fingerprint
from vec_pipeline.sinks.csv_rows import Contents, keys_in
from vec_pipeline.sources import is_counted
from vec_pipeline.terminal import plural, visible

COMPARED_TOGETHER = 256  # pictures


class Todo:
    """What there is to do, said on the terminal as it becomes known.

    records: to go through; those that have a row are skipped.
    source_columns: that come with them, and their types.
    number: how many are annotated in this run; None where that is not known before.
    about: the same as an estimate, where there is one for what is not counted; else 0.
    gone: keys of the rows to drop.

    compares: whether to go through a source that is too long to be counted, which --refresh and --prune need.
    may_be_empty: whether more will come.

    Raises UserError where the source holds no image.
    """

    def __init__(
        self, source: Source, existing: Contents, cache_path: Path | None, *, compares: bool, may_be_empty: bool = False
    ) -> None:
        self.records: Iterable[Record] = source
        self.source_columns = source.columns
        self.number: int | None = None
        self.about = 0
        self.gone: list[str] = []
        self._source = source
        self._existing = existing
        self._found = 0
        self._present = KeySet()  # rows whose pictures are in the source
        self._changed = KeySet()  # of those, the ones whose pictures have changed since
        self._unknown = KeySet()  # and those of which that is not known
        if is_counted(source) or (compares and not source.is_stream):
            self._compare(cache_path if cache_path and cache_path.exists() else None)
            for note in source.notes:
                print(visible(note))
            if not self._found and not may_be_empty:
                reasons = "".join(f"; {visible(failure)}" for failure in source.failures[:3])
                is_set = any(".parquet" in note for note in source.notes)
                remedy = (
                    "write hf:// before the folder if it holds a data set" if is_set else "name other files or folders"
                )
                raise UserError(f"no image found{reasons}: {remedy}")

    def _compare(self, cache_path: Path | None) -> None:
        found = KeySet()  # a list may name a picture twice; a folder does not
        with closing(ResultCache(cache_path, fingerprint)) as results:
            for records in chunks(self._source, lambda: COMPARED_TOGETHER):
                if not is_counted(self._source):
                    records = list({each.key: each for each in records if each.key not in found}.values())
                    found.update(record.key for record in records)
                self._found += len(records)
                old = [record for record in records if record.key in self._existing.keys]
                self._present.update(record.key for record in old)
                changed, unknown = results.changed_pictures(old)
                self._changed.update(record.key for record in changed)
                self._unknown.update(record.key for record in unknown)

    @property
    def changed(self) -> KeySet:
        """Keys of the rows whose pictures have changed since, or may have."""
        return self._changed | self._unknown

    def new(self, limit: int | None, retry_errors: bool) -> None:
        """Images without a row, and those whose row has an error if these are retried."""
        if not is_counted(self._source):
            hint = length_hint(self._source)
            done = self._existing.rows - (len(self._existing.failed) if retry_errors else 0)
            self.about = min(max(hint - done, 0), hint if limit is None else limit)
            number = (
                f"about {plural(hint, 'image')}" if hint else "how many images it holds is not known before its end"
            )
            print(f"the source is read as a stream: {number}", flush=True)
            if retry_errors and len(self._existing.failed):
                failed = plural(len(self._existing.failed), "row")
                print(f"{failed} with an error: those that the source still names are annotated again", flush=True)
            return
        left = self._found - len(self._present)
        if retry_errors:
            left += len(self._present & self._existing.failed)
            if gone := len(self._existing.failed - self._present):
                print(
                    f"{plural(gone, 'row')} with an error: the picture is not in the source (--prune drops those gone)"
                )
        self.number = left if limit is None else min(left, limit)
        limited = f", {self.number:,} of them in this run" if self.number < left else ""
        print(f"{plural(self._found, 'image')}: {self._found - left:,} done, {left:,} to do{limited}", flush=True)
        if self._changed:
            print(f"{plural(len(self._changed), 'picture')} changed since their rows were made: --refresh updates them")

    def refresh(self, outdated: Sequence[str], without_files: KeySet, stale: KeySet) -> None:
        """Rows made with other settings, or of pictures that have changed, or of which neither is known.

        without_files: keys of the rows that name files that are gone.
        stale: keys of the rows that were made before people corrected them.
        """
        if self._source.is_stream:
            raise UserError("--refresh needs a source that can be read twice: name files or folders, not a stream")
        without_files, stale = without_files & self._present, stale & self._present
        keys = self._present if outdated else self._changed | self._unknown | without_files | stale
        self.number = len(keys)
        self.records = (record for record in self._source if record.key in keys)
        if not keys:
            print("every row was made with these settings and pictures: nothing to refresh")
            return
        reasons = [*outdated[:5], *([f"{plural(len(self._changed), 'changed picture')}"] if self._changed else [])]
        reasons += [f"files of {plural(len(without_files), 'row')} are gone"] if without_files else []
        reasons += [f"{plural(len(stale), 'row')} corrected by people"] if stale else []
        print(f"{plural(len(keys), 'row')} to update ({', '.join(reasons) or 'their pictures are not known'})")
        for number, what in (
            (self._existing.rows - len(self._present), "of pictures that are not in the source, left unchanged"),
            (self._found - len(self._present), "to add for new images: run without --refresh afterwards"),
        ):
            if number:
                print(f"{plural(number, 'row')} {what}", flush=True)

    def prune(self, csv_path: Path, content_of: ContentOf) -> None:
        """Rows of the CSV whose pictures are not in the source and do not exist any more."""
        missing = (key for key in keys_in(csv_path) if key not in self._present) if self._existing.rows else ()
        self.gone = sorted(key for key in missing if is_gone(key, content_of))
        print(f"{plural(len(self.gone), 'row')} to drop: the pictures no longer exist")


def is_gone(key: str, content_of: ContentOf) -> bool:
    """Whether there is no such picture; one that cannot be reached may still exist."""
    try:
        content_of(key).identity()
    except (NotFound, FileNotFoundError, NotADirectoryError):
        return True
    except Exception:  # of any place that content comes from
        return False
    return False
