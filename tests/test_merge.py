"""`run --shard` and `merge`: parts that run alone, and become one CSV without a row lost or twice."""

import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import EXAMPLES, PROJECT, Run, command, copied, run_worker
from tests.fakes import ListSource, TextContent
from tests.test_promises import assert_same_rows
from vec_pipeline import load_annotations
from vec_pipeline.__main__ import main
from vec_pipeline.commands.run.shard import Part, Shard, output_of
from vec_pipeline.record import COLUMNS, Record
from vec_pipeline.result_cache import ResultCache, hash_in
from vec_pipeline.settings import Recorded, recorded_settings, write_recorded
from vec_pipeline.sinks.csv_file import encode_row

SETTINGS = Recorded(columns=dict(COLUMNS), stages={"describe": {"model": "a", "prompt": "What is it?"}})


def write_csv(path: Path, *rows: dict[str, str], settings: Recorded = SETTINGS, columns: tuple[str, ...] = ()) -> Path:
    """A CSV of rows with these cells, and the settings beside it."""
    header = (*COLUMNS, *columns)
    defaults = {"timestamp": "2026-01-01T00:00:00"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        encode_row(header)
        + b"".join(encode_row([{**defaults, **row}.get(name, "") for name in header]) for row in rows)
    )
    write_recorded(path, settings)
    return path


def rows_of(path: Path) -> dict[str, str]:
    """The texts of a CSV by key; the rows are counted too."""
    table = load_annotations(path)
    assert table["image_path"].is_unique
    return dict(zip(table["image_path"], table["text"], strict=True))


def merge(*arguments: object) -> int:
    return main(["merge", *map(str, arguments)])


def test_every_record_falls_to_one_shard() -> None:
    names = [f"/photos/{number}.jpg" for number in range(1000)]
    parts = [[record.key for record in Part(ListSource(names), Shard(number, 8))] for number in range(8)]
    assert sorted(key for part in parts for key in part) == sorted(names)
    assert all(80 < len(part) < 170 for part in parts)
    assert [record.key for record in Part(ListSource(names[500:]), Shard(3, 8))] == [
        key for key in parts[3] if key in names[500:]
    ]


def test_a_source_that_begins_later_passes_over_other_shards() -> None:
    class Recording(ListSource):
        def resume(self, done: object) -> None:
            self.done = done

    names = [f"/photos/{number}.jpg" for number in range(100)]
    source = Recording(names)
    part = Part(source, Shard(0, 4))
    own = [record.key for record in part]
    part.resume({own[0]})
    assert [name for name in names if name not in source.done] == own[1:]


@pytest.mark.parametrize("text", ["8/8", "1", "a/b", "0/0", "1/2/3"])
def test_what_is_no_shard_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "photos", "--shard", text])
    assert f"{text!r} is no shard: write 0/8" in capsys.readouterr().err


def test_a_shard_has_a_csv_of_its_own() -> None:
    assert output_of(Path("output/annotations.csv"), Shard(3, 8)) == Path("output/annotations-3-of-8.csv")
    assert output_of(Path("output/annotations.csv"), None) == Path("output/annotations.csv")


def test_shards_that_were_killed_and_resumed_become_the_csv_of_one_run(
    example_run: tuple[Run, Path], tmp_path: Path
) -> None:
    outputs = [tmp_path / f"part-{number}.csv" for number in range(3)]
    killed = subprocess.Popen(
        command(EXAMPLES, "--shard", "0/3", "--output", outputs[0], "--set", "chunk_size=2"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s and not (outputs[0].exists() and outputs[0].read_bytes().count(b"\n") > 2):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    for number, output in enumerate(outputs):
        run = run_worker(EXAMPLES, "--shard", f"{number}/3", "--output", output)
        assert run.returncode == 0, run.stderr
    assert all(len(load_annotations(output)) > 2 for output in outputs)
    joined = tmp_path / "all" / "annotations.csv"
    assert merge(*outputs, "--out", joined) == 0
    assert_same_rows(load_annotations(joined), load_annotations(example_run[1]))
    again = run_worker(EXAMPLES, "--output", joined)
    assert f"{len(load_annotations(joined))} done, 0 to do" in again.stdout
    refreshed = run_worker(EXAMPLES, "--output", joined, "--refresh")
    assert "nothing to refresh" in refreshed.stdout, "the pictures of all rows are known"


def test_eight_shards_two_of_them_killed_become_the_csv_of_one_run(tmp_path: Path) -> None:
    """With a stage that needs no model. What is killed has rows, and is resumed to its last."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(160):
        Image.new("RGB", (10 + number, 20), (number, 0, 0)).save(photos / f"{number}.png")
    config = tmp_path / "config.yaml"
    config.write_text(
        "chunk_size: 2\nstages: [open_image, {use: tests.scripted_stages.Say, name: say, seconds_per_image: 0.1}]\n"
    )

    def shard(number: int, *options: str) -> list[str]:
        output = tmp_path / f"part-{number}.csv"
        part = ("--shard", f"{number}/8", "--output", str(output))
        return [sys.executable, str(PROJECT / "run.py"), str(photos), "--config", str(config), *part, *options]

    outputs = [tmp_path / f"part-{number}.csv" for number in range(8)]
    for number in (2, 5):
        with subprocess.Popen(shard(number), cwd=PROJECT, stdout=subprocess.DEVNULL) as killed:
            deadline_s = time.monotonic() + 60
            while time.monotonic() < deadline_s and rows_in(outputs[number]) < 3:
                time.sleep(0.01)
            killed.kill()
        assert 3 <= rows_in(outputs[number]) < 12, "it was killed in the middle"
    for number in range(8):
        fast = ("--set", "say.seconds_per_image=0")
        run = subprocess.run(shard(number, *fast), cwd=PROJECT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    joined = tmp_path / "all.csv"
    assert merge(*outputs, "--out", joined) == 0
    table = load_annotations(joined)
    sizes = {str(photos / f"{number}.png"): f"A picture of {10 + number} by 20 pixels." for number in range(160)}
    assert rows_of(joined) == sizes
    assert sum(len(load_annotations(output)) for output in outputs) == len(table), "no shard has a row of another"
    assert not table["error"].any()


def rows_in(path: Path) -> int:
    """Whole rows of a CSV without line breaks in cells, which may not exist yet."""
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def test_of_several_rows_the_one_without_error_is_kept_then_the_latest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early, late = "2026-01-01T00:00:00", "2026-01-02T00:00:00"
    first = write_csv(
        tmp_path / "a.csv",
        {"image_path": "/1.jpg", "text": "fine", "timestamp": early},
        {"image_path": "/2.jpg", "text": "old", "timestamp": early},
        {"image_path": "/3.jpg", "text": "alone"},
    )
    second = write_csv(
        tmp_path / "b.csv",
        {"image_path": "/1.jpg", "error": "describe: RuntimeError: no", "timestamp": late},
        {"image_path": "/2.jpg", "text": "new", "timestamp": late},
        {"image_path": "/4.jpg", "error": "open_image: OSError: cut"},
    )
    for inputs in ((first, second), (second, first)):
        out = tmp_path / f"{inputs[0].stem}-out.csv"
        assert merge(*inputs, "--out", out) == 0
        assert rows_of(out) == {"/1.jpg": "fine", "/2.jpg": "new", "/3.jpg": "alone", "/4.jpg": ""}
        printed = capsys.readouterr().out
        assert f"4 rows in {out}, 1 of them with an error; 2 pictures with several rows" in printed
    assert recorded_settings(out).stages == SETTINGS.stages
    assert first.exists() and second.exists()


def test_other_settings_are_refused_by_their_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_csv(tmp_path / "a.csv", {"image_path": "/1.jpg"})
    other = Recorded(columns=dict(COLUMNS), stages={"describe": {"model": "a", "prompt": "Which colour?"}})
    second = write_csv(tmp_path / "b.csv", {"image_path": "/2.jpg"}, settings=other)
    assert merge(first, second, "--out", tmp_path / "out.csv") == 2
    assert f"{second} was made with other settings than {first} (describe.prompt)" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_a_file_that_is_not_among_those_to_join_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_csv(tmp_path / "a.csv", {"image_path": "/1.jpg", "text": "one"})
    second = write_csv(tmp_path / "b.csv", {"image_path": "/2.jpg", "text": "two"})
    kept = write_csv(tmp_path / "kept.csv", {"image_path": "/3.jpg", "text": "three"})
    assert merge(first, second, "--out", kept) == 2
    assert "exists: name it among the files to join" in capsys.readouterr().err
    assert merge(first, kept, "--out", kept) == 0
    assert rows_of(kept) == {"/1.jpg": "one", "/3.jpg": "three"}


def test_columns_that_some_lack_are_empty_there(tmp_path: Path) -> None:
    first = write_csv(tmp_path / "a.csv", {"image_path": "/1.jpg", "title": "A"}, columns=("title",))
    second = write_csv(tmp_path / "b.csv", {"image_path": "/2.jpg"})
    assert merge(second, first, "--out", tmp_path / "out.csv") == 0
    assert dict(load_annotations(tmp_path / "out.csv")[["image_path", "title"]].to_numpy()) == {
        "/1.jpg": "A",
        "/2.jpg": "",
    }


def test_a_torn_last_row_is_left_out(tmp_path: Path) -> None:
    first = write_csv(tmp_path / "a.csv", {"image_path": "/1.jpg", "text": "one"}, {"image_path": "/2.jpg"})
    first.write_bytes(first.read_bytes()[:-20])
    second = write_csv(tmp_path / "b.csv", {"image_path": "/3.jpg", "text": "three"})
    assert merge(first, second, "--out", tmp_path / "out.csv") == 0
    assert rows_of(tmp_path / "out.csv") == {"/1.jpg": "one", "/3.jpg": "three"}


def test_files_and_downloads_come_along(tmp_path: Path) -> None:
    columns = {**COLUMNS, "text_audio": "file"}
    inputs = []
    for name in ("a", "b"):
        settings = Recorded(columns=columns, store=f"{name}.images", stages=SETTINGS.stages)
        row = {"image_path": f"https://host/{name}.jpg", "text_audio": f"audio/{name}.wav"}
        inputs.append(write_csv(tmp_path / name / f"{name}.csv", row, settings=settings, columns=("text_audio",)))
        for part in (f"audio/{name}.wav", f"{name}.images/ab/cd/{name}"):
            path = tmp_path / name / part
            path.parent.mkdir(parents=True)
            path.write_text(name)
    out = tmp_path / "all" / "all.csv"
    assert merge(*inputs, "--out", out) == 0
    for name in ("a", "b"):
        assert (out.parent / f"audio/{name}.wav").read_text() == name
        assert (out.parent / f"all.images/ab/cd/{name}").read_text() == name
    assert recorded_settings(out).store == "all.images"


def test_the_picture_of_the_row_that_is_kept_is_the_one_that_is_known(tmp_path: Path) -> None:
    fine = write_csv(tmp_path / "old.csv", {"image_path": "/1.jpg", "text": "of version 1"})
    failed = write_csv(tmp_path / "new.csv", {"image_path": "/1.jpg", "error": "describe: RuntimeError: no"})
    for csv_path, version in ((fine, "1"), (failed, "2")):
        with closing(ResultCache(csv_path.with_suffix(".cache.sqlite"), str)) as results:
            record = Record("/1.jpg", {"content": TextContent(version)})
            hash_in(record, "content")
            results.note_pictures([record])
            results.confirm_pictures()
    assert merge(failed, fine, "--out", tmp_path / "out.csv") == 0
    with closing(ResultCache(tmp_path / "out.cache.sqlite", str)) as results:
        for version, is_changed in (("1", False), ("2", True)):
            changed, unknown = results.changed_pictures([Record("/1.jpg", {"content": TextContent(version)})])
            assert (bool(changed), unknown) == (is_changed, [])


def test_a_csv_that_a_run_has_open_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vec_pipeline.sinks.csv_file import lock_beside

    first = write_csv(tmp_path / "a.csv", {"image_path": "/1.jpg"})
    second = write_csv(tmp_path / "b.csv", {"image_path": "/2.jpg"})
    with lock_beside(second):
        assert merge(first, second, "--out", tmp_path / "out.csv") == 2
    assert f"{second} is in use by another worker" in capsys.readouterr().err


def test_results_come_along_so_that_nothing_is_computed_again(example_run: tuple[Run, Path], tmp_path: Path) -> None:
    out = tmp_path / "all.csv"
    assert merge(copied(example_run[1], tmp_path, results=True), "--out", out) == 0
    again = tmp_path / "again.csv"
    out.with_suffix(".cache.sqlite").rename(again.with_suffix(".cache.sqlite"))
    run = run_worker(EXAMPLES, "--output", again)
    assert run.returncode == 0, run.stderr
    assert "loaded" not in again.with_suffix(".log").read_text()
    before, after = load_annotations(out), load_annotations(again)
    assert np.allclose(np.stack(before["image_vector"]), np.stack(after["image_vector"]))
    pd.testing.assert_series_equal(before["text"], after["text"])
