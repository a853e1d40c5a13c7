"""Exports for SQLite, LanceDB and COCO: read back by datasette, LanceDB and pycocotools."""

import asyncio
import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.http_server import HttpServer
from tests.pairs import BLUE, RED, draw, pair, write_pairs
from tests.rows import VECTOR_COLUMNS, failed, finished, unit_vectors, write, write_declared
from vec_pipeline import load_annotations
from vec_pipeline.__main__ import main

TYPES = {"faces": "number", "objects": "json", "boxes": "vector", "scores": "vector", "speech": "file"}


def export(csv: Path, to: str, *arguments: object) -> int:
    return main(["export", "--csv", str(csv), "--to", to, *map(str, arguments)])


def exported(csv: Path, to: str, *arguments: object) -> Path:
    out = csv.with_name(f"out.{to}")
    assert export(csv, to, "--out", out, *arguments) == 0
    return out


# --- SQLite


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    """Rows with values of each type."""
    boxes = np.array([[1, 2, 30, 40]])
    records = [
        finished(0, text="Un café, « À la carte ».", keywords="café, red", categories="place", faces=2, boxes=boxes),
        failed(1),
        finished(2, objects=[{"label": "car"}], scores=np.array([0.5, 0.25], np.float32), speech="speech/2.wav"),
        finished(3, keywords="red,  blue,red", scores=np.zeros(0, np.float32), boxes=np.array([[0.5, 2]], np.float32)),
    ]
    return write_declared(tmp_path / "annotations.csv", TYPES, records)


def asked(database: Path, address: str) -> Any:
    """The JSON that datasette answers with."""
    from datasette.app import Datasette

    async def answer() -> Any:
        response = await Datasette([database]).client.get(f"/{database.stem}/{address}")
        assert response.status_code == 200, response.text
        return response.json()

    return asyncio.run(answer())


def selected(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def test_datasette_searches_the_texts(declared: Path) -> None:
    out = exported(declared, "sqlite")
    found = asked(out, "annotations.json?_search=CAFE+carte&_shape=array")
    assert [(row["row"], row["text"]) for row in found] == [(0, "Un café, « À la carte ».")]
    assert [row["row"] for row in asked(out, "annotations.json?_search=blue&_shape=array")] == [3], "a keyword"
    assert [row["row"] for row in asked(out, "annotations.json?_search_image_text=sale&_shape=array")] == [0, 2, 3]


def test_datasette_counts_categories_and_keywords(declared: Path) -> None:
    out = exported(declared, "sqlite")
    facets = asked(out, "annotations.json?_facet=categories&_size=0")["facet_results"]
    counts = {each["value"]: each["count"] for each in facets["categories"]["results"]}
    assert counts == {"vehicle": 2, "place": 1, "": 1}
    found = asked(out, "keywords.json?keyword=red&_shape=array")
    assert [row["row"] for row in found] == [0, 2, 3]
    assert selected(out, "SELECT keyword FROM keywords WHERE row = 3 ORDER BY 1") == [("blue",), ("red",)]


def test_a_database_has_every_column_and_its_type(declared: Path) -> None:
    out = exported(declared, "sqlite")
    with closing(sqlite3.connect(out)) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute("SELECT * FROM annotations ORDER BY row")]
    expected = load_annotations(declared, vectors=False)
    assert list(rows[0]) == ["row", *expected]
    assert [row["timestamp"] for row in rows] == [moment.isoformat() for moment in expected["timestamp"]]
    assert [row["faces"] for row in rows] == [2.0, None, None, None]
    assert [row["objects"] and json.loads(row["objects"]) for row in rows] == [None, None, [{"label": "car"}], None]
    assert [row["speech"] for row in rows] == ["", "", "speech/2.wav", ""]
    assert rows[1]["error"] == expected["error"][1]


def test_vectors_of_a_database_are_read_by_numpy(declared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vec_pipeline.sinks.csv_rows.BLOCK_BYTES", 500)  # a row each
    out = exported(declared, "sqlite")
    table = load_annotations(declared)
    for name in VECTOR_COLUMNS:
        for (blob,), vector in zip(selected(out, f"SELECT {name} FROM vectors ORDER BY row"), table[name], strict=True):
            assert (blob is None) == (vector is None)
            if blob is not None:
                np.testing.assert_array_equal(np.frombuffer(blob, "<f4"), vector)
    assert selected(out, "SELECT boxes, scores FROM vectors ORDER BY row") == [
        ("[[1, 2, 30, 40]]", None),
        (None, None),
        (None, np.array([0.5, 0.25], "<f4").tobytes()),
        ("[[0.5, 2.0]]", "[]"),
    ]


def test_filters_of_a_database_use_an_index(declared: Path) -> None:
    out = exported(declared, "sqlite")
    for query in ("annotations WHERE categories = 'x'", "keywords WHERE keyword = 'x'"):
        [(*_, plan)] = selected(out, f"EXPLAIN QUERY PLAN SELECT row FROM {query}")
        assert "USING COVERING INDEX" in plan


@pytest.mark.parametrize("names", [("Row",), ("size", "Size")])
def test_names_that_sqlite_takes_for_one_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...]
) -> None:
    csv = write_declared(tmp_path / "a.csv", dict.fromkeys(names, "text"), [finished(0)])
    assert export(csv, "sqlite", "--out", tmp_path / "out") == 2
    assert f"and {names[-1]} are one column to SQLite: rename one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_of_columns_are_only_names(tmp_path: Path) -> None:
    name = 'a "b"); DROP TABLE annotations; --'
    csv = write_declared(
        tmp_path / "a.csv", {name: "text", "order": "number"}, [finished(0, **{name: "x", "order": 2})]
    )
    assert asked(exported(csv, "sqlite"), "annotations.json?_search=x&_shape=array")[0][name] == "x"


def test_the_same_rows_make_the_same_database_again(declared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = exported(declared, "sqlite").read_bytes()
    assert exported(declared, "sqlite").read_bytes() == before

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vec_pipeline.commands.export.sqlite.index", fail)
    assert export(declared, "sqlite", "--out", declared.with_name("out.sqlite")) == 130
    assert declared.with_name("out.sqlite").read_bytes() == before
    assert not list(declared.parent.glob(".*"))


def test_an_error_of_sqlite_is_said(
    declared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vec_pipeline.commands.export.sqlite.KEY", "row INTEGER, x")  # an error of SQLite
    assert export(declared, "sqlite", "--out", declared.with_name("out")) == 2
    assert "the database cannot be written (" in capsys.readouterr().err
    assert not list(declared.parent.glob("*out*"))


def test_a_database_is_a_file(declared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(declared, "sqlite", "--out", "-") == 2
    assert "--to sqlite needs a file, and - is none" in capsys.readouterr().err


# --- LanceDB


def near_copies(tmp_path: Path) -> Path:
    """Five pictures; the last looks nearly like the first."""
    vectors = unit_vectors(5, 16)
    vectors[4] = vectors[0] + np.float32(0.01)
    records = [finished(number, image_vector=vector, faces=number) for number, vector in enumerate(vectors)]
    return write_declared(tmp_path / "a.csv", {"faces": "number"}, [*records, failed(5)])


def test_lancedb_finds_a_picture_and_its_near_copy(tmp_path: Path) -> None:
    import lancedb

    csv = near_copies(tmp_path)
    table = lancedb.connect(exported(csv, "lance")).open_table("annotations")
    query = load_annotations(csv)["image_vector"][0]

    def nearest(where: str) -> list[str]:
        search = table.search(query, vector_column_name="image_vector").distance_type("cosine").limit(2)
        return [row["image_path"][-5] for row in search.where(where).to_list()]

    assert nearest("true") == ["0", "4"]
    assert nearest("faces > 0")[0] == "4"
    assert nearest("faces < 4")[0] == "0"
    assert nearest("faces > 0 AND faces < 4")[0] not in "04"


def test_a_lance_table_holds_what_the_rows_do(declared: Path) -> None:
    import lancedb
    import pyarrow as pa

    table = lancedb.connect(exported(declared, "lance")).open_table("annotations").to_arrow()
    expected = load_annotations(declared)
    assert table.schema.field("image_vector").type == pa.list_(pa.float32(), 3)
    assert table.column_names == list(expected)
    assert table["text"].to_pylist() == expected["text"].tolist()
    assert table["timestamp"].to_pylist() == expected["timestamp"].tolist()
    assert table["boxes"].to_pylist() == [[[1, 2, 30, 40]], None, None, [[0.5, 2]]]
    for found, vector in zip(table["image_vector"].to_pylist(), expected["image_vector"], strict=True):
        np.testing.assert_array_equal(found, vector)


def test_a_column_of_vectors_that_are_all_missing_is_null(tmp_path: Path) -> None:
    import lancedb

    csv = write(tmp_path / "a.csv", [finished(0, word2vec_vector=""), failed(1)])
    table = lancedb.connect(exported(csv, "lance")).open_table("annotations").to_arrow()
    assert table["word2vec_vector"].to_pylist() == [None, None]
    assert [vector is None for vector in table["image_vector"].to_pylist()] == [False, True]
    assert export(csv, "lance", "--where", "error", "--out", tmp_path / "errors") == 0
    assert lancedb.connect(tmp_path / "errors").open_table("annotations").to_arrow()["image_vector"].to_pylist() == [
        None
    ]


def test_vectors_of_two_models_make_no_lance_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = write(tmp_path / "a.csv", [finished(0), finished(1, image_vector=np.ones(7, np.float32))])
    assert export(csv, "lance", "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(
        f"vec-pipeline: {csv}: a column has embeddings of different lengths, of two"
    )
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_missing_lancedb_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    monkeypatch.delitem(sys.modules, "vec_pipeline.commands.export.lance", raising=False)
    assert export(write(tmp_path / "a.csv", [finished(0)]), "lance", "--out", tmp_path / "out") == 2
    assert "--to lance needs lancedb: pip install 'vec-pipeline[lance]'" in capsys.readouterr().err


# --- COCO


def pictures(folder: Path, *objects: Any, **values: Any) -> Path:
    """A CSV with a drawn picture of 200 x 100 pixels a row, and these objects in it."""
    records = []
    for number, each in enumerate(objects):
        record = finished(number, objects=each, text=f"Picture\n{number}.", description=f"{number}", **values)
        record.key = str(draw(folder / f"{number}.png", RED, (200, 100)))
        records.append(record)
    return write_declared(folder / "a.csv", {"objects": "json"}, records)


def thing(label: str, *box: int, score: float = 0.9) -> dict[str, Any]:
    return {"label": label, "score": score, "box": box}


def coco(folder: Path, name: str) -> Any:
    return COCO(folder / "annotations" / f"{name}.json")


def test_pycocotools_reads_boxes_labels_and_captions(tmp_path: Path) -> None:
    seen = [thing("cup", 10, 20, 60, 50), thing("cat", 0, 0, 200, 100, score=0.5)]
    out = exported(pictures(tmp_path, seen, [], [thing("cat", 1, 2, 4, 6)]), "coco")
    instances = coco(out, "instances")
    assert {each["name"]: each["id"] for each in instances.loadCats(instances.getCatIds())} == {"cup": 1, "cat": 2}
    found = instances.loadAnns(instances.getAnnIds(imgIds=[0]))
    assert [(each["bbox"], each["area"], each["iscrowd"], each["category_id"]) for each in found] == [
        ([10, 20, 50, 30], 1500, 0, 1),
        ([0, 0, 200, 100], 20_000, 0, 2),
    ]
    assert instances.getAnnIds(imgIds=[1]) == []
    assert instances.getAnnIds() == [1, 2, 3]
    for image in instances.loadImgs(instances.getImgIds()):
        with Image.open(out / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (200, 100)
        assert image["image_path"] == str(tmp_path / f"{image['id']}.png")
    captions = coco(out, "captions")
    assert [each["caption"] for each in captions.loadAnns(captions.getAnnIds())] == [
        "Picture 0.",
        "Picture 1.",
        "Picture 2.",
    ]
    assert captions.getImgIds() == [0, 1, 2]


def test_the_boxes_are_found_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The measure of COCO is 1 where a detector's boxes are those of the file."""
    seen = [[thing("cup", 10, 20, 60, 50), thing("cat", 0, 0, 200, 100)], [thing("cat", 1, 2, 100, 60)]]
    truth = coco(exported(pictures(tmp_path, *seen), "coco"), "instances")
    keys = ("image_id", "category_id", "bbox", "score")
    answers = truth.loadRes([{key: each[key] for key in keys} for each in truth.loadAnns(truth.getAnnIds())])
    measure = COCOeval(truth, answers, "bbox")
    measure.evaluate()
    measure.accumulate()
    measure.summarize()
    assert measure.stats[0] == pytest.approx(1)


def test_boxes_of_real_detections_fit_their_pictures(tmp_path: Path) -> None:
    """Of a picture that EXIF turns: boxes are of the upright one, which is what is saved."""
    stored = Image.new("RGB", (400, 200), "white")
    stored.paste(RED, (0, 0, 200, 200))  # in the upper half, once it is upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored.save(tmp_path / "turned.jpg", exif=exif)
    record = finished(0, objects=[thing("red", 0, 0, 200, 200)])
    record.key = str(tmp_path / "turned.jpg")
    out = exported(write_declared(tmp_path / "a.csv", {"objects": "json"}, [record]), "coco")
    instances = coco(out, "instances")
    [image] = instances.loadImgs([0])
    x, y, width, height = instances.loadAnns([1])[0]["bbox"]
    with Image.open(out / "images" / image["file_name"]) as picture:
        assert picture.size == (image["width"], image["height"]) == (200, 400)
        inside = np.asarray(picture.convert("RGB"))[y + 8 : y + height - 8, x : x + width].astype(int)
    assert np.abs(inside - RED).max() < 8


def test_boxes_end_with_their_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = [thing("a", -5, -5, 10, 300), thing("b", 200, 0, 220, 10), {"label": "c"}, "d", thing("", 0, 0, 5, 5)]
    instances = coco(exported(pictures(tmp_path, odd, {"other": 1}), "coco"), "instances")
    assert [each["bbox"] for each in instances.loadAnns(instances.getAnnIds())] == [[0, 0, 10, 100]]
    assert "boxes left out, without a label or outside of their picture: 5" in capsys.readouterr().out


def test_pictures_that_were_never_looked_at_have_only_captions(tmp_path: Path) -> None:
    """Without a box they would teach a detector that nothing is there."""
    out = exported(pictures(tmp_path, [thing("cat", 1, 2, 4, 6)], None), "coco")
    assert coco(out, "instances").getImgIds() == [0]
    assert coco(out, "captions").getImgIds() == [0, 1]


def test_rows_without_objects_have_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = finished(0, text="")
    record.key = str(draw(tmp_path / "a.png", BLUE))
    out = exported(write(tmp_path / "a.csv", [record]), "coco", "--caption", "description")
    assert "; no boxes: there is no column objects of detect\n" in capsys.readouterr().out
    assert not (out / "annotations" / "instances.json").exists()
    assert [each["caption"] for each in coco(out, "captions").anns.values()] == ["A red car, number 0."]


def test_a_picture_of_the_web_has_its_address(tmp_path: Path) -> None:
    with HttpServer() as server:
        record = finished(0)
        record.key = server.url("/ok/1.png")
        out = exported(write(tmp_path / "a.csv", [record]), "coco", "--caption", "timestamp")
    captions = coco(out, "captions")
    assert captions.imgs[0]["coco_url"] == record.key
    assert captions.anns[1]["caption"].startswith("20")


def test_pairs_have_their_original(tmp_path: Path) -> None:
    """A pair without its edited picture included."""
    csv = write_pairs(tmp_path, pair(tmp_path, 0), pair(tmp_path, 1))
    (tmp_path / "edited" / "1.png").unlink()
    out = exported(csv, "coco")
    for name in ("000000000.png", "000000001.png"):
        assert (out / "images" / name).read_bytes() == (tmp_path / "photos" / f"{int(name[:9])}.png").read_bytes()


def test_a_text_that_is_empty_is_no_caption(tmp_path: Path) -> None:
    record = finished(0, text=" ")
    record.key = str(draw(tmp_path / "a.png", BLUE))
    captions = coco(exported(write(tmp_path / "a.csv", [record]), "coco"), "captions")
    assert (captions.getImgIds(), captions.getAnnIds()) == ([0], [])


def test_a_caption_is_a_column_of_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("objects", "captoin", "image_vector"):
        assert export(pictures(tmp_path, []), "coco", "--out", tmp_path / "out", "--caption", name) == 2
        assert (
            f"--caption {name}: {tmp_path / 'a.csv'} has no such column of text: give one of" in capsys.readouterr().err
        )
    assert not (tmp_path / "out").exists()
