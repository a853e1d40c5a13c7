"""Uploads to `vec-pipeline serve` beside a plain FastAPI handler that calls the libraries one by one.

    .venv/bin/python -m benchmarks.serve                   # latency and uploads per second at 1, 8 and 64 clients
    .venv/bin/python -m benchmarks.serve --memory 10000    # memory of the server over so many uploads
    .venv/bin/python -m benchmarks.serve --load 300        # good, broken, huge, slow and aborted uploads for so many s

All servers run on 127.0.0.1, with the bundled models. No picture is sent twice, so nothing comes from the result cache.
"""

import argparse
import asyncio
import contextlib
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
STARTS_S = 120.0
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
def server(command: list[str], folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A server in a process of its own, until the block ends: its address."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder)}
    process = subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        assert process.stdout
        line = next(each for each in process.stdout if "http://" in each)
        found = re.search(r"http://[\d.]+:\d+", line)
        assert found
        yield found[0], psutil.Process(process.pid)
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
    async with session.post(f"{url}/v1/annotations", data=form) as response:
        return response.status, await response.json()


@contextlib.asynccontextmanager
async def session_of(clients: int) -> AsyncIterator[aiohttp.ClientSession]:
    connector, timeout = aiohttp.TCPConnector(limit=clients), aiohttp.ClientTimeout(total=120)
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
    with server(own(folder), folder) as (url, process):

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


def load(folder: Path, seconds: float) -> None:
    """Clients that behave and clients that do not; ends with an error where one that behaves gets no row."""
    source, seen = pictures("load"), Counter[str]()
    with server(own(folder, "--max-upload-mb", "5", "--most-waiting", "48"), folder) as (url, process):
        host, port = url.removeprefix("http://").split(":")

        async def good(session: aiohttp.ClientSession) -> None:
            status, row = await upload(session, url, next(source))
            seen[f"good: {status}"] += 1
            if status == 429:
                await asyncio.sleep(0.5)
            elif status != 200 or row["error"]:
                raise AssertionError(f"{status} {row}")

        async def broken(session: aiohttp.ClientSession) -> None:
            whole = next(source)
            part = random.choice([whole[: len(whole) // 3], whole[:100], b"", b"<svg", bytes(5000), whole[::-1]])
            status, _ = await upload(session, url, part)
            seen[f"broken: {status}"] += 1
            await asyncio.sleep(0.05)

        async def huge(session: aiohttp.ClientSession) -> None:
            with contextlib.suppress(aiohttp.ClientError):
                status, _ = await upload(session, url, b"\xff\xd8\xff" + bytes(20_000_000))
                seen[f"huge: {status}"] += 1
            await asyncio.sleep(0.5)

        async def slow() -> None:
            _, writer = await asyncio.open_connection(host, int(port))
            head = b"POST /v1/annotations HTTP/1.1\r\nHost: " + f"{host}:{port}\r\n".encode()
            with contextlib.suppress(OSError):
                for letter in head + b"Content-Length: 1000000\r\nContent-Type: multipart/form-data; boundary=b\r\n":
                    writer.write(bytes([letter]))
                    await writer.drain()
                    await asyncio.sleep(0.5)
            seen["slow: ended"] += 1
            writer.close()

        async def aborted(session: aiohttp.ClientSession) -> None:
            task = asyncio.create_task(upload(session, url, next(source)))
            await asyncio.sleep(random.random() * 0.2)
            task.cancel()
            seen["aborted"] += 1
            await asyncio.sleep(0.1)

        async def run() -> None:
            deadline_s = time.monotonic() + seconds
            async with session_of(200) as session:
                await asyncio.wait_for(
                    asyncio.gather(
                        until(deadline_s, 40, lambda: good(session)),
                        until(deadline_s, 8, lambda: broken(session)),
                        until(deadline_s, 4, lambda: huge(session)),
                        until(deadline_s, 6, slow),
                        until(deadline_s, 6, lambda: aborted(session)),
                    ),
                    seconds + 120,
                )

        asyncio.run(run())
        status = process.status()
    for name, number in sorted(seen.items()):
        print(f"{name:<16} {number:>7,}")
    left = [path for path in folder.rglob("*") if path.is_file() and ("new" in path.parts or "upload" in path.name)]
    print(f"server: {status}, temporary files left: {len(left)}")
    wrong = [name for name in seen if re.search(r": 5\d\d", name)]
    if left or wrong or not seen["good: 200"]:
        sys.exit(f"not as it should be: {left[:3]} {wrong}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=ROUND_S, help="of each of the rounds (default: %(default)s)")
    parser.add_argument("--memory", type=int, metavar="UPLOADS", help="measure memory instead")
    parser.add_argument("--load", type=float, metavar="SECONDS", help="behave badly instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        if options.memory:
            memory(Path(folder), options.memory)
        elif options.load:
            load(Path(folder), options.load)
        else:
            compare(Path(folder), options.seconds)


if __name__ == "__main__":
    main()
