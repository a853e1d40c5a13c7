"""How fast pictures are downloaded: the worker's downloads, img2dataset, and a plain loop of asyncio and aiohttp.

    .venv/bin/python benchmarks/downloads.py --rounds 5

A local server in a process of its own sends distinct JPEGs; 64 requests are in flight. Each side runs in a process of
its own, alternately, and writes a file for each picture. img2dataset is installed into an environment of its own below
output/ first. Prints pictures/s of the whole process, pictures/s by each side's own count (img2dataset: from the start
of its first shard to the end of its last; the others: from the first request to the last file) and CPU seconds.
"""

import argparse
import asyncio
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from vec_pipeline.record import SourceOptions  # noqa: E402

IMG2DATASET = "img2dataset==1.47.0"
ENVIRONMENT = PROJECT / "output" / "img2dataset"
IN_FLIGHT = 64
SIZES = {10_000: 10_000, 1_000_000: 500}  # bytes of a picture -> pictures in a run


class Speed(NamedTuple):
    """Pictures a second of the whole process and by its own count, and the CPU seconds of 1,000 pictures."""

    overall: float
    own_count: float
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, nargs=2, default=tuple(SIZES.values()), help="of 10 kB and of 1 MB")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve))
    elif options.side:
        side, urls, folder = options.side
        print(json.dumps(SIDES[side](Path(urls), Path(folder))))
    else:
        install_img2dataset()
        load = os.getloadavg()[0]
        tables = [
            table(size, pictures, options.only, options.rounds)
            for size, pictures in zip(SIZES, options.pictures, strict=True)
        ]
        print(*tables, sep="\n\n")
        print(
            f"\n{os.cpu_count()} cores, which the server shares; load {load:.1f} before, {os.getloadavg()[0]:.1f} after"
        )


def install_img2dataset() -> None:
    """Into an environment of its own: it wants other versions of libraries than the worker has."""
    if not ENVIRONMENT.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    subprocess.run([ENVIRONMENT / "bin" / "pip", "install", "--quiet", IMG2DATASET], check=True)


def table(size: int, pictures: int, sides: Sequence[str], rounds: int) -> str:
    """Medians of all rounds, as a table in Markdown."""
    speeds: dict[str, list[Speed]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name, server(size) as address:
        urls = Path(name) / "urls.txt"
        urls.write_text("".join(f"{address}/{number:06}.jpg\n" for number in range(pictures)))
        for _ in range(rounds):
            for side in sides:
                folder = Path(name) / "pictures"
                speeds[side].append(speed(side, urls, folder, pictures))
                print(f"{size:,} bytes, {side}: {speeds[side][-1]}", file=sys.stderr, flush=True)
                shutil.rmtree(folder, ignore_errors=True)
    lines = [
        f"{pictures:,} pictures of {size:,} bytes, medians of {rounds}:\n",
        "| side | pictures/s, whole process | pictures/s, own count | CPU s per 1,000 |\n|---|---|---|---|",
    ]
    for side, all_rounds in speeds.items():
        overall, own_count, cpu_s = map(statistics.median, zip(*all_rounds, strict=True))
        lines.append(f"| {side} | {overall:,.0f} | {own_count:,.0f} | {cpu_s:.2f} |")
    return "\n".join(lines)


def speed(side: str, urls: Path, folder: Path, pictures: int) -> Speed:
    """Run one side in a process of its own, and check that it has downloaded everything."""
    before, start_s = cpu_of_children_s(), time.perf_counter()
    run = subprocess.run(
        [sys.executable, __file__, "--side", side, urls, folder], stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, cpu_s = time.perf_counter() - start_s, cpu_of_children_s() - before
    downloaded, own_s = json.loads(run.stdout.splitlines()[-1])
    assert downloaded == pictures, f"{side} has downloaded {downloaded} of {pictures}"
    return Speed(pictures / seconds, pictures / own_s, 1000 * cpu_s / pictures)


def cpu_of_children_s() -> float:
    """Of those that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# --- The sides: each returns the pictures it has downloaded, and the seconds by its own count


def with_store(urls: Path, folder: Path) -> tuple[int, float]:
    return with_worker(urls, folder, SourceOptions(store=folder, **LIMITS))


def without_store(urls: Path, folder: Path) -> tuple[int, float]:
    return with_worker(urls, folder, SourceOptions(store=None, **LIMITS))


LIMITS: dict[str, Any] = {"downloads_at_once": IN_FLIGHT, "downloads_per_host": IN_FLIGHT}


def with_worker(urls: Path, folder: Path, options: SourceOptions) -> tuple[int, float]:
    """As a run does: records in, records with their pictures out."""
    from vec_pipeline.downloads import Downloads
    from vec_pipeline.downloads.web import web_record

    start_s = time.perf_counter()
    with urls.open() as lines, closing(Downloads(options, folder / "temporary")) as downloads:
        records = (web_record(line.strip(), options) for line in lines)
        downloaded = sum(not record.error for record in downloads.ahead(records))
    return downloaded, time.perf_counter() - start_s


def with_aiohttp(urls: Path, folder: Path) -> tuple[int, float]:
    """What one writes with the library's own example: so many tasks that share a list, no retries, no checks."""
    import aiohttp

    folder.mkdir()

    async def fetch(session: aiohttp.ClientSession, numbered: Iterator[tuple[int, str]]) -> int:
        downloaded = 0
        for number, url in numbered:
            async with session.get(url) as response:
                response.raise_for_status()
                (folder / f"{number}.jpg").write_bytes(await response.read())
            downloaded += 1
        return downloaded

    async def fetch_all() -> int:
        numbered = enumerate(urls.read_text().split())
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session:
            return sum(await asyncio.gather(*(fetch(session, numbered) for _ in range(IN_FLIGHT))))

    start_s = time.perf_counter()
    return asyncio.run(fetch_all()), time.perf_counter() - start_s


def with_img2dataset(urls: Path, folder: Path, processes: int = 1) -> tuple[int, float]:
    """64 threads in all, files as they come, without decoding. Each process has one shard of up to 10,000 pictures."""
    program = ENVIRONMENT / "bin" / "img2dataset"
    options = {
        "url_list": urls,
        "output_folder": folder,
        "output_format": "files",
        "input_format": "txt",
        "processes_count": processes,
        "thread_count": IN_FLIGHT // processes,
        "disable_all_reencoding": True,
        "extract_exif": False,
        "compute_hash": "None",
        "number_sample_per_shard": 10_000 // processes,
        "enable_wandb": False,
    }
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    subprocess.run([program, *arguments], check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL, env=environment)
    shards = [json.loads(path.read_text()) for path in folder.glob("*_stats.json")]
    seconds = max(shard["end_time"] for shard in shards) - min(shard["start_time"] for shard in shards)
    return sum(shard["successes"] for shard in shards), seconds


def with_two_processes(urls: Path, folder: Path) -> tuple[int, float]:
    return with_img2dataset(urls, folder, processes=2)


SIDES: dict[str, Callable[[Path, Path], tuple[int, float]]] = {
    "worker, store": with_store,
    "worker, store: none": without_store,
    "asyncio and aiohttp": with_aiohttp,
    "img2dataset, 1 process": with_img2dataset,
    "img2dataset, 2 processes": with_two_processes,
}


# --- The server


@contextmanager
def server(size: int) -> Iterator[str]:
    """The address of a server in a process of its own whose every path is a picture of so many bytes."""
    with subprocess.Popen(
        [sys.executable, __file__, "--serve", str(size)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


async def serve(size: int) -> None:
    jpeg = picture()
    listening = await asyncio.get_running_loop().create_server(lambda: Answers(jpeg, size), "127.0.0.1", 0, backlog=512)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


def picture() -> bytes:
    from PIL import Image

    file = BytesIO()
    Image.effect_noise((100, 100), 64).save(file, "JPEG")
    return file.getvalue()


class Answers(asyncio.Protocol):
    """As little of HTTP as a server can do, so that it takes little of the cores that it shares with the sides."""

    def __init__(self, jpeg: bytes, size: int) -> None:
        self.jpeg, self.padding, self.received = jpeg, bytes(size - len(jpeg)), b""
        self.head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n" % size

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while b"\r\n\r\n" in self.received:
            request, _, self.received = self.received.partition(b"\r\n\r\n")
            path = request.split(b" ", 2)[1]
            distinct = path + self.padding[len(path) :]
            is_last = b"connection: close" in request.lower()
            self.transport.write(
                self.head + (b"Connection: close\r\n" if is_last else b"") + b"\r\n" + self.jpeg + distinct
            )
            if is_last:
                self.transport.close()


if __name__ == "__main__":
    main()
