"""What people correct stays beside the machine's: history, undo, conflicts; and in runs, moved folders and merges."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import EXAMPLES, run_worker
from tests.rows import finished, write, write_declared
from vec_pipeline.annotations import load_annotations
from vec_pipeline.commands.run.corrected import pixels_of
from vec_pipeline.corrections import (
    ACCEPTED,
    EDIT,
    Change,
    Conflict,
    Corrections,
    check_change,
    corrections_path,
    current_of,
)
from vec_pipeline.record import COLUMNS, UserError, beside

FIRST, SECOND, THIRD = (f"/photos/{number:06}.jpg" for number in range(3))


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return write(tmp_path / "a.csv", [finished(number) for number in range(3)])


@pytest.fixture
def layer(csv: Path) -> Iterator[Corrections]:
    with closing(Corrections(csv)) as corrections:
        yield corrections


def value(csv: Path, key: str, name: str = "description") -> str:
    rows = load_annotations(csv).set_index("image_path")
    return str(rows.loc[key, name])


def test_readers_see_corrections_and_the_csv_keeps_the_machines(csv: Path, layer: Corrections) -> None:
    before = csv.read_bytes()
    assert not corrections_path(csv).exists()
    layer.correct([Change(FIRST, "description", 'Mine, with a "quote"\nand a line'), Change(FIRST, "keywords", "")])
    assert value(csv, FIRST) == 'Mine, with a "quote"\nand a line'
    assert value(csv, FIRST, "keywords") == ""
    assert value(csv, SECOND) == "A red car, number 1."
    assert csv.read_bytes() == before
    machine = load_annotations(csv, machine=True)
    assert machine["description"][0] == "A red car, number 0." and "verified" not in machine
    np.testing.assert_array_equal(load_annotations(csv)["text_vector"][0], machine["text_vector"][0])


def test_numbers_and_json_are_read_as_such(tmp_path: Path) -> None:
    types = {"score": "number", "objects": "json"}
    csv = write_declared(tmp_path / "a.csv", types, [finished(0, score=1.0, objects=[]), finished(1, score=2.0)])
    with closing(Corrections(csv)) as layer:
        layer.correct([Change(FIRST, "score", "0"), Change(FIRST, "objects", '[{"label": "dog"}]')])
        layer.correct([Change(SECOND, "score", ""), Change(SECOND, "objects", "")])
    rows = load_annotations(csv)
    assert rows["score"][0] == 0.0 and np.isnan(rows["score"][1])
    assert rows["objects"][0] == [{"label": "dog"}] and rows["objects"][1] is None


def test_a_bulk_act_is_one_undo(csv: Path, layer: Corrections) -> None:
    one = layer.correct([Change(FIRST, "description", "one")])
    bulk = layer.correct([Change(key, "description", "bulk") for key in (FIRST, SECOND, THIRD)], "replace", "Ann")
    assert {value(csv, key) for key in (FIRST, SECOND, THIRD)} == {"bulk"}
    layer.undo(bulk)
    assert value(csv, FIRST) == "one" and value(csv, THIRD) == "A red car, number 2."
    layer.undo(one)
    assert value(csv, FIRST) == "A red car, number 0."
    assert [(act.what, act.changes, act.who) for act in layer.acts()][-2:] == [("replace", 3, "Ann"), (EDIT, 1, "")]


def test_undone_acts_can_be_done_again_in_turn(csv: Path, layer: Corrections) -> None:
    acts = [layer.correct([Change(FIRST, "description", text)]) for text in ("one", "two", "three")]
    undone = [layer.undo(act) for act in reversed(acts)]
    assert value(csv, FIRST) == "A red car, number 0." and layer.changed_since(0) == {FIRST: {}}
    said = []
    for act in reversed(undone):
        layer.undo(act)
        said.append(value(csv, FIRST))
    assert said == ["one", "two", "three"]
    with pytest.raises(UserError, match="undone already"):
        layer.undo(undone[0])
    with pytest.raises(UserError, match="is not there"):
        layer.undo(99)


def test_an_act_whose_value_was_changed_since_is_not_undone(csv: Path, layer: Corrections) -> None:
    bulk = layer.correct([Change(key, "description", "bulk") for key in (FIRST, SECOND)])
    layer.correct([Change(SECOND, "description", "later")], who="Bob")
    with pytest.raises(Conflict) as caught:
        layer.undo(bulk)
    [clash] = caught.value.entries
    assert (clash.key, clash.now.value, clash.now.who) == (SECOND, "later", "Bob")
    assert value(csv, FIRST) == "bulk"


def test_the_second_writer_is_told_and_nothing_is_lost(csv: Path, layer: Corrections) -> None:
    first = layer.correct([Change(FIRST, "description", "Ann's", seen=0)], who="Ann")
    with pytest.raises(Conflict, match="changed by Ann"):
        layer.correct([Change(SECOND, "description", "other", seen=0), Change(FIRST, "description", "Bob's", seen=0)])
    assert value(csv, FIRST) == "Ann's" and value(csv, SECOND) == "A red car, number 1."
    layer.correct([Change(FIRST, "description", "Bob's", seen=first)], who="Bob")
    assert [(entry.who, entry.old, entry.new) for entry in layer.history(FIRST)] == [
        ("Bob", "Ann's", "Bob's"),
        ("Ann", None, "Ann's"),
    ]


def test_back_to_the_machines_is_a_change_too(csv: Path, layer: Corrections) -> None:
    act = layer.correct([Change(FIRST, "description", "mine")])
    layer.correct([Change(FIRST, "description", None, seen=act)])
    assert value(csv, FIRST) == "A red car, number 0."
    assert current_of(csv).of(FIRST) == {}


def test_only_a_whole_act_is_kept(csv: Path, layer: Corrections) -> None:
    layer.correct([Change(FIRST, "description", "mine")])
    wrong: list[Change] = [Change(SECOND, "description", "half"), Change(THIRD, "description", object())]  # type: ignore[arg-type]
    with pytest.raises(UserError, match="people have corrected"):
        layer.correct(wrong)
    assert value(csv, SECOND) == "A red car, number 1." and len(layer.acts()) == 1


def test_a_damaged_file_is_never_ignored(csv: Path, layer: Corrections) -> None:
    layer.correct([Change(FIRST, "description", "mine")])
    layer.close()
    corrections_path(csv).write_bytes(b"SQLite format 3\0" + b"damaged" * 2_000)
    with pytest.raises(UserError, match="people have corrected, and cannot be used"):
        load_annotations(csv)


def test_a_file_of_a_newer_version_is_left_alone(csv: Path, layer: Corrections) -> None:
    layer.correct([Change(FIRST, "description", "mine")])
    with closing(sqlite3.connect(corrections_path(csv))) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="of another version"):
        load_annotations(csv)


def test_what_cannot_be_corrected() -> None:
    types = {**COLUMNS, "objects": "json", "score": "number", "audio": "file"}
    for column, text in (
        ("description", "a"),
        ("objects", "[]"),
        ("score", "0.5"),
        ("score", ""),
        ("verified", ACCEPTED),
    ):
        check_change(types, column, text)
    for column in ("text_vector", "image_path", "timestamp", "error", "flags", "llama_extracted", "audio", "no_column"):
        with pytest.raises(UserError, match="cannot be corrected"):
            check_change(types, column, "a")
    wrong = [
        ("objects", "["),
        ("objects", '{"a": NaN}'),
        ("objects", "[" * 100_000),
        ("score", "nan"),
        ("score", "inf"),
    ]
    wrong += [("score", "1_000"), ("score", "١")]
    for column, text in (*wrong, ("score", "much"), ("verified", "perhaps")):
        with pytest.raises(UserError):
            check_change(types, column, text)


def test_a_picture_that_moved_keeps_its_corrections(csv: Path, layer: Corrections) -> None:
    layer.correct([Change(FIRST, "description", "mine")])
    assert layer.without_pixels("384") == [FIRST]
    assert layer.note_pixels({FIRST: b"one", SECOND: b"two"}, "384") == ([], [])
    assert layer.without_pixels("384") == [] and layer.note_pixels({FIRST: b"one"}, "384") == ([], [])
    assert layer.note_pixels({"/new/a.jpg": b"one", "/new/b.jpg": b"two"}, "384") == (["/new/a.jpg"], [])
    assert layer.current().of("/new/a.jpg") == {"description": "mine"} and not layer.current().of("/new/b.jpg")


def test_a_picture_is_told_from_another_by_each_reader(layer: Corrections) -> None:
    layer.correct([Change(FIRST, "description", "mine")])
    layer.note_pixels({FIRST: b"small"}, "384")
    layer.note_pixels({FIRST: b"small"}, "224")  # which it fits into as well
    assert layer.note_pixels({FIRST: b"other"}, "224") == ([], [FIRST])
    assert not layer.current().of(FIRST)


def test_pictures_that_were_exchanged_keep_their_corrections_and_an_act_on_both_can_be_undone(
    layer: Corrections,
) -> None:
    act = layer.correct([Change(FIRST, "description", "first"), Change(SECOND, "description", "second")])
    layer.note_pixels({FIRST: b"one", SECOND: b"two"}, "384")
    assert layer.note_pixels({FIRST: b"two", SECOND: b"one"}, "384") == ([FIRST, SECOND], [FIRST, SECOND])
    assert layer.current().of(FIRST) == {"description": "second"}
    layer.note_pixels({SECOND: b"new"}, "384")  # now the first one is nowhere
    layer.undo(act)
    assert not layer.current().of(FIRST) and not layer.current().of(SECOND)


def test_a_row_that_was_made_with_the_corrections_of_another_picture_is_stale(layer: Corrections) -> None:
    layer.correct([Change(FIRST, "text", "mine")])
    layer.note_pixels({FIRST: b"one"}, "384")
    given = {FIRST: layer.current().of(FIRST)}
    assert layer.stale(["text"]) == [FIRST]
    layer.note_pixels({FIRST: b"another picture"}, "384")
    layer.confirm(given)
    assert layer.stale(["text"]) == [FIRST] and layer.made_with() == {FIRST}
    layer.confirm({FIRST: layer.current().of(FIRST)})
    assert layer.stale(["text"]) == [] and layer.made_with() == set()


def test_a_file_that_a_kill_left_empty_has_no_corrections(csv: Path) -> None:
    corrections_path(csv).touch()
    assert "verified" not in load_annotations(csv)
    with closing(Corrections(csv)) as layer:
        assert layer.acts() == [] and layer.stale(["text"]) == []
        layer.correct([Change(FIRST, "description", "mine")])
    assert value(csv, FIRST) == "mine"


def test_copies_of_a_picture_are_corrected_together(csv: Path, layer: Corrections) -> None:
    layer.correct([Change(FIRST, "description", "first")])
    layer.note_pixels({FIRST: b"same"}, "384")
    layer.note_pixels({THIRD: b"same"}, "384")
    both = layer.correct([Change(FIRST, "description", "one"), Change(THIRD, "description", "two")])
    assert value(csv, FIRST) == value(csv, THIRD) == "two"
    assert layer.history(THIRD)[0].new == "two" and layer.history(THIRD)[0].old == "first"
    layer.undo(both)
    assert value(csv, FIRST) == value(csv, THIRD) == "first"


def test_another_picture_at_the_same_path_has_no_corrections(layer: Corrections) -> None:
    layer.correct([Change(FIRST, "description", "mine")])
    layer.note_pixels({FIRST: b"one"}, "384")
    layer.note_pixels({FIRST: b"as another reader sees it"}, "512")
    assert layer.current().of(FIRST) == {"description": "mine"}
    assert layer.note_pixels({FIRST: b"another picture"}, "384") == ([], [FIRST])
    assert not layer.current().of(FIRST)
    assert [entry.new for entry in layer.history(FIRST)] == ["mine"]
    layer.note_pixels({THIRD: b"one"}, "384")
    assert layer.current().of(THIRD) == {"description": "mine"}


@pytest.fixture(scope="module")
def corrected_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, str]]:
    """A run whose row of one picture is corrected: its pictures, its CSV, and that picture's key."""
    folder = tmp_path_factory.mktemp("corrected")
    photos, csv = folder / "photos", folder / "a.csv"
    photos.mkdir()
    for path in sorted(EXAMPLES.glob("*.png"))[:4]:
        shutil.copy(path, photos)
    assert run_worker(photos, "--output", csv).returncode == 0
    key = str(sorted(photos.iterdir())[1])
    with closing(Corrections(csv)) as layer:
        layer.correct([Change(key, "text", "A green car on a red background. The text reads HELLO.")])
    yield photos, csv, key


def rows_of(csv: Path, *, machine: bool = True) -> pd.DataFrame:
    return load_annotations(csv, machine=machine).set_index("image_path")


def test_refresh_recomputes_what_follows_from_a_corrected_text_and_nothing_else(
    corrected_run: tuple[Path, Path, str],
) -> None:
    photos, csv, key = corrected_run
    lines, before = csv.read_text().splitlines(), rows_of(csv)
    assert "1 row made before people corrected them" in run_worker(photos, "--output", csv).stdout
    assert csv.read_text().splitlines() == lines

    run = run_worker(photos, "--output", csv, "--refresh")
    assert "1 row to update (1 row corrected by people)" in run.stdout and "1 row changed, 3 unchanged" in run.stdout
    after = rows_of(csv)
    changed = [path for path, line in zip(before.index, lines[1:], strict=True) if line not in csv.read_text()]
    assert changed == [key]
    assert after.loc[key, "text"] == before.loc[key, "text"]  # the machine's stays
    assert "car" in after.loc[key, "description"] and after.loc[key, "image_text"] == "HELLO"
    assert float(after.loc[key, "text_vector"] @ before.loc[key, "text_vector"]) < 0.9
    np.testing.assert_allclose(after.loc[key, "image_vector"], before.loc[key, "image_vector"], atol=1e-5)
    assert "nothing to refresh" in run_worker(photos, "--output", csv, "--refresh").stdout

    with closing(Corrections(csv)) as layer:
        undone = layer.undo(layer.acts()[0].id)
    assert "1 row changed" in run_worker(photos, "--output", csv, "--refresh").stdout
    pd.testing.assert_frame_equal(rows_of(csv).drop(columns="timestamp"), before.drop(columns="timestamp"))
    with closing(Corrections(csv)) as layer:
        layer.undo(undone)


def test_a_refresh_of_everything_keeps_corrections(corrected_run: tuple[Path, Path, str]) -> None:
    photos, csv, key = corrected_run
    written = rows_of(csv).loc[key, "text"]
    beside(csv, "cache.sqlite").unlink()
    assert run_worker(photos, "--output", csv, "--refresh", "--set", "flag.repetitive=0.29").returncode == 0
    assert rows_of(csv, machine=False).loc[key, "text"].startswith("A green car")
    assert rows_of(csv).loc[key, "image_text"] == "HELLO"
    assert rows_of(csv).loc[key, "text"] == written
    with closing(Corrections(csv)) as layer:
        undone = layer.undo(layer.acts()[0].id)
    assert run_worker(photos, "--output", csv, "--refresh").returncode == 0
    assert rows_of(csv).loc[key, "text"] == written and rows_of(csv).loc[key, "image_text"] != "HELLO"
    with closing(Corrections(csv)) as layer:
        layer.undo(undone)


def test_a_moved_folder_keeps_corrections(corrected_run: tuple[Path, Path, str], tmp_path: Path) -> None:
    photos, csv, key = corrected_run
    assert run_worker(photos, "--output", csv, "--refresh").returncode == 0
    moved = tmp_path / "moved"
    os.rename(photos, moved)
    try:
        run = run_worker(moved, "--output", csv)
        assert "1 picture that people have corrected found at another place" in run.stdout
        new = str(moved / Path(key).name)
        assert rows_of(csv, machine=False).loc[new, "text"].startswith("A green car")
        assert run_worker(moved, "--output", csv, "--refresh", "--prune").returncode == 0
        assert rows_of(csv).loc[new, "image_text"] == "HELLO" and key not in rows_of(csv).index
    finally:
        os.rename(moved, photos)


def test_pixels_are_the_same_to_a_run_and_to_the_review(corrected_run: tuple[Path, Path, str]) -> None:
    photos, csv, key = corrected_run
    found = pixels_of(csv)
    assert found
    reader, hash_of_key = found
    with closing(sqlite3.connect(corrections_path(csv))) as database:
        noted = database.execute("SELECT hash FROM pixels WHERE reader = ?", (reader,)).fetchall()
    assert (hash_of_key(str(photos / Path(key).name)),) in noted
    assert hash_of_key(str(photos / "gone.png")) is None


def test_a_replaced_picture_is_said_and_its_row_updated(corrected_run: tuple[Path, Path, str], tmp_path: Path) -> None:
    photos, csv, key = corrected_run
    assert run_worker(photos, "--output", csv).returncode == 0
    assert run_worker(photos, "--output", csv, "--refresh").returncode == 0
    assert rows_of(csv).loc[key, "image_text"] == "HELLO"
    shutil.copy(key, tmp_path / "kept.png")
    other = sorted(photos.iterdir())[0]
    try:
        shutil.copy(other, key)
        run = run_worker(photos, "--output", csv, "--refresh")
        assert "1 picture that people have corrected replaced by another" in run.stdout
        rows = rows_of(csv, machine=False)
        assert rows.loc[key, "text"] == rows.loc[str(other), "text"]
        np.testing.assert_allclose(rows.loc[key, "text_vector"], rows.loc[str(other), "text_vector"], atol=1e-5)
    finally:
        shutil.copy(tmp_path / "kept.png", key)
    assert "1 picture that people have corrected found" in run_worker(photos, "--output", csv, "--refresh").stdout


def test_a_merge_again_changes_nothing_and_brings_back_nothing(tmp_path: Path) -> None:
    from vec_pipeline.commands.merge import merge

    one, two = write(tmp_path / "one.csv", [finished(0)]), write(tmp_path / "two.csv", [finished(0), finished(1)])
    with closing(Corrections(one)) as layer:
        layer.correct([Change(FIRST, "description", "earlier")])
    with closing(sqlite3.connect(corrections_path(one))) as database, database:
        database.execute("UPDATE acts SET time = '2020-01-01T00:00:00'")
    with closing(Corrections(two)) as layer:
        later = layer.correct([Change(FIRST, "description", "later")])
        gone = layer.correct([Change(SECOND, "description", "of a picture that was replaced")])
        layer.note_pixels({SECOND: b"two"}, "384")
        layer.note_pixels({SECOND: b"another"}, "384")
    merge([one, two], two)
    with closing(Corrections(two)) as layer:
        assert len(layer.acts()) == 3 and value(two, FIRST) == "later"
        layer.undo(later)
        assert value(two, FIRST) == "earlier"
        layer.undo(next(act.id for act in layer.acts() if act.time.startswith("2020")))
    merge([one, two], two)
    assert value(two, FIRST) == "A red car, number 0."
    with closing(Corrections(two)) as layer:
        assert len(layer.acts()) == 5
        layer.undo(gone)


def test_merge_joins_what_people_have_corrected(tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", [finished(0), finished(2)])
    two = write(tmp_path / "two.csv", [finished(1), finished(2)])
    with closing(Corrections(one)) as layer:
        undone = layer.correct([Change(FIRST, "keywords", "undone")])
        layer.correct([Change(FIRST, "description", "one"), Change(THIRD, "description", "older")], who="Ann")
        layer.undo(undone)
        layer.confirm({FIRST: layer.current().of(FIRST)})
    with closing(sqlite3.connect(corrections_path(one))) as database, database:
        database.execute("UPDATE acts SET time = '2020-01-01T00:00:00'")
    with closing(Corrections(two)) as layer:
        layer.correct([Change(SECOND, "description", "two"), Change(THIRD, "description", "newer")])
    from vec_pipeline.commands.merge import merge

    out = tmp_path / "all.csv"
    merge([one, two], out)
    assert [value(out, key) for key in (FIRST, SECOND, THIRD)] == ["one", "two", "newer"]
    with closing(Corrections(out)) as layer:
        assert layer.stale(["description"]) == [SECOND, THIRD]
        assert {entry.new for entry in layer.history(THIRD)} == {"older", "newer"}
        assert layer.history(FIRST)[-1].new == "undone"
        acts = {act.id: act for act in layer.acts()}
        assert [acts[act.undoes].what for act in acts.values() if act.undoes] == [EDIT]
        layer.undo(max(act.id for act in acts.values() if act.changes == 2 and not act.undoes))
    assert value(out, SECOND) == "A red car, number 1."
