"""Tar files as sources: every picture is a record with the texts of its sample, and so is every piece of damage."""

import contextlib
import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.conftest import EXAMPLES, PRINT_PEAK_MB, PROJECT
from tests.object_stores import S3, s3, s3_server  # noqa: F401 (fixtures)
from tests.test_dataset_source import assert_same_rows, killed_after_rows, png, program, run, tool
from vec_pipeline import load_annotations
from vec_pipeline.record import NotFound, Record, SourceOptions, UserError
from vec_pipeline.sources import content_of, shards
from vec_pipeline.sources.shards import Shards, TarMember, expanded

Members = Sequence[tuple[str | tarfile.TarInfo, bytes]]
BLOCK = 512


def tar(members: Members, format: int = tarfile.GNU_FORMAT) -> bytes:
    """The bytes of a tar file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, data in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def samples(begin: int, end: int) -> list[tuple[str, bytes]]:
    """Pictures with a caption, a class and JSON, in the order in which WebDataset writes them."""
    return [
        member
        for number in range(begin, end)
        for member in (
            (f"{number:06}.cls", b"7"),
            (f"{number:06}.json", json.dumps({"title": f"title {number}", "number": number}).encode()),
            (f"{number:06}.png", png(number)),
            (f"{number:06}.txt", f"caption {number}\n".encode()),
        )
    ]


def pictures(number: int) -> list[tuple[str, bytes]]:
    return [(f"{each:06}.png", png(each)) for each in range(number)]


def header_at(data: bytes, name: str) -> int:
    """Where the header of a member begins."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmember(name).offset


def damaged(data: bytes, at: int) -> bytes:
    return data[: at + 5] + bytes([data[at + 5] ^ 0xFF]) + data[at + 6 :]


def source(path: Path | str, **options: Any) -> Shards:
    assert Shards.accepts(str(path))
    return Shards(str(path), options=SourceOptions(**options))


def records(path: Path | str, **options: Any) -> list[Record]:
    return list(source(path, **options))


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, 1) if path.name.endswith("gz") else data)
    return path


def errors(found: list[Record]) -> dict[str, str]:
    return {record.key: record.error for record in found if record.error}


def names(found: list[Record], path: Path | str) -> list[str]:
    return [record.key.removeprefix(f"{path}/") for record in found]


# -- samples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "X.TAR"])
def test_samples_become_records_with_their_texts(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, tar(samples(0, 20)))
    both = source(path)
    assert (
        both.columns == source(f"{path}/000001.png").columns == {"caption": "text", "class": "text", "metadata": "json"}
    )
    found = list(both)
    assert names(found, path) == [f"{each:06}.png" for each in range(20)]
    for number, record in enumerate(found):
        values = dict(record.values)
        assert values.pop("content").read() == png(number)
        assert values == {
            "caption": f"caption {number}", "class": "7", "metadata": {"title": f"title {number}", "number": number},
        }  # fmt: skip
    assert not both.notes
    assert not errors(found)


def test_pictures_of_a_plain_file_here_are_read_in_place(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tar", tar(pictures(2)))
    content = records(path)[1].values["content"]
    assert isinstance(content, TarMember)
    assert content.size_and_time() == (len(png(1)), 0)
    identity = content.identity()
    os.utime(path, (1, 1))
    assert content.identity() != identity
    assert content.identity() != records(path)[0].values["content"].identity()
    path.write_bytes(path.read_bytes()[:BLOCK])
    with pytest.raises(OSError, match="has become shorter"):
        content.read()


def test_compressed_bytes_have_the_same_identity_in_every_run(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tgz", tar(pictures(3)))
    first, second = ([record.values["content"].identity() for record in records(path)] for _ in range(2))
    assert first == second
    assert len(set(first)) == 3


def test_a_name_that_is_wrong_about_compression(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(gzip.compress(tar(pictures(3)), 0))  # no smaller, so that no offset is beyond its end
    assert [record.values["content"].read() for record in records(path)] == [png(each) for each in range(3)]


def test_fields_of_the_json_are_kept_as_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tar", tar([*samples(0, 3), ("9.json", b'{"title": null}'), ("9.png", png(9))]))
    both = source(path, keep=("title=name", "number"))
    assert both.columns == {"caption": "text", "class": "text", "name": "text", "number": "text"}
    found = list(both)
    assert {name: found[2].values[name] for name in ("name", "number")} == {"name": "title 2", "number": "2"}
    assert "metadata" not in found[2].values
    assert "name" not in found[3].values
    with pytest.raises(UserError, match=r"--keep: no JSON of the first 200 files has a field 'titel' .*'title'"):
        _ = source(path, keep=("titel",)).columns


def test_several_pictures_of_a_sample_are_a_record_each(tmp_path: Path) -> None:
    members = [("a.left.png", png(1)), ("a.right.png", png(2)), ("a.txt", b"both"), ("b.png", png(3)), ("c.txt", b"no")]
    both = source(written(tmp_path / "x.tar", tar(members)))
    found = list(both)
    assert names(found, tmp_path / "x.tar") == ["a.left.png", "a.right.png", "b.png"]
    assert [record.values.get("caption") for record in found] == ["both", "both", None]
    for _ in range(2):
        assert both.notes == ["left out: 1 samples without a picture"]
        list(both)


def test_a_sample_ends_where_the_name_changes(tmp_path: Path) -> None:
    members = [
        ("a/x.png", png(1)),
        ("a/x.txt", b"one"),
        ("b/x.png", png(2)),
        ("b.c/x.y.png", png(3)),
        ("b.c/x.txt", b"3"),
    ]
    found = records(written(tmp_path / "x.tar", tar(members)))
    assert [record.values.get("caption") for record in found] == ["one", None, "3"]


def test_a_tar_of_photos_with_one_stem_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x.tar", tar([(f"IMG.{each}.png", png(each)) for each in range(300)]))
    made: list[tarfile.TarInfo] = []
    content = shards.Shard.content
    monkeypatch.setattr(shards.Shard, "content", lambda self, member: made.append(member) or content(self, member))
    reading = iter(source(path))
    assert next(reading).key == f"{path}/IMG.0.png"
    assert len(made) <= 101
    assert len(list(reading)) == 299


def test_a_text_that_only_later_samples_have_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PEEKED", 2)
    both = source(written(tmp_path / "x.tar", tar([*pictures(2), *samples(2, 4)])))
    assert both.columns == {}
    assert len(list(both)) == 4
    assert set(both.notes[0].removeprefix("left out: ").split(", ")) == {
        f"2 {name}: none of the first 2 files has one" for name in ("caption", "class", "metadata")
    }


def test_a_text_that_cannot_be_read_is_an_error_of_its_sample(tmp_path: Path) -> None:
    members = [("a.json", b"{"), ("a.png", png(1)), ("b.json", b"\xff{}"), ("c.json", b"{}"), ("c.png", png(2))]
    found = records(written(tmp_path / "x.tar", tar(members)))
    assert names(found, tmp_path / "x.tar") == ["a.png", "b", "c.png"]
    assert found[0].error.startswith("source: DamagedSample: a.json: ")
    assert found[0].values["content"].read() == png(1)
    assert found[1].error.startswith("source: DamagedSample: b.json: ")
    assert not found[2].error


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"[1]", "no JSON object"), (b'"text"', "no JSON object"), (b"[" * 100_000, "nested too deeply")],
)
def test_json_that_is_no_object(data: bytes, error: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.tar", tar([("a.json", data), ("a.png", png(1)), *samples(0, 1)]))
    for keep in ((), ("title",)):
        found = records(path, keep=keep)
        assert [error in record.error for record in found] == [True, False]
    assert source(path, keep=("title",)).columns["title"] == "text"


def test_texts_as_people_write_them(tmp_path: Path) -> None:
    members = [
        ("A.JSON", b'\xef\xbb\xbf{"n": NaN, "t": "\xc3\xa9"}'), ("A.PNG", png(1)),
        ("A.caption", b"first"), ("A.TXT", b"2nd"),
        ("B.PNG", png(2)), ("B.txt", b"\xef\xbb\xbfa\xff\n"),
    ]  # fmt: skip
    found = records(written(tmp_path / "x.tar", tar(members)))
    assert found[0].values["metadata"] == {"n": None, "t": "é"}
    assert found[0].values["caption"] == "first"
    assert found[1].values["caption"] == "a\ufffd"


# -- other tar files -------------------------------------------------------------------------------------------------


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_of_photos(format: int, tmp_path: Path) -> None:
    long = "/".join(["a folder with a long name"] * 12) + "/ö.png"
    members: Members = [
        (special("./album", tarfile.DIRTYPE), b""),
        (special("./notes.txt", tarfile.DIRTYPE), b""),
        ("./album/1.png", png(1)),
        ("album/without a suffix", png(2)),
        (long, png(3)),
        ("/etc/evil.png", png(4)),
        ("../../up.png", png(5)),
        ("album/.hidden.png", png(6)),
        ("__MACOSX/album/1.png", png(6)),
        ("album/notes.pdf", b"%PDF"),
        ("album/unknown.blob", b"?"),
        (special("link.png", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (special("hard.png", tarfile.LNKTYPE, "album/1.png"), b""),
        (special("device.png", tarfile.CHRTYPE), b""),
        ("album/1.png", png(7)),
    ]
    path = written(tmp_path / "x.tar", tar(members, format))
    both = source(path)
    found = list(both)
    assert both.columns == {}
    assert names(found, path) == [
        "album/1.png", "album/without a suffix", long, "/etc/evil.png", "../../up.png",
    ]  # fmt: skip
    assert [record.values["content"].read() for record in found] == [png(each) for each in range(1, 6)]
    assert set(both.notes[0].removeprefix("left out: ").split(", ")) == {
        "3 links", "devices and sparse files", "2 hidden", "1 .pdf", "1 .blob", "1 of a name that came before",
    }  # fmt: skip
    assert [content_of(record.key).read() for record in found] == [png(each) for each in range(1, 6)]
    assert [each.name for each in tmp_path.iterdir()] == ["x.tar"]


@pytest.mark.parametrize("name", ["x.tar", "x.tgz"])
def test_pictures_without_a_suffix_are_told_by_their_first_bytes(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, tar([("1", png(1).ljust(700, b"x")), ("2", b"no picture"), ("3", png(3))]))
    found = records(path)
    assert names(found, path) == ["1", "3"]
    assert [record.values["content"].read() for record in found] == [png(1).ljust(700, b"x"), png(3)]


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    path = written(tmp_path / "x.tar", tar([(odd, png(1)), ("caf\\xe9.png", png(2))]))
    found = records(path)
    assert len({record.key for record in found}) == 2
    assert [content_of(record.key).read() for record in found] == [png(1), png(2)]
    assert all(record.key.isprintable() for record in found)


def test_globs_leave_members_out(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tar", tar([("a/1.png", png(1)), ("a/1_thumb.png", png(2)), ("b/1.png", png(3))]))
    both = Shards(str(path), exclude=("*_thumb.*", "b/*"))
    assert names(list(both), path) == ["a/1.png"]
    assert both.notes == ["left out: 1 *_thumb.*, 1 b/*"]


def test_sparse_files_are_left_out(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.png")
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "8192"}
    data = b"1\n0\n512\n".ljust(BLOCK, b"\0") + png(1).ljust(BLOCK, b"\0")
    both = source(written(tmp_path / "x.tar", tar([(member, data), ("b.png", png(2))], tarfile.PAX_FORMAT)))
    assert names(list(both), tmp_path / "x.tar") == ["b.png"]
    assert both.notes == ["left out: 1 links, devices and sparse files"]


def test_large_members_are_errors(tmp_path: Path) -> None:
    large = png(1).ljust(1_000_001, b"\0")
    for name in ("x.tar", "x.tgz"):
        path = written(tmp_path / name, tar([("a.png", large), ("b.png", png(2)), ("c.txt", large), ("c.png", png(3))]))
        found = records(path, max_download_mb=1)
        assert [bool(record.error) for record in found] == [True, False, True]
        assert found[0].error == "source: DamagedMember: 1,000,001 bytes are more than max_download_mb: 1"
        assert found[1].values["content"].read() == png(2)


def test_archives_that_were_joined(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tar", tar(samples(0, 3)) + tar(samples(3, 5)))
    assert names(records(path), path) == [f"{each:06}.png" for each in range(5)]
    assert not errors(records(path))


# -- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_of_3000_members_a_damaged_header_costs_one(name: str, tmp_path: Path) -> None:
    data = tar(pictures(3000))
    at = header_at(data, "001500.png")
    path = written(tmp_path / name, damaged(data, at))
    found = records(path)
    assert len(found) == 3000
    assert errors(found) == {
        f"{path}#byte {at}": "source: DamagedShard: there is no header of a file: what was here is lost"
    }
    assert names(found, path)[1499:1502] == [f"{path}#byte {at}", "001499.png", "001501.png"]
    assert found[2999].values["content"].read() == png(2999)


@pytest.mark.parametrize("name", ["000000.png", "000004.png"])
def test_a_damaged_header_at_either_end(name: str, tmp_path: Path) -> None:
    data = tar(pictures(5))
    at = header_at(data, name)
    path = written(tmp_path / "x.tar", damaged(data, at))
    assert len(records(path)) == 5
    assert list(errors(records(path))) == [f"{path}#byte {at}"]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_damaged_block_of_a_long_name(format: int, block: int, tmp_path: Path) -> None:
    """A long name takes a header, a block of its own and a second header."""
    data = tar([("a.png", png(1)), ("ö" * 120 + ".png", png(2)), ("c.png", png(3))], format)
    at = header_at(data, "ö" * 120 + ".png") + block * BLOCK
    path = written(tmp_path / "x.tar", damaged(data, at))
    found = records(path)
    assert {"a.png", "c.png"} <= set(names(found, path))
    assert len(found) >= 3  # nothing is lost in silence
    if block == 2:
        assert list(errors(found)) == [f"{path}#byte {at - 2 * BLOCK}"]


CUT = {  # where a file of five pictures is torn, from the header of the fourth -> the keys of the errors
    "in the header": (100, ["#byte {at}"]),
    "behind the header": (512, ["/000003.png"]),
    "in the data": (530, ["/000003.png"]),
    "behind the data": (1024, ["#byte {end}"]),
    "before the header": (0, ["#byte {at}"]),
}


@pytest.mark.parametrize("where", CUT)
def test_a_torn_shard_is_one_error(where: str, tmp_path: Path) -> None:
    data = tar(pictures(5))
    at = header_at(data, "000003.png")
    size, keys = CUT[where]
    path = written(tmp_path / "x.tar", data[: at + size])
    found = records(path)
    assert list(errors(found)) == [f"{path}{key.format(at=at, end=at + 1024)}" for key in keys]
    assert names([record for record in found if not record.error], path) == [
        f"{each:06}.png" for each in range(4 if where == "behind the data" else 3)
    ]


def test_a_file_torn_within_one_that_is_left_out(tmp_path: Path) -> None:
    data = tar([*pictures(2), ("x.pdf", bytes(5000))])
    path = written(tmp_path / "x.tar", data[: header_at(data, "x.pdf") + 1000])
    found = records(path)
    assert len(found) == 3
    assert "unexpected end of data" in found[2].error


@pytest.mark.parametrize("size", [0, 300, 512, 5000])
def test_files_that_are_no_tar_files(size: int, tmp_path: Path) -> None:
    path = written(tmp_path / "x.tar", bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    found = records(path)
    assert len(found) == 1
    assert found[0].error.startswith("source: DamagedShard: ")


def test_a_torn_gzip_file_is_one_error_and_the_next_shard_goes_on(tmp_path: Path) -> None:
    whole = written(tmp_path / "1.tar.gz", tar(samples(100, 110)))
    torn = written(tmp_path / "0.tar.gz", tar(samples(0, 100)))
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    found = records(tmp_path / "{0..1}.tar.gz")
    assert len(errors(found)) == 1
    assert "EOFError" in next(iter(errors(found).values()))
    assert 10 < len(found) - 11 < 100
    assert found[-1].key == f"{whole}/000109.png"


def test_a_damaged_gzip_file_tells(tmp_path: Path) -> None:
    path = written(tmp_path / "0.tar.gz", tar(pictures(200)))
    data = path.read_bytes()
    path.write_bytes(data[:-8] + bytes(4) + data[-4:])  # its checksum
    assert "CRC check failed" in list(errors(records(path)).values())[-1]


@pytest.mark.parametrize("size", [-1024, -(2**40), 2**62])
def test_headers_with_impossible_sizes_end(size: int, tmp_path: Path) -> None:
    data = bytearray(tar([("a.png", png(1)), ("b.mp3", b"x" * 700), ("c.png", png(3))]))
    at = header_at(bytes(data), "b.mp3")
    data[at + 124 : at + 136] = (b"\x80" if size > 0 else b"\xff") + (size % 2**88).to_bytes(11, "big")
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])
    for name in ("x.tar", "x.tgz"):
        found = records(written(tmp_path / name, bytes(data)))
        assert found[0].key.endswith("a.png")
        (error,) = errors(found).values()
        is_seen_by_tarfile = found[-1].key.endswith("c.png")  # in newer versions
        assert size > 0 or "gives a negative size" in error or is_seen_by_tarfile


def test_a_header_that_claims_to_be_huge_takes_no_memory(tmp_path: Path) -> None:
    member = special("x", tarfile.XHDTYPE)
    member.size = 2**40
    path = written(tmp_path / "x.tar", tar(pictures(1))[: 2 * BLOCK] + member.tobuf(tarfile.GNU_FORMAT) + bytes(BLOCK))
    found = records(path)
    assert len(found) == 2
    assert "a header of 1,099,511,627,776 bytes" in found[1].error


# -- several shards, elsewhere ----------------------------------------------------------------------------------------


def test_braces() -> None:
    assert list(expanded("s/{000..002}.tar")) == ["s/000.tar", "s/001.tar", "s/002.tar"]
    assert list(expanded("s/{8..11}.tar")) == ["s/8.tar", "s/9.tar", "s/10.tar", "s/11.tar"]
    assert list(expanded("{2..0}")) == ["2", "1", "0"]
    assert list(expanded("{a,b}-{08..09}")) == ["a-08", "a-09", "b-08", "b-09"]
    assert list(expanded("{}{x}{..}")) == ["{}{x}{..}"]
    assert next(expanded("{0..999999999999}")) == "0"  # they are not all made first


def test_a_file_of_that_very_name_comes_first(tmp_path: Path) -> None:
    path = written(tmp_path / "{0..3}.tar", tar(pictures(2)))
    assert len(records(path)) == 2


def test_a_missing_shard_is_an_error_and_the_next_goes_on(tmp_path: Path) -> None:
    for number in (1, 3):
        written(tmp_path / f"{number}.tar", tar(samples(number, number + 1)))
    both = source(tmp_path / "{0..3}.tar")
    assert both.columns  # of the first one that is there
    found = list(both)
    assert list(errors(found)) == [f"{tmp_path}/0.tar", f"{tmp_path}/2.tar"]
    assert errors(found)[f"{tmp_path}/0.tar"] == "source: FileNotFoundError: no such file"
    assert len(found) == 4


@pytest.mark.parametrize("name", ["x.tar", "{0..3}.tar"])
def test_where_there_is_no_shard_at_all(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"does not exist: name a tar file, or several as shards/\{000..099\}.tar"):
        _ = source(tmp_path / name).columns


def test_arguments_and_keys_that_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    written(tmp_path / "folder.tar/a.tar", tar(pictures(1)))
    own = ("x.tar", "s3://b/{0..9}.tgz", "{a.tar,b.tar}", "s3://b/x.tar/a.jpg", "x.tgz#byte 12", "https://h/a.tar.gz")
    for argument in (*own, f"{tmp_path}/folder.tar/a.tar", f"{tmp_path}/folder.tar/a.tar/000000.png"):
        assert Shards.accepts(argument), argument
    for argument in ("x.jpg", "x.tar.jpg", "-", "a{b", f"{tmp_path}/folder.tar", f"{tmp_path}/folder.tar/x.jpg"):
        assert not Shards.accepts(argument), argument


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_shards_at_an_address(name: str, tmp_path: Path) -> None:
    local = written(tmp_path / name, tar(samples(0, 5)))
    fsspec.filesystem("memory").pipe(f"/shards/{name}", local.read_bytes())
    found = records(f"memory://shards/{name}")
    assert [record.key for record in found] == [f"memory://shards/{name}/{each:06}.png" for each in range(5)]
    assert [record.values["content"].read() for record in found] == [png(each) for each in range(5)]
    assert [picture_of(record.key) for record in found] == [png(each) for each in range(5)]
    with pytest.raises(NotFound):
        picture_of(f"memory://shards/{name}/000009.png")
    with pytest.raises(NotFound):
        picture_of(f"memory://shards/no{name}/000009.png")


def test_shards_in_an_object_store(s3: S3) -> None:  # noqa: F811
    s3.put("shards/00.tar.gz", gzip.compress(tar(samples(0, 5))))
    s3.put("shards/02.tar", tar([("big.png", png(9).ljust(300_000, b"\0")), *samples(5, 8)]))
    both = source("s3://photos/shards/{00.tar.gz,01.tar,02.tar}")
    assert both.columns == {"caption": "text", "class": "text", "metadata": "json"}
    found = list(both)
    assert list(errors(found)) == ["s3://photos/shards/01.tar"]
    assert len(found) == 5 + 1 + 4
    assert found[-1].values["content"].read() == png(7) == picture_of("s3://photos/shards/02.tar/000007.png")
    assert found[-1].values["caption"] == "caption 7"
    s3.faults.append(lambda method, path: 403)
    with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID"):
        _ = source("s3://photos/shards/02.tar").columns


def picture_of(key: str) -> bytes:
    """What the key of a record leads to."""
    (found,) = Shards(key)
    data: bytes = found.values["content"].read()
    return data


def test_keys_and_errors_hold_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        shards,
        "opened",
        lambda path, _: asked.append(path) or contextlib.nullcontext(Failing(tar(pictures(2))[:-10000], 9999)),
    )
    for address in ("sftp://me:secret@host/x.tar", "https://me:secret@host/x.tar"):
        for record in records(address):
            assert "secret" not in f"{record.key} {record.error}"
            assert "//host/x.tar" in record.key
    assert set(asked) == {"sftp://me:secret@host/x.tar", "https://me:secret@host/x.tar"}


class Failing:
    """A file at an address that breaks off."""

    def __init__(self, data: bytes, after: int, is_seekable: bool = True) -> None:
        self.file, self.after, self.is_seekable = io.BytesIO(data), after, is_seekable

    def read(self, size: int) -> bytes:
        if self.file.tell() + size > self.after:
            raise ConnectionResetError("reset by peer")
        return self.file.read(size)

    def seek(self, position: int) -> None:
        assert self.is_seekable
        assert position == 0 or position >= self.file.tell(), "backwards"
        self.file.seek(position)

    def seekable(self) -> bool:
        return self.is_seekable


def test_a_connection_that_breaks_is_an_error_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tar(samples(0, 40))
    breaks_at = header_at(data, "000020.png") + 100
    monkeypatch.setattr(shards, "opened", lambda *_: contextlib.nullcontext(Failing(data, breaks_at)))
    found = records("memory://b/x.tar")
    assert len(found) == 21
    assert list(errors(found)) == ["memory://b/x.tar#byte " + found[20].key.rpartition(" ")[2]]
    assert "ConnectionResetError: reset by peer" in found[20].error
    with pytest.raises(UserError, match="cannot be read: source: DamagedShard: ConnectionResetError"):
        picture_of("memory://b/x.tar/000030.png")  # not NotFound: it may be there


@pytest.mark.parametrize("name", ["x.tar", "x.tgz"])
def test_a_server_that_cannot_begin_in_the_middle(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(tmp_path / name, tar([("0.mp3", bytes(3_000_000)), *samples(0, 5)])).read_bytes()
    monkeypatch.setattr(shards, "opened", lambda *_: contextlib.nullcontext(Failing(data, 10**9, is_seekable=False)))
    found = records(f"https://host/{name}")
    assert [record.values["content"].read() for record in found] == [png(each) for each in range(5)]


def test_a_place_that_cannot_be_reached_ends_the_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="nosuch:// is not known"):
        _ = source("nosuch://b/x.tar").columns
    for address, message in (("s3://b/x.tar", "check the credentials"), ("x.tar", "name another tar file")):
        monkeypatch.setattr(shards, "opened", lambda *_: (_ for _ in ()).throw(PermissionError(13, "denied")))
        with pytest.raises(UserError, match=message):
            _ = source(address).columns
    monkeypatch.undo()
    with pytest.raises(UserError, match="allow_private is false"):
        _ = source("http://127.0.0.1:1/x.tar", allow_private=False).columns


def test_bytes_of_pictures_that_are_done_are_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = written(tmp_path / "x.tgz", tar(pictures(10)))
    made: list[str] = []
    temporary = shards.temporary_content
    monkeypatch.setattr(
        shards, "temporary_content", lambda *each, **more: made.append(each[1]) or temporary(*each, **more)
    )
    again = source(path)
    again.resume({f"{path}/{each:06}.png" for each in range(9)})
    assert names(list(again), path) == ["000009.png"]
    assert len(made) == 1


# -- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.tar", "x.tgz"])
def test_keys_asked_in_order_read_the_shard_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / name, tar(samples(0, 50)))
    keys = [record.key for record in records(path)]
    opened_files: list[str] = []
    opened = shards.opened
    monkeypatch.setattr(shards, "opened", lambda *each: opened_files.append(each[0]) or opened(*each))
    assert [content_of(key).read() for key in keys] == [png(each) for each in range(50)]
    assert len(opened_files) == 2  # once for the columns
    for number in (7, 3, 49):
        assert content_of(keys[number]).read() == png(number)
    if name == "x.tar":
        assert len(opened_files) == 2


def test_a_key_stands_for_its_picture_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x.tar", tar(samples(0, 5)))
    monkeypatch.chdir(tmp_path)
    (found,) = records("x.tar/000003.png")
    assert found.key == f"{path}/000003.png"
    assert found.values["content"].read() == png(3)


def test_a_shard_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tar", tar(pictures(3)))
    assert content_of(f"{path}/000001.png").read() == png(1)
    written(path, tar([("000001.png", png(77)), ("more.png", png(5))]))
    assert content_of(f"{path}/000001.png").read() == png(77)
    assert content_of(f"{path}/more.png").read() == png(5)
    with pytest.raises(NotFound):
        content_of(f"{path}/000002.png")
    path.unlink()
    with pytest.raises(NotFound):
        content_of(f"{path}/000001.png")


def test_a_damaged_sample_does_not_hide_that_a_picture_is_gone(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tar", tar([("a.json", b"{"), ("a.png", png(1))]))
    with pytest.raises(NotFound):
        content_of(f"{path}/b.png")


def test_the_key_of_damage_is_no_image_and_not_found_once_it_is_mended(tmp_path: Path) -> None:
    data = tar(pictures(5))
    at = header_at(data, "000002.png")
    path = written(tmp_path / "x.tar", damaged(data, at))
    with pytest.raises(UserError, match="there is no header of a file"):
        content_of(f"{path}#byte {at}")
    written(path, data)
    os.utime(path, (1, 1))
    with pytest.raises(NotFound):
        content_of(f"{path}#byte {at}")


# -- the whole program ------------------------------------------------------------------------------------------------


def test_memory_stays_flat(tmp_path: Path) -> None:
    """Of 20,000 members little more is held than of 200."""
    peaks = []
    for number in (200, 20_000):
        path = written(tmp_path / f"{number}.tar", tar([(f"{each}.png", b"x") for each in range(number)]))
        code = f"import sys; sys.path.insert(0, {str(PROJECT)!r})\nfrom vec_pipeline.sources.shards import Shards\n"
        code += f"print(sum(1 for _ in Shards({str(path)!r})))\n{PRINT_PEAK_MB}"
        count, peak = run([os.sys.executable, "-c", code]).stdout.split()  # type: ignore[attr-defined]
        assert int(count) == number
        peaks.append(int(peak))
    assert peaks[1] - peaks[0] < 8


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """An undisturbed run over two shards, one compressed and the other damaged: their folder, and the CSV."""
    folder = tmp_path_factory.mktemp("shards")
    members: list[tuple[str, bytes]] = []
    for path in sorted(EXAMPLES.glob("*.*g"))[:12]:
        members += [(path.name, path.read_bytes()), (f"{path.stem}.json", path.with_suffix(".json").read_bytes())]
    written(folder / "0.tar.gz", tar(members[:12]))
    data = tar([*members[12:], ("broken.png", png(1)[:30])])
    written(folder / "1.tar", damaged(data, header_at(data, members[14][0])))
    output = folder / "annotations.csv"
    done = run(program(folder, f"{folder}/{{0.tar.gz,1.tar}}", "--output", str(output)))
    assert done.returncode == 1, done.stderr
    yield folder, output


def test_shards_end_to_end(finished: tuple[Path, Path]) -> None:
    folder, output = finished
    table = load_annotations(output).set_index("image_path")
    assert len(table) == 6 + 5 + 2
    failed = table[table["error"] != ""]
    assert [str(key).removeprefix(f"{folder}/") for key in failed.index] == [
        f"1.tar#byte {header_at_of_damage(folder)}", "1.tar/broken.png",
    ]  # fmt: skip
    assert list(failed["error"].str.partition(":")[0]) == ["source", "open_image"]
    good = table[table["error"] == ""]
    for key, values in good.iterrows():
        truth = (EXAMPLES / Path(str(key)).name).with_suffix(".json")
        assert values["metadata"] == json.loads(truth.read_text())


def header_at_of_damage(folder: Path) -> int:
    with tarfile.open(folder / "1.tar", ignore_zeros=True) as archive:
        before, after = archive.getmembers()[1:3]
    return before.offset_data + -(-before.size // BLOCK) * BLOCK if before.offset < after.offset else 0


def test_killed_and_resumed_it_has_the_rows_of_an_undisturbed_run(finished: tuple[Path, Path], tmp_path: Path) -> None:
    folder, undisturbed = finished
    output = tmp_path / "annotations.csv"
    command = program(tmp_path, f"{folder}/{{0.tar.gz,1.tar}}", "--output", str(output))
    killed_after_rows(command, output, 3)
    assert run(command).returncode == 1
    assert_same_rows(output, undisturbed)


def test_search_finds_what_looks_like_a_picture_of_a_shard(finished: tuple[Path, Path]) -> None:
    _, output = finished
    table = load_annotations(output)
    key = table[table["error"] == ""]["image_path"].iloc[8]
    found = json.loads(tool("search", "--csv", output, "--like", key, "--json").stdout)
    assert found[0]["image_path"] == key
    assert found[0]["score"] > 0.999
