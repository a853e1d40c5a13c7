"""Which rows an export has: those of a query, with people's corrections or without, divided for training."""

import base64
import json
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import lancedb
import numpy as np
import pandas as pd
import pytest
import webdataset
from pycocotools.coco import COCO

from tests.pairs import BLUE, RED, draw, write_pairs
from tests.rows import failed, finished, unit_vectors, write, write_declared
from vec_pipeline import load_annotations
from vec_pipeline.__main__ import main
from vec_pipeline.commands.export import FILES, FOLDERS, training
from vec_pipeline.corrections import ACCEPTED, VERIFIED, Change, Corrections

NUMBER = 60  # of pictures; each has a near-duplicate
SETS = ("webdataset", "imagefolder", "coco")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` writes nowhere else."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of pictures; that of number 0 looks nearly like that of number 60, and so on."""
    folder = tmp_path_factory.mktemp("twins")
    vectors = unit_vectors(NUMBER, 64)
    records = []
    for number in range(2 * NUMBER):
        vector = vectors[number % NUMBER] + np.float32(0.002 if number >= NUMBER else 0)
        record = finished(number, image_vector=vector, categories=["vehicle", "animal"][number % 2], objects=[])
        record.key = str(draw(folder / f"pictures/{number}.png", (number, 0, 255 - number), (8, 8)))
        records.append(record)
    return write_declared(folder / "annotations.csv", {"objects": "json"}, records)


def export(csv: Path, to: str, out: Path, *arguments: object) -> int:
    return main(["export", "--csv", str(csv), "--to", to, "--out", str(out), *map(str, arguments)])


def rows_of(out: Path, to: str) -> list[dict[str, Any]]:
    """The rows of an export, by image_path, split and others; in their order where it has one."""
    if to in ("parquet", "jsonl", "csv", "xlsx"):
        read: dict[str, Callable[..., Any]] = {"parquet": pd.read_parquet, "csv": pd.read_csv, "xlsx": pd.read_excel}
        table = pd.read_json(out, lines=True) if to == "jsonl" else read[to](out)
    elif to == "sqlite":
        with closing(sqlite3.connect(out)) as connection:
            table = pd.read_sql("SELECT * FROM annotations ORDER BY row", connection)
    elif to == "lance":
        table = lancedb.connect(out).open_table("annotations").to_pandas()
    elif to == "webdataset":
        shards = webdataset.WebDataset([*map(str, sorted(out.iterdir()))], shardshuffle=False)
        return [json.loads(sample["json"]) for sample in shards]
    elif to == "imagefolder":
        lines = [line for path in sorted(out.rglob("metadata.jsonl")) for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]
    else:
        return [image for path in sorted(out.glob("annotations/captions*")) for image in COCO(path).imgs.values()]
    return list(table.to_dict("records"))


# --- which rows


@pytest.mark.parametrize("to", (*FILES, *FOLDERS))
def test_an_export_has_the_rows_of_its_query(twins: Path, tmp_path: Path, to: str) -> None:
    assert export(twins, to, tmp_path / "out", "--where", "category:animal path~/\\/[0-9]+7.png/") == 0
    paths = [Path(row["image_path"]).stem for row in rows_of(tmp_path / "out", to)]
    assert paths == ["17", "27", "37", "47", "57", "67", "77", "87", "97", "107", "117"]


@pytest.mark.parametrize("arguments", (["--where", "-category:animal"], ["--where=-category:animal"]))
def test_a_query_may_begin_with_a_minus(twins: Path, tmp_path: Path, arguments: list[str]) -> None:
    assert export(twins, "jsonl", tmp_path / "out", *arguments) == 0
    assert {row["categories"] for row in rows_of(tmp_path / "out", "jsonl")} == {"vehicle"}


@pytest.mark.parametrize("to", ("csv", "lance", "imagefolder", "pgvector"))
def test_a_query_that_nothing_matches_is_said(
    twins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    assert export(twins, to, tmp_path / "out", "--where", "category:plant") == 2
    assert "has no row that matches --where 'category:plant': try another query" in capsys.readouterr().err
    assert export(twins, to, tmp_path / "out", "--where", "categry:plant") == 2
    assert "did you mean 'category'?" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def corrected(tmp_path: Path) -> Path:
    """Two rows, of which somebody has corrected the second."""
    records = [finished(number) for number in range(2)]
    for number, record in enumerate(records):
        record.key = str(draw(tmp_path / f"{number}.png", RED))
    csv = write(tmp_path / "annotations.csv", records)
    changes = [Change(records[1].key, "text", "As I say."), Change(records[1].key, VERIFIED, ACCEPTED)]
    Corrections(csv).correct(changes)
    return csv


@pytest.mark.parametrize("to", (*FILES, *FOLDERS))
def test_an_export_has_what_people_have_corrected(corrected: Path, tmp_path: Path, to: str) -> None:
    machine = str(load_annotations(corrected, machine=True)["text"][1])
    for arguments, text, verified in (([], "As I say.", ACCEPTED), (["--machine"], machine, None)):
        assert export(corrected, to, tmp_path / "out", *arguments) == 0
        if to == "coco":
            captions = COCO(tmp_path / "out" / "annotations" / "captions.json").anns
            assert captions[2]["caption"] == " ".join(text.split())
        else:
            row = rows_of(tmp_path / "out", to)[1]
            assert (row["text"], row.get(VERIFIED)) == (text, verified)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_divided_rows_may_be_the_machine_s(corrected: Path, tmp_path: Path) -> None:
    assert export(corrected, "jsonl", tmp_path / "out", "--split", 0.5, "--machine") == 0
    rows = rows_of(tmp_path / "out", "jsonl")
    assert rows[1]["text"] == load_annotations(corrected, machine=True)["text"][1]
    assert VERIFIED not in rows[1]


def test_rows_that_people_have_accepted_can_be_chosen(corrected: Path, tmp_path: Path) -> None:
    assert export(corrected, "imagefolder", tmp_path / "out", "--where", "verified:accepted") == 0
    assert [row["text"] for row in rows_of(tmp_path / "out", "imagefolder")] == ["As I say."]


# --- divided for training


@pytest.fixture(scope="module")
def sides(twins: Path) -> dict[str, str]:
    """Where each picture is, by its path."""
    out = twins.with_name("sides.parquet")
    assert export(twins, "parquet", out, "--split", 0.7) == 0
    table = pd.read_parquet(out)
    return dict(zip(table["image_path"], table["split"], strict=True))


def test_near_duplicates_are_on_one_side(sides: dict[str, str]) -> None:
    found = list(sides.values())
    assert found[:NUMBER] == found[NUMBER:]
    assert set(found) == {"train", "validation"}
    assert 0.5 < found.count("train") / len(found) < 0.9


@pytest.mark.parametrize("to", (*FILES, *FOLDERS))
def test_every_format_is_divided_in_the_same_way(
    twins: Path, tmp_path: Path, to: str, sides: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with a query that has only one of two near-duplicates."""
    assert export(twins, to, tmp_path / "out", "--split", 0.7, "--where", "category:vehicle") == 0
    said = capsys.readouterr().out
    found = rows_of(tmp_path / "out", to)
    assert len(found) == NUMBER
    if to != "coco":
        assert {row["image_path"]: row["split"] for row in found}.items() <= sides.items()
    if to in SETS:
        training = sum(sides[row["image_path"]] == "train" for row in found)
        assert f"; {training} for train, {NUMBER - training} for validation" in said


def test_datasets_finds_the_sides_of_a_folder(twins: Path, tmp_path: Path, sides: dict[str, str]) -> None:
    assert export(twins, "imagefolder", tmp_path / "out", "--split", 0.7) == 0
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"))
    assert set(found) == {"train", "validation"}
    for side, rows in found.items():
        assert rows["image_path"][:] == [path for path in sides if sides[path] == side]
        number = int(Path(rows[0]["image_path"]).stem)
        assert rows[0]["image"].getpixel((0, 0)) == (number, 0, 255 - number)


def test_datasets_and_webdataset_find_the_sides_of_shards(twins: Path, tmp_path: Path, sides: dict[str, str]) -> None:
    assert export(twins, "webdataset", tmp_path / "out", "--split", 0.7) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train-000000.tar", "validation-000000.tar"]
    found = datasets.load_dataset("webdataset", data_dir=str(tmp_path / "out"))
    for side in ("train", "validation"):
        paths = [path for path in sides if sides[path] == side]
        assert [row["json"]["image_path"] for row in found[side]] == paths
        shard = webdataset.WebDataset(str(tmp_path / "out" / f"{side}-000000.tar"), shardshuffle=False)
        assert [json.loads(sample["json"])["image_path"] for sample in shard] == paths


def test_the_sides_of_a_coco_set_know_the_same_labels(tmp_path: Path) -> None:
    records = []
    for number in range(12):
        label = "cat" if number < 11 else "dog"
        records.append(finished(number, objects=[{"label": label, "score": 1, "box": [0, 0, 9, 9]}]))
        records[-1].key = str(draw(tmp_path / f"{number}.png", BLUE))
    csv = write_declared(tmp_path / "a.csv", {"objects": "json"}, records)
    assert export(csv, "coco", tmp_path / "out", "--split", 0.5) == 0
    sets = [COCO(tmp_path / "out" / "annotations" / f"instances_{side}.json") for side in ("train", "validation")]
    assert [sorted(each["name"] for each in one.cats.values()) for one in sets] == [["cat", "dog"]] * 2
    images = [image for one in sets for image in one.imgs.values()]
    assert len({image["id"] for image in images}) == 12
    for side, one in zip(("train", "validation"), sets, strict=True):
        assert one.imgs
        assert all((tmp_path / "out" / side / image["file_name"]).exists() for image in one.imgs.values())


def test_rows_without_a_vector_are_divided_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = write(tmp_path / "a.csv", [failed(number) for number in range(40)])
    assert export(csv, "jsonl", tmp_path / "out", "--split", 0.5) == 0
    assert "has no image_vector: --split cannot keep near-duplicates together" in capsys.readouterr().err
    assert {row["split"] for row in rows_of(tmp_path / "out", "jsonl")} == {"train", "validation"}


def test_pairs_are_divided_with_both_pictures(tmp_path: Path) -> None:
    assert export(write_pairs(tmp_path), "imagefolder", tmp_path / "out", "--split", 0.5) == 0
    for metadata in (tmp_path / "out").rglob("metadata.jsonl"):
        for row in map(json.loads, metadata.read_text().splitlines()):
            assert (metadata.parent / row["input_image_file_name"]).exists()
            assert (metadata.parent / row["edited_image_file_name"]).exists()


@pytest.mark.parametrize("to", ("imagefolder", "webdataset"))
def test_datasets_reads_a_set_with_nothing_on_one_side(corrected: Path, tmp_path: Path, to: str) -> None:
    assert export(corrected, to, tmp_path / "out", "--split", 0.999999) == 0
    found = datasets.load_dataset(to, data_dir=str(tmp_path / "out"))
    assert {side: len(rows) for side, rows in found.items()} == {"train": 2}


def test_what_cannot_be_divided_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = write_declared(tmp_path / "a.csv", {"split": "text"}, [finished(0, split="mine")])
    assert export(csv, "jsonl", tmp_path / "out", "--split", 0.5) == 2
    assert "has a column split of its own: leave --split out, or rename that column" in capsys.readouterr().err
    assert export(csv, "jsonl", tmp_path / "out") == 0
    assert rows_of(tmp_path / "out", "jsonl")[0]["split"] == "mine"
    csv = write(tmp_path / "b.csv", [finished(0), finished(1, image_vector=np.ones(7, np.float32))])
    assert export(csv, "jsonl", tmp_path / "other", "--split", 0.5) == 2
    assert "image_vector has the shapes (3,) and (7,), not one length" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    for share in ("1", "0", "x", "nan"):
        with pytest.raises(SystemExit, match="2"):
            export(csv, "jsonl", tmp_path / "other", "--split", share)
        assert f"{share!r} is not a number above 0 and below 1" in capsys.readouterr().err
    for to in ("txt", "pgvector"):
        assert export(csv, to, tmp_path / "other", "--split", 0.5) == 2
        assert f"--to {to} does not take --split" in capsys.readouterr().err


# --- many pictures


@pytest.mark.parametrize("to", ("imagefolder", "coco"))
def test_many_pictures_are_in_several_folders(
    twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    monkeypatch.setattr(training, "ROWS_PER_FOLDER", 50)
    assert export(twins, to, tmp_path / "out") == 0
    where = tmp_path / "out" / ("images" if to == "coco" else "")
    assert (where / "000000049.png").exists()
    assert (where / "000002" / "000000100.png").exists()
    if to == "imagefolder":
        found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), split="train")
        assert [row["image"].getpixel((0, 0))[0] for row in found] == [*range(2 * NUMBER)]
    else:
        images = COCO(tmp_path / "out" / "annotations" / "instances.json").imgs.values()
        assert [(where / image["file_name"]).exists() for image in images] == [True] * 2 * NUMBER


# --- uploaded


class Hub:
    """A hub of one data set: it takes every file as a small one, as the hub does with texts.

    files: of the data set, by their names.
    """

    def __init__(self, is_private: bool = True, exists: bool = False) -> None:
        self.url = ""
        self.is_private = is_private
        self.files = {"README.md": b"about", "train-000009.tar": b"old"} if exists else {}
        self.requests: list[str] = []
        self.created: list[Any] = []

    def answer(self, method: str, path: str, body: bytes) -> Any:
        if path == "/api/whoami-v2":
            return {"type": "user", "name": "me", "orgs": []}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.url}/datasets/me/cats", "id": "me/cats"}
        if path == "/api/datasets/me/cats/preupload/main":
            names = [each["path"] for each in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        if path == "/api/datasets/me/cats/commit/main":
            for line in body.splitlines():
                self.change(**json.loads(line))
            return {"success": True, "commitOid": "a" * 40, "commitUrl": f"{self.url}/datasets/me/cats/commit/a"}
        if path == "/api/datasets/me/cats/tree/main":
            return [{"type": "file", "path": name, "oid": "b" * 40, "size": 1} for name in self.files]
        info = {"id": "me/cats", "private": self.is_private, "sha": "a" * 40, "downloads": 0, "likes": 0, "tags": []}
        return info | {"siblings": [{"rfilename": name} for name in self.files]}

    def change(self, key: str, value: Any) -> None:
        if key == "file":
            self.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "deletedFile":
            del self.files[value["path"]]


@contextmanager
def served(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path} {self.headers.get('Authorization')}")
            answer = json.dumps(hub.answer(self.command, path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = handle_any  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield
        server.shutdown()


def test_a_set_is_uploaded_to_a_private_data_set(
    corrected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub, out = Hub(), tmp_path / "out"
    with served(hub, monkeypatch):
        assert export(corrected, "imagefolder", out, "--push-to-hub", "me/cats") == 0
    assert hub.created == [{"name": "cats", "organization": "me", "visibility": "private", "type": "dataset"}]
    assert hub.files == {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(hub.files) == 3
    assert capsys.readouterr().out == (
        f"2 rows in {out}\n"
        f"uploading 2 rows in 3 files, 0.000 GB, to the private data set {hub.url}/datasets/me/cats\nuploaded\n"
    )


def test_what_was_uploaded_before_is_replaced(
    corrected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub(is_private=False, exists=True)
    with served(hub, monkeypatch):
        assert export(corrected, "webdataset", tmp_path / "out", "--push-to-hub", "me/cats") == 0
    assert set(hub.files) == {"README.md", "000000.tar"}
    assert "to the public data set" in capsys.readouterr().out


def test_an_upload_that_fails_says_how_to_go_on(
    corrected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub, out = Hub(), tmp_path / "out"

    def fail(*_: object, **__: object) -> None:
        raise OSError("the network is gone")

    with served(hub, monkeypatch):
        monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", fail)
        assert export(corrected, "imagefolder", out, "--push-to-hub", "me/cats") == 2
    expected = f"the network is gone; {out} is complete; to upload it, run `hf upload me/cats {out} --type dataset`"
    assert expected in capsys.readouterr().err
    assert len(list(out.iterdir())) == 3


def test_whether_it_can_be_uploaded_is_asked_before(
    corrected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(Hub(), monkeypatch):
        assert export(corrected, "imagefolder", tmp_path / "out", "--push-to-hub", "a/b/c") == 2
        assert "--push-to-hub a/b/c: that is no name of a data set: give USER/NAME" in capsys.readouterr().err
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
        assert export(corrected, "imagefolder", tmp_path / "out", "--push-to-hub", "me/cats") == 2
        assert "log in first, by `hf auth login` or HF_TOKEN; nothing was exported" in capsys.readouterr().err
    assert export(corrected, "coco", tmp_path / "out", "--push-to-hub", "me/cats") == 2
    assert "--to coco does not take --push-to-hub" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
