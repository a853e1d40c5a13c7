"""A source of its own module, zip_source.py, works end to end: nothing else in the worker knows which source it is."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, PROJECT, Run, command
from vec_pipeline import load_annotations

SOURCE = ("--set", "sources=[tests.zip_source]")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, Path]:
    """A run over an archive of six pictures, one of them broken; the archive and the CSV."""
    folder = tmp_path_factory.mktemp("zip")
    archive, output = folder / "photos.zip", folder / "annotations.csv"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(EXAMPLES.glob("*.png"))[:5]:
            file.write(path, f"deep/{path.name}")
        file.writestr("broken.png", b"no picture")
    return worker(archive, output), archive, output


def worker(archive: Path | str, output: Path, *options: str) -> Run:
    return subprocess.run(
        command(archive, "--output", output, *SOURCE, *options),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=240,
    )


def tool(*arguments: object) -> Run:
    run = subprocess.run(
        [sys.executable, "-m", "vec_pipeline", *map(str, arguments)],
        cwd=PROJECT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run


def test_each_member_has_a_row_and_its_own_columns(finished: tuple[Run, Path, Path]) -> None:
    run, archive, output = finished
    assert run.returncode == 1, run.stderr
    table = load_annotations(output).set_index("image_path")
    assert len(table) == 6
    broken = table.loc[f"{archive}/broken.png"]
    assert broken["error"].startswith("open_image: UnidentifiedImageError")
    good = table.drop(f"{archive}/broken.png")
    assert set(good["error"]) == {""}
    for key, row in good.iterrows():
        assert row["caption"] == Path(str(key)).stem
        assert row["text"].split()[1] == row["caption"].split("-")[0]  # its colour


def test_a_column_of_another_type_than_declared_is_the_sources_fault(
    finished: tuple[Run, Path, Path], tmp_path: Path
) -> None:
    _, archive, _ = finished
    run = worker(f"odd:{archive}", tmp_path / "annotations.csv")
    assert run.returncode == 2
    assert "the source gave 'caption' as a PosixPath, and declares it as text: fix the source" in run.stderr


def test_it_resumes_and_retries_errors(finished: tuple[Run, Path, Path]) -> None:
    _, archive, output = finished
    before = output.read_bytes()
    os.truncate(output, len(before) - 40)
    run = worker(archive, output)
    assert "6 images: 5 done, 1 to do" in run.stdout
    assert len(load_annotations(output)) == 6
    with zipfile.ZipFile(archive, "a") as file:
        file.write(sorted(EXAMPLES.glob("*.png"))[7], "another.png")
    assert "7 images: 6 done, 1 to do" in worker(archive, output).stdout
    assert "7 images: 6 done, 1 to do" in worker(archive, output, "--retry-errors").stdout
    table = load_annotations(output)
    assert (table["error"] != "").sum() == 1


def test_search_finds_what_looks_like_a_member(finished: tuple[Run, Path, Path], tmp_path: Path) -> None:
    _, archive, output = finished
    member = f"{archive}/deep/{sorted(EXAMPLES.glob('*.png'))[2].name}"
    page = tmp_path / "found.html"
    run = tool("search", "--csv", output, "--like", member, "--json", "--html", page)
    found = json.loads(run.stdout)
    assert found[0]["image_path"] == member
    assert found[0]["score"] > 0.999
    assert page.read_text().count("data:image/jpeg;base64,") == len(found)


def test_the_report_shows_thumbnails_of_members(finished: tuple[Run, Path, Path], tmp_path: Path) -> None:
    _, _, output = finished
    rows = len(load_annotations(output))
    tool("report", "--csv", output, "--out", tmp_path / "gallery")
    assert len(list((tmp_path / "gallery").rglob("*.webp"))) == rows - 1  # all but the broken one


def test_a_stream_is_read_once_and_a_damaged_item_is_a_row(finished: tuple[Run, Path, Path], tmp_path: Path) -> None:
    _, archive, _ = finished
    output = tmp_path / "annotations.csv"
    for _ in range(2):
        run = worker(f"stream:{archive}", output)
        assert run.returncode == 1, run.stderr
        assert "read as a stream" in run.stdout
        table = load_annotations(output).set_index("image_path")
        assert table.loc["torn", "error"] == "source: ValueError: this item of the stream is damaged"
        assert len(table) == len(load_annotations(finished[2])) + 1
        assert (table["error"] == "").sum() == len(table) - 2
    refused = worker(f"stream:{archive}", output, "--refresh")
    assert refused.returncode == 2
    assert "can be read twice" in refused.stderr
