"""Lists of pictures: addresses and paths, a line or a row each, or the pictures themselves in a table."""

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any
from urllib.parse import unquote

from vec_pipeline.downloads.addresses import is_address as is_web_address
from vec_pipeline.downloads.web import WEB_COLUMNS, web_record
from vec_pipeline.lists import COMPRESSED_SUFFIXES, STDIN, SUFFIXES, Entry, Table, open_table, suffix_of
from vec_pipeline.lists.files import identity, open_list, reason, shown
from vec_pipeline.object_stores import check_host, is_address, is_known, login_of, scheme_of, without_login
from vec_pipeline.pictures import kinds
from vec_pipeline.record import NotFound, Record, SourceOptions, UserError
from vec_pipeline.sources import DEFAULT_OPTIONS, made, source_classes
from vec_pipeline.sources.bucket import Bucket, RemoteFile
from vec_pipeline.sources.dataset import DataSet
from vec_pipeline.sources.folder import Folder, key_of, path_of, record_of

KEY = re.compile(  # of an entry that has no address: LIST#NUMBER, or LIST#COLUMN/NUMBER for a picture of that column
    rf"(-|.+?(?:{'|'.join(map(re.escape, SUFFIXES))})(?:{'|'.join(map(re.escape, COMPRESSED_SUFFIXES))})?)"
    r"#(?:(.+)/)?(\d{1,18})",
    re.DOTALL | re.IGNORECASE,
)
FILE_SCHEME = re.compile(r"file:(?://(?:localhost(?=/))?)?", re.IGNORECASE)
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # also what stands for a byte that is not UTF-8
LONGEST_ADDRESS = 8192  # characters


class ListFile:
    """A record per entry of a list, which is read as a stream.

    `-` is standard input. Whatever an entry names is taken for a picture: neither suffixes nor `exclude` count. Paths
    are relative to the list's folder, or else to the current one.

    has_priority: whether each record has the value `priority`, a number that is higher for what comes first.
    """

    is_counted = False

    def __init__(self, argument: str, exclude: Sequence[str] = (), options: SourceOptions = DEFAULT_OPTIONS) -> None:
        address, column, self._number = divided(argument)
        if address == STDIN and self._number is not None:
            raise UserError(f"{argument}: an entry of standard input cannot be read again: name the picture")
        self._address = address if is_address(address) or address == STDIN else real_path(address)
        self._shown = key_of(without_login(self._address))
        self._options = options if self._number is None else replace(options, column=column, keep=())
        self._table = opened(self._address, self._options, again=self._number is not None)
        self.is_stream = address == STDIN
        self.has_priority = self._table.has_priority
        of_the_web = {} if self._table.has_pictures else WEB_COLUMNS
        self.columns: Mapping[str, str] = {**self._table.columns, **of_the_web}
        self.notes = [f"{self._shown} is read as UTF-16"] if self._table.encoding == "UTF-16" else []
        self.failures: list[str] = []

    @classmethod
    def accepts(cls, argument: str) -> bool:
        address, _, number = divided(argument)
        if address == STDIN:
            return True
        if not suffix_of(address) or is_web_address(address):
            return False
        return is_address(address) or number is not None or not is_other_file(address)

    def __length_hint__(self) -> int:
        length = 1 if self._number is not None else self._table.length()
        return NotImplemented if length is None else length

    def __iter__(self) -> Iterator[Record]:
        if self._number is not None:
            yield self._record_of_key(self._number)
            return
        number = 0
        try:
            for entry in self._table.entries():
                number = entry.number
                yield self._record(entry)
        except (UserError, GeneratorExit):
            raise
        except Exception as error:  # a damaged archive or a broken connection: nobody knows how much is left
            what = f"the list cannot be read beyond line {number} ({reason(error)})"
            yield self._failed(Entry(number + 1, error=f"{type(error).__name__}: {what}"))

    def _record_of_key(self, number: int) -> Record:
        entry = self._table.entry(number)
        if entry and (record := self._record(entry)).key == self._key(entry):
            return record
        raise NotFound(f"{self._shown} has no entry {number} without an address: name another picture")

    def _record(self, entry: Entry) -> Record:
        if entry.error:
            record = self._failed(entry)
        elif entry.content:
            record = Record(self._key(entry), {"content": entry.content})
        elif not entry.text:
            record = self._failed(entry._replace(error="ValueError: the entry is empty"))
        elif "\0" in entry.text or len(entry.text) > LONGEST_ADDRESS:
            what = "holds a zero byte" if "\0" in entry.text else f"has more than {LONGEST_ADDRESS:,} characters"
            record = self._failed(entry._replace(error=f"ValueError: the entry {what}"))
        else:
            record = self._of_text(entry.text)
        record.values.update(entry.values)
        return record

    def _failed(self, entry: Entry) -> Record:
        return Record(self._key(entry), {}, f"source: {entry.error}")

    def _key(self, entry: Entry) -> str:
        """Of an entry that has no address. It names the column too where that cannot be told by the list alone."""
        column = f"{self._options.column}/" if self._options.column and entry.content else ""
        return f"{self._shown}#{column}{entry.number}"

    def _of_text(self, text: str) -> Record:
        if is_web_address(text):
            if HALF_CHARACTER.search(text):
                return failed(key_of(without_login(text)), ValueError("the address holds bytes that are not UTF-8"))
            return web_record(text, self._options)
        if found := FILE_SCHEME.match(text):
            path = unquote(text[found.end() :], errors="surrogateescape")
            return failed(key_of(text), ValueError("it holds a zero byte")) if "\0" in path else self._of_path(path)
        if is_address(self._address) and not is_address(text) and not text.startswith(("/", "~")):
            text = f"{self._address.rpartition('/')[0]}/{text}"
        return self._of_address(text) if is_address(text) else self._of_path(text)

    def _of_path(self, text: str) -> Record:
        path = os.path.expanduser(text)
        for full in dict.fromkeys(os.path.join(folder, path) for folder in self._folders):
            for each in dict.fromkeys((full, path_of(full))):  # as it is, or as a key spells it
                with suppress(FileNotFoundError, NotADirectoryError):
                    return of_file(each)
        for cls in self._classes:
            may_be_key = cls is not Folder and (cls is not ListFile or KEY.fullmatch(text))
            if may_be_key and cls.accepts(text):  # of a file in an archive, say
                return self._of_source(cls, text)
        missing = os.path.realpath(os.path.join(self._folders[0], path))
        return failed(key_of(missing), FileNotFoundError("it does not exist"))

    def _of_address(self, address: str) -> Record:
        cls = next(cls for cls in self._classes if cls.accepts(address))
        key = key_of(without_login(address))
        if cls is Bucket:  # without a request for each entry before it is fetched
            if not is_known(scheme_of(address)):
                return failed(key, ValueError(f"{scheme_of(address)}:// is not known"))
            try:
                check_host(address, allow_private=self._options.allow_private)
            except PermissionError as error:
                return failed(key, error)
            login = login_of(address)
            content = RemoteFile(without_login(address), self._options.max_download_mb, login=login)
            return Record(key, {"content": content})
        return self._of_source(cls, address)

    def _of_source(self, cls: type[Any], argument: str) -> Record:
        """The one record of another source's key."""
        key = key_of(without_login(argument))
        if cls is Folder or (cls in (DataSet, ListFile) and "#" not in argument):
            return failed(key, ValueError("it is not one picture"))
        try:
            records = list(islice(made(cls, argument, self._options), 2))
        except Exception as error:  # of any source
            return failed(key, error)
        return records[0] if len(records) == 1 else failed(key, ValueError("it is not one picture"))

    @cached_property
    def _folders(self) -> tuple[str, ...]:
        """Those that paths are relative to."""
        current = os.getcwd()
        has_folder = self._address != STDIN and not is_address(self._address)
        return (os.path.dirname(self._address), current) if has_folder else (current,)

    @cached_property
    def _classes(self) -> list[Any]:
        return source_classes()


def opened(address: str, options: SourceOptions, *, again: bool) -> Table:
    """Raises NotFound, and UserError where the list cannot be read, or where its columns are not there.

    again: it is asked for one entry, and then for others.
    """
    try:
        return opened_state(address, options, identity(address)) if again else open_table(address, options)
    except UserError:
        raise
    except FileNotFoundError:
        raise NotFound(f"{shown(address)} does not exist: name a list of pictures") from None
    except Exception as error:  # of a damaged archive, or of any library
        raise UserError(f"{shown(address)} cannot be read ({reason(error)}): name another list") from None


@lru_cache(maxsize=4)
def opened_state(address: str, options: SourceOptions, list_identity: str) -> Table:
    """A list as it is now, which notes at which entry it is."""
    return open_table(address, options)


def divided(argument: str) -> tuple[str, str, int | None]:
    """The address of a list; and the column and the number of an entry if the argument is the key of one."""
    found = KEY.fullmatch(argument)
    if found and not os.path.lexists(argument):
        return found[1], found[2] or "", int(found[3])
    return argument, "", None


def real_path(argument: str) -> str:
    path = os.path.expanduser(argument)
    of_key = path_of(path)
    return os.path.realpath(of_key if os.path.lexists(of_key) else path)


def is_other_file(argument: str) -> bool:
    """Whether it is a folder, or a picture that has the suffix of a list."""
    path = real_path(argument)
    if not os.path.isfile(path):
        return os.path.isdir(path)
    with suppress(UserError, OSError), open_list(path) as file:
        return bool(kinds.kind_of(file.read(kinds.HEAD_BYTES)))
    return False


def of_file(path: str) -> Record:
    """The record of a local file. Raises FileNotFoundError and NotADirectoryError."""
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return record_of(os.path.realpath(path))
        raise IsADirectoryError("it is a folder") if stat.S_ISDIR(status.st_mode) else OSError("it is not a file")
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:
        return failed(key_of(os.path.realpath(path)), error)


def failed(key: str, error: Exception) -> Record:
    return Record(key, {}, f"source: {type(error).__name__}: {reason(error)}")
