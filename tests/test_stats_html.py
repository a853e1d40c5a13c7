"""The page of figures: each counts what is in the rows, says so in words, and is a file; texts stay texts."""

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from selenium import webdriver

from tests.conftest import PROJECT, Run
from tests.pairs import BLUE, RED, pair, write_pairs
from tests.rows import failed, finished, write, write_declared
from tests.test_gallery import HOSTILE, Page, driver, emulated, opened, violations  # noqa: F401 (a fixture)
from vec_pipeline import load_annotations
from vec_pipeline.__main__ import main
from vec_pipeline.annotations import Block, CsvReader
from vec_pipeline.commands.stats import drawing, words
from vec_pipeline.commands.stats import page as stats_page
from vec_pipeline.commands.stats.columns import column_of, counts_of, moments
from vec_pipeline.commands.stats.figures import Figure, all_figures, figures_of, groups_figure
from vec_pipeline.commands.stats.words import words_and_pairs
from vec_pipeline.record import Record
from vec_pipeline.settings import settings_path

REQUEST_TYPES = {
    **dict.fromkeys(("post_id", "post_time", "post_title", "answer_id", "answer_time", "task"), "text"),
    **dict.fromkeys(("post_score", "answer_score"), "number"),
}
START = datetime(2026, 1, 2, 3)
KEPT = "; of the answers in the CSV: its source may have kept only the best"
MIDDLE = "median {}, the middle half from {} to {}, all from {} to {}; "


def make_page(csv: Path) -> Path:
    assert main(["stats", "--csv", str(csv), "--html", str(csv.parent / "page")]) == 0
    return csv.parent / "page"


def shown(page: Path) -> dict[str, tuple[str, str, Path]]:
    """By its title: what each figure says, its note and its file."""
    text = (page / "index.html").read_text()
    pattern = r'<h3>(.*?)</h3><img src="(.*?)" alt="(.*?)"><figcaption class="note">(.*?)</figcaption>'
    found = [map(unescape, each) for each in re.findall(pattern, text)]
    return {title: (says, note, page / unquote(src)) for title, src, says, note in found}


def columns(page: Path) -> dict[str, list[str]]:
    """By its name, the line of each column."""
    lines = re.findall(r'<th scope="row">(.*?)</th>((?:<td>.*?</td>)+)</tr>', (page / "index.html").read_text())
    return {name: [unescape(cell) for cell in re.findall("<td>(.*?)</td>", cells)] for name, cells in lines}


def column(name: str, *values: Any) -> Any:
    return column_of(name, pd.Series(values, dtype=object), [f"row {n}" for n in range(len(values))])


def figures(name: str, *values: Any) -> dict[str, Figure]:
    return {figure.title: figure for figure in figures_of(column(name, *values))}


def texts_in(svg: bytes) -> list[str]:
    return ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


# --- the page


def test_a_real_run_has_figures_of_its_values(example_run: tuple[Run, Path], tmp_path: Path) -> None:
    csv, table = example_run[1], load_annotations(example_run[1], vectors=False)
    assert main(["stats", "--csv", str(csv), "--html", str(tmp_path / "page")]) == 0
    found = shown(tmp_path / "page")
    assert set(found) >= {
        *("categories", "keywords", "flags", "text_confidence", "clip_score", "text: words in each"),
        *("text: frequent words", "description: frequent pairs of words"),
    }
    most = table["categories"].value_counts()
    assert found["categories"][0].startswith(f"{most.index[0]} {most.iloc[0]}, ")
    for says, note, path in found.values():
        assert says and note.startswith("25 rows, ")
        ElementTree.parse(path)
    assert {*(tmp_path / "page/gallery/figures").iterdir()} == {path for *_, path in found.values()}
    lines = columns(tmp_path / "page")
    assert lines["image_text"][1:3] == [str((table["image_text"] != "").sum()), str((table["image_text"] == "").sum())]
    assert not any("vector" in name for name in lines)


def test_every_type_of_column_has_its_figures(tmp_path: Path) -> None:
    types = {"faces": "number", "taken": "text", "objects": "json", "camera": "text", "audio": "file"}
    records = [
        finished(
            number,
            faces=number % 3 if number else "",
            taken=f"2026:01:{number + 1:02} 10:00:00",
            objects=json.dumps([{"label": "car"}] * number),
            camera=("a", "b")[number % 2],
            audio=f"audio/{number}.wav",
        )
        for number in range(9)
    ]
    page = make_page(write_declared(tmp_path / "a.csv", types, [*records, failed(9)]))
    found = shown(page)
    assert found["faces"][0].endswith("; 0: 2 rows, 1: 3 rows, 2: 3 rows")
    assert found["faces"][1] == "10 rows, 2 without a value"
    assert found["taken, per day"][0].startswith("from 2026-01-01 10:00 to 2026-01-09 10:00, most in the day ")
    assert found["objects"][0] == "car 36"
    assert found["camera"][0] == "a 5, b 4"
    assert found["error"][0] == "open_image: OSError 1"
    assert "audio" not in found
    assert columns(page)["audio"] == ["different texts", "9", "1", "9 different"]


def test_figures_are_the_same_bytes_each_time_and_old_ones_go(tmp_path: Path) -> None:
    records = [finished(number, clip_score=number / 7, categories="ab"[number % 2]) for number in range(8)]
    csv = write(tmp_path / "a.csv", records)
    folder = make_page(csv) / "gallery/figures"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "old.svg").touch()
    (folder / "note.txt").touch()
    make_page(csv)
    assert {path.name: path.read_bytes() for path in folder.glob("*.svg")} == first
    assert (folder / "note.txt").exists()


def test_columns_whose_names_are_alike_have_files_of_their_own(tmp_path: Path) -> None:
    types = dict.fromkeys(("grey-blue", "Grey / blue", "..", "голубой"), "number")
    records = [finished(number, **dict.fromkeys(types, number / 7)) for number in range(4)]
    found = shown(make_page(write_declared(tmp_path / "a.csv", types, records)))
    names = ["grey-blue.svg", "Grey-blue-2.svg", "figure.svg", "голубой.svg"]
    assert [found[name][2].name for name in types] == names
    assert all(found[name][2].exists() for name in types)


def test_a_file_without_rows_and_one_row_have_no_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(make_page(write(tmp_path / "a.csv", []))) == {}
    assert capsys.readouterr().out == f"0 figures of 0 rows: open {tmp_path / 'page/index.html'}\n"
    make_page(write(tmp_path / "a.csv", [finished(0)]))
    assert "of 1 row: open" in capsys.readouterr().out


def test_of_many_rows_every_second_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stats_page, "MOST_ROWS", 10)
    monkeypatch.setattr("vec_pipeline.sinks.csv_rows.BLOCK_BYTES", 1)
    page = make_page(write_declared(tmp_path / "a.csv", {"n": "number"}, [finished(n, n=n) for n in range(25)]))
    assert "of 25 rows, of which one in 4 is counted: open" in capsys.readouterr().out
    assert columns(page)["n"] == ["numbers", "7", "0", "0 to 24"]
    assert "; 0: 1 row, 4: 1 row, 8: 1 row, " in shown(page)["n"][0]


def test_vectors_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    blocks = CsvReader.blocks

    def watched(reader: CsvReader, names: Sequence[str], **options: Any) -> Iterator[Block]:
        asked.extend(names)
        return blocks(reader, names, **options)

    monkeypatch.setattr(CsvReader, "blocks", watched)
    make_page(write(tmp_path / "a.csv", [finished(0)]))
    assert asked
    assert not [name for name in asked if name.endswith("_vector")]


@pytest.mark.parametrize(("module", "status"), [("matplotlib", 2), ("webdataset", 0)])
def test_matplotlib_is_asked_for_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str, status: int
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    csv = write(tmp_path / "a.csv", [finished(0)])
    assert main(["stats", "--csv", str(csv), "--html", str(tmp_path / "page")]) == status
    assert ("pip install 'vec-pipeline[figures]'" in capsys.readouterr().err) == bool(status)
    assert (tmp_path / "page").exists() != bool(status)


def test_only_a_page_of_figures_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = write(tmp_path / "a.csv", [finished(0)])
    assert main(["report", "--csv", str(csv), "--out", str(tmp_path / "page")]) == 0
    for out, said in (
        (tmp_path / "page", "is not empty and not a page of figures: name a new folder with --html"),
        (tmp_path, "is not empty and not a page of figures: name a new folder with --html"),
        (csv, "is not a folder: name one with --html"),
    ):
        assert main(["stats", "--csv", str(csv), "--html", str(out)]) == 2
        assert f"{out} {said}" in capsys.readouterr().err
    assert main(["stats", "--csv", str(csv), "--html", "s3://bucket/page"]) == 2
    assert "--html needs a folder of this machine: copy it to s3://bucket/page afterwards" in capsys.readouterr().err
    monkeypatch.setattr(stats_page, "pairs_section", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["stats", "--csv", str(csv), "--html", str(tmp_path / "new")])
    monkeypatch.undo()
    assert main(["stats", "--csv", str(csv), "--html", str(tmp_path / "new")]) == 0  # of one that was not finished


def test_json_and_html_are_two_things(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["stats", "--json", "--html", "x"])
    assert "not allowed with" in capsys.readouterr().err


# --- what a column holds


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("n", [1, 2.5], "number"),
        ("post_time", [1_700_000_000.0, 1_700_000_100.0], "time"),
        ("runtime", [1_700_000_000.0, 1_700_000_100.0], "number"),
        ("post_time", [12.0, 14.0], "number"),
        ("a", ["2026-01-02T03:04:05+02:00", "2026-01-02"], "time"),
        ("a", ["2026:01:02 03:04:05"], "time"),
        ("a", ["2026:01-02", "2026", "1-1"], "names"),
        ("a", [datetime(2026, 1, 1)], "time"),
        ("a", ["x", "x", "y"] * 3, "few"),
        ("a", ["x"], "few"),
        ("a", [str(number) for number in range(9)], "names"),
        ("a", ["one two three four", "five six seven eight nine"], "words"),
        ("keywords", ["a, b"], "list"),
        ("a", ['["x"]', "{}"], "json"),
        ("a", [["x"], {}], "json"),
        ("a", ["[x]", "{"], "names"),
        ("a", ["true", "false"], "json"),
        ("a", [True, False], "json"),
        ("a", [None, "", float("nan"), pd.NaT, pd.NA], "empty"),
    ],
)
def test_kinds_are_found_by_the_values(name: str, values: list[Any], kind: str) -> None:
    assert column(name, *values).kind == kind


def test_missing_values_are_counted_and_the_others_keep_their_rows() -> None:
    found = column("n", 1.0, None, float("nan"), 2.0)
    assert (found.values, found.labels, found.missing, found.rows) == ([1.0, 2.0], ["row 0", "row 3"], 2, 4)


def test_times_of_all_kinds_are_in_utc() -> None:
    expected = pd.Timestamp(2026, 1, 2, 3, 4, 5)
    texts = ["2026-01-02T05:04:05+02:00", "2026:01:02 03:04:05", "2026-01-02 03:04:05"]
    for values in (texts, [datetime(2026, 1, 2, 3, 4, 5)], [expected.timestamp()]):
        assert (moments(values) == expected).all()
    assert moments(["0000:00:00 00:00:00", "2026-13-01"]).isna().all()


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([["a", "b"], ["a"]], {"a": 2, "b": 1}),
        ([[{"label": "car", "text": "x"}, {"text": "SALE"}, {"box": [1]}, 7]], {"car": 1, "SALE": 1}),
        ([{"car": 2}, {"car": 3, "dog": "x"}], {"car": 5, "dog": 1}),
        ([True, False, True], {"true": 2, "false": 1}),
        ([[1, 2]], {}),
    ],
)
def test_what_json_holds_is_counted(values: list[Any], counts: dict[str, int]) -> None:
    assert counts_of(column("a", *map(json.dumps, values))) == counts_of(column("a", *values)) == counts


def test_json_lists_that_name_nothing_have_lengths() -> None:
    assert figures("a", [1, 2], [1, 2], [1])["a: entries"].says.endswith("; 1: 1 row, 2: 2 rows")


# --- figures


def test_numbers_are_told_in_words() -> None:
    figure = figures("n", *(float(number) + 0.5 for number in range(101)))["n"]
    assert figure.says == "median 50.5, the middle half from 25.5 to 75.5, all from 0.5 to 100.5"
    assert figure.note == "101 rows, all with a value"
    assert "(logarithmic)" not in "".join(texts_in(figure.svg))
    assert figures("n", 3.0, 3.0) == {}


def test_what_lies_far_from_the_others_is_named() -> None:
    values = [*(float(number % 10) + 0.5 for number in range(100)), 400.0, 500.0, -600.5, 300.0]
    figure = figures("n", *values)["n"]
    assert figure.note.endswith("; 4 far from the others: -600.5 (row 102), 500 (row 101), 400 (row 100), ...")
    assert "far" not in figures("n", *values[:100])["n"].note


@pytest.mark.parametrize(
    ("values", "far"),
    [
        ([1] * 90 + [2, 3, 5000, 100_000], "2 far from the others: 100,000 (row 93), 5,000 (row 92)"),
        ([1] * 990 + [2, 3, 50], "1 far from the others: 50 (row 992)"),
        ([1] * 90 + [-2, -40, 5000], "2 far from the others: 5,000 (row 92), -40 (row 91)"),
        ([0] * 99 + [5000], "1 far from the others: 5,000 (row 99)"),
        ([1024] * 99 + [3], "1 far from the others: 3 (row 99)"),
        ([0.0] * 90 + [0.001, 0.002, 0.9], "1 far from the others: 0.9 (row 92)"),
        ([0] * 40 + [7] * 60 + [0, 100_000], "1 far from the others: 100,000 (row 101)"),
        ([1.0] * 99 + [2.0], ""),
        ([1.0] * 90 + [0.2, 0.9], ""),
        ([0] * 90 + [1, 2, 10], ""),
    ],
)
def test_where_the_middle_half_is_one_value_ten_times_that_is_far(values: list[float], far: str) -> None:
    _, _, named = figures("answer_score", *values)["answer_score"].note.partition("; ")
    assert named == far


@pytest.mark.parametrize(
    ("values", "is_log", "are_bars"),
    [
        ([1] * 90 + [2, 3, 5000, 100_000], True, False),
        ([1] * 990 + [2, 3, 5000], True, False),
        ([1] * 90 + [-2, -40, 5000], True, False),
        ([1] * 990 + [2, 3, 50], False, False),
        ([1, 2, 3, 4, 5] * 9, False, True),
        ([0] * 90 + [1, 2, 9], False, True),
    ],
)
def test_whole_numbers_far_apart_are_not_bars_beside_one_another(
    values: list[float], is_log: bool, are_bars: bool
) -> None:
    figure = figures("answer_score", *values)["answer_score"]
    texts = texts_in(figure.svg)
    assert ("answer_score (logarithmic)" in texts) == is_log
    assert ("rows" in texts) != are_bars  # the name of an axis, which bars have not
    assert (
        "; "
        + ", ".join(f"{value:,}: {'1 row' if n == 1 else f'{n} rows'}" for value, n in sorted(Counter(values).items()))
        in figure.says
    )


def test_numbers_of_all_magnitudes_are_on_a_logarithmic_axis() -> None:
    scores = [float(round(10 ** (number / 40))) for number in range(160)]
    figure = figures("score", 0.0, *scores, 1e12)["score"]
    assert "score (logarithmic)" in texts_in(figure.svg)
    assert {"0", "10", "1,000"} <= set(texts_in(figure.svg))
    assert figure.note.endswith("; 1 far from the others: 1e+12 (row 161)")  # by its logarithm


def test_a_logarithmic_axis_goes_below_zero_where_values_do() -> None:
    scores = [float(round(10 ** (number / 40))) for number in range(160)]
    figure = figures("score", -1.0, *scores, -30.0, -5e8)["score"]
    texts = texts_in(figure.svg)
    assert "score (logarithmic)" in texts
    assert texts.index("-1,000") < texts.index("0") < texts.index("1,000")
    assert figure.note.endswith("; 1 far from the others: -5e+08 (row 162)")
    fractions = figures("score", -1.5, *scores)["score"]  # 0 is no gap between those above it and those below
    assert "(logarithmic)" not in "".join(texts_in(fractions.svg))


@pytest.mark.parametrize("lowest", [0.0, -97.0])
@pytest.mark.parametrize("is_log", [False, True])
def test_bars_of_a_histogram_count_every_value_and_whole_numbers_alike(is_log: bool, lowest: float) -> None:
    values = np.repeat(np.arange(lowest, 97.0), 3)
    edges = drawing.log_edges(values) if is_log else np.histogram_bin_edges(values, drawing.BINS)
    whole = drawing.whole_edges(values, edges, is_log=is_log)
    counts, _ = np.histogram(values, whole)
    assert counts.sum() == len(values)
    if is_log:
        zero = int(np.flatnonzero(whole == -0.5)[0])
        assert counts[zero : zero + 4].tolist() == [3, 3, 3, 3]
        assert lowest == 0 or counts[zero - 3 : zero].tolist() == [3, 3, 3]
    elif lowest:
        assert set(counts[:-1]) == {21}
    else:
        assert set(counts[:-1]) == {12}
    assert np.histogram(values, edges)[0].sum() == len(values)


@pytest.mark.parametrize(
    ("step", "unit"),
    [
        (timedelta(seconds=1), "second"),
        (timedelta(minutes=1), "minute"),
        (timedelta(hours=1), "hour"),
        (timedelta(days=1), "day"),
        (timedelta(weeks=1), "week"),
        (timedelta(days=31), "month"),
        (timedelta(days=365), "year"),
    ],
)
def test_periods_are_as_long_as_the_span_asks(step: timedelta, unit: str) -> None:
    times = [(START + number * step).isoformat() for number in range(50)]
    figure = figures("taken", *times, times[7], "0000:00:00 00:00:00")[f"taken, per {unit}"]
    assert figure.says.startswith("from 2026-01-02 03:00 to ")
    assert re.search(f", most in the {unit} .*: [23]$", figure.says)
    assert figure.note == "52 rows, all with a value; 1 that are no dates"
    assert f"rows per {unit}" in texts_in(figure.svg)


def test_frequent_values_come_first_and_others_are_counted() -> None:
    values = [f"value {number}" for number in range(25) for _ in range(40 - number)]
    figure = figures("a", *values)["a"]
    assert figure.says.startswith("value 0 40, value 1 39, ")
    assert figure.note.endswith("; 5 other values not shown")
    assert [text for text in texts_in(figure.svg) if text.startswith("value")] == [f"value {n}" for n in range(20)]


def test_words_and_pairs_are_counted_without_stop_words() -> None:
    counted, pairs = words_and_pairs(
        [
            "The red car and the red car.",
            "Red. Car's https://a.b/red-car 42",
            "Красная машина и красная машина в углу",
            "Red u/fc00badf00000001's car, [u/0123456789abcdef](https://x.y) (/u/aaaabbbbccccdddd) us/them",
        ]
    )
    assert counted == {"red": 4, "car": 3, "car's": 1, "красная": 2, "машина": 2, "углу": 1}
    assert pairs == {"red car": 2, "красная машина": 2}


def test_rare_words_make_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_DIFFERENT", 10)
    texts = ["often", *(f"{chr(97 + n % 26)}{chr(97 + n // 26)}x often" for n in range(200))]
    counted, pairs = words_and_pairs(texts)
    assert counted["often"] == 201
    assert max(len(counted), len(pairs)) <= 11


@pytest.mark.parametrize(
    ("values", "title", "says"),
    [
        (["true", "false"] * 110 + ["unknown"], "a", "true 110, false 110, unknown 1"),
        (["[1]"] * 210 + ["[removed] by mod"], "a", "[1] 210, [removed] by mod 1"),
        ([["x"], "plain"], "a", 'x 1, "plain" 1'),
        (["[" * 100_000] * 2, "a", f"{'[' * 35}… 2"),
        (['{"a": NaN, "b": 2}', '{"a": 1e999, "b": 1}'], "a", "b 3, a 2"),
        ([{"lat": 0.5, "shown": False}, {"lat": 0.7, "n": -3}, {"lat": 10**400}], "a", "lat 3, shown 1, n 1"),
        ([float("inf"), 1.0, 2.0, float("-inf")], "a", MIDDLE.format(1.5, 1.25, 1.75, 1, 2) + "1: 1 row, 2: 1 row"),
        ([1e308, -1e308, 1.0, 2.0], "a", MIDDLE.format(1.5, 1.25, 1.75, 1, 2) + "1: 1 row, 2: 1 row"),
        ([1e-320, 1.0, 1.0, 1.0], "a", MIDDLE.format(1, 0.75, 1, 0, 1) + "0: 1 row, 1: 3 rows"),
        ([1, 10**400], "a", f"1 1, 1{'0' * 34}… 1"),
        ([1.0] * 201 + ["x"], "a", '1.0 201, "x" 1'),
        ([1_234_567.0, 1_234_568.0] * 2, "a", "1,234,567: 2 rows, 1,234,568: 2 rows"),
        (["2024-01-01", "2024-02-03", "0000-01-01", *["2024-02-03"] * 9], "a, per day", "in the day 2024-02-03: 10"),
        (["2024-01-01", "2024-02-03", "99999-01-01", *["2024-02-03"] * 9], "a, per day", "in the day 2024-02-03: 10"),
        (["1000-01-01", "2999-12-31", "2999-01-01"], "a, per year", "most in the year 2999: 2"),
    ],
)
def test_any_values_have_a_figure(values: list[Any], title: str, says: str) -> None:
    figure = figures("a", *values)[title]
    assert says in figure.says
    ElementTree.fromstring(figure.svg)


@pytest.mark.parametrize(
    "values",
    [
        [0.3, 0.30000000000000004, 0.3],
        [1e17, 1e17 + 64, 1e17 + 1000],
        [1e308, -1e308],
        [float("inf"), float("nan")],
        [],
        [1.5],
        ["x" * 5_000_000, "y" * 5_000_000],
        ["2024-02-30", "2024-02-31"],
        ["1600-01-01T00:00:00+99:99"],
        ["{}", "{}"],
    ],
)
def test_other_values_have_none(values: list[Any]) -> None:
    assert figures("a", *values) == {}


def test_numbers_too_large_to_be_drawn_are_noted() -> None:
    assert figures("n", 1e308, 1.0, 2.0)["n"].note == "3 rows, all with a value; 1 too large to be drawn"


def test_errors_with_different_messages_are_counted_by_kind(tmp_path: Path) -> None:
    rows = [failed(number, f"open_image: OSError: cannot identify picture {number}") for number in range(39)]
    rows.append(failed(39, "describe: OutOfMemory: the picture does not fit"))
    found = shown(make_page(write(tmp_path / "a.csv", rows)))
    assert found["error"][0] == "open_image: OSError 39, describe: OutOfMemory 1"


def test_a_figure_that_fails_is_named_and_the_others_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drawing, "histogram", lambda *arguments, **options: 1 / 0)
    records = [finished(number, clip_score=number / 7, categories="ab"[number % 2]) for number in range(40)]
    page = make_page(write(tmp_path / "a.csv", records))
    said = "; no figure of clip_score (ZeroDivisionError: division by zero)"
    assert said in capsys.readouterr().out
    assert said in (page / "index.html").read_text()
    assert "categories" in shown(page)


def test_long_texts_have_lengths_and_words() -> None:
    found = figures("text", "one big red car", "one big red bus is here", "green green green green grass")
    assert found["text: words in each"].says.startswith("median 5, ")
    assert found["text: frequent words"].says.startswith("green 4, one 2, big 2, red 2")
    assert found["text: frequent pairs of words"].says.startswith("green green 3, one big 2, big red 2")
    assert "text: frequent pairs of words" not in figures("text", "one a big a red a car", "two b small c grey d bus")


def test_boxes_on_a_logarithmic_axis_go_below_zero_where_values_do() -> None:
    texts = texts_in(groups_figure("n by task", {"add": [-50.0, 1, 3, 500], "remove": [2.0, 5, 8, 5000]}, "n").svg)
    assert texts.index("-10") < texts.index("0") < texts.index("1,000")


# --- editing requests


def request(number: int, post: int, hours: float, **values: Any) -> Record:
    asked = START + timedelta(days=post)
    texts = {"post_id": f"p{post}", "post_title": "please remove the man behind", "answer_id": f"a{number}"}
    times = {"post_time": asked.isoformat(), "answer_time": (asked + timedelta(hours=hours)).isoformat()}
    scores = {"post_score": 10 * post, "answer_score": number, "task": ("remove", "add")[post % 2]}
    return finished(number, **{**texts, **times, **scores, **values})


def test_a_request_counts_once_however_many_answers_it_has(tmp_path: Path) -> None:
    rows = [request(0, 1, 5), request(1, 1, 2), request(2, 1, 9), request(3, 2, 1), request(4, 4, 30)]
    rows[4].values["post_score"] = ""
    found = shown(make_page(write_declared(tmp_path / "a.csv", REQUEST_TYPES, [*rows, finished(5)])))
    many = [request(number, number, 1, post_score=99 + number % 5) for number in range(99)]
    many += [request(99, 99, 1, post_score=995, answer_score=9999), finished(100, answer_score=8888)]
    far = shown(make_page(write_declared(tmp_path / "b.csv", REQUEST_TYPES, many)))
    assert found["answers per request"][0].endswith("; 1: 2 requests, 3: 1 request")
    says, note, _ = found["hours until the first answer"]
    assert (says.split(", ")[0], note) == ("median 2", "3 requests, all with a value" + KEPT)
    assert found["post_score"][0].endswith("; 10: 1 request, 20: 1 request")
    assert "; 1 far from the others: 995 (p99)" in far["post_score"][1]
    assert "; 2 far from the others: 9,999 (a99), 8,888 (000100.jpg)" in far["answer_score"][1]
    assert found["post_score"][1] == "3 requests, 1 without a value"
    assert found["task"][0] == "remove 2, add 1"
    assert found["answer_score"][1] == "6 rows, 1 without a value"
    assert found["post_score by task"][:2] == ("medians: add 10, remove 20", "2 requests")
    assert list(found)[:3] == ["answers per request", "hours until the first answer", "post_score by task"]


def test_what_is_made_of_a_request_alone_counts_once_for_it(tmp_path: Path) -> None:
    types = {**REQUEST_TYPES, **dict.fromkeys(("tone", "spot", "of_both", "description_ru", "text_ru"), "text")}
    stages = {
        "ask": {
            "use": "structure",
            "texts": ["post_title", "post_text"],
            "schema": {"type": "object", "properties": {"tone": {}, "where": {}}},
            "write": {"where": "spot"},
        },
        "describe_request": {"use": "structure", "texts": ["subject"], "read": {"subject": "tone"}, "schema": {}},
        "compare": {"use": "structure", "texts": ["post_title", "text"], "schema": {"properties": {"of_both": {}}}},
        "translate": {"use": "translate", "texts": ["description", "text"], "to": "ru"},
        "open_image": {"use": "open_image"},
    }
    made = ("tone", "spot", "of_both", "description", "description_ru", "text_ru")
    rows = [request(each, each // 3, 1, **dict.fromkeys(made, "ab"[each // 6])) for each in range(9)]
    csv = write_declared(tmp_path / "a.csv", types, rows)
    settings_path(csv).write_text(yaml.safe_dump({"columns": types, "stages": stages}))
    found = shown(make_page(csv))
    counted = {name: note.split(", ")[0] for name, (_, note, _) in found.items() if name in made}
    assert counted == {
        **dict.fromkeys(("tone", "spot", "description", "description_ru"), "3 requests"),
        **dict.fromkeys(("of_both", "text_ru"), "9 rows"),
    }
    with_csv = {figure.name: figure.note for figure in all_figures(load_annotations(csv, vectors=False), csv)}
    assert with_csv["tone"].startswith("3 requests, ")
    without = {figure.name: figure.note for figure in all_figures(load_annotations(csv, vectors=False))}
    assert without["tone"].startswith("9 rows, ")


def test_a_request_whose_times_are_not_known_is_counted_as_missing(tmp_path: Path) -> None:
    rows = [request(0, 1, 5), request(1, 2, 7), request(2, 3, 1)]
    rows[1].values["answer_time"] = ""
    found = shown(make_page(write_declared(tmp_path / "a.csv", REQUEST_TYPES, rows)))
    assert found["hours until the first answer"][1] == "3 requests, 1 without a value" + KEPT


def test_a_sample_has_all_answers_of_a_request_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stats_page, "MOST_ROWS", 60)
    monkeypatch.setattr("vec_pipeline.sinks.csv_rows.BLOCK_BYTES", 1)
    rows = [request(3 * post + each, post, (7, 1 + post % 2, 9)[each]) for post in range(80) for each in range(3)]
    found = shown(make_page(write_declared(tmp_path / "a.csv", REQUEST_TYPES, [*rows, finished(240)])))
    said = capsys.readouterr().out
    every = int(re.findall("of 241 rows, of which those of one request in ([0-9]+) are counted: open", said)[0])
    assert every in (4, 8)
    assert "answers per request" not in found  # each has 3
    says, note, _ = found["hours until the first answer"]
    counted = int(note.split()[0])
    assert 80 / every / 2 < counted <= 20
    assert re.search("; 1: [0-9]+ requests?, 2: [0-9]+ requests?$", says)


@pytest.mark.parametrize("kind", ["number", "text"])
def test_columns_named_as_those_of_requests_may_hold_anything(tmp_path: Path, kind: str) -> None:
    types = dict.fromkeys(
        ("post_id", "post_score", "task", "answer_id", "post_time", "answer_time", "post_other"), kind
    )
    rows = [finished(number, **dict.fromkeys(types, number % 60 + number**3 % 7 / 2)) for number in range(1, 120)]
    page = make_page(write_declared(tmp_path / "a.csv", types, [*rows, finished(0)]))
    assert "no figure of" not in (page / "index.html").read_text()


# --- pairs


def test_pairs_are_shown_beside_one_another(tmp_path: Path) -> None:
    rows = [pair(tmp_path, number) for number in range(20)]
    (tmp_path / "edited/0.png").unlink()
    rows[19].values["edited_path"] = ""
    page = make_page(write_pairs(tmp_path, *rows))
    text = (page / "index.html").read_text()
    found = re.findall(r'<div class="couple"><img src="(.*?)" alt="original" .*?><img src="(.*?)" alt="(.*?)"', text)
    assert "10 of 19 pairs; the pictures of 1 are gone" in text
    assert len(found) == 9
    for original, edited, says in found:
        assert says == "result: make the vehicle blue"
        for src, colour in ((original, RED), (edited, BLUE)):
            with Image.open(page / src) as image:
                assert image.format == "WEBP"
                assert np.abs(np.array(image.convert("RGB"))[5, 5].astype(int) - colour).max() < 8


# --- texts stay texts


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    types = {"note": "text", "</th><script>window.hacked=1</script>": "number", "tags": "json"}
    rows = []
    for number, text in enumerate([*HOSTILE, "$x_{$", "\x00\x1b[31m", "漢字 🦊", "машина"] * 3):
        row = pair(folder, number, text=f"{text} one two three", categories=text, keywords=text, note=text)
        row.values |= {"</th><script>window.hacked=1</script>": number, "tags": json.dumps([text])}
        row.values["edit_prompt"] = text
        rows.append(row)
    csv = write_pairs(folder, *rows[:1])
    csv.unlink()
    types |= {"edited_path": "file", "edit_prompt": "text"}
    return make_page(write_declared(csv, types, rows))


@pytest.fixture
def page(driver: webdriver.Chrome, hostile_page: Path) -> Iterator[Page]:  # noqa: F811
    yield from opened(driver, hostile_page)


def test_figures_of_hostile_texts_can_be_read(hostile_page: Path) -> None:
    found = shown(hostile_page)
    assert len(found) > 8
    for _, _, path in found.values():
        ElementTree.parse(path)
    assert "$x_{$" in texts_in(found["categories"][2].read_bytes())
    assert "漢字 🦊" in found["tags"][0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width_px", [400, 1280])
def test_accessibility(page: Page, scheme: str, width_px: int) -> None:
    """axe-core finds nothing; every picture is there, without a network or an error in the console."""
    with emulated(page, scheme, width_px):
        page.driver.get(page.address)
        page.script("for (const image of document.images) image.loading = 'eager'")
        page.until(lambda: page.script("return [...document.images].every(image => image.naturalWidth)"))
        assert violations(page) == set()
        seen = np.asarray(Image.open(BytesIO(page.find("figure img").screenshot_as_png)).convert("RGB"))
        colours = {"light": drawing.BAR, "dark": drawing.DARK[drawing.BAR]}
        wanted = tuple(bytes.fromhex(colours[scheme][1:]))
        assert (np.abs(seen.astype(int) - wanted).max(axis=2) < 4).sum() > 200


# --- the notebook


def run_notebook(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], pd.DataFrame]:
    """Run it beside the folder `output`; return what it has displayed, and the table that its last line is."""
    notebook = json.loads((PROJECT / "examples/explore.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    (folder / "examples").mkdir()
    monkeypatch.chdir(folder / "examples")
    displayed: list[Any] = []
    values: list[Any] = []
    monkeypatch.setattr(sys, "displayhook", values.append)  # of each expression that is a line
    namespace: dict[str, Any] = {"display": displayed.append}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            lines = ast.Interactive(ast.parse("".join(cell["source"])).body)
            exec(compile(lines, "cell", "single"), namespace)
    assert isinstance(values[-1], pd.DataFrame)
    return displayed, values[-1]


def assert_same_as_page(displayed: list[Any], folder: Path) -> None:
    """The figures that a notebook has displayed are those of the page of the same CSV."""
    assert main(["stats", "--csv", str(folder / "output/annotations.csv"), "--html", str(folder / "page")]) == 0
    by_title = {figure.title: figure for figure in displayed if isinstance(figure, Figure)}
    found = shown(folder / "page")
    assert by_title.keys() == found.keys()
    for title, (says, note, path) in found.items():
        assert (by_title[title].says, by_title[title].note) == (says, note)
        assert by_title[title]._repr_svg_() == path.read_text()


def test_the_notebook_shows_the_same_figures(
    example_run: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "output").symlink_to(example_run[1].parent)
    displayed, medians = run_notebook(tmp_path, monkeypatch)
    assert_same_as_page(displayed, tmp_path)
    assert all(isinstance(each, Figure) for each in displayed), "no pairs"
    assert medians["text_confidence"].notna().all()
    assert set(medians.index) == set(load_annotations(example_run[1], vectors=False)["categories"])


@pytest.mark.parametrize("of", ["edit_image", "requests"])
def test_the_notebook_shows_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    folder = tmp_path / "output"
    rows = [pair(folder, number) for number in range(20)]
    if of == "requests":
        for number, row in enumerate(rows):
            asked = request(number, number // 2, 1, edited_url=str(folder / row.values["edited_path"]))
            asked.key = row.key
            row.values |= {**asked.values, "edited_path": "", "tone": "ab"[number // 2 % 2], "text_confidence": ""}
        stages = {"ask": {"use": "structure", "texts": ["post_title"], "schema": {"properties": {"tone": {}}}}}
        types = {**REQUEST_TYPES, "edited_url": "text", "tone": "text"}
        csv = write_declared(folder / "annotations.csv", types, rows)
        settings_path(csv).write_text(yaml.safe_dump({"columns": types, "stages": stages}))
    else:
        write_pairs(folder, *rows)
    (folder / "edited/4.png").unlink()
    displayed, medians = run_notebook(tmp_path, monkeypatch)
    assert_same_as_page(displayed, tmp_path)
    pictures = [each for each in displayed if isinstance(each, Image.Image)]
    assert len(pictures) == 4, "every fourth of 20, but for one"
    for picture in pictures:
        assert picture.size == (40 + 8 + 40, 30)
        assert [picture.getpixel(place) for place in ((5, 5), (44, 5), (60, 5))] == [RED, (255, 255, 255), BLUE]
    assert list(medians.index) == (["add", "remove"] if of == "requests" else ["vehicle"])
    assert ("post_score" if of == "requests" else "edit_difference") in medians
