"""The query language on a page from the disk: the same queries over the same rows find the same as in Python.

The script runs in node, as a browser runs it. Without node these tests are skipped, or fail where VEC_REQUIRE_NPM is
set.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests.npm_packages import skip
from tests.test_gallery import Page, driver, emulated, opened, violations  # noqa: F401 (driver is a fixture)
from tests.test_report import record, write_csv
from vec_pipeline.__main__ import main
from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands.report.report import machine_values, types_of
from vec_pipeline.commands.report.site import PAGE
from vec_pipeline.corrections import Change, Corrections
from vec_pipeline.query import Query
from vec_pipeline.record import UserError

TYPES = {
    "image_path": "text",
    "text": "text",
    "description": "text",
    "categories": "text",
    "keywords": "text",
    "image_text": "text",
    "image_vector": "vector",
    "timestamp": "text",
    "error": "text",
    "llama_extracted": "text",
    "flags": "text",
    "text_confidence": "number",
    "objects": "json",
    "verified": "text",
}
EMPTY: dict[str, Any] = {name: None if kind in ("number", "vector", "json") else "" for name, kind in TYPES.items()}
ROWS: list[dict[str, Any]] = [
    {
        "image_path": "/photos/car.jpg",
        "text": 'A red car. The text reads "SALE 50% off".',
        "description": "A red car.",
        "categories": "vehicle",
        "keywords": "car, red, for sale",
        "image_text": "SALE 50%",
        "image_vector": "[1]",
        "timestamp": "2026-11-26T08:15:00",
        "flags": "low_confidence repetitive",
        "text_confidence": 0.25,
        "objects": '[{"label":"car"},{"label":"street sign"}]',
    },
    {
        "image_path": "/photos/cafe.jpg",
        "text": "Café Über, a cat.\nIt sleeps, C:\\temp (a+b).",
        "description": "A CAT in a café",
        "categories": "food and drink, animal",
        "keywords": "cat, Café",
        "timestamp": "2026-10-31T23:59:59",
        "text_confidence": 1.0,
        "verified": "accepted",
    },
    {
        "image_path": "/photos/дом.jpg",
        "text": "Красный ДОМ",
        "categories": "vehicles",
        "keywords": "дом",
        "timestamp": "2026-11-01T00:00:00",
        "flags": "low_clip_score",
        "text_confidence": 0.5,
        "verified": "rejected",
    },
    {"image_path": "/photos/broken.jpg", "error": "open_image: OSError: truncated", "text": "vehicle, a:b"},
]
QUERIES = [
    "",
    "  ",
    "category:vehicle",
    "category:VEHICLE,animal",
    "-category:vehicle",
    'category:"food and drink"',
    "category:food",
    "category:",
    "-category:",
    "keyword:cat",
    'keyword:"for sale",дом',
    "keyword:ДОМ",
    "keyword:café",
    'keyword:"car, red"',
    "flag:low_confidence",
    "flag:repetitive flag:low_confidence",
    "flag:low",
    "flags~low",
    "flags",
    "-flags -error",
    "error",
    "verified",
    "-verified",
    "verified:accepted,rejected",
    "text~sale",
    'text~"50% off"',
    'text~"reads \\"sale"',
    "text~/red|cat/",
    "text~/^a.*car/",
    "text~/c.t\\b/",
    "text~/\\(a\\+b\\)/",
    "text~/\\bКрас/",
    "text~/C:\\\\temp/",
    "text~/a\\/b/",
    "text~/a\\:b/",
    "text~/[a-c]at/,дом",
    "text~/(?P<one>ca)r/",
    "text:/.*cat.*/",
    "text~",
    "text~50%",
    "cat",
    "CAFÉ",
    '"a red"',
    '-"a red" -cat',
    "vehicle",
    "photos",
    "truncated",
    "path~photos/c",
    "path:/photos/car.jpg",
    "path~/photos/c",
    "path~/photos/",
    "path:/photos/car.jpg,/photos/cafe.jpg",
    "text~/a.*b/c",
    "timestamp>yesterday",
    "timestamp>26.11.2026",
    'timestamp>="2026-11-26 08"',
    "timestamp>2026-1-2",
    "category!=vehicle",
    "cat OR car",
    "NOT cat",
    'path:"/photos/car.jpg"',
    "ocr~sale",
    "ocr",
    "image_vector",
    "-image_vector",
    "text_confidence<0.5",
    "text_confidence<=0.5",
    "text_confidence>0.5",
    "text_confidence>=.5",
    "text_confidence=1",
    "text_confidence:0.25,0.5",
    "-text_confidence>0",
    "text_confidence",
    "-text_confidence",
    "text_confidence~0.2",
    "text_confidence~1",
    "text_confidence<1e-1",
    "text_confidence<inf",
    "timestamp:2026-11",
    "timestamp=2026-11-26T08",
    "timestamp<2026-11",
    "timestamp>=2026-11-01",
    "-timestamp>2026-10",
    'timestamp~"26 08:15"',
    "timestamp",
    "objects:car",
    'objects:"street sign"',
    "objects:street",
    "objects~street",
    "objects",
    'category:vehicle -verified text~"sale"',
    "category",
    "path",
    "A+b",
    "(a+b)",
    '"C:\\\\temp"',
    "a=b",
    "http://a.b",
    "-",
    "--verified",
    # what cannot be read
    'text~"no end',
    'a"b',
    'category:"a"b"',
    '"a"b',
    "categry:x",
    "colour:x",
    "tags:x",
    "flath:x",
    "it's:x",
    "x.y:1",
    "image_vector:1",
    "image_vector~1",
    "text<3",
    "verified>=a",
    "objects>1",
    "text_confidence<high",
    "text_confidence<",
    "text_confidence:0x10",
    "text_confidence:it's",
    "text~/(/",
    "text~/*a/",
    "text~/(?=a)/",
    "text~/(?<!a)b/",
    "text~/(a)\\1/",
    "nosuch:1 text~\"no end",
    "text~/(/ nosuch:1",
]  # fmt: skip
RUN = """
const [types, rows, queries] = JSON.parse(require("fs").readFileSync(0, "utf8"));
const found = queries.map((query) => {
  try {
    const holds = queryOf(query, types);
    return rows.map((row) => holds((name) => row[name]));
  } catch (error) {
    if (!(error instanceof QueryError)) throw error;
    return error.message;
  }
});
console.log(JSON.stringify(found));
"""


def in_python(query: str, table: pa.Table) -> list[bool] | str:
    try:
        return list(Query(query, TYPES).mask(table).to_pylist())
    except UserError as error:
        return str(error)


@pytest.fixture(scope="module")
def on_the_page() -> dict[str, list[bool] | str]:
    """What the script of the page finds, query by query: whether each row fits, or what is wrong."""
    node = shutil.which("node") or ""
    if not node:
        skip("node is needed: install Node.js")
    script = (PAGE / "query.js").read_text(encoding="utf-8") + RUN
    given = json.dumps([TYPES, [EMPTY | row for row in ROWS], QUERIES])
    run = subprocess.run([node, "-e", script], input=given, capture_output=True, text=True, timeout=30, check=True)
    return dict(zip(QUERIES, json.loads(run.stdout), strict=True))


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """The rows as CsvReader has them."""
    import pyarrow.compute as pc

    found = pa.Table.from_pylist([EMPTY | row for row in ROWS], pa.schema([(name, kind_of(name)) for name in TYPES]))
    times = pc.cast(pc.if_else(pc.equal(found["timestamp"], ""), None, found["timestamp"]), pa.timestamp("s"))
    return found.set_column(found.column_names.index("timestamp"), "timestamp", times)


def kind_of(name: str) -> pa.DataType:
    return pa.float64() if TYPES[name] == "number" else pa.string()


@pytest.mark.parametrize("query", QUERIES)
def test_finds_what_python_finds(query: str, on_the_page: dict[str, list[bool] | str], table: pa.Table) -> None:
    assert on_the_page[query] == in_python(query, table)


def test_the_queries_find_something_and_not_all(on_the_page: dict[str, list[bool] | str]) -> None:
    """So that two empty answers are not taken for equal ones."""
    found = [answer for answer in on_the_page.values() if not isinstance(answer, str)]
    assert sum(any(answer) and not all(answer) for answer in found) > 0.7 * len(found)


# --- in the gallery


def test_it_can_be_asked_for_what_is_verified_before_anything_is(tmp_path: Path) -> None:
    with CsvReader(write_csv(tmp_path / "a.csv", [record("/photos/1.jpg")])) as reader:
        assert types_of(reader)["verified"] == "text"
        assert machine_values(reader) == {}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery with columns of its own, two of whose rows have been corrected and verified."""
    folder = tmp_path_factory.mktemp("corrected")
    (folder / "annotations.settings.yaml").write_text(
        "columns: {flags: text, text_confidence: number, faces: number, description_ru: text}\nstages: {}\n"
    )
    rows = [
        record(
            f"/photos/{number}.jpg",
            categories="vehicle" if number % 2 else "animal",
            keywords="red, old",
            description=f"Picture {number}.",
            text_confidence=number / 4,
            faces=number,
            description_ru=f"Картинка {number}",
        )
        for number in range(4)
    ]
    csv = write_csv(folder / "a.csv", rows, ("flags", "text_confidence", "faces", "description_ru"))
    (folder / "annotations.settings.yaml").rename(folder / "a.settings.yaml")
    corrections = Corrections(csv)
    changes = [
        Change("/photos/1.jpg", "categories", "boat"),
        Change("/photos/1.jpg", "description", "<b>A boat</b>"),
        Change("/photos/1.jpg", "faces", "7"),
        Change("/photos/1.jpg", "verified", "accepted"),
    ]
    corrections.correct([*changes, Change("/photos/2.jpg", "verified", "rejected")])
    corrections.close()
    assert main(["report", "--csv", str(csv), "--out", str(folder / "site")]) == 0
    return folder / "site"


@pytest.fixture
def page(driver: webdriver.Chrome, site: Path) -> Iterator[Page]:  # noqa: F811
    yield from opened(driver, site)


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("category:boat", ["1.jpg"]),
        ("category:vehicle", ["3.jpg"]),
        ("-verified faces<3", ["0.jpg"]),
        ("faces:7", ["1.jpg"]),
        ("verified:rejected", ["2.jpg"]),
        ("description_ru~КАРТИНКА text_confidence>0.6", ["3.jpg"]),
        ("картинка", ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]),
        ("error", []),
    ],
)
def test_a_query_filters_the_gallery(page: Page, typed: str, names: list[str]) -> None:
    page.open()
    page.find("#where").send_keys(typed)
    page.until_equal(page.names, names)
    assert not page.find("#where-error").is_displayed()


def test_a_query_that_cannot_be_read_is_said_and_filters_nothing(page: Page) -> None:
    page.open()
    page.find("#where").send_keys("category:boat")
    page.until_equal(page.names, ["1.jpg"])
    page.find("#where").send_keys(' text~"')
    error = page.find("#where-error")
    page.until(error.is_displayed)
    assert error.text == """query 'category:boat text~"': 'text~"' cannot be read: put quotes around the whole value"""
    assert error.get_attribute("role") == "alert"
    assert page.find("#where").get_attribute("aria-invalid") == "true"
    assert page.names() == ["1.jpg"]  # those of the last query that could be read
    page.find("#where").send_keys(Keys.BACKSPACE * 7)
    page.until(lambda: not error.is_displayed())


def test_a_query_is_in_the_address_and_can_be_removed(page: Page) -> None:
    page.open("where=verified")
    page.until_equal(page.names, ["1.jpg", "2.jpg"])
    assert page.find("#where").get_attribute("value") == "verified"
    page.find("#chips button").click()
    page.until_equal(page.names, ["0.jpg", "1.jpg", "2.jpg", "3.jpg"])
    assert page.find("#where").get_attribute("value") == ""


def test_what_was_corrected_is_marked_with_what_the_machine_wrote(page: Page) -> None:
    page.open("image=1")
    facts = page.find("#detail-facts").text
    assert "<b>A boat</b>" in facts and "accepted" in facts and "7" in facts
    machine = page.texts(".machine dt, .machine dd")
    assert machine == ["description", "Picture 1.", "categories", "vehicle", "faces", "1"]
    page.open("image=2")
    assert "rejected" in page.find("#detail-facts").text
    assert page.texts(".machine") == []
    page.open()
    assert page.texts("#grid .verified") == ["accepted", "rejected"]


@pytest.mark.parametrize(("scheme", "width_px"), [("light", 1280), ("dark", 400)])
def test_accessibility_of_queries_and_corrections(page: Page, scheme: str, width_px: int) -> None:
    with emulated(page, scheme, width_px):
        for state in ("where=nosuch:1", "where=verified", "image=1"):
            page.open(state)
            assert violations(page) == set(), state
