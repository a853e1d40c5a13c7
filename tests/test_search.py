"""Search: the picture that was meant comes first, and the cached vectors are those of the CSV whatever became of it."""

import itertools
import json
import os
import random
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from models.demo.draw import write_scene
from models.demo.scenes import Scene, Thing
from tests.conftest import PROJECT, Run, copied
from tests.rows import failed, finished, unit_vectors, write
from tests.test_report import Memory
from vec_pipeline.__main__ import main
from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands.search import vector_cache
from vec_pipeline.commands.search.page import write_page
from vec_pipeline.commands.search.query import maker_of, makers_of
from vec_pipeline.commands.search.vector_cache import Cache, Vectors
from vec_pipeline.config import load_config
from vec_pipeline.record import Record, UserError
from vec_pipeline.settings import settings_path, stage_settings
from vec_pipeline.sources.folder import LocalFile
from vec_pipeline.stages.embed_text import EmbedText

THINGS = ("red car", "blue car", "green car", "red house", "blue house", "yellow star", "purple cat", "green tree")
SIZE = 16


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CSV of one drawn thing a picture, with the vectors of the bundled models, and its settings beside it."""
    folder, rng = tmp_path_factory.mktemp("drawn"), random.Random(5)
    stages = {stage.name: stage for stage in load_config(PROJECT / "configs/demo.yaml").stages}
    opener, sight, meaning = (stages[name] for name in ("open_image", "embed_image", "embed_text"))
    clip, sentences = sight.load(), meaning.load()
    records = []
    for colour, kind in map(str.split, THINGS):
        scene = Scene((Thing(kind, colour),), 1, "in the centre", "white", "")
        path = write_scene(scene, folder, rng, scale=2)
        values = opener.run(None, [{"content": LocalFile(str(path))}], 1)[0]
        values |= {"text": scene.caption(), "description": scene.objects()}
        values |= sight.run(clip, [values], 1)[0] | meaning.run(sentences, [values], 1)[0]
        records.append(Record(str(path), values))
    csv_path = write(folder / "annotations.csv", [*records[:3], failed(0), *records[3:]])
    settings = {"columns": {}, "sources": [], "stages": {name: stage_settings(stage) for name, stage in stages.items()}}
    settings_path(csv_path).write_text(yaml.safe_dump(settings, sort_keys=False))
    return csv_path


def search(capsys: pytest.CaptureFixture[str], csv_path: Path, *arguments: object) -> list[str]:
    """The file names of what was found, without their ending, best first."""
    assert main(["search", "--csv", str(csv_path), "--json", *map(str, arguments)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["score"] for row in found] == sorted((row["score"] for row in found), reverse=True)
    assert [row["rank"] for row in found] == list(range(1, len(found) + 1))
    return [Path(row["image_path"]).stem for row in found]


# --- what is found


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("where", ["image", "text"])
def test_what_is_named_is_found_first(drawn: Path, thing: str, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    article = "an" if thing[0] in "aeiou" else "a"
    best, *_ = search(capsys, drawn, f"{article} {thing} on a white background", "--in", where)
    assert best == thing.replace(" ", "-")


def test_a_red_car_is_found_among_cars_and_red_things(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(capsys, drawn, "a red car", "--top", 1) == ["red-car"]


def test_what_looks_like_an_image_is_found(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = Scene((Thing("car", "blue"),), 1, "in the centre", "white", "")
    other = write_scene(scene, tmp_path, random.Random(99), scale=3)
    assert search(capsys, drawn, "--like", other, "--top", 1) == ["blue-car"]
    assert (
        search(capsys, drawn, "--like", drawn.with_name("purple-cat" + suffix(drawn, "purple-cat")))[0] == "purple-cat"
    )


def suffix(drawn: Path, stem: str) -> str:
    return next(path.suffix for path in drawn.parent.glob(stem + ".*") if path.suffix != ".json")


def test_a_real_run_is_searched(
    example_run: tuple[Run, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv_path = copied(example_run[1], tmp_path)
    assert search(capsys, csv_path, "a yellow moon on a white background", "--top", 1) == ["yellow-moon"]
    assert search(capsys, csv_path, "a purple cat", "--in", "text", "--top", 1)[0].startswith("purple-cat")


def test_the_table_has_rank_score_path_and_description(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "a red car", "--csv", str(drawn), "--top", "3"]) == 0
    header, first, *others = capsys.readouterr().out.splitlines()
    assert header.split() == ["rank", "score", "image_path", "description"]
    assert re.fullmatch(r" +1 +0\.\d{3} +\S+/red-car\.(jpg|png) +A red car on a white background, in the centre", first)
    assert len(others) == 2


def test_more_than_there_is_gives_all_rows_with_a_vector(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = search(capsys, drawn, "a red car", "--top", 1000)
    assert sorted(names) == sorted(thing.replace(" ", "-") for thing in THINGS)


def test_an_image_of_another_source_is_searched_for_and_shown(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    csv_path = copied(drawn, tmp_path)
    settings = settings_path(csv_path)
    settings.write_text(settings.read_text().replace("sources: []", f"sources: [{Memory.__module__}]"))
    picture = drawn.with_name("purple-cat" + suffix(drawn, "purple-cat"))
    csv_path.write_bytes(csv_path.read_bytes().replace(bytes(picture), b"memory:0"))
    monkeypatch.setattr(Memory, "images", {"memory:0": picture.read_bytes()})
    page = tmp_path / "found.html"
    assert search(capsys, csv_path, "--like", "memory:0", "--top", 1, "--html", page) == ["memory:0"]
    reader = Reader(page.read_text(encoding="utf-8"))
    assert ("a", {"href": "https://example.org/?image=memory:0&size=full"}) in reader.tags
    assert [str(attributes["src"])[:22] for tag, attributes in reader.tags if tag == "img"] == [
        "data:image/jpeg;base64"
    ]
    assert main(["search", "--csv", str(csv_path), "--like", "memory:7"]) == 2
    assert "memory:7 does not exist" in capsys.readouterr().err


def test_the_stages_may_have_any_names(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are found by what they write, whatever they are called and whatever else the settings name."""
    csv_path = copied(drawn, tmp_path)
    content = yaml.safe_load(settings_path(csv_path).read_text())
    stages = content["stages"]
    opener, sight, meaning = (stages.pop(name) for name in ("open_image", "embed_image", "embed_text"))
    content["stages"] = {
        "of_a_plugin": {"use": "not_installed.Stage", "option": 1},
        "title": {**meaning, "model": "none", "read": {"text": "title"}, "write": {"text_vector": "title_vector"}},
        "meaning": meaning,
        "thumbnail": {**opener, "max_size_px": 1, "write": {"image": "small"}},
        "open": {**opener, "write": {"image": "picture"}},
        "sight": {**sight, "read": {"image": "picture"}},
        **stages,
    }
    settings_path(csv_path).write_text(yaml.safe_dump(content, sort_keys=False))
    assert search(capsys, csv_path, "a purple cat", "--in", "text", "--top", 1) == ["purple-cat"]
    assert search(capsys, csv_path, "a purple cat", "--top", 1) == ["purple-cat"]
    picture = drawn.with_name("blue-car" + suffix(drawn, "blue-car"))
    assert search(capsys, csv_path, "--like", picture, "--top", 1) == ["blue-car"]


def test_a_stage_is_built_as_it_was_recorded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings_path(path).write_text(
        "stages: {meaning: {use: embed_text, version: 3, model: a/b, revision: main, commit: 12ab, identity: x, "
        "read: {text: title}, write: {text_vector: title_vector}}}"
    )
    monkeypatch.setattr(EmbedText, "fetch", lambda self: None)
    stage, own_name = maker_of(path, "title_vector")
    assert isinstance(stage, EmbedText)
    assert (stage.name, stage.model, stage.revision, own_name) == ("meaning", "a/b", "12ab", "text_vector")


def test_a_model_that_tells_queries_from_passages_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings_path(path).write_text("embed_text: {model: models/demo/sentences, prefix: 'passage: '}")
    monkeypatch.setattr(EmbedText, "load", lambda self: None)
    monkeypatch.setattr(EmbedText, "run", lambda self, model, rows, at_once: [{"text_vector": (self.prefix, rows)}])
    asked = makers_of(path).meaning_query("a red car")
    assert asked == ("query: ", [{"text": "a red car"}])


# --- the page


class Reader(HTMLParser):
    """Collects what a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_shows_thumbnails_and_needs_nothing_else(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "new" / "found.html"
    names = search(capsys, drawn, "a red car", "--top", 4, "--html", page)
    reader = Reader(page.read_text(encoding="utf-8"))
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert len(images) == 4
    assert images[0]["alt"] == "A red car on a white background, in the centre"
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,/9j/") for image in images)
    links = [str(attributes["href"]) for tag, attributes in reader.tags if tag == "a"]
    assert [Path(link).stem for link in links] == names
    assert all(link.startswith("file:///") for link in links)
    assert not re.search(r"https?:", page.read_text(encoding="utf-8"))


def test_text_is_never_taken_for_html(tmp_path: Path) -> None:
    """Nor is a missing image an obstacle."""
    evil = '<script>alert("1")</script>" onerror="alert(1)'
    row = {"rank": 1, "score": 0.5, "image_path": f"/photos/{evil}.jpg", "description": evil}
    write_page(tmp_path / "found.html", evil, [row], tmp_path / "annotations.csv")
    reader = Reader((tmp_path / "found.html").read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    text = "".join(reader.texts)
    assert text.count(evil) == 4  # title, heading, description, path
    assert "not found" in text


# --- the cache


def rows(numbers: range) -> list[Record]:
    """Records whose image vectors are `unit_vectors` of the number."""
    return [failed(n) if n % 5 == 4 else finished(n, image_vector=vector(n)) for n in numbers]


def vector(number: int) -> Any:
    return unit_vectors(1, SIZE, seed=number)[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "annotations.csv", rows(range(12)))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where in the CSV each reading for the cache began."""
    starts = []
    read = vector_cache.blocks_with_bar

    def noted(reader: CsvReader, columns: Any, *, start: int) -> Any:
        starts.append(start)
        return read(reader, columns, start=start)

    monkeypatch.setattr(vector_cache, "blocks_with_bar", noted)
    return starts


def assert_right(found: list[dict[str, Any]], numbers: list[int]) -> None:
    """The rows of these numbers were found, each with its own description."""
    assert [(row["image_path"], row["description"]) for row in found] == [
        (finished(n).key, finished(n).values["description"]) for n in numbers
    ]


def assert_current(path: Path, numbers: range) -> None:
    """The opened vectors are those of the CSV, each beside the place of its row."""
    expected = [n for n in numbers if n % 5 != 4]
    with Vectors(path, "image_vector") as vectors:
        np.testing.assert_array_equal(vectors.matrix, np.stack([vector(n) for n in expected]))
        for n in expected:
            assert_right(vectors.nearest(vector(n), 1), [n])


def test_the_cache_follows_the_csv_and_reads_only_what_is_new(path: Path, reads: list[int]) -> None:
    assert_current(path, range(12))
    assert_current(path, range(12))
    size = path.stat().st_size
    write(path, rows(range(12, 30)))
    assert_current(path, range(30))
    assert reads == [0, size]


def test_a_torn_last_row_is_read_once_it_is_whole(path: Path, reads: list[int]) -> None:
    whole = write(path, rows(range(12, 13))).read_bytes()
    os.truncate(path, len(whole) - 20)
    assert_current(path, range(12))
    with path.open("ab") as file:
        file.write(whole[-20:])
    assert_current(path, range(13))


def test_a_csv_put_in_its_place_is_read_from_its_start(path: Path) -> None:
    assert_current(path, range(12))
    other = write(path.with_name("other.csv"), rows(range(20, 60)))
    other.replace(path)
    assert_current(path, range(20, 60))


def test_a_csv_that_is_overwritten_is_read_from_its_start(path: Path) -> None:
    assert_current(path, range(12))
    other = write(path.with_name("other.csv"), rows(range(20, 60)))
    path.write_bytes(other.read_bytes())
    assert_current(path, range(20, 60))


@pytest.mark.parametrize("name", ["image_vector.float32", "image_vector.places", "image_vector.json"])
@pytest.mark.parametrize("damage", ["deleted", "emptied", "cut", "overwritten"])
def test_a_damaged_cache_is_rebuilt(path: Path, name: str, damage: str) -> None:
    assert_current(path, range(12))
    file = path.with_suffix(".vectors") / name
    if damage == "deleted":
        file.unlink()
    elif damage == "emptied":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        file.write_text('{"rows": "many"}')
    assert_current(path, range(12))


def test_what_a_killed_search_left_is_overwritten(path: Path) -> None:
    assert_current(path, range(12))
    for name in ("image_vector.float32", "image_vector.places"):
        with (path.with_suffix(".vectors") / name).open("ab") as file:
            file.write(b"half a row")
    write(path, rows(range(12, 20)))
    assert_current(path, range(20))


def test_an_interrupted_search_keeps_what_it_read(
    path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vec_pipeline.sinks.csv_rows.BLOCK_BYTES", 1000)
    read = Cache._vectors_of
    blocks = []

    def interrupted(self: Cache, block: Any, dimensions: int) -> Any:
        blocks.append(block)
        if len(blocks) == 4:
            raise KeyboardInterrupt
        return read(self, block, dimensions)

    monkeypatch.setattr(Cache, "_vectors_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Vectors(path, "image_vector")
    assert_current(path, range(12))
    assert reads == [0, int(blocks[2].ends[-1])]


def test_searches_at_the_same_time_append_each_row_once(path: Path, reads: list[int]) -> None:
    write(path, rows(range(12, 200)))
    with ThreadPoolExecutor(4) as pool:
        for opened in [pool.submit(assert_current, path, range(200)) for _ in range(4)]:
            opened.result()
    assert (path.with_suffix(".vectors") / "image_vector.float32").stat().st_size == 160 * 4 * SIZE
    assert reads[0] == 0
    assert set(reads[1:]) <= {path.stat().st_size}


def test_where_the_folder_cannot_be_written_a_search_still_works(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.with_suffix(".vectors").write_text("a file in the way")
    assert_current(path, range(12))
    assert "cannot be used (" in capsys.readouterr().err


def test_a_current_cache_in_a_read_only_folder_is_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Vectors(path, "image_vector").close()

    def refused(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(vector_cache, "locked", refused)
    monkeypatch.setattr(Path, "mkdir", refused)
    assert_current(path, range(12))


def test_two_columns_are_cached_apart(path: Path) -> None:
    with Vectors(path, "text_vector") as vectors:
        assert vectors.matrix.shape == (10, 5)
    assert_current(path, range(12))


def test_scores_are_cosines_and_exact(path: Path) -> None:
    write(path, rows(range(12, 400)))
    query = vector(1234)
    with Vectors(path, "image_vector") as vectors:
        found = vectors.nearest(query, 25)
    scores = {finished(n).key: float(vector(n) @ query) for n in range(400) if n % 5 != 4}
    best = sorted(scores, key=lambda key: -scores[key])[:25]
    assert [row["image_path"] for row in found] == best
    np.testing.assert_allclose([row["score"] for row in found], [scores[key] for key in best], atol=1e-4)


# --- while a run replaces the CSV, as `--refresh` does


def shuffled(path: Path, numbers: range, seed: int) -> Path:
    """Another CSV of the same images, whose rows stand elsewhere."""
    records = rows(numbers)
    random.Random(seed).shuffle(records)
    return write(path.with_name(f"{seed}.csv"), records)


def test_a_csv_that_is_replaced_before_its_rows_are_read(path: Path) -> None:
    """While the model of the query loads, say."""
    with Vectors(path, "image_vector") as vectors:
        shuffled(path, range(12), 1).replace(path)
        for n in (0, 7, 11):
            assert_right(vectors.nearest(vector(n), 1), [n])
    assert_current_of_any_order(path)


def test_a_csv_that_is_replaced_while_its_vectors_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache must not pair the identity of the new file with the places of the old one, which would last."""
    read = Cache._vectors_of

    def replaced(self: Cache, block: Any, dimensions: int) -> Any:
        other = path.with_name("1.csv")
        if other.exists():
            other.replace(path)
        return read(self, block, dimensions)

    shuffled(path, range(12), 1)
    monkeypatch.setattr(Cache, "_vectors_of", replaced)
    assert_current_of_any_order(path)
    assert_current_of_any_order(path)


def assert_current_of_any_order(path: Path) -> None:
    with Vectors(path, "image_vector") as vectors:
        assert len(vectors.matrix) == 10
        for n in (n for n in range(12) if n % 5 != 4):
            assert_right(vectors.nearest(vector(n), 1), [n])


def test_a_csv_that_is_edited_in_place_is_searched_as_it_is_now(path: Path, reads: list[int]) -> None:
    """Same file, same size and same end, so that it looks like the one that the cache was made of."""
    write(path, rows(range(12, 60)))
    assert_current(path, range(60))
    size = path.stat().st_size
    with Vectors(path, "image_vector") as vectors:
        records = rows(range(60))
        other = write(path.with_name("other.csv"), [*reversed(records[:20]), *records[20:]]).read_bytes()
        path.write_bytes(other)
        assert path.stat().st_size == size
        for n in (0, 7, 18, 58):
            assert_right(vectors.nearest(vector(n), 1), [n])
    assert reads == [0, 0]  # rebuilt once


def row_of_one_length(number: int) -> Record:
    """Rows that differ in their values and not in their length."""
    others = {"text_vector": np.ones(5, np.float32), "word2vec_vector": np.ones(4, np.float32)}
    signs = np.array([1, 1, 1, 1, -1, 1, -1, 1, 1, -1, -1, 1, -1, -1, -1, -1], np.float32)
    return finished(number, **others, image_vector=np.roll(signs, number) / 4)


def test_rows_that_trade_places_are_told_apart_by_their_vectors(path: Path) -> None:
    """As if an editor had sorted them: at each place there is a valid row of the same length, of another image."""
    records = [row_of_one_length(number) for number in range(8)]
    path.unlink()
    write(path, [*records, *rows(range(20, 40))])
    other = write(path.with_name("other.csv"), [*reversed(records), *rows(range(20, 40))])
    with Vectors(path, "image_vector") as vectors:
        path.write_bytes(other.read_bytes())
        for number, wanted in enumerate(records):
            assert_right(vectors.nearest(wanted.values["image_vector"], 1), [number])


def test_files_that_another_search_is_replacing_are_not_mapped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_current(path, range(12))
    mapped = Cache._mapped
    others = iter([Cache._emptied])

    def replaced(self: Cache, state: Any) -> Any:
        for empty in others:
            empty(self)
        return mapped(self, state)

    monkeypatch.setattr(Cache, "_mapped", replaced)
    assert_current(path, range(12))


def test_a_csv_that_changes_all_the_time_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vectors, "_rows", lambda *_: None)
    with Vectors(path, "image_vector") as vectors, pytest.raises(UserError, match="is being rewritten: search again"):
        vectors.nearest(vector(0), 1)


def test_no_search_finds_a_wrong_row_whatever_replaces_the_csv(path: Path) -> None:
    """Searches, while another thread puts shuffled rows in place as fast as it can, some with more rows."""
    versions = [shuffled(path, range(12 + 5 * seed), seed).read_bytes() for seed in range(1, 5)]
    has_ended = threading.Event()

    def replace() -> None:
        for number in itertools.count():
            if has_ended.is_set():
                return
            new = path.with_name("new.csv")
            new.write_bytes(versions[number % len(versions)])
            os.replace(new, path)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for number in range(150):
            wanted = number % 4
            with Vectors(path, "image_vector") as vectors:
                found = vectors.nearest(vector(wanted), 3)
            numbers = [int(Path(row["image_path"]).stem) for row in found]
            assert numbers[0] == wanted
            assert_right(found, numbers)
            scores = [float(vector(n) @ vector(wanted)) for n in numbers]
            np.testing.assert_allclose([row["score"] for row in found], scores, atol=1e-4)
    finally:
        has_ended.set()
        thread.join()


# --- where it is written


def test_a_page_replaces_the_target_of_a_link(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, link = tmp_path / "target.html", tmp_path / "link.html"
    link.symlink_to(target)
    target.write_text("old")
    assert search(capsys, drawn, "a red car", "--top", 1, "--html", link) == ["red-car"]
    assert link.is_symlink()
    assert Reader(target.read_text(encoding="utf-8")).tags


def test_a_page_goes_to_stdout_and_the_table_to_stderr(drawn: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "a red car", "--csv", str(drawn), "--top", "1", "--html", "-"]) == 0
    page, table = capfd.readouterr()
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>\n")
    assert table.splitlines()[0].split() == ["rank", "score", "image_path", "description"]


def test_the_home_folder_is_found(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    csv_path = copied(drawn, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(drawn.with_name("purple-cat" + suffix(drawn, "purple-cat")), tmp_path / "cat.png")
    arguments = ["--like=~/cat.png", "--top=1", "--html=~/found.html", "--json", f"--csv=~/{csv_path.name}"]
    assert main(["search", *arguments]) == 0
    assert "purple-cat" in json.loads(capsys.readouterr().out)[0]["image_path"]
    assert (tmp_path / "found.html").is_file()
    assert not (tmp_path / "~").exists()


def test_outputs_that_differ_after_the_last_dot_have_vectors_of_their_own(tmp_path: Path) -> None:
    for number, name in enumerate(("a.v1", "a.v2")):
        path = write(tmp_path / name, [finished(number, image_vector=vector(number))])
        with Vectors(path, "image_vector") as vectors:
            (found,) = vectors.nearest(vector(number), 1)
        assert found["image_path"] == finished(number).key
    assert {path.name for path in tmp_path.glob("*.vectors")} == {"a.v1.vectors", "a.v2.vectors"}


# --- what is refused


def test_what_cannot_be_searched_is_said_in_one_sentence(
    drawn: Path, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = write(tmp_path / "empty.csv", [failed(0)])
    mixed = write(tmp_path / "mixed.csv", [finished(0), finished(1, image_vector=np.ones(7, np.float32))])
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    for csv_path, arguments, sentence in (
        (drawn, [], "needs either a text"),
        (drawn, [" "], "needs either a text"),
        (drawn, ["a car", "--like", text], "needs either a text"),
        (drawn, ["--like", text, "--in", "text"], "without --in text"),
        (drawn, ["--like", text], f"{text} cannot be opened: not an image"),
        (drawn, ["--like", tmp_path / "none.jpg"], "none.jpg does not exist"),
        (
            drawn,
            ["--like", text, "--in", "dino"],
            "has no vectors dino_vector: add a stage that writes them and run with",
        ),
        (drawn, ["a car", "--in", "dino"], f"run `vec-pipeline align --csv {drawn}`"),
        (tmp_path / "none.csv", ["a car"], "none.csv does not exist: name the CSV of a run"),
        (empty, ["a car"], "has no image_vector in any row"),
        (mixed, ["a car"], "image_vector has vectors of different lengths"),
        (path, ["a car"], "annotations.settings.yaml does not exist"),
    ):
        assert main(["search", "--csv", str(csv_path), *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.startswith("vec-pipeline: ")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("embed_text: {model: models/demo/sentences}", "was made without a stage that writes image_vector"),
        ("embed_image: 3", "is damaged"),
        ("[", "is damaged"),
        ("embed_image: {model: models/demo/clop}", "did you mean models/demo/clip?"),
        ("embed_image: {model: models/demo/clip}", "was made with another model than its settings name"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    path: Path, settings: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings_path(path).write_text(settings)
    assert main(["search", "a car", "--csv", str(path)]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("top", ["0", "-1", "many"])
def test_top_is_a_number_above_zero(path: Path, top: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["search", "a car", "--csv", str(path), "--top", top])
