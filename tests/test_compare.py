"""`vec-pipeline compare`: what it finds of a damaged model, its resume, its figures, and its page in a real browser."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests import test_gallery
from tests.conftest import EXAMPLES, PROJECT, Run
from tests.rows import failed, finished, write
from tests.test_gallery import HOSTILE, Page, requested
from vec_pipeline import load_annotations
from vec_pipeline.__main__ import UNUSABLE, main
from vec_pipeline.commands.compare import comparison, figures, worker
from vec_pipeline.commands.compare.differences import character_similarity, compared
from vec_pipeline.commands.compare.variants import MOST, Variant, names_of
from vec_pipeline.commands.run import ALL_FINE, INTERRUPTED
from vec_pipeline.config import load_config
from vec_pipeline.record import Record, UserError
from vec_pipeline.settings import settings_path

driver = test_gallery.driver

NOISE = 0.3  # of the standard deviation of each weight: the model still speaks
START_S = 60.0  # for a worker to begin, on a busy machine

Found = dict[str, Any]


def compare(*arguments: object) -> list[str]:
    """The arguments of `vec-pipeline compare`."""
    return ["compare", *map(str, arguments)]


def result_of(out: Path) -> Found:
    found: Found = json.loads((out / "compare.json").read_text())
    return found


def configurations(out: Path) -> dict[str, Found]:
    return {each["name"]: each for each in result_of(out)["configurations"]}


# --- The demo models against a damaged copy


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of the demo models whose vision-language model has noise in its weights."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("damaged")
    model = shutil.copytree(PROJECT / "models/demo/vision_language", folder / "model")
    weights, rng = load_file(model / "model.safetensors"), np.random.default_rng(0)
    for name, weight in weights.items():
        if weight.ndim > 1:
            noise = NOISE * weight.astype(np.float32).std() * rng.standard_normal(weight.shape)
            weights[name] = (weight + noise).astype(weight.dtype)
    with safe_open(model / "model.safetensors", "np") as file:
        metadata = file.metadata()
    save_file(weights, model / "model.safetensors", metadata)
    config = yaml.safe_load((PROJECT / "configs/demo.yaml").read_text())
    next(stage for stage in config["stages"] if stage["use"] == "describe")["model"] = str(model)
    (folder / "damaged.yaml").write_text(yaml.safe_dump(config))
    return folder / "damaged.yaml"


@pytest.fixture(scope="module")
def demo_arguments(damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("comparison") / "out"
    return compare(EXAMPLES, "--config", "demo", "--config", damaged, "--out", out)


@pytest.fixture(scope="module")
def demo_run(demo_arguments: list[str]) -> tuple[Run, Path]:
    """The comparison of both, and its folder."""
    command = [sys.executable, "-m", "vec_pipeline", *demo_arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=PROJECT, env=environment)
    return run, Path(demo_arguments[-1])


def test_a_damaged_model_loses(demo_run: tuple[Run, Path]) -> None:
    from scipy import stats

    run, out = demo_run
    assert run.returncode == ALL_FINE, run.stderr
    found = configurations(out)
    whole, broken = found["demo"], found["damaged"]
    tables = [load_annotations(each["csv"], vectors=False).set_index("image_path") for each in (whole, broken)]
    assert len(tables[0]) == len(tables[1]) == whole["pictures"] == broken["pictures"] == 25
    assert broken["words"] > 8  # it speaks
    assert broken["clip_difference"]["low"] > 0.02
    assert broken["flagged"] > whole["flagged"] + 0.5
    assert broken["text_confidence"] < whole["text_confidence"]
    expected = stats.ttest_rel(*(table["clip_score"].sort_index() for table in tables)).confidence_interval(0.95)
    assert broken["clip_difference"]["low"] == pytest.approx(expected.low)
    assert broken["clip_difference"]["high"] == pytest.approx(expected.high)
    assert whole["clip_score"]["mean"] == pytest.approx(tables[0]["clip_score"].mean())
    pictures = result_of(out)["pictures"]
    disagreements = [picture["disagreement"] for picture in pictures]
    assert disagreements == sorted(disagreements, reverse=True)
    assert disagreements[0] > 0.4
    for picture in (pictures[0], pictures[-1]):
        texts = [table.loc[picture["image_path"], "text"] for table in tables]
        assert picture["disagreement"] == pytest.approx(compared(texts)[0], abs=1e-4)
    assert result_of(out)["notes"] == ["CLIP scores are all by models/demo/clip."]


def test_each_configuration_is_measured(demo_run: tuple[Run, Path]) -> None:
    run, out = demo_run
    for found in configurations(out).values():
        assert 0.2 < found["peak_host_gb"] < 10
        assert 0 < found["images_per_second"] < found["images_per_second_without_loading"]
    lines = run.stdout.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.split() == ["demo", "damaged"]) :]
    labels = [line.partition("  ")[0] for line in table if line and not line.startswith(" ")]
    expected = ["pictures", "images/s with loading", "images/s without loading", "peak GB of the host"]
    assert labels[: len(expected)] == expected
    assert lines[-1] == f"open {out / 'index.html'}"
    assert "demo: 25 images: 0 done, 25 to do" in lines


def test_a_rerun_finds_nothing_to_do(
    demo_run: tuple[Run, Path], demo_arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    _, out = demo_run
    files = [*out.glob("*/*.csv"), *out.glob("*/*.cost.json"), *out.glob("*/*.log")]
    assert len(files) == 6
    before, found = [path.read_bytes() for path in files], configurations(out)
    assert main(demo_arguments) == ALL_FINE
    assert "damaged: 25 images: 25 done, 0 to do" in capfd.readouterr().out
    assert [path.read_bytes() for path in files] == before
    assert configurations(out) == found


# --- Runs of stages without models


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures, each of another width."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (20 + number, 20), (40 * number, 90, 60)).save(folder / f"{number}.png")
    return folder


def config(path: Path, say: str = "A picture", **options: object) -> Path:
    """A configuration with a captioner that says what it is told."""
    path.parent.mkdir(exist_ok=True)
    stage = {"use": "tests.scripted_stages.Say", "name": "say", "begin": say, **options}
    path.write_text(yaml.safe_dump({"stages": ["open_image", stage], "chunk_size": 1}))
    return path


@pytest.fixture
def two(tmp_path: Path) -> list[object]:
    """Two configurations, as arguments."""
    return ["--config", config(tmp_path / "a.yaml"), "--config", config(tmp_path / "b.yaml", "The image")]


def texts(csv: Path) -> list[str]:
    return list(load_annotations(csv)["text"])


def test_the_first_pictures_are_taken(tmp_path: Path, photos: Path, two: list[object]) -> None:
    out = tmp_path / "out"
    assert main(compare(photos, *two, "--out", out, "--limit", 2)) == ALL_FINE
    assert texts(out / "b/annotations.csv") == ["The image of 20 by 20 pixels.", "The image of 21 by 20 pixels."]
    assert main(compare(photos, *two, "--out", out, "--limit", 4)) == ALL_FINE  # goes on
    assert texts(out / "a/annotations.csv") == [f"A picture of {20 + i} by 20 pixels." for i in range(4)]
    assert main(compare(photos, *two, "--out", out, "--limit", 3)) == ALL_FINE
    assert [len(texts(out / f"{name}/annotations.csv")) for name in "ab"] == [4, 4]
    paths = {picture["image_path"] for picture in result_of(out)["pictures"]}
    assert paths == {str(photos / f"{number}.png") for number in range(3)}
    assert configurations(out)["a"]["pictures"] == 3


def test_its_own_thumbnails_are_no_pictures(tmp_path: Path, photos: Path, two: list[object]) -> None:
    for limit in (1, 100):
        assert main(compare(photos, *two, "--out", photos / "out", "--limit", limit)) == ALL_FINE
    assert len(list(photos.glob("out/gallery/thumbnails/*/*.webp"))) == 6
    assert len(texts(photos / "out/a/annotations.csv")) == 6


def started(arguments: Sequence[str], until: Callable[[], bool]) -> tuple[psutil.Popen, list[psutil.Process]]:
    """A comparison in a process of its own, once a condition has become true; and the processes that it has started."""
    process = psutil.Popen([sys.executable, "-m", "vec_pipeline", *arguments], cwd=PROJECT, stdout=subprocess.DEVNULL)
    end_s = time.monotonic() + START_S
    while not until():
        assert time.monotonic() < end_s
        assert process.poll() is None
        time.sleep(0.02)
    return process, process.children(recursive=True)


def rows_in(csv: Path) -> int:
    return csv.read_bytes().count(b"\n") - 1 if csv.exists() else 0


def test_resumes_after_a_kill_and_after_ctrl_c(tmp_path: Path, photos: Path) -> None:
    slow = [config(tmp_path / f"{name}.yaml", name, seconds_per_image=0.4) for name in "ab"]
    out = tmp_path / "out"
    arguments = compare(photos, "--config", slow[0], "--config", slow[1], "--out", out)
    first, second = out / "a/annotations.csv", out / "b/annotations.csv"
    process, children = started(arguments, lambda: rows_in(first) >= 2)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=START_S)
    assert not alive, "a worker goes on although nobody measures it"
    assert 2 <= rows_in(first) < 6
    killed = worker.read_cost(first)
    assert killed
    assert killed.seconds > 0.8  # of two pictures
    worker.write_cost(first, replace(killed, seconds=1000.0))  # as if it had taken long
    process, children = started(arguments, lambda: rows_in(second) >= 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(START_S) == INTERRUPTED
    assert not any(child.is_running() for child in children)
    assert rows_in(first) == 6
    assert 2 <= rows_in(second) < 6
    assert main([*arguments, "--set", "say.seconds_per_image=0"]) == ALL_FINE
    assert [sorted(texts(csv)) for csv in (first, second)] == [  # what was in flight at the kill comes last
        [f"{n} of {20 + i} by 20 pixels." for i in range(6)] for n in "ab"
    ]
    resumed = worker.read_cost(first)
    assert resumed
    assert 1000 < resumed.seconds < 1000 + START_S
    assert configurations(out)["a"]["images_per_second"] == pytest.approx(6 / resumed.seconds)


BROKEN = {
    "missing.yaml": ("", "missing.yaml cannot be read: No such file or directory"),
    "option.yaml": ("stages: [{use: open_image, size_px: 3}]", "option.yaml: unknown option 'open_image.size_px'"),
    "weights.yaml": (
        "stages: [open_image, {use: describe, model: ./no/such/model, device: cpu}]",
        "weights.yaml: memory: ./no/such/model: no such file or folder",
    ),
    "load.yaml": (
        "stages: [open_image, {use: tests.scripted_stages.Unloadable, name: caption}]",
        "load.yaml: caption: ",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_configuration_that_fails_is_named(
    name: str, tmp_path: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text, message = BROKEN[name]
    if text:
        (tmp_path / name).write_text(text)
    out = tmp_path / "out"
    options = ["--config", config(tmp_path / "a.yaml"), "--config", tmp_path / name, "--out", out]
    assert main(compare(photos, *options)) == UNUSABLE
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"vec-pipeline: {tmp_path / message}")
    is_found_before_the_first_picture = name != "load.yaml"
    assert (rows_in(out / "a/annotations.csv") == 0) == is_found_before_the_first_picture


def test_a_worker_that_is_killed_is_told(tmp_path: Path, photos: Path, two: list[object]) -> None:
    variant = Variant("a", tmp_path / "a.yaml", load_config(tmp_path / "a.yaml"), tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"a\.yaml: the worker ended with status -9: run the same command again"):
        comparison.check(variant, -9, "")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What is said to arguments that are refused."""
    assert main(compare(*arguments)) == UNUSABLE
    return capsys.readouterr().err.removeprefix("vec-pipeline: ").strip()


def test_refusals(tmp_path: Path, photos: Path, two: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    a, out = tmp_path / "a.yaml", tmp_path / "out"
    (tmp_path / "link.yaml").symlink_to(a)
    few = "give pictures, and --config twice or more"
    assert refusal(capsys, photos, "--config", a, "--out", out) == few
    assert refusal(capsys, *two, "--out", out) == few
    twice = refusal(capsys, photos, "--config", a, "--config", tmp_path / "link.yaml", "--out", out)
    assert twice == f"--config {tmp_path / 'link.yaml'} is given twice: compare different configurations"
    many = [word for number in range(MOST + 1) for word in ("--config", config(tmp_path / f"{number}.yaml"))]
    assert refusal(capsys, photos, *many, "--out", out).startswith("10 configurations are given, and at most 9")
    assert refusal(capsys, photos, *two, "--out", photos).startswith(f"{photos} is not empty and not a comparison")
    assert refusal(capsys, photos, *two, "--out", a) == f"{a} is not a folder: name one with --out"
    votes = refusal(capsys, photos, "--votes", a, "--out", out)
    assert votes == "--votes counts votes on answers that are there: leave SOURCE and --config out"
    assert not out.exists()


def test_settings_that_have_changed_are_refused(
    tmp_path: Path, photos: Path, two: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    written(out, {"a": [finished(0)], "b": [finished(0)]}, ["clip-a", "clip-b"])
    line = refusal(capsys, photos, *two, "--out", out)
    csv = out / "a/annotations.csv"
    assert line.startswith(f"{tmp_path / 'a.yaml'}: {csv} was made with other settings (")
    assert line.endswith(f"embed_image): restore them, name another --out, or delete {csv.parent}")
    assert len(texts(csv)) == 1


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/x/demo.yaml", "/x/small.v2.yaml"], ["demo", "small.v2"]),
        (["/a/demo.yaml", "/b/demo.yaml"], ["a-demo", "b-demo"]),
        (["/a/demo.yaml", "/b/demo.yaml", "/c/other.yaml"], ["a-demo", "b-demo", "c-other"]),
        (["/a/x/demo.yaml", "/b/x/demo.yaml"], ["a-x-demo", "b-x-demo"]),
        (["/a/demo.yaml", "/a/demo.yml"], None),
        (["/a/gallery.yaml", "/b/demo.yaml"], ["a-gallery", "b-demo"]),  # the page has a folder of that name
        (["/a/...yaml", "/b/demo.yaml"], ["a-..", "b-demo"]),
    ],
)
def test_names(paths: list[str], names: list[str] | None) -> None:
    if names:
        assert names_of(list(map(Path, paths))) == names
    else:
        with pytest.raises(UserError, match=r"/a/demo.yaml and /a/demo.yml cannot be told apart"):
            names_of(list(map(Path, paths)))


def test_configurations_of_one_name_have_their_own_rows(tmp_path: Path, photos: Path) -> None:
    paths = [config(tmp_path / "a/demo.yaml", "First"), config(tmp_path / "b/demo.yaml", "Second")]
    options = ["--limit", 1, "--set", "open_image.max_size_px=10"]  # of both
    out = tmp_path / "out"
    assert main(compare(photos, "--config", paths[0], "--config", paths[1], "--out", out, *options)) == ALL_FINE
    assert texts(out / "a-demo/annotations.csv") == ["First of 10 by 10 pixels."]
    assert texts(out / "b-demo/annotations.csv") == ["Second of 10 by 10 pixels."]


# --- Figures


TRUSTED = {"text_confidence": "number", "clip_score": "number", "flags": "text", "read_text": "text"}
CLIP_STAGES = "stages: [{use: open_image}, {use: embed_image, model: clip-a}, {use: structure, name: ask, model: m}]"


def written(
    out: Path, rows: dict[str, list[Record]], clips: Sequence[str] = (), columns: Sequence[str] = tuple(TRUSTED)
) -> Found:
    """A comparison of rows without a run; clips: the model of each configuration's CLIP."""
    out.mkdir(exist_ok=True)
    variants = []
    for name, records in rows.items():
        csv = out / name / "annotations.csv"
        csv.parent.mkdir()
        stages = {"embed_image": {"use": "embed_image", "model": clips[len(variants)]}} if clips else {}
        declared = {column: TRUSTED[column] for column in columns}
        settings_path(csv).write_text(yaml.safe_dump({"columns": declared, "sources": [], "stages": stages}))
        write(csv, records, columns)
        (out / f"{name}.yaml").write_text(CLIP_STAGES)
        variants.append(variant_in(out, name))
    return comparison.write(variants, out, 100)


def variant_in(out: Path, name: str) -> Variant:
    path = out / f"{name}.yaml"
    return Variant(name, path, load_config(path), out / name / "annotations.csv")


def test_figures_are_those_of_the_rows(tmp_path: Path) -> None:
    def row(number: int, text: str, image_text: str, read_text: str, **values: object) -> Record:
        return finished(number, text=text, image_text=image_text, read_text=read_text, **values)

    rows = {
        "one": [
            row(0, "two words", "SALE", "sale", clip_score=0.2, text_confidence=0.5, flags="a b"),
            row(1, "three of them", "", "", clip_score=0.4, text_confidence=0.7),
            row(2, "one", "ab", "abcd", clip_score=0.3, text_confidence=""),
            failed(3, "ask: CutAnswer: the JSON ends"),
            failed(4, "open_image: OSError: truncated"),
        ],
        "two": [finished(number, clip_score=0.1) for number in range(5)],
    }  # fmt: skip
    found = written(tmp_path / "out", rows, ["clip-a", "clip-a"])
    one, two = found["configurations"]
    assert one["pictures"] == 5
    assert one["words"] == 2
    assert one["text_confidence"] == pytest.approx(0.6)
    assert one["flagged"] == 1 / 5
    assert (one["json_errors"], one["row_errors"]) == (1, 2)
    assert one["text_agreement"] == pytest.approx((1 + 2 * 2 / 6) / 2)  # a picture without text does not count
    half = 4.302653 * 0.1 / 3**0.5  # Student's t for two degrees of freedom
    assert one["clip_score"] == {"number": 3} | {
        key: pytest.approx(value, abs=1e-6) for key, value in (("mean", 0.3), ("low", 0.3 - half), ("high", 0.3 + half))
    }
    assert two["clip_difference"]["mean"] == pytest.approx(0.2)
    assert two["clip_difference"]["number"] == 3
    assert found["notes"] == ["CLIP scores are all by clip-a."]


def test_scores_of_different_clips_are_not_subtracted(tmp_path: Path) -> None:
    rows = {name: [finished(number) for number in range(3)] for name in ("one", "two", "three")}
    found = written(tmp_path / "out", rows, ["clip-a", "clip-b", "clip-a"])
    _, two, three = found["configurations"]
    assert two["clip_difference"] is None
    assert three["clip_difference"]["mean"] == 0
    (note,) = found["notes"]
    assert note.endswith("cannot be compared: their difference is left out (one: clip-a, two: clip-b, three: clip-a).")
    unknown = written(tmp_path / "unknown", {name: [finished(0), finished(1)] for name in "ab"})
    assert unknown["configurations"][1]["clip_difference"] is None
    assert unknown["notes"][0].endswith("their difference is left out (a: unknown, b: unknown).")


def test_missing_columns_leave_cells_empty(tmp_path: Path) -> None:
    bare = [Record(f"/photos/{number:06}.jpg", {"text": "a car"}) for number in range(2)]
    found = written(tmp_path / "out", {"one": bare, "two": bare}, columns=())
    for each in found["configurations"]:
        assert {key for key, value in each.items() if value is None} >= {
            "text_confidence", "clip_score", "flagged", "text_agreement"
        }  # fmt: skip
    labels = [label for label, *_ in figures.table_of(found["configurations"])]
    assert labels == ["", "pictures", "words of text", "JSON errors", "rows with an error"]
    assert found["notes"] == []


def test_only_pictures_with_a_row_of_each_are_compared(tmp_path: Path) -> None:
    rows = {"one": [finished(number) for number in range(4)], "two": [finished(number) for number in range(2, 7)]}
    found = written(tmp_path / "out", rows, ["clip-a", "clip-a"])
    assert {picture["image_path"] for picture in found["pictures"]} == {"/photos/000002.jpg", "/photos/000003.jpg"}
    assert found["notes"][1:] == ["Only the pictures that every configuration has a row of are compared: 2."]
    assert written(tmp_path / "none", {"one": [finished(0)], "two": [finished(1)]})["pictures"] == []


def test_the_order_of_answers_stays(tmp_path: Path) -> None:
    def orders() -> list[tuple[str, list[int]]]:
        script = (tmp_path / "out/gallery/data.js").read_text()
        pictures = json.loads(script.removeprefix("gallery.start(").removesuffix(");\n"))["pictures"]
        return [(each["id"], [answer["configuration"] for answer in each["answers"]]) for each in pictures]

    rows = {name: [finished(number) for number in range(20)] for name in "ab"}
    written(tmp_path / "out", rows)
    before = orders()
    assert {tuple(order) for _, order in before} == {(0, 1), (1, 0)}
    variants = [variant_in(tmp_path / "out", name) for name in rows]
    comparison.write(variants, tmp_path / "out", 100)
    assert orders() == before


def test_wilson() -> None:
    assert figures.wilson(7, 10) == pytest.approx((0.3967781, 0.8922087), abs=1e-7)  # of R's binom.wilson
    low, high = figures.wilson(0, 5)
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(0.4344825, abs=1e-7)


def test_words_that_differ_are_marked() -> None:
    disagreement, (one, two) = compared(["A red car on\na road.", "a blue car on a road"])
    assert disagreement == pytest.approx(1 / 6)
    assert one == [("A", False), (" ", False), ("red", True), (" car on\na road.", False)]
    assert "".join(text for text, _ in two) == "a blue car on a road"
    assert [text for text, is_marked in two if is_marked] == ["blue"]
    assert compared(["", ""])[0] == 0
    assert compared(["", "a car"]) == (1, [[], [("a car", True)]])
    for different in range(3):
        colours = ["green" if number == different else "red" for number in range(3)]
        three, parts = compared([f"a {colour} car" for colour in colours])
        assert three == pytest.approx(2 / 9)  # of three pairs, two differ in one word of three
        assert [text for each in parts for text, is_marked in each if is_marked] == colours
    assert compared(["dog " + "the cat " * 150, "the cat " * 150])[0] == pytest.approx(1 / 601)


def test_text_is_compared_by_characters() -> None:
    assert character_similarity("Big  SALE", "big sale\n") == 1
    assert character_similarity("SALE", "SALT") == 0.75
    assert character_similarity("", "SALE") == 0


LOG = """\
2026-01-01 10:00:00,000 INFO vec_pipeline: run: of before
2026-01-01 10:00:09,000 INFO vec_pipeline: done
2026-01-01 11:00:00,000 INFO vec_pipeline: run: Config(
2026-01-01 11:00:01,000 INFO vec_pipeline.batches: open_image: a batch of 8
2026-01-01 11:00:11,500 INFO vec_pipeline.memory: loaded describe in 10.0 s: 0.00 GB GPU
2026-01-01 11:00:13,500 INFO vec_pipeline.batches: describe: a batch of 8
2026-01-01 11:00:14,500 INFO vec_pipeline.memory: loaded structure in 14.0 s: 0.00 GB GPU
Traceback 1999-01-01 00:00:00,000
2026-01-01 12:00:00,000 INFO vec_pipeline: run: Config(
2026-01-01 12:00:04,250 WARNING vec_pipeline.batches: out of memory
"""


def test_time_without_loading_is_read_from_the_log(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(LOG)
    start = LOG.index("2026-01-01 11")
    assert worker.work_seconds(path, start) == pytest.approx(1 + 0.5 + 2 + 4.25)
    assert worker.work_seconds(path, 0) == pytest.approx(9 + 1 + 0.5 + 2 + 4.25)
    assert worker.work_seconds(path, len(LOG)) is None
    assert worker.work_seconds(tmp_path / "none.log", 0) is None


def test_gpu_memory_is_what_came_on_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi, used = tmp_path / "nvidia-smi", tmp_path / "used"
    smi.write_text(f"#!/bin/sh\ncat {used}\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    used.write_text("1000\n3000\n")
    meter = worker.Meter(tmp_path / "a.csv", 0)
    (tmp_path / "a.log").write_text("run")
    child = subprocess.Popen([sys.executable, "-c", "import time; x = bytearray(200_000_000); time.sleep(60)"])
    meter.watch(child.pid)
    used.write_text("1000\n7000\n")
    end_s = time.monotonic() + START_S
    while not ((cost := worker.read_cost(tmp_path / "a.csv")) and cost.peak_gpu_gb and cost.peak_host_gb > 0.2):
        assert time.monotonic() < end_s
        time.sleep(0.05)
    used.write_text("1000\n2000\n")
    while (later := worker.read_cost(tmp_path / "a.csv")) and later.seconds < cost.seconds + 3 * worker.INTERVAL_S:
        assert time.monotonic() < end_s
        time.sleep(0.05)
    child.kill()
    child.wait()
    meter.close()
    cost = worker.read_cost(tmp_path / "a.csv")
    assert cost
    assert cost.peak_gpu_gb == pytest.approx(4000 * 2**20 / 1e9)
    assert 0.2 < cost.peak_host_gb < 0.5


# --- The page


class Comparison(Page):
    """A browser with the page of a comparison open."""

    def open(self, state: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}#{state}")
        self.until(lambda: self.find("#pictures").is_displayed())

    def count(self) -> str:
        return self.text("#place")

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def answers(self) -> list[str]:
        """Names of the configurations, in the order of the answers."""
        return self.script("return data.pictures[current].answers.map(a => data.names[a.configuration])")

    def names_shown(self) -> list[str]:
        return self.texts(".answer h3 bdi")

    def key_of(self, name: str) -> str:
        return str(self.answers().index(name) + 1)


EVIL = HOSTILE[0]  # as the name of a configuration


def answers_of(name: str) -> list[Record]:
    """Five pictures that do not exist, and the hostile texts: each a file name, an answer, a category and an error."""
    about = "A red car" if name == "good" else "A blue boat on a lake"
    plain = [finished(number, text=f"{about}, number {number}.", keywords=name) for number in range(5)]
    for number, text in enumerate(HOSTILE):
        record = finished(100 + number, text=f"{text} {name}", categories=text, keywords=f"{name}, {text}", flags=text)
        record.key = f"/photos/{text.replace('/', '')[:60]}.jpg"
        record.error = f"say: ValueError: {text}"
        plain.append(record)
    return plain


@pytest.fixture
def page(driver: webdriver.Chrome, tmp_path: Path) -> Iterator[Comparison]:
    """The page of two configurations; when a test ends, nothing may stand in the console, and no network was asked."""
    written(tmp_path / "out", {name: answers_of(name) for name in ("good", EVIL)})
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    yield Comparison(driver, tmp_path / "out")
    assert [entry["message"] for entry in driver.get_log("browser")] == []
    schemes = ("file://", "data:", "about:", "blob:")
    assert [address for address in requested(driver) if not address.startswith(schemes)] == []
    assert driver.execute_script("return window.hacked") is None


def test_votes_by_keyboard_are_kept_and_exported(
    page: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page.open()
    total = 5 + len(HOSTILE)
    assert page.text("#place") == f"Picture 1 of {total}"
    assert page.text("#rates") == "No votes yet."
    assert page.names_shown() == []  # blind until the vote
    shuffled = set()
    for number in range(5):
        shuffled.add(tuple(page.answers()))
        page.press("=" if number == 4 else page.key_of("good"))
        assert page.names_shown() == page.answers()
        page.press("j" if number % 2 else Keys.ARROW_RIGHT)
        assert page.focused() == "place"
        assert page.names_shown() == []
    assert len(shuffled) == 2  # neither is always the first
    assert page.text("#place") == f"Picture 6 of {total}"
    low, high = figures.wilson(4.5, 5)
    rates = page.script("return ratesText()").replace("\u00a0", " ")
    assert f"good 90.0 % ({100 * low:.1f} % to {100 * high:.1f} %), {EVIL} 10.0 %" in rates
    assert rates.endswith("5 votes, 1 tie.")
    place = page.script("return location.hash")
    page.open(place.removeprefix("#"))  # a reload
    assert page.text("#place") == f"Picture 6 of {total}"
    assert page.script("return ratesText()").replace("\u00a0", " ") == rates
    page.press("k")
    assert page.names_shown() == page.answers()
    assert page.texts("#vote [aria-pressed=true]") == ["= Tie"]
    page.press("=")  # takes it back
    assert page.texts("#vote [aria-pressed=true]") == []
    page.press("=", Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.HOME)
    page.find("#export").click()
    file = tmp_path / "votes.json"
    page.until(file.exists)
    assert main(compare("--votes", file, "--out", tmp_path / "out")) == ALL_FINE
    printed = capsys.readouterr().out
    assert "5 votes, 1 of them a tie" in printed
    good, evil = result_of(tmp_path / "out")["configurations"]
    assert good["win_rate"] == {"number": 5, "mean": 0.9, "low": pytest.approx(low), "high": pytest.approx(high)}
    assert evil["win_rate"]["mean"] == pytest.approx(0.1)
    assert f"90.0% ({100 * low:.1f}% to {100 * high:.1f}%)" in printed
    exported = json.loads(file.read_text())
    assert {vote["winner"] for vote in exported["votes"]} == {"good", None}
    assert exported["configurations"] == ["good", EVIL]


def test_votes_on_other_answers_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = tmp_path / "out", tmp_path / "votes.json"
    ids = [
        each["id"]
        for each in written(out, {"a": [finished(0), finished(1)], "b": [finished(0), finished(1)]})["pictures"]
    ]
    votes = [{"id": ids[0], "winner": "a"}, {"id": ids[1], "winner": "c"}, {"id": "gone", "winner": None}]
    file.write_text(json.dumps({"votes": votes}))
    assert main(compare("--votes", file, "--out", out)) == ALL_FINE
    assert "2 votes on other answers not counted" in capsys.readouterr().out
    assert result_of(out)["votes"] == [{"id": ids[0], "winner": "a"}]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"votes": [{"id": ids[0], "winner": "b"}, {"id": ids[1], "winner": None}]}))
    assert main(compare("--votes", file, "--votes", other, "--out", out)) == ALL_FINE
    assert "3 votes, 1 of them a tie" in capsys.readouterr().out
    assert [each["win_rate"]["mean"] for each in result_of(out)["configurations"]] == [0.5, 0.5], "of two voters"
    assert main(compare("--votes", file, "--out", out)) == ALL_FINE
    capsys.readouterr()
    file.write_text(json.dumps({"votes": votes[1:]}))
    assert refusal(capsys, "--votes", file, "--out", out).startswith(f"{file} holds no vote on the answers in {out}")
    for wrong in ("[1]", "{", '{"votes": [{"id": [], "winner": 1}]}', '{"votes": 3}'):
        file.write_text(wrong)
        assert refusal(capsys, "--votes", file, "--out", out).startswith(f"{file} holds no votes")
    assert refusal(capsys, "--votes", file, "--out", tmp_path / "none").startswith(f"{tmp_path}/none holds no finished")
    variants = [variant_in(out, name) for name in "ab"]
    assert comparison.write(variants, out, 100)["votes"] == [{"id": ids[0], "winner": "a"}]  # a rerun keeps them
    assert comparison.write(variants[::-1], out, 100)["votes"] == []  # the answers have changed places: other ids


def test_differences_are_marked_and_said(page: Comparison) -> None:
    page.open()
    page.script("show(data.pictures.findIndex(picture => picture.image_path === '/photos/000000.jpg'))")
    texts = page.script("return [...document.querySelectorAll('.answer .text')].map(e => e.textContent)")
    by_name = dict(zip(page.answers(), texts, strict=True))
    assert by_name["good"].startswith("A [differs: red car,] number")
    assert by_name[EVIL].startswith("A [differs: blue boat on a lake,] number")
    facts = page.script("return [...document.querySelectorAll('.answer dd')].map(e => e.textContent)")
    assert sorted(facts) == sorted(["vehicle", "SALE"] * 2 + [f"[differs: {name}]" for name in page.answers()])
    style = page.script("return getComputedStyle(document.querySelector('mark')).textDecorationLine")
    assert style == "underline"


def test_buttons_do_what_keys_do(page: Comparison) -> None:
    page.open()
    page.script("document.getElementById('next').focus()")
    page.press(Keys.ENTER, Keys.ENTER)
    assert page.text("#place").startswith("Picture 3 ")
    assert page.focused() == "next"
    assert page.text("#said").startswith("Picture 3 ")  # for a screen reader
    outline = page.script("return getComputedStyle(document.activeElement).outlineWidth")
    assert float(outline.removesuffix("px")) >= 2
    page.script("document.querySelector('#vote button').focus()")
    page.press(Keys.SPACE)
    first, second = page.answers()
    assert page.text("#said") == f"Vote for answer 1: answer 1 is {first}, answer 2 is {second}"
    assert page.find("#said").aria_role == "status"
    assert page.script("return document.activeElement.getAttribute('aria-pressed')") == "true"
    page.find("#shortcuts").click()
    page.press("2", "j")
    assert page.text("#place").startswith("Picture 3 ")
    assert page.texts("#vote [aria-pressed=true]") == ["1 Answer 1"]
    page.find("#next").click()
    assert page.names_shown() == []
    page.find("#blind").click()
    assert page.names_shown() == page.answers()


def test_text_is_never_html(page: Comparison) -> None:
    page.open()
    seen = set()
    for _ in range(5 + len(HOSTILE)):
        page.press("1")
        seen |= set(page.script("return data.pictures[current].answers.flatMap(a => a.facts.map(f => f[1]))"))
        width = page.script("return [document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1]  # nor does a long word burst the page
        page.press("j")
    assert set(HOSTILE) <= seen
    assert page.script("return document.querySelectorAll('[onerror], [onload], svg[onload], img[src=x]').length") == 0


@pytest.mark.parametrize("width_px", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(page: Comparison, scheme: str, width_px: int) -> None:
    """axe-core finds nothing, the contrast of text included, before and after a vote."""
    axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    metrics = {"width": width_px, "height": 860, "deviceScaleFactor": 1, "mobile": width_px == 400}
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.open()
        page.script(axe)
        for keys in ("", "1", "jjjjj2"):
            page.press(*keys)
            found = page.driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
            assert {(each["id"], each["nodes"][0]["html"]) for each in found["violations"]} == set(), keys
            assert page.script("return document.documentElement.scrollWidth <= innerWidth"), keys
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_picture_itself_is_shown(driver: webdriver.Chrome, demo_run: tuple[Run, Path]) -> None:
    page = Comparison(driver, demo_run[1])
    page.open()
    page.until(lambda: page.script("return document.querySelector('#picture img')?.naturalWidth") == 448)
    assert page.find("#picture img").get_attribute("src").startswith(EXAMPLES.as_uri())
    assert page.texts("#figures thead th") == ["demo", "damaged"]
    assert driver.get_log("browser") == []
