"""Sources: every image of a folder once, in sorted order, whatever its name and whichever links lead to it."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from vec_pipeline.record import NotFound, UserError
from vec_pipeline.sources import content_of, open_source
from vec_pipeline.sources.folder import Folder, path_of


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path, *exclude: Path) -> list[str]:
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


def test_the_output_folder_is_left_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, "output/plot.png", "output/deep/plot.png", "b/output/c.jpg", "d.jpg")
    (root / "by link").symlink_to("output")
    assert found(root, root / "output") == ["b/output/c.jpg", "d.jpg"]
    monkeypatch.chdir(root)
    assert found(Path("."), Path("output")) == ["b/output/c.jpg", "d.jpg"]


def test_what_is_left_out_is_said(root: Path) -> None:
    make(root, "output/plot.png", "d.jpg")
    source = Folder(str(root), [root / "output"])
    for _ in range(2):
        assert [record.key for record in source] == [os.path.realpath(root / "d.jpg")]
        assert source.notes == [f"left out: {os.path.realpath(root / 'output')}, where the output is"]


def test_a_root_that_is_the_output_folder_is_walked(root: Path) -> None:
    make(root, "a.jpg", "b/c.jpg", "annotations.csv")
    assert found(root, root) == ["a.jpg", "b/c.jpg"]


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
    source = open_source([str(tmp_path / "single.png"), str(root)], exclude=[root / "output"])
    keys = [record.key.removeprefix(f"{os.path.realpath(tmp_path)}/") for record in source]
    assert keys == ["single.png", "photos/a.jpg", "photos/closed/c.jpg"]
    assert [note.rpartition("/")[2] for note in source.notes] == ["output, where the output is"]
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
