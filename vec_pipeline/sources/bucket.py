"""Object stores and remote folders: pictures below s3://bucket/prefix/, sftp://host/folder/ or any fsspec address."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vec_pipeline.downloads import DownloadError, Fetched
from vec_pipeline.object_stores import (
    check_host,
    disconnect,
    explained,
    is_address,
    login_of,
    opened,
    reason_of,
    scheme_of,
    translated,
    without_login,
)
from vec_pipeline.picture_names import PictureNames
from vec_pipeline.record import Content, Record, SourceOptions, UserError
from vec_pipeline.sources import DEFAULT_OPTIONS, glob_finder
from vec_pipeline.sources.folder import MARK_OF_A_PAGE, MARK_WITHIN, key_of, path_of

if TYPE_CHECKING:
    from vec_pipeline.downloads.client import Client

OF_OTHER_SOURCES = ("file", "http", "https", "hf")
LIST_OR_SHARD = re.compile(  # or a key of a picture in one
    r"\.(?:txt|csv|tsv|jsonl|ndjson|parquet)(?:\.(?:gz|zst))?(?:#.+)?$|\.(?:tar|tar\.gz|tgz)(?=/|#byte |$)",
    re.IGNORECASE,
)
BYTES_PER_MB = 1_000_000
VERSIONS = ("ETag", "etag", "md5Hash", "generation")  # as the libraries call them, the first that is there
TIMES = ("LastModified", "last_modified", "updated", "mtime", "modify", "created")
THUMBNAILS, PAGE = "gallery/thumbnails/", "index.html"  # of a report that was uploaded beside the pictures

Info = Mapping[str, Any]  # what fsspec knows of a file


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """The content of an object, which is read when it is needed.

    size, version, time_s: as it was listed; the version is empty where it was not.
    login: `user:password@` of the address, for this run alone.
    """

    address: str
    limit_mb: int
    size: int | None = None
    version: str = ""
    time_s: float = 0.0
    login: str = field(default="", repr=False, compare=False)
    link: str = ""

    def read(self) -> bytes:
        """Raises DownloadError, or FileNotFoundError, PermissionError, TimeoutError, ConnectionError or OSError."""
        if self.size == 0:
            return b""  # a range of nothing is an error to S3
        limit = self.limit_mb * BYTES_PER_MB
        if not self.size or self.size <= limit:
            data: bytes = self._ask("cat_file", start=0, end=limit + 1)
            if len(data) <= limit:
                return data
        raise DownloadError("TooLarge", f"more than max_download_mb ({self.limit_mb})")

    def identity(self) -> str:
        return self._known().version

    def size_and_time(self) -> tuple[int, float]:
        known = self._known()
        return known.size or 0, known.time_s

    async def fetch(self, client: "Client") -> Fetched:
        known: list[RemoteFile] = []

        def read() -> bytes:
            known.append(self._known())
            return known[-1].read()

        content, values = await client.read(read, self.address)
        return Fetched(FetchedFile(content, known[-1].version), values)

    def _known(self) -> "RemoteFile":
        """The same with what a listing says of it: an entry of a list comes without."""
        if self.version:
            return self
        info = self._ask("info")
        return replace(self, size=info.get("size"), version=version_of(info), time_s=time_of(info))

    def _ask(self, method: str, **arguments: Any) -> Any:
        address = self.address.replace("://", f"://{self.login}", 1)
        try:
            filesystem, path = opened(address)
            return getattr(filesystem, method)(path, **arguments)
        except UserError:
            raise
        except Exception as error:  # of any library
            disconnect(address, error)
            raise translated(error) from None


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """The bytes of an object that have arrived; they are as old as the object was when it was listed."""

    content: Content
    version: str
    link: str = ""

    def read(self) -> bytes:
        return self.content.read()

    def identity(self) -> str:
        return self.version


class Bucket:
    """A record per picture below an address, in the order of a listing that is never held as a whole, or of one object.

    What is a picture is told by its suffix. Hidden names, what `exclude` matches and galleries of reports are left out.
    """

    columns: Mapping[str, str] = {}
    is_stream = False
    is_counted = False  # to list a million objects takes minutes

    def __init__(self, argument: str, exclude: Sequence[str] = (), options: SourceOptions = DEFAULT_OPTIONS) -> None:
        address = path_of(argument)
        if not address.partition("://")[2].strip("/"):
            raise UserError(f"{address} names no bucket and no host: name one, as in s3://bucket/photos/")
        self._shown = without_login(address).rstrip("/")
        self._login = login_of(address)
        self._limit_mb = options.max_download_mb
        self._names = PictureNames(glob_finder(exclude), self._shown)
        self._has_report: dict[str, bool] = {}  # by the folder of an index.html
        self.failures: list[str] = []
        try:
            check_host(address, allow_private=options.allow_private)
            self._filesystem, self._path = opened(address)
            self._info: Info = self._filesystem.info(self._path)
        except Exception as error:  # of any library
            disconnect(address, error)
            raise explained(address, error) from None
        self._is_folder = address.endswith("/") or self._info["type"] == "directory"

    @classmethod
    def accepts(cls, argument: str) -> bool:
        is_ours = is_address(argument) and scheme_of(argument) not in OF_OTHER_SOURCES
        return is_ours and not LIST_OR_SHARD.search(argument)

    @property
    def notes(self) -> list[str]:
        return self._names.notes

    def __iter__(self) -> Iterator[Record]:
        self.failures = []
        self._names.left_out.clear()
        if not self._is_folder:
            yield self._record(self._shown, self._info)
            return
        has_pages = hasattr(self._filesystem, "call_s3")
        for path, info in self._pages() if has_pages else self._walk(""):
            if not self._names.is_left_out(path) and self._names.is_picture(path) and not self._is_of_a_report(path):
                yield self._record(f"{self._shown}/{path}", info)

    def _record(self, address: str, info: Info) -> Record:
        content = RemoteFile(address, self._limit_mb, info.get("size"), version_of(info), time_of(info), self._login)
        return Record(key_of(address), {"content": content})

    def _pages(self) -> Iterator[tuple[str, Info]]:
        """Objects of S3 and their paths, a thousand at a time: s3fs's `ls` and `find` would hold all of them."""
        bucket, _, key = self._path.partition("/")
        prefix = f"{key}/" if key else ""
        request = {"Bucket": bucket, "Prefix": prefix, **self._filesystem.req_kw}
        while True:
            try:
                page = self._filesystem.call_s3("list_objects_v2", **request)
            except Exception as error:  # of botocore, or of the network
                self.failures.append(f"{self._shown} ({reason_of(error)})")
                return
            for each in page.get("Contents", []):
                if not each["Key"].endswith("/"):  # an empty object that stands for a folder
                    yield each["Key"].removeprefix(prefix), {"size": each["Size"], **each}
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _walk(self, folder: str) -> Iterator[tuple[str, Info]]:
        """Files below a folder and their paths, each of which is relative to the root; a folder at a time, sorted."""
        root = self._path.rstrip("/")
        try:
            entries = {info["name"].rstrip("/"): info for info in self._filesystem.ls(f"{root}/{folder}", detail=True)}
        except Exception as error:  # of any library
            self.failures.append(f"{self._shown}/{folder} ({reason_of(error)})")
            return
        for name in sorted(entries):
            path, info = name.removeprefix(root).lstrip("/"), entries[name]
            is_link = info["type"] == "link"
            if is_link:
                with suppress(Exception):  # it leads to nowhere, which its row will say
                    info = self._filesystem.info(name)
            if info["type"] == "directory" and path != folder:  # some stores list the folder itself, too
                if is_link:
                    self._names.left_out["links to folders"] += 1
                elif not self._names.is_left_out(path):
                    yield from self._walk(path)
            elif info["type"] in ("file", "link"):
                yield path, info
            elif path != folder:
                self._names.left_out["not a file"] += 1

    def _is_of_a_report(self, path: str) -> bool:
        """Whether a picture is one of the thumbnails that `report --out` has uploaded; if so, it is counted."""
        folder, found, _ = f"/{path}".partition(f"/{THUMBNAILS}")
        if not found:
            return False
        if folder not in self._has_report:
            self._has_report[folder] = False
            with suppress(Exception):  # there is no such page
                page = self._filesystem.cat_file(f"{self._path}{folder}/{PAGE}", start=0, end=MARK_WITHIN)
                self._has_report[folder] = MARK_OF_A_PAGE in page
        self._names.left_out.update(["as a report's gallery"] if self._has_report[folder] else [])
        return self._has_report[folder]


def version_of(info: Info) -> str:
    """What changes with the bytes of an object: its size and its ETag, or its time where there is none."""
    version = next((str(info[name]).strip('"') for name in VERSIONS if info.get(name)), "") or time_of(info)
    return f"{info.get('size')} {version}"


def time_of(info: Info) -> float:
    """When an object was changed, in seconds since 1970; 0 where that is not known."""
    time = next((info[name] for name in TIMES if info.get(name)), 0.0)
    with suppress(ValueError):  # a text of no format that is known
        if isinstance(time, str):  # FTP's has no T between date and time
            time = datetime.fromisoformat(f"{time[:8]}T{time[8:14]}" if time.isdecimal() else time)
        return time.timestamp() if isinstance(time, datetime) else float(time)
    return 0.0
