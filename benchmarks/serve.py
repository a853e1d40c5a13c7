"""Uploads to `vec-pipeline serve` beside a plain FastAPI handler that calls the libraries one by one.

    .venv/bin/python -m benchmarks.serve                   # latency and uploads per second at 1, 8 and 64 clients
    .venv/bin/python -m benchmarks.serve --memory 10000    # memory of the server over so many uploads
    .venv/bin/python -m benchmarks.serve --load 300        # good, broken, huge, slow and aborted uploads for so many s

All servers run on 127.0.0.1, with the bundled models. No picture is sent twice, so nothing comes from the result cache.
"""

import argparse
import asyncio
import contextlib
import csv
import itertools
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from io import BytesIO
from pathlib import Path

import aiohttp
import psutil

from benchmarks.machine import machine
from models.demo.drawing import draw
from models.demo.scenes import random_scene

PROJECT = Path(__file__).resolve().parent.parent
CONFIG = PROJECT / "configs" / "demo.yaml"
CLIENTS = (1, 8, 64)
ROUNDS = 3
ROUND_S = 10.0
PATIENCE_S = 300  # of a client, on a machine that is busy otherwise
NAIVE = """
import asyncio, sys, tempfile, threading
from pathlib import Path
from typing import Annotated
sys.path.insert(0, {benchmarks!r})
import uvicorn
from fastapi import FastAPI, File, UploadFile
from naive_loop import NaiveLoop
loop, lock, app = NaiveLoop(Path({config!r})), threading.Lock(), FastAPI()
@app.post("/v1/annotations")
def annotate(file: Annotated[UploadFile, File()]):
    with lock, tempfile.NamedTemporaryFile(suffix=".jpg") as kept:  # the models are not safe to share
        kept.write(file.file.read()); kept.flush()
        return loop.annotate(Path(kept.name))
print("http://127.0.0.1:{port}", flush=True)
uvicorn.run(app, port={port}, log_level="error")
"""


def pictures(seed: str) -> Iterator[bytes]:
    """JPEGs of drawn scenes, each another."""
    rng = random.Random(seed)
    while True:
        target = BytesIO()
        draw(random_scene(rng, held_out=False), rng, 112, 112, 2).image.save(
            target, "JPEG", quality=rng.randint(80, 95)
        )
        yield target.getvalue()


@contextlib.contextmanager
def server(command: list[str], folder: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A server in a process of its own, until the block ends: its address. Its temporary files lie in `folder`/tmp."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        assert process.stdout
        line = next(each for each in process.stdout if "http://" in each)
        found = re.search(r"http://[\d.]+:\d+", line)
        assert found
        yield found[0], process
    finally:
        process.terminate()
        process.wait(90)


def own(folder: Path, *options: str) -> list[str]:
    where = ["--csv", str(folder / "annotations.csv"), "--port", "0"]
    return [sys.executable, "-m", "vec_pipeline", "serve", "--config", str(CONFIG), *where, *options]


def plain() -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = NAIVE.format(benchmarks=str(PROJECT / "benchmarks"), config=str(CONFIG), port=port)
    return [sys.executable, "-c", code]


async def upload(session: aiohttp.ClientSession, url: str, picture: bytes) -> tuple[int, dict[str, object]]:
    form = aiohttp.FormData()
    form.add_field("file", picture, filename="a.jpg", content_type="image/jpeg")
    async with session.post(f"{url}/v1/annotations?wait_s={PATIENCE_S}", data=form) as response:
        return response.status, await response.json()


@contextlib.asynccontextmanager
async def session_of(clients: int) -> AsyncIterator[aiohttp.ClientSession]:
    connector, timeout = aiohttp.TCPConnector(limit=clients), aiohttp.ClientTimeout(total=PATIENCE_S + 10)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


async def until(deadline_s: float, clients: int, one: Callable[[], Awaitable[None]]) -> None:
    """`clients` that each do the same again and again until a moment of time.monotonic()."""

    async def client() -> None:
        while time.monotonic() < deadline_s:
            await one()

    await asyncio.gather(*(client() for _ in range(clients)))


async def measured(url: str, clients: int, source: Iterator[bytes], seconds: float) -> tuple[float, list[float]]:
    """Uploads per second, and the seconds that each took."""
    taken: list[float] = []
    async with session_of(clients) as session:

        async def one() -> None:
            start_s = time.monotonic()
            status, row = await upload(session, url, next(source))
            assert status == 200 and not row["error"], row
            taken.append(time.monotonic() - start_s)

        start_s = time.monotonic()
        await until(start_s + seconds, clients, one)
        return len(taken) / (time.monotonic() - start_s), taken


def compare(folder: Path, seconds: float) -> None:
    source = itertools.chain.from_iterable([list(itertools.islice(pictures("speed"), 6000))])
    print(f"{machine('torch', 'fastapi', 'uvicorn')}\n")
    print("| clients | server | p50, s | p95, s | uploads/s | times |\n|---|---|---|---|---|---|")
    with server(own(folder), folder) as (ours, _), server(plain(), folder) as (theirs, _):
        asyncio.run(measured(ours, 2, source, 3.0))
        asyncio.run(measured(theirs, 2, source, 3.0))
        for clients in CLIENTS:
            rates: dict[str, list[float]] = {ours: [], theirs: []}
            taken: dict[str, list[float]] = {ours: [], theirs: []}
            for _ in range(ROUNDS):
                for url in (ours, theirs):
                    rate, some = asyncio.run(measured(url, clients, source, seconds))
                    rates[url].append(rate)
                    taken[url] += some
            baseline = statistics.median(rates[theirs])
            for name, url in (("serve", ours), ("plain FastAPI", theirs)):
                p50, p95 = (statistics.quantiles(taken[url], n=20)[index] for index in (9, 18))
                rate = statistics.median(rates[url])
                print(
                    f"| {clients} | {name} | {p50:.3f} | {p95:.3f} | {rate:.1f} | {rate / baseline:.1f} |", flush=True
                )


def memory(folder: Path, number: int) -> None:
    """Resident memory of the server and its child, along the way."""
    source = pictures("memory")
    with server(own(folder), folder) as (url, started):
        process = psutil.Process(started.pid)

        async def run() -> None:
            done = 0
            async with session_of(32) as session:

                async def one() -> None:
                    nonlocal done
                    status, row = await upload(session, url, next(source))
                    assert status == 200 and not row["error"], row
                    done += 1
                    if done % max(1, number // 10) == 0:
                        everyone = [process, *process.children(recursive=True)]
                        resident_mb = sum(each.memory_info().rss for each in everyone) / 1e6
                        print(f"{done:>7,} uploads: {resident_mb:,.0f} MB", flush=True)

                async def client() -> None:
                    while done < number:
                        await one()

                await asyncio.gather(*(client() for _ in range(32)))

        asyncio.run(run())


class Clients:
    """Clients that behave and clients that do not, each of which does the same again and again.

    deadline_s: a moment of time.monotonic(), after which the slow ones wait no more.
    seen: how often each kind of client got each answer.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, deadline_s: float) -> None:
        self.session, self.url, self.deadline_s = session, url, deadline_s
        self.pictures, self.seen = pictures("load"), Counter[str]()
        self.slow_parts = itertools.cycle([("headers", False), ("body", True)])

    async def send(self, kind: str, content: bytes) -> tuple[int, dict[str, object]]:
        status, row = await upload(self.session, self.url, content)
        self.seen[f"{kind}: {status}"] += 1
        return status, row

    async def good(self) -> None:
        status, row = await self.send("good", next(self.pictures))
        if status == 429:
            await asyncio.sleep(0.5)
        elif status != 200 or row["error"]:
            raise AssertionError(f"{status} {row}")

    async def broken(self) -> None:
        whole = next(self.pictures)
        parts = [whole[: len(whole) // 3], whole[:100], b"", b"<svg", bytes(5000), whole[::-1]]
        await self.send("broken", random.choice(parts))
        await asyncio.sleep(0.05)

    async def huge(self) -> None:
        with contextlib.suppress(aiohttp.ClientError):  # the server may hang up
            await self.send("huge", b"\xff\xd8\xff" + bytes(20_000_000))
        await asyncio.sleep(0.5)

    async def slow(self) -> None:
        """Headers, or a body, of two bytes a second, until the server hangs up."""
        host, port = self.url.removeprefix("http://").split(":")
        head = f"POST /v1/annotations HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 1000000\r\n"
        head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        kind, at_once = next(self.slow_parts)
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(OSError):
            writer.write(head[: len(head) * at_once].encode())
            for letter in (head + "--b\r\n" * 1000)[len(head) * at_once :]:
                writer.write(letter.encode())
                await writer.drain()
                if await hangs_up(reader, 0.5) or time.monotonic() > self.deadline_s:
                    break
        self.seen[f"slow {kind}: {'hung up' if reader.at_eof() else 'not yet'}"] += 1
        writer.close()

    async def aborted(self) -> None:
        task = asyncio.create_task(upload(self.session, self.url, next(self.pictures)))
        await asyncio.sleep(random.random() * 0.2)
        task.cancel()
        await asyncio.wait([task])
        self.seen["aborted"] += 1
        await asyncio.sleep(0.1)

    async def late(self) -> None:
        """A good upload to a server that is ending."""
        try:
            status, row = await self.send("at the end", next(self.pictures))
            assert status in (429, 503) or (status == 200 and not row["error"]), row
        except aiohttp.ClientError:  # it no longer listens
            self.seen["at the end: refused"] += 1


async def hangs_up(reader: asyncio.StreamReader, seconds: float) -> bool:
    """Whether the server hangs up within a time; an answer before that is read and left."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while await reader.read(10_000):
                pass
    return reader.at_eof()


async def crowd(url: str, clients: int, seconds: float, end: Callable[[], None]) -> Counter[str]:
    """Let clients work for a time, more than half of them good ones; then end the server while as many upload."""
    async with session_of(4 * clients) as session:
        some = Clients(session, url, time.monotonic() + seconds)
        shares = {some.broken: 8, some.huge: 4, some.slow: 6, some.aborted: 6}
        numbers = {one: max(1, clients * share // 64) for one, share in shares.items()}
        numbers[some.good] = clients - sum(numbers.values())
        work = [until(some.deadline_s, number, one) for one, number in numbers.items()]
        await asyncio.wait_for(asyncio.gather(*work), seconds + PATIENCE_S)
        late = [asyncio.create_task(some.late()) for _ in range(clients)]
        await asyncio.sleep(0.2)
        end()
        await asyncio.gather(*late)
        return some.seen


def load(folder: Path, seconds: float, clients: int) -> None:
    """Exits with 1 if a good upload gets no row, a server that is not ending answers 5xx, or files are left."""
    with server(own(folder, "--max-upload-mb", "5", "--most-waiting", str(clients * 3 // 4)), folder) as (url, process):
        seen = asyncio.run(crowd(url, clients, seconds, process.terminate))
        status = process.wait(90)
    for name, number in sorted(seen.items()):
        print(f"{name:<24} {number:>7,}")
    left = left_over(folder)
    print(f"exit status {status}, files left: {len(left)}")
    wrong = [name for name in seen if re.search(r": 5\d\d", name) and name != "at the end: 503"]
    if status or left or wrong or not seen["good: 200"]:
        sys.exit(f"not as it should be: {left[:3]} {wrong}")


def left_over(folder: Path) -> list[Path]:
    """Files in the temporary folder, and pictures without a row in the CSV."""
    with (folder / "annotations.csv").open(newline="", encoding="utf-8") as file:
        csv.field_size_limit(10**9)
        of_rows = {row["image_path"] for row in csv.DictReader(file)}
    found = [path for name in ("tmp", "annotations.uploads") for path in (folder / name).rglob("*") if path.is_file()]
    return [path for path in found if str(path) not in of_rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=ROUND_S, help="of each of the rounds (default: %(default)s)")
    parser.add_argument("--memory", type=int, metavar="UPLOADS", help="measure memory instead")
    parser.add_argument("--load", type=float, metavar="SECONDS", help="behave badly instead")
    parser.add_argument("--clients", type=int, default=64, help="of --load (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        if options.memory:
            memory(Path(folder), options.memory)
        elif options.load:
            load(Path(folder), options.load, options.clients)
        else:
            compare(Path(folder), options.seconds)


if __name__ == "__main__":
    main()
