"""What is promised of a list of URLs: killed at any moment, each ends with one row, and nothing is fetched again."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import PROJECT, Run
from tests.http_server import HttpServer, picture
from vec_pipeline import load_annotations

URLS, KILLS = (2000, 25) if os.environ.get("VEC_ALL_URLS") else (300, 5)
SHARE_THAT_FAILS = 0.2
ALWAYS = 1_000_000  # times that a path of the server answers so
FAILURES = {  # paths that never have a picture, and the kind of failure that is in their rows
    f"/status/404/{ALWAYS}/NUMBER.png": "HTTP404",
    f"/status/410/{ALWAYS}/NUMBER.png": "HTTP410",
    f"/status/500/{ALWAYS}/NUMBER.png": "HTTP500",
    f"/reset/{ALWAYS}/NUMBER.png": "Truncated",
    "/page/image/png/NUMBER.png": "NotAnImage",
    "/gone/NUMBER.png": "HTTP404",  # until the server is repaired
}
PICTURES = (  # paths that have one, some of them not at the first request
    "/ok/NUMBER.png",
    "/ok/NUMBER.png",
    "/ok/20000/NUMBER.png",
    "/slow/200/NUMBER.png",
    "/status/503/1/NUMBER.png",
    "/reset/1/NUMBER.png",
)
CONFIG = """
chunk_size: 16
stages:
  - {use: open_image, max_size_px: 112}
  - use: tests.odd_stages.Measure
"""


class Server(HttpServer):
    """Has pictures at /gone once it is repaired."""

    is_repaired = False

    async def _answer(self, request, writer):  # type: ignore[no-untyped-def]
        if request.names[0] == "gone" and self.is_repaired:
            request = request._replace(names=["ok", request.names[-1]])
        async for data in super()._answer(request, writer):
            yield data


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


class UrlList(NamedTuple):
    """A list, the kinds of failure that its URLs have (empty for pictures), and where a run of it writes.

    kinds: in the order of the list.
    """

    path: Path
    kinds: dict[str, str]
    output: Path

    @property
    def store(self) -> Path:
        return self.output.with_name("annotations.images")

    @property
    def pictures(self) -> set[str]:
        return {url for url, kind in self.kinds.items() if not kind}

    def command(self, *options: str) -> list[str]:
        config = self.path.with_name("urls.yaml")
        config.write_text(CONFIG)
        arguments = [self.path, "--config", config, "--output", self.output, *options]
        return [sys.executable, str(PROJECT / "run.py"), *map(str, arguments)]

    def run(self, *options: str) -> Run:
        return subprocess.run(
            self.command(*options), capture_output=True, text=True, timeout=240, env=ENVIRONMENT, cwd=PROJECT
        )

    def stored(self) -> set[str]:
        """URLs whose pictures are in the store."""
        return {url for url in self.kinds if file_of(url, self.store).exists()}


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROJECT)}


def file_of(url: str, store: Path) -> Path:
    name = sha1(url.encode()).hexdigest()
    return store / name[:2] / name[2:4] / name


def url_list(folder: Path, server: Server, number: int) -> UrlList:
    """So many URLs in a random order, the share that fails among them."""
    failing = int(number * SHARE_THAT_FAILS)
    forms = [list(FAILURES)[each % len(FAILURES)] for each in range(failing)]
    forms += [PICTURES[each % len(PICTURES)] for each in range(number - failing)]
    random.Random(0).shuffle(forms)
    kinds = {server.url(form.replace("NUMBER", str(n))): FAILURES.get(form, "") for n, form in enumerate(forms)}
    path = folder / "urls.txt"
    path.write_text("\n".join(kinds))
    return UrlList(path, kinds, folder / "out" / "annotations.csv")


def path_of(url: str) -> str:
    return "/" + url.split("/", 3)[3]


@pytest.mark.timeout(900)
def test_killed_at_random_moments_each_url_has_one_row_and_nothing_is_fetched_again(
    server: Server, tmp_path: Path
) -> None:
    urls = url_list(tmp_path, server, URLS)
    kill_at_random_moments(urls, server)
    with nothing_stored_is_fetched(urls, server):
        last = urls.run()
    assert last.returncode == 1, last.stderr
    check_rows(urls)
    check_files(urls)

    before, rows = Counter(server.requests), rows_of(urls)
    server.is_repaired = True
    with nothing_stored_is_fetched(urls, server):
        again = urls.run("--retry-errors")
    assert again.returncode == 1, again.stderr
    asked = {path for path, times in (server.requests - before).items() if times}
    assert asked == {path_of(url) for url, kind in urls.kinds.items() if kind}
    repaired = {url for url in urls.kinds if "/gone/" in url}
    assert repaired
    assert set(rows_of(urls).query("error == ''")["image_path"]) == urls.pictures | repaired
    was_fine = rows[rows["error"] == ""].set_index("image_path")
    is_fine = rows_of(urls).set_index("image_path").loc[was_fine.index]
    assert list(is_fine["timestamp"]) == list(was_fine["timestamp"]), "only what failed is annotated again"


def kill_at_random_moments(urls: UrlList, server: Server) -> None:
    """SIGKILL after random numbers of requests, again and again."""
    chance = random.Random(1)
    kills = 0
    for _ in range(KILLS):
        enough = server.requests.total() + chance.randint(1, 2 * URLS // KILLS)
        with (
            nothing_stored_is_fetched(urls, server),
            subprocess.Popen(
                urls.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd=PROJECT
            ) as process,
        ):
            while process.poll() is None and server.requests.total() < enough:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
        kills += process.returncode == -signal.SIGKILL
    assert kills > KILLS / 2
    assert urls.stored(), "the kills came too early to show anything"


@contextmanager
def nothing_stored_is_fetched(urls: UrlList, server: Server) -> Iterator[None]:
    stored, before = urls.stored(), Counter(server.requests)
    yield
    assert not [url for url in stored if server.requests[path_of(url)] > before[path_of(url)]]


def rows_of(urls: UrlList) -> pd.DataFrame:
    rows: pd.DataFrame = load_annotations(urls.output)
    return rows


def check_rows(urls: UrlList) -> None:
    """One for each URL: of its picture, or with the kind of failure."""
    rows = rows_of(urls)
    assert sorted(rows["image_path"]) == sorted(urls.kinds)
    for row in rows.to_dict("records"):
        assert row["source_url"] == row["image_path"]
        if kind := urls.kinds[row["image_path"]]:
            assert row["error"].startswith(f"download: {kind}: "), row["error"]
            assert row["http_status"] == (int(kind[4:]) if kind.startswith("HTTP") else 200)
        else:
            assert (row["error"], row["http_status"]) == ("", 200), row["image_path"]
            assert np.array_equal(row["histogram"], histogram_at(row["image_path"])), "it is another picture"


def histogram_at(url: str) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """What the stage writes of the picture that the server has there."""
    with Image.open(BytesIO(picture(int(Path(url).stem)))) as image:
        return np.array(image.convert("L").histogram(), np.int64) * 2**33


def check_files(urls: UrlList) -> None:
    """The store holds the pictures, whole, and nothing else; no temporary file is left."""
    assert urls.stored() == urls.pictures
    files = {path for path in urls.store.rglob("*") if path.is_file()}
    assert files == {file_of(url, urls.store) for url in urls.pictures}
    for url in urls.pictures:
        assert file_of(url, urls.store).read_bytes().startswith(picture(int(Path(url).stem)))
    assert not urls.output.with_name("annotations.downloads").exists()


def test_with_store_none_a_kill_leaves_nothing_that_stays(server: Server, tmp_path: Path) -> None:
    """Large pictures, which are temporary files while they wait."""
    kinds = {server.url(f"/ok/500000/{number}.png"): "" for number in range(40)}
    urls = UrlList(tmp_path / "urls.txt", kinds, tmp_path / "out" / "annotations.csv")
    urls.path.write_text("\n".join(kinds))
    temporary = urls.output.with_name("annotations.downloads")
    with subprocess.Popen(
        urls.command("--set", "store=none"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT,
        cwd=PROJECT,
    ) as process:  # fmt: skip
        while process.poll() is None and not (temporary.exists() and any(temporary.rglob("*"))):
            time.sleep(0.002)
        process.kill()
    assert temporary.exists()
    last = urls.run("--set", "store=none")
    assert last.returncode == 0, last.stderr
    assert sorted(rows_of(urls)["image_path"]) == sorted(kinds)
    assert not temporary.exists()
    assert not urls.store.exists()
    asked = server.requests.total()
    assert urls.run("--set", "store=none").returncode == 0
    assert server.requests.total() == asked, "what has a row is not fetched again, although it is not stored"


def test_the_progress_and_the_summary_tell_downloads(server: Server, tmp_path: Path) -> None:
    paths = ["/gone/0.png", f"/status/404/{ALWAYS}/1.png", "/ok/2.png", "/ok/3.png", "/page/image/png/4.png"]
    urls = UrlList(tmp_path / "urls.txt", dict.fromkeys(map(server.url, paths), ""), tmp_path / "annotations.csv")
    urls.path.write_text("\n".join(urls.kinds))
    run = urls.run()
    said = "2 fetched, 3 failed (HTTP404 2, NotAnImage 1), "
    assert said in run.stdout
    assert said in run.stderr, "the last line of the progress"
    assert "2 x download: HTTP404" in run.stdout


def test_make_run_takes_a_list_of_urls(server: Server, tmp_path: Path) -> None:
    """With the demo's models, in a folder that looks like the project's, whose environment needs no update."""
    for path in PROJECT.iterdir():
        if path.name not in (".venv", "output", ".git"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != "run":
            (tmp_path / ".venv" / path.name).symlink_to(path)
    (tmp_path / ".venv" / "run").touch()
    (tmp_path / "urls.txt").write_text("\n".join(server.url(f"/ok/{number}.png") for number in range(3)))
    run = subprocess.run(
        ["make", "run", f"IMAGES={tmp_path}/urls.txt"], cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    rows = load_annotations(tmp_path / "output" / "demo" / "annotations.csv")
    assert set(rows["image_path"]) == {server.url(f"/ok/{number}.png") for number in range(3)}
    assert set(rows["http_status"]) == {200}
    assert all(rows["text"])


def test_the_page_explains_every_kind_of_failure() -> None:
    code = "".join(path.read_text() for path in (PROJECT / "vec_pipeline" / "downloads").glob("*.py"))
    kinds = set(re.findall(r'(?:DownloadError\(\s*|kind = )"([A-Z]\w+)"', code))
    page = (PROJECT / "docs" / "sources.md").read_text()
    table = re.findall(r"^\| (`[A-Z].*?) \|", page.partition("## Downloads")[2].partition("\n## ")[0], re.MULTILINE)
    explained = set(re.findall(r"`(\w+)`", " ".join(table)))
    assert {"Timeout", "NoNetwork", "NotAnImage"} <= kinds
    of_object_stores = {"FileNotFoundError", "PermissionError"}
    assert {kind for kind in explained if not kind.startswith("HTTP")} == kinds | of_object_stores
