"""The report's folder, without a browser: thumbnails, data, map, groups, and what it does to what was there."""

import argparse
import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlparse

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import Run
from vec_pipeline.__main__ import main
from vec_pipeline.commands import report
from vec_pipeline.commands.report import places as map_places
from vec_pipeline.commands.report import report as make
from vec_pipeline.commands.report.site import PAGE, Site, call
from vec_pipeline.commands.report.summary import stage_seconds
from vec_pipeline.commands.report.thumbnails import SIDE_PX
from vec_pipeline.record import COLUMNS, NotFound, Record, UserError
from vec_pipeline.settings import settings_path
from vec_pipeline.sinks.csv_file import encode_row, row_of
from vec_pipeline.sources.folder import record_of

RED, GREEN = (220, 20, 20), (20, 160, 20)


def write_csv(path: Path, records: Sequence[Record], extra_columns: Sequence[str] = ()) -> Path:
    header = (*COLUMNS, *extra_columns)
    rows = [encode_row(row_of(record, header)) for record in records]
    path.write_bytes(b"".join([encode_row(header), *rows]))
    return path


def record(path: object, vector: Sequence[float] | None = None, error: str = "", **values: Any) -> Record:
    if vector is not None:
        values["image_vector"] = np.array(vector, np.float32)
    return Record(str(path), values, error)


def picture(path: Path, colour: tuple[int, int, int] = RED, size: tuple[int, int] = (400, 300)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def make_report(csv: Path, out: Path, cosine: float = 0.97) -> None:
    options = argparse.Namespace(csv=csv, out=out, duplicate_cosine=cosine, by="", where="", machine=False)
    assert report.run(options) == 0


def data_folder(out: Path) -> Path:
    """The folder that index.html names."""
    found = set(re.findall(r'"(gallery/data-\d+)/', (out / "index.html").read_text()))
    assert len(found) == 1
    return out / found.pop()


def values_of(out: Path, name: str) -> Any:
    """The last value that a data script hands over."""
    script = (data_folder(out) / name).read_text()
    arguments = re.fullmatch(r"gallery\.\w+\((.*)\);\n", script, re.DOTALL)
    assert arguments
    return json.loads(f"[{arguments[1]}]")[-1]


def thumbnails(out: Path) -> dict[str, Path]:
    return {path.stem: path for path in (out / "gallery" / "thumbnails").glob("*/*.webp")}


def test_the_example_pictures(example_run: tuple[Run, Path], example_rows: pd.DataFrame, tmp_path: Path) -> None:
    make_report(example_run[1], tmp_path / "site")
    rows, head = values_of(tmp_path / "site", "data-rows-0.js"), values_of(tmp_path / "site", "data-head.js")
    assert rows["description"] == list(example_rows["description"])
    assert head["rows"] == 25
    assert dict(head["categories"]) == example_rows["categories"].value_counts().to_dict()
    seconds = {name: (work_s, load_s) for name, work_s, load_s in head["stages"]}
    assert seconds.keys() >= {"describe", "embed_text", "embed_words", "embed_image", "structure"}
    assert min(seconds["describe"]) > 0  # the others may take less than is printed
    shown = thumbnails(tmp_path / "site")
    for path, name in zip(rows["image_path"], rows["thumbnail"], strict=True):
        with Image.open(path) as full, Image.open(shown[name]) as small:
            assert small.format == "WEBP"
            assert max(small.size) == SIDE_PX
            colours = [np.asarray(image.convert("RGB").resize((1, 1))).astype(int) for image in (full, small)]
            assert abs(colours[0] - colours[1]).max() < 12  # the picture of that row, not of another
    names = [Path(path).name for path in rows["image_path"]]
    plan = values_of(tmp_path / "site", "data-map.js")
    places = {name: np.array([x, y]) for name, x, y in zip(names, plan["x"], plan["y"], strict=True)}

    def apart(one: str, other: str) -> float:
        return float(np.linalg.norm(places[one] - places[other]))

    assert apart("purple-cat.png", "purple-cat-2.jpg") < apart("purple-cat.png", "plain-blue.png")


def test_thumbnails_are_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (400, 200), RED)
    image.paste(GREEN, (0, 0, 200, 200))  # green at the left; turned by 90 degrees clockwise it is on top
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    make_report(write_csv(tmp_path / "a.csv", [record(tmp_path / "turned.jpg")]), tmp_path / "site")
    (small,) = thumbnails(tmp_path / "site").values()
    with Image.open(small) as thumbnail:
        assert thumbnail.size == (96, 192)
        top, bottom = thumbnail.getpixel((48, 40)), thumbnail.getpixel((48, 150))
    assert np.abs(np.array(top) - GREEN).max() < 20
    assert np.abs(np.array(bottom) - RED).max() < 20


def test_missing_broken_and_odd_files(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would wait for ever
    odd = picture(tmp_path / "50% #1 é?.png")
    no_utf8 = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Image.new("RGB", (10, 10), GREEN).save(os.fsdecode(no_utf8))
    keys = [tmp_path / "gone.jpg", tmp_path / "broken.jpg", tmp_path / "pipe.jpg", odd]
    records = [*map(record, keys), record_of(os.fsdecode(no_utf8))]
    make_report(write_csv(tmp_path / "a.csv", records), tmp_path / "site")
    rows = values_of(tmp_path / "site", "data-rows-0.js")
    assert [bool(name) for name in rows["thumbnail"]] == [False, False, False, True, True]
    assert rows["link"][0] == ""
    assert unquote(urlparse(rows["link"][3]).path) == str(odd)
    assert "#" not in rows["link"][3]
    assert rows["link"][4].endswith("/caf%E9.png")


def test_second_report_makes_only_what_is_new(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{name}.png") for name in "abcd"]
    csv, out = tmp_path / "a.csv", tmp_path / "site"
    make_report(write_csv(csv, [record(path) for path in paths[:3]]), out)
    before = {name: path.stat().st_ino for name, path in thumbnails(out).items()}
    names = values_of(out, "data-rows-0.js")["thumbnail"]
    times = paths[1].stat()
    picture(paths[1], GREEN)
    os.utime(paths[1], ns=(times.st_atime_ns, times.st_mtime_ns + 1))  # changed, within the same second
    paths[2].unlink()  # gone, but its row and its thumbnail stay
    make_report(write_csv(csv, [record(path) for path in paths[1:]]), out)  # a has no row any more, d is new
    rows, after = values_of(out, "data-rows-0.js"), thumbnails(out)
    assert set(after) == set(rows["thumbnail"])
    assert not {names[0], names[1]} & set(after)
    with Image.open(after[rows["thumbnail"][0]]) as changed:
        assert np.abs(np.array(changed.getpixel((5, 5))) - GREEN).max() < 20
    assert rows["thumbnail"][1] == names[2]
    assert after[names[2]].stat().st_ino == before[names[2]]
    assert rows["link"][1] == ""
    make_report(csv, out)
    assert {name: path.stat().st_ino for name, path in thumbnails(out).items()} == {
        name: path.stat().st_ino for name, path in after.items()
    }


@dataclass
class Memory:
    """Images of a source of one's own: the bytes of each key, whatever state it is in."""

    images: ClassVar[dict[str, bytes]] = {}
    key: str

    @property
    def link(self) -> str:
        return f"https://example.org/?image={self.key}&size=full" if self.key.endswith("0") else ""

    def read(self) -> bytes:
        return self.images[self.key]

    def identity(self) -> str:
        return str(hash(self.images[self.key]))


class MemorySource:
    """Keys like memory:0."""

    columns: ClassVar[dict[str, str]] = {}
    is_stream = False

    def __init__(self, argument: str, exclude: Sequence[str] = ()) -> None:
        if argument not in Memory.images:
            raise NotFound(f"{argument} does not exist")
        self.key, self.notes, self.failures = argument, [], []  # type: ignore[var-annotated]

    @classmethod
    def accepts(cls, argument: str) -> bool:
        return argument.startswith("memory:")

    def __iter__(self) -> Iterator[Record]:
        yield Record(self.key, {"content": Memory(self.key)})


def test_pictures_come_from_the_source_that_the_csv_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    red, green = (picture(tmp_path / name, colour).read_bytes() for name, colour in (("r.png", RED), ("g.png", GREEN)))
    monkeypatch.setattr(Memory, "images", {"memory:0": red, "memory:1": green, "memory:2": b"no image"})
    csv, out = tmp_path / "a.csv", tmp_path / "site"
    write_csv(csv, [record(f"memory:{number}") for number in range(4)])
    settings_path(csv).write_text(f"sources: [{__name__}]\nstages: {{}}\ncolumns: {{}}\n")
    make_report(csv, out)
    rows = values_of(out, "data-rows-0.js")
    assert rows["link"] == ["https://example.org/?image=memory:0&size=full", "", "", ""]
    assert [bool(name) for name in rows["thumbnail"]] == [True, True, False, False]
    Memory.images["memory:0"] = green
    del Memory.images["memory:1"]
    make_report(csv, out)
    again = values_of(out, "data-rows-0.js")["thumbnail"]
    assert again[1] == rows["thumbnail"][1]  # of the image that is gone
    for name in again[:2]:
        with Image.open(thumbnails(out)[name]) as small:
            assert np.abs(np.array(small.getpixel((5, 5))) - GREEN).max() < 20


def test_numbers_of_other_stages_are_handed_over(tmp_path: Path) -> None:
    csv = tmp_path / "a.csv"
    settings_path(csv).write_text("columns: {faces: number, label: text, width_px: number}\nstages: {}\n")
    records = [record("/a", faces=2, label="a", width_px=10.5, clip_score=0.5), record("/b", faces="NaN")]
    make_report(write_csv(csv, records, ("faces", "clip_score", "label", "width_px")), tmp_path / "site")
    assert values_of(tmp_path / "site", "data-head.js")["numbers"] == ["faces", "width_px"]
    rows = values_of(tmp_path / "site", "data-rows-0.js")
    assert rows["numbers"] == [[2, 10.5], [None, None]]
    assert rows["clip_score"] == [0.5, None]


def test_a_csv_that_is_replaced_meanwhile_is_shown_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ("flags", "clip_score")
    records = [record(f"/{n}", [1, n], description=f"text {n}", flags="x") for n in range(300)]
    csv = write_csv(tmp_path / "a.csv", records, columns)
    other = write_csv(tmp_path / "other.csv", [record(f"/{n}", description=f"text {n}") for n in reversed(range(400))])
    monkeypatch.setattr("vec_pipeline.sinks.csv_rows.BLOCK_BYTES", 1000)

    def replaced(folder: Path) -> Site:  # after the header has been read
        other.replace(csv)
        return Site(folder)

    monkeypatch.setattr(make, "Site", replaced)
    make_report(csv, tmp_path / "site")
    rows = values_of(tmp_path / "site", "data-rows-0.js")
    assert rows["image_path"] == [f"/{n}" for n in range(300)]
    assert rows["description"] == [f"text {n}" for n in range(300)]
    assert set(rows["flags"]) == {"x"}


def test_interrupted_report_is_not_taken_for_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = picture(tmp_path / "a.png"), tmp_path / "site"
    csv = write_csv(tmp_path / "a.csv", [record(path, [1, 0])])

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make, "plan_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_report(csv, out)
        assert not (out / "index.html").exists()
    make_report(csv, out)
    whole = {path.name: path.read_bytes() for path in data_folder(out).iterdir()}
    write_csv(csv, [record(path, [1, 0]), record(tmp_path / "b.png", [0, 1])])
    with monkeypatch.context() as patch:
        patch.setattr(make, "plan_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_report(csv, out)
    assert {path.name: path.read_bytes() for path in data_folder(out).iterdir()} == whole
    make_report(csv, out)
    assert values_of(out, "data-head.js")["rows"] == 2
    assert [folder.name for folder in (out / "gallery").glob("data-*")] == [data_folder(out).name]


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    csv = write_csv(tmp_path / "a.csv", [])
    (tmp_path / "photos").mkdir()
    picture(tmp_path / "photos" / "a.png")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "index.html").write_text("<h1>Mine</h1>")
    for folder in ("photos", "web"):
        with pytest.raises(UserError, match=f"{folder} is not empty and not a report"):
            make_report(csv, tmp_path / folder)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]
    with pytest.raises(UserError, match="is not a folder"):
        make_report(csv, csv)


def test_links_pipes_and_devices_in_the_place_of_a_report_are_left_alone(tmp_path: Path) -> None:
    """What a report replaces, or removes from its folder, may belong to something else."""
    csv = write_csv(tmp_path / "a.csv", [record(picture(tmp_path / "a.png"))])
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "ab").mkdir(parents=True)
    (elsewhere / "ab" / "mine.txt").write_text("mine")
    for place in ("index.html", "gallery", "gallery/thumbnails"):
        site = tmp_path / place.replace("/", "-")
        make_report(csv, site)
        link = site / place
        link.rename(site / "away")
        link.symlink_to(elsewhere)
        with pytest.raises(UserError, match=f"{link} is a link, a pipe or a device: remove it, or name a new folder"):
            make_report(csv, site)
        assert link.is_symlink()
    os.mkfifo(site / "index.html.pipe")
    (site / "index.html.pipe").replace(site / "index.html")
    with pytest.raises(UserError, match="is a link, a pipe or a device"):
        make_report(csv, site)
    assert [path.name for path in elsewhere.rglob("*")] == ["ab", "mine.txt"]
    for out in ("-", "/dev/null"):
        with pytest.raises(UserError, match=f"{out} is not a folder"):
            make_report(csv, Path(out))
    assert not Path("-").exists()


def test_a_report_goes_where_a_link_to_a_folder_leads(tmp_path: Path) -> None:
    csv = write_csv(tmp_path / "a.csv", [])
    (tmp_path / "large disk").mkdir()
    (tmp_path / "site").symlink_to(tmp_path / "large disk")
    make_report(csv, tmp_path / "site")
    assert (tmp_path / "site").is_symlink()
    assert (tmp_path / "large disk" / "index.html").is_file()


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "a.csv", [])
    assert main(["report", "--csv=~/a.csv", "--out=~/site"]) == 0
    assert (tmp_path / "site" / "index.html").is_file()
    assert not (tmp_path / "~").exists()


def test_one_image_is_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = write_csv(tmp_path / "a.csv", [record(picture(tmp_path / "a.png"))])
    make_report(csv, tmp_path / "site")
    assert capsys.readouterr().out.startswith("1 image, 1 new thumbnail, ")
    make_report(csv, tmp_path / "site")
    assert capsys.readouterr().out.startswith("1 image, 0 new thumbnails, ")


def test_seconds_are_those_of_the_own_log(tmp_path: Path) -> None:
    """Of two outputs in one folder."""
    for name, log, seconds in (("a.v1", "a.v1.log", 1.5), ("a.v2", "a.v2.log", 2.5), ("b.csv", "b.log", 3.5)):
        csv = write_csv(tmp_path / name, [])
        (tmp_path / log).write_text(f"  describe     {seconds} s, and 0.0 s to load its model\n")
        make_report(csv, tmp_path / "site")
        assert values_of(tmp_path / "site", "data-head.js")["stages"] == [["describe", seconds, 0.0]]


def test_unusable_csv_makes_no_folder(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("name,size\na,1\n")
    for csv in (tmp_path / "missing.csv", other):
        with pytest.raises(UserError, match=csv.name):
            make_report(csv, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_full_disk_is_told_and_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Site, "write", write)
    csv = write_csv(tmp_path / "a.csv", [record("/a.jpg")])
    with pytest.raises(UserError, match=r"site cannot be written \(No space left on device"):
        make_report(csv, tmp_path / "site")
    assert not (tmp_path / "site" / "index.html").exists()


def test_vectors_of_two_models_are_refused(tmp_path: Path) -> None:
    csv = write_csv(tmp_path / "a.csv", [record("/a.jpg", [1, 0]), record("/b.jpg", [1, 0, 0])])
    with pytest.raises(UserError, match=r"has the shapes \(2,\) and \(3,\)"):
        make_report(csv, tmp_path / "site")


def test_two_rows_of_one_image_share_a_thumbnail(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    make_report(write_csv(tmp_path / "a.csv", [record(path)] * 50), tmp_path / "site")
    assert set(values_of(tmp_path / "site", "data-rows-0.js")["thumbnail"]) == set(thumbnails(tmp_path / "site"))


def test_no_rows(tmp_path: Path) -> None:
    make_report(write_csv(tmp_path / "a.csv", []), tmp_path / "site")
    assert values_of(tmp_path / "site", "data-head.js")["rows"] == 0
    assert values_of(tmp_path / "site", "data-map.js") == {"x": [], "y": [], "group": []}


def test_summary_counts(tmp_path: Path) -> None:
    names = ("text_confidence", "clip_score", "flags")
    records = [
        record("/a", categories="animal", keywords="cat, red", image_text="SALE", text_confidence="0.91", flags="x y"),
        record("/b", categories="animal", keywords="cat", text_confidence="0.94", flags="x", clip_score="-0.02"),
        record("/c", categories="plant", text_confidence="0.85", clip_score="0.31"),  # 0.85 // 0.05 is 16
        record("/f", text_confidence="1.0"),
        record("/d", error="open_image: OSError: truncated: at byte 7"),
        record("/e", error="open_image: OSError: no such file"),
    ]
    make_report(write_csv(tmp_path / "a.csv", records, names), tmp_path / "site")
    head = values_of(tmp_path / "site", "data-head.js")
    assert head["categories"] == [["animal", 2], ["plant", 1]]
    assert head["keywords"] == [["cat", 2], ["red", 1]]
    assert head["flags"] == [["x", 2], ["y", 1]]
    assert head["errors"] == [["open_image: OSError", 2]]
    assert head["with_text"] == 1
    assert head["scores"]["text_confidence"][-4:] == [[0.8, 0], [0.85, 1], [0.9, 2], [0.95, 1]]
    assert head["scores"]["text_confidence"][0] == [0.5, 0]
    assert [low for low, number in head["scores"]["clip_score"] if number] == [-0.05, 0.3]
    assert sum(number for _, number in head["scores"]["clip_score"]) == 2
    rows = values_of(tmp_path / "site", "data-rows-0.js")
    assert rows["text_confidence"] == [0.91, 0.94, 0.85, 1, None, None]


def test_seconds_per_stage_are_summed_over_the_runs_of_a_log(tmp_path: Path) -> None:
    run = "2026-11-21 04:39:17,092 INFO vec_pipeline: 25 images in 0:21: 1.21 images/s\n"
    stages = "  describe    1.5 s, and 8.4 s to load its model\n  my.stage  2000.0 s, and 0.0 s to load its model\n"
    (tmp_path / "a.log").write_text(run + stages + "  2 x open_image: OSError\n" + run + stages)
    assert stage_seconds(tmp_path / "a.log") == [("describe", 3.0, 16.8), ("my.stage", 4000.0, 0.0)]
    assert stage_seconds(tmp_path / "none.log") == []


def test_rows_are_split_into_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "ROWS_PER_PIECE", 10)
    records = [record(f"/photos/{number}.jpg") for number in range(21)]
    make_report(write_csv(tmp_path / "a.csv", records), tmp_path / "site")
    pieces = [values_of(tmp_path / "site", f"data-rows-{index}.js")["image_path"] for index in range(3)]
    assert [len(piece) for piece in pieces] == [10, 10, 1]
    assert [path for piece in pieces for path in piece] == [record.key for record in records]


def test_no_text_ends_a_script() -> None:
    hostile = [
        "</script><img src=x onerror=alert(1)>",
        "<!-- ",
        "a\u2028b\u2029c",
        "quote \" ' ` \\ ${x}",
        "\ud800",
        "\u202eabc",
    ]
    script = call("addRows", 0, {"text": hostile})
    assert not set(script) & set("<\u2028\u2029")
    arguments = script.removeprefix("gallery.addRows(").removesuffix(");\n")
    assert json.loads(f"[{arguments}]") == [0, {"text": hostile}]


def test_page_asks_no_network_for_anything() -> None:
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"https?:|//[a-z]+\.|@import|\binnerHTML\b|insertAdjacentHTML|\beval\(|document\.write", text
        )
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert "unsafe" not in page
    assert not re.search(r"<script(?![^>]*\ssrc=)|\son\w+=|\sstyle=", page)


@pytest.mark.parametrize("number", [300, 5_000])  # under and over the number of landmarks
def test_similar_vectors_lie_together_on_the_map(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_places, "LANDMARKS", 500)
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 6, number)
    places = map_places.place(rng.standard_normal((6, 128))[truth] + 0.4 * rng.standard_normal((number, 128)))
    assert places.shape == (number, 2)
    assert places.min() >= -1e-6
    assert places.max() <= 1 + 1e-6
    assert np.ptp(places, axis=0).max() == pytest.approx(1, abs=1e-6)
    assert places[:, 0].std() >= places[:, 1].std()
    sample = rng.choice(number, 200, replace=False)
    distances = np.linalg.norm(places[sample, None] - places, axis=2)
    nearest = np.argsort(distances, axis=1)[:, 1]
    assert (truth[nearest] == truth[sample]).mean() > 0.95
    assert len(np.unique(places, axis=0)) == number  # none hides another


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("dimensions", [1, 8])
@pytest.mark.parametrize("are_equal", [False, True])
def test_few_vectors_have_places_too(number: int, dimensions: int, are_equal: bool) -> None:
    vectors = np.random.default_rng(0).standard_normal((1 if are_equal else number, dimensions))
    places = map_places.place(np.repeat(vectors, number, axis=0) if are_equal else vectors)
    assert places.shape == (number, 2)
    assert np.isfinite(places).all()
    assert len(np.unique(places.round(6), axis=0)) == number


def test_rows_without_a_vector_are_not_on_the_map(tmp_path: Path) -> None:
    records = [record("/a", [1, 0]), record("/b"), record("/c", [1, 0.01])]
    make_report(write_csv(tmp_path / "a.csv", records), tmp_path / "site")
    plan = values_of(tmp_path / "site", "data-map.js")
    assert plan["x"][1] == plan["y"][1] == -1
    assert min(plan["x"][0], plan["x"][2]) >= 0
    assert plan["group"] == [1, 0, 1]


@pytest.mark.parametrize("text", ["0", "1.1", "nan", "near"])
def test_cosine_out_of_range_is_refused(text: str) -> None:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--out", "x", "--duplicate-cosine", text])
