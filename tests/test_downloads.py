"""Downloads from a server that does what servers of the web do: what is fetched, refused, tried again, and kept."""

import asyncio
import gc
import os
import pickle
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from hashlib import sha1
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import PROJECT
from tests.http_server import HttpServer, picture
from vec_pipeline import load_annotations
from vec_pipeline.downloads import DownloadError, Downloads, Fetched, ahead, client, network, store, temporary
from vec_pipeline.downloads.encodings import PART_BYTES, Decoder
from vec_pipeline.downloads.responses import is_picture
from vec_pipeline.downloads.slots import Slots
from vec_pipeline.downloads.statistics import Statistics
from vec_pipeline.downloads.store import PARTIAL, Store, path_in, stored
from vec_pipeline.downloads.temporary import Incoming, InMemory, TemporaryFile, temporary_content
from vec_pipeline.downloads.threads import Threads
from vec_pipeline.downloads.web import web_record
from vec_pipeline.record import Record, SourceOptions, UserError

GONE = "http://127.0.0.1:1/a.png"  # nobody listens


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.01)
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer() as running:
        yield running


@dataclass
class Fetch:
    """Fetches addresses, or paths of the server, and returns their records in the order in which they arrive."""

    server: HttpServer
    folder: Path
    statistics: Statistics | None = None

    def __call__(self, *addresses: str, **options: Any) -> list[Record]:
        found = SourceOptions(**{"max_download_mb": 2, **options})
        urls = [each if "://" in each.partition("?")[0] else self.server.url(each) for each in addresses]
        downloads = Downloads(found, self.folder / "temporary")
        records = list(downloads.ahead([web_record(url, found) for url in urls]))
        self.statistics = downloads.statistics
        return records

    def one(self, address: str, **options: Any) -> Record:
        (record,) = self(address, **options)
        return record


@pytest.fixture
def fetch(server: HttpServer, tmp_path: Path) -> Fetch:
    return Fetch(server, tmp_path)


def kind_of(record: Record) -> str:
    """The kind of its failure, or an empty text."""
    assert not record.error or record.error.startswith("download: ")
    return record.error.split(": ")[1] if record.error else ""


def content_of(record: Record) -> bytes:
    assert not record.error
    content: bytes = record.values["content"].read()
    return content


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# What is fetched, and what is not


@pytest.mark.parametrize("in_store", [True, False])
@pytest.mark.parametrize(
    "path",
    [
        *("/ok/1.png", "/ok/200000/1.png", "/slow/300/1.png", "/type/text/html/1.png", "/type/none/1.png"),
        *("/chain/5/1.png", "/redirect/1.png?to=%2Fok/1.png&status=308", "/redirect/a/1.png?to=..%2F..%2Fok/1.png"),
        *("/encoded/gzip/1.png", "/encoded/deflate/1.png", "/encoded/raw/1.png", "/encoded/gzip/1.png?plain"),
        *("/encoded/br/1.png?plain", "/tagged/1.png?tag=otherbot:%20noai", "/tagged/1.png?tag=index"),
    ],
)
def test_a_picture_arrives(path: str, in_store: bool, fetch: Fetch, tmp_path: Path) -> None:
    record = fetch.one(path, store=tmp_path / "store" if in_store else None)
    assert content_of(record).rstrip(b"\0") == picture(1)
    assert len(content_of(record)) == (200_000 if "200000" in path else len(picture(1)))
    assert record.values["http_status"] == 200
    assert record.values["source_url"] == record.key == fetch.server.url(path)


@pytest.mark.parametrize(
    ("path", "kind", "status", "message"),
    [
        ("/status/404/9/1.png", "HTTP404", 404, "Not Found"),
        ("/status/410/9/1.png", "HTTP410", 410, "Gone"),
        ("/status/799/9/1.png", "HTTP799", 799, "a status that HTTP does not define (4 attempts)"),
        ("/redirect/1.png?to=", "HTTP302", 302, "Found"),
        ("/hang/1.png", "Timeout", None, "nothing came any more after 0 bytes (4 attempts)"),
        ("/stall/1.png", "Timeout", 200, "nothing came any more after 3,152 bytes (4 attempts)"),
        ("/drip/1.png", "Timeout", 200, "it was not there within download_timeout_s (4 attempts)"),
        ("/reset/9/1.png", "Truncated", 200, ""),
        ("/short/9/1.png", "Truncated", 200, "the connection ended after 3,152 bytes (4 attempts)"),
        ("/encoded/gzip/1.png?cut", "Truncated", 200, "what the server compressed has no end (4 attempts)"),
        ("/long/1.png", "ConnectionFailed", None, "the answer is not valid HTTP (4 attempts)"),
        ("/refuse/1.png", "ConnectionFailed", None, "Connection reset by peer (4 attempts)"),
        (GONE, "ConnectionFailed", None, "Connection refused (4 attempts)"),
        ("/endless/1.png", "TooLarge", 200, "more than max_download_mb (2)"),
        ("/endless/1.png?declared", "TooLarge", 200, "more than max_download_mb (2)"),
        ("/bomb/1.png", "TooLarge", 200, "more than max_download_mb (2)"),
        ("/page/image/jpeg/1.jpg", "NotAnImage", 200, "the server sent a web page"),
        ("/page/text/html/1.jpg", "NotAnImage", 200, "the server sent a web page"),
        ("/pieces/1.jpg", "NotAnImage", 200, "the server sent a web page"),
        ("/bytes/text/plain/1.jpg", "NotAnImage", 200, "the server sent text/plain"),
        ("/bytes/video/mp4/1.jpg", "NotAnImage", 200, "the server sent video/mp4"),
        ("/empty/1.png", "NotAnImage", 200, "the server sent an empty file"),
        ("/pixel/1.gif", "Placeholder", 200, "the picture has one pixel"),
        ("/redirect/1.png?to=/no_image.png", "Placeholder", 302, ""),
        ("/redirect/1.png?to=https://i.imgur.com/removed.png", "Placeholder", 302, ""),
        ("/redirect/1.png?to=https://s.yimg.com/pw/images/en-us/photo_unavailable_l.png", "Placeholder", 302, ""),
        ("/tagged/1.png?tag=noai", "NoAI", 200, "the server forbids its use by AI (X-Robots-Tag): see ignore_noai"),
        ("/tagged/1.png?tag=index|noindex,%20NoImageAI", "NoAI", 200, ""),
        ("/tagged/1.png?tag=otherbot:noai|vec-pipeline:noai", "NoAI", 200, ""),
        ("/tagged/1.png?tag=otherbot:index|noai", "NoAI", 200, ""),
        ("/tagged/1.png?tag=unavailable_after:%2025%20Jun%202030,noai", "NoAI", 200, ""),
        ("/circle/0.png", "TooManyRedirects", 302, "it redirects in a circle"),
        ("/chain/6/1.png", "TooManyRedirects", 302, "it redirects more than 5 times"),
        ("/redirect/1.png?to=ftp://host/a.png", "InvalidURL", 302, ""),
        ("/redirect/1.png?to=file:///etc/passwd", "InvalidURL", 302, ""),
        ("/redirect/1.png?to=http://[::1/", "InvalidURL", 302, ""),
        (
            "/redirect/1.png?to=http://h:x/",
            "InvalidURL",
            302,
            "it redirects to what is no complete http or https address",
        ),
        ("http://a:99999/a.png", "InvalidURL", None, ""),
        ("http://2130706433/a.png", "InvalidURL", None, "the address cannot be asked for: correct it"),
        ("/encoded/br/1.png", "InvalidEncoding", 200, "the server compresses it by br, unasked"),
        ("/encoded/gzip/1.png?broken", "InvalidEncoding", 200, ""),
        ("http://no.such.host.invalid/a.png", "ConnectionFailed", None, "no host has this name"),
    ],
)
def test_a_failure_has_its_kind(
    path: str,
    kind: str,
    status: int | None,
    message: str,
    fetch: Fetch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if ".invalid" in path:
        names_are_answered_with(monkeypatch, socket.gaierror(socket.EAI_NONAME, "unknown"))
    if "/hang/" in path or "/stall/" in path:
        monkeypatch.setattr(client, "READ_S", 0.3)
    record = fetch.one(path, store=tmp_path / "store", download_timeout_s=1 if "/drip/" in path else 60)
    assert kind_of(record) == kind
    assert message in record.error
    assert record.values.get("http_status") == status
    assert "content" not in record.values  # or a stage would fetch it again
    assert fetch.statistics and fetch.statistics.failed == {kind: 1}
    assert not files_in(tmp_path)


@pytest.mark.parametrize("type", ["image/x-new", "Application/Octet-Stream;charset=x", "none"])
def test_unknown_bytes_are_left_to_the_decoder(type: str, fetch: Fetch) -> None:
    assert len(content_of(fetch.one(f"/bytes/{type}/1"))) == 2000


def test_what_says_that_it_is_too_large_is_not_read(fetch: Fetch) -> None:
    fetch.one("/endless/1.png?declared")
    assert fetch.statistics and fetch.statistics.bytes == 0


def test_a_page_is_not_read_to_its_end(fetch: Fetch) -> None:
    fetch.one("/page/text/html/1.jpg")
    assert fetch.statistics and fetch.statistics.bytes < 1_000_000


@pytest.mark.parametrize("size", [262_144, 524_288, 1_000_000, 1_999_999])
def test_what_is_compressed_well_comes_whole(size: int, fetch: Fetch) -> None:
    assert content_of(fetch.one(f"/encoded/gzip/{size}/1.png")) == picture(1).ljust(size, b"\0")


@pytest.mark.parametrize("size", [0, 1, *range(PART_BYTES - 2, PART_BYTES + 300, 7), 10 * PART_BYTES])
@pytest.mark.parametrize("encoding", ["deflate", " X-GZip"])
def test_decompression_is_in_parts_of_bounded_size(encoding: str, size: int) -> None:
    compressor = zlib.compressobj(9, wbits=-15 if encoding == "deflate" else 31)
    data = compressor.compress(bytes(size)) + compressor.flush()
    for cut in (0, 20):
        decoder = Decoder(encoding, data)
        parts = [part for half in (data[:cut], data[cut:]) for part in decoder.parts(half)]
        decoder.check_end()
        assert b"".join(parts) == bytes(size)
        assert max(map(len, parts), default=0) <= PART_BYTES


@pytest.mark.parametrize("start", [b"<!---->", b"<?xml?>", b"<!-- -->\n<!"])
def test_odd_markup_is_judged_quickly(start: bytes) -> None:
    begun = time.monotonic()
    with pytest.raises(DownloadError, match=r"the server sent (a text|text/xml)"):
        is_picture(start * 5000, "text/xml", is_whole=True)
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize(
    ("head", "is_known"),
    [
        (b"\xff\xd8\xff", True),
        (b"\xff", False),
        (b"x" * 255, False),
        (b"x" * 256, True),
        (b"<!-- " + b"x" * 10_000, False),
        (b"<!-- " + b"x" * 10_000 + b" --><svg ", True),
        (b"<!-- " + b"x" * 40_000, True),
        (b'<?xml version="1.0"?>\n<!DOCTYPE svg PUBLIC "...">\n<svg>', True),
    ],
)
def test_what_the_first_bytes_tell(head: bytes, is_known: bool) -> None:
    assert is_picture(head, "image/x-any", is_whole=False) == is_known


@pytest.mark.parametrize(
    "head",
    [
        *(b"\xef\xbb\xbf\r\n<html>", b"<HTML lang=de>", b"<!doctype HTML>", b"<head>", b"<!-- a --> <!-- b --><body>"),
        b'<?xml version="1.0"?><!DOCTYPE html PUBLIC "..."><html><svg>',
    ],
)
def test_what_a_web_page_begins_with(head: bytes) -> None:
    with pytest.raises(DownloadError, match="web page"):
        is_picture(head, "image/png", is_whole=False)


def test_noai_can_be_ignored(fetch: Fetch) -> None:
    assert content_of(fetch.one("/tagged/1.png?tag=noai", ignore_noai=True)) == picture(1)


@pytest.mark.parametrize("name", ["piano-image", "placeholders", "not-found", "no-image"])
def test_a_name_alone_makes_no_placeholder(name: str, fetch: Fetch) -> None:
    asked = name if name in ("not-found", "no-image") else "x"  # what is asked for may be called so
    assert content_of(fetch.one(f"/redirect/{asked}/1.png?to=/ok/{name}/1.png")) == picture(1)


@pytest.mark.parametrize("secret", ["user:hidden@", ""])
@pytest.mark.parametrize(
    "path", ["/hang/1.png", "/empty/1.png", "/status/500/9/1.png", "/redirect/1.png?to=ftp://x", "/refuse/1.png"]
)
def test_a_failure_shows_no_credentials(path: str, secret: str, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "READ_S", 0.3)
    url = fetch.server.url(f"{path}{'&' if '?' in path else '?'}token=hidden").replace("://", f"://{secret}", 1)
    assert "hidden" not in repr(fetch.one(url, download_attempts=1))


# Requests


def test_a_request_says_who_asks(fetch: Fetch) -> None:
    fetch.one("/ok/1.png", contact="https://example.org/us")
    headers = fetch.server.headers["/ok/1.png"]
    assert headers["user-agent"].startswith("vec-pipeline/")
    assert headers["user-agent"].endswith(" (+https://example.org/us)")
    assert headers["accept-encoding"] == "identity"
    fetch.one("/ok/2.png")
    assert "(" not in fetch.server.headers["/ok/2.png"]["user-agent"]


def test_user_and_password_are_sent_to_their_host_alone(fetch: Fetch) -> None:
    with HttpServer() as other:
        target = f"/redirect/2.png?to={other.url('/ok/2.png')}"
        urls = [fetch.server.url(path).replace("://", "://user:password@", 1) for path in ("/private/1.png", target)]
        assert [kind_of(record) for record in fetch(*urls)] == ["", ""]
        assert "authorization" in fetch.server.headers["/redirect/2.png"]
        assert "authorization" not in other.headers["/ok/2.png"]
    inner = fetch.server.url("/redirect/3.png?to=/private/3.png").replace("://", "://user:password@", 1)
    assert content_of(fetch.one(inner)) == picture(3)


def test_cookies_are_not_kept(fetch: Fetch) -> None:
    urls = [fetch.server.url(f"/cookie/{number}.png", "localhost") for number in (1, 2)]
    fetch(*urls, downloads_at_once=1)
    assert "cookie" not in fetch.server.headers["/cookie/2.png"]


@pytest.mark.parametrize("path", ["/status/404/9/{}.png", "/ok/{}.png", "/redirect/{}.png?to=/ok/1.png"])
def test_connections_are_used_again(path: str, fetch: Fetch) -> None:
    fetch(*(path.format(number) for number in range(10)), downloads_at_once=1)
    assert fetch.server.connections == 1


def test_headers_may_be_long(fetch: Fetch) -> None:
    assert content_of(fetch.one("/header/60000/1.png")) == picture(1)


def test_a_fragment_is_not_sent_and_escapes_stay(fetch: Fetch) -> None:
    record = fetch.one("/ok/a%2Fb%7E/1.png?x=%2B#part")
    assert record.key.endswith("#part")
    assert fetch.server.targets[-1] == "/ok/a%2Fb%7E/1.png?x=%2B"


def test_a_proxy_of_the_environment_is_used(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", fetch.server.url(""))
    monkeypatch.setenv("no_proxy", "other.example")
    names_are_answered_with(monkeypatch, socket.gaierror(socket.EAI_NONAME, "unknown"))
    records = {record.key: record for record in fetch("http://host.example/ok/1.png", "http://other.example/ok/2.png")}
    assert content_of(records["http://host.example/ok/1.png"]) == picture(1)
    assert kind_of(records["http://other.example/ok/2.png"]) == "ConnectionFailed"
    record = fetch.one("http://host.example/ok/1.png", allow_private=False)  # what a proxy connects to, nobody knows
    assert kind_of(record) == "ConnectionFailed"


def test_a_proxy_that_refuses(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", fetch.server.url(""))
    assert fetch.one("https://host.example/a.png").error == (
        "download: ConnectionFailed: the proxy answered 404 (4 attempts)"
    )


def test_connecting_takes_no_longer_than_it_may(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:  # which accepts nobody
        address = full.getsockname()
        with socket.create_connection(address):
            record = fetch.one(f"http://127.0.0.1:{address[1]}/a.png", download_attempts=1)
    assert record.error == "download: Timeout: the host could not be connected to in time"


@pytest.mark.parametrize(
    ("error", "message", "may_pass"),
    [
        (ssl.SSLError(1, "wrong version"), "ConnectionFailed: no encrypted connection can be agreed upon", True),
        (ConnectionResetError(104, "reset by host.example"), "ConnectionFailed: Connection reset by peer", True),
        (OSError("odd"), "ConnectionFailed: no connection", True),
        (aiohttp.ClientPayloadError("of host.example"), "Truncated: the connection ended after 0 bytes", True),
        (aiohttp.ServerDisconnectedError(), "ConnectionFailed: the connection ended without an answer", True),
        (
            aiohttp.ClientConnectorCertificateError(None, ssl.SSLCertVerificationError()),  # type: ignore[arg-type]
            "ConnectionFailed: the certificate of the host is not valid",
            False,
        ),
    ],
)
def test_failures_of_connections(error: Exception, message: str, may_pass: bool) -> None:
    failure = network.failure_of(error)
    assert (f"{failure.kind}: {failure}", failure.may_pass) == (message, may_pass)


def test_a_connection_that_ends_within_a_body() -> None:
    failure = network.failure_of(ConnectionResetError(104, "reset"), 1234)
    assert (failure.kind, str(failure)) == ("Truncated", "the connection ended after 1,234 bytes")


def test_a_message_of_a_library_is_one_short_line() -> None:
    assert network.message_of(ValueError("in\n http://user:pw@host\n")) == "in http://host"
    assert len(network.message_of(ValueError("x" * 1000))) == 300


# Retries


@pytest.mark.parametrize(
    "path", ["/reset/2/1.png", "/short/2/1.png", "/status/500/2/1.png", "/status/429/2/1.png", "/status/503/2/1.png"]
)
def test_what_may_pass_is_asked_for_again(path: str, fetch: Fetch) -> None:
    assert content_of(fetch.one(path)) == picture(1)
    assert fetch.server.requests[path] == 3


@pytest.mark.parametrize("attempts", [1, 3])
def test_attempts_are_bounded(attempts: int, fetch: Fetch) -> None:
    record = fetch.one("/status/502/99/1.png", download_attempts=attempts)
    assert record.error == f"download: HTTP502: Bad Gateway{' (3 attempts)' if attempts == 3 else ''}"
    assert fetch.server.requests["/status/502/99/1.png"] == attempts


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_what_does_not_pass_is_asked_for_once(status: int, fetch: Fetch) -> None:
    fetch.one(f"/status/{status}/9/1.png")
    assert fetch.server.requests[f"/status/{status}/9/1.png"] == 1


def test_waits_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_S", 1.0)
    waits = [[client.wait_s(failures) for _ in range(50)] for failures in (1, 2, 3, 20)]
    assert all(0.5 <= wait <= 1 for wait in waits[0]) and len(set(waits[0])) > 10
    assert max(waits[0]) <= min(waits[1]) and max(waits[1]) <= min(waits[2])
    assert max(waits[3]) <= client.LONGEST_WAIT_S


def test_a_host_is_left_alone_as_long_as_it_asks_for(fetch: Fetch) -> None:
    begun = time.monotonic()
    with HttpServer() as other:
        paths = ["/status/429/1/1.png?after=1", *(f"/ok/{number}.png" for number in range(3))]
        arrived: dict[str, float] = {}
        options = SourceOptions(downloads_at_once=1)
        downloads = Downloads(options, fetch.folder / "temporary")
        urls = [*map(fetch.server.url, paths), other.url("/ok/9.png")]
        for record in downloads.ahead([web_record(url, options) for url in urls]):
            assert not record.error
            arrived[record.key] = time.monotonic() - begun
    assert min(arrived[url] for url in urls[:-1]) >= 1
    assert next(iter(arrived)) == urls[-1]


def test_a_host_that_asks_for_too_long_is_not_waited_for(fetch: Fetch) -> None:
    record = fetch.one("/status/503/9/1.png?after=121")
    assert record.error == "download: HTTP503: Service Unavailable: the server asks to come back in 121 s"
    assert fetch.server.requests["/status/503/9/1.png"] == 1


def test_a_host_that_refuses_some_and_answers_others_has_all_it_is_asked_for(fetch: Fetch) -> None:
    """The 32 that ask together are refused more often than `download_attempts`, a few each time."""
    records = fetch(*(f"/limited/6/{number}.png" for number in range(40)))
    assert [kind_of(record) for record in records] == [""] * 40


def test_a_date_to_come_back_at() -> None:
    assert 58 < (network.retry_after_s(formatdate(time.time() + 60, usegmt=True)) or 0) <= 60
    assert network.retry_after_s(formatdate(time.time() - 60, usegmt=True)) == 0
    assert network.retry_after_s("5") == 5
    assert [network.retry_after_s(text) for text in (None, "soon", "nan", "inf", "")] == [None] * 5


def test_no_network_is_told_from_no_host(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = names_are_answered_with(monkeypatch, socket.gaierror(socket.EAI_AGAIN, "temporary"))
    assert kind_of(fetch.one("http://host.example/a.png")) == "NoNetwork"
    assert len(asked) == 4
    asked = names_are_answered_with(monkeypatch, socket.gaierror(socket.EAI_NONAME, "unknown"))
    assert kind_of(fetch.one("http://host.example/a.png")) == "ConnectionFailed"
    assert len(asked) == 1
    assert network.connection_failure(OSError(101, "unreachable")).kind == "NoNetwork"


# Private addresses


def names_are_answered_with(monkeypatch: pytest.MonkeyPatch, answer: Exception | Sequence[str]) -> list[str]:
    """Replace the name server of *.example and *.invalid; return the list of names that it is asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if not str(host).endswith((".example", ".invalid")):
            return real(host, port, *args, **kwargs)
        asked.append(host)
        if isinstance(answer, Exception):
            raise answer
        address = answer[min(len(asked), len(answer)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "[::1]"]
)
def test_a_private_address_is_not_connected_to(host: str, fetch: Fetch) -> None:
    record = fetch.one(fetch.server.url("/ok/1.png", host), allow_private=False)
    assert kind_of(record) in ("PrivateAddress", "InvalidURL")
    assert not fetch.server.requests


def test_a_name_that_leads_to_a_private_address_is_not_connected_to(
    fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = fetch.server.url("/ok/1.png", "public.example")
    names_are_answered_with(monkeypatch, ["127.0.0.1"])
    assert content_of(fetch.one(url)) == picture(1)
    assert "PrivateAddress: the host is in a private network" in fetch.one(url, allow_private=False).error
    assert fetch.server.requests["/ok/1.png"] == 1


def test_a_name_is_not_looked_up_again_after_it_was_checked(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is checked is what is connected to: a name server that answers otherwise the second time changes nothing."""
    checked = []
    monkeypatch.setattr(network, "is_private", lambda address: bool(checked.append(address)) or address != "127.0.0.1")
    names_are_answered_with(monkeypatch, ["127.0.0.1", "127.0.0.9"])
    urls = [fetch.server.url(f"/slow/50/{number}.png", "rebound.example") for number in range(3)]
    assert [kind_of(record) for record in fetch(*urls, allow_private=False)] == [""] * 3
    assert set(checked) == {"127.0.0.1"}
    assert kind_of(fetch.one(fetch.server.url("/ok/1.png", "rebound.example"), allow_private=False)) == "PrivateAddress"


def test_a_redirect_to_a_private_address_is_not_followed(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "is_private", lambda address: address == "127.0.0.2")
    path = f"/redirect/1.png?to={fetch.server.url('/ok/1.png', '127.0.0.2')}"
    assert kind_of(fetch.one(path, allow_private=False)) == "PrivateAddress"
    assert fetch.server.requests == {"/redirect/1.png": 1}


# The store


def test_a_stored_picture_is_not_fetched_again(fetch: Fetch, tmp_path: Path) -> None:
    os.umask(0o022)
    url = fetch.server.url("/ok/1.png?sig=secret")
    first = fetch.one(url, store=tmp_path / "store")
    name = sha1(first.key.encode()).hexdigest()
    assert files_in(tmp_path) == [tmp_path / "store" / name[:2] / name[2:4] / name]
    assert files_in(tmp_path)[0].read_bytes() == picture(1)
    assert files_in(tmp_path)[0].stat().st_mode & 0o777 == 0o644  # what the umask allows, as of any other file
    assert not (tmp_path / "store" / PARTIAL).exists()
    again = fetch.one(url.replace("secret", "other"), store=tmp_path / "store")
    assert (content_of(again), again.values) == (picture(1), first.values)
    assert fetch.server.requests == {"/ok/1.png": 1}
    assert fetch.statistics and (fetch.statistics.ok, fetch.statistics.found) == (0, 1)
    status = files_in(tmp_path)[0].stat()
    assert again.values["content"].identity() == f"{status.st_size} {status.st_mtime_ns}"


def test_an_empty_file_is_no_stored_picture(fetch: Fetch, tmp_path: Path) -> None:
    path = Path(path_in(tmp_path / "store", fetch.server.url("/ok/1.png")))
    path.parent.mkdir(parents=True)
    path.touch()
    assert content_of(fetch.one("/ok/1.png", store=tmp_path / "store")) == picture(1)


def test_what_a_killed_process_was_receiving_is_removed(tmp_path: Path) -> None:
    """And what another one is receiving right now is not."""
    folder = tmp_path / "store"
    running = Store(folder)
    (folder / PARTIAL / "of-killed").mkdir()
    (folder / PARTIAL / "of-killed" / "tmp1").write_bytes(b"part")
    with running.incoming() as incoming:
        incoming.write(b"x" * 100_000)
        assert len(files_in(folder)) == 2
        Store(folder).close()
        assert len(files_in(folder)) == 1
        kept = running.keep(incoming, "key")
    running.close()
    descriptors = len(os.listdir("/proc/self/fd"))
    Store(folder).close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert kept.read() == b"x" * 100_000
    assert files_in(folder) == [Path(path_in(folder, "key"))]
    assert not (folder / PARTIAL).exists()


def test_pictures_that_differ_in_a_token_alone_are_two(fetch: Fetch, tmp_path: Path) -> None:
    """A token may be all that names a picture; a signature never is."""
    urls = [fetch.server.url(f"/ok/1.png?token={token}") for token in ("one", "two")]
    records = [fetch.one(url, store=tmp_path / "store") for url in urls]
    assert len({record.key for record in records}) == 2
    assert not any("one" in record.key or "two" in record.key for record in records)
    assert len(files_in(tmp_path)) == 2


def test_a_store_that_nothing_came_into_is_removed(tmp_path: Path) -> None:
    Store(tmp_path / "store").close()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("status", [408, 425])
def test_a_request_that_came_too_slowly_or_too_early_is_repeated(status: int, fetch: Fetch) -> None:
    record = fetch.one(f"/status/{status}/1/1.png")
    assert record.error == ""
    assert fetch.server.requests[f"/status/{status}/1/1.png"] == 2


@pytest.mark.parametrize("body", [b'{"error": 1}', b"%PDF-1.7", b"[]", "<html>".encode("utf-16")])
def test_another_file_that_is_called_a_picture_is_none(body: bytes) -> None:
    with pytest.raises(DownloadError) as caught:
        is_picture(body + bytes(300), "image/jpeg", is_whole=True)
    assert caught.value.kind == "NotAnImage"


def test_a_picture_is_in_its_place_only_when_it_is_whole(fetch: Fetch, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    options = SourceOptions(store=folder)
    records = iter([web_record(fetch.server.url(path), options) for path in ("/ok/1.png", "/stall/500000/2.png")])
    iterator = Downloads(options, tmp_path / "temporary").ahead(records)
    next(iterator)
    wait_until(lambda: len(files_in(folder)) == 2)  # the second is being received, into a file since it is large
    assert len(files_in(folder / PARTIAL)) == 1
    iterator.close()
    assert files_in(folder) == [Path(path_in(folder, fetch.server.url("/ok/1.png")))]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can have more than 20,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [30_000, 60_000, 100_000, 1_000_000])
@pytest.mark.parametrize("in_store", [True, False])
def test_a_full_disk_ends_the_run(size: int, in_store: bool, fetch: Fetch, tmp_path: Path, full_disk: None) -> None:
    path = f"/ok/{size}/1.png"
    if not in_store and size <= temporary.MEMORY_BYTES:
        assert len(content_of(fetch.one(path))) == size
        return
    begun = time.monotonic()
    with pytest.raises(UserError, match=r": File too large: free some disk space or name another folder, then rerun"):
        fetch(*(f"/slow/9000/{number}.png" for number in range(3)), path, store=tmp_path / "s" if in_store else None)
    assert time.monotonic() - begun < 5
    assert not files_in(tmp_path)
    assert fetch.server.requests[path] == 1


def test_a_full_disk_is_told_of_once(full_disk: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written is still to be written when the file is closed."""
    monkeypatch.setattr(temporary, "MEMORY_BYTES", 10)
    with pytest.raises(UserError), Incoming(tmp_path) as incoming:
        for _ in range(1000):
            incoming.write(b"x" * 100)
    assert not files_in(tmp_path)


def test_a_store_that_cannot_be_written_ends_the_run(fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(UserError, match=r"store: .*: free some disk space or name another folder"):
        fetch.one("/ok/1.png", store=tmp_path / "store")


# Without a store


def test_without_a_store_a_large_picture_goes_with_its_record(fetch: Fetch, tmp_path: Path) -> None:
    records = fetch("/ok/200000/1.png", "/ok/2.png")
    assert {type(record.values["content"]) for record in records} == {InMemory, TemporaryFile}
    assert len(files_in(tmp_path)) == 1
    assert len({record.values["content"].identity() for record in records}) == 2
    del records
    gc.collect()
    assert not files_in(tmp_path)


@pytest.mark.parametrize("size", [5000, 200_000])
def test_other_bytes_are_told_by_the_identity(size: int, fetch: Fetch) -> None:
    paths = [f"/ok/{size}/1.png", f"/ok/{size}/2.png", f"/ok/{size}/a/1.png"]
    identities = {record.key: record.values["content"].identity() for record in fetch(*paths)}
    first, second, same = (identities[fetch.server.url(path)] for path in paths)
    assert first == same != second


def test_temporary_files_are_removed_at_the_start_and_the_end(fetch: Fetch, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    (folder / "old").touch()
    downloads = Downloads(SourceOptions(), folder)
    assert not files_in(tmp_path)
    options = SourceOptions()
    kept = list(downloads.ahead([web_record(fetch.server.url("/ok/200000/1.png"), options)]))
    assert files_in(tmp_path)
    downloads.close()
    assert kept and not folder.exists()


@pytest.mark.parametrize("size", [10, 100_000])
def test_content_of_bytes(size: int, tmp_path: Path) -> None:
    content = temporary_content(b"x" * size, "version", "https://host/a", tmp_path / "made" / "for it")
    assert (content.read(), content.identity(), content.link) == (b"x" * size, "version", "https://host/a")
    assert len(files_in(tmp_path)) == (size > 65_536)
    if size > 65_536:  # a copy would lose its file with the original
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(content)
    else:
        assert pickle.loads(pickle.dumps(content)) == content
    del content
    gc.collect()
    assert not files_in(tmp_path)


def test_a_file_in_the_folder_of_the_system_is_nobody_elses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(temporary.tempfile, "tempdir", str(tmp_path))
    content = temporary_content(b"x" * 100_000, "")
    assert [path.stat().st_mode & 0o777 for path in files_in(tmp_path)] == [0o600]
    del content


def test_folders_of_the_store_may_be_made_by_another(tmp_path: Path) -> None:
    for _ in range(2):
        store.make_folders(str(tmp_path / "ab" / "cd"))
    assert (tmp_path / "ab" / "cd").is_dir()


# Outside of a run


def test_a_picture_is_read_outside_of_a_run(server: HttpServer, tmp_path: Path) -> None:
    options = SourceOptions(store=tmp_path / "store")
    content = web_record(server.url("/ok/1.png"), options).values["content"]
    with pytest.raises(OSError, match="not downloaded"):
        content.identity()
    assert content.read() == content.read() == picture(1)
    assert server.requests["/ok/1.png"] == 1
    assert content.identity() == stored(tmp_path / "store", server.url("/ok/1.png")).identity()  # type: ignore[union-attr]
    with pytest.raises(OSError, match="HTTP404: Not Found"):
        web_record(server.url("/status/404/9/1.png"), options).values["content"].read()
    assert web_record(server.url("/ok/200000/2.png"), SourceOptions()).values["content"].read().startswith(picture(2))


def test_reading_from_the_store_needs_no_client(fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads may not write there, or has no network."""
    options = SourceOptions(store=tmp_path / "store")
    record = fetch.one("/ok/1.png", store=options.store)
    monkeypatch.delattr(client, "Client")
    assert web_record(record.key, options).values["content"].read() == picture(1)


# Many at once


def record_of(key: object, **values: Any) -> Record:
    return Record(str(key), {"content": InMemory(b"", "", ""), **values})


@dataclass(frozen=True)
class Remote:
    """Content whose fetch does what a test says."""

    do: Callable[[Any], Any]
    link: str = ""

    async def fetch(self, client: Any) -> Fetched:
        return Fetched(temporary_content(await self.do(client), ""), {})


def remote_record(key: object, do: Callable[[Any], Any]) -> Record:
    return Record(str(key), {"content": Remote(do)})


async def at_once(client: object) -> bytes:
    return b"here"


async def never(client: object) -> bytes:
    await asyncio.sleep(3600)
    return b""


def wait_until(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def threads_of_downloads() -> list[str]:
    names = ("download", "reading", "saving")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]


def test_local_records_need_no_thread_and_stay_in_order(tmp_path: Path) -> None:
    records = [record_of(1), Record("2", error="source: broken"), record_of(3), Record("4")]
    downloads = Downloads(SourceOptions(), tmp_path / "temporary")
    for got, record in zip(downloads.ahead(iter(records)), records, strict=True):
        assert got is record
        assert not threads_of_downloads()
    assert downloads.ready() == 0
    assert not downloads.is_active
    assert downloads.statistics.line() == ""
    downloads.close()


def test_aiohttp_is_loaded_with_the_first_remote_record_only() -> None:
    program = (
        "import sys; from pathlib import Path; from vec_pipeline.downloads import Downloads\n"
        "from vec_pipeline.record import Record, SourceOptions; from vec_pipeline.sources.url import Url\n"
        "record, = Url('https://host/a.png')\n"
        "list(Downloads(SourceOptions(), Path('none')).ahead([Record('a')]))\n"
        "assert not {'aiohttp', 'yarl', 'PIL', 'asyncio', 'numpy'} & set(sys.modules) - {'asyncio'}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_records_come_in_the_order_in_which_they_arrive(fetch: Fetch) -> None:
    first, second = fetch("/slow/400/1.png", "/ok/2.png")
    assert (first.key, second.key) == (fetch.server.url("/ok/2.png"), fetch.server.url("/slow/400/1.png"))


def test_what_needs_no_download_passes_at_once(tmp_path: Path) -> None:
    failed = Record("failed", {"content": Remote(never)}, "source: broken")
    records = [remote_record("remote", never), record_of("local"), failed]
    iterator = Downloads(SourceOptions(), tmp_path / "temporary").ahead(records)
    assert {next(iterator).key, next(iterator).key} == {"local", "failed"}
    iterator.close()


def test_an_item_is_begun_when_it_is_read(tmp_path: Path) -> None:
    """A list that is read from a pipe may have its next line in an hour."""
    go_on = threading.Event()

    def slowly() -> Iterator[Record]:
        yield remote_record(1, at_once)
        go_on.wait(10)
        yield remote_record(2, at_once)

    downloads = Downloads(SourceOptions(), tmp_path / "temporary")
    iterator = downloads.ahead(slowly())
    assert next(iterator).key == "1" and not go_on.is_set()
    assert downloads.is_active
    go_on.set()
    wait_until(lambda: downloads.ready() == 1)
    assert [record.key for record in iterator] == ["2"]


@pytest.mark.parametrize(("at_once", "per_host", "most"), [(4, 32, 4), (32, 3, 3)])
def test_so_many_at_once(at_once: int, per_host: int, most: int, fetch: Fetch) -> None:
    paths = [f"/slow/30/{number}.png" for number in range(30)]
    fetch(*paths, downloads_at_once=at_once, downloads_per_host=per_host)
    assert fetch.server.most_at_once == most


def test_a_busy_host_does_not_keep_others_waiting(fetch: Fetch) -> None:
    with HttpServer() as other:
        urls = [*(f"/slow/800/{number}.png" for number in range(6)), *map(other.url, ("/ok/1.png", "/ok/2.png"))]
        records = fetch(*urls, downloads_per_host=2, downloads_at_once=4)
        assert {record.key for record in records[:2]} == set(urls[-2:])


def test_a_host_with_much_to_fetch_leaves_turns_to_others(fetch: Fetch) -> None:
    with HttpServer() as other:
        urls = [*(f"/slow/50/{number}.png" for number in range(40)), other.url("/ok/1.png")]
        keys = [record.key for record in fetch(*urls, downloads_at_once=4)]
        assert keys.index(urls[-1]) < 12


def test_who_waits_for_another_try_keeps_no_one_waiting(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_S", 1.0)
    begun = time.monotonic()
    records = fetch("/status/500/1/1.png", "/ok/2.png", downloads_at_once=1)
    assert time.monotonic() - begun >= 0.5
    assert [record.key for record in records] == [
        fetch.server.url("/ok/2.png"),
        fetch.server.url("/status/500/1/1.png"),
    ]


def test_no_more_is_read_than_fits_into_the_window(tmp_path: Path) -> None:
    read = 0

    def endless() -> Iterator[Record]:
        nonlocal read
        while True:
            read += 1
            yield remote_record(read, at_once)

    downloads = Downloads(SourceOptions(), tmp_path / "temporary")
    iterator = downloads.ahead(endless())
    for taken in (1, 1500):
        for _ in range(taken):
            next(iterator)
        wait_until(lambda: downloads.ready() >= ahead.WINDOW - ahead.REFILL)
        time.sleep(0.1)
    assert 1501 + ahead.WINDOW - ahead.REFILL <= read <= 1501 + ahead.WINDOW
    iterator.close()


def test_every_record_comes_once(tmp_path: Path) -> None:
    """Local ones, remote ones and failures, several times as many as the window holds."""

    async def fails(client: object) -> bytes:
        raise DownloadError("Kind", "message")

    def records() -> Iterator[Record]:
        for number in range(5000):
            yield record_of(number) if number % 3 else remote_record(number, at_once if number % 2 else fails)

    downloads = Downloads(SourceOptions(), tmp_path / "temporary")
    got = list(downloads.ahead(records()))
    assert sorted(int(record.key) for record in got) == list(range(5000))
    assert (
        sum(record.error == "download: Kind: message" for record in got) == downloads.statistics.failed["Kind"] == 834
    )
    assert not threads_of_downloads()


def test_whatever_a_library_raises_is_an_error_of_the_record(tmp_path: Path) -> None:
    async def fails(client: object) -> bytes:
        raise ZeroDivisionError("by nothing")

    records = Downloads(SourceOptions(), tmp_path).ahead([remote_record(1, fails), remote_record(2, at_once)])
    assert sorted(record.error for record in records) == ["", "download: ZeroDivisionError: by nothing"]


def test_an_exception_of_the_source_comes_after_what_it_gave(fetch: Fetch) -> None:
    def failing() -> Iterator[Record]:
        yield web_record(fetch.server.url("/slow/300/1.png"), SourceOptions())
        raise UserError("the list cannot be read")

    got = []
    with pytest.raises(UserError, match="the list cannot be read"):
        got.extend(Downloads(SourceOptions(), fetch.folder).ahead(failing()))
    got = []
    iterator = Downloads(SourceOptions(), fetch.folder).ahead(failing())
    with pytest.raises(UserError):
        for record in iterator:
            got.append(content_of(record))
    assert got == [picture(1)]
    assert not threads_of_downloads()


@pytest.mark.parametrize("what", ["iterator", "downloads"])
@pytest.mark.parametrize("in_store", [True, False])
def test_closing_ends_all_within_a_second(in_store: bool, what: str, fetch: Fetch, tmp_path: Path) -> None:
    options = SourceOptions(store=tmp_path / "store" if in_store else None)
    blocked = threading.Event()

    def endless() -> Iterator[Record]:
        yield web_record(fetch.server.url("/ok/1.png"), options)
        if not in_store:
            for number in range(5):  # that have arrived, and nobody takes
                yield web_record(fetch.server.url(f"/ok/100000/{number}.png"), options)
        for number in range(50):
            yield web_record(fetch.server.url(f"/stall/300000/{number}.png"), options)
        blocked.wait(10)

    downloads = Downloads(options, tmp_path / "temporary")
    iterator = downloads.ahead(endless())
    next(iterator)
    wait_until(lambda: len(files_in(tmp_path)) > 30 and downloads.ready() == 5 * (not in_store))
    begun = time.monotonic()
    if what == "iterator":
        iterator.close()
    else:  # as after an exception whose traceback still holds the iterator
        downloads.close()
    assert time.monotonic() - begun < 1.5
    assert len(files_in(tmp_path)) == in_store
    assert threads_of_downloads() == ["reading"]  # which its source holds
    blocked.set()
    wait_until(lambda: not threads_of_downloads())


def test_an_interrupt_ends_the_wait(server: HttpServer, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from vec_pipeline.downloads import Downloads\n"
        "from vec_pipeline.downloads.web import web_record; from vec_pipeline.record import SourceOptions\n"
        "options = SourceOptions()\n"
        "list(Downloads(options, Path(sys.argv[1])).ahead([web_record(sys.argv[2], options)]))\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "temporary"), server.url("/stall/300000/1.png")]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(files_in(tmp_path)) == 1, 30)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert time.monotonic() - begun < 2.5
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert not files_in(tmp_path)


async def granted(turn: "asyncio.Task[None]") -> bool:
    for _ in range(3):
        await asyncio.sleep(0)
    return turn.done()


def test_slots_are_not_lost_with_who_waits_for_them() -> None:
    async def main() -> None:
        slots = Slots(1, 1)
        host, other = slots.host("host"), slots.host("other")
        await slots.take(host)
        first, second, third = (asyncio.create_task(slots.take(each)) for each in (host, host, other))
        assert not await granted(first)
        first.cancel()  # while it waits
        await granted(first)
        slots.give(host)
        assert await granted(second) != await granted(third)
        last, owner = (third, host) if second.done() else (second, other)
        slots.give(owner)
        last.cancel()  # once it has the slot, and before it knows
        await granted(last)
        await asyncio.wait_for(slots.take(host), 1)
        slots.give(host)

    asyncio.run(main())


def test_hosts_take_turns() -> None:
    async def main() -> None:
        slots = Slots(1, 1)
        hosts = [slots.host(name) for name in "abc"]
        await slots.take(hosts[0])
        turns: list[str] = []

        async def turn(name: str) -> None:
            await slots.take(slots.host(name))
            turns.append(name)
            slots.give(slots.host(name))

        waiting = [asyncio.create_task(turn(name)) for name in "bbbccc"]
        await asyncio.sleep(0)
        slots.give(hosts[0])
        await asyncio.gather(*waiting)
        assert turns == list("bcbcbc")

    asyncio.run(main())


@pytest.mark.parametrize("pauses_s", [(0.05, 0.3), (0.3, 0.05)])
def test_the_longest_pause_counts(pauses_s: tuple[float, float]) -> None:
    async def main() -> None:
        slots = Slots(4, 4)
        host = slots.host("host")
        for seconds in pauses_s:
            slots.pause(host, seconds)
        begun = time.monotonic()
        await slots.take(host)
        assert 0.28 <= time.monotonic() - begun < 0.6
        assert host.running == 1

    asyncio.run(main())


def test_a_host_is_forgotten_when_nobody_needs_it() -> None:
    """A list of ten million addresses may have as many hosts."""

    async def main() -> None:
        slots = Slots(4, 4)
        host = slots.host("host")
        await slots.take(host)
        slots.give(host)
        slots.pause(host, 0.01)
        await asyncio.sleep(0.05)
        assert slots.host("host") is host
        del host
        gc.collect()
        assert not slots._hosts and not slots._line and not slots._resumes

    asyncio.run(main())


def test_calls_in_threads_survive_one_that_is_cancelled() -> None:
    async def main() -> None:
        threads = Threads(2)
        go_on = threading.Event()
        cancelled = asyncio.create_task(threads.call(lambda: go_on.wait(5)))
        other = asyncio.create_task(threads.call(lambda: go_on.wait(5)))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        go_on.set()
        assert await asyncio.wait_for(other, 5)
        with pytest.raises(ZeroDivisionError):
            await threads.call(lambda: 1 // 0)
        threads.close()

    failures: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    loop.run_until_complete(main())
    loop.close()
    assert not failures


# Content that a library reads


def read_by(tmp_path: Path, what: Callable[[], bytes], **options: Any) -> tuple[Record, Downloads]:
    async def do(client: Any) -> bytes:
        content: bytes = (await client.read(what, "s3://bucket/a.png")).content.read()
        return content

    downloads = Downloads(SourceOptions(**options), tmp_path / "temporary")
    (record,) = downloads.ahead([remote_record(1, do)])
    return record, downloads


def raising(*errors: Exception) -> Callable[[], bytes]:
    left = iter(errors)

    def what() -> bytes:
        if error := next(left, None):
            raise error
        return b"x" * 100_000

    return what


def test_a_library_is_called_in_a_thread_and_again(tmp_path: Path) -> None:
    record, downloads = read_by(tmp_path, raising(TimeoutError(), OSError("busy"), RuntimeError("reset")))
    assert content_of(record) == b"x" * 100_000
    wait_until(lambda: not threads_of_downloads())
    assert (downloads.statistics.ok, downloads.statistics.bytes) == (1, 100_000)


@pytest.mark.parametrize("options", [{"downloads_at_once": 2}, {"downloads_per_host": 2}])
def test_so_many_calls_at_once(options: dict[str, Any], tmp_path: Path) -> None:
    """Those of one bucket count as of one host."""
    running, most = 0, 0

    def what() -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)
        running -= 1
        return b"x"

    def record(number: int) -> Record:
        return remote_record(number, lambda client: read(client, f"s3://bucket/{number}.png"))

    async def read(client: Any, link: str) -> bytes:
        return bytes((await client.read(what, link)).content.read())

    records = list(Downloads(SourceOptions(**options), tmp_path / "temporary").ahead(map(record, range(8))))
    assert [record.error for record in records] == [""] * 8
    assert most == 2


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (FileNotFoundError("a.png"), {}, "FileNotFoundError: a.png"),
        (PermissionError("Access denied"), {}, "PermissionError: Access denied"),
        (DownloadError("TooLarge", "too large"), {}, "TooLarge: too large"),
        (TimeoutError(), {"download_attempts": 1}, "Timeout: it was not read within download_timeout_s"),
        (OSError("at sftp://user:hidden@host/a"), {"download_attempts": 1}, "OSError: at sftp://host/a"),
    ],
)
def test_what_a_library_raises_for_good(
    error: Exception, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    record, downloads = read_by(tmp_path, raising(error), **options)  # a second call would succeed
    assert record.error == f"download: {message}"
    assert downloads.statistics.failed.total() == 1


def test_a_library_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    def what() -> bytes:
        time.sleep(1)
        return b""

    begun = time.monotonic()
    record, _ = read_by(tmp_path, what, download_timeout_s=0.1, download_attempts=2)
    assert kind_of(record) == "Timeout"
    assert time.monotonic() - begun < 1


def test_what_a_library_reads_is_bounded(tmp_path: Path) -> None:
    record, _ = read_by(tmp_path, lambda: b"x" * 1_000_001, max_download_mb=1)
    assert record.error == "download: TooLarge: more than max_download_mb (1)"


def test_a_mistake_of_the_user_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set a password"):
        read_by(tmp_path, raising(UserError("set a password")))


# Statistics


def test_the_line_of_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    statistics = Statistics()
    assert statistics.line() == ""
    statistics.note_request()
    for _ in range(1234):
        statistics.note_ok()
    statistics.note_bytes(24_600_000)
    now = 101.0
    statistics.note_request()  # time counts from the first one
    now = 102.0
    assert statistics.line() == "1,234 fetched, 12.3 MB/s"
    for kind, number in (("HTTP404", 40), ("Timeout", 10), ("NoAI", 3), ("TooLarge", 2), ("Truncated", 1), ("X", 1)):
        for _ in range(number):
            statistics.note_failure(kind)
    statistics.note_found()
    assert statistics.line() == (
        "1,234 fetched, 1 in the store, 57 failed (HTTP404 40, Timeout 10, NoAI 3, TooLarge 2, others 2), 12.3 MB/s"
    )


def test_only_what_is_fetched_counts(fetch: Fetch, tmp_path: Path) -> None:
    fetch("/ok/1.png", "/ok/2.png", "/status/404/9/1.png", store=tmp_path / "store")
    assert fetch.statistics and (fetch.statistics.ok, fetch.statistics.failed) == (2, {"HTTP404": 1})
    assert fetch.statistics.bytes == len(picture(1)) + len(picture(2))
    assert fetch.statistics.mb_per_s > 0
    assert os.path.exists(store.path_in(tmp_path / "store", fetch.server.url("/ok/1.png")))


# The program


CONFIG = f"""
stages: [{{use: open_image, max_size_px: 112}}, {{use: embed_image, model: {PROJECT}/models/demo/clip, device: cpu}}]
"""


def annotated(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the program; return what it said, and the rows by their keys."""
    (folder / "config.yaml").write_text(CONFIG)
    command = [sys.executable, str(PROJECT / "run.py"), *arguments, "--config", str(folder / "config.yaml")]
    output = folder / "rows.csv"
    process = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, timeout=240)
    return process, load_annotations(output).set_index("image_path").to_dict("index")


@pytest.mark.parametrize("store", ["auto", "none"])
def test_a_run_annotates_what_it_fetches(store: str, server: HttpServer, tmp_path: Path) -> None:
    private = server.url("/ok/2.png?token=hidden").replace("//", "//user:hidden@", 1)
    urls = [server.url("/ok/1.png"), private, server.url("/status/404/1/3.png"), server.url("/ok/100000/4.png")]
    process, rows = annotated(tmp_path, *urls, "--set", f"store={store}")
    assert process.returncode == 1, process.stderr
    assert "3 fetched, 1 failed (HTTP404 1), " in process.stdout + process.stderr
    keys = [urls[0], server.url("/ok/2.png?token=~99d72c7f"), *urls[2:]]
    assert set(rows) == set(keys)
    assert [rows[key]["source_url"] for key in keys] == keys
    assert [rows[key]["http_status"] for key in keys] == [200, 200, 404, 200]
    assert [bool(rows[key]["error"]) for key in keys] == [False, False, True, False]
    assert rows[keys[2]]["error"] == "download: HTTP404: Not Found"
    assert (tmp_path / "rows.images").exists() == (store == "auto") and not (tmp_path / "rows.downloads").exists()
    assert not [path for path in files_in(tmp_path) if b"hidden" in path.read_bytes()]

    process, rows = annotated(tmp_path, *urls, "--set", f"store={store}", "--retry-errors")
    assert process.returncode == 0, process.stderr
    assert rows[keys[2]]["http_status"] == 200
    assert set(server.requests.values()) == {1, 2} and server.requests["/status/404/1/3.png"] == 2
