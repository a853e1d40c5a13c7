"""Shards: the pictures in tar files, as WebDataset writes them, or any other tar of pictures."""

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import islice
from threading import Lock
from typing import IO, Any

from vec_pipeline import object_stores
from vec_pipeline.downloads.temporary import temporary_content
from vec_pipeline.object_stores import is_address, scheme_of, without_login
from vec_pipeline.pictures import kinds
from vec_pipeline.record import Content, NotFound, Record, SourceOptions, UserError, Values
from vec_pipeline.sources import glob_finder
from vec_pipeline.sources.folder import key_of, path_of

SUFFIXES = (".tar", ".tar.gz", ".tgz")
SHARD = re.compile(r"\.(?:tar|tar\.gz|tgz)(?=/|#byte |$)", re.IGNORECASE)  # where the name of a shard ends in a key
BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")  # {000..099} or {a,b}
TEXTS = {".txt": "caption", ".caption": "caption", ".cls": "class", ".json": "metadata"}  # members -> columns
TYPES = {"caption": "text", "class": "text", "metadata": "json"}
PEEKED = 200  # members of the first shard that tell which columns there are
TOGETHER = 100  # members of one sample that are held until it ends; a tar of photos may give all of them one stem
BLOCK = tarfile.BLOCKSIZE
NO_HEADER = "there is no header of a file: what was here is lost"
GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class TarMember:
    """The content of a file in a tar file on this machine, read in place."""

    path: str
    offset: int  # bytes
    size: int
    time_s: float  # of modification, as the header has it
    link: str = ""

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            data = os.pread(file.fileno(), self.size, self.offset)
        if len(data) < self.size:
            raise OSError(f"{self.path} has become shorter since it was listed")
        return data

    def identity(self) -> str:
        status = os.stat(self.path)
        return f"{status.st_size} {status.st_mtime_ns} {self.offset}"

    def size_and_time(self) -> tuple[int, float]:
        """Bytes, and the seconds of the time of modification, for `run --order`."""
        return self.size, self.time_s


@dataclass(slots=True)
class Sample:
    """Members that share their name up to the first dot: pictures, and what is said of them."""

    stem: str
    pictures: list[Record] = field(default_factory=list)
    values: Values = field(default_factory=dict)
    members: int = 0
    error: str = ""


class Shards:
    """A record per picture in the tar files of one argument, with the texts and the JSON of its sample.

    What is damaged or torn is a record with an error, whose key names the byte where it begins, and all that can be
    read is read. Nothing is extracted by its name.
    """

    is_stream = False
    is_counted = False

    def __init__(
        self,
        argument: str,
        exclude: Sequence[str] = (),
        options: SourceOptions = SourceOptions(),  # noqa: B008
    ) -> None:
        self._options = options
        self._excluding = glob_finder(exclude)
        self._done: Container[str] = ()
        self._columns: Mapping[str, str] | None = None
        self._left_out: Counter[str] = Counter()
        self.failures: list[str] = []
        self._argument, self._place = split_key(argument)

    @classmethod
    def accepts(cls, argument: str) -> bool:
        shard, place = split_key(argument)
        first = next(expanded(shard))
        return first.lower().endswith(SUFFIXES) and (bool(place) or not os.path.isdir(os.path.expanduser(first)))

    @property
    def columns(self) -> Mapping[str, str]:
        if self._columns is None:
            self._columns = self._peeked()
        return self._columns

    @property
    def notes(self) -> list[str]:
        """After iteration: what was left out, by kind."""
        parts = [f"{number:,} {what}" for what, number in self._left_out.most_common()]
        return [f"left out: {', '.join(parts)}"] if parts else []

    def resume(self, done: Container[str]) -> None:
        """The bytes of pictures that are done are not read where they can be skipped. Called before the iteration."""
        self._done = done

    def __iter__(self) -> Iterator[Record]:
        if self._place:
            yield self._one()
            return
        self._left_out.clear()
        for path in expanded(self._argument):
            with closing(Shard(path, self._options)) as shard:
                yield from self._records(shard)

    def _records(self, shard: "Shard") -> Iterator[Record]:
        from vec_pipeline.key_set import KeySet

        seen = KeySet()  # of this shard: nothing prevents two members from having one name
        for record in self._samples(shard):
            if record.key in seen:
                self._left_out["of a name that came before"] += 1
            else:
                seen.add(record.key)
                yield record

    def _samples(self, shard: "Shard") -> Iterator[Record]:
        """The records of a shard; those of a sample once it is read to its end, since its texts may come last."""
        sample = Sample("")
        for member in shard.members():
            if isinstance(member, Record):
                yield member
                continue
            name = name_of(member)
            stem = stem_of(name)
            if stem != sample.stem or sample.members >= TOGETHER:
                yield from self._finished(sample, shard)
                sample = Sample(stem)
            if reason := self._reason_to_leave_out(name, member, shard):
                self._left_out[reason] += not member.isdir()
                continue
            sample.members += 1
            self._add(sample, name, member, shard)
        yield from self._finished(sample, shard)
        if failure := shard.failure():
            yield failure

    def _add(self, sample: Sample, name: str, member: tarfile.TarInfo, shard: "Shard") -> None:
        """Put a member into its sample: a picture, a text, or nothing that is of use."""
        column = TEXTS.get(suffix_of(name))
        if column:
            try:
                found = value_of(shard.bytes_of(member), column)
            except ValueError as error:
                sample.error = f"source: DamagedSample: {name}: {error}"
                return
            for own, value in (self._kept(found) if column == "metadata" else {column: found}).items():
                sample.values.setdefault(own, value)
            return
        key = shard.key(name)
        if key in self._done:
            sample.pictures.append(Record(key))
            return
        try:
            sample.pictures.append(Record(key, {"content": shard.content(member)}))
        except ValueError as error:
            sample.pictures.append(Record(key, {}, f"source: DamagedMember: {error}"))

    def _finished(self, sample: Sample, shard: "Shard") -> Iterator[Record]:
        if sample.members and not sample.pictures:
            self._left_out["samples without a picture"] += 1
            if sample.error:
                yield Record(shard.key(sample.stem), {}, sample.error)
        for name in sample.values.keys() - self.columns.keys():
            self._left_out[f"{name}: none of the first {PEEKED} files has one"] += 1
        for record in sample.pictures:
            if record.values or record.error:  # others are done
                record.values |= sample.values
                record.error = record.error or sample.error
                yield record

    def _kept(self, metadata: Mapping[str, Any]) -> Values:
        """The fields of a sample's JSON that are columns: those to keep, or all of it as one."""
        if not self._options.keep:
            return {"metadata": metadata}
        fields = ((own, metadata.get(name)) for name, own in kept_fields(self._options.keep).items())
        return {
            own: value if isinstance(value, str) else json.dumps(value) for own, value in fields if value is not None
        }

    def _reason_to_leave_out(self, name: str, member: tarfile.TarInfo, shard: "Shard") -> str:
        """As the note gives it; empty for what is a picture, or says something of one."""
        parts = name.split("/")
        if not member.isreg() or member.issparse():
            return "links, devices and sparse files"
        if any(part.startswith(".") and part != ".." for part in parts) or "__MACOSX" in parts:
            return "hidden"
        if glob := self._excluding(parts[-1], f"{shard.key_of_shard}/{name}"):
            return glob
        suffix = suffix_of(name)
        if suffix in TEXTS or suffix in kinds.SUFFIXES:
            return ""
        if suffix in kinds.OTHER_SUFFIXES or not kinds.kind_of(shard.head_of(member)):
            return suffix if re.fullmatch(r"\.[a-z0-9]{1,9}", suffix) else "of other kinds"
        return ""

    def _peeked(self) -> Mapping[str, str]:
        """The columns that the first samples have values for, and the fields to keep. Raises UserError."""
        found: set[str] = set()
        fields: dict[str, None] = {}
        with closing(self._first()) as shard:
            for member in islice(shard.members(), PEEKED):
                if isinstance(member, Record) or not member.isreg() or member.issparse():
                    continue
                column = TEXTS.get(suffix_of(name_of(member)))
                found |= {column} if column else set()
                if column == "metadata" and self._options.keep:
                    with suppress(ValueError):
                        fields |= dict.fromkeys(value_of(shard.bytes_of(member), column))
        columns = {name: kind for name, kind in TYPES.items() if name in found}
        if self._options.keep:
            columns.pop("metadata", None)
            columns |= dict.fromkeys(checked(kept_fields(self._options.keep), fields).values(), "text")
        return columns

    def _first(self) -> "Shard":
        """The first shard that is there. Raises UserError where none is, or that one cannot be opened."""
        for path in islice(expanded(self._argument), PEEKED):
            shard = Shard(path, self._options)
            if not shard.error:
                return shard
            if is_address(path) and not shard.is_missing:
                raise object_stores.explained(path, shard.error)
            if not shard.is_missing:
                raise UserError(f"{path} cannot be opened ({described(shard.error)}): name another tar file")
        raise NotFound(f"{shard.key_of_shard} does not exist: name a tar file, or several as shards/{{000..099}}.tar")

    def _one(self) -> Record:
        """The record of a key. Raises NotFound where there is no such picture, UserError where nobody knows."""
        path = self._argument
        key = f"{path}{self._place}"
        if not is_address(path):
            path = os.path.realpath(os.path.expanduser(path_of(path)))
            key = f"{key_of(path)}{self._place}"
        status = os.stat(path) if os.path.exists(path) else None
        finder = finder_of(path, status and (status.st_size, status.st_mtime_ns), self._options)
        if record := finder.find(key):
            return record
        if finder.problem:
            raise UserError(f"{key} cannot be read: {finder.problem}")
        raise NotFound(f"{key} does not exist: name a picture of the tar file")


def split_key(argument: str) -> tuple[str, str]:
    """The shard, and what follows its name in the key of one of its records; a folder may have such a name, too."""
    for found in SHARD.finditer(argument):
        shard, rest = argument[: found.end()], argument[found.end() :]
        if len(rest) > 1 and not os.path.isdir(os.path.expanduser(path_of(shard))):
            return shard, rest
    return argument, ""


def expanded(argument: str) -> Iterator[str]:
    """The names that braces stand for, as in a shell: {000..099}, or {a,b}; of a file of that very name, the name."""
    found = BRACES.search(argument)
    if not found or os.path.exists(argument):
        yield argument
        return
    first, last, names = found.groups()
    for each in counted(first, last) if first else names.split(","):
        yield from expanded(f"{argument[: found.start()]}{each}{argument[found.end() :]}")


def counted(first: str, last: str) -> Iterator[str]:
    """000, 001 and so on to the last one, in as many digits as the first has where it begins with 0."""
    width = len(first) if first.startswith("0") else 0
    step = 1 if int(first) <= int(last) else -1
    return (f"{number:0{width}}" for number in range(int(first), int(last) + step, step))


def name_of(member: tarfile.TarInfo) -> str:
    return member.name.removeprefix("./")


def suffix_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def stem_of(name: str) -> str:
    """What the members of a sample share: the path up to the first dot of the last name."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def value_of(data: bytes, column: str) -> Any:
    """What a text says. Raises ValueError where it is no JSON object."""
    if column != "metadata":
        return data.decode("utf-8-sig", "replace").strip()
    try:
        found = json.loads(data.decode("utf-8-sig"), parse_constant=lambda _: None)  # JSON has no NaN
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def kept_fields(keep: Sequence[str]) -> dict[str, str]:
    """Fields of the JSON -> columns, of texts such as title or title=name."""
    return {name: own or name for name, _, own in (each.partition("=") for each in keep)}


def checked(kept: Mapping[str, str], fields: Mapping[str, None]) -> Mapping[str, str]:
    """Raises UserError where one of the fields to keep is in none of the samples."""
    for name in kept:
        if name not in fields:
            near = get_close_matches(name, fields, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(fields) or 'none'}"
            raise UserError(f"--keep: no JSON of the first {PEEKED} files has a field {name!r} ({hint})")
    return kept


@lru_cache(maxsize=4)
def finder_of(path: str, version: object, options: SourceOptions) -> "Finder":
    """version: changes with the file."""
    return Finder(Shards(path, options.exclude, options))


class Finder:
    """Pictures of a shard by key. Those of a plain file are found again at once, others if they are asked in order."""

    def __init__(self, shards: Shards) -> None:
        self.problem = ""  # why not all of them can be found
        self._shards = shards
        self._records = iter(shards)
        self._passed: dict[str, Record] = {}
        self._lock = Lock()

    def find(self, key: str) -> Record | None:
        with self._lock:
            if key in self._passed:
                return self._passed[key]
            for _ in range(2):  # the rest, and then from the begin
                for record in self._records:
                    if isinstance(record.values.get("content"), TarMember):
                        self._passed[record.key] = record
                    if record.key == key:
                        return record
                    if record.error and not split_key(record.key)[1].startswith("/"):
                        self.problem = record.error  # of the shard
                self._records = iter(self._shards)
        return None


# -- one tar file ---------------------------------------------------------------------------------------------------


class Shard:
    """One tar file, plain or compressed, here or at an address that fsspec opens, read once from its begin to its end.

    error: why it could not be opened.
    """

    def __init__(self, path: str, options: SourceOptions) -> None:
        self.error: Exception | None = None
        self.local_path = "" if is_address(path) else os.path.realpath(os.path.expanduser(path))
        self.key_of_shard = key_of(self.local_path) if self.local_path else without_login(path)
        self._temporary = options.temporary
        self._most_bytes = options.max_download_mb * 1_000_000
        self._files = ExitStack()
        self._is_torn = False  # and a record says so
        try:
            file = self._files.enter_context(opened(self.local_path or path, options))
            begin = file.read(len(GZIP))
            if file.seekable():
                file.seek(0)
            else:
                file = self._files.enter_context(opened(self.local_path or path, options))
            if begin == GZIP:
                import gzip

                file = self._files.enter_context(gzip.GzipFile(fileobj=file))  # type: ignore[arg-type]
                self.local_path = ""  # pictures cannot be read in place
            self._reader = Reader(file, self._most_bytes)
        except UserError:
            raise
        except Exception as error:  # of any place that fsspec opens
            object_stores.disconnect(path, error)
            self.error = error

    @property
    def is_missing(self) -> bool:
        return isinstance(self.error, FileNotFoundError | NotADirectoryError)

    def close(self) -> None:
        self._files.close()

    def key(self, name: str) -> str:
        return f"{self.key_of_shard}/{key_of(name)}"

    def members(self) -> Iterator[tarfile.TarInfo | Record]:
        """The members, and a record with an error for each gap between them that is not empty."""
        if self.error:
            return
        reader = self._reader
        for member in headers(reader):
            if reader.odd is not None and reader.odd < member.offset:
                yield self._damaged(reader.odd, NO_HEADER)
            reader.odd = None
            yield member

    def failure(self) -> Record | None:
        """After all members: what says that there should have been more."""
        if self.error:
            reason = "FileNotFoundError: no such file" if self.is_missing else described(self.error)
            return Record(self.key_of_shard, {}, f"source: {reason}")
        reader = self._reader
        if self._is_torn:
            return None
        if reader.error:
            return self._damaged(reader.position, f"{described(reader.error)}: the rest of the shard cannot be read")
        if reader.odd is not None:
            return self._damaged(reader.odd, NO_HEADER)
        return None if reader.is_ended else self._damaged(reader.position, "the file has no end mark: it may be torn")

    def _damaged(self, byte: int, why: str) -> Record:
        return Record(f"{self.key_of_shard}#byte {byte}", {}, f"source: DamagedShard: {why}")

    def head_of(self, member: tarfile.TarInfo) -> bytes:
        """The first bytes of a member, which may be read again."""
        return self._reader.peek_at(member.offset_data, min(member.size, kinds.HEAD_BYTES))

    def bytes_of(self, member: tarfile.TarInfo) -> bytes:
        """Raises ValueError where they are too many, or are not all there."""
        if member.size > self._most_bytes:
            raise ValueError(f"{member.size:,} bytes are more than max_download_mb: {self._most_bytes // 1_000_000}")
        data = self._reader.read_at(member.offset_data, member.size)
        if len(data) < member.size:
            self._is_torn = True
            why = f"{described(self._reader.error)}: " if self._reader.error else ""
            raise ValueError(f"{why}the shard ends after {len(data):,} of its {member.size:,} bytes")
        return data

    def content(self, member: tarfile.TarInfo) -> Content:
        """Raises ValueError as `bytes_of`."""
        is_whole = self.local_path and member.offset_data + member.size <= self._reader.size
        if is_whole and member.size <= self._most_bytes:
            return TarMember(self.local_path, member.offset_data, member.size, member.mtime)
        data = self.bytes_of(member)
        return temporary_content(data, blake2b(data, digest_size=16).hexdigest(), folder=self._temporary)


class Reader:
    """What tarfile reads from: a file or a stream, forwards only. An error is like the end of it.

    odd: where the first block begins that is not empty, of those read as headers since it was set to None.
    is_ended: the last block that was read as a header is an empty one, which marks the end.
    """

    def __init__(self, file: IO[bytes], most_bytes: int) -> None:
        self.position = 0
        self.odd: int | None = None
        self.is_ended = False
        self.error: Exception | None = None
        self._file = file
        self._most_bytes = most_bytes
        self._ahead = b""

    @cached_property
    def size(self) -> int:
        """Bytes of a file on this machine."""
        return os.fstat(self._file.fileno()).st_size

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        data = self._take(size)
        if size == BLOCK and data:
            self.is_ended = not data.strip(b"\0")
            if not self.is_ended and self.odd is None:
                self.odd = self.position - len(data)
        return data

    def seek(self, position: int) -> None:
        if position < self.position:
            self.error = self.error or ValueError("the header of a file gives a negative size")
        elif position <= self.position + len(self._ahead):
            self._take(position - self.position)
        else:
            try:
                if self._file.seekable():
                    self._file.seek(position)
                else:
                    discard(self._file, position - self.position - len(self._ahead))
                self._ahead, self.position = b"", position
            except Exception as error:  # of any place that fsspec opens, or of what is compressed
                self.error = self.error or error

    def read_at(self, position: int, size: int) -> bytes:
        self.seek(position)
        return self._take(size)

    def peek_at(self, position: int, size: int) -> bytes:
        data = self.read_at(position, size)
        self._ahead, self.position = data + self._ahead, self.position - len(data)
        return data

    def _take(self, size: int) -> bytes:
        if size > self._most_bytes:
            self.error = self.error or ValueError(f"a header of {size:,} bytes")
        taken, self._ahead = self._ahead[:size], self._ahead[size:]
        try:
            while not self.error and len(taken) < size and (more := self._file.read(size - len(taken))):
                taken += more
        except Exception as error:
            self.error = error
        self.position += len(taken)
        return taken


def headers(reader: Reader) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file, as far as their headers can be read."""
    archive: tarfile.TarFile | None = None
    while not reader.error:
        begin = reader.position
        try:
            archive = archive or tarfile.TarFile(fileobj=reader, ignore_zeros=True, encoding="utf-8")  # type: ignore[arg-type]
            member = archive.next()
        except Exception as error:  # of the second of several headers; tarfile lets their numbers raise what they like
            archive = None  # the next one begins where this one has stopped
            if reader.position < begin + BLOCK or not reader.peek_at(reader.position, 1):
                reader.error = reader.error or error
            continue
        if not member:
            return
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        yield member


def discard(file: IO[bytes], size: int) -> None:
    while size > 0 and (data := file.read(min(size, 1 << 20))):
        size -= len(data)


def described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def opened(path: str, options: SourceOptions) -> IO[bytes]:
    """Raises UserError where there is no way to open such an address, and what the place of the file raises."""
    if not is_address(path):
        return open(path, "rb")
    if scheme_of(path) in ("http", "https") and not options.allow_private:
        raise UserError(
            f"{without_login(path)} may be a private address, and allow_private is false: copy it to this machine"
        )
    filesystem, inside = object_stores.opened(path)
    file: IO[bytes] = filesystem.open(inside, "rb")
    return file
