"""Descriptions, alternative texts and keywords as XMP: in sidecar files, or in the pictures themselves; and undo."""

import argparse
import errno
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vec_pipeline.annotations import CsvReader, content_reader, in_threads
from vec_pipeline.commands.export.in_place import BrokenPicture, LeftToSidecar, Splice, check, slot_of, splice_of
from vec_pipeline.commands.export.places import Row, Rows, nothing_written
from vec_pipeline.commands.export.undo import Base, Changed, File, Journal, ReadOnly, opened
from vec_pipeline.commands.export.xmp_packet import (
    ANY_LANGUAGE,
    EXTENDED,
    SUBJECT,
    Items,
    Texts,
    UnreadableXmp,
    merged,
)
from vec_pipeline.key_set import KeySet
from vec_pipeline.record import Record, UserError, Values, beside
from vec_pipeline.result_cache import ResultCache, identity_of
from vec_pipeline.settings import fingerprint, recorded_settings
from vec_pipeline.stages.open_image import OpenImage
from vec_pipeline.terminal import plural

DESCRIPTION = "dc:description"
TEXTS = {  # properties, and the columns that they are made of
    DESCRIPTION: "description",
    "Iptc4xmpCore:AltTextAccessibility": "description",
    "Iptc4xmpCore:ExtDescrAccessibility": "text",
}
WORDS = ("keywords", "categories")
REASONS: dict[type[Exception], str] = {
    BrokenPicture: "whose picture cannot be read",
    UnreadableXmp: "whose XMP cannot be read",
    ReadOnly: "whose file is read-only",
    Changed: "whose file has just been changed by another program",
}
CHANGED = "whose picture has changed since (bring the rows up to date with `run --refresh`)"
FULL = (errno.ENOSPC, errno.EDQUOT)


class Edit(NamedTuple):
    """A change of one file.

    splice: of the content of `base`; None where the file is as it should be.
    kept: properties that stay as somebody else wrote them.
    why_sidecar: why the picture itself was left alone, though it was to be changed; or empty.
    """

    row: Row
    file: File
    base: Base
    splice: Splice | None
    added: dict[str, Items]
    kept: list[str]
    why_sidecar: str = ""


def export(reader: CsvReader, options: argparse.Namespace) -> None:
    """Write the files, or undo that, and say how many. Raises UserError for what is wrong with the options."""
    journal_path = beside(reader.path.resolve(), "xmp.sqlite")
    if options.undo:
        if options.where:
            raise UserError("--undo restores all files, and does not take --where")
        if not journal_path.exists():
            raise UserError(f"{journal_path} does not exist: no export of {reader.path} to XMP is there to be undone")
        with Journal(journal_path) as journal:
            print("; ".join(undone(journal)))
        return
    if options.existing == "error":
        raise UserError("--to xmp does not take --existing error: use skip (default) or overwrite")
    OpenImage().load()  # limits of Pillow
    places = (beside(path, "cache.sqlite") for path in (reader.path.resolve(), reader.path))
    cache = ResultCache(next(filter(Path.exists, places), None), fingerprint)
    try:
        with Journal(journal_path) as journal:
            print("; ".join(Export(reader, options, journal, cache).written()))
    finally:
        cache.close()


def undone(journal: Journal) -> Iterator[str]:
    """Take all files back, and yield what there is to say."""
    restored = 0
    left: dict[str, list[str]] = {}
    for path in journal.paths():
        try:
            restored += journal.restore(opened(path))
        except Changed:
            left.setdefault("changed since" if path.exists() else "gone", []).append(path.name)
        except ReadOnly:
            left.setdefault("read-only", []).append(path.name)
        except OSError as error:
            left.setdefault(error.strerror or str(error), []).append(path.name)
    yield f"{plural(restored, 'file')} restored"
    for reason, names in left.items():
        yield f"left as {'it is' if len(names) == 1 else 'they are'}: {len(names):,} {reason} ({', '.join(names[:3])})"


class Export:
    """The files of one export: prepared in threads, and changed one after the other."""

    def __init__(self, reader: CsvReader, options: argparse.Namespace, journal: Journal, cache: ResultCache) -> None:
        self._reader = reader
        self._languages = languages(reader)
        columns = [name for texts in self._languages.values() for name in texts.values()]
        self._rows = Rows(reader, [*columns, *WORDS], options.out)
        self._left_out = self._rows.left_out
        self._options = options
        self._journal = journal
        self._cache = cache
        self._unknown = 0  # pictures that were changed, and may have been others when they were annotated
        self._content_of = content_reader(reader.path)

    def written(self) -> Iterator[str]:
        """Change the files, and yield what there is to say. Raises UserError where there is no row for it."""
        counts: Counter[str] = Counter()
        sidecars: Counter[str] = Counter()
        targets = KeySet()
        for edit in in_threads(self._prepared, self._unchanged_rows()):
            if isinstance(edit, str):
                self._left_out[edit] += 1
                continue
            if str(edit.file.path) in targets:
                self._left_out["whose file is that of another row, too"] += 1
                continue
            targets.add(str(edit.file.path))
            if edit.splice is None:
                counts["same"] += 1
            elif not self._change(edit, edit.splice):
                continue
            else:
                counts["sidecar" if edit.file.path != real(edit.row.picture) else "picture"] += 1
            counts["kept"] += DESCRIPTION in edit.kept
            sidecars.update([edit.why_sidecar] if edit.why_sidecar else [])
        notes = list(self._notes(counts, sidecars))
        if not counts["same"] + counts["sidecar"] + counts["picture"]:
            raise nothing_written(self._reader, "XMP", notes)
        where = f"in {self._options.out}" if self._options.out else "beside the pictures"
        pictures = [f"{plural(counts['picture'], 'picture')} changed"] if self._options.in_place else []
        is_said = counts["sidecar"] or not pictures
        yield ", ".join([*pictures, *([f"{plural(counts['sidecar'], 'sidecar')} {where}"] if is_said else [])])
        yield from notes

    def _notes(self, counts: Mapping[str, int], sidecars: Counter[str]) -> Iterator[str]:
        if counts["same"]:
            yield f"{counts['same']:,} up to date already"
        if self._unknown:
            yield f"{self._unknown:,} not known to be unchanged"
        if counts["kept"]:
            yield f"kept: {plural(counts['kept'], 'description')} of others (--existing overwrite replaces them)"
        if sidecars:
            yield "in sidecars: " + ", ".join(f"{number:,} {reason}" for reason, number in sidecars.most_common())
        yield from self._rows.notes()

    def _unchanged_rows(self) -> Iterator[Row]:
        """The rows whose pictures are those that were annotated, as far as that is known."""
        for row in self._rows:
            is_changed, _ = self._compared(row)
            if is_changed:
                self._left_out[CHANGED] += 1
            else:
                yield row

    def _compared(self, row: Row) -> tuple[bool, bool]:
        """Whether the picture is another than the one that was annotated, and whether that is known."""
        if row.picture:
            with suppress(UserError):  # it has just gone
                changed, unknown = self._cache.changed_pictures([self._record(row)])
                return bool(changed), not unknown
        return False, False

    def _record(self, row: Row) -> Record:
        key = row.values["image_path"]
        return Record(key, {"content": self._content_of(key)})

    def _prepared(self, row: Row) -> Edit | str:
        """How a file is to be changed, or why none is, as the end of `1 row ...`."""
        texts = texts_of(row.values, self._languages)
        if not texts:
            return "without a text"
        try:
            if self._options.in_place and row.picture:
                try:
                    return self._in_picture(row, texts)
                except LeftToSidecar as reason:
                    return self._in_sidecar(row, texts)._replace(why_sidecar=str(reason))
            return self._in_sidecar(row, texts)
        except OSError:
            return "whose file cannot be read"
        except tuple(REASONS) as reason:
            return REASONS[type(reason)]

    def _in_picture(self, row: Row, texts: Texts) -> Edit:
        file = opened(real(row.picture))
        if file.content is None or file.status is None:
            raise Changed
        if file.status.st_nlink > 1:
            raise LeftToSidecar("with several hard links")
        base = self._journal.base(file)
        content = base.content or b""
        slot = slot_of(content)
        if EXTENDED in slot.packet:
            raise LeftToSidecar("with XMP in several segments")
        packet = without(slot.packet, base.added)
        if packet != slot.packet:
            base = base._replace(content=splice_of(content, slot, packet).applied(content))
            content = base.content or b""
            slot = slot_of(content)
        result = merged(slot.packet, texts, {}, overwrite=self._options.existing == "overwrite")
        is_same = result.packet == slot.packet
        splice = Splice(slot.start, slot.start, b"") if is_same else splice_of(content, slot, result.packet)
        edit = edit_of(row, file, base, splice, result.added, result.kept)
        if edit.splice:
            check(file.content, splice.applied(content))
        return edit

    def _in_sidecar(self, row: Row, texts: Texts) -> Edit:
        place = row.place
        name = f"{place.stem}.xmp" if self._options.sidecar == "photo.xmp" else f"{place.name}.xmp"
        file = opened(real(place.with_name(name)))
        base = self._journal.base(file)
        content = without(base.content or b"", base.added)
        base = base._replace(content=content) if base.content else base
        result = merged(content, texts, {}, overwrite=self._options.existing == "overwrite")
        return edit_of(row, file, base, Splice(0, len(content), result.packet), result.added, result.kept)

    def _change(self, edit: Edit, splice: Splice) -> bool:
        """Return whether it was possible; what was not is counted."""
        is_picture = edit.row.picture is not None and edit.file.path == real(edit.row.picture)
        is_known = is_picture and self._compared(edit.row) == (False, True)
        try:
            self._journal.change(edit.file, edit.base, splice, edit.added)
        except (Changed, ReadOnly) as reason:
            self._left_out[REASONS[type(reason)]] += 1
            return False
        except OSError as error:
            if error.errno in FULL:
                raise UserError(f"{edit.file.path} cannot be written: free some disk space, then rerun") from None
            self._left_out["whose file cannot be written"] += 1
            return False
        if is_known:
            self._note_picture(edit.row)
        elif is_picture:
            self._unknown += 1
        return True

    def _note_picture(self, row: Row) -> None:
        """Its pixels are the same, so its row is not out of date: `run --refresh` need not read it again."""
        with suppress(UserError):  # it has just gone
            record = self._record(row)
            record.hashes["content"] = identity_of(record)
            self._cache.note_pictures([record])
            self._cache.confirm_pictures()


def edit_of(row: Row, file: File, base: Base, splice: Splice, added: dict[str, Items], kept: list[str]) -> Edit:
    is_same = not base.added and splice.applied(base.content or b"") == file.content  # else it is noted what is ours
    return Edit(row, file, base, None if is_same else splice, added, kept)


def without(packet: bytes, ours: Texts) -> bytes:
    """What another program has left of a packet, without what we added, as `--undo` restores it. Raises as `merged`."""
    return merged(packet, {}, ours, overwrite=True).packet if packet and ours else packet


def real(path: Path | None) -> Path:
    """The file that a link leads to."""
    return Path(os.path.realpath(path or ""))


def languages(reader: CsvReader) -> dict[str, dict[str, str]]:
    """For each property, the columns that hold its text by language, as far as a stage `translate` has made any."""
    found = {name: {ANY_LANGUAGE: column} for name, column in TEXTS.items()}
    for options in recorded_settings(reader.path).stages.values():
        if options.get("use") != "translate":
            continue
        for own in options.get("texts", []):
            column, own_to = options.get("read", {}).get(own, own), f"{own}_{options['to']}"
            translated = options.get("write", {}).get(own_to, own_to)
            for name in TEXTS:
                if column == TEXTS[name] and translated in reader.types:
                    found[name] |= {options["language"]: column, options["to"]: translated}
    return found


def texts_of(values: Values, columns: Mapping[str, Mapping[str, str]]) -> dict[str, Items]:
    """What a row says, by property; those that are empty are left out."""
    found: dict[str, Items] = {}
    for name, by_language in columns.items():
        texts = [(language, (values[column] or "").strip()) for language, column in by_language.items()]
        if texts[0][1]:
            found[name] = [each for each in texts if each[1]]
    words: dict[str, str] = {}
    for word in ",".join(values[column] or "" for column in WORDS).split(","):
        words.setdefault(word.strip().casefold(), word.strip())
    if subject := [("", word) for word in words.values() if word]:
        found[SUBJECT] = subject
    return found
