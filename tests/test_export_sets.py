"""Training sets: read back by `webdataset` and `datasets`, with the bytes of the pictures; what is left out is told."""

import json
import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import webdataset
from PIL import ExifTags, Image

from tests.conftest import Run
from tests.http_server import HttpServer
from tests.pairs import BLUE, RED, draw, pair, write_pairs
from tests.rows import failed, finished, write, write_declared
from vec_pipeline import load_annotations
from vec_pipeline.__main__ import main
from vec_pipeline.commands.export.training import new_folder
from vec_pipeline.record import UserError

FORMATS = ("webdataset", "imagefolder")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` writes nowhere else."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def export(csv: Path, to: str, *arguments: object) -> int:
    return main(["export", "--csv", str(csv), "--to", to, "--out", str(csv.parent / to), *map(str, arguments)])


def exported(csv: Path, to: str) -> Path:
    assert export(csv, to) == 0
    return csv.parent / to


def samples(folder: Path) -> list[dict[str, Any]]:
    """By `webdataset`, as bytes."""
    return [
        sample for shard in sorted(folder.iterdir()) for sample in webdataset.WebDataset(str(shard), shardshuffle=False)
    ]


def loaded(folder: Path, to: str) -> Any:
    """By `datasets`."""
    where = {"data_files": str(folder / "*.tar")} if to == "webdataset" else {"data_dir": str(folder)}
    return datasets.load_dataset(to, split="train", **where)


def colour_of(image: Image.Image) -> tuple[int, ...]:
    return tuple(np.asarray(image.convert("RGB"))[5, 5])


def with_picture(path: Path | str, number: int = 0, **values: Any) -> Any:
    row = finished(number, **values)
    row.key = str(path)
    return row


# --- one picture a row


def test_shards_hold_picture_caption_and_row(example_run: tuple[Run, Path], tmp_path: Path) -> None:
    table = load_annotations(example_run[1], vectors=False)
    assert main(["export", "--csv", str(example_run[1]), "--to", "webdataset", "--out", str(tmp_path / "out")]) == 0
    found = samples(tmp_path / "out")
    assert [sample["__key__"] for sample in found] == [f"{number:09}" for number in range(len(table))]
    for sample, row in zip(found, table.to_dict("records"), strict=True):
        assert sample["jpg"] == Path(row["image_path"]).read_bytes()
        assert sample["txt"].decode() == row["text"]
        known = json.loads(sample["json"])
        assert (known["image_path"], known["description"]) == (row["image_path"], row["description"])
        assert known["timestamp"] == row["timestamp"].isoformat()
        assert not [name for name in known if name.endswith("_vector")]
    pictures = webdataset.WebDataset(str(tmp_path / "out" / "000000.tar"), shardshuffle=False).decode("pil")
    assert all(isinstance(sample["jpg"], Image.Image) for sample in pictures)


def test_the_text_of_a_shard_may_be_another_column(tmp_path: Path) -> None:
    csv = write(tmp_path / "a.csv", [with_picture(draw(tmp_path / "a.png", RED), description="A red square.")])
    assert export(csv, "webdataset", "--caption", "description") == 0
    (sample,) = samples(tmp_path / "webdataset")
    assert sample["txt"] == b"A red square."


@pytest.mark.parametrize("to", FORMATS)
def test_datasets_reads_pictures_of_several_kinds(example_run: tuple[Run, Path], tmp_path: Path, to: str) -> None:
    table = load_annotations(example_run[1], vectors=False)
    assert len({Path(path).suffix for path in table["image_path"]}) > 1
    main(["export", "--csv", str(example_run[1]), "--to", to, "--out", str(tmp_path / "out")])
    found = loaded(tmp_path / "out", to)
    image, caption = ("jpg", "txt") if to == "webdataset" else ("image", "text")
    assert found[caption] == list(table["text"])
    for row, path in zip(found, table["image_path"], strict=True):
        with Image.open(path) as original:
            assert colour_of(row[image]) == colour_of(original)


@pytest.mark.parametrize("to", FORMATS)
def test_datasets_reads_numbers_that_only_later_rows_have(tmp_path: Path, to: str) -> None:
    """It takes types from the first rows: a null there would make a number further down an error."""
    types = {"faces": "number", "objects": "json"}
    paths = [draw(tmp_path / f"{number}.png", RED) for number in range(10)]
    objects = [None] * 8 + ['[{"label": "car"}]', '{"other": 1}']
    rows = [
        with_picture(paths[each], each, faces=each if each > 7 else "", objects=objects[each]) for each in range(10)
    ]
    found = loaded(exported(write_declared(tmp_path / "a.csv", types, rows), to), to)
    assert len(found) == 10


def test_columns_that_would_be_taken_for_pictures_are_left_out(tmp_path: Path) -> None:
    row = with_picture(draw(tmp_path / "a.png", RED), file_name="x", old_file_name="y", image="z", other="w")
    types = dict.fromkeys(("file_name", "old_file_name", "image", "other"), "text")
    found = loaded(exported(write_declared(tmp_path / "a.csv", types, [row]), "imagefolder"), "imagefolder")
    assert (colour_of(found[0]["image"]), found[0]["other"]) == (RED, "w")
    assert not {"file_name", "old_file_name", "old"} & set(found.column_names)


def test_a_shard_ends_before_it_is_too_large(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(5):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (400, 300, 3), np.uint8)).save(path)  # 0.36 MB
        rows.append(with_picture(path, number))
    csv = write(tmp_path / "a.csv", rows)
    assert export(csv, "webdataset", "--shard-mb", 1) == 0
    shards = sorted((tmp_path / "webdataset").iterdir())
    assert [shard.name for shard in shards] == ["000000.tar", "000001.tar", "000002.tar"]
    assert all(shard.stat().st_size <= 1_000_000 for shard in shards)
    assert [sample["__key__"][-1] for sample in samples(tmp_path / "webdataset")] == list("01234")


def test_a_row_that_is_larger_than_a_shard_has_its_own(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (800, 600, 3), np.uint8)
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for path in paths:
        Image.fromarray(noise).save(path)
    csv = write(tmp_path / "a.csv", [with_picture(path) for path in paths])
    assert export(csv, "webdataset", "--shard-mb", 1) == 0
    assert len(samples(tmp_path / "webdataset")) == len(list((tmp_path / "webdataset").iterdir())) == 2


# --- pairs


def test_shards_hold_pairs_with_their_requests(tmp_path: Path) -> None:
    csv = write_pairs(tmp_path)
    found = samples(exported(csv, "webdataset"))
    assert len(found) == 3
    assert set(found[0]) >= {"input_image.jpg", "edited_image.jpg", "edit_prompt.txt", "txt", "json"}
    assert found[1]["input_image.jpg"] == (tmp_path / "photos/1.png").read_bytes()
    assert found[1]["edited_image.jpg"] == (tmp_path / "edited/1.png").read_bytes()
    assert found[0]["edit_prompt.txt"] == b"make the vehicle blue"  # the prompt with the row's values
    rows = loaded(tmp_path / "webdataset", "webdataset")
    assert (colour_of(rows[0]["input_image.jpg"]), colour_of(rows[0]["edited_image.jpg"])) == (RED, BLUE)


def test_a_folder_has_the_columns_that_trainers_of_edits_expect(tmp_path: Path) -> None:
    """The defaults of train_instruct_pix2pix.py of diffusers."""
    rows = loaded(exported(write_pairs(tmp_path), "imagefolder"), "imagefolder")
    assert [colour_of(row["input_image"]) for row in rows] == [RED] * 3
    assert [colour_of(row["edited_image"]) for row in rows] == [BLUE] * 3
    assert rows["edit_prompt"] == ["make the vehicle blue"] * 3
    assert rows["edit_difference"] == [0.5] * 3


def test_a_column_of_another_name_and_its_own_requests(tmp_path: Path) -> None:
    row = pair(tmp_path, 0)
    row.values["painted"] = row.values.pop("edited_path")
    csv = write_pairs(tmp_path, row, edit={"write": {"edited_path": "painted"}})
    (found,) = loaded(exported(csv, "imagefolder"), "imagefolder")
    assert (colour_of(found["edited_image"]), found["painted"]) == (BLUE, "edited/0.png")
    types = {"edited_path": "file", "edit_prompt": "text"}
    csv = write_declared(tmp_path / "own.csv", types, [pair(tmp_path, 0, edit_prompt="as I say")])
    assert main(["export", "--csv", str(csv), "--to", "imagefolder", "--out", str(tmp_path / "own")]) == 0
    assert loaded(tmp_path / "own", "imagefolder")["edit_prompt"] == ["as I say"]


def test_pairs_of_reddit_come_from_addresses(tmp_path: Path) -> None:
    types = dict.fromkeys(("post_title", "post_text", "edited_url"), "text")
    with HttpServer() as server:
        row = with_picture(f"{server.url('/ok/1.png')}#reddit/abc/def/0")
        row.values |= {"post_title": "Remove her", "post_text": "Thanks!", "edited_url": server.url("/ok/2.png")}
        csv = write_declared(tmp_path / "a.csv", types, [row])
        (found,) = loaded(exported(csv, "imagefolder"), "imagefolder")
        assert set(server.requests) == {"/ok/1.png", "/ok/2.png"}
    assert found["edit_prompt"] == "Remove her\n\nThanks!"
    assert colour_of(found["input_image"]) != colour_of(found["edited_image"])


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pictures_are_upright_as_their_edited_ones(tmp_path: Path, to: str, suffix: str) -> None:
    stored = Image.new("RGB", (400, 200), "white")
    stored.paste(RED, (0, 0, 200, 200))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / f"turned.{suffix}"
    stored.save(path, exif=exif)
    row = pair(tmp_path, 0)
    row.key = str(path)
    draw(tmp_path / "edited/0.png", BLUE, (200, 400))
    single = write(tmp_path / "single.csv", [with_picture(path)])
    assert main(["export", "--csv", str(single), "--to", to, "--out", str(tmp_path / "single")]) == 0
    folder = exported(write_pairs(tmp_path, row), to)
    if to == "webdataset":
        contents = [samples(folder)[0]["input_image.jpg"], samples(tmp_path / "single")[0]["jpg"]]
    else:
        contents = [
            next(file for file in place.glob("000*") if "edited" not in file.name).read_bytes()
            for place in (folder, tmp_path / "single")
        ]
    for content in contents:
        with Image.open(BytesIO(content)) as image:
            image.load()
            assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            assert image.size == (200, 400)
            pixels = np.asarray(image.convert("RGB")).astype(int)
            assert np.abs(pixels[50, 100] - RED).max() < 8
            assert pixels[350, 100].min() > 247
    (found,) = loaded(folder, to)
    dot = ".jpg" if to == "webdataset" else ""
    assert found[f"input_image{dot}"].size == found[f"edited_image{dot}"].size == (200, 400)


@pytest.mark.parametrize("orientation", [None, 1])
def test_upright_pictures_keep_their_bytes(tmp_path: Path, orientation: int | None) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "exif"
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (40, 30), RED).save(tmp_path / "a.jpg", exif=exif)
    (sample,) = samples(exported(write(tmp_path / "a.csv", [with_picture(tmp_path / "a.jpg")]), "webdataset"))
    assert sample["jpg"] == (tmp_path / "a.jpg").read_bytes()


# --- what is left out


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str) -> None:
    rows = [pair(tmp_path, number) for number in range(6)]
    (tmp_path / "photos/1.png").unlink()
    (tmp_path / "edited/2.png").unlink()
    rows[3].values["edited_path"] = ""
    (tmp_path / "edited/4.png").write_bytes(b"no picture")
    csv = write_pairs(tmp_path, *rows, failed(6), failed(7))
    folder = exported(csv, to)
    said = capsys.readouterr().out
    assert said == (
        f"2 rows in {folder}; left out: 2 with an error, 1 whose picture is gone, 1 whose edited picture is gone, "
        "1 without an edited picture, 1 whose edited picture cannot be read\n"
    )
    assert len(loaded(folder, to)) == 2


def test_kinds_that_trainers_do_not_read_are_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (300, 200), RED).save(tmp_path / "a.ppm")
    csv = write(tmp_path / "a.csv", [with_picture(tmp_path / "a.ppm"), with_picture(draw(tmp_path / "b.gif", BLUE))])
    folder = exported(csv, "imagefolder")
    assert "; converted to PNG: 1 PPM" in capsys.readouterr().out
    with Image.open(folder / "000000000.png") as image:
        assert (image.format, image.size, colour_of(image)) == ("PNG", (300, 200), RED)
    assert (folder / "000000001.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


@pytest.mark.parametrize("to", FORMATS)
def test_no_row_is_an_error_and_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str) -> None:
    csv = write(tmp_path / "a.csv", [failed(0), finished(1)])
    assert export(csv, to) == 2
    assert "has no row to export; left out: 1 with an error, 1 whose picture is gone" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if to in path.name]


def test_pictures_come_from_addresses(tmp_path: Path) -> None:
    with HttpServer() as server:
        csv = write(tmp_path / "a.csv", [with_picture(server.url("/ok/1.png"))])
        (sample,) = samples(exported(csv, "webdataset"))
    with Image.open(BytesIO(sample["jpg"])) as image:
        assert image.format == "PNG"


# --- the folder


@pytest.mark.parametrize("to", FORMATS)
def test_the_same_rows_make_the_same_bytes(tmp_path: Path, to: str) -> None:
    csv = write_pairs(tmp_path)

    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in exported(csv, to).iterdir()}

    first = contents()
    (tmp_path / to).rename(tmp_path / "before")
    assert contents() == first
    assert len(first) == (1 if to == "webdataset" else 7)


@pytest.mark.parametrize("to", FORMATS)
def test_a_folder_with_something_in_it_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    (tmp_path / to).mkdir()
    csv = write_pairs(tmp_path)
    assert export(csv, to) == 0  # an empty one is fine
    assert export(csv, to) == 2
    assert f"{tmp_path / to} is not empty: name a new folder with --out" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["export", "--csv", str(csv), "--to", to, "--out", str(tmp_path / "file")]) == 2
    assert f"{tmp_path / 'file'} is not a folder: name a new one with --out" in capsys.readouterr().err


@pytest.mark.parametrize("to", FORMATS)
def test_the_folder_may_be_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    csv = write_pairs(tmp_path / "rows")
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path / "set")
    arguments = ["export", "--csv", str(csv), "--to", to, "--out"]
    assert main([*arguments, "."]) == 0
    assert len(list((tmp_path / "set").iterdir())) == (1 if to == "webdataset" else 7)
    monkeypatch.chdir(tmp_path / "set")
    for out in (".", "..", "/"):
        assert main([*arguments, out]) == 2
        assert f"{out} is not empty: name a new folder with --out" in capsys.readouterr().err


def test_half_a_folder_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "addfile", fail)
    assert export(write_pairs(tmp_path), "webdataset") == 130
    assert not [path for path in tmp_path.iterdir() if path.name.endswith((".new", "webdataset"))]
    monkeypatch.undo()
    assert [path.name for path in exported(tmp_path / "annotations.csv", "webdataset").iterdir()] == ["000000.tar"]


def test_what_a_kill_has_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """Another export of this moment, and folders of people, stay."""
    csv = write_pairs(tmp_path)
    abandoned, running = (tmp_path / f".{digit * 32}.export.new" for digit in "ab")
    mine = [tmp_path / f".{name}.new" for name in ("webdataset", "my.export", "b" * 32)]
    for folder in (abandoned, running, *mine):
        (folder / "000000").mkdir(parents=True)
        (folder / "000000" / "file").touch()
        for path in (folder / "000000" / "file", folder / "000000", folder):
            if not (path.name == "file" and folder == running):
                os.utime(path, (1, 1))
    exported(csv, "webdataset")
    assert not abandoned.exists()
    assert all((folder / "000000" / "file").exists() for folder in (running, *mine))


def test_two_exports_to_one_folder_do_not_disturb_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with new_folder(tmp_path / "webdataset") as first:
        (first / "file").touch()
        csv = write_pairs(tmp_path)
        exported(csv, "webdataset")
        with pytest.raises(UserError, match="cannot be written"), new_folder(tmp_path / "other"):
            exported(csv, "imagefolder")
            (tmp_path / "other").mkdir()
            (tmp_path / "other" / "file").touch()
        (tmp_path / "webdataset").rename(tmp_path / "done")
    assert [path.name for path in (tmp_path / "webdataset").iterdir()] == ["file"]
    assert [path.name for path in (tmp_path / "done").iterdir()] == ["000000.tar"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["imagefolder", "--out", "x", "--shard-mb", "5"], "--to imagefolder does not take --shard-mb"),
        (["imagefolder", "--out", "x", "--caption", "text"], "--to imagefolder does not take --caption"),
        (["webdataset", "--out", "x", "--delimiter", ";"], "--to webdataset does not take --delimiter"),
        (["webdataset", "--out", "s3://bucket/set"], "--to webdataset needs a folder of this machine"),
        (["imagefolder"], "--to imagefolder needs --out DIR"),
        (["webdataset", "--out", "x", "--shard-mb", "0"], "'0' is not a number of MB from 1 on"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    csv = write_pairs(tmp_path)
    try:
        assert main(["export", "--csv", str(csv), "--to", *arguments]) == 2
    except SystemExit as error:  # of argparse
        assert error.code == 2
    assert said in capsys.readouterr().err


def test_a_caption_and_a_request_are_only_text(tmp_path: Path) -> None:
    """Nothing in them leads out of their file."""
    hostile = '"}\n{"file_name": "../../x.png"}\u2028</script>\x00'
    csv = write_pairs(tmp_path, pair(tmp_path, 0, text=hostile, categories=hostile))
    text = load_annotations(csv, vectors=False)["text"][0]
    (sample,) = samples(exported(csv, "webdataset"))
    assert sample["txt"].decode() == text
    (row,) = loaded(exported(csv, "imagefolder"), "imagefolder")
    assert row["text"] == text
    assert pd.read_json(tmp_path / "imagefolder" / "metadata.jsonl", lines=True)["text"][0] == text
