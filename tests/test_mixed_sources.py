"""One CSV of several sources: addresses and folders, pictures that are kept and found again, estimates and prunings."""

import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, PROJECT, Run
from tests.http_server import HttpServer
from tests.reddit_dumps import post, write
from vec_pipeline import load_annotations

OPEN = "stages: [{use: open_image, max_size_px: 112}"
CONFIG = f"{OPEN}]"  # no model to load
EMBED = f"{OPEN}, {{use: embed_image, model: models/demo/clip, device: cpu}}]"


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer() as server:
        yield server


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted(EXAMPLES.glob("*.png"))[:3]:
        shutil.copy(path, folder)
    return folder


def program(command: str, *arguments: object) -> Run:
    return subprocess.run(
        [sys.executable, "-m", "vec_pipeline", command, *map(str, arguments)],
        cwd=PROJECT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def annotate(folder: Path, *sources: object, config: str = CONFIG) -> Run:
    (folder / "config.yaml").write_text(config)
    return program("run", *sources, "--config", folder / "config.yaml", "--output", folder / "a.csv")


def lines(path: Path, *entries: str) -> Path:
    path.write_text("".join(f"{entry}\n" for entry in entries))
    return path


def test_a_csv_of_addresses_takes_a_folder_and_addresses_again(
    tmp_path: Path, photos: Path, server: HttpServer
) -> None:
    urls = [server.url(f"/ok/{number}.png") for number in range(4)]
    table = tmp_path / "list.csv"
    table.write_text("url,title\n" + "".join(f"{url},picture {number}\n" for number, url in enumerate(urls)))
    first = annotate(tmp_path, table, "--keep", "title")
    assert first.returncode == 0, first.stderr
    second = annotate(tmp_path, photos)
    assert second.returncode == 0, second.stderr
    assert "3 images: 0 done, 3 to do" in second.stdout
    third = annotate(tmp_path, lines(tmp_path / "urls.txt", *urls, server.url("/ok/9.png")), photos)
    assert third.returncode == 0, third.stderr
    rows = load_annotations(tmp_path / "a.csv").set_index("image_path")
    assert len(rows) == 8
    assert rows.loc[urls[2], "title"] == "picture 2"
    assert rows.loc[urls[2], ["source_url", "http_status"]].tolist() == [urls[2], 200]
    assert rows.loc[str(photos.resolve() / sorted(os.listdir(photos))[0]), "source_url"] == ""
    assert [server.requests[f"/ok/{number}.png"] for number in range(4)] == [1] * 4


def test_a_csv_of_a_folder_says_which_columns_addresses_would_add(
    tmp_path: Path, photos: Path, server: HttpServer
) -> None:
    assert annotate(tmp_path, photos).returncode == 0
    run = annotate(tmp_path, server.url("/ok/1.png"))
    assert run.returncode == 0, run.stderr
    assert "has no column source_url, http_status: run with --refresh to add it" in run.stdout
    assert annotate(tmp_path, photos, server.url("/ok/1.png"), "--refresh").returncode == 0
    rows = load_annotations(tmp_path / "a.csv").set_index("image_path")
    assert rows["http_status"].dropna().tolist() == [200]


def test_stored_pictures_are_shown_and_searched_without_the_server(tmp_path: Path) -> None:
    with HttpServer() as server:
        urls = [server.url(f"/ok/{number}.png") for number in range(3)]
        assert annotate(tmp_path, lines(tmp_path / "urls.txt", *urls), config=EMBED).returncode == 0
    assert sum(path.is_file() for path in (tmp_path / "a.images").rglob("*")) == 3
    shutil.move(tmp_path / "a.images", tmp_path / "moved.images")  # with all that lies beside it
    for path in list(tmp_path.glob("a.*")):
        shutil.move(path, tmp_path / path.name.replace("a.", "moved.", 1))
    settings = tmp_path / "moved.settings.yaml"
    settings.write_text(settings.read_text().replace("a.images", "moved.images"))
    report = program("report", "--csv", tmp_path / "moved.csv", "--out", tmp_path / "gallery")
    assert "3 new thumbnails" in report.stdout, report.stderr
    found = program("search", "--csv", tmp_path / "moved.csv", "--like", urls[1], "--top", 1)
    assert urls[1] in found.stdout, found.stderr


def test_pictures_that_are_not_kept_leave_no_file(tmp_path: Path, server: HttpServer) -> None:
    urls = [server.url(f"/ok/{number}.png?size=100000") for number in range(3)]
    run = annotate(tmp_path, lines(tmp_path / "urls.txt", *urls, server.url("/status/404")), "--set", "store=none")
    assert run.returncode == 1, run.stderr
    endings = {path.name for path in tmp_path.iterdir()} - {"config.yaml", "urls.txt"}
    assert endings == {
        f"a.{ending}" for ending in ("csv", "log", "lock", "settings.yaml", "cache.sqlite", "journal.sqlite")
    }
    again = annotate(tmp_path, tmp_path / "urls.txt", "--set", "store=none", "--retry-errors")
    assert again.returncode == 1
    assert [server.requests[f"/ok/{number}.png"] for number in range(3)] == [1, 1, 1], "only what failed"
    refreshed = annotate(tmp_path, lines(tmp_path / "urls.txt", *urls), "--set", "store=none", "--refresh")
    assert "nothing to refresh" in refreshed.stdout, "a picture at an address counts as unchanged"


def test_a_picture_that_was_stored_is_no_picture_of_a_folder(tmp_path: Path, photos: Path, server: HttpServer) -> None:
    """The output, and the store beside it, may lie in a folder of pictures."""
    urls = lines(tmp_path / "urls.txt", server.url("/ok/1.png"))
    assert annotate(photos, urls).returncode == 0
    run = annotate(photos, photos)
    assert "3 images: 0 done, 3 to do" in run.stdout, run.stdout


def test_rows_of_addresses_are_never_pruned(tmp_path: Path, photos: Path, server: HttpServer) -> None:
    urls = [server.url("/ok/1.png"), server.url("/status/404")]
    annotate(tmp_path, lines(tmp_path / "urls.txt", *urls))
    assert annotate(tmp_path, photos).returncode == 1
    (gone, *_) = sorted(photos.iterdir())
    gone.unlink()
    run = annotate(tmp_path, lines(tmp_path / "other.txt", urls[0]), photos, "--prune")
    assert "1 row to drop" in run.stdout
    assert len(load_annotations(tmp_path / "a.csv")) == 4


def test_a_stop_for_want_of_a_network_saves_no_errors(tmp_path: Path) -> None:
    """A hundred names that cannot be looked up now say nothing of the pictures."""
    urls = lines(tmp_path / "urls.txt", *(f"http://host-{number}.example/a.png" for number in range(80)))
    (tmp_path / "config.yaml").write_text(CONFIG)
    program_text = (
        "import socket, sys\n"
        "def fail(*_, **__): raise socket.gaierror(socket.EAI_AGAIN, 'Temporary failure in name resolution')\n"
        "socket.getaddrinfo = fail\n"
        "from vec_pipeline.downloads import client\n"
        "from vec_pipeline.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["run", urls, "--config", tmp_path / "config.yaml", "--output", tmp_path / "a.csv"]
    run = subprocess.run(
        [sys.executable, "-c", program_text, *map(str, arguments), "--set", "download_attempts=1"],
        cwd=PROJECT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 2, run.stdout
    assert "50 images in a row failed with the same error (download: NoNetwork" in run.stderr
    assert len(load_annotations(tmp_path / "a.csv")) < 50


@pytest.mark.parametrize("first", ["photos", "urls"])
def test_the_length_of_a_stream_is_an_estimate(tmp_path: Path, photos: Path, server: HttpServer, first: str) -> None:
    urls = lines(tmp_path / "urls.txt", *(server.url(f"/ok/{number}.png") for number in range(5)))
    sources = [photos, urls] if first == "photos" else [urls]
    run = annotate(tmp_path, *sources)
    assert run.returncode == 0, run.stderr
    expected = "about 5 images" if first == "urls" else "how many images it holds is not known before its end"
    assert f"the source is read as a stream: {expected}" in run.stdout


def test_rows_are_written_while_a_slow_picture_is_waited_for(tmp_path: Path, server: HttpServer) -> None:
    """The first chunk too is cut to what has arrived."""
    urls = [server.url(f"/ok/{number}.png") for number in range(20)]
    (tmp_path / "config.yaml").write_text(CONFIG)
    listed = lines(tmp_path / "urls.txt", server.url("/hang/1.png"), *urls)
    arguments = ["run", listed, "--config", tmp_path / "config.yaml", "--output", tmp_path / "a.csv"]
    with subprocess.Popen([sys.executable, "-m", "vec_pipeline", *map(str, arguments)], cwd=PROJECT) as process:
        end_s = time.monotonic() + 60
        found = 0
        while found < 20 and time.monotonic() < end_s:
            time.sleep(0.2)
            found = max(0, (tmp_path / "a.csv").read_bytes().count(b"\n") - 1) if (tmp_path / "a.csv").exists() else 0
        process.kill()
    assert found == 20


def test_a_list_that_names_a_picture_twice_has_no_new_ones(tmp_path: Path, server: HttpServer) -> None:
    url = server.url("/ok/1.png")
    listed = lines(tmp_path / "urls.txt", url, url, url)
    assert annotate(tmp_path, listed).returncode == 0
    refreshed = annotate(tmp_path, listed, "--refresh", "--set", "open_image.max_size_px=100")
    assert "1 row to update" in refreshed.stdout
    assert "new images" not in refreshed.stdout
    assert server.requests["/ok/1.png"] == 1


def test_a_shard_that_was_missing_once_can_be_pruned(tmp_path: Path) -> None:
    shards = str(tmp_path / "{0..1}.tar")
    with tarfile.open(tmp_path / "1.tar", "w") as tar:
        for path in sorted(EXAMPLES.glob("*.png"))[:2]:
            tar.add(path, path.name)
    assert annotate(tmp_path, shards).returncode == 1
    shutil.copy(tmp_path / "1.tar", tmp_path / "0.tar")
    run = annotate(tmp_path, shards, "--prune")
    assert run.returncode == 0, run.stdout
    assert "1 row to drop" in run.stdout
    assert len(load_annotations(tmp_path / "a.csv")) == 4


def test_no_image_at_all_is_said_of_a_stream_too(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url,title\n")
    run = annotate(tmp_path, tmp_path / "list.csv")
    assert run.returncode == 2
    assert "no image found" in run.stderr


def test_why_a_stream_has_no_image_is_said(tmp_path: Path) -> None:
    write(tmp_path / "dumps" / "RS_2024-01.jsonl", [post(1)])
    run = annotate(tmp_path, f"reddit:{tmp_path / 'dumps'}")
    assert run.returncode == 2
    assert "no image found" in run.stderr
    assert "1 without an edited picture" in run.stdout


def test_a_folder_of_parquet_files_is_told_to_be_named_as_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.parquet").touch()
    run = annotate(tmp_path, tmp_path / "set")
    assert run.returncode == 2
    assert "no image found: write hf:// before the folder if it holds a data set" in run.stderr
