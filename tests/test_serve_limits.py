"""The server and what does not mean it well: slow, endless, damaged and absurd requests, and clients that leave."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest
import uvicorn
from fastapi import HTTPException
from PIL import Image

from tests.conftest import PROJECT
from tests.test_serve import Server, id_of, running, wait_until
from vec_pipeline import load_annotations
from vec_pipeline.commands.serve import api as api_module
from vec_pipeline.commands.serve import rows as rows_module
from vec_pipeline.commands.serve import server as server_module
from vec_pipeline.commands.serve.access import kept_hash
from vec_pipeline.commands.serve.api import create_app
from vec_pipeline.commands.serve.intake import Intake
from vec_pipeline.commands.serve.limits import BODY_KEPT, LARGEST_AT_ONCE, Limited
from vec_pipeline.commands.serve.rows import Rows
from vec_pipeline.config import load_config
from vec_pipeline.record import COLUMNS, Record, UserError
from vec_pipeline.sinks.csv_file import CsvFile

STAGES = "stages:\n  - {use: open_image}\n"
HELD = '''
import time
from dataclasses import dataclass
from pathlib import Path

from vec_pipeline.record import Stage

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Held(Stage):
    """Waits as long as there is a file `hold`, fails while there is one `fail`, and notes the widths it has seen."""

    reads = ("image",)
    writes = {"width": "number", "tone": "vector"}
    batch_size: int = 4

    def run(self, model, rows, at_once):
        with (FOLDER / "seen").open("a") as file:
            file.writelines(f"{row['image'].width}\\\\n" for row in rows)
        while (FOLDER / "hold").exists():
            time.sleep(0.01)
        if (FOLDER / "fail").exists():
            raise ValueError("as asked")
        return [{"width": row["image"].width, "tone": [0.5, 1]} for row in rows]
'''.replace("\\\\n", "\\n")


FILED = """
from dataclasses import dataclass

from vec_pipeline.record import Stage


@dataclass(frozen=True, kw_only=True)
class Filed(Stage):  # writes a file for the last digit of the width

    reads = ("image",)
    writes = {"sound": "file"}

    def run(self, model, rows, at_once):
        (self.csv_folder / "audio").mkdir(exist_ok=True)
        names = [f"audio/{row['image'].width % 10}" for row in rows]
        for name in names:
            (self.csv_folder / name).touch()
        return [{"sound": name} for name in names]
"""


def picture(width: int) -> bytes:
    """A small picture that can be told by its width."""
    target = BytesIO()
    Image.new("RGB", (width, 20), "red").save(target, "PNG")
    return target.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a server that starts quickly, and whose one stage does what files ask for."""
    folder = tmp_path_factory.mktemp("held")
    (folder / "held.py").write_text(HELD)
    (folder / "held.yaml").write_text(STAGES + "  - {use: held.Held}\nchunk_size: 1\n")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with running(folder / "a.csv", "--most-waiting", "3", "--max-upload-mb", "1", config=folder / "held.yaml") as made:
        yield made


@pytest.fixture
def hold(folder: Path) -> Iterator[Callable[[], None]]:
    """Nothing leaves the stage until this is called, or the test ends."""
    (folder / "hold").touch()
    yield (folder / "hold").unlink
    (folder / "hold").unlink(missing_ok=True)


def waiting(server: Server) -> int:
    number: int = server.client.get("/healthz").json()["waiting"]
    return number


def uploads_in(folder: Path) -> list[Path]:
    return [path for path in (folder / "a.uploads").rglob("*") if path.is_file()]


def seen(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "seen").read_text().split()] if (folder / "seen").exists() else []


def upload(server: Server, content: bytes) -> bytes:
    """A request, as it is sent."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    body = head + content + b"\r\n--b--\r\n"
    length = f"Content-Length: {len(body)}\r\n\r\n".encode()
    return request(server, "POST", "/v1/annotations")[:-2] + length + body


@contextlib.contextmanager
def leaving(server: Server, content: bytes) -> Iterator[Callable[[], None]]:
    """An upload whose client hangs up when this is called."""
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        connection.sendall(upload(server, content))
        yield connection.close


def request(server: Server, method: str, path: str) -> bytes:
    """The headers of a request."""
    of_form = "Content-Type: multipart/form-data; boundary=b\r\n" if method == "POST" else ""
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{of_form}\r\n".encode()


# --- rows with errors


def test_an_upload_that_failed_is_tried_again_and_stays_one_row(folder: Path, server: Server) -> None:
    (folder / "fail").touch()
    failed = [server.post(picture(31)) for _ in range(3)]
    assert [(each.status_code, each.json()["error"]) for each in failed] == [(200, "held: ValueError: as asked")] * 3
    (folder / "fail").unlink()
    assert server.post(picture(31)).json()["width"] == 31
    assert server.client.get(f"/v1/annotations/{id_of(failed[0])}").json()["error"] == ""
    table = load_annotations(folder / "a.csv")
    assert table["image_path"].is_unique


def test_a_second_try_replaces_the_row_and_is_found_until_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "MOST_KEPT", 1)
    names = [f"{number:032x}" for number in range(3)]
    keys = [str(tmp_path / f"{name}.png") for name in names]
    sink = CsvFile(tmp_path / "a.csv", retry_errors=True)
    rows = Rows(COLUMNS, sink)
    rows.save([Record(keys[0], error="held: ValueError: as asked")])
    assert rows.has(keys[0]) and not rows.has_result(keys[0])
    rows.save([Record(keys[0], {"text": "better"})])
    for key in keys[1:]:
        rows.save([Record(key)])
    assert [(found["text"], found["error"]) for name in names if (found := rows.find(name))] == [("better", "")] + [
        ("", "")
    ] * 2
    assert rows.has_result(keys[0])
    assert sink.close()
    table = load_annotations(tmp_path / "a.csv")
    assert list(table["image_path"]) == keys and list(table["error"]) == [""] * 3 and table["text"][0] == "better"


def test_a_row_with_an_error_is_known_after_a_restart(tmp_path: Path) -> None:
    sink = CsvFile(tmp_path / "a.csv")
    sink.write([Record("/a.png", error="held: ValueError: as asked")])
    sink.close()
    sink = CsvFile(tmp_path / "a.csv", retry_errors=True)
    rows = Rows(COLUMNS, sink)
    assert rows.has("/a.png") and not rows.has_result("/a.png")
    sink.close()


def test_rows_that_are_kept_nowhere_any_more_take_their_pictures_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "MOST_KEPT", 2)
    with in_process(tmp_path, monkeypatch, ephemeral=True) as client:
        names = [
            client.post("/v1/annotations", files={"file": ("a", picture(width))}).headers["location"]
            for width in (20, 21, 22, 23)
        ]
        assert [client.get(name).status_code for name in names] == [404, 404, 200, 200]
        assert [client.get(f"{name}/image").status_code for name in names] == [404, 404, 200, 200]
        assert client.post("/v1/annotations", files={"file": ("a", picture(20))}).json()["error"] == ""
    assert len(uploads_in(tmp_path)) == 2


def test_files_that_no_row_names_any_more_go(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "MOST_KEPT", 2)
    module = tmp_path_factory.mktemp("stages") / "filed.py"
    module.write_text(FILED)
    monkeypatch.syspath_prepend(module.parent)

    def left_after(client: httpx2.Client, *widths: int) -> set[str]:
        for width in widths:
            row = client.post("/v1/annotations", files={"file": ("a", picture(width))}).json()
            assert (tmp_path / row["sound"]).exists()
        return {path.name for path in (tmp_path / "audio").iterdir()}

    with in_process(tmp_path, monkeypatch, ephemeral=True, stages="  - {use: filed.Filed}\n") as client:
        assert left_after(client, 20, 21, 120) == {"0", "1"}, "that of the first is the third's as well"
        assert left_after(client, 22) == {"0", "2"}
        with monkeypatch.context() as patched:
            patched.setattr(Intake, "texts_at_work", lambda _: {"audio/2"})
            assert left_after(client, 23, 24) == {"2", "3", "4"}, "an upload at work has it"
    with in_process(tmp_path, monkeypatch, stages="  - {use: filed.Filed}\n") as client:
        assert {"5", "6", "7"} <= left_after(client, 25, 26, 27), "the CSV keeps all rows"


def test_a_picture_with_too_many_pixels_is_a_row_with_an_error(server: Server) -> None:
    bomb = bytearray(picture(20))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height
    import zlib

    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    response = server.post(bytes(bomb))
    assert "TooManyPixels" in response.json()["error"]
    assert server.client.get(f"/v1/annotations/{id_of(response)}/image").status_code == 422


# --- what leaves no trace


def test_a_refused_upload_leaves_no_file(folder: Path, server: Server, hold: Callable[[], None]) -> None:
    before = len(uploads_in(folder))
    responses = [server.post(picture(width), params={"wait_s": 0}) for width in range(41, 46)]
    assert [each.status_code for each in responses] == [202, 202, 202, 429, 429]
    assert int(responses[-1].headers["retry-after"]) > 0
    assert len(uploads_in(folder)) == before + 3
    hold()
    wait_until(lambda: waiting(server) == 0)


def test_a_request_that_is_refused_halfway_leaves_nothing(
    folder: Path, server: Server, hold: Callable[[], None]
) -> None:
    before = len(uploads_in(folder))
    assert server.post(picture(65), params={"wait_s": 0}).status_code == 202
    response = server.post(*map(picture, range(62, 65)), params={"wait_s": 0})
    assert response.status_code == 429
    hold()
    wait_until(lambda: waiting(server) == 0)
    wait_until(lambda: len(uploads_in(folder)) == before + 1)


def test_who_leaves_gives_up_a_place_even_in_a_chunk_and_the_picture_goes(
    folder: Path, server: Server, hold: Callable[[], None]
) -> None:
    before = len(uploads_in(folder))
    server.post(picture(51), params={"wait_s": 0})
    wait_until(lambda: 51 in seen(folder))
    with leaving(server, picture(52)) as leave:
        wait_until(lambda: waiting(server) == 2)
        time.sleep(0.2)  # it is in the next chunk by now, and read
        leave()
        wait_until(lambda: waiting(server) == 1)
    assert len(uploads_in(folder)) == before + 1
    hold()
    wait_until(lambda: waiting(server) == 0)
    assert 52 not in seen(folder)
    assert server.post(picture(52)).json()["width"] == 52


def test_an_upload_that_is_awaited_or_promised_outlives_a_client_that_leaves(
    folder: Path, server: Server, hold: Callable[[], None]
) -> None:
    promised = server.post(picture(61), params={"wait_s": 0}).json()["id"]
    with ThreadPoolExecutor() as pool, leaving(server, picture(61)) as leave, leaving(server, picture(62)) as leave_too:
        wait_until(lambda: waiting(server) == 2)
        other = pool.submit(server.post, picture(62))
        time.sleep(0.3)
        leave()
        leave_too()
        time.sleep(0.5)
        hold()
        assert other.result(30).json()["width"] == 62
    wait_until(lambda: waiting(server) == 0)
    assert server.client.get(f"/v1/annotations/{promised}").json()["width"] == 61


def test_several_pictures_are_checked_before_one_is_kept(folder: Path, server: Server) -> None:
    before = uploads_in(folder)
    assert server.post(picture(71), b"#!/bin/sh").status_code == 415
    refused = server.post(*map(picture, range(71, 75)))
    assert refused.status_code == 422, "and no 429, after which it would be sent again"
    assert refused.json()["detail"].startswith("at most 3 pictures")
    assert uploads_in(folder) == before


# --- requests that cannot be answered, or not as they wish


@pytest.mark.parametrize("charset", ["unicode_escape", "raw_unicode_escape", "hex", "utf-7", "undefined"])
def test_a_text_of_no_characters_is_refused(server: Server, charset: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="stages"\r\n\r\n\\ud800\r\n--b--\r\n'
    headers = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
    response = server.client.post("/v1/annotations", content=body, headers=headers)
    assert response.status_code in (400, 422)
    assert isinstance(response.json()["detail"], str)


def test_a_refusal_is_a_sentence_that_repeats_nothing(server: Server) -> None:
    files = {"detail": ("secret.bin", b"\xff\xfe secret"), "file": ("a.png", picture(20))}
    response = server.client.post("/v1/annotations", files=files)
    assert response.status_code == 422
    assert response.json() == {"detail": "detail: Input should be 'brief', 'normal' or 'full'"}


def test_a_column_that_is_no_file_has_no_audio(server: Server) -> None:
    name = id_of(server.post(picture(20)))
    for column in ("", "tone", "width", "image_path", "nothing"):
        assert server.client.get(f"/v1/annotations/{name}/audio", params={"column": column}).status_code == 404


def test_head_is_answered_as_get_without_a_body(server: Server) -> None:
    name = id_of(server.post(picture(20)))
    for path in ("/", "/healthz", f"/v1/annotations/{name}", f"/v1/annotations/{name}/image"):
        head, get = server.client.head(path), server.client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(get.content))
    assert server.client.head("/nothing").status_code == 404


def test_thousands_of_parts_are_refused_at_once(server: Server) -> None:
    parts = b"".join(b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nx\r\n' for _ in range(5000))
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = server.client.post("/v1/annotations", content=parts + b"--b--\r\n", headers=headers)
    assert response.status_code == 400


# --- bodies that there is no room for


def test_nothing_is_received_while_as_many_wait_as_may(server: Server, hold: Callable[[], None]) -> None:
    for width in range(44, 47):
        assert server.post(picture(width), params={"wait_s": 0}).status_code == 202
    head = request(server, "POST", "/v1/annotations")[:-2] + b"Content-Length: 900000\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection((server.host, server.port), timeout=20) as connection:
        connection.sendall(head)
        reply = connection.recv(4000).lower()
        assert reply.startswith(b"http/1.1 429 ") and b"retry-after: 2" in reply and b"connection: close" in reply
    hold()
    wait_until(lambda: waiting(server) == 0)


def answers_to(bodies: Sequence[Sequence[bytes]], *, is_announced: bool, is_kept: bool) -> list[int]:
    """The statuses of requests of 100 bytes at most, each of which sends its parts and then waits for the others.

    is_kept: the application says of each that it is kept.
    """
    statuses: list[int] = []
    arrived = asyncio.Semaphore(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        if is_kept:
            scope[BODY_KEPT]()
        arrived.release()
        await may_end.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def one(parts: Sequence[bytes]) -> None:
        left = list(parts)

        async def receive() -> Any:
            return {"type": "http.request", "body": left.pop(0) if left else b"", "more_body": bool(left)}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
                arrived.release()

        length = [(b"content-length", str(sum(map(len, parts))).encode())] if is_announced else []
        await limited({"type": "http", "method": "POST", "path": "/", "headers": length}, receive, send)

    async def every() -> None:
        tasks = []
        for parts in bodies:
            tasks.append(asyncio.create_task(one(parts)))
            await arrived.acquire()
        may_end.set()
        await asyncio.gather(*tasks)
        await one(bodies[0])

    may_end = asyncio.Event()
    limited = Limited(app, "", frozenset(), 100, body_s=5)
    asyncio.run(asyncio.wait_for(every(), 20))
    return statuses


@pytest.mark.parametrize("is_announced", [True, False])
def test_the_bodies_of_all_requests_have_a_limit_until_they_are_kept(is_announced: bool) -> None:
    bodies = [[bytes(40), bytes(60)]] * (LARGEST_AT_ONCE + 2)
    refused = answers_to(bodies, is_announced=is_announced, is_kept=False)
    assert sorted(refused) == [200] * (LARGEST_AT_ONCE + 1) + [429] * 2, "there is room again afterwards"
    assert set(answers_to(bodies, is_announced=is_announced, is_kept=True)) == {200}


def test_a_body_is_kept_before_its_row_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    made = create_app

    def app_of(service: Any) -> Any:
        app = made(service)

        async def noting(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, BODY_KEPT: lambda: kept.append(scope["path"])}, receive, send)

        return noting

    monkeypatch.setitem(globals(), "create_app", app_of)
    with in_process(tmp_path, monkeypatch) as client:
        assert client.post("/v1/annotations", files={"file": ("a", picture(20))}).status_code == 200
    assert kept == ["/v1/annotations"]


def test_few_uploads_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most = 0, 0
    lock = threading.Lock()

    def take(service: Any, content: bytes, asked: Any) -> str:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.1)
        with lock:
            at_once -= 1
        raise HTTPException(507, "no room")

    monkeypatch.setattr(api_module, "take", take)
    with in_process(tmp_path, monkeypatch, fetch=lambda url: b"") as client, ThreadPoolExecutor(6) as pool:
        files = [{"files": {"file": ("a", picture(20))}}] * 4 + [{"data": {"url": "http://a/"}}] * 2
        statuses = {each.status_code for each in pool.map(lambda each: client.post("/v1/annotations", **each), files)}
    assert statuses == {507} and most == api_module.KEPT_AT_ONCE


def test_one_connection_too_many_is_refused_in_the_servers_words(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    monkeypatch.setattr(server_module, "CONNECTIONS", 2)
    with started(app) as port, contextlib.ExitStack() as stack:
        for status in (200, 200, 503):
            client = stack.enter_context(httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20))
            response = client.get("/")
            assert response.status_code == status
    assert response.json() == {"detail": "too many connections: come again"}
    assert response.headers["retry-after"] == "2" and "content-security-policy" in response.headers


# --- how it goes, as events


def test_events_come_again_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "SILENT_S", 0.3)
    monkeypatch.setattr(api_module, "POLL_S", 0.01)
    states = iter([202] * 100 + [200])

    async def is_disconnected() -> bool:
        return False

    async def events() -> list[bytes]:
        monkeypatch.setattr(api_module, "answer_of", lambda *_: (next(states), {}))
        service, request = Namespace(intake=Namespace(ahead=lambda _: 0)), Namespace(is_disconnected=is_disconnected)
        return [each async for each in api_module.progress(service, "a", request)]  # type: ignore[arg-type]

    *waiting, done = asyncio.run(events())
    assert done.startswith(b"event: done") and len(set(waiting)) == 1
    assert 2 < len(waiting) < 50


def test_events_count_who_came_before(server: Server, hold: Callable[[], None]) -> None:
    first, second = (server.post(picture(width), params={"wait_s": 0}).json()["id"] for width in (47, 48))
    for name, ahead in ((first, 0), (second, 1)):
        with server.client.stream("GET", f"/v1/annotations/{name}/events") as stream:
            assert next(iter(stream.iter_text())).endswith(f'"ahead":{ahead}}}\n\n')
    hold()
    wait_until(lambda: waiting(server) == 0)


# --- slow and endless ones


def test_an_endless_body_is_refused_and_hung_up_on(server: Server) -> None:
    sent, reply = pour(server, "POST", "/v1/annotations")
    assert reply.startswith(b"HTTP/1.1 413 ") and b"connection: close" in reply.lower()
    assert sent < 15


def test_what_is_sent_on_after_an_answer_is_not_received_for_long(server: Server) -> None:
    sent, reply = pour(server, "GET", "/healthz")
    assert reply.startswith(b"HTTP/1.1 200 ")
    assert sent < 15


def pour(server: Server, method: str, path: str) -> tuple[float, bytes]:
    """Send a body without an end; return for how many seconds it was taken, and the answer."""
    head = request(server, method, path)[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    with socket.create_connection((server.host, server.port), timeout=20) as connection:
        connection.sendall(head + b"%x\r\n%s\r\n" % (len(part), part))
        start_s = time.monotonic()
        reply: list[bytes] = []
        reader = threading.Thread(target=lambda: reply.append(connection.recv(4000)))
        reader.start()
        with contextlib.suppress(OSError):
            while time.monotonic() - start_s < 20:
                connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
                time.sleep(0.01)
        reader.join(20)
        return time.monotonic() - start_s, reply[0]


def test_a_second_request_that_is_not_finished_is_hung_up_on(server: Server) -> None:
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        connection.sendall(request(server, "GET", "/healthz"))
        assert connection.recv(4000).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        start_s = time.monotonic()
        while connection.recv(4000):
            pass
        assert time.monotonic() - start_s < 20


def test_a_slow_body_is_refused_in_the_servers_words() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
        except Exception:  # as a framework does with what happens while it reads a form
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"of the application"})

    async def silence() -> Any:
        await asyncio.sleep(10)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    limited = Limited(app, "", frozenset(), 100, body_s=0.05)
    scope = {"type": "http", "method": "POST", "path": "/v1/annotations", "headers": []}
    asyncio.run(asyncio.wait_for(limited(scope, silence, send), 8))
    assert sent[0]["status"] == 408
    assert dict(sent[0]["headers"])[b"connection"] == b"close"
    assert b"more than 0 s" in sent[1]["body"]


def test_who_does_not_take_an_answer_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BODY_S", 0.3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": bytes(1_000_000), "more_body": True})

    with started(app) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(2)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(1 << 20):
                received += len(data)
        assert received < 100_000_000


@contextlib.contextmanager
def started(app: Any) -> Iterator[int]:
    """An application in this process, with the server's protocol: its port."""
    config = uvicorn.Config(app, port=0, http=server_module.Protocol, lifespan="off", log_config=None)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    wait_until(lambda: running.started)
    try:
        yield running.servers[0].sockets[0].getsockname()[1]
    finally:
        running.should_exit = running.force_exit = True
        thread.join(10)


# --- with parts that are made to fail, in this process


@contextlib.contextmanager
def in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ephemeral: bool = False, stages: str = "", **changed: Any
) -> Iterator[httpx2.Client]:
    """A server whose Service is changed. stages: further ones, as lines of a configuration."""
    monkeypatch.setattr(server_module, "start_log", lambda *_: None)
    (tmp_path / "open.yaml").write_text(STAGES + stages)
    config = replace(load_config(tmp_path / "open.yaml"), output=tmp_path / "a.csv")
    options = Namespace(ephemeral=ephemeral, most_waiting=8, max_upload_mb=1)
    with (
        server_module.made(config, config.stages, options) as service,
        started(create_app(replace(service, **changed))) as port,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        yield client


def test_slow_addresses_leave_room_for_other_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()

    def fetch(url: str) -> bytes:
        may_end.wait(30)
        raise UserError("it never came")

    with in_process(tmp_path, monkeypatch, fetch=fetch) as client, ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(client.post, "/v1/annotations", data={"url": f"http://a/{n}"}) for n in range(12)]
        wait_until(lambda: sum(each.done() for each in asked) == 8)
        assert client.post("/v1/annotations", files={"file": ("a", picture(20))}).status_code == 200
        may_end.set()
        statuses = sorted(each.result().status_code for each in asked)
    assert statuses == [422] * 4 + [429] * 8


def test_few_pictures_are_opened_at_once_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most = 0, 0

    def as_jpeg(path: Path, side_px: int) -> tuple[bytes, tuple[int, int]]:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.1)
        at_once -= 1
        return b"", (1, 1)

    monkeypatch.setattr(api_module, "as_jpeg", as_jpeg)
    with in_process(tmp_path, monkeypatch) as client, ThreadPoolExecutor(6) as pool:
        name = client.post("/v1/annotations", files={"file": ("a", picture(20))}).headers["location"]
        assert {each.status_code for each in pool.map(client.get, [f"{name}/image"] * 6)} == {200}
    assert most == api_module.OPENED_AT_ONCE


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vec_pipeline.commands.serve.uploads import Uploads

    def written(self: Uploads, content: bytes) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Uploads, "written", written)
    with in_process(tmp_path, monkeypatch) as client:
        response = client.post("/v1/annotations", files={"file": ("a", picture(20))})
    assert (response.status_code, response.json()["detail"]) == (507, "it cannot be kept (No space left on device)")


def test_rows_that_cannot_be_saved_are_said_and_their_pictures_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: CsvFile, records: object) -> None:
        raise UserError("a.csv: No space left on device")

    with in_process(tmp_path, monkeypatch) as client:
        with monkeypatch.context() as broken:
            broken.setattr(CsvFile, "write", write)
            response = client.post("/v1/annotations", files={"file": ("a", picture(20))})
            assert (response.status_code, response.json()["detail"]) == (503, "a.csv: No space left on device")
            assert client.get(response.request.url.path).json() == []
            wait_until(lambda: not uploads_in(tmp_path))
        assert client.post("/v1/annotations", files={"file": ("a", picture(20))}).status_code == 200


def test_a_file_outside_the_folder_of_the_csv_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forged:
        types: ClassVar = {"sound": "file"}

        def find(self, name: str) -> dict[str, str]:
            return {"sound": name}

        def names_of(self, kind: str) -> list[str]:
            return ["sound"]

    folder = tmp_path / "csv"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "own").write_text("own")
    (folder / "link").symlink_to(tmp_path / "secret")
    with in_process(tmp_path, monkeypatch, rows=Forged(), csv_folder=folder) as client:
        assert client.get("/v1/annotations/own/audio").text == "own"
        for name in ("link", "..", "%2Fetc%2Fpasswd"):
            assert client.get(f"/v1/annotations/{name}/audio").status_code == 404


# --- the command line, and how it ends


def said(*options: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vec_pipeline", "serve", "--config", str(folder / "held.yaml"), *options]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=90)


@pytest.mark.parametrize("content", ["", "\n", "zz", "0" * 63])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_damaged_token_lets_nobody_in(tmp_path: Path, content: str, host: str) -> None:
    (tmp_path / "b.token").write_text(content)
    with pytest.raises(UserError, match=r"b\.token holds no hash of a token: make a new one with --new-token"):
        kept_hash(tmp_path / "b.token", host)


def test_a_token_that_cannot_be_kept_is_not_printed(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").touch()
    refused = said("--csv", str(tmp_path / "file" / "a.csv"), "--new-token", folder=folder)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "cannot be written (File exists): name another --csv" in refused.stderr


@pytest.mark.parametrize(
    "options", [("--port", "70000"), ("--port", "-1"), ("--most-waiting", "0"), ("--max-upload-mb", "x")]
)
def test_numbers_that_make_no_server_are_refused(folder: Path, options: tuple[str, str]) -> None:
    refused = said(*options, "--ephemeral", folder=folder)
    assert refused.returncode == 2 and repr(options[1]) in refused.stderr


def test_a_csv_in_use_is_said_with_this_commands_options(folder: Path, server: Server) -> None:
    refused = said("--csv", str(folder / "a.csv"), "--port", "0", folder=folder)
    assert refused.returncode == 2
    assert "name another with --csv" in refused.stderr and "--output" not in refused.stderr


def test_any_loopback_address_answers_to_its_own_name(folder: Path) -> None:
    with running(None, "--host", "127.0.0.2", config=folder / "held.yaml") as server:
        assert httpx2.get(f"{server.url}/healthz").status_code == 200


def test_a_signal_while_it_starts_leaves_nothing(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "vec_pipeline", "serve", "--config", str(folder / "held.yaml"), "--ephemeral"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([*command, "--port", "0"], cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL)
    wait_until(lambda: list(tmp_path.glob("vec-pipeline-*")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, 130)
    assert list(tmp_path.glob("vec-pipeline-*")) == []


def test_an_upload_that_is_on_its_way_is_finished_after_a_signal(tmp_path: Path, folder: Path) -> None:
    with (
        running(tmp_path / "a.csv", config=folder / "held.yaml") as server,
        socket.create_connection((server.host, server.port), timeout=30) as connection,
    ):
        sent = upload(server, picture(91))
        connection.sendall(sent[:-40])
        wait_until(lambda: bool(server.client.get("/healthz").content))  # the other one is taken by then
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        connection.sendall(sent[-40:])
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert server.process.wait(30) == 0
    assert list(load_annotations(tmp_path / "a.csv")["width"]) == [91]


def test_the_second_signal_does_not_wait(tmp_path: Path, folder: Path, hold: Callable[[], None]) -> None:
    with running(tmp_path / "a.csv", config=folder / "held.yaml") as server:
        server.post(picture(81), params={"wait_s": 0})
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(2)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 130


def test_the_second_signal_does_not_wait_for_a_client_either(
    tmp_path: Path, folder: Path, hold: Callable[[], None]
) -> None:
    with running(tmp_path / "a.csv", config=folder / "held.yaml") as server, leaving(server, picture(82)):
        wait_until(lambda: waiting(server) == 1)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
