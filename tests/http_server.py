"""An HTTP server on 127.0.0.1 that has pictures, and misbehaves in the ways that servers of the web do.

As a program: `python -m tests.http_server --port-file FILE [--fail SHARE]`, until it is killed.
"""

import argparse
import asyncio
import gzip
import io
import json
import random
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from PIL import Image

SIDE_PX = 32
CHUNK = b"\0" * 65_536
PAGE = b"<!DOCTYPE html>\n<html><head><title>No picture here</title></head><body>" + b"<p>Sorry.</p>" * 100
ENDLESS_BYTES = 10_000_000_000
WINDOW_S = 0.25  # within which /limited counts
PIECE_S = 0.01  # between what is to be read apart
DRIP_S = 0.05  # between the bytes of a slow answer


class Request(NamedTuple):
    """path: unescaped, without the query. names: its parts. number: in the last part. asked: how often before."""

    path: str
    names: list[str]
    number: int
    query: dict[str, str]
    headers: dict[str, str]
    asked: int


class HttpServer:
    """Serves within `with`, from a thread.

    fail: the share of the numbers of /ok/NUMBER.png that answer 404, always the same ones.

    requests: how often each path was asked for, without its query.
    targets: what was asked for, as it was sent.
    headers: of the last request for each path, by their names in lower case.
    most_at_once: requests that were in progress together.
    """

    def __init__(self, fail: float = 0.0, port: int = 0) -> None:
        self.requests: Counter[str] = Counter()
        self.headers: dict[str, dict[str, str]] = {}
        self.targets: list[str] = []
        self.connections = 0
        self.most_at_once = 0
        self._fail = fail
        self._at_once = 0
        self._answered: Counter[int] = Counter()  # requests for /limited in each window of time
        self._socket = socket.create_server(("127.0.0.1", port), backlog=512)
        self.port = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, sock=self._socket), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._socket.close()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def fails(self, number: int) -> bool:
        return random.Random(number).random() < self._fail

    async def _cancel(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=5) if others else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError, EndConnection):
            while True:
                request = self._parsed(await reader.readuntil(b"\r\n\r\n"))
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                try:
                    async for data in self._answer(request, writer):
                        writer.write(data)
                        await writer.drain()
                finally:
                    self._at_once -= 1
        with suppress(RuntimeError):  # the loop is closed
            writer.close()

    def _parsed(self, head: bytes) -> Request:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.targets.append(first.split(" ")[1])
        target = urlsplit(self.targets[-1])
        path = unquote(target.path)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        self.requests[path] += 1
        self.headers[path] = headers
        names = path.strip("/").split("/")
        digits = "".join(filter(str.isdigit, names[-1]))
        query = dict(parse_qsl(target.query, keep_blank_values=True))
        return Request(path, names, int(digits or 0), query, headers, self.requests[path] - 1)

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> AsyncIterator[bytes]:
        """The bytes of an answer, in parts; each method of a route's name makes them."""
        route = getattr(self, f"_{request.names[0].replace('-', '_')}_route", self._unknown_route)
        async for data in route(request):
            if data is RESET:
                linger = struct.pack("ii", 1, 0)  # the connection is reset, not closed
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                raise EndConnection
            if data is CLOSE:
                raise EndConnection
            yield data

    async def _unknown_route(self, request: Request) -> AsyncIterator[bytes]:
        yield answer(b"nothing here", 404, "text/plain")

    async def _ok_route(self, request: Request) -> AsyncIterator[bytes]:
        """/ok/NUMBER.png, or /ok/BYTES/NUMBER.png of so many bytes."""
        if self.fails(request.number):
            yield answer(b"nothing here", 404, "text/plain")
        else:
            yield answer(sized(request))

    async def _requests_route(self, request: Request) -> AsyncIterator[bytes]:
        """How often each path was asked for, as JSON."""
        yield answer(json.dumps(self.requests).encode(), type="application/json")

    async def _slow_route(self, request: Request) -> AsyncIterator[bytes]:
        """/slow/MILLISECONDS/NUMBER.png"""
        await asyncio.sleep(int(request.names[1]) / 1000)
        yield answer(of(request))

    async def _hang_route(self, request: Request) -> AsyncIterator[bytes]:
        await asyncio.sleep(3600)
        yield CLOSE

    async def _stall_route(self, request: Request) -> AsyncIterator[bytes]:
        """/stall/NUMBER.png, or /stall/BYTES/NUMBER.png: nearly all of it, and then nothing."""
        yield answer(sized(request))[:-20]
        await asyncio.sleep(3600)

    async def _drip_route(self, request: Request) -> AsyncIterator[bytes]:
        whole = answer(of(request))
        yield whole[:-1000]
        for position in range(len(whole) - 1000, len(whole)):
            await asyncio.sleep(DRIP_S)
            yield whole[position : position + 1]

    async def _reset_route(self, request: Request) -> AsyncIterator[bytes]:
        """/reset/TIMES/NUMBER.png: in the middle of the body, so many times, then fine."""
        whole = answer(of(request))
        if request.asked >= int(request.names[1]):
            yield whole
        else:
            yield whole[: len(whole) // 2]
            await asyncio.sleep(DRIP_S)  # or the client sees no byte of it
            yield RESET

    async def _refuse_route(self, request: Request) -> AsyncIterator[bytes]:
        """Reset before an answer."""
        yield RESET

    async def _short_route(self, request: Request) -> AsyncIterator[bytes]:
        """/short/TIMES/NUMBER.png: less than Content-Length says."""
        whole = answer(of(request))
        if request.asked >= int(request.names[1]):
            yield whole
        else:
            yield whole[:-20]
            yield CLOSE

    async def _long_route(self, request: Request) -> AsyncIterator[bytes]:
        """More than Content-Length says."""
        yield answer(of(request)) + b"and more" * 1000

    async def _type_route(self, request: Request) -> AsyncIterator[bytes]:
        """/type/text/html/NUMBER.png: a picture under another type; /type/none/NUMBER.png: under none."""
        yield answer(of(request), type="/".join(request.names[1:-1]))

    async def _page_route(self, request: Request) -> AsyncIterator[bytes]:
        """/page/image/jpeg/NUMBER.jpg: a web page under that type, which has no end."""
        yield head(200, [("Content-Type", "/".join(request.names[1:-1])), ("Transfer-Encoding", "chunked")])
        for number in range(100_000):
            yield chunk(PAGE if number == 0 else b"<p>More.</p>" * 100)
        yield chunk(b"")

    async def _pieces_route(self, request: Request) -> AsyncIterator[bytes]:
        """A web page as image/jpeg, a few bytes at a time."""
        whole = answer(PAGE, type="image/jpeg")
        start = len(whole) - len(PAGE)
        yield whole[:start]
        for position in range(start, start + 30, 3):
            await asyncio.sleep(PIECE_S)
            yield whole[position : position + 3]
        yield whole[start + 30 :]

    async def _bytes_route(self, request: Request) -> AsyncIterator[bytes]:
        """/bytes/image/x-new/NUMBER: no known kind of picture, under that type."""
        yield answer(random.Random(request.number).randbytes(2000), type="/".join(request.names[1:-1]))

    async def _circle_route(self, request: Request) -> AsyncIterator[bytes]:
        yield redirect(f"/circle/{(request.number + 1) % 3}.png")

    async def _chain_route(self, request: Request) -> AsyncIterator[bytes]:
        """/chain/LENGTH/NUMBER.png: as many redirects to a picture."""
        left = int(request.names[1]) - 1
        yield redirect(f"/chain/{left}/{request.names[2]}" if left else f"/ok/{request.names[2]}")

    async def _redirect_route(self, request: Request) -> AsyncIterator[bytes]:
        """/redirect/NUMBER.png?to=ADDRESS"""
        yield redirect(request.query["to"], int(request.query.get("status", 302)))

    async def _status_route(self, request: Request) -> AsyncIterator[bytes]:
        """/status/CODE/TIMES/NUMBER.png?after=SECONDS: so many times, then fine."""
        if request.asked >= int(request.names[2]):
            yield answer(of(request))
        else:
            more = [("Retry-After", request.query["after"])] if "after" in request.query else []
            whole = answer(b"not now", int(request.names[1]), "text/plain", more)
            yield whole[:-3]
            await asyncio.sleep(PIECE_S)  # the status is read before the body is there
            yield whole[-3:]

    async def _limited_route(self, request: Request) -> AsyncIterator[bytes]:
        """/limited/RATE/NUMBER.png: at most so many in WINDOW_S, and 429 for the others."""
        window = int(time.monotonic() / WINDOW_S)
        self._answered[window] += 1
        if self._answered[window] > int(request.names[1]):
            yield answer(b"not now", 429, "text/plain", [("Retry-After", str(WINDOW_S))])
        else:
            yield answer(of(request))

    async def _endless_route(self, request: Request) -> AsyncIterator[bytes]:
        """A picture that has 10 GB; with ?declared, Content-Length says so."""
        if "declared" in request.query:
            yield head(200, [("Content-Type", "image/png"), ("Content-Length", str(ENDLESS_BYTES))])
        else:
            yield head(200, [("Content-Type", "image/png"), ("Connection", "close")])
        yield of(request)
        for _ in range(ENDLESS_BYTES // len(CHUNK)):
            yield CHUNK

    async def _bomb_route(self, request: Request) -> AsyncIterator[bytes]:
        """A gigabyte that is compressed to a megabyte."""
        yield answer(bomb(of(request)), more=[("Content-Encoding", "gzip")])

    async def _encoded_route(self, request: Request) -> AsyncIterator[bytes]:
        """/encoded/gzip/NUMBER.png, or /encoded/gzip/BYTES/NUMBER.png: compressed, although nobody asked.

        ?plain: it is not, in truth; ?cut: its end is missing; ?broken: it is something else.
        """
        encoding, picture_ = request.names[1], of(request, int(request.names[2]) if request.names[3:] else 0)
        raw = zlib.compressobj(wbits=-15)
        encoded = {
            "gzip": gzip.compress(picture_),
            "deflate": zlib.compress(picture_),
            "raw": raw.compress(picture_) + raw.flush(),
        }.get(encoding, b"\x0b\x02" + picture_[::-1])
        encoded = picture_ if "plain" in request.query else b"no such thing" if "broken" in request.query else encoded
        name = "deflate" if encoding == "raw" else encoding
        yield answer(encoded[:-20] if "cut" in request.query else encoded, more=[("Content-Encoding", name)])

    async def _empty_route(self, request: Request) -> AsyncIterator[bytes]:
        yield answer(b"")

    async def _pixel_route(self, request: Request) -> AsyncIterator[bytes]:
        file = io.BytesIO()
        Image.new("RGB", (1, 1)).save(file, "gif")
        yield answer(file.getvalue(), type="image/gif")

    async def _tagged_route(self, request: Request) -> AsyncIterator[bytes]:
        """/tagged/NUMBER.png?tag=VALUE: with X-Robots-Tag, a second one after a | in the value."""
        yield answer(of(request), more=[("X-Robots-Tag", tag) for tag in request.query["tag"].split("|")])

    async def _header_route(self, request: Request) -> AsyncIterator[bytes]:
        """/header/BYTES/NUMBER.png: with a header of so many."""
        yield answer(of(request), more=[("Content-Security-Policy", "x" * int(request.names[1]))])

    async def _cookie_route(self, request: Request) -> AsyncIterator[bytes]:
        yield answer(of(request), more=[("Set-Cookie", "visited=yes; Path=/")])

    async def _private_route(self, request: Request) -> AsyncIterator[bytes]:
        """For user:password alone."""
        if request.headers.get("authorization") == "Basic dXNlcjpwYXNzd29yZA==":
            yield answer(of(request))
        else:
            yield answer(b"who are you?", 401, "text/plain")


class EndConnection(Exception):  # noqa: N818 (it says what is done)
    """The connection is not to be used again."""


RESET, CLOSE = bytes(bytearray(b"reset")), bytes(bytearray(b"close"))  # told apart by identity


@lru_cache(4096)
def picture(number: int, kind: str = "png") -> bytes:
    """A picture that only this number has."""
    pixels = random.Random(number).randbytes(3 * SIDE_PX * SIDE_PX)
    file = io.BytesIO()
    Image.frombytes("RGB", (SIDE_PX, SIDE_PX), pixels).save(file, kind)
    return file.getvalue()


def of(request: Request, size: int = 0) -> bytes:
    """Its picture, filled up to `size` bytes behind the end."""
    return picture(request.number, "jpeg" if request.path.endswith((".jpg", ".jpeg")) else "png").ljust(size, b"\0")


def sized(request: Request) -> bytes:
    """Its picture, filled up to as many bytes as the second name says, if it is a number."""
    return of(request, int(request.names[1]) if request.names[1].isdecimal() else 0)


@lru_cache(1)
def bomb(start: bytes) -> bytes:
    """A gigabyte of zeros behind `start`, as gzip; without the checksum at its end, where nobody should get."""
    compressor = zlib.compressobj(wbits=31)
    begin = compressor.compress(start) + compressor.flush(zlib.Z_FULL_FLUSH)
    megabyte = compressor.compress(b"\0" * 1_000_000) + compressor.flush(zlib.Z_FULL_FLUSH)
    return begin + megabyte * 1000


def head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} As it is", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def answer(body: bytes, status: int = 200, type: str = "image/png", more: Iterable[tuple[str, str]] = ()) -> bytes:
    types = [("Content-Type", type)] if type != "none" else []
    return head(status, [*types, ("Content-Length", str(len(body))), *more]) + body


def redirect(address: str, status: int = 302) -> bytes:
    return answer(b"", status, "text/plain", [("Location", address)])


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port-file", type=Path, required=True, help="where to write the port, once it is open")
    parser.add_argument("--fail", type=float, default=0.0, help="share of /ok/NUMBER.png that answer 404")
    options = parser.parse_args()
    with HttpServer(options.fail) as server:
        partial = options.port_file.with_suffix(".partial")
        partial.write_text(str(server.port))
        partial.replace(options.port_file)
        threading.Event().wait()


if __name__ == "__main__":
    main()
