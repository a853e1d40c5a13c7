"""`--where` and `--machine` of the commands that read rows, `export` aside."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import copied
from tests.rows import failed, finished, unit_vectors, write
from tests.test_report import values_of
from vec_pipeline import load_annotations
from vec_pipeline.__main__ import main
from vec_pipeline.commands.search.vector_cache import Vectors
from vec_pipeline.corrections import ACCEPTED, VERIFIED, Change, Corrections
from vec_pipeline.record import UserError

CATEGORIES = ("vehicle", "animal", "plant")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Nine rows and a failure; somebody has made an animal of the first, which was a vehicle."""
    vectors = unit_vectors(9, 8)
    records = [
        finished(number, categories=CATEGORIES[number % 3], description=f"{number}", image_vector=vectors[number])
        for number in range(9)
    ]
    csv = write(tmp_path / "annotations.csv", [*records, failed(9)])
    key = records[0].key
    Corrections(csv).correct([Change(key, "categories", "animal"), Change(key, VERIFIED, ACCEPTED)])
    return csv


def printed(capsys: pytest.CaptureFixture[str], command: str, csv: Path, *arguments: object) -> Any:
    capsys.readouterr()
    assert main([command, "--csv", str(csv), *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        ([], {"animal": 4, "plant": 3, "vehicle": 2}),
        (["--machine"], {"vehicle": 3, "animal": 3, "plant": 3}),
        (["--where", "-category:plant"], {"animal": 4, "vehicle": 2}),
        (["--where", "verified"], {"animal": 1}),
    ],
)
def test_stats_counts_the_rows_of_a_query(
    path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], counts: dict[str, int]
) -> None:
    assert json.loads(printed(capsys, "stats", path, "--json", *arguments))["categories"] == counts


def test_figures_are_of_the_rows_of_a_query(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, "stats", path, "--html", tmp_path / "figures", "--where", "category:vehicle")
    assert " of 2 rows: open " in said


@pytest.mark.parametrize(
    ("arguments", "found"), [([], 10), (["--where", "category:vehicle"], 2), (["--machine", "--where", "vehicle"], 3)]
)
def test_a_report_shows_the_rows_of_a_query(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], found: int
) -> None:
    printed(capsys, "report", path, "--out", tmp_path / "site", *arguments)
    assert values_of(tmp_path / "site", "data-head.js")["rows"] == found
    shown = values_of(tmp_path / "site", "data-rows-0.js")["categories"]
    assert shown[0] == ("vehicle" if arguments else "animal")


def test_search_finds_the_rows_of_a_query(path: Path) -> None:
    query = load_annotations(path)["image_vector"][0]

    def nearest(top: int, **options: Any) -> list[str]:
        with Vectors(path, "image_vector", **options) as vectors:
            return [row["description"] for row in vectors.nearest(query, top)]

    assert nearest(1) == ["0"]
    assert len(nearest(20)) == 9
    assert sorted(nearest(20, where="category:vehicle")) == ["3", "6"]
    assert nearest(1, where="category:animal") == ["0"], "as somebody has corrected it"
    assert sorted(nearest(20, where="category:vehicle", machine=True)) == ["0", "3", "6"]
    assert nearest(2, where="category:vehicle") == [each for each in nearest(9) if each in "36"]
    with pytest.raises(UserError, match="has no row with image_vector that matches --where 'error'"):
        nearest(1, where="error")
    write(path, [finished(12, categories="vehicle", description="12", image_vector=unit_vectors(1, 8, seed=1)[0])])
    assert sorted(nearest(20, where="category:vehicle")) == ["12", "3", "6"], "a row that came later"


def test_search_shows_what_people_have_corrected(path: Path) -> None:
    key = load_annotations(path)["image_path"][0]
    Corrections(path).correct([Change(key, "description", "mine")])
    query = load_annotations(path)["image_vector"][0]
    for machine, expected in ((False, "mine"), (True, "0")):
        with Vectors(path, "image_vector", machine=machine) as vectors:
            assert vectors.nearest(query, 1)[0]["description"] == expected


def test_the_command_search_takes_a_query(
    example_run: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = copied(example_run[1], tmp_path)
    shown = json.loads(printed(capsys, "search", csv, "a cat", "--json", "--where", "keyword:flower"))
    assert len(shown) == sum("flower" in text for text in load_annotations(example_run[1])["keywords"])
    assert all("flower" in row["description"] for row in shown)


@pytest.mark.parametrize("command", ["stats", "report"])
def test_a_query_that_nothing_matches_is_said(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    arguments = ["--out", str(tmp_path / "site")] if command == "report" else []
    assert main([command, "--csv", str(path), "--where", "category:sky", *arguments]) == 2
    assert "has no row that matches --where 'category:sky': try another query" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()
