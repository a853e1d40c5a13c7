"""Results belong to what a stage read, wherever that came from; they come back bit for bit, and only where they fit."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from tests.conftest import PROJECT
from tests.fakes import (
    Describe,
    EmbedImage,
    EmbedText,
    HungryDescribe,
    Journal,
    Model,
    PickyDescribe,
    TextContent,
    record_of,
    records,
)
from tests.runs import Runs, annotate
from vec_pipeline import settings
from vec_pipeline.record import Record, Stage, Values
from vec_pipeline.result_cache import ResultCache, decode, encode, hash_in, hash_of
from vec_pipeline.sources.folder import LocalFile


def no_settings(stage: Stage) -> str:
    return stage.name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.cache.sqlite"


@pytest.fixture
def cache(path: Path) -> Iterator[ResultCache]:
    with closing(ResultCache(path, no_settings)) as opened:
        yield opened


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Runs]:
    """Make the executor of a run; each one is a new run over the same result cache."""
    with closing(Runs(tmp_path)) as runs:
        yield runs


@pytest.fixture
def journal() -> Journal:
    return Journal()


# --- values come back as they were


def assert_same(found: Values, expected: Values) -> None:
    """Equal names, and values that are equal bit for bit, of the same types and shapes."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
            assert found[name].tobytes() == value.tobytes()
        elif isinstance(value, Image.Image):
            assert (found[name].mode, found[name].size) == (value.mode, value.size)
            assert found[name].tobytes() == value.tobytes()
        else:
            assert (found[name], type(found[name])) == (value, type(value))


def noise(mode: str, side_px: int = 8) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (side_px, side_px, 4), np.uint8)
    return Image.fromarray(pixels).convert(mode)


VALUES: list[Values] = [
    {},
    {"text": 'Красная "машина" 🚗\n\0\ud83d', "count": 3, "share": 0.1, "none": None, "file": "/a/b.png"},
    {"boxes": [{"label": "cup", "box": [1, 2.5, 3, 4]}, {}], "list": ["a", None, True], "empty": []},
    {"boxes": np.arange(6, dtype=np.int64).reshape(3, 2), "mask": np.array([[0, 1]], np.uint8)},
    {"half": np.ones((2, 1, 2), np.float16), "empty": np.zeros((0, 4), np.float32), "double": np.array([0.1])},
    {"image": noise("RGB"), "text": "a", "mask": noise("L"), "vector": np.arange(3), "alpha": noise("RGBA")},
]


@pytest.mark.parametrize("values", VALUES)
def test_results_come_back_as_they_were(values: Values, path: Path, cache: ResultCache) -> None:
    cache.store({b"a": values, b"b": {}})
    assert_same(cache.find([b"a"])[b"a"], values)
    cache.close()
    with closing(ResultCache(path, no_settings)) as reopened:
        assert_same(reopened.find([b"a"])[b"a"], values)


def test_vectors_come_back_bit_for_bit(cache: ResultCache) -> None:
    vector = np.frombuffer(random.Random(0).randbytes(40_000), np.float32)
    vector = np.append(vector[np.isfinite(vector)], np.float32([0.1, -0.0, 1e-45]))
    cache.store({b"a": {"text_vector": vector, "text": "a car"}})
    found = cache.find([b"a"])[b"a"]["text_vector"]
    assert_same({"vector": found}, {"vector": vector})
    found += 1  # it can be written to, as the stage's own


def test_results_are_found_by_their_keys(cache: ResultCache) -> None:
    keys = [f"{n}".encode() for n in range(1000)]
    cache.store({key: {"text": key.decode()} for key in keys})
    cache.store({b"1": {"text": "newer"}})
    found = cache.find([*keys[:600], b"unknown"])
    assert len(found) == 600
    assert (found[b"0"], found[b"1"], found[b"599"]) == ({"text": "0"}, {"text": "newer"}, {"text": "599"})


def test_a_batch_that_cannot_be_stored_leaves_nothing_of_it_and_a_usable_cache(cache: ResultCache) -> None:
    with pytest.raises(TypeError):
        cache.store({b"a": {"text": "fine"}, b"b": {"text": object()}})
    with pytest.raises(sqlite3.Error):
        cache.store({b"a": {"text": "fine"}, object(): {}})  # type: ignore[dict-item]
    assert cache.find([b"a"]) == {}
    cache.store({b"a": {"text": "fine"}})
    assert cache.find([b"a"]) == {b"a": {"text": "fine"}}


def test_a_result_stored_before_a_kill_is_there_afterwards(path: Path) -> None:
    program = """if True:
        import os, signal, sys
        from pathlib import Path
        from vec_pipeline.result_cache import ResultCache
        ResultCache(Path(sys.argv[1]), str).store({b"a": {"text": "a car"}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", program, str(path)], cwd=PROJECT, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    with closing(ResultCache(path, no_settings)) as cache:
        assert cache.find([b"a"]) == {b"a": {"text": "a car"}}


def test_vectors_are_stored_as_four_bytes_a_number(path: Path, cache: ResultCache) -> None:
    vectors = np.random.default_rng(0).random((100, 1000), np.float32)
    cache.store({f"{n}".encode(): {"text_vector": vector} for n, vector in enumerate(vectors)})
    cache.close()
    assert path.stat().st_size < 1.2 * vectors.nbytes


def test_it_may_be_used_from_several_threads(cache: ResultCache) -> None:
    def work(thread: int) -> None:
        for n in range(50):
            key = f"{thread}-{n}"
            cache.store({key.encode(): {"text": key}})
            assert cache.find([key.encode()]) == {key.encode(): {"text": key}}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_without_a_file_nothing_is_kept() -> None:
    cache = ResultCache(None, no_settings)
    cache.store({b"a": {"text": "a car"}})
    assert cache.find([b"a"]) == {}
    record = record_of("a")
    hash_in(record, "content")
    cache.note_pictures([record])
    cache.confirm_pictures()
    assert cache.changed_pictures([record]) == ([], [record])


# --- what identifies a value


def test_different_values_have_different_hashes() -> None:
    values = [
        *("1", 1, 1.5, None, True, ["1"], {"a": 1}, ""),
        *(np.ones(2, np.float32), np.ones((2, 1), np.float32), np.zeros(2), np.zeros(2, np.int64)),
        *(np.float32([0.0, 1]), np.float32([-0.0, 1])),
        *(Image.new("RGB", (2, 3)), Image.new("RGB", (3, 2)), Image.new("L", (6, 3)), Image.new("RGB", (2, 3), "red")),
        *(Image.new("RGBA", (2, 3)), Image.new("CMYK", (2, 3))),
    ]
    assert len({hash_of(value) for value in values}) == len(values)


@pytest.mark.parametrize("values", VALUES[2:])
def test_a_value_has_the_same_hash_once_it_has_been_stored(values: Values) -> None:
    found = decode(encode(values))
    assert [hash_of(found[name]) for name in values] == [hash_of(value) for value in values.values()]


def test_the_order_of_names_in_a_dict_is_no_difference() -> None:
    assert hash_of({"a": 1, "b": [{"c": 1, "d": 2}]}) == hash_of({"b": [{"d": 2, "c": 1}], "a": 1})


@dataclass(frozen=True, kw_only=True)
class Join(Stage):
    """Texts, of which one must be there."""

    reads: ClassVar[tuple[str, ...]] = ("one",)
    optional: ClassVar[tuple[str, ...]] = ("two", "three")
    writes: ClassVar[Mapping[str, str]] = {"joined": "text"}

    separator: str = " "


def key_of(stage: Stage, **values: Any) -> bytes:
    return ResultCache(None, settings.fingerprint).key(stage, Record("a", values))


def test_a_key_is_of_the_settings_and_of_all_that_is_read_and_of_nothing_else() -> None:
    keys = [
        key_of(Join(), one="a"),
        key_of(Join(), one="b"),
        key_of(Join(), one="a", two="b"),
        key_of(Join(), one="a", three="b"),
        key_of(Join(), one="ab"),
        key_of(Join(), one="b", two="a"),
        key_of(Join(separator="-"), one="a"),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(Join(name="other", batch_size=9), one="a", four="c") == keys[0]
    assert key_of(Join(read={"one": "title"}), title="a", one="b") == keys[0]
    assert key_of(Join(write={"joined": "title"}), one="a") == keys[0]


def test_two_files_of_one_size_and_time_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """Nor is a file for what it was before, by a stage that reads its bytes or its path."""

    class FileName(Join):
        reads = ("image_path",)

    class Opens(Join):
        reads = ("content",)

    files = [tmp_path / "a", tmp_path / "b"]
    cache = ResultCache(None, no_settings)

    def keys(stage: Stage) -> list[bytes]:
        return [
            cache.key(stage, Record(str(file), {"content": LocalFile(str(file)), "image_path": "x"})) for file in files
        ]

    for file in files:
        file.write_text("1")
        os.utime(file, (0, 0))
    before = keys(FileName()), keys(Opens())
    assert before[0][0] != before[0][1]
    assert before[1][0] != before[1][1]
    files[0].write_text("22")
    after = keys(FileName()), keys(Opens())
    assert [old == new for old, new in zip(before[0], after[0], strict=True)] == [False, True]
    assert [old == new for old, new in zip(before[1], after[1], strict=True)] == [False, True]


# --- results belong to what was read


def test_results_that_are_there_are_not_computed_again_and_load_no_model(make: Runs, journal: Journal) -> None:
    def stages() -> tuple[Stage, ...]:
        return Describe(journal=journal), EmbedText(journal=journal)

    first = annotate(make(*stages()), records("a"), records("b"))
    journal.loads.clear()
    again = annotate(make(*stages()), records("a"), records("b"))
    assert not journal.loads
    assert [record.done for record in again] == [{"read", "describe", "embed_text"}] * 2
    for old, new in zip(first, again, strict=True):
        assert_same(new.values, old.values)
    journal.batches.clear()
    annotate(make(*stages()), records("a", "b", "c"))
    assert journal.batches == [("describe", ["c"]), ("embed_text", ["c, 40 px"])]


def test_only_the_models_that_are_needed_are_loaded(make: Runs, journal: Journal) -> None:
    annotate(make(Describe(), EmbedText()), records("a"), records("b"))
    stages = Describe(), EmbedImage(journal=journal), EmbedText(journal=journal)
    annotate(make(*stages), records("a"), records("b"))
    assert journal.loads == ["embed_image"]
    annotate(make(*stages), records("a"), records("c"))
    assert sorted(journal.loads) == ["embed_image", "embed_image", "embed_text"]


def test_results_of_other_settings_are_computed_again(make: Runs, journal: Journal) -> None:
    annotate(make(Describe()), records("a", "b"))
    annotate(make(Describe(journal=journal), fingerprint=lambda stage: "other"), records("a", "b"))
    assert journal.batches == [("describe", ["a", "b"])]


def test_a_copy_of_an_image_runs_once_and_both_rows_are_filled(make: Runs, journal: Journal) -> None:
    chunk = [record_of("a"), record_of("b"), record_of("copy of a", content="a")]
    annotated = annotate(make(Describe(journal=journal)), chunk, [record_of("later copy", content="a")])
    assert journal.batches == [("describe", ["a", "b"])]
    assert [record.values["text"][0] for record in annotated] == ["a", "b", "a", "a"]
    assert all("describe" in record.done for record in annotated)


def test_what_depends_on_the_path_is_not_shared_by_images_of_equal_pixels(make: Runs, journal: Journal) -> None:
    class Folder(Describe):
        reads = ("image_path",)
        writes: ClassVar[Mapping[str, str]] = {"folder": "text"}

        def answer(self, row: Values) -> Values:
            return {"folder": row["image_path"]}

    class OfFolder(EmbedImage):
        reads = ("image", "folder")

        def answer(self, row: Values) -> Values:
            return {"image_vector": [float(len(row["folder"]))]}

    for _ in range(2):  # the second time from the result cache
        stages = Describe(journal=journal, name="describe_pixels"), Folder(journal=journal), OfFolder(journal=journal)
        one, two = annotate(make(*stages), [record_of(name, content="the same pixels") for name in ("a", "bb")])
        assert (one.values["folder"], two.values["folder"]) == ("a", "bb")
        assert [list(record.values["image_vector"]) for record in (one, two)] == [[1.0], [2.0]]
    assert [len(batch) for _, batch in journal.batches] == [1, 2, 2]


@dataclass(frozen=True, kw_only=True)
class PromptedDescribe(Describe):
    """Its prompt changes what it says of one image alone."""

    prompt: str = "Describe."

    def answer(self, row: Values) -> Values:
        answer = super().answer(row)["text"]
        return {"text": answer + self.prompt if row["content_text"] == "c" else answer}


def test_what_follows_a_changed_prompt_runs_only_where_the_text_changed(make: Runs, journal: Journal) -> None:
    for prompt, batch in (("?", list("abcd")), ("!", ["c"])):
        journal.batches.clear()
        stages = PromptedDescribe(prompt=prompt), EmbedText(journal=journal), EmbedImage(journal=journal)
        annotate(make(*stages, fingerprint=settings.fingerprint), records(*"abcd"))
        texts = [f"{name}, 40 px{prompt if name == 'c' else ''}" for name in batch]
        assert ("embed_text", texts) in journal.batches
        assert journal.sizes("embed_image") == ([4] if prompt == "?" else [])


def test_equal_texts_of_different_images_share_a_result(make: Runs, journal: Journal) -> None:
    class Same(Describe):
        def answer(self, row: Values) -> Values:
            return {"text": "nothing"}

    annotated = annotate(make(Same(), EmbedText(journal=journal)), records(*"abc"), records("d"))
    assert journal.sizes("embed_text") == [1]
    assert all(list(record.values["text_vector"]) == [7.0] for record in annotated)


@dataclass(frozen=True, kw_only=True)
class Twin(EmbedText):
    """Embeds with the model that a stage of the same options has loaded under another name."""

    def run(self, model: Model, rows: list[Values], at_once: int) -> list[Values]:
        return super().run(Model(self.name, self.journal), rows, at_once)


def test_one_stage_under_two_names_loads_one_model_and_shares_results(make: Runs, journal: Journal) -> None:
    class Title(Describe):
        writes: ClassVar[Mapping[str, str]] = {"title": "text"}

        def answer(self, row: Values) -> Values:
            return {"title": "a, 40 px" if row["content_text"] == "b" else "an untitled picture"}

    renamed = {"name": "embed_title", "read": {"text": "title"}, "write": {"text_vector": "title_vector"}}
    stages = Describe(), Title(name="title"), Twin(journal=journal), Twin(journal=journal, **renamed)  # type: ignore[arg-type]
    one, two = annotate(make(*stages, fingerprint=settings.fingerprint), records("a", "b"))
    assert len(journal.loads) == 1
    assert journal.batches == [("embed_text", ["a, 40 px", "b, 40 px"]), ("embed_title", ["an untitled picture"])]
    assert [list(one.values[name]) for name in ("text_vector", "title_vector")] == [[8.0], [19.0]]
    assert [list(two.values[name]) for name in ("text_vector", "title_vector")] == [[8.0], [8.0]]
    assert {"embed_text", "embed_title"} <= one.done


def test_a_score_made_without_the_text_does_not_come_back_with_it(make: Runs) -> None:
    """The description fails once; the score of an image alone is stored, and is not that of image and text."""

    class Score(EmbedImage):
        optional = ("text",)
        writes: ClassVar[Mapping[str, str]] = {"score": "number"}

        def answer(self, row: Values) -> Values:
            return {"score": len(row["text"]) if "text" in row else None}

    for _ in range(2):
        failed, good = annotate(make(PickyDescribe(poison="a"), Score()), records("a", "b"))
        assert (failed.error[:20], "score" in failed.values, good.values["score"]) == ("describe: ValueError", False, 8)
    retried, good = annotate(make(Describe(), Score()), records("a", "b"))
    assert (retried.error, retried.values["score"], good.values["score"]) == ("", 8, 8)


def test_a_stage_of_intermediates_alone_runs_and_is_stored(make: Runs, journal: Journal) -> None:
    class Judge(Describe):
        writes: ClassVar[Mapping[str, str]] = {}
        intermediates: ClassVar[Mapping[str, str]] = {"score": "number"}

        def answer(self, row: Values) -> Values:
            return {"score": 1.5}

    class Uses(EmbedImage):
        reads = ("score", "content_text")

        def answer(self, row: Values) -> Values:
            return {"image_vector": [row["score"]]}

    for _ in range(2):
        (record,) = annotate(make(Judge(name="judge", journal=journal), Uses()), records("a"))
        assert list(record.values["image_vector"]) == [1.5]
        assert "score" not in record.values
    assert journal.sizes("judge") == [1]


def test_a_value_there_is_none_of_is_left_out_of_the_record_and_stored(make: Runs, journal: Journal) -> None:
    class Silent(Describe):
        writes: ClassVar[Mapping[str, str]] = {"text": "text", "title": "text"}

        def answer(self, row: Values) -> Values:
            return {"text": None, "title": "untitled"}

    for _ in range(2):
        (record,) = annotate(make(Silent(journal=journal), EmbedText(journal=journal)), records("a"))
        assert (record.values, record.error) == ({"image_path": "a", "title": "untitled"}, "")
        assert "describe" in record.done
    assert journal.batches == [("describe", ["a"])], "what reads it did not run"


@dataclass(frozen=True, kw_only=True)
class Detect(Describe):
    """Values of every type, made of the image; crop is one for the next stage."""

    writes: ClassVar[Mapping[str, str]] = {
        "matrix": "vector",
        "numbers": "vector",
        "boxes": "json",
        "counts": "json",
        "share": "number",
        "mask_file": "file",
    }
    intermediates: ClassVar[Mapping[str, str]] = {"crop": "image"}

    def answer(self, row: Values) -> Values:
        pixels = np.asarray(row["image"])[:2, :3]
        return {
            "matrix": pixels.mean(axis=2, dtype=np.float32),
            "numbers": pixels.sum(axis=2, dtype=np.int64),
            "boxes": [{"label": "cup", "box": (1, 2.5)}],
            "counts": {"cup": 1},
            "share": np.float32(0.5),
            "mask_file": Path(__file__),  # a file that is gone is made again
            "crop": row["image"].crop((0, 0, 3, 2)),
        }


def test_values_of_every_type_are_the_same_computed_and_from_the_cache(make: Runs, journal: Journal) -> None:
    seen: list[Image.Image] = []

    class OfCrop(EmbedImage):
        reads = ("crop", "content_text")

        def answer(self, row: Values) -> Values:
            seen.append(row["crop"])
            return {"image_vector": [float(row["crop"].width)]}

    (computed,) = annotate(make(Detect(journal=journal), OfCrop()), records("a"))
    (found,) = annotate(make(Detect(journal=journal), OfCrop(name="again")), records("a"))
    assert journal.sizes("describe") == [1]
    assert_same(found.values, computed.values)
    assert_same({"crop": seen[1]}, {"crop": seen[0]})
    assert found.values["matrix"].shape == (2, 3)
    assert found.values["numbers"].dtype == np.int64
    assert found.values["boxes"] == [{"label": "cup", "box": [1, 2.5]}]
    assert (found.values["share"], found.values["mask_file"]) == (0.5, __file__)
    assert "crop" not in found.values


# --- fewer pixels


@dataclass(frozen=True, kw_only=True)
class HungryOnce(HungryDescribe):
    """Its first few calls run out of memory, so their image is shrunk."""

    failures: list[str] = field(default_factory=list, compare=False)

    def run(self, model: Model, rows: list[Values], at_once: int) -> list[Values]:
        answers = Describe.run(self, model, rows, at_once)
        if self.failures:
            self.failures.pop()
            raise MemoryError
        return answers


@dataclass(frozen=True, kw_only=True)
class Structure(EmbedText):
    """text -> the width that it says."""

    writes: ClassVar[Mapping[str, str]] = {"width": "number"}

    def answer(self, row: Values) -> Values:
        return {"width": width_in(row["text"])}


@dataclass(frozen=True, kw_only=True)
class Score(EmbedImage):
    """image, text -> the width that the text says."""

    optional: ClassVar[tuple[str, ...]] = ("text", "pixels_lowered")
    writes: ClassVar[Mapping[str, str]] = {"score": "number", "flags": "text"}

    def answer(self, row: Values) -> Values:
        return {"score": width_in(row["text"]), "flags": "lowered" if row.get("pixels_lowered") else ""}


def width_in(text: str) -> int:
    return int(text.split()[-2])


def row_of(record: Record) -> tuple[str, Any, Any, Any]:
    return record.error, *(record.values[name] for name in ("width", "score", "flags"))


LOWERED, FULL = ("", 400, 400, "lowered"), ("", 800, 800, "")
Run = Callable[..., list[Any]]


@pytest.fixture
def run(make: Runs, journal: Journal) -> Run:
    """Run chunks through a describer that runs out of memory a few times, and what follows; return what rows say."""

    def run_chunks(failures: int, *chunks: list[Record], describe: Stage | None = None) -> list[Any]:
        hungry = HungryOnce(failures=[""] * failures, batch_size=1, journal=journal)
        stages = describe or hungry, Structure(name="structure"), Score(name="score")
        return [row_of(record) for record in annotate(make(*stages), *chunks)]

    return run_chunks


def test_a_copy_in_another_run_is_described_in_full_and_no_row_mixes_the_two(run: Run) -> None:
    for number, (failures, row) in enumerate([(1, LOWERED), (0, FULL), (0, FULL), (1, FULL)]):
        assert run(failures, [record_of(f"copy {number}", content="large")]) == [row]
    # the last was in the result cache, in full: nothing ran that could run out of memory


def test_a_copy_in_another_chunk_is_described_in_full(run: Run) -> None:
    chunks = ([record_of(name, content="large")] for name in ("large", "copy", "third"))
    assert run(1, *chunks) == [LOWERED, FULL, FULL]


def test_copies_in_the_same_chunk_run_by_themselves(run: Run, journal: Journal) -> None:
    small = ("", 40, 40, "")
    chunk = [record_of("large"), record_of("copy", content="large"), record_of("a"), record_of("b", content="a")]
    assert run(1, chunk) == [LOWERED, FULL, small, small]
    assert [batch for _, batch in journal.batches] == [["large"], ["large"], ["a"], ["large"]]


def test_copies_in_the_same_chunk_that_are_shrunk_too_say_so(run: Run) -> None:
    chunk = [record_of("large"), record_of("a"), record_of("copy", content="large")]
    always = HungryDescribe(largest_px=400 * 400, batch_size=1)
    assert run(0, chunk, describe=always) == [LOWERED, ("", 40, 40, ""), LOWERED]
    assert run(0, [record_of("later copy", content="large")]) == [FULL]


def test_a_copy_of_an_image_that_fitted_at_no_size_is_tried_by_itself(make: Runs) -> None:
    chunk = [record_of("large"), record_of("copy", content="large")]
    first, copy = annotate(make(HungryOnce(failures=[""] * 4, batch_size=1)), chunk)
    assert first.error == "describe: MemoryError: "
    assert (copy.error, copy.values["text"]) == ("", "large, 800 px")


def test_the_stages_after_a_shrunk_image_do_not_share_their_results_with_a_copy(run: Run) -> None:
    """The text of the two is equal by chance: the flag still belongs to the row that was lowered."""

    class Constant(HungryOnce):
        def answer(self, row: Values) -> Values:
            return {"text": "nothing, 7 px"}

    for failures, flags in ((1, "lowered"), (0, "")):
        describe = Constant(failures=[""] * failures, batch_size=1)
        copy = record_of(f"copy {failures}", content="large")
        assert run(0, [copy], describe=describe) == [("", 7, 7, flags)]


# --- pictures that have changed


def noted(*names: str, text: str = "") -> list[Record]:
    """Records as after they have been read."""
    found = [record_of(name, content=text or name) for name in names]
    for record in found:
        hash_in(record, "content")
    return found


def keys(found: tuple[list[Record], list[Record]]) -> tuple[str, str]:
    changed, unknown = found
    return "".join(record.key for record in changed), "".join(record.key for record in unknown)


def test_a_picture_is_known_once_its_row_is_saved_and_changed_once_its_content_is(
    path: Path, cache: ResultCache
) -> None:
    cache.note_pictures(noted("a", "b"))
    assert keys(cache.changed_pictures(noted("a", "b", "c"))) == ("", "abc"), "their rows are not saved yet"
    cache.confirm_pictures()
    cache.note_pictures(noted("c"))
    assert keys(cache.changed_pictures(noted("a", "b", "c"))) == ("", "c")
    cache.close()
    with closing(ResultCache(path, no_settings)) as reopened:
        assert keys(reopened.changed_pictures([*noted("a"), *noted("b", text="edited"), *noted("c")])) == ("b", "c")
        reopened.note_pictures(noted("b", text="edited"))
        reopened.confirm_pictures()
        assert keys(reopened.changed_pictures(noted("b", text="edited"))) == ("", "")
        assert keys(reopened.changed_pictures(noted("b"))) == ("b", "")


def test_what_was_confirmed_is_not_confirmed_again(path: Path, cache: ResultCache) -> None:
    cache.note_pictures(noted("a"))
    cache.confirm_pictures()
    with closing(ResultCache(path, no_settings)) as later:
        later.note_pictures(noted("a", text="edited"))
        later.confirm_pictures()
    cache.confirm_pictures()
    assert keys(cache.changed_pictures(noted("a", text="edited"))) == ("", "")


def test_many_pictures_are_compared(cache: ResultCache) -> None:
    names = [f"{n}" for n in range(1000)]
    cache.note_pictures(noted(*names))
    cache.confirm_pictures()
    changed, unknown = cache.changed_pictures([*noted(*names[:-1]), *noted(names[-1], text="edited"), *noted("new")])
    assert [record.key for record in changed] == ["999"]
    assert [record.key for record in unknown] == ["new"]


@pytest.mark.parametrize(("call", "expected"), [("", ("", "b")), ("cache.confirm_pictures()", ("", ""))])
def test_a_kill_between_the_rows_and_the_confirmation_leaves_the_picture_unknown(
    call: str, expected: tuple[str, str], path: Path, cache: ResultCache
) -> None:
    program = f"""if True:
        import os, signal, sys
        from pathlib import Path
        from tests.test_result_cache import ResultCache, noted
        cache = ResultCache(Path(sys.argv[1]), str)
        cache.note_pictures(noted("b"))
        {call}
        os.kill(os.getpid(), signal.SIGKILL)
    """
    cache.note_pictures(noted("a"))
    cache.confirm_pictures()
    killed = subprocess.run([sys.executable, "-c", program, str(path)], cwd=PROJECT, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    cache.confirm_pictures()
    assert keys(cache.changed_pictures(noted("a", "b"))) == expected


def test_a_picture_edited_while_it_is_read_is_changed(make: Runs) -> None:
    """Its row may be of the old pixels: the identity is taken before it is read."""

    class Edited(TextContent):
        def read(self) -> bytes:
            object.__setattr__(self, "text", "edited")
            return super().read()

    record = Record("a", {"content": Edited("a")})
    executor = make(Describe())
    annotate(executor, [record])
    executor.results.note_pictures([record])
    executor.results.confirm_pictures()
    assert keys(executor.results.changed_pictures(noted("a", text="edited"))) == ("a", "")


def test_content_whose_identity_cannot_be_had_is_the_same_as_no_other_and_does_not_stop_the_run(
    make: Runs, journal: Journal
) -> None:
    class Unreachable(TextContent):
        def identity(self) -> str:
            raise ConnectionError("the bucket does not answer")

    class OfPath(EmbedImage):
        reads = ("image_path",)
        writes: ClassVar[Mapping[str, str]] = {"folder": "text"}

        def answer(self, row: Values) -> Values:
            return {"folder": row["image_path"]}

    for _ in range(2):  # nothing is known to be the same as before
        chunk = [Record(name, {"content": Unreachable(name)}) for name in "ab"]
        executor = make(Describe(), OfPath(journal=journal))
        annotated = annotate(executor, chunk)
        assert [record.error for record in annotated] == ["", ""]
        assert [record.values["text"] for record in annotated] == ["a, 40 px", "b, 40 px"]
        assert [record.values["folder"] for record in annotated] == ["a", "b"]
        executor.results.note_pictures(annotated)
        executor.results.confirm_pictures()
        assert keys(executor.results.changed_pictures(noted("a", "b"))) == ("", "ab")
    assert journal.sizes("embed_image") == [2, 2]


def test_a_file_is_changed_by_its_size_and_by_its_time(tmp_path: Path, cache: ResultCache) -> None:
    def record() -> Record:
        return Record(str(file), {"content": LocalFile(str(file))})

    def edit_size() -> None:
        file.write_text("22")

    def edit_time() -> None:
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))

    def remove() -> None:
        file.unlink()

    file = tmp_path / "a.png"
    file.write_text("1")
    edits: list[tuple[Callable[[], None], bool]] = [
        (lambda: None, False),
        (edit_size, True),
        (edit_time, True),
        (remove, True),
    ]
    for edit, is_changed in edits:
        before = record()
        hash_in(before, "content")
        cache.note_pictures([before])
        cache.confirm_pictures()
        edit()
        changed, unknown = cache.changed_pictures([record()])
        assert (len(changed), unknown) == (is_changed, [])
