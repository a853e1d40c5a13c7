"""The review: rows in an order, corrections with history and undo, bulk acts, and two who correct the same."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.conftest import PROJECT
from tests.rows import TRUST_COLUMNS, failed, finished, write, write_declared
from tests.test_serve import running
from vec_pipeline import load_annotations
from vec_pipeline.commands.serve.api import create_review_app
from vec_pipeline.commands.serve.review import bulk as bulk_module
from vec_pipeline.commands.serve.review import pixels as pixels_module
from vec_pipeline.commands.serve.review import table as table_module
from vec_pipeline.commands.serve.review.bulk import Case, Replace
from vec_pipeline.commands.serve.review.work import Review, Wish
from vec_pipeline.corrections import Conflict, Corrections
from vec_pipeline.record import Record
from vec_pipeline.settings import settings_path
from vec_pipeline.sinks.csv_file import CsvFile

ROWS = 6
WRITERS, EACH = 8, 10


class Client:
    """A client of a review without a network."""

    def __init__(self, csv: Path) -> None:
        self.csv = csv
        self.review = Review(csv)
        self.http = TestClient(create_review_app(self.review), raise_server_exceptions=False)

    def get(self, path: str = "", **parameters: Any) -> Any:
        response = self.http.get(f"/v1/review{path}", params=parameters)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, path: str, status: int = 200, **body: Any) -> Any:
        response = self.http.post(f"/v1/review/{path}", json=body)
        assert response.status_code == status, response.text
        return response.json()

    def numbers(self, **parameters: Any) -> list[int]:
        return list(self.get(**parameters)["rows"])

    def row(self, number: int) -> dict[str, Any]:
        return dict(self.post("rows", rows=[number])[0])

    def column(self, name: str) -> list[Any]:
        total = self.get()["total"]
        return [row["values"][name] for row in self.post("rows", rows=list(range(total)))]

    def correct(
        self, row: int, column: str, value: str | None, seen: int | None = None, status: int = 200, **more: str
    ) -> Any:
        change = {"row": row, "column": column, "value": value, "seen": seen}
        return self.post("correct", status, changes=[change], **more)

    def bulk(self, operation: dict[str, Any], where: str = "", status: int = 200, *, preview: bool = False) -> Any:
        return self.post("bulk", status, where=where, operation=operation, preview=preview)


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return write(tmp_path / "a.csv", [finished(number) for number in range(ROWS)])


@pytest.fixture
def client(csv: Path) -> Client:
    return Client(csv)


def client_of(folder: Path, *records: Record, columns: tuple[str, ...] = TRUST_COLUMNS) -> Client:
    return Client(write(folder / "b.csv", records, columns))


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


# --- rows


def test_a_list_says_which_rows_there_are_and_what_can_be_corrected(tmp_path: Path) -> None:
    client = client_of(
        tmp_path, finished(0), finished(1, categories="animal"), finished(2, categories="animal"), failed(3)
    )
    settings_path(client.csv).write_text(
        "stages: {structure: {categories: [plant, animal]}}\nsources: []\ncolumns: {}\n"
    )
    found = client.get(order="csv")
    assert found["rows"] == [0, 1, 2, 3] and found["total"] == 4
    assert found["categories"] == ["animal", "vehicle", "plant"]
    assert set(found["correctable"]) == {
        *("text", "description", "categories", "keywords", "image_text", "text_confidence", "clip_score", "verified"),
    }
    assert found["columns"]["clip_score"] == "number" and list(found["columns"])[-1] == "verified"
    assert not [name for name, kind in found["columns"].items() if kind == "vector"]


def test_a_row_has_its_values_as_texts_and_numbers(tmp_path: Path) -> None:
    types = {"objects": "json", "size": "number", "speech": "file"}
    records = [finished(0, objects=[{"label": "car"}], size=2.5, speech="a/b.ogg"), failed(1)]
    client = Client(write_declared(tmp_path / "b.csv", types, records))
    full, empty = client.post("rows", rows=[0, 1])
    assert full["key"] == "/photos/000000.jpg" and full["name"] == "000000.jpg" and full["row"] == 0
    assert full["values"]["objects"] == '[{"label": "car"}]'
    assert (full["values"]["size"], full["values"]["speech"]) == (2.5, "a/b.ogg")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", full["values"]["timestamp"])
    assert (empty["values"]["objects"], empty["values"]["size"], empty["values"]["text"]) == ("", None, "")
    assert full["machine"] == full["acts"] == {} and full["verified"] == "" and full["group"] == 0


def test_rows_come_in_the_order_asked_for(client: Client) -> None:
    assert [row["row"] for row in client.post("rows", rows=[4, 0, 4])] == [4, 0, 4]
    assert client.post("rows", rows=[]) == []


def test_a_row_that_is_not_there_is_named(client: Client) -> None:
    expected = "there is no row 6: the CSV has 6, counted from 0"
    assert client.post("rows", 422, rows=[0, ROWS])["detail"] == expected
    assert client.correct(ROWS, "text", "x", status=422)["detail"] == expected
    operation = {"kind": "set", "column": "text", "value": "x"}
    assert client.post("bulk", 422, rows=[ROWS], operation=operation)["detail"] == expected
    assert client.http.get(f"/v1/review/history/{ROWS}").status_code == 404
    assert client.http.get(f"/v1/review/picture/{ROWS}").status_code == 404


def test_a_query_chooses_rows_as_they_are_now(client: Client) -> None:
    assert client.numbers(where="category:animal") == []
    client.correct(2, "categories", "animal")
    client.correct(4, "verified", "rejected")
    assert client.numbers(where="category:animal") == [2]
    assert client.numbers(where="-verified", order="csv") == [0, 1, 2, 3, 5]
    assert client.numbers(where="verified:rejected") == [4]


def test_what_is_wrong_with_a_query_is_said(client: Client) -> None:
    response = client.http.get("/v1/review", params={"where": "ctegory:animal"})
    assert response.status_code == 422 and "did you mean 'category'?" in response.json()["detail"]


# --- order


def test_the_most_doubtful_come_first_and_verified_ones_last(tmp_path: Path) -> None:
    sure, unsure, flagged, seen = (
        finished(number, text_confidence=confidence, flags=flags)
        for number, confidence, flags in ((0, 0.9, ""), (1, 0.3, ""), (2, 0.95, "truncated repetitive"), (3, 0.1, ""))
    )
    client = client_of(tmp_path, sure, unsure, flagged, seen)
    client.correct(3, "verified", "accepted")
    assert client.numbers() == [2, 1, 0, 3]


def test_a_calibrated_probability_decides_where_there_is_one(tmp_path: Path) -> None:
    records = [finished(number, p_wrong=p_wrong, flags="") for number, p_wrong in enumerate((0.1, 0.9, 0.5))]
    path = write_declared(tmp_path / "b.csv", dict.fromkeys(TRUST_COLUMNS, "text") | {"p_wrong": "number"}, records)
    assert Client(path).numbers() == [1, 2, 0]


def test_rows_can_be_asked_for_as_they_are_in_the_csv_newest_first_and_at_random(tmp_path: Path) -> None:
    client = client_of(tmp_path, *(finished(number) for number in range(30)))
    assert client.numbers(order="csv") == list(range(30))
    assert client.numbers(order="newest") == list(range(30))[::-1]
    sample = client.numbers(order="random")
    assert sample != list(range(30)) and sorted(sample) == list(range(30)) and sample == client.numbers(order="random")


def test_the_newest_are_those_of_the_last_timestamp(tmp_path: Path) -> None:
    client = client_of(tmp_path, finished(0), finished(1))
    text = client.csv.read_text()
    client.csv.write_text(re.sub(r"\d{4}(-\d\d-\d\dT\d\d:\d\d:\d\d)", r"2031\1", text, count=1))
    assert Client(client.csv).numbers(order="newest") == [0, 1]


@pytest.fixture
def alike(tmp_path: Path) -> Client:
    """Rows 0, 1 and 3 are near-duplicates, the later the more doubtful; 2 is another picture, 4 has no vector."""
    one, other = np.array([1, 0, 0], np.float32), np.array([0, 1, 0], np.float32)
    vectors = [one, one, other, one + np.array([0, 0.01, 0], np.float32)]
    records = [finished(row, image_vector=each, text_confidence=0.9 - row / 10) for row, each in enumerate(vectors)]
    client = client_of(tmp_path, *records, failed(4))
    wait_until(lambda: client.get()["grouped"])
    return client


def test_one_of_each_group_comes_first(alike: Client) -> None:
    assert alike.numbers(where="-error") == [3, 2, 1, 0]
    assert [row["group"] for row in alike.post("rows", rows=[0, 1, 2, 3, 4])] == [1, 1, 0, 1, 0]


def test_of_a_group_one_alone_is_listed_where_that_is_asked(alike: Client) -> None:
    assert alike.numbers(where="-error", unique=True) == [3, 2]
    assert alike.numbers(where="text_confidence>0.75", unique=True) == [1]
    assert alike.numbers(order="csv", unique=True) == [0, 2, 4]


def test_no_other_one_of_a_group_comes_early_once_one_is_verified(alike: Client) -> None:
    alike.correct(0, "verified", "accepted")
    assert alike.numbers(where="-error") == [2, 3, 1, 0]
    alike.post("undo", act=1)
    alike.correct(2, "verified", "accepted")
    assert alike.numbers(where="-error") == [3, 1, 0, 2]


def test_groups_are_found_again_when_rows_have_come(alike: Client) -> None:
    alike.review.groups._rests_until_s = 0
    write(alike.csv, [finished(5, image_vector=np.array([0, 1, 0], np.float32))])
    wait_until(lambda: bool(alike.row(5)["group"]))
    assert [row["group"] for row in alike.post("rows", rows=[2, 5])] == [2, 2]


def test_a_csv_without_rows_is_reviewed(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    for order in ("worth", "csv", "newest", "random"):
        assert client.get(order=order, unique=True, where="red")["rows"] == []
    assert client.bulk({"kind": "reset", "column": ""})["changes"] == 0


def test_rows_without_vectors_are_listed_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    client = client_of(tmp_path, failed(0), failed(1))
    wait_until(lambda: client.get()["grouped"])
    assert client.numbers(unique=True) == [0, 1]
    assert not caplog.records


# --- the next row to decide on


def test_the_next_row_is_one_that_nobody_has_decided_on(client: Client) -> None:
    client.correct(2, "verified", "accepted")
    client.correct(3, "verified", "rejected")

    def after(row: int, **parameters: Any) -> Any:
        return client.get("/next", after=row, order="csv", **parameters)["row"]

    assert [after(row) for row in range(ROWS)] == [1, 4, 4, 4, 5, 0]
    assert after(0, where='text~"number 5"') == 5
    assert after(3, where="-verified") == 4  # which it fulfilled until it was decided on
    assert after(5, where='text~"number 5"') is after(0, where="verified") is None
    assert client.http.get("/v1/review/next", params={"after": ROWS}).status_code == 422
    assert client.http.get("/v1/review/next", params={"after": 0, "where": "ctegory:x"}).status_code == 422


def test_a_row_keeps_its_place_among_doubtful_ones_while_it_is_decided_on(tmp_path: Path) -> None:
    client = client_of(tmp_path, *(finished(row, text_confidence=each) for row, each in enumerate((0.9, 0.3, 0.1))))
    client.correct(1, "verified", "accepted")
    assert client.get("/next", after=1)["row"] == 0
    assert client.get("/next", after=0)["row"] == 2


def test_the_next_row_is_not_of_a_group_that_was_looked_at(alike: Client) -> None:
    assert alike.get("/next", after=3, where="-error", unique=True)["row"] == 2
    assert alike.get("/next", after=2, where="-error")["row"] == 1
    assert alike.get("/next", after=2, where="-error", unique=True)["row"] == 3


# --- pages that were loaded before the server was started again


def test_a_csv_has_the_same_id_each_time_and_a_server_has_another(client: Client, tmp_path: Path) -> None:
    first = client.get()
    client.review.close()
    os.symlink(client.csv, tmp_path / "link.csv")
    second, other = Client(tmp_path / "link.csv").get(), client_of(tmp_path).get()
    assert re.fullmatch("[0-9a-f]{16}", first["csv"]) and re.fullmatch("[0-9a-f]{16}", first["server"])
    assert first["csv"] == second["csv"] != other["csv"] and first["server"] != second["server"]


@pytest.mark.parametrize(("row", "key"), [(1, 0), (ROWS, 0)])
def test_a_row_that_has_another_picture_is_not_changed(client: Client, row: int, key: int) -> None:
    changes = [
        {"row": 0, "column": "text", "value": "x", "key": finished(0).key},
        {"row": row, "column": "text", "value": "x", "key": finished(key).key},
    ]
    expected = {"detail": "the row has another picture now: load the page again", "conflicts": []}
    assert client.post("correct", 409, changes=changes) == expected
    assert client.get("/acts") == []
    assert client.post("correct", changes=changes[:1])["act"] == 1


def test_numbers_of_rows_of_an_earlier_server_are_refused(client: Client) -> None:
    request: dict[str, Any] = {"operation": {"kind": "set", "column": "text", "value": "x"}, "preview": False}
    expected = {"detail": "the server was started again: load the page again", "conflicts": []}
    assert client.post("bulk", 409, rows=[1], server="0123456789abcdef", **request) == expected
    assert client.get("/acts") == []
    assert client.post("bulk", rows=[1], server=client.get()["server"], **request)["changes"] == 1
    assert client.post("bulk", where="number", server="0123456789abcdef", **request)["changes"] == ROWS - 1


def test_an_act_of_another_csv_is_not_undone(client: Client) -> None:
    client.correct(0, "text", "x")
    expected = {"detail": "the act is of another CSV: load the page again", "conflicts": []}
    assert client.post("undo", 409, act=1, csv="0123456789abcdef") == expected
    changes = [{"row": 0, "column": "description", "value": "mine"}]
    refused = client.post("correct", 409, changes=changes, csv="0123456789abcdef")
    assert refused == {"detail": "the row is of another CSV: load the page again", "conflicts": []}
    assert client.post("undo", act=1, csv=client.get()["csv"])["act"] == 2


# --- corrections


def test_a_correction_is_shown_beside_what_the_model_wrote(client: Client) -> None:
    answer = client.correct(1, "text", 'A "green" car,\nnot red', seen=0, who="ann")
    [row] = answer["rows"]
    assert row == client.row(1)
    assert row["values"]["text"] == 'A "green" car,\nnot red'
    assert row["machine"] == {"text": finished(1).values["text"]} and row["acts"] == {"text": answer["act"]}
    assert client.row(0)["values"]["text"] == finished(0).values["text"]
    assert load_annotations(client.csv)["text"][1] == 'A "green" car,\nnot red'
    assert load_annotations(client.csv, machine=True)["text"][1] == finished(1).values["text"]


def test_a_value_goes_back_to_what_the_model_wrote(client: Client) -> None:
    act = client.correct(1, "text", "x")["act"]
    back = client.correct(1, "text", None, seen=act)
    row = client.row(1)
    assert row["values"]["text"] == finished(1).values["text"] and row["machine"] == {}
    assert row["acts"] == {"text": back["act"]}  # what a further change has to have seen
    client.correct(1, "text", "y", seen=0, status=409)
    client.correct(1, "text", "y", seen=back["act"])


def test_numbers_json_and_marks_are_corrected(tmp_path: Path) -> None:
    client = Client(write_declared(tmp_path / "b.csv", {"size": "number", "objects": "json"}, [finished(0, size=1)]))
    for column, text, value in (
        ("size", "2.50", 2.5),
        ("objects", '{"a": 1}', '{"a": 1}'),
        ("verified", "accepted", "accepted"),
    ):
        client.correct(0, column, text)
        assert client.row(0)["values"][column] == value
    assert client.row(0)["verified"] == "accepted"
    client.correct(0, "size", "")
    client.correct(0, "objects", "")
    assert (client.row(0)["values"]["size"], client.row(0)["values"]["objects"]) == (None, "")
    assert client.numbers(where="size") == [] and client.numbers(where="verified:accepted") == [0]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("clip_score", "much", "clip_score: 'much' is not a number"),
        ("verified", "yes", "verified: 'yes' is neither accepted nor rejected"),
        ("image_path", "/etc/passwd", "image_path cannot be corrected"),
        ("flags", "x", "flags cannot be corrected"),
        ("image_vector", "[1]", "image_vector cannot be corrected"),
        ("titel", "x", "titel cannot be corrected: it is no column"),
    ],
)
def test_what_cannot_be_corrected_is_said(client: Client, column: str, value: str, said: str) -> None:
    assert client.correct(0, column, value, status=422)["detail"].startswith(said)
    assert client.get("/acts") == []


def test_zero_characters_are_left_out_and_halves_of_characters_refused(client: Client) -> None:
    client.correct(0, "text", "a\0b")
    assert client.row(0)["values"]["text"] == "ab"
    body = b'{"changes": [{"row": 0, "column": "text", "value": "\\ud800"}]}'
    response = client.http.post("/v1/review/correct", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422


def test_who_was_second_is_told_and_nothing_of_the_act_is_done(client: Client) -> None:
    first = client.correct(0, "text", "mine", seen=0, who="ann")["act"]
    changes = [
        {"row": 1, "column": "text", "value": "theirs too", "seen": 0},
        {"row": 0, "column": "text", "value": "theirs", "seen": 0},
    ]
    answer = client.post("correct", 409, changes=changes, who="bob")
    [conflict] = answer["conflicts"]
    assert "ann" in answer["detail"]
    expected = {"row": 0, "column": "text", "value": "mine", "who": "ann", "act": first, "what": "edit"}
    assert expected.items() <= conflict.items() and conflict["time"]
    assert client.row(1)["acts"] == {} and len(client.get("/acts")) == 1
    changes[1]["seen"] = first
    client.post("correct", changes=changes, who="bob")
    history = [(entry["who"], entry["old"], entry["new"]) for entry in client.get("/history/0")]
    assert history == [("bob", "mine", "theirs"), ("ann", None, "mine")]


def test_of_many_at_the_same_moment_each_is_saved_or_told(client: Client) -> None:
    results: list[int] = []
    beginning = threading.Barrier(WRITERS)

    def correct(writer: int) -> None:
        seen = 0
        beginning.wait()
        while len(results) < WRITERS * EACH:
            try:
                seen, _ = client.review.correct([Wish(0, "text", str(writer), seen)], str(writer))
                results.append(seen)
            except Conflict as conflict:
                seen = conflict.entries[0].now.act

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(correct, range(WRITERS)))  # which raises what they do
    history = client.get("/history/0")
    assert sorted(results) == list(range(1, len(history) + 1)) and len(history) >= WRITERS * EACH
    assert [entry["old"] for entry in history] == [*(entry["new"] for entry in history[1:]), None]
    assert client.row(0)["values"]["text"] == history[0]["new"]


def test_corrections_outlive_the_server(client: Client) -> None:
    client.correct(3, "text", "kept")
    client.review.close()
    again = Client(client.csv)
    assert again.row(3)["values"]["text"] == "kept" and again.get()["acts"] == 1
    again.correct(3, "text", "x", seen=0, status=409)


# --- many rows

KEYWORDS = ("car, red", "Red, blue", "", "blue,red ,RED")
TEXTS = ("A red CAR. the end", "a car", "", "no. really")
OPERATIONS: list[tuple[dict[str, Any], dict[int, str]]] = [
    ({"kind": "replace", "column": "text", "find": "car", "with": "b\\1"}, {0: "A red b\\1. the end", 1: "a b\\1"}),
    ({"kind": "replace", "column": "text", "find": "car", "with": "bus", "match_case": True}, {1: "a bus"}),
    ({"kind": "replace", "column": "text", "find": "a.", "with": "x"}, {}),
    ({"kind": "replace", "column": "text", "find": r"(\w+)$", "with": r"<\1>", "regex": True},
     {0: "A red CAR. the <end>", 1: "a <car>", 3: "no. <really>"}),
    ({"kind": "replace", "column": "text", "find": "^$", "with": "none", "regex": True}, {2: "none"}),
    ({"kind": "prefix", "column": "text", "text": "Photo: "},
     {0: "Photo: A red CAR. the end", 1: "Photo: a car", 3: "Photo: no. really"}),
    ({"kind": "suffix", "column": "text", "text": "!"}, {0: "A red CAR. the end!", 1: "a car!", 3: "no. really!"}),
    ({"kind": "trigger", "column": "text", "text": "no"}, {0: "no, A red CAR. the end", 1: "no, a car"}),
    ({"kind": "trigger", "column": "text", "text": "n"},
     {0: "n, A red CAR. the end", 1: "n, a car", 3: "n, no. really"}),
    ({"kind": "trigger", "column": "keywords", "text": " blue, "},
     {0: "blue, car, red", 1: "blue, Red"}),
    ({"kind": "trigger", "column": "keywords", "text": " red "}, {0: "red, car", 3: "red, blue"}),
    ({"kind": "case", "column": "text", "to": "lower"}, {0: "a red car. the end"}),
    ({"kind": "case", "column": "text", "to": "upper"}, {0: "A RED CAR. THE END", 1: "A CAR", 3: "NO. REALLY"}),
    ({"kind": "case", "column": "text", "to": "sentence"}, {0: "A red car. The end", 1: "A car", 3: "No. Really"}),
    ({"kind": "add_keyword", "keyword": "blue"}, {0: "car, red, blue", 2: "blue"}),
    ({"kind": "add_keyword", "keyword": "Blue, car,"},
     {0: "car, red, Blue", 1: "Red, blue, car", 2: "Blue, car", 3: "blue, red, RED, car"}),
    ({"kind": "remove_keyword", "keyword": "blue, CAR"}, {0: "red", 1: "Red", 3: "red, RED"}),
    ({"kind": "rename_keyword", "keyword": "blue, car", "to": "sea, Red"},
     {0: "sea, Red", 1: "Red, sea", 3: "sea, Red"}),
    ({"kind": "remove_keyword", "keyword": "Red"}, {0: "car", 1: "blue", 3: "blue"}),
    ({"kind": "rename_keyword", "keyword": "blue", "to": "red"}, {1: "red", 3: "red"}),
    ({"kind": "unique_keywords"}, {3: "blue, red"}),
    ({"kind": "sort_keywords"}, {1: "blue, Red"}),
    ({"kind": "set", "column": "text", "value": "a car"}, {0: "a car", 2: "a car", 3: "a car"}),
    ({"kind": "set", "column": "verified", "value": "accepted"}, dict.fromkeys(range(4), "accepted")),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "expected"), OPERATIONS, ids=[json.dumps(each[0])[9:60] for each in OPERATIONS])
def test_an_operation_changes_what_its_preview_says_as_one_act_that_can_be_undone(
    tmp_path: Path, operation: dict[str, Any], expected: dict[int, str]
) -> None:
    records = [finished(row, text=text, keywords=KEYWORDS[row]) for row, text in enumerate(TEXTS)]
    client = client_of(tmp_path, *records)
    column = operation.get("column", "keywords")
    before = client.column(column)
    preview = client.bulk(operation, preview=True)
    assert {each["row"]: each["new"] for each in preview["examples"]} == expected
    assert all(each["old"] == before[each["row"]] and each["column"] == column for each in preview["examples"])
    assert (preview["rows"], preview["changes"], preview["act"]) == (4, len(expected), None)
    assert client.column(column) == before and client.get("/acts") == []
    done = client.bulk(operation)
    assert done == preview | {"act": 1 if expected else None}
    assert client.column(column) == [expected.get(row, text) for row, text in enumerate(before)]
    assert [act["changes"] for act in client.get("/acts")] == ([len(expected)] if expected else [])
    if expected:
        assert client.post("undo", act=1) == {"act": 2, "rows": sorted(expected)}
        assert client.column(column) == before


def test_rows_are_chosen_by_a_query_or_by_their_numbers(client: Client) -> None:
    operation = {"kind": "set", "column": "categories", "value": "x"}
    assert client.post("bulk", where='text~"number 3"', operation=operation)["changes"] == 1
    found = client.post("bulk", rows=[5, 1, 5], operation=operation, preview=False)
    assert (found["rows"], found["changes"]) == (2, 2)
    assert client.numbers(where="category:x", order="csv") == [1, 5]
    assert client.post("bulk", rows=[], operation=operation)["rows"] == 0
    assert "did you mean" in client.bulk(operation, "ctegory:x", 422)["detail"]


def test_the_rows_of_an_act_are_counted_as_they_were_before_it(client: Client) -> None:
    operation = {"kind": "replace", "column": "text", "find": "red", "with": "blue"}
    done = client.bulk(operation, "text~red -text~3")
    assert (done["rows"], done["changes"]) == (ROWS - 1, ROWS - 1)


def test_a_preview_shows_a_few_examples_and_counts_all(tmp_path: Path) -> None:
    client = client_of(tmp_path, *(finished(row) for row in range(30)))
    found = client.bulk({"kind": "prefix", "column": "text", "text": "x"}, preview=True)
    assert found["changes"] == 30 and len(found["examples"]) == 20


def test_what_people_corrected_is_taken_back_in_one_column_or_in_all(client: Client) -> None:
    client.correct(0, "text", "x")
    client.correct(1, "text", "y")
    client.correct(1, "verified", "accepted")
    found = client.bulk({"kind": "reset", "column": "text"})
    assert [(each["row"], each["old"], each["new"]) for each in found["examples"]] == [(0, "x", None), (1, "y", None)]
    assert client.row(1)["machine"] == {"verified": ""} and client.row(0)["machine"] == {}
    assert client.bulk({"kind": "reset", "column": ""})["changes"] == 1
    assert client.row(1)["verified"] == ""
    assert client.bulk({"kind": "reset", "column": ""})["act"] is None


def test_the_history_says_what_was_done_to_many(client: Client) -> None:
    client.bulk({"kind": "add_keyword", "keyword": "new"})
    client.bulk({"kind": "replace", "column": "text", "find": "red", "with": "blue"})
    client.post("undo", act=2, who="ann")
    acts = client.get("/acts")
    assert [act["what"] for act in acts] == [
        'undo: replace "red" by "blue" in text', 'replace "red" by "blue" in text', 'add "new" to keywords',
    ]  # fmt: skip
    assert [(act["who"], act["undoes"], act["undone_by"]) for act in acts] == [("ann", 2, 0), ("", 0, 3), ("", 0, 0)]
    assert [act["id"] for act in client.get("/acts", most=1, before=3)] == [2]
    assert client.get()["acts"] == 3


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        ({"kind": "replace", "column": "text", "find": "(", "with": "", "regex": True}, "missing )"),
        ({"kind": "replace", "column": "text", "find": "a", "with": r"\2", "regex": True}, "requests 2"),
        ({"kind": "replace", "column": "clip_score", "find": "a", "with": ""}, "clip_score holds no free text"),
        ({"kind": "case", "column": "verified", "to": "upper"}, "verified holds no free text"),
        ({"kind": "prefix", "column": "flags", "text": "x"}, "flags cannot be corrected"),
        ({"kind": "add_keyword", "column": "tags", "keyword": "x"}, "tags cannot be corrected: it is no column"),
        ({"kind": "set", "column": "verified", "value": "maybe"}, "neither accepted nor rejected"),
        ({"kind": "set", "column": "clip_score", "value": "maybe"}, "not a number"),
        ({"kind": "reset", "column": "titel"}, "titel cannot be corrected"),
        ({"kind": "explode", "column": "text"}, "kind"),
        ({"kind": "replace", "column": "text", "find": "", "with": "x"}, "find"),
        ({"kind": "add_keyword", "keyword": "  "}, "it has no word"),
        ({"kind": "remove_keyword", "keyword": " , "}, "it has no word"),
        ({"kind": "rename_keyword", "keyword": "red", "to": " "}, "it has no word"),
        ({"kind": "trigger", "column": "text", "text": " "}, "it has no word"),
        ({"kind": "trigger", "column": "text", "text": "a\nb"}, "it has a line break: use commas"),
        ({"kind": "add_keyword", "keyword": "a\u2028b"}, "it has a line break: use commas"),
    ],
)
def test_an_operation_that_cannot_be_done_is_explained(client: Client, operation: dict[str, Any], said: str) -> None:
    for preview in (True, False):
        assert said in client.bulk(operation, "", 422, preview=preview)["detail"]
    assert client.get("/acts") == []


@pytest.mark.parametrize(
    ("operation", "characters"),
    [
        ({"kind": "replace", "find": ".", "regex": True, "with": "bb"}, 199_998),
        ({"kind": "suffix", "text": "bb"}, 100_001),
        ({"kind": "trigger", "text": "b"}, 100_002),
    ],
)
def test_a_text_that_would_become_too_long_is_named(tmp_path: Path, operation: dict[str, Any], characters: int) -> None:
    client = client_of(tmp_path, finished(0, text="a"), finished(1, text="a" * 99_999))
    said = f"text of /photos/000001.jpg (row 1) would get a text of {characters:,} characters: use 100,000 at most"
    assert client.bulk({"column": "text", **operation}, "", 422)["detail"] == said
    assert client.bulk({"column": "text", **operation}, "-text~aa")["changes"] == 1


def test_a_text_by_hand_can_be_as_long_as_one_of_an_operation(client: Client) -> None:
    said = "text would get a text of 100,001 characters: use 100,000 at most"
    assert client.correct(0, "text", "a" * 100_001, status=422)["detail"] == said
    client.correct(0, "text", "a" * 100_000)


def test_a_text_of_a_model_that_is_too_long_is_in_nobodys_way(tmp_path: Path) -> None:
    client = client_of(tmp_path, finished(0, text="a" * 100_001), finished(1, text="b"))
    assert client.bulk({"kind": "replace", "column": "text", "find": "b", "with": "c"})["changes"] == 1


def test_a_replacement_makes_few_texts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_module, "MADE_AT_ONCE", 100)
    made: list[int] = []
    replace_in = pc.replace_substring_regex

    def counted(few: Any, *rest: Any) -> Any:
        made.append(len(few))
        return replace_in(few, *rest)

    monkeypatch.setattr(pc, "replace_substring_regex", counted)
    operation = Replace.model_validate({"kind": "replace", "column": "text", "find": "a", "with": "b" * 9})
    cells = ["a" * 4, "a" * 4, "", "a" * 30, "", "x"]
    changed = operation.changed(cells)
    assert next(iter(changed)) == "b" * 36 and made == [2]  # the others are made once these were looked at
    assert list(operation.changed(cells)) == ["b" * 36, "b" * 36, "", "b" * 270, "", "x"]
    assert made[1:] == [2, 1, 1, 2]


def test_the_case_of_many_empty_lines_is_changed_quickly() -> None:
    began_s = time.monotonic()
    operation = Case(kind="case", column="text", to="sentence")
    assert operation.new("ONE" + "\n" * 100_000) == "One" + "\n" * 100_000
    assert time.monotonic() - began_s < 2


def test_a_bulk_act_keeps_what_was_corrected_since_its_preview(client: Client) -> None:
    client.bulk({"kind": "suffix", "column": "text", "text": "!"}, preview=True)
    client.correct(0, "text", "mine")
    client.bulk({"kind": "suffix", "column": "text", "text": "!"})
    assert client.row(0)["values"]["text"] == "mine!"


# --- undo


def test_an_undone_act_can_be_done_again(client: Client) -> None:
    client.correct(0, "text", "x")
    client.post("undo", act=1)
    assert client.row(0)["values"]["text"] == finished(0).values["text"]
    assert client.post("undo", act=2) == {"act": 3, "rows": [0]}
    assert client.row(0)["values"]["text"] == "x"


def test_an_act_is_not_undone_where_a_value_was_changed_since(client: Client) -> None:
    client.bulk({"kind": "set", "column": "text", "value": "x"})
    client.correct(2, "text", "later", who="ann")
    answer = client.post("undo", 409, act=1)
    assert [(each["row"], each["value"], each["who"]) for each in answer["conflicts"]] == [(2, "later", "ann")]
    assert client.row(0)["values"]["text"] == "x"


@pytest.mark.parametrize(("act", "said"), [(1, "undone already"), (9, "not there")])
def test_there_may_be_nothing_to_undo(client: Client, act: int, said: str) -> None:
    client.correct(0, "text", "x")
    client.post("undo", act=1)
    answer = client.post("undo", 409, act=act)
    assert said in answer["detail"] and answer["conflicts"] == []


# --- a table that grows


def test_rows_that_come_are_there_at_the_next_request(csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "PART_ROWS", 4)
    with closing(Corrections(csv)) as corrections:
        corrections.correct([])
    client = Client(csv)
    client.correct(5, "text", "before")
    client.correct(1, "text", "early")
    with closing(CsvFile(csv, TRUST_COLUMNS)) as sink:
        for number in range(ROWS, 15):
            sink.write([finished(number)])
            assert client.get()["total"] == number + 1
    client.correct(14, "text", "after")
    expected = {1: "early", 5: "before", 14: "after"}
    assert client.column("text") == [expected.get(row, finished(row).values["text"]) for row in range(15)]
    assert client.column("image_path") == [f"/photos/{row:06}.jpg" for row in range(15)]
    assert client.numbers(where="early") == [1] and client.numbers(where="after") == [14]
    assert client.bulk({"kind": "reset", "column": ""})["changes"] == 3


def test_a_row_that_was_corrected_before_it_came_back_is_corrected(csv: Path) -> None:
    with closing(Corrections(csv)) as corrections:
        corrections.correct([change_of(ROWS)])
    client = Client(csv)
    assert client.get()["total"] == ROWS
    write(csv, [finished(ROWS)])
    assert client.row(ROWS)["values"]["text"] == "known"


def change_of(number: int) -> Any:
    from vec_pipeline.corrections import Change

    return Change(finished(number).key, "text", "known")


def test_a_torn_row_is_left_out_until_it_is_whole(csv: Path) -> None:
    client = Client(csv)
    whole = csv.read_bytes()
    row = whole[whole.rindex(b"/photos/") :].replace(b"000005", b"000006")
    csv.write_bytes(whole + row[: len(row) // 2])
    assert client.get()["total"] == ROWS
    csv.write_bytes(whole + row)
    assert client.get()["total"] == ROWS + 1


def test_a_csv_that_cannot_be_read_any_more_is_said(client: Client) -> None:
    client.csv.unlink()
    response = client.http.get("/v1/review")
    assert response.status_code == 503 and "the rows cannot be read" in response.json()["detail"]


def test_corrections_that_cannot_be_kept_are_refused_and_can_be_sent_again(client: Client) -> None:
    path = client.csv.with_name("a.corrections.sqlite")
    path.mkdir()
    assert "a.corrections.sqlite" in client.correct(0, "text", "x", status=503)["detail"]
    path.rmdir()
    client.correct(0, "text", "x")
    assert client.row(0)["values"]["text"] == "x"


# --- pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Client:
    """Rows of a picture that lies on its side, of one that is gone, and of one that is none."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200), "red").save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "c.jpg").write_bytes(b"no picture")
    return client_of(tmp_path, *(Record(str(tmp_path / name)) for name in ("a.jpg", "b.jpg", "c.jpg")), columns=())


def test_a_picture_is_upright_and_as_small_as_asked(pictures: Client, tmp_path: Path) -> None:
    address = pictures.row(0)["picture"]
    response = pictures.http.get(f"{address}&px=256")
    assert response.headers["content-type"] == "image/jpeg"
    (tmp_path / "got.jpg").write_bytes(response.content)
    assert Image.open(tmp_path / "got.jpg").size == (128, 256)
    assert Image.open(tmp_path / "got.jpg").getpixel((60, 60))[0] > 200  # type: ignore[index]


def test_a_browser_keeps_a_picture_until_it_is_another(pictures: Client, tmp_path: Path) -> None:
    address = pictures.row(0)["picture"]
    response = pictures.http.get(address)
    assert response.headers["cache-control"] == "private, max-age=3600"
    known = {"If-None-Match": response.headers["etag"]}
    again = pictures.http.get(address, headers=known)
    assert again.status_code == 304 and again.content == b""
    assert pictures.http.get(f"{address}&px=300", headers=known).status_code == 200
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg")
    assert pictures.http.get(address, headers=known).status_code == 200


def test_a_picture_that_cannot_be_shown_is_said(pictures: Client) -> None:
    gone, none = (pictures.http.get(pictures.row(row)["picture"]) for row in (1, 2))
    assert gone.status_code == 404 and gone.json()["detail"].startswith("the picture is gone, or cannot be read")
    assert none.status_code == 422 and none.json()["detail"].startswith("it cannot be opened")
    other = pictures.http.get("/v1/review/picture/0", params={"v": "0123abcd"})
    assert other.json()["detail"] == "this row has another picture: load the page again"


def test_what_corrected_pictures_look_like_is_noted(pictures: Client) -> None:
    options = "{open_image: {use: open_image, max_size_px: 112, truncated: pad}}"
    settings_path(pictures.csv).write_text(f"stages: {options}\nsources: []\ncolumns: {{}}\n")
    for row in (2, 1, 0):  # those that cannot be opened first
        pictures.correct(row, "text", "x")

    def noted() -> list[str]:
        import sqlite3

        with closing(sqlite3.connect(pictures.csv.with_name("b.corrections.sqlite"))) as connection:
            query = "SELECT key FROM places JOIN pixels USING (picture)"
            return [Path(key).name for (key,) in connection.execute(query)]

    wait_until(lambda: noted() == ["a.jpg"])


def test_a_picture_is_looked_at_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(pixels_module, "pixels_of", lambda _: ("any", seen.append))  # which returns None: it is gone
    for row in range(3):
        client.correct(row, "text", "x")
        wait_until(lambda number=row: len(seen) > number)  # type: ignore[misc]
    assert seen == [finished(row).key for row in range(3)]


# --- the program


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = write(tmp_path_factory.mktemp("served") / "a.csv", [finished(number) for number in range(ROWS)])
    with running(path, "--review-only") as server:
        yield server, path


def test_a_server_without_models_reviews(served: Any) -> None:
    server, path = served
    assert server.client.get("/v1/review").json()["total"] == ROWS
    body = {"changes": [{"row": 0, "column": "text", "value": "x", "seen": 0}]}
    assert server.client.post("/v1/review/correct", json=body).status_code == 200
    assert load_annotations(path)["text"][0] == "x"
    assert server.client.get("/").headers["location"] == "/review"
    assert server.client.get("/review").headers["content-type"].startswith("text/html")
    assert server.client.get("/healthz").json() == {"status": "ok", "waiting": 0}
    asked = [server.client.get(f"/v1/{path}") for path in ("search", "options", "annotations/0/image")]
    for response in (server.post(b"x"), *asked):
        assert response.status_code == 404
        assert response.json()["detail"] == "this server only reviews: start one without --review-only to annotate"


def test_pages_elsewhere_cannot_review(served: Any) -> None:
    server, _ = served
    for path in ("correct", "bulk", "undo", "rows"):
        response = server.client.post(f"/v1/review/{path}", json={}, headers={"Origin": "http://elsewhere.example"})
        assert response.status_code == 403
    assert server.client.get("/v1/review", headers={"Host": "elsewhere.example"}).status_code == 421


def test_a_second_server_and_a_run_are_kept_out(served: Any) -> None:
    _, path = served
    found = serve("--csv", path, "--review-only")
    assert found.returncode == 2 and "is in use by another worker" in found.stderr and "--csv" in found.stderr


def test_a_token_is_needed_for_rows_and_not_for_the_page(csv: Path) -> None:
    token = serve("--csv", csv, "--new-token").stdout.split()[-1]
    with running(csv, "--review-only") as server:
        assert server.client.get("/review").status_code == 200
        for path in ("", "/acts", "/picture/0", "/history/0"):
            assert server.client.get(f"/v1/review{path}").status_code == 401
        headers = {"Authorization": f"Bearer {token}"}
        assert server.client.get("/v1/review", headers=headers).json()["total"] == ROWS
        assert server.end() == 0


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (None, ("--csv", "a.csv", "--review-only"), "a.csv does not exist"),
        ("a,b\n", ("--csv", "a.csv", "--review-only"), "does not begin with the columns of an annotation"),
        (None, ("--ephemeral", "--review-only"), "--review-only saves corrections: leave --ephemeral out"),
    ],
)
def test_what_cannot_be_reviewed_is_said_before_anything_begins(
    tmp_path: Path, content: str | None, arguments: tuple[str, ...], said: str
) -> None:
    if content:
        (tmp_path / "a.csv").write_text(content)
    found = serve(*arguments, cwd=tmp_path)
    assert found.returncode == 2 and said in found.stderr
    assert not (tmp_path / "a.lock").exists()


def test_a_folder_that_cannot_be_written_is_said(csv: Path) -> None:
    csv.with_name("a.lock").unlink()
    csv.with_name("a.lock").mkdir()  # nobody is kept out of writing who is root
    found = serve("--csv", csv, "--review-only")
    assert found.returncode == 2
    assert f"the folder of {csv} cannot be written, where corrections are saved" in found.stderr


def serve(*arguments: object, cwd: Path = PROJECT) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vec_pipeline", "serve", "--port", "0", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, env=environment)
