"""Statistics: each figure is what can be counted by hand in the rows."""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run
from tests.rows import failed, finished, write, write_declared
from vec_pipeline import load_annotations
from vec_pipeline.__main__ import main
from vec_pipeline.commands.stats.counts import bars, distribution, images_per_second
from vec_pipeline.sinks import csv_file

START = datetime(2026, 1, 2, 3, 0, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Ten rows, two with an error."""
    records = [
        *(finished(number, text="word " * (number + 1), text_confidence=number / 10) for number in range(4)),
        failed(4, "describe: OutOfMemoryError: 4: 2 GB"),
        failed(5, "describe: OutOfMemoryError: 5"),
        finished(6, categories="sky", keywords="moon", image_text="", flags="blank_image"),
        finished(7, categories="sky", keywords="moon, red", image_text="", flags="blank_image repetitive"),
        finished(8, categories="", keywords="", image_text="", clip_score=""),
        failed(9, "open_image: UnidentifiedImageError: the file is empty"),
    ]
    return write(tmp_path / "annotations.csv", records)


def stats(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["stats", "--csv", str(path), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_rows_errors_and_values_are_counted(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = stats(path, capsys)
    assert (found["rows"], found["rows_with_error"]) == (10, 3)
    assert list(found["errors"].items()) == [
        ("describe: OutOfMemoryError", 2),
        ("open_image: UnidentifiedImageError", 1),
    ]
    assert found["categories"] == {"vehicle": 4, "sky": 2, "": 1}
    assert list(found["keywords"].items()) == [("red", 5), ("car", 4), ("moon", 2)]
    assert found["flags"] == {"blank_image": 2, "repetitive": 1}
    assert found["share_with_image_text"] == pytest.approx(4 / 7)


def test_lengths_and_confidence_are_measured(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measures = stats(path, capsys)["measures"]
    assert measures["words in text"] == {
        "rows": 7, "mean": pytest.approx((1 + 2 + 3 + 4 + 3 * 9) / 7, abs=1e-4),
        "min": 1, "p10": 1, "median": 4, "p90": 9, "max": 9,
    }  # fmt: skip
    assert measures["text_confidence"]["mean"] == pytest.approx((0.1 + 0.2 + 0.3 + 3 * 0.875) / 7, abs=1e-4)
    assert measures["clip_score"]["rows"] == 6
    assert "words in description" in measures


def test_a_csv_of_the_twelve_columns_has_no_confidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = stats(write(tmp_path / "annotations.csv", [finished(0)], ()), capsys)
    assert set(found["measures"]) == {"words in text", "words in description"}
    assert found["flags"] == {}


def test_every_column_of_numbers_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To six digits, so that the values of a million rows can be counted; text is not measured."""
    types = {"width_px": "number", "ratio": "number", "label": "text"}
    records = [finished(number, width_px=1920 + number, ratio=number / 3, label=number) for number in range(4)]
    path = write_declared(tmp_path / "annotations.csv", types, [*records, finished(5, ratio="NaN"), failed(6)])
    measures = stats(path, capsys)["measures"]
    assert set(measures) == {"words in text", "words in description", "width_px", "ratio"}
    assert measures["width_px"] == {
        "rows": 4, "mean": 1921.5, "min": 1920, "p10": 1920, "median": 1921, "p90": 1922, "max": 1923,
    }  # fmt: skip
    assert (measures["ratio"]["rows"], measures["ratio"]["p90"]) == (4, 0.666667)
    assert main(["stats", "--csv", str(path)]) == 0
    assert "  width_px" in capsys.readouterr().out


@pytest.mark.parametrize("numbers", [[3], [1, 2], [5, 5, 5, 9], list(range(1, 1000))])
def test_quantiles_are_those_of_the_values(numbers: list[int]) -> None:
    found = distribution(Counter(map(float, numbers)))
    for name, share in (("min", 0), ("p10", 0.1), ("median", 0.5), ("p90", 0.9), ("max", 1)):
        assert found[name] == sorted(numbers)[int(share * (len(numbers) - 1))]


# --- speed


def speeds_of(*bursts: tuple[float, int]) -> tuple[list[tuple[float, float, float]], float | None]:
    """Each interval's beginning and length in seconds and its speed, of rows saved so many seconds after the start."""
    speeds, mean = images_per_second(Counter({START + timedelta(seconds=at): number for at, number in bursts}))
    starts = [(datetime.fromisoformat(speed["from"]) - START).total_seconds() for speed in speeds]
    return [
        (start, speed["seconds"], speed["images_per_second"]) for start, speed in zip(starts, speeds, strict=True)
    ], mean


def test_rows_of_a_burst_are_spread_over_the_time_they_took() -> None:
    """16 s for 32 images, then 4 s for 12."""
    speeds, mean = speeds_of((0, 99), (16, 32), (20, 12))
    assert speeds == [(second, 1, 2 if second < 16 else 3) for second in range(20)]
    assert mean == pytest.approx(44 / 20)


def test_the_time_in_which_no_worker_ran_does_not_count() -> None:
    speeds, mean = speeds_of((0, 10), (60, 60), (86_400, 10), (86_460, 120))
    assert mean == pytest.approx(1.5)
    assert sum(seconds for _, seconds, _ in speeds) == 120
    assert [speed for *_, speed in speeds] == [1, 2]


def test_intervals_lengthen_with_the_run() -> None:
    speeds, mean = speeds_of(*((600 * index, 300) for index in range(1001)))
    assert 5 < len(speeds) <= 21
    assert {speed for *_, speed in speeds} == {0.5} == {mean}


@pytest.mark.parametrize("bursts", [(), ((0, 25),)])
def test_one_moment_has_no_speed(bursts: tuple[tuple[float, int], ...]) -> None:
    assert speeds_of(*bursts) == ([], None)


# --- text


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row takes two seconds."""
    moments: Iterator[datetime] = (START + timedelta(seconds=2 * number) for number in range(1_000_000))

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return next(moments)

    monkeypatch.setattr(csv_file, "datetime", Clock)


def test_the_text_says_the_same(slow_clock: None, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "--csv", str(path)]) == 0
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "10 rows, 3 with an error, 57.1% of the rest with text on the image"
    for line in (
        "describe: OutOfMemoryError 2 66.7% #############",
        "vehicle 4 57.1% ###########",
        "(none) 1 14.3% ###",
        "moon 2 28.6% ######",
        "repetitive 1 10.0% ##",
        "speed: 0.50 images/s over 0:18 of work",
        "2026-01-02 03:00:00 0.50 ####################",
    ):
        assert line in lines
    assert all(len(line) <= 100 for line in text.splitlines())


def test_many_categories_are_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [finished(number, categories=f"kind {number} of " + "many " * 10) for number in range(30)]
    main(["stats", "--csv", str(write(tmp_path / "annotations.csv", records))])
    text = capsys.readouterr().out
    assert "  and 10 others" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_a_file_without_rows_has_no_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "annotations.csv", [])
    assert stats(path, capsys)["share_with_image_text"] is None
    assert main(["stats", "--csv", str(path)]) == 0
    assert capsys.readouterr().out == "0 rows, 0 with an error\n"


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "--csv", str(tmp_path / "none.csv")]) == 2
    assert "none.csv does not exist" in capsys.readouterr().err


def test_a_real_run_is_counted(example_run: tuple[Run, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found, table = stats(example_run[1], capsys), load_annotations(example_run[1], vectors=False)
    assert found["rows"] == len(table)
    assert found["categories"] == table["categories"].value_counts().to_dict()
    assert found["share_with_image_text"] == pytest.approx((table["image_text"] != "").mean())
    assert found["keywords"]["fish"] >= 2


def test_one_row_is_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "--csv", str(write(tmp_path / "annotations.csv", [finished(0)]))]) == 0
    assert capsys.readouterr().out.startswith("1 row, 0 with an error")
    one_more = {f"stage: Error{number}": 1 for number in range(21)}
    assert bars("errors", one_more, 21)[-1] == "  and 1 other"


def test_the_home_folder_is_found(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["stats", f"--csv=~/{path.name}"]) == 0
