"""What people have corrected, in a run: stages read it in place of what others wrote, and moved pictures keep it."""

import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path

from vec_pipeline.corrections import Corrections, Current, typed
from vec_pipeline.record import Record, Stage
from vec_pipeline.result_cache import hash_of
from vec_pipeline.settings import fingerprint, recorded_settings
from vec_pipeline.sources import local_path
from vec_pipeline.stages.open_image import OpenImage
from vec_pipeline.terminal import plural

IMAGE = "image"  # the value of a record whose pixels tell pictures apart
LOOKED_AT = 1000  # pictures at the end of a run: a server looks at all


class Corrected:
    """The corrections of a CSV as they are now; nothing, at no cost, where there are none.

    types: of the columns of the CSV.
    stages: of the run.
    changed: keys of pictures that may have changed since their rows were made. Those that another has replaced lose
        what was corrected for them before it is given to any stage; the caller holds the CSV's lock.

    stale: keys of the rows that were made before what their stages read was corrected, or with what is undone since.
    notes: what to say at the end, a line each.
    """

    def __init__(
        self, csv_path: Path, types: dict[str, str], stages: Sequence[Stage], changed: Container[str] = ()
    ) -> None:
        self._csv_path = csv_path
        self._corrections = Corrections(csv_path)
        self._now: Current = self._corrections.current()
        self._found = self._replaced = 0
        read = {name for stage in stages for name in stage.input_names}
        self._columns = {name: kind for name, kind in types.items() if name in read}
        given = [key for key, found in self._now.values.items() if key in changed and self._columns.keys() & found]
        if given:
            self._look_at(given)
            self._now = self._corrections.current()
        self.stale = self._corrections.stale(self._columns) if self._now.exists else []
        self._concerned = {*self._now.values, *self.stale, *given}
        self._saved: list[str] = []
        opens = [stage for stage in stages if IMAGE in stage.outputs.values()]
        self._reader = fingerprint(opens[0]) if opens else ""

    def given(self, records: Iterable[Record]) -> Iterable[Record]:
        """Pass records on with what people gave their columns."""
        return self._given(records) if self._now.values else records

    def _given(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            values = self._now.of(record.key)
            record.corrected = {
                name: typed(kind, values[name]) for name, kind in self._columns.items() if name in values
            }
            yield record

    def note(self, records: Iterable[Record]) -> None:
        """Rows have been written: keep what their pictures look like, and until `confirm`, what they were made with."""
        if self._now.exists:
            hashes = {record.key: record.hashes[IMAGE] for record in records if IMAGE in record.hashes}
            self._note_pixels(hashes, self._reader)
            self._saved += [record.key for record in records if record.key in self._concerned]

    def confirm(self) -> None:
        """The rows that were noted are saved."""
        if self._saved:
            self._corrections.confirm({key: self._now.of(key) for key in self._saved})
            self._saved = []

    def look(self) -> None:
        """Keep what corrected pictures look like of which that is not known yet: they are found where they move to."""
        if self._now.exists:
            self._look_at([])

    def _look_at(self, keys: Sequence[str]) -> None:
        """Note what pictures look like; where none is named, those of which that is not known yet."""
        if not (found := pixels_of(self._csv_path)):
            return
        reader, hash_of_key = found
        keys = keys or self._corrections.without_pixels(reader, LOOKED_AT)
        there = [key for key in keys if os.path.exists(local_path(key))]
        self._note_pixels({key: digest for key in there if (digest := hash_of_key(key))}, reader)

    def _note_pixels(self, hashes: dict[str, bytes], reader: str) -> None:
        found, replaced = self._corrections.note_pixels(hashes, reader)
        self._found, self._replaced = self._found + len(found), self._replaced + len(replaced)

    @property
    def notes(self) -> list[str]:
        counted = {
            "found at another place: the corrections hold": self._found,
            "replaced by another, for which the corrections do not hold": self._replaced,
        }
        return [
            f"{plural(each, 'picture')} that people have corrected {what}" for what, each in counted.items() if each
        ]

    def close(self) -> None:
        self._corrections.close()


def pixels_of(csv_path: Path) -> tuple[str, Callable[[str], bytes | None]] | None:
    """How a run of a CSV sees pictures: what decides that, and the hash of the pixels of one by its image_path.

    The hash is None where the picture cannot be read. None where the CSV was made with a stage of somebody's own.
    """
    from vec_pipeline.annotations import content_reader

    options = next(
        (each for each in recorded_settings(csv_path).stages.values() if each.get("use") == "open_image"), None
    )
    if options is None:
        return None
    stage = OpenImage(max_size_px=options["max_size_px"], truncated=options["truncated"])
    stage.load()
    content_of = content_reader(csv_path)

    def hash_of_key(key: str) -> bytes | None:
        try:
            row = {"content": content_of(key), "image_path": key}
            return hash_of(stage.run(None, [row], 1)[0][IMAGE])
        except Exception:  # of any place and of any decoder
            return None

    return fingerprint(stage), hash_of_key
