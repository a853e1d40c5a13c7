"""Data sets as sources: rows become records, what is damaged costs no more than itself, and done rows are not read."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow
import pytest
from datasets.packaged_modules.parquet import parquet
from PIL import Image
from pyarrow.parquet import write_table

from tests.conftest import EXAMPLES, PROJECT, Run
from vec_pipeline import load_annotations
from vec_pipeline.record import NotFound, Record, SourceOptions, UserError
from vec_pipeline.sources import content_of, dataset
from vec_pipeline.sources.dataset import DataSet
from vec_pipeline.sources.folder import LocalFile

Rows = list[dict[str, Any]]
FEATURES = datasets.Features(
    {
        "id": datasets.Value("int64"),
        "image": datasets.Image(),
        "title": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "vector": datasets.List(datasets.Value("float32")),
        "boxes": datasets.List({"x": datasets.Value("float32"), "at": datasets.Value("date32")}),
        "taken": datasets.Value("timestamp[s]"),
        "raw": datasets.Value("binary"),
        "is_good": datasets.Value("bool"),
    }
)
ROWS_A_GROUP, ROWS_A_FILE, FILES = 4, 10, 3
GROUPS = [4, 4, 2]  # rows in each


def png(number: int) -> bytes:
    """A picture that no other number has."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 90)).save(file, "PNG")
    return file.getvalue()


def row(number: int) -> dict[str, Any]:
    return {
        "id": number,
        "image": {"bytes": png(number), "path": None},
        "title": f"title {number}",
        "label": number % 2,
        "vector": [0.5, number],
        "boxes": [{"x": number, "at": date(2026, 11, 26)}, {"x": float("nan"), "at": None}],
        "taken": datetime(2026, 11, 26, 1, 2, 3),
        "raw": b"raw",
        "is_good": number % 2 == 1,
    }


def write(path: Path, rows: Rows, features: datasets.Features = FEATURES, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
    write_table(table, path, row_group_size=ROWS_A_GROUP, **options)


def file_name(number: int) -> str:
    return f"train-{number:05}-of-{FILES:05}.parquet"


def write_set(folder: Path) -> Path:
    """Three files of ten rows, in groups of four."""
    for file in range(FILES):
        write(folder / file_name(file), [row(file * ROWS_A_FILE + each) for each in range(ROWS_A_FILE)])
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set")


def source(folder: Path | str, place: str = "", **options: Any) -> DataSet:
    return DataSet(f"hf://{folder}{place}", options=SourceOptions(**options))


def records(folder: Path | str, place: str = "", **options: Any) -> list[Record]:
    return list(source(folder, place, **options))


def base(folder: Path) -> str:
    return f"hf://{folder}?split=train#"


def keys_of(folder: Path, file: int) -> list[str]:
    start = f"{base(folder)}{file_name(file)}"
    return [f"{start}/{group}/{row}" for group, rows in enumerate(GROUPS) for row in range(rows)]


def errors(found: list[Record]) -> dict[str, str]:
    return {record.key: record.error for record in found if record.error}


# -- rows -----------------------------------------------------------------------------------------------------------


def test_each_row_is_a_record_with_its_bytes(folder: Path) -> None:
    found = records(folder)
    assert [record.key for record in found] == [key for file in range(FILES) for key in keys_of(folder, file)]
    assert [record.values["content"].read() for record in found] == [png(each) for each in range(30)]
    assert len({record.values["content"].identity() for record in found}) == 30
    assert not errors(found)


def test_bytes_have_the_same_identity_in_every_run(folder: Path) -> None:
    first, second = ([record.values["content"].identity() for record in records(folder)] for _ in range(2))
    assert first == second


def test_keys_hold_the_whole_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "link").symlink_to(folder)
    assert records("./link")[0].key == records(folder)[0].key == keys_of(folder, 0)[0]


def test_it_can_be_iterated_again(folder: Path) -> None:
    both = source(folder)
    assert [record.key for record in both] == [record.key for record in both]


def test_kept_columns_have_the_types_of_the_data_set(folder: Path) -> None:
    keep = ("id", "title=caption", "label", "vector", "boxes", "taken", "is_good")
    types = {
        "id": "number",
        "caption": "text",
        "label": "text",
        "vector": "vector",
        "boxes": "json",
        "taken": "text",
    } | {"is_good": "json"}
    both = source(folder, keep=keep)
    assert both.columns == types
    values = list(both)[3].values
    assert values.pop("content").read() == png(3)
    assert values == {
        "id": 3, "caption": "title 3", "label": "dog", "vector": [0.5, 3.0],
        "boxes": [{"x": 3, "at": "2026-11-26"}, {"x": None, "at": None}],
        "taken": "2026-11-26 01:02:03", "is_good": True,
    }  # fmt: skip


def test_values_that_are_missing(tmp_path: Path) -> None:
    rows = [{**row(0), "title": None, "label": None, "vector": None}, {**row(1), "label": -1, "vector": [1.0, None]}]
    write(tmp_path / "train.parquet", rows)
    first, second = records(tmp_path, keep=("title", "label", "vector"))
    assert [first.values[name] for name in ("title", "label", "vector")] == [None] * 3
    assert second.error == "source: ValueError: a list of numbers has a gap"
    assert records(tmp_path, keep=("label",))[1].values["label"] == ""


def test_a_row_without_a_picture_is_an_error_of_its_own(tmp_path: Path) -> None:
    pictures = [None, {"bytes": b"", "path": None}, {"bytes": png(2), "path": "a.png"}]  # the bytes are of more use
    write(tmp_path / "train.parquet", [{**row(each), "image": picture} for each, picture in enumerate(pictures)])
    found = records(tmp_path)
    assert list(errors(found).values()) == ["source: ValueError: the row holds no picture"] * 2
    assert found[2].values["content"].read() == png(2)


def test_paths_without_bytes_are_opened(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.png").write_bytes(png(1))
    pictures = ["deep/a.png", str(tmp_path / "deep/a.png"), "https://host/a.png", "hf://datasets/o/n/a.png"]
    rows = [{**row(0), "image": {"bytes": None, "path": each}} for each in pictures]
    write(tmp_path / "set/train.parquet", rows)
    shutil.move(tmp_path / "deep", tmp_path / "set/deep")
    found = records(tmp_path / "set")
    assert found[0].values["content"].read() == png(1)
    assert found[1].values["content"] == LocalFile(str(tmp_path / "deep/a.png"))
    assert "its path 'https://host/a.png' is not of the data set" in found[2].error
    assert "is not of the data set" in found[3].error


def test_of_several_pictures_in_a_row_the_first_is_taken(tmp_path: Path) -> None:
    features = datasets.Features({"images": datasets.List(datasets.Image())})
    pictures = [[{"bytes": png(1)}, {"bytes": png(2)}], [{"bytes": png(3)}], []]
    write(tmp_path / "train.parquet", [{"images": each} for each in pictures], features)
    both = source(tmp_path)
    found = list(both)
    assert [record.values["content"].read() for record in found[:2]] == [png(1), png(3)]
    assert "holds no picture" in found[2].error
    for _ in range(2):
        assert both.notes == ["1 rows hold several pictures: the first one was taken"]
        list(both)


def test_a_column_of_bytes(tmp_path: Path) -> None:
    features = datasets.Features({"jpg": datasets.Value("binary"), "url": datasets.Value("string")})
    write(tmp_path / "train.parquet", [{"jpg": png(5), "url": "https://host/a"}], features)
    assert records(tmp_path)[0].values["content"].read() == png(5)


def test_a_key_names_the_column_where_it_is_not_the_usual_one(tmp_path: Path) -> None:
    features = datasets.Features({"front": datasets.Image(), "back": datasets.Image()})
    write(tmp_path / "train.parquet", [{"front": {"bytes": png(1)}, "back": {"bytes": png(2)}}], features)
    (front,), (back,), (same,) = records(tmp_path), records(tmp_path, column="back"), records(tmp_path, "?column=back")
    assert back.key == same.key == f"{base(tmp_path)[:-1]}&column=back#train.parquet/0/0"
    assert content_of(front.key).read() == png(1)
    assert content_of(back.key).read() == png(2)


@pytest.mark.parametrize("name", ["train.parquet", "train.csv", "train.jsonl"])
def test_a_column_of_addresses(name: str, tmp_path: Path) -> None:
    features = datasets.Features({"URL": datasets.Value("string"), "title": datasets.Value("string")})
    rows = [{"URL": f"https://user:secret@host/{each}.jpg", "title": str(each)} for each in "ab"]
    rows += [{"URL": "file:///etc/passwd", "title": "no"}, {"URL": None, "title": "none"}]
    (tmp_path / "set").mkdir()
    if name.endswith("parquet"):
        write(tmp_path / "set" / name, rows, features)
    elif name.endswith("csv"):
        pd.DataFrame(rows).to_csv(tmp_path / "set" / name, index=False)
    else:
        (tmp_path / "set" / name).write_text("".join(json.dumps(each) + "\n" for each in rows))
    both = source(tmp_path / "set", keep=("title",))
    assert both.columns == {"title": "text", "source_url": "text", "http_status": "number"}
    found = list(both)
    assert [record.key for record in found[:2]] == ["https://host/a.jpg", "https://host/b.jpg"]
    assert found[1].values["title"] == "b"
    assert found[1].values["source_url"] == "https://host/b.jpg"
    assert [record.error for record in found[2:]] == [
        "source: ValueError: 'file:///etc/passwd' is not an address", "source: ValueError: the row holds no picture",
    ]  # fmt: skip
    assert found[2].key == f"{base(tmp_path / 'set')}{name}/0/2"


def test_columns_that_nobody_wants_may_change_their_type(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("url,n\n" + "https://host/a,1\n" * dataset.GUESSED_FROM + "https://host/b,x\n")
    assert [record.key for record in records(tmp_path)][-1] == "https://host/b"


# -- which data set, which column ------------------------------------------------------------------------------------


def test_folders_of_images(tmp_path: Path) -> None:
    for name in ("cat/0.png", "cat/1.png", "dog/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(len(name)))
    both = source(tmp_path, keep=("label",))
    found = list(both)
    assert [record.values["label"] for record in found] == ["cat", "cat", "dog"]
    assert [record.values["content"] for record in found] == [
        LocalFile(str(tmp_path / name)) for name in ("cat/0.png", "cat/1.png", "dog/0.png")
    ]


@pytest.mark.parametrize("is_dict", [False, True])
def test_a_folder_of_save_to_disk(is_dict: bool, tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([row(each) for each in range(6)], features=FEATURES)
    if is_dict:
        datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path)
    else:
        table.save_to_disk(tmp_path, num_shards=2)
    found = records(tmp_path)
    assert [record.values["content"].read() for record in found] == [png(each) for each in range(6)]
    assert [content_of(record.key).read() for record in found] == [png(each) for each in range(6)]
    file = "train/data-00000-of-00001.arrow" if is_dict else "data-00000-of-00002.arrow"
    assert found[0].key == f"{base(tmp_path)}{file}/0/0"


def test_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"two/{split}.parquet", [row(0)])
        write(tmp_path / f"one/{'validation'}.parquet", [row(0)])
    assert [record.key for record in records(tmp_path / "two")] == [f"{base(tmp_path / 'two')}train.parquet/0/0"]
    assert "?split=test#test.parquet" in records(tmp_path / "two", "?split=test")[0].key
    assert "?split=validation#" in records(tmp_path / "one")[0].key
    with pytest.raises(UserError, match=r"has no split 'dev': write \?split= and one of train, test"):
        source(tmp_path / "two", "?split=dev")
    (tmp_path / "two/train.parquet").rename(tmp_path / "two/validation.parquet")
    dataset.opened.cache_clear()
    with pytest.raises(UserError, match="has several splits: write"):
        source(tmp_path / "two")


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ("?split=", {"column": "label"}, "holds neither pictures nor addresses"),
        ("?token=", {}, "has no parameter 'token'"),
        ("?token=1", {}, "has no parameter 'token': it takes split, name, revision, column"),
        ("", {"column": "imge"}, r"has no column 'imge' \(did you mean 'image'\?\)"),
        ("", {"column": "label"}, "the column 'label' of .* holds neither pictures nor addresses"),
        ("", {"keep": ("titel",)}, r"has no column 'titel' \(did you mean 'title'\?\): correct --keep"),
        ("", {"keep": ("image",)}, "--keep: the column 'image' of .* holds files"),
        ("", {"keep": ("raw",)}, "--keep: the column 'raw' of .* holds files"),
    ],
)
def test_mistakes_are_named(place: str, options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        source(folder, place, **options)


def test_a_set_without_pictures_names_its_columns(tmp_path: Path) -> None:
    write(
        tmp_path / "train.parquet", [{"n": 1, "m": 2}], datasets.Features(dict.fromkeys("nm", datasets.Value("int8")))
    )
    with pytest.raises(UserError, match="has no column of pictures: name it with --column, of n, m"):
        source(tmp_path)


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not a folder"):
        source("./nothing/here")
    with pytest.raises(NotFound, match="holds no data set"):
        source(tmp_path)
    with pytest.raises(UserError, match="is not the name of a data set: write hf://OWNER/NAME"):
        source("datasets/owner/name")


def test_without_the_library_one_sentence_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"hf:// needs datasets: pip install 'vec-pipeline\[datasets\]'"):
        source(folder)


def test_keys_of_odd_folders_lead_back(tmp_path: Path) -> None:
    folder = tmp_path / "a b#c?d%20é"
    write(folder / "train.parquet", [row(7)])
    (found,) = records(str(folder).replace("%", "%25").replace("#", "%23").replace("?", "%3F"))
    assert content_of(found.key).read() == png(7)


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub on which every data set is that of `folder`; returns what it is asked."""
    asked: list[tuple[Any, ...]] = []
    load = datasets.load_dataset_builder

    def load_dataset_builder(path: str, name: str | None = None, revision: str | None = None) -> Any:
        asked.append((path, name, revision))
        if path == "owner/gone":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/gone' doesn't exist on the Hub")
        if path == "owner/configs":
            raise ValueError("Config name is missing.\nPlease pick one among: ['en', 'ru']")
        return load(str(folder))

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    dataset.opened.cache_clear()
    return asked


def test_data_sets_of_the_hub(hub: list[tuple[Any, ...]]) -> None:
    found = records("owner/name", "?revision=v1&split=train&name=en")
    assert hub == [("owner/name", "en", "v1")]
    assert found[0].key == "hf://owner/name?split=train&name=en&revision=v1#0/0/0"
    assert content_of(found[11].key).read() == png(11)
    with pytest.raises(UserError, match=r"hf://owner/gone does not exist, or needs a token \(HF_TOKEN\)") as refused:
        source("owner/gone")
    assert not isinstance(refused.value, NotFound)  # or --prune would drop the rows of one that needs a token
    with pytest.raises(UserError, match="hf://owner/configs cannot be loaded: ValueError: Config name is missing"):
        source("owner/configs")


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "a.png", "https://host/a.png", "zip://a.png::/etc/a.zip", "file:///a::hf://b"]
)
def test_rows_of_the_hub_open_no_file_of_this_machine(path: str, folder: Path, hub: object) -> None:
    write(folder / file_name(0), [{**row(0), "image": {"bytes": None, "path": path}}])
    assert "is not of the data set" in records("owner/name")[0].error


def test_rows_of_the_hub_may_name_its_files(folder: Path, hub: object) -> None:
    path = "zip://a.png::hf://datasets/owner/name@abc/a.zip"
    write(folder / file_name(0), [{**row(0), "image": {"bytes": None, "path": path}}])
    content = records("owner/name")[0].values["content"]
    assert content == dataset.FileInSet(path)
    assert hasattr(content, "fetch")  # many at once
    assert content.identity() == path


# -- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", range(FILES))
def test_a_torn_file_is_one_error_and_the_others_go_on(file: int, folder: Path) -> None:
    path = folder / file_name(file)
    path.write_bytes(path.read_bytes()[:-100])
    found = records(folder)
    key = f"{base(folder)}{file_name(file)}"
    assert list(errors(found)) == [key]
    assert errors(found)[key].startswith("source: ArrowInvalid: ")
    assert len(found) == 2 * ROWS_A_FILE + 1
    with pytest.raises(UserError, match="ArrowInvalid"):
        content_of(key)
    write_set(folder)
    with pytest.raises(NotFound, match="can be read now"):
        content_of(key)


def damaged_group(path: Path, group: int, column: str) -> None:
    """Overwrite the pages of a column in one row group."""
    metadata = pyarrow.parquet.read_metadata(path)
    names = [metadata.row_group(group).column(each).path_in_schema for each in range(metadata.num_columns)]
    chunk = metadata.row_group(group).column(names.index(column))
    with path.open("r+b") as file:
        file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
        file.write(b"\xff" * 8)


def test_a_row_group_that_cannot_be_read_is_one_error_and_the_next_group_goes_on(folder: Path) -> None:
    damaged_group(folder / file_name(1), 1, "image.bytes")
    positions = folder.parent / "positions.json"
    found = records(folder, positions=positions)
    assert list(errors(found)) == [f"{base(folder)}{file_name(1)}/1"]
    assert len(found) == 30 - 4 + 1
    assert [record.key for record in found[10:17]] == [*keys_of(folder, 1)[:4], found[14].key, *keys_of(folder, 1)[8:]]
    assert json.loads(positions.read_text())[base(folder)[:-1]][file_name(1)][1] == [4, None, 2]


def test_a_file_whose_columns_are_of_another_type_is_an_error(folder: Path) -> None:
    other = datasets.Features({**FEATURES, "label": datasets.Value("string")})
    write(folder / file_name(1), [{**row(each), "label": "horse"} for each in range(ROWS_A_FILE)], other)
    found = records(folder, keep=("label",))
    assert list(errors(found)) == [f"{base(folder)}{file_name(1)}/{group}" for group in range(len(GROUPS))]
    assert len(found) == 2 * ROWS_A_FILE + len(GROUPS)


def test_a_damaged_column_that_nobody_wants_is_no_error(folder: Path) -> None:
    damaged_group(folder / file_name(1), 1, "title")
    assert not errors(records(folder, keep=("label",)))
    assert len(errors(records(folder, keep=("title",)))) == 1


# -- what is done is not read ----------------------------------------------------------------------------------------


@pytest.fixture
def files_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files of Parquet that are opened: once to count the row groups, and once for each of them."""
    names: list[str] = []
    source(folder)  # the library has its own `open` from now on
    original: Callable[..., Any] = parquet.open

    def counting(path: Any, *arguments: Any, **options: Any) -> Any:
        names.append(Path(str(path)).name)
        return original(path, *arguments, **options)

    monkeypatch.setattr(parquet, "open", counting)
    return names


def resumed(folder: Path, positions: Path, done: set[str]) -> list[str]:
    """The keys that a run brings, all of which has been read before, and of which some have a row."""
    again = source(folder, positions=positions)
    again.resume(done)
    return [record.key for record in again]


def test_row_groups_whose_rows_are_done_are_not_opened(folder: Path, files_opened: list[str]) -> None:
    positions = folder.parent / "positions.json"
    keys = [record.key for record in records(folder, positions=positions)]
    assert len(files_opened) == FILES * (1 + len(GROUPS))
    files_opened.clear()
    assert resumed(folder, positions, set(keys)) == []
    assert files_opened == []
    lacking = keys[ROWS_A_FILE + 5]  # in the second group of the second file
    assert resumed(folder, positions, set(keys) - {lacking}) == keys[14:18]
    assert files_opened == [file_name(1)] * 2
    files_opened.clear()
    assert resumed(folder, positions, set()) == keys
    assert len(files_opened) == FILES * (1 + len(GROUPS))


def test_what_was_not_read_to_its_end_is_read_again(folder: Path) -> None:
    positions = folder.parent / "positions.json"
    first = source(folder, positions=positions)
    reading = iter(first)
    keys = [record.key for record in islice(reading, 7)]
    reading.close()  # type: ignore[attr-defined]
    assert resumed(folder, positions, set(keys)) == [
        key for file in range(FILES) for key in keys_of(folder, file) if file or key.split("/")[-2] != "0"
    ]


def test_a_file_that_has_changed_is_read_again(folder: Path) -> None:
    positions = folder.parent / "positions.json"
    keys = {record.key for record in records(folder, positions=positions)}
    write(folder / file_name(1), [row(each) for each in range(12)])
    os.utime(folder / file_name(1), (1, 1))
    dataset.opened.cache_clear()
    start = f"{base(folder)}{file_name(1)}"
    assert resumed(folder, positions, keys) == [f"{start}/{group}/{row}" for group in range(3) for row in range(4)]


def test_a_file_more_changes_no_key(folder: Path) -> None:
    keys = {record.key for record in records(folder)}
    write(folder / "train-00000-of-00002.parquet", [row(50)])
    dataset.opened.cache_clear()
    assert keys < {record.key for record in records(folder)}


@pytest.mark.parametrize(
    "damage", ["", "{", "[1]", '{"ADDRESS": 5}', '{"ADDRESS": {"FILE": 3}}', '{"ADDRESS": {"FILE": ["", "a"]}}']
)
def test_damaged_positions_are_ignored(damage: str, folder: Path) -> None:
    positions = folder.parent / "positions.json"
    text = damage.replace("ADDRESS", base(folder)[:-1]).replace("FILE", file_name(0))
    positions.write_text(text)
    keys = [record.key for record in records(folder, positions=positions)]
    assert len(keys) == 30
    assert resumed(folder, positions, set(keys)) == []


def test_positions_of_other_data_sets_stay(folder: Path) -> None:
    positions = folder.parent / "positions.json"
    positions.write_text('{"hf://owner/other": {"a.parquet": ["1", [3]]}}')
    records(folder, positions=positions)
    assert list(json.loads(positions.read_text())) == ["hf://owner/other", base(folder)[:-1]]
    assert [path.name for path in folder.parent.glob("positions*")] == ["positions.json"]


def test_positions_are_noted_while_it_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "POSITIONS_EVERY_S", 0.0)
    positions = folder.parent / "positions.json"
    reading = iter(source(folder, positions=positions))
    list(islice(reading, 5))
    assert json.loads(positions.read_text())[base(folder)[:-1]][file_name(0)][1] == [4, None, None]


def test_no_more_is_read_than_is_taken(folder: Path, files_opened: list[str]) -> None:
    reading = iter(source(folder))
    list(islice(reading, 5))
    reading.close()  # type: ignore[attr-defined]
    assert files_opened == [file_name(0)] * 3


# -- keys -----------------------------------------------------------------------------------------------------------


def test_a_key_leads_to_its_picture_and_nothing_is_read_twice(folder: Path, files_opened: list[str]) -> None:
    keys = [record.key for record in records(folder)]
    dataset.cursor.cache_clear()
    files_opened.clear()
    assert [content_of(key).read() for key in keys] == [png(each) for each in range(30)]
    assert len(files_opened) == 1 + 2 * FILES * len(GROUPS)  # for the columns; to find each group, and to read it
    for number in (29, 3, 2, 17):
        assert DataSet.accepts(keys[number])
        assert content_of(keys[number]).read() == png(number)


@pytest.mark.parametrize(
    "place",
    [
        "train-00000-of-00003.parquet/0/4",
        "train-00000-of-00003.parquet/3/0",
        "no.parquet/0/0",
        "9/9",
        "train-00000-of-00003.parquet/0/x",
    ],
)
def test_a_key_of_no_row_is_not_found(place: str, folder: Path) -> None:
    with pytest.raises(NotFound):
        content_of(base(folder) + place)


# -- the whole program ------------------------------------------------------------------------------------------------


def example_set(folder: Path) -> Path:
    """Two files of the example pictures and a broken one, in groups of four."""
    pictures = [path.read_bytes() for path in sorted(EXAMPLES.glob("*.*g"))[:11]]
    pictures[6] = pictures[6][:40]
    rows = [{**row(each), "image": {"bytes": data, "path": None}} for each, data in enumerate(pictures)]
    write(folder / "train-00000-of-00002.parquet", rows[:6])
    write(folder / "train-00001-of-00002.parquet", rows[6:])
    return folder


def program(folder: Path, *arguments: str) -> list[str]:
    """The command line of a run with a small model."""
    config = folder / "config.yaml"
    embed = f"{{use: embed_image, model: {PROJECT / 'models/demo/clip'}, device: cpu}}"
    config.write_text(f"stages: [{{use: open_image, max_size_px: 112}}, {embed}]\nchunk_size: 2\n")
    return [sys.executable, str(PROJECT / "run.py"), *arguments, "--config", str(config)]


def run(command: list[str]) -> Run:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def tool(*arguments: object) -> Run:
    done = run([sys.executable, "-m", "vec_pipeline", *map(str, arguments)])
    assert done.returncode == 0, done.stderr
    return done


def killed_after_rows(command: list[str], output: Path, rows: int) -> None:
    """Start a run, and kill it once its CSV holds some rows."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    end_s = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end_s:
        if output.exists() and output.read_bytes().count(b"\n") > rows:
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


def assert_same_rows(output: Path, undisturbed: Path) -> None:
    """One row each, equal but for their times; the last digits of vectors depend on the batch."""
    found, wanted = (
        load_annotations(each).drop(columns="timestamp").sort_values("image_path", ignore_index=True)
        for each in (output, undisturbed)
    )
    vectors = [list(table.pop("image_vector")) for table in (found, wanted)]
    pd.testing.assert_frame_equal(found, wanted)
    for one, other in zip(*vectors, strict=True):
        assert (one is None) == (other is None)
        assert one is None or np.allclose(one, other, atol=1e-4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """An undisturbed run over the examples as a data set: the data set, and the CSV."""
    folder = tmp_path_factory.mktemp("run")
    examples, output = example_set(folder / "set"), folder / "annotations.csv"
    done = run(program(folder, f"hf://{examples}", "--keep", "title=caption,label", "--output", str(output)))
    assert done.returncode == 1, done.stderr
    yield examples, output


def test_a_data_set_end_to_end(finished: tuple[Path, Path]) -> None:
    examples, output = finished
    table = load_annotations(output)
    assert list(table["image_path"]) == [
        f"{base(examples)}train-{file:05}-of-00002.parquet/{group}/{row}"
        for file, groups in enumerate(([4, 2], [4, 1])) for group, rows in enumerate(groups) for row in range(rows)
    ]  # fmt: skip
    assert list(table["caption"]) == [f"title {each}" for each in range(11)]
    assert set(table["label"]) == {"cat", "dog"}
    assert [bool(error) for error in table["error"]] == [each == 6 for each in range(11)]
    assert table["error"][6].startswith("open_image: ")


def test_killed_and_resumed_it_has_the_rows_of_an_undisturbed_run(finished: tuple[Path, Path], tmp_path: Path) -> None:
    examples, undisturbed = finished
    output = tmp_path / "annotations.csv"
    command = program(tmp_path, f"hf://{examples}", "--keep", "title=caption,label", "--output", str(output))
    killed_after_rows(command, output, 3)
    assert run(command).returncode == 1
    assert_same_rows(output, undisturbed)


def test_the_report_shows_the_pictures_of_its_rows(finished: tuple[Path, Path], tmp_path: Path) -> None:
    tool("report", "--csv", finished[1], "--out", tmp_path / "gallery")
    assert len(list((tmp_path / "gallery").rglob("*.webp"))) == 10  # all but the broken one


def test_importing_the_source_loads_no_library() -> None:
    program = "import sys, vec_pipeline.sources.dataset; print({'datasets', 'pyarrow', 'fsspec'} & set(sys.modules))"
    assert (
        run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n{program}"]).stdout == "set()\n"
    )


def test_a_folder_of_the_name_of_a_data_set_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library would take it, and its rows would have the keys of the hub's."""
    (tmp_path / "owner" / "set").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is also a folder here: write hf://\./owner/set"):
        DataSet("hf://owner/set?split=train")
