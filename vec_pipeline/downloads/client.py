"""Fetches one content: over HTTP, or by a library; with limits, retries, and the politeness that servers ask for."""

import asyncio
import random
import re
import urllib.request
import zlib
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import urljoin
from weakref import WeakValueDictionary

import vec_pipeline
from vec_pipeline.downloads import DownloadError, Fetched
from vec_pipeline.downloads.addresses import key_of, to_send
from vec_pipeline.downloads.encodings import Decoder
from vec_pipeline.downloads.network import failure_of, message_of, public_socket, retry_after_s
from vec_pipeline.downloads.responses import (
    ONE_PIXEL_BYTES,
    SNIFFED_BYTES,
    check_pixels,
    check_redirect,
    forbids_ai,
    is_picture,
)
from vec_pipeline.downloads.slots import Host, Slots
from vec_pipeline.downloads.statistics import Statistics
from vec_pipeline.downloads.store import Store, stored
from vec_pipeline.downloads.temporary import Incoming, InMemory, TemporaryFile, saving, temporary_content
from vec_pipeline.downloads.threads import Threads
from vec_pipeline.record import Content, SourceOptions, UserError

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from yarl import URL

CONNECT_S = 10.0
READ_S = 20.0  # without a byte
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # before a request is repeated
LONGEST_PAUSE_S = 120.0  # that a server may ask for
REFUSALS_PER_ATTEMPT = 3  # that a server with enough to do may send, while it answers others
OK, TOO_MANY_REQUESTS, SERVER_ERROR = 200, 429, 500  # statuses; of the last kind are all from there on
PASSING = (408, 425, TOO_MANY_REQUESTS)  # Request Timeout, Too Early
REFUSALS = (TOO_MANY_REQUESTS, 503)  # of servers that have enough to do
STATUSES = frozenset(HTTPStatus)
REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 5
HEADER_BYTES = 65_536  # of one header: those of some servers are long
BUFFER_BYTES = 262_144  # of a body, before the connection waits
DRAINED_BYTES = 65_536  # of a body that nobody wants
SAVERS = 4  # threads that put small files into the store
BYTES_PER_MB = 1_000_000
HOST_OF_A_LINK = re.compile(r"(?:[^:/]*://)?[^/]*")
FINAL = (  # what no other try would change
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(NotImplementedError, ValueError, TypeError),
)


class Client:
    """For one event loop, within which it is entered and left.

    temporary: the folder of what the store does not keep; None for the system's.

    Raises UserError where the store cannot be written.
    """

    def __init__(self, options: SourceOptions, temporary: Path | None, statistics: Statistics) -> None:
        self._options = options
        self._temporary = temporary
        self._statistics = statistics
        self._slots = Slots(options.downloads_at_once, options.downloads_per_host)
        self._store = Store(options.store) if options.store else None
        if temporary:
            with saving(temporary):
                temporary.mkdir(parents=True, exist_ok=True)
        self._in_progress: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by key
        self._readers = ThreadPoolExecutor(options.downloads_at_once, "download")
        self._proxies = urllib.request.getproxies() if options.allow_private else {}  # a proxy connects to anything

    async def __aenter__(self) -> Self:
        import aiohttp

        self._savers = Threads(SAVERS)
        contact = f" (+{self._options.contact})" if self._options.contact else ""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ttl_dns_cache=300, socket_factory=None if self._options.allow_private else public_socket
            ),
            headers={"User-Agent": f"vec-pipeline/{vec_pipeline.__version__}{contact}", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=self._options.download_timeout_s, connect=CONNECT_S, sock_read=READ_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=BUFFER_BYTES,
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._savers.close()
        if self._store:
            self._store.close()

    async def get(self, url: str) -> Fetched:
        """The content at an http or https address, from the store if it is there. Raises DownloadError, UserError."""
        key = key_of(url)
        async with self._in_progress.setdefault(key, asyncio.Lock()):  # others that want the same find it stored
            if found := stored(self._options.store, key):
                self._statistics.note_found()
                return Fetched(found, {"http_status": OK})
            host = self._host(checked(url))
            return await self._repeated(lambda: self._attempt(url, key), host)

    async def read(self, what: Callable[[], bytes], link: str) -> Fetched:
        """The content that a blocking call of a library returns. Raises DownloadError, UserError.

        link: an address of it without credentials; its beginning says which calls are of one host.
        """
        host = self._slots.host(HOST_OF_A_LINK.match(link)[0])  # type: ignore[index]
        return await self._repeated(lambda: self._call(what, link, host), host)

    async def _repeated(self, attempt: Callable[[], Awaitable[Fetched]], host: Host) -> Fetched:
        """Try until it succeeds, or fails for good."""
        failures, answered = 0, host.answered
        refusals_left = REFUSALS_PER_ATTEMPT * self._options.download_attempts
        while True:
            try:
                fetched = await attempt()
            except DownloadError as error:
                refusals_left -= isinstance(error, RefusedError)
                if isinstance(error, RefusedError) and host.answered != answered and refusals_left > 0:
                    failures, answered = 0, host.answered  # it answers others: it is our turn some time
                failures += 1
                if not error.may_pass:
                    raise
                if failures >= self._options.download_attempts:
                    tries = f" ({failures} attempts)" if failures > 1 else ""
                    raise DownloadError(error.kind, f"{error}{tries}", error.values) from None
            else:
                host.answered += 1
                self._statistics.note_ok()
                return fetched
            await asyncio.sleep(wait_s(failures))

    async def _call(self, what: Callable[[], bytes], link: str, host: Host) -> Fetched:
        """Make the call of a library once."""
        await self._slots.take(host)
        self._statistics.note_request()
        try:
            async with asyncio.timeout(self._options.download_timeout_s):
                data = await asyncio.get_running_loop().run_in_executor(self._readers, what)
        except (DownloadError, UserError):
            raise
        except Exception as error:  # whatever a library raises
            raise failure_of_a_library(error) from None
        finally:
            self._slots.give(host)
        self._statistics.note_bytes(len(data))
        self._check_size(len(data))
        return Fetched(temporary_content(data, f"{len(data)} {zlib.crc32(data):08x}", link, self._temporary), {})

    async def _attempt(self, url: str, key: str) -> Fetched:
        """Ask once, and follow redirects."""
        seen: set[URL] = set()
        target = checked(url)
        while True:
            found = await self._request(target, key)
            if isinstance(found, Fetched):
                return found
            seen.add(target)
            try:
                target = followed(url, target, found.location, seen)
            except DownloadError as error:
                error.values["http_status"] = found.status
                raise

    async def _request(self, target: "URL", key: str) -> "Fetched | Redirect":
        """Send one request, when it is the host's turn."""
        import aiohttp

        host = self._host(target)
        await self._slots.take(host)
        self._statistics.note_request()
        try:
            async with self._session.get(target, allow_redirects=False, proxy=self._proxy(target)) as response:
                try:
                    return await self._answered(response, key, host)
                except DownloadError as error:
                    error.values.setdefault("http_status", response.status)
                    raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise failure_of(error) from None
        finally:
            self._slots.give(host)

    async def _answered(self, response: "ClientResponse", key: str, host: Host) -> "Fetched | Redirect":
        status = response.status
        if status == OK:
            return Fetched(await self._received(response, key), {"http_status": status})
        await drain(response)
        if status in REDIRECTS and (location := response.headers.get("Location")):
            return Redirect(location, status)
        raise self._http_error(response, host)

    def _http_error(self, response: "ClientResponse", host: Host) -> DownloadError:
        """What a status says that is no success; other requests of the host wait as long as it asks for."""
        status = response.status
        phrase = HTTPStatus(status).phrase if status in STATUSES else "a status that HTTP does not define"
        pause_s = retry_after_s(response.headers.get("Retry-After")) if status in REFUSALS else None
        if pause_s is not None and pause_s > LONGEST_PAUSE_S:
            return DownloadError(f"HTTP{status}", f"{phrase}: the server asks to come back in {pause_s:,.0f} s")
        if pause_s is not None:
            self._slots.pause(host, pause_s)
        may_pass = status in PASSING or status >= SERVER_ERROR
        is_refusal = status == TOO_MANY_REQUESTS or pause_s is not None
        return (RefusedError if is_refusal else DownloadError)(f"HTTP{status}", phrase, may_pass=may_pass)

    async def _received(self, response: "ClientResponse", key: str) -> Content:
        """The body, checked while it comes, and kept."""
        import aiohttp

        if not self._options.ignore_noai and forbids_ai(response.headers.getall("X-Robots-Tag", ())):
            raise DownloadError("NoAI", "the server forbids its use by AI (X-Robots-Tag): see ignore_noai")
        self._check_size(response.content_length or 0)
        with self._store.incoming() if self._store else Incoming(self._temporary) as incoming:
            try:
                await self._receive(response, incoming)
            except (aiohttp.ClientError, OSError) as error:
                raise failure_of(error, incoming.size) from None
            if self._store:
                kept: Content = await self._savers.call(partial(self._store.keep, incoming, key))
                return kept
            if incoming.is_in_memory:
                return InMemory(bytes(incoming.memory), incoming.identity, key)
            return TemporaryFile(incoming.detached(), incoming.identity, key)

    async def _receive(self, response: "ClientResponse", incoming: Incoming) -> None:
        content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        decoder: Decoder | None = None
        head, is_judged = b"", False
        while data := await response.content.readany():
            self._statistics.note_bytes(len(data))
            decoder = decoder or Decoder(response.headers.get("Content-Encoding", ""), data)
            for part in decoder.parts(data):
                self._check_size(incoming.size + len(part))
                incoming.write(part)
                if not is_judged:
                    head += part[: SNIFFED_BYTES - len(head)]
                    is_judged = is_picture(head, content_type, is_whole=False)
        if decoder:
            decoder.check_end()
        if not is_judged:
            is_picture(head, content_type, is_whole=True)
        if incoming.size <= ONE_PIXEL_BYTES:
            check_pixels(head)

    def _check_size(self, size: int) -> None:
        if size > self._options.max_download_mb * BYTES_PER_MB:
            raise DownloadError("TooLarge", f"more than max_download_mb ({self._options.max_download_mb})")

    def _host(self, target: "URL") -> Host:
        return self._slots.host(f"{target.raw_host}:{target.port}")

    def _proxy(self, target: "URL") -> str | None:
        if not self._proxies or urllib.request.proxy_bypass(target.raw_host or ""):
            return None
        return self._proxies.get(target.scheme)


class Redirect(NamedTuple):
    """An answer that names another address."""

    location: str
    status: int


class RefusedError(DownloadError):
    """The server has enough to do, and may answer later."""


def checked(address: str) -> "URL":
    try:
        return to_send(address)
    except ValueError:
        raise DownloadError("InvalidURL", "this is not a complete address that begins with http or https") from None


def followed(asked: str, base: "URL", location: str, seen: Collection["URL"]) -> "URL":
    """The address that a redirect leads to. Raises DownloadError."""
    try:
        target = to_send(urljoin(str(base), location))
    except ValueError:
        raise DownloadError("InvalidURL", "it redirects to what is no complete http or https address") from None
    check_redirect(asked, str(target))
    if target in seen:
        raise DownloadError("TooManyRedirects", "it redirects in a circle")
    if len(seen) > MOST_REDIRECTS:
        raise DownloadError("TooManyRedirects", f"it redirects more than {MOST_REDIRECTS} times")
    return target


async def drain(response: "ClientResponse") -> None:
    """Read a short body that nobody wants: the connection can be used again."""
    import aiohttp

    if response.content_length is not None and response.content_length <= DRAINED_BYTES:
        with suppress(aiohttp.ClientError, OSError):
            await response.read()


def failure_of_a_library(error: Exception) -> DownloadError:
    if isinstance(error, TimeoutError):
        return DownloadError("Timeout", "it was not read within download_timeout_s", may_pass=True)
    return DownloadError(type(error).__name__, message_of(error), may_pass=not isinstance(error, FINAL))


def wait_s(failures: int) -> float:
    """Seconds before the next try: twice as long each time, and not the same for all."""
    return min(FIRST_WAIT_S * 2.0 ** (failures - 1), LONGEST_WAIT_S) * random.uniform(0.5, 1)
