"""What a report's folder holds of boxes, without a browser: compact arrays, counts, and the sizes of the pictures."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.test_report import GREEN, make_report, picture, record, thumbnails, values_of, write_csv
from vec_pipeline.record import Record, UserError
from vec_pipeline.settings import settings_path

TYPES = {"objects": "json", "people": "json", "ocr_boxes": "json", "ocr_text": "text"}
CAR = {"label": "car", "score": 0.91236, "box": [10, 20, 110, 90]}
PERSON = {"label": "person", "score": 0.8, "box": [5, 6, 70, 180]}
TRAITS = {"score": 0.8, "box": [5, 6, 70, 180], "age": {"adult": 0.98, "child": 0.02}, "gender": {"female": 0.97}}
LINE = {"text": "SALE", "confidence": 0.99991, "box": [[1, 2], [31, 2], [31, 12], [1, 12]]}


def boxed(path: object, vector: Any = None, **values: Any) -> Record:
    """A row whose JSON columns hold these values."""
    return record(path, vector, **{name: json.dumps(value) for name, value in values.items()})


def boxed_csv(path: Path, *records: Record, types: dict[str, str] = TYPES) -> Path:
    settings_path(path).write_text(yaml.safe_dump({"columns": types, "sources": [], "stages": {}}))
    return write_csv(path, records, tuple(types))


def rows_of(out: Path) -> Any:
    return values_of(out, "data-rows-0.js")


def test_boxes_are_handed_over_as_short_arrays(tmp_path: Path) -> None:
    records = [
        boxed("/a", objects=[CAR, PERSON], people=[TRAITS], ocr_boxes=[LINE]),
        record("/b", error="open_image: OSError: empty"),
        boxed("/c", objects=[], people=[TRAITS, {**TRAITS, "age": {}}], ocr_boxes=[]),
    ]
    make_report(boxed_csv(tmp_path / "a.csv", *records), tmp_path / "site")
    rows = rows_of(tmp_path / "site")
    traits = [["adult", 0.98], ["female", 0.97]]
    assert (
        rows["objects"]
        == [
            [["car", 0.912, 10, 20, 110, 90], ["person", 0.8, 5, 6, 70, 180, traits]],  # one box, not two
            [],
            [["", 0.8, 5, 6, 70, 180, traits], ["", 0.8, 5, 6, 70, 180, traits[1:]]],  # of people without objects
        ]
    )
    assert rows["ocr_boxes"] == [[["SALE", 1, 1, 2, 31, 2, 31, 12, 1, 12]], [], []]
    assert "ocr_text" not in rows  # the boxes have it
    head = values_of(tmp_path / "site", "data-head.js")
    assert head["boxed"] == {"objects": 1, "people": 2, "text": 1}
    assert head["objects"] == [["car", 1, 1], ["person", 1, 1]]


def test_a_box_that_is_there_twice_has_the_traits_of_one_person(tmp_path: Path) -> None:
    rider = {**PERSON, "label": "rider"}
    make_report(boxed_csv(tmp_path / "a.csv", boxed("/a", objects=[PERSON, rider], people=[TRAITS])), tmp_path / "1")
    (objects,) = rows_of(tmp_path / "1")["objects"]
    assert [(each[0], len(each)) for each in objects] == [("person", 7), ("rider", 6)]
    make_report(boxed_csv(tmp_path / "a.csv", boxed("/a", objects=[PERSON], people=[TRAITS, TRAITS])), tmp_path / "2")
    (objects,) = rows_of(tmp_path / "2")["objects"]
    assert [(each[0], len(each)) for each in objects] == [("person", 7), ("", 7)]


def test_labels_are_counted_by_images_and_by_objects(tmp_path: Path) -> None:
    records = [boxed("/a", objects=[CAR] * 5 + [PERSON]), boxed("/b", objects=[PERSON]), boxed("/c", objects=[])]
    make_report(boxed_csv(tmp_path / "a.csv", *records), tmp_path / "site")
    head = values_of(tmp_path / "site", "data-head.js")
    assert head["objects"] == [["person", 2, 2], ["car", 1, 5]]
    assert head["different"]["objects"] == 2
    assert head["boxed"] == {"objects": 2, "people": 0, "text": 0}


@pytest.mark.parametrize(
    "objects",
    [
        "a text",
        7,
        {"label": "car"},
        [1, None, "car", []],
        [{"label": "car", "score": 0.5}],
        [{"label": "car", "score": None, "box": [1, 2, 3, 4]}],
        [{"label": "car", "score": 0.5, "box": [1, 2, 3]}],
        [{"label": "car", "score": 0.5, "box": [1, 2, 3, float("nan")]}],
        [{"label": "car", "score": 0.5, "box": [1, 2, 3, float("inf")]}],
    ],
)
def test_a_column_of_that_name_with_other_values_is_no_boxes(tmp_path: Path, objects: Any) -> None:
    other = {"people": objects, "ocr_boxes": [{**LINE, "box": [[1, 2], [3, 4]]}, *[objects]]}
    records = [boxed("/a", objects=objects, **other), boxed("/b", objects=[CAR])]
    make_report(boxed_csv(tmp_path / "a.csv", *records), tmp_path / "site")
    rows = rows_of(tmp_path / "site")
    assert [len(found) for found in rows["objects"]] == [0, 1]
    assert rows["ocr_boxes"] == [[], []]


def test_a_damaged_cell_is_told(tmp_path: Path) -> None:
    csv = boxed_csv(tmp_path / "a.csv", record("/a", objects="[{"))
    with pytest.raises(UserError, match="objects: '\\[\\{' is not JSON: correct or delete that row"):
        make_report(csv, tmp_path / "site")


def test_nothing_is_added_for_a_csv_without_boxes(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    others = {"objects": "text", "people": "number", "ocr_boxes": "file", "other": "json"}
    values: dict[str, Any] = {"objects": "a text", "people": 2, "ocr_boxes": "b", "other": "[{"}
    csv = boxed_csv(tmp_path / "a.csv", record(path, **values), types=others)
    make_report(csv, tmp_path / "site")
    rows, head = rows_of(tmp_path / "site"), values_of(tmp_path / "site", "data-head.js")
    assert not rows.keys() & {"objects", "people", "ocr_boxes", "size"}
    assert rows["numbers"] == [[2]]
    assert head["objects"] == []
    assert head["boxed"] == {"objects": 0, "people": 0, "text": 0}
    (small,) = thumbnails(tmp_path / "site").values()
    with Image.open(small) as thumbnail:
        assert "exif" not in thumbnail.info


def test_sizes_are_those_of_the_whole_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (640, 400), GREEN).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (3000, 20), GREEN).save(tmp_path / "long.png")  # its thumbnail is padded
    Image.new("RGB", (301, 200), GREEN).save(tmp_path / "plain.tif")
    paths = [tmp_path / "turned.jpg", tmp_path / "long.png", tmp_path / "plain.tif", picture(tmp_path / "none.png")]
    records = [boxed(path, objects=[CAR] if path.stem != "none" else []) for path in paths]
    records += [boxed("/gone.png", objects=[CAR]), boxed(picture(tmp_path / "text.png"), ocr_boxes=[LINE])]
    make_report(boxed_csv(tmp_path / "a.csv", *records), tmp_path / "site")
    rows = rows_of(tmp_path / "site")
    assert rows["size"] == [[400, 640], [3000, 20], [301, 200], None, None, [400, 300]]
    found = thumbnails(tmp_path / "site")
    for name, size in zip(rows["thumbnail"], [(120, 192), (192, 4)], strict=False):
        with Image.open(found[name]) as small:
            assert small.size == size


def test_a_size_is_found_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Thumbnails of a report without boxes get it when there are some; then it stays, even if the picture is gone."""
    path, csv, out = picture(tmp_path / "a.png"), tmp_path / "a.csv", tmp_path / "site"
    sizes: list[Any] = []
    for objects in ([], [CAR], [CAR], [CAR]):
        if len(sizes) == 3:
            path.unlink()
        make_report(boxed_csv(csv, boxed(path, objects=objects)), out)
        sizes.append(rows_of(out).get("size"))
    assert sizes == [None, *[[[400, 300]]] * 3]
    made = [line.split(", ")[1] for line in capsys.readouterr().out.splitlines()]
    assert made == ["1 new thumbnail", "1 new thumbnail", "0 new thumbnails", "0 new thumbnails"]
    assert len(thumbnails(out)) == 1


def test_a_damaged_thumbnail_is_made_again(tmp_path: Path) -> None:
    csv = boxed_csv(tmp_path / "a.csv", boxed(picture(tmp_path / "a.png"), objects=[CAR]))
    make_report(csv, tmp_path / "site")
    (small,) = thumbnails(tmp_path / "site").values()
    small.write_bytes(b"")
    make_report(csv, tmp_path / "site")
    assert rows_of(tmp_path / "site")["size"] == [[400, 300]]
    with Image.open(small) as thumbnail:
        thumbnail.load()


def test_a_thumbnail_stays_where_its_size_cannot_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, csv, out = picture(tmp_path / "a.png"), tmp_path / "a.csv", tmp_path / "site"
    make_report(boxed_csv(csv, boxed(path, objects=[])), out)
    monkeypatch.setattr("vec_pipeline.commands.report.thumbnails.make", lambda *arguments: False)
    make_report(boxed_csv(csv, boxed(path, objects=[CAR])), out)
    rows = rows_of(out)
    assert list(thumbnails(out)) == rows["thumbnail"]
    assert "size" not in rows
