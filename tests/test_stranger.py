"""What a stranger meets who writes a stage or changes a configuration: real runs, and what they say."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import EXAMPLES, PROJECT, Run
from vec_pipeline import load_annotations

OPEN = "{use: open_image, max_size_px: 112}"
MEASURE, HALF = "{use: tests.odd_stages.Measure, name: measure}", "{use: tests.odd_stages.MeasureHalf, name: half}"
SILENT = "{use: tests.odd_stages.Silent, name: describe}"
EMBED_TEXT = "{use: embed_text, model: models/demo/sentences}"
STRUCTURE = "{use: structure, model: models/demo/llama/llama.gguf, batch_size: 4}"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted(EXAMPLES.glob("*.png"))[:3]:
        shutil.copy(path, folder)
    return folder


def run(folder: Path, stages: list[str], *options: str, sources: Sequence[Path] = ()) -> Run:
    """Run stages over `folder`/photos, or over `sources`, into `folder`/out/a.csv."""
    config = folder / "config.yaml"
    config.write_text("device: cpu\nstages:\n" + "".join(f"- {stage}\n" for stage in stages))
    arguments = [*(sources or [folder / "photos"]), "--config", config, "--output", folder / "out" / "a.csv", *options]
    return subprocess.run(
        [sys.executable, "run.py", *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True, timeout=240
    )


def fine(run: Run) -> Run:
    assert run.returncode == 0, run.stdout + run.stderr
    return run


def rows(folder: Path) -> pd.DataFrame:
    return load_annotations(folder / "out" / "a.csv")


def assert_measured(row: "pd.Series[object]") -> None:
    assert row["width_px"] == 112.0
    assert row["half_px"] == 56.0
    assert row["boxes"] == [{"label": 'a "thing", or two', "box": [0, 0.5, 112, 112]}]
    assert row["facts"] == {"mode": "RGB", "none": None}
    np.testing.assert_array_equal(row["corners"], [[0.0, 0.0], [112.0, 112.0]])
    histogram = row["histogram"]
    assert histogram.dtype.kind == "i"
    assert histogram.shape == (256,)
    assert int(histogram.sum()) == 112 * 112 * 2**33
    assert row["original"] == str(PROJECT / "tests" / "odd_stages.py")


def test_columns_of_every_type_survive_the_csv_and_the_result_cache(photos: Path, tmp_path: Path) -> None:
    fine(run(tmp_path, [OPEN, MEASURE, HALF]))
    first = rows(tmp_path)
    assert len(first) == 3
    for _, row in first.iterrows():
        assert_measured(row)
    (tmp_path / "out" / "a.csv").unlink()
    fine(run(tmp_path, [OPEN, MEASURE, HALF]))  # from the result cache
    for _, row in rows(tmp_path).iterrows():
        assert_measured(row)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("{use: tests.odd_stages.Misspelt, name: light}", ["light", "'brigthness'", "brightness", "fix the stage"]),
        ("{use: tests.odd_stages.Old, name: old}", ["old", "`writes` is a tuple"]),
        ("{use: embed_text, model: x, read: {txet: text}}", ["embed_text.read", "'txet'", "did you mean 'text'"]),
        ("{use: embed_text, model: x, name: a/b}", ["'a/b'", "not a name"]),
        ("{use: tests.odd_stages.Measure, name: m, write: {boxes: error}}", ["m", "'error'", "`write:`"]),
        ("{use: tests.odd_stages.Measure, name: m, write: {boxes: text_vector}}", ["text_vector", "json", "vector"]),
    ],
)
def test_a_mistake_in_a_stage_is_one_sentence_and_no_row(
    stage: str, words: list[str], photos: Path, tmp_path: Path
) -> None:
    failed = run(tmp_path, [OPEN, stage])
    assert failed.returncode == 2, failed.stdout
    sentence = failed.stderr.strip().splitlines()[-1]
    assert sentence.startswith("run.py: ")
    assert "Traceback" not in failed.stderr
    for word in words:
        assert word in sentence
    csv = tmp_path / "out" / "a.csv"
    assert not csv.exists() or csv.read_text().count("\n") == 1


def test_one_stage_twice_under_two_names_shares_its_model_and_results(photos: Path, tmp_path: Path) -> None:
    again = EMBED_TEXT.replace("}", ", name: embed_title, read: {text: title}, write: {text_vector: title_vector}}")
    title = "{use: tests.odd_stages.Silent, name: title, answer: A red car., write: {text: title}}"
    fine(run(tmp_path, [OPEN, SILENT.replace("}", ", answer: A red car.}"), EMBED_TEXT, title, again]))
    for _, row in rows(tmp_path).iterrows():
        np.testing.assert_array_equal(row["text_vector"], row["title_vector"])
    log = (tmp_path / "out" / "a.log").read_text()
    assert log.count("loaded embed_t") == 1
    assert "embed_text: a batch of 1" in log
    assert "embed_title: a batch" not in log, "its inputs are equal, and so are its results"
    once = run(tmp_path, [OPEN, SILENT, EMBED_TEXT, EMBED_TEXT], "--output", str(tmp_path / "b.csv"))
    assert once.returncode == 2
    assert "two are called embed_text" in once.stderr


def test_a_blank_text_never_reaches_the_language_model(photos: Path, tmp_path: Path) -> None:
    fine(run(tmp_path, [OPEN, SILENT, EMBED_TEXT, STRUCTURE, "flag"]))
    for _, row in rows(tmp_path).iterrows():
        assert [row[name] for name in ("description", "categories", "keywords", "image_text", "error")] == [""] * 5
        assert row["text_vector"] is None
        assert "empty_text" in row["flags"].split()
    assert "empty_text" not in run_flags(tmp_path, "A red car.")


def run_flags(folder: Path, answer: str) -> list[str]:
    (folder / "out" / "a.csv").unlink()
    fine(run(folder, [OPEN, SILENT.replace("}", f", answer: {answer}}}"), "flag"]))
    return str(rows(folder)["flags"].iloc[0]).split()


def test_a_stage_whose_columns_the_csv_lacks_is_named_and_not_run(photos: Path, tmp_path: Path) -> None:
    shutil.copy(sorted(photos.iterdir())[0], tmp_path / "later.png")
    fine(run(tmp_path, [OPEN, SILENT]))
    shutil.move(tmp_path / "later.png", photos)
    resumed = fine(run(tmp_path, [OPEN, SILENT, MEASURE, HALF]))
    assert "has no column width_px, boxes" in resumed.stdout
    assert "--refresh" in resumed.stdout
    assert "measure: a batch" not in (tmp_path / "out" / "a.log").read_text()
    assert "width_px" not in rows(tmp_path).columns
    fine(run(tmp_path, [OPEN, SILENT, MEASURE, HALF], "--refresh"))
    table = rows(tmp_path)
    assert len(table) == 4
    for _, row in table.iterrows():
        assert_measured(row)
    assert "nothing to refresh" in fine(run(tmp_path, [OPEN, SILENT, MEASURE, HALF], "--refresh")).stdout


def test_a_version_that_was_raised_is_other_settings(photos: Path, tmp_path: Path) -> None:
    """As if the author of a stage had changed what its code returns."""
    fine(run(tmp_path, [OPEN, MEASURE, HALF]))
    settings = tmp_path / "out" / "a.settings.yaml"
    text = settings.read_text()
    settings.write_text(text.replace("version: 1", "version: 0"))
    assert text != settings.read_text()
    refused = run(tmp_path, [OPEN, MEASURE, HALF])
    assert refused.returncode == 2
    assert "measure.version" in refused.stderr


def test_several_sources_of_which_two_name_one_picture(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    shutil.copy(sorted(EXAMPLES.glob("*.png"))[5], other)
    first = sorted(photos.iterdir())[0]
    run_ = fine(run(tmp_path, [OPEN, MEASURE], sources=[photos, other, first]))
    assert "4 images: 0 done, 4 to do" in run_.stdout
    assert "holds 4 rows" in run_.stdout
    assert sorted(rows(tmp_path)["image_path"]) == sorted(map(str, [*photos.iterdir(), other]))


def test_a_picture_edited_in_place_is_counted_and_refreshed(photos: Path, tmp_path: Path) -> None:
    stages = [OPEN, "{use: embed_image, model: models/demo/clip}"]
    fine(run(tmp_path, stages))
    before = rows(tmp_path).set_index("image_path")["image_vector"]
    first, second, _ = sorted(photos.iterdir())
    shutil.copy(second, first)
    again = fine(run(tmp_path, stages))
    assert "1 picture changed since" in again.stdout
    assert "--refresh" in again.stdout
    assert "nothing to refresh" not in fine(run(tmp_path, stages, "--refresh")).stdout
    after = rows(tmp_path).set_index("image_path")["image_vector"]
    np.testing.assert_allclose(after[str(first)], before[str(second)], atol=1e-6)
    np.testing.assert_array_equal(after[str(second)], before[str(second)])
    assert "changed since" not in fine(run(tmp_path, stages)).stdout
    assert "nothing to refresh" in fine(run(tmp_path, stages, "--refresh")).stdout


def test_a_refresh_that_is_killed_forgets_no_changed_picture(photos: Path, tmp_path: Path) -> None:
    """Killed after the new rows are made, and before they take the place of the old ones."""
    fine(run(tmp_path, [OPEN, MEASURE]))
    first, second, _ = sorted(photos.iterdir())
    shutil.copy(second, first)
    die = """if True:
        import os, runpy, sys
        from vec_pipeline.sinks.csv_file import CsvFile
        CsvFile.replace_rows = lambda self: os._exit(137)
        runpy.run_path("run.py", run_name="__main__")
    """
    arguments = [photos, "--config", tmp_path / "config.yaml", "--output", tmp_path / "out" / "a.csv", "--refresh"]
    killed = subprocess.run(
        [sys.executable, "-c", die, *map(str, arguments)], cwd=PROJECT, capture_output=True, timeout=240
    )
    assert killed.returncode == 137
    assert "1 picture changed since" in fine(run(tmp_path, [OPEN, MEASURE])).stdout


def test_a_picture_touched_but_equal_keeps_its_row(photos: Path, tmp_path: Path) -> None:
    fine(run(tmp_path, [OPEN, MEASURE]))
    before = (tmp_path / "out" / "a.csv").read_bytes()
    for path in photos.iterdir():
        path.touch()
    assert "3 pictures changed" in fine(run(tmp_path, [OPEN, MEASURE])).stdout
    assert "0 rows changed, 3 unchanged" in fine(run(tmp_path, [OPEN, MEASURE], "--refresh")).stdout
    assert (tmp_path / "out" / "a.csv").read_bytes() == before
    assert "nothing to refresh" in fine(run(tmp_path, [OPEN, MEASURE], "--refresh")).stdout


def test_rows_of_pictures_that_are_gone_are_said_and_dropped_on_request(photos: Path, tmp_path: Path) -> None:
    broken = photos / "broken.png"
    broken.write_bytes(b"no picture")
    assert run(tmp_path, [OPEN, MEASURE]).returncode == 1
    broken.unlink()
    sorted(photos.iterdir())[0].unlink()
    content = (tmp_path / "out" / "a.csv").read_bytes()
    retried = run(tmp_path, [OPEN, MEASURE], "--retry-errors")
    assert retried.returncode == 1
    assert "1 row with an error: the picture is not in the source" in retried.stdout
    assert "--prune" in retried.stdout
    assert (tmp_path / "out" / "a.csv").read_bytes() == content
    assert "2 rows to drop" in run(tmp_path, [OPEN, MEASURE], "--prune", "--dry-run").stdout
    assert (tmp_path / "out" / "a.csv").read_bytes() == content
    pruned = fine(run(tmp_path, [OPEN, MEASURE], "--prune"))
    assert "2 rows to drop" in pruned.stdout
    assert "holds 2 rows" in pruned.stdout
    assert sorted(rows(tmp_path)["image_path"]) == sorted(map(str, photos.iterdir()))


def test_rows_of_pictures_of_another_folder_are_not_dropped(photos: Path, tmp_path: Path) -> None:
    fine(run(tmp_path, [OPEN, MEASURE]))
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(sorted(EXAMPLES.glob("*.png"))[5], other)
    assert "0 rows to drop" in fine(run(tmp_path, [OPEN, MEASURE], "--prune", sources=[other])).stdout
    assert len(rows(tmp_path)) == 4
