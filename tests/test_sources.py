"""Sources: every image of a folder once, in sorted order, whatever its name and whichever links lead to it."""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import EXAMPLES, PROJECT, run_worker
from vec_pipeline.commands.run import own_files
from vec_pipeline.record import NotFound, SourceOptions, UserError
from vec_pipeline.sources import content_of, open_source
from vec_pipeline.sources.folder import Folder, path_of


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path, *exclude: str) -> list[str]:
    """The keys of a folder's images, relative to it where they lie below it."""
    return [record.key.removeprefix(f"{os.path.realpath(root)}/") for record in Folder(str(root), exclude)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def test_images_come_from_all_depths_in_sorted_order(root: Path) -> None:
    names = ["10.png", "2.png", "B/1.jpg", "B/a/deep/er/2.jpg", "B/b.jpg", "a.jpg", "a/z.jpg"]
    make(root, *reversed(names))
    assert sorted(found(root)) == sorted(names)
    assert found(root) == ["10.png", "2.png", "B/1.jpg", "B/a/deep/er/2.jpg", "B/b.jpg", "a/z.jpg", "a.jpg"]
    source = Folder(str(root))
    assert list(source) == list(source)


def test_the_folder_is_walked_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is to do is counted before it is done; a network drive lists a million files in minutes."""
    make(root, "a.jpg", "b/c.jpg")
    source, scans, scan = Folder(str(root)), [], os.scandir

    def note(folder: str) -> "os._ScandirIterator[str]":
        scans.append(folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", note)
    first = list(source)
    assert len(scans) == 2
    assert list(source) == first
    assert len(scans) == 2


def test_a_record_holds_the_absolute_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, "a.jpg")
    monkeypatch.chdir(root.parent)
    (record,) = Folder("photos")
    assert record.key == os.path.realpath(root / "a.jpg")
    assert record.error == ""


def test_content_is_read_and_identified_by_the_file(root: Path) -> None:
    (root / "a.jpg").write_bytes(b"one")
    (record,) = Folder(str(root))
    content = record.values["content"]
    assert content.read() == b"one"
    assert content.link == (root / "a.jpg").resolve().as_uri()
    before = content.identity()
    os.utime(root / "a.jpg", ns=(0, 1))
    touched = content.identity()
    (root / "a.jpg").write_bytes(b"other")
    os.utime(root / "a.jpg", ns=(0, 1))
    assert len({before, touched, content.identity()}) == 3, "time and size"
    (root / "a.jpg").unlink()
    for use in (content.read, content.identity):
        with pytest.raises(FileNotFoundError, match=r"a\.jpg"):
            use()


def test_images_are_known_by_suffix_in_any_case(root: Path) -> None:
    images = [
        *("a.JPG", "b.Jpeg", "c.png", "d.WebP", "e.gif", "f.bmp", "g.tif", "h.TIFF", "i.mpo", "j.avif", "k.HEIC"),
        *("l.heif", "m.jfif", "n.tar.jpg"),
    ]
    make(root, *images, "jpg", "notes.txt", "a.jpg.txt", "noext", "x.jpg~", "annotations.csv")
    assert found(root) == images


def test_hidden_files_and_folders_are_left_out(root: Path) -> None:
    make(root, ".hidden.jpg", ".jpg", ".hidden/a.jpg", "b/.thumbnails/c.jpg", "b/d.jpg")
    assert found(root) == ["b/d.jpg"]


def test_a_root_in_a_hidden_folder_is_walked(tmp_path: Path) -> None:
    make(tmp_path / ".cache", "a.jpg", "b/c.jpg")
    (tmp_path / ".cache" / "link.jpg").symlink_to("a.jpg")
    assert found(tmp_path / ".cache") == ["a.jpg", "b/c.jpg"]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("@eaDir", ["#keep/b.jpg", "a.NEF", "deep/c.jpg"]),
        ("*.nef", ["#keep/b.jpg", "@eaDir/x.jpg", "deep/@eaDir/y.jpg", "deep/c.jpg"]),
        ("*/deep/*", ["#keep/b.jpg", "@eaDir/x.jpg", "a.NEF"]),
        ("[a-z]*.jpg", ["a.NEF"]),
        ("deep/c.jpg", ["#keep/b.jpg", "@eaDir/x.jpg", "a.NEF", "deep/@eaDir/y.jpg"]),
        ("eep/c.jpg", ["#keep/b.jpg", "@eaDir/x.jpg", "a.NEF", "deep/@eaDir/y.jpg", "deep/c.jpg"]),
        ("@EADIR/", ["#keep/b.jpg", "a.NEF", "deep/c.jpg"]),
        ("deep/@eaDir/", ["#keep/b.jpg", "@eaDir/x.jpg", "a.NEF", "deep/c.jpg"]),
    ],
)
def test_globs_of_names_and_of_paths_are_left_out(root: Path, glob: str, expected: list[str]) -> None:
    make(root, "@eaDir/x.jpg", "a.NEF", "deep/c.jpg", "deep/@eaDir/y.jpg", "#keep/b.jpg")
    assert found(root, glob) == expected
    assert found(root, glob, "nothing", "/no/where") == expected


def test_what_is_left_out_is_said_by_kind_and_number(root: Path) -> None:
    make(root, "a.jpg", ".DS_Store", ".hidden/b.jpg", "@eaDir/c.jpg", "deep/@eaDir/d.jpg", "Makefile", "x.7z-1.2 final")
    make(root, *(f"{number}.MP4" for number in range(1200)), "b/z.mp4", "n.txt", "output/n.csv", "output/n.log")
    os.mkfifo(root / "pipe.jpg")
    own = [f"{os.path.realpath(root)}/output/n.*"]
    source = Folder(str(root), ["@eaDir", "#recycle", *own])
    for _ in range(2):
        assert [record.key for record in source] == [os.path.realpath(root / "a.jpg")]
        assert source.notes == [
            "left out: 1,201 .mp4, 2 hidden, 2 @eaDir, 2 in output/, 1 without a suffix, 1 .txt, 1 not a file, "
            "1 of other kinds"
        ]


def test_a_note_names_the_most_frequent_kinds(root: Path) -> None:
    make(root, "a.jpg", *(f"{number}.k{kind}" for kind in range(12) for number in range(20 - kind)))
    source = Folder(str(root))
    list(source)
    kinds = ", ".join(f"{20 - kind} .k{kind}" for kind in range(8))
    assert source.notes == [f"left out: {kinds}, {12 + 11 + 10 + 9} of other kinds"]


def test_nothing_left_out_is_no_note(root: Path) -> None:
    make(root, "a.jpg", "b/c.png")
    source = Folder(str(root))
    assert len(list(source)) == 2
    assert source.notes == []


def test_a_link_into_what_is_left_out_is_followed(root: Path) -> None:
    """As it is into hidden folders: somebody has put it beside the pictures."""
    make(root, "@eaDir/x.jpg", "@eaDir/y.jpg", "a.jpg")
    (root / "z.jpg").symlink_to("@eaDir/x.jpg")
    assert found(root, "@eaDir") == ["a.jpg", "@eaDir/x.jpg"]


def test_the_output_hides_no_pictures_beside_it(root: Path) -> None:
    make(root, "trip/a.jpg", "trip/annotations.csv", "trip/annotations.jpg", "trip/annotations.log", "b.jpg")
    make(root, "trip/annotations.settings.jpg", "trip/annotations.Cache.png")
    globs = own_files(root / "trip" / "annotations.csv")
    source = Folder(str(root), globs)
    keys = [record.key.removeprefix(f"{os.path.realpath(root)}/") for record in source]
    pictures = ["annotations.Cache.png", "annotations.jpg", "annotations.settings.jpg"]
    assert keys == ["b.jpg", "trip/a.jpg", *(f"trip/{name}" for name in pictures)]
    assert source.notes == ["left out: 2 in trip/"]


def test_all_files_of_an_output_are_its_own(tmp_path: Path) -> None:
    """Whatever letters its name has; what a run writes there is known by a real run."""
    folder = tmp_path / "a[b]*c"
    output = folder / "pictures [1].csv"
    source = EXAMPLES / "red-flower.png"
    shutil.copytree(source.parent, folder, ignore=lambda _, names: [name for name in names if name != source.name])
    run = run_worker(folder, "--output", output)
    assert run.returncode == 0, run.stderr
    again = run_worker(folder, "--output", output)
    assert re.fullmatch(r"left out: [5-9] in a\[b\]\*c/", again.stdout.splitlines()[0])
    assert "1 image: 1 done, 0 to do" in again.stdout


def test_exclude_is_an_option_of_the_configuration(tmp_path: Path) -> None:
    folder, output = tmp_path / "photos", tmp_path / "out" / "annotations.csv"
    make(folder, "@eaDir/a.jpg", "#recycle/b.jpg", "c.jpg", "d.png", "deep/e.png")
    run = run_worker(folder, "--output", output, "--dry-run")
    assert run.stdout.splitlines()[:2] == ["left out: 1 #recycle, 1 @eaDir", "3 images: 0 done, 3 to do"]
    run = run_worker(folder, "--output", output, "--dry-run", "--set", "exclude=['*.PNG', '*/@*']")
    assert run.stdout.splitlines()[:2] == ["left out: 2 *.PNG, 1 */@*", "2 images: 0 done, 2 to do"]


# --- what is an image


@pytest.mark.parametrize("name", ["noext", "x.jpg?w=640&h=1", "image.php", "photo.jpg~", "IMG_1.jpg_large", "a.b.1"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO"])
def test_a_file_without_a_known_suffix_is_an_image_by_its_first_bytes(root: Path, name: str, kind: str) -> None:
    with (root / name).open("wb") as file:
        Image.new("RGB", (40, 30), (200, 100, 50)).save(file, kind)
    assert found(root) == [name]


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"BM is a text", b"P1 is a text", b"\0" * 300, b"%PDF-1.7", b"\n\2\1", b"<html><svg>"],
)
def test_other_content_is_no_image(root: Path, content: bytes) -> None:
    (root / "noext").write_bytes(content)
    assert found(root) == []


def test_a_known_suffix_decides_without_reading(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set holds a text file and a JSON beside each of a million pictures."""
    make(root, "a.jpg", "a.txt", "a.json", "b.mp4", "c.CSV", "d.NEF")
    (root / "e.txt").write_bytes(b"\xff\xd8\xff\xe0 named as a text")
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("a file was read"))
    assert found(root) == ["a.jpg", "d.NEF"]


# --- galleries


def report_into(folder: Path, pictures: Path) -> None:
    """Write a gallery with thumbnails, as `report` does."""
    from vec_pipeline.commands.report.site import Site

    site = Site(folder)
    (site.thumbnails / "ab").mkdir()
    shutil.copy(pictures, site.thumbnails / "ab" / "abcdef.webp")
    site.publish()


def test_a_gallery_among_the_pictures_is_left_out(root: Path) -> None:
    make(root, "a.jpg", "trip/b.jpg")
    for folder in (root / "report", root / "trip" / "report"):
        report_into(folder, root / "a.jpg")
        make(folder, "mine.jpg")
    source = Folder(str(root))
    keys = [record.key.removeprefix(f"{os.path.realpath(root)}/") for record in source]
    assert keys == ["a.jpg", "report/mine.jpg", "trip/b.jpg", "trip/report/mine.jpg"]
    assert source.notes == ["left out: 2 as a report's gallery, 2 .html"]
    assert found(root / "report") == ["mine.jpg"]


def test_the_gallery_of_a_comparison_is_left_out(root: Path) -> None:
    page = PROJECT / "vec_pipeline" / "commands" / "compare" / "page" / "index.html"
    make(root, "a.jpg", "compare/gallery/ab/b.jpg")
    shutil.copy(page, root / "compare")
    assert found(root) == ["a.jpg"]


@pytest.mark.parametrize("page", ["<html>my pictures</html>", ""])
def test_a_folder_that_is_only_called_gallery_is_walked(root: Path, page: str) -> None:
    make(root, "gallery/thumbnails/a.jpg", "deep/gallery/b.jpg")
    (root / "index.html").write_text(page)
    assert found(root) == ["deep/gallery/b.jpg", "gallery/thumbnails/a.jpg"]


# --- links


def test_loops_of_links_end(root: Path) -> None:
    make(root, "a/b/c.jpg")
    (root / "a" / "b" / "up").symlink_to(root)
    (root / "a" / "b" / "here").symlink_to(".")
    (root / "self").symlink_to("self")
    source = Folder(str(root))
    assert [record.key for record in source] == [os.path.realpath(root / "a/b/c.jpg")]
    assert source.failures == []


@pytest.mark.parametrize("link", ["a link.jpg", "z link.jpg"])
def test_a_file_with_a_link_beside_it_comes_once(root: Path, link: str) -> None:
    make(root, "b/c.jpg", "m.jpg")
    (root / link).symlink_to("m.jpg")
    (root / "b" / link).symlink_to(root / "b" / "c.jpg")
    assert found(root) == ["b/c.jpg", "m.jpg"]


@pytest.mark.parametrize("link", ["a link", "z link"])
def test_a_folder_with_a_link_beside_it_is_walked_once(root: Path, link: str) -> None:
    make(root, "m/c.jpg", "m/deep/d.jpg", "n.jpg")
    (root / link).symlink_to("m")
    assert found(root) == ["m/c.jpg", "m/deep/d.jpg", "n.jpg"]


def test_a_file_outside_comes_once_under_its_own_path(root: Path, tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/a.jpg", "elsewhere/b.jpg")
    (root / "1.jpg").symlink_to(tmp_path / "elsewhere" / "a.jpg")
    (root / "2.jpg").symlink_to("1.jpg")
    (root / "3").symlink_to(tmp_path / "elsewhere")
    (root / "4").symlink_to(tmp_path / "elsewhere")
    elsewhere = os.path.realpath(tmp_path / "elsewhere")
    assert found(root) == [f"{elsewhere}/a.jpg", f"{elsewhere}/b.jpg"]


def test_a_link_decides_by_its_own_name_what_is_an_image(root: Path) -> None:
    make(root, "stored/0001", "stored/.hidden.jpg")
    (root / "a.jpg").symlink_to("stored/0001")
    (root / "b.jpg").symlink_to("stored/.hidden.jpg")
    assert found(root) == ["stored/0001", "stored/.hidden.jpg"]


@pytest.mark.parametrize("target", ["nowhere", "nowhere.jpg", "missing/nowhere.jpg"])
def test_a_broken_link_gets_a_record(root: Path, target: str) -> None:
    """It is a picture that somebody expects to be there, so it is owed a row with an error."""
    make(root, "a.jpg")
    (root / "broken.jpg").symlink_to(target)
    assert found(root) == ["a.jpg", target]


def test_a_link_to_itself_gets_a_record(root: Path) -> None:
    (root / "loop.jpg").symlink_to("loop.jpg")
    assert found(root) == ["loop.jpg"]


# --- odd things of a file system


def test_pipes_and_folders_named_as_images_are_no_images(root: Path) -> None:
    make(root, "folder.jpg/a.png", "z.jpg")
    os.mkfifo(root / "pipe.jpg")
    (root / "link to pipe.jpg").symlink_to("pipe.jpg")
    assert found(root) == ["folder.jpg/a.png", "z.jpg"]


def test_one_image_is_a_source(root: Path) -> None:
    make(root, "a.jpg", "b.jpg", "no suffix")
    (root / "link.png").symlink_to("a.jpg")
    real = os.path.realpath(root)
    assert [record.key for record in Folder(str(root / "b.jpg"))] == [f"{real}/b.jpg"]
    assert [record.key for record in Folder(str(root / "no suffix"))] == [f"{real}/no suffix"]
    assert [record.key for record in Folder(str(root / "link.png"))] == [f"{real}/a.jpg"]


def test_a_link_to_a_folder_is_walked_as_the_folder(root: Path, tmp_path: Path) -> None:
    make(root, "a.jpg")
    (tmp_path / "link").symlink_to(root)
    assert [record.key for record in Folder(str(tmp_path / "link"))] == [os.path.realpath(root / "a.jpg")]


def test_a_missing_root_is_named(root: Path) -> None:
    (root / "broken").symlink_to("nowhere")
    (root / "file").touch()
    for name in ("nowhere", "broken", "file/a.jpg"):
        with pytest.raises(NotFound, match=f"^{root / name} does not exist: name a folder of images, or an image$"):
            Folder(str(root / name))


def test_a_root_that_cannot_be_reached_is_not_called_missing(root: Path) -> None:
    """`--prune` drops the rows of what is missing."""
    (root / "loop").symlink_to("loop")
    for name in ("loop", "n" * 300):
        with pytest.raises(UserError, match="cannot be read") as caught:
            Folder(str(root / name))
        assert not isinstance(caught.value, NotFound)


def test_a_home_folder_may_be_abbreviated(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, "a.jpg")
    monkeypatch.setenv("HOME", str(root))
    assert [record.key for record in Folder("~")] == [os.path.realpath(root / "a.jpg")]


def test_any_name_works(root: Path) -> None:
    names = [
        " .jpg",
        "a b.jpg",
        'a"b.jpg',
        "a'b.jpg",
        "a,b.jpg",
        "a\\b.jpg",
        "a\nb.jpg",
        "a\rb.jpg",
        "Машина.jpg",
        "🚗.jpg",
    ]
    make(root, *names, *(f"folder {name}/x.jpg" for name in names))
    assert sorted(found(root)) == sorted([*names, *(f"folder {name}/x.jpg" for name in names)])
    assert all(record.values["content"].read() == b"" for record in Folder(str(root)))


def test_bytes_that_are_no_text_are_spelled_out_in_the_key(root: Path) -> None:
    name = os.fsdecode(b"un\xffdecodable \xd0.jpg")
    make(root, name, f"{name}/x.jpg".replace(".jpg/", "/"))
    file_record, folder_record = sorted(Folder(str(root)), key=lambda record: len(record.key))
    assert file_record.key == os.path.realpath(root) + r"/un\xffdecodable \xd0.jpg"
    assert folder_record.key == os.path.realpath(root) + r"/un\xffdecodable \xd0/x.jpg"
    for record in (file_record, folder_record):
        record.key.encode()  # a key can be written
        assert record.values["content"].read() == b""  # and the file be opened


def test_a_byte_and_the_letters_that_spell_it_have_two_keys(root: Path) -> None:
    names = [
        b"a\xff.jpg",
        rb"a\xff.jpg",
        rb"a\\xff.jpg",
        b"a\\\\xff\xff.jpg",
        rb"a\xFF.jpg",
        rb"a\b.jpg",
        rb"C:\xy.jpg",
    ]
    make(root, *map(os.fsdecode, names))
    keys = {os.path.basename(path_of(record.key)): record.key for record in Folder(str(root))}
    assert len(set(keys.values())) == len(keys) == len(names)
    assert keys.keys() == set(map(os.fsdecode, names))
    ordinary = [r"a\xFF.jpg", r"a\b.jpg", r"C:\xy.jpg"]
    assert [keys[name] for name in ordinary] == [os.path.join(os.path.realpath(root), name) for name in ordinary]


def test_a_folder_that_may_not_be_read_does_not_stop_the_walk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not bind root, whom the tests may run as."""
    scan = os.scandir

    def refuse_closed(folder: str) -> Iterable[os.DirEntry[str]]:
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    make(root, "a.jpg", "closed/b.jpg", "d.jpg")
    monkeypatch.setattr(os, "scandir", refuse_closed)
    source = Folder(str(root))
    for _ in range(2):
        assert [os.path.basename(record.key) for record in source] == ["a.jpg", "d.jpg"]
        assert source.failures == [f"{os.path.realpath(root)}/closed (Permission denied)"]


def test_a_file_whose_kind_cannot_be_told_does_not_stop_the_walk(root: Path) -> None:
    """Behind a link there may be a name that is too long, or a loop."""
    make(root, "a.jpg", "d.jpg")
    (root / "b.jpg").symlink_to("n" * 300)
    source = Folder(str(root))
    keys = [os.path.basename(record.key) for record in source]
    assert keys[:1] + keys[-1:] == ["a.jpg", "d.jpg"]
    assert len(keys) + len(source.failures) == 3, "it is a record or a failure, and never silence"


# --- several arguments, and keys


def test_several_arguments_are_one_source(root: Path, tmp_path: Path) -> None:
    make(root, "a.jpg", "output/b.jpg", "closed/c.jpg")
    make(tmp_path, "single.png")
    source = open_source([str(tmp_path / "single.png"), str(root)], options=SourceOptions(exclude=("output",)))
    keys = [record.key.removeprefix(f"{os.path.realpath(tmp_path)}/") for record in source]
    assert keys == ["single.png", "photos/a.jpg", "photos/closed/c.jpg"]
    assert source.notes == ["left out: 1 output"]
    assert (source.failures, dict(source.columns), source.is_stream) == ([], {}, False)


def test_a_key_stands_for_its_image(root: Path) -> None:
    for name in (b"a.jpg", b"un\xff.jpg", rb"un\xff.jpg", b"-n.jpg"):
        (root / os.fsdecode(name)).write_bytes(name)
    for record in Folder(str(root)):
        assert content_of(record.key).read() == os.fsencode(os.path.basename(path_of(record.key)))
    with pytest.raises(NotFound, match="does not exist"):
        content_of(str(root / "gone.jpg"))


def test_a_key_of_no_image_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=f"^{root} is not one image"):
        content_of(str(root))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("nowhere.at_all", "sources: nowhere.at_all cannot be imported: No module named 'nowhere'"),
        ("tests.rows", "sources: tests.rows defines no source: a class with `accepts`, see vec_pipeline/sources"),
        ("tests.test_sources:x", "sources: tests.test_sources:x cannot be imported: "),
    ],
)
def test_a_module_that_is_no_source_is_named(module: str, expected: str, root: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_source([str(root)], [module])
    assert str(caught.value).startswith(expected)
