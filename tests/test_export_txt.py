"""export --to txt: one caption file for each picture, as trainers read them."""

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests.rows import failed, finished, write, write_declared
from vec_pipeline.__main__ import main
from vec_pipeline.commands.export import txt
from vec_pipeline.commands.export.places import in_tree
from vec_pipeline.commands.export.txt import one_line, parsed
from vec_pipeline.corrections import EDIT, REJECTED, VERIFIED, Change, Corrections
from vec_pipeline.record import Record

TYPES = {"text": "text", "keywords": "text", "description": "text", "score": "number"}


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "red").save(path)
    return path


def row(key: Path | str, number: int = 0, **values: str) -> Record:
    record = finished(number, **values)
    record.key = str(key)
    return record


def written(folder: Path, keys: Sequence[str] = ("a.jpg", "sub/b.png")) -> Path:
    """A CSV whose pictures are in a folder."""
    rows = [row(picture(folder / "photos" / key), number) for number, key in enumerate(keys)]
    return write(folder / "a.csv", rows)


def export(csv: Path, *arguments: object) -> int:
    return main(["export", "--csv", str(csv), "--to", "txt", *map(str, arguments)])


def files(folder: Path, ending: str = ".txt") -> dict[str, str]:
    return {str(each.relative_to(folder)): each.read_text("utf-8") for each in folder.rglob(f"*{ending}")}


# --- the caption


@pytest.mark.parametrize(
    ("template", "values", "caption"),
    [
        (
            "{trigger}, {keywords}, {description}",
            {"keywords": "car, red", "description": "A car."},
            "ohwx, car, red, A car.",
        ),
        ("{trigger}, {keywords}, {description}", {"keywords": "", "description": "A car."}, "ohwx, A car."),
        ("{keywords}, {description}", {"keywords": "car", "description": None}, "car"),
        ("a photo of {keywords},{description}", {"keywords": "", "description": "A car."}, "A car."),
        ("{keywords} {description}, photo", {"keywords": "car", "description": ""}, "car, photo"),
        ("{{x}}, {text}", {"text": "  one\r\ntwo\u2028three\tfour \0\x1b[31m "}, "{x}, one two three four [31m"),
        ("{text}", {"text": "{trigger} {0} {text.__class__} <b>"}, "{trigger} {0} {text.__class__} <b>"),
        ("score {score}", {"score": 0.5}, "score 0.5"),
        ("{text}", {"text": "x" * 3000}, "x" * 3000),
    ],
)
def test_a_template_becomes_one_line(template: str, values: dict[str, object], caption: str) -> None:
    assert parsed(template, "ohwx", TYPES).filled(values) == caption


def test_without_a_trigger_there_is_no_comma() -> None:
    assert parsed("{trigger}, {text}", "", TYPES).filled({"text": "A car."}) == "A car."


def test_letters_and_marks_of_any_script_stay() -> None:
    text = "שלום \u200fעולם, 👩\u200d🚀, e\u0301, \ue000"
    assert one_line(text) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text.__class__}", "unknown column {text.__class__}"),
        ("{0}", "{0} is not the name of a value"),
        ("{}", "is not the name of a value"),
        ("{text!r}", "is not the name of a value"),
        ("{text:>9999999999}", "is not the name of a value"),
        ("{text", "stand for braces"),
        ("{image_vector}", "unknown column {image_vector} (there are: trigger, image_path, text,"),
    ],
)
def test_a_template_reads_columns_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str, message: str
) -> None:
    csv = written(tmp_path)
    assert export(csv, "--template", template) == 2
    error = capsys.readouterr().err
    assert "--template" in error and message in error and "prompt" not in error
    assert not files(tmp_path)


# --- the files


def test_captions_lie_beside_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = written(tmp_path)
    assert export(csv, "--trigger", "ohwx") == 0
    assert capsys.readouterr().out == "2 captions beside the pictures\n"
    expected = {"a.txt": "ohwx, A red car, number 0.\n", "sub/b.txt": "ohwx, A red car, number 1.\n"}
    assert files(tmp_path / "photos") == expected


def test_bytes_of_the_command_line_that_are_no_text_do_not_end_it(tmp_path: Path) -> None:
    assert export(written(tmp_path, ("a.jpg",)), "--trigger", "\udcff") == 0
    assert files(tmp_path / "photos") == {"a.txt": "?, A red car, number 0.\n"}


def test_captions_lie_in_a_tree_like_that_of_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = written(tmp_path, ("a.jpg", "x/b.png", "x/y/c.png"))
    out = tmp_path / "captions"
    assert export(csv, "--out", out, "--suffix", ".caption", "--where", "path~b.png") == 0
    assert capsys.readouterr().out == f"1 caption in {out}\n"
    assert set(files(out, ".caption")) == {"x/b.caption"}, "as with all rows, though one is exported alone"
    assert set(files(tmp_path)) == set()


def test_pictures_in_archives_and_at_addresses_get_names_in_a_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.zip").write_bytes(b"PK")
    keys: list[Path | str] = [
        picture(tmp_path / "in" / "b.jpg"),
        tmp_path / "in" / "a.zip/../../../../escaped.jpg",
        "https://me:secret@host.example/img/p.jpg?id=1",
        "https://host.example/img/p.jpg?id=2",
        "https://host.example/img/p.jpg",
        "s3://bucket/../../q.png",
        "https://host.example/" + "long" * 100 + ".jpg",
        tmp_path / "in" / ("x" * 300 + ".jpg"),
    ]
    csv = write(tmp_path / "a.csv", [row(key, number) for number, key in enumerate(keys)])
    assert export(csv) == 0
    said = capsys.readouterr().out
    assert "left out: 5 at addresses (name a folder for their files with --out), 1 in archives" in said
    assert "1 whose picture is gone" in said
    out = tmp_path / "x" / "out"
    assert export(csv, "--out", out) == 0
    names = sorted(files(out))
    assert len(names) == 8
    assert {"b.txt", "a.zip/escaped.txt", "host.example/img/p.txt", "bucket/q.txt"} < set(names)
    assert not any("secret" in name or ".." in name for name in names)
    assert list(tmp_path.rglob("escaped*")) == [out / "a.zip/escaped.txt"]


@pytest.mark.parametrize(
    "key", ["/..", "..", "/a\0.jpg", "/", "https://h/..", "https://h/%2e%2e/a.jpg", "a/../../b.jpg", "http://[/"]
)
def test_no_key_leads_out_of_the_tree(key: str) -> None:
    place = in_tree(key, "")
    assert not place.is_absolute() and ".." not in place.parts and place.parts and "\0" not in str(place)


def test_files_that_are_there_are_refused_kept_or_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = written(tmp_path)
    mine = tmp_path / "photos" / "a.txt"
    mine.write_text("mine")
    assert export(csv) == 2
    error = capsys.readouterr().err
    assert f"1 caption file exists already, such as {mine}: keep them with --existing skip" in error
    assert files(tmp_path) == {"photos/a.txt": "mine"}, "nothing is written"
    assert export(csv, "--existing", "skip") == 0
    assert capsys.readouterr().out == "1 caption beside the pictures; kept: 1 existing file\n"
    assert mine.read_text() == "mine"
    assert export(csv, "--existing", "skip") == 0, "all are there"
    assert export(csv, "--existing", "overwrite") == 0
    assert mine.read_text() == "A red car, number 0.\n"


def test_the_target_of_a_link_is_replaced(tmp_path: Path) -> None:
    csv = written(tmp_path, ("a.jpg",))
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "photos" / "a.txt").symlink_to(tmp_path / "mine.txt")
    assert export(csv, "--existing", "overwrite") == 0
    assert (tmp_path / "photos" / "a.txt").is_symlink()
    assert (tmp_path / "mine.txt").read_text() == "A red car, number 0.\n"


def test_what_has_no_file_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    rows = [
        row(picture(photos / "a.jpg")),
        row(picture(photos / "a.png"), 1),  # a.txt is taken
        row(picture(photos / "b.jpg"), 2, description=""),
        row(photos / "gone.jpg", 3),
        failed(4),
    ]
    assert export(write(tmp_path / "a.csv", rows)) == 0
    said = capsys.readouterr().out
    assert said.startswith("1 caption beside the pictures; left out: ")
    for reason in (
        "1 with an error",
        "1 without a caption",
        "1 whose picture is gone",
        "1 whose file would have the name of another picture's",
    ):
        assert reason in said
    assert files(photos) == {"a.txt": "A red car, number 0.\n"}


def test_no_row_at_all_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(write(tmp_path / "a.csv", [failed(0)])) == 2
    assert "has no row for a caption; left out: 1 with an error" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = written(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "sub").write_text("a file with the name of a folder")
    assert export(csv, "--out", out) == 0
    assert "1 caption in" in (said := capsys.readouterr().out)
    assert "left out: 1 whose folder cannot be written" in said


def test_a_full_disk_ends_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(txt, "write_whole", full)
    assert export(written(tmp_path)) == 2
    assert "a.txt cannot be written (No space left on device): free some disk space" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["txt", ".", "./x", ".jpg", ".PNG"])
def test_a_suffix_that_could_harm_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    csv = written(tmp_path)
    before = (tmp_path / "photos" / "a.jpg").read_bytes()
    assert export(csv, "--suffix", suffix, "--existing", "overwrite") == 2
    assert f"--suffix {suffix}" in capsys.readouterr().err
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == before


def test_columns_of_the_csv_may_be_in_the_template(tmp_path: Path) -> None:
    record = row(picture(tmp_path / "photos" / "a.jpg"), score="0.25")
    csv = write_declared(tmp_path / "a.csv", {"score": "number"}, [record])
    assert export(csv, "--template", "{categories} {score}") == 0
    assert files(tmp_path / "photos") == {"a.txt": "vehicle 0.25\n"}


def test_what_people_have_corrected_is_written(tmp_path: Path) -> None:
    csv = written(tmp_path)
    keys = [str(tmp_path / "photos" / name) for name in ("a.jpg", "sub/b.png")]
    changes = [Change(keys[0], "description", "A bus."), Change(keys[1], VERIFIED, REJECTED)]
    Corrections(csv).correct(changes, EDIT)
    assert export(csv, "--where", "-verified:rejected") == 0
    assert files(tmp_path / "photos") == {"a.txt": "A bus.\n"}
    assert export(csv, "--machine", "--existing", "overwrite", "--template", "{description}") == 0
    assert files(tmp_path / "photos")["a.txt"] == "A red car, number 0.\n"


@pytest.mark.parametrize("option", ["--in-place", "--undo", "--shard-mb=5", "--sidecar=photo.xmp"])
def test_options_of_other_formats_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert export(written(tmp_path), option) == 2
    assert f"--to txt does not take {option.partition('=')[0]}" in capsys.readouterr().err


def test_an_address_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(written(tmp_path), "--out", "s3://bucket/captions") == 2
    assert "--to txt needs a folder of this machine for --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "suffix"), [("a", ".csv"), ("a", ".settings.yaml"), ("a", ".corrections.sqlite"), ("link", ".txt")]
)
@pytest.mark.parametrize("existing", ["error", "skip", "overwrite"])
def test_a_caption_never_replaces_what_belongs_to_the_csv(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, suffix: str, existing: str
) -> None:
    record = row(picture(tmp_path / f"{name}.png"), score="0.25")
    csv = write_declared(tmp_path / "a.csv", {"score": "number"}, [record])
    (tmp_path / "link.txt").symlink_to(csv)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert export(csv, "--suffix", suffix, "--existing", existing) == 2
    if existing != "error":
        assert "1 whose file would replace one that belongs to the CSV" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_caption_never_replaces_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    first, second = picture(photos / "a.jpg"), photos / "a.img"
    second.write_bytes(first.read_bytes())
    picture(photos / "b.jpg")
    (photos / "b.img").write_text("mine")
    csv = write(tmp_path / "a.csv", [row(key, number) for number, key in enumerate((first, second, photos / "b.jpg"))])
    assert export(csv, "--suffix", ".img", "--existing", "overwrite") == 0
    said = capsys.readouterr().out
    assert (
        said.startswith("1 caption beside the pictures; left out: ") and "1 whose file would replace a picture" in said
    )
    assert second.read_bytes() == first.read_bytes()
    assert (photos / "b.img").read_text() == "A red car, number 2.\n"


def test_a_name_may_be_as_long_as_a_disk_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = written(tmp_path, ("x" * 251 + ".jpg",))
    assert export(csv) == 0
    assert capsys.readouterr().out == "1 caption beside the pictures\n"
