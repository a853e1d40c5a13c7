"""The README says what is there: its commands, options, columns and exit statuses. docs/stages.md runs as printed."""

import os
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import EXAMPLES, PROJECT, Run
from vec_pipeline import commands, load_annotations
from vec_pipeline.__main__ import UNUSABLE
from vec_pipeline.commands.run import ALL_FINE, INTERRUPTED, SOME_ERRORS
from vec_pipeline.config import load_config
from vec_pipeline.record import COLUMNS

README = (PROJECT / "README.md").read_text(encoding="utf-8")
STAGES_PAGE = (PROJECT / "docs" / "stages.md").read_text(encoding="utf-8")


def test_make_targets_exist_and_are_listed_by_help() -> None:
    named = set(re.findall(r"\bmake ([a-z][a-z-]+)\b(?!,)", README)) - {"cmake", "git"}
    listed = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    targets = {line.split()[0] for line in listed.splitlines()}
    assert {"run", "test", "check", "help"} <= named
    assert named <= targets
    assert {"clean", "clean-venv", "demo-models"} <= targets


def test_every_option_is_in_the_readme() -> None:
    usage = subprocess.run(
        [sys.executable, "run.py", "--help"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    options = set(re.findall(r"--[a-z-]+", usage)) - {"--help"}
    assert len(options) >= 6
    assert all(option in README for option in options)


def test_columns_and_exit_statuses_are_those_of_the_code() -> None:
    table = README.partition("## What comes out")[2].partition("\n\nBeside the CSV")[0]
    extra = load_config(PROJECT / "config.yaml").extra_columns({})
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == (*COLUMNS, *extra)
    statuses = {int(status) for status in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert statuses == {ALL_FINE, SOME_ERRORS, UNUSABLE, INTERRUPTED}


def test_files_and_folders_named_exist() -> None:
    named = re.findall(r"`((?:vec_pipeline|configs|models|examples|benchmarks)/[\w./-]*)`", README)
    assert named
    assert all((PROJECT / name).exists() for name in named)


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert {"docs/stages.md", "docs/reliability.md", "docs/benchmarks.md", "docs/trust.md"} <= set(links)
    assert all((PROJECT / link).exists() for link in links)


def test_make_commands_do_what_they_say() -> None:
    """What `make` would run, without running it: the environment of the tests may be another."""
    plan = subprocess.run(
        ["make", "-n", "run", "IMAGES=/my photos", "CONFIG=config.yaml", "ARGS=--limit 100"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert '.venv/bin/python run.py "/my photos" --config "config.yaml" --limit 100' in plan


def test_the_notebook_snippet_runs(
    example_run: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    (tmp_path / "output").symlink_to(example_run[1].parent)
    monkeypatch.chdir(tmp_path)
    lines = README[README.index("    import matplotlib") : README.index("### Which rows to trust")].splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in lines), names)
    assert len(names["nearest"]) == 5
    assert names["nearest"][0] == 0, "each picture is most like itself"
    assert len(matplotlib.pyplot.gca().collections) == names["table"]["categories"].nunique()


def test_commands_are_there() -> None:
    named = set(re.findall(r"-m vec_pipeline ([a-z]+)", README))
    assert named == {name for _, name, _ in pkgutil.iter_modules(commands.__path__)}


# --- docs/stages.md

MISTAKES = [  # a file of the page, what is replaced in it and by what, and what is said then
    (
        "palette.py",
        '"tint": tint',
        '"tnit": tint',
        "palette returned 'tnit', which it does not declare (mean_rgb, tint): fix the stage",
    ),
    (
        "palette.py",
        '"tint": "text"',
        '"tint": "number"',
        "palette returned 'tint' as a str, and declares it as number: fix the stage",
    ),
    (
        "palette.py",
        '"tint": "text"',
        '"tint": "string"',
        "palette: `writes` declares tint as 'string': the types are text, number, vector, json, file",
    ),
    (
        "palette.py",
        '{"mean_rgb": "vector", "tint": "text"}',
        '("mean_rgb", "tint")',
        "palette: `writes` is a tuple: make it a dict of names and types",
    ),
    (
        "palette.py",
        ", at_once: int",
        "",
        "palette: `run` must take (self, model, rows, at_once)",
    ),
    (
        "palette.yaml",
        "  - use: open_image\n",
        "",
        "stages: palette reads image, which no earlier stage writes: add a stage that writes image before it",
    ),
]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A folder with the files of docs/stages.md, two pictures, and the same pictures in an archive."""
    for text, name in re.findall(r"^```\w+\n(# ([\w.]+).*?)^```$", STAGES_PAGE, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    (tmp_path / "photos").mkdir()
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name in ("brown-fish.jpg", "plain-blue.png"):
            shutil.copy(EXAMPLES / name, tmp_path / "photos")
            archive.write(EXAMPLES / name, name)
    return tmp_path


def run_page(page: Path, source: str, config: str, *options: str) -> Run:
    arguments = [page / source, "--config", page / config, "--output", page / "out" / "a.csv", *options]
    return subprocess.run(
        [sys.executable, "run.py", *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(page), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def test_the_stage_of_the_page_runs_under_two_names(page: Path) -> None:
    run = run_page(page, "photos", "palette.yaml")
    assert run.returncode == ALL_FINE, run.stderr
    fish, blue = (row for _, row in load_annotations(page / "out" / "a.csv").iterrows())
    assert (fish["tint"], fish["strict_tint"]) == ("red", "")
    assert (blue["tint"], blue["strict_tint"]) == ("blue", "blue")
    with Image.open(page / "photos" / "plain-blue.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), np.float32).reshape(-1, 3)
    for name in ("mean_rgb", "strict_rgb"):
        np.testing.assert_allclose(blue[name], pixels.mean(axis=0), atol=1)


@pytest.mark.parametrize(("name", "right", "wrong", "message"), MISTAKES)
def test_a_mistake_in_the_stage_of_the_page_is_named_as_it_says(
    name: str, right: str, wrong: str, message: str, page: Path
) -> None:
    text = (page / name).read_text()
    assert right in text
    (page / name).write_text(text.replace(right, wrong))
    run = run_page(page, "photos", "palette.yaml")
    assert run.returncode == UNUSABLE
    assert run.stderr.splitlines()[-1] == f"run.py: {message}"


def test_the_page_names_these_mistakes() -> None:
    assert set(re.findall(r"\| ``(.+?)`` \|", STAGES_PAGE)) == {message for *_, message in MISTAKES}


def test_the_source_of_the_page_resumes_and_prunes(page: Path) -> None:
    run = run_page(page, "photos.zip", "captions.yaml")
    assert run.returncode == ALL_FINE, run.stderr
    table = load_annotations(page / "out" / "a.csv")
    assert list(table["image_path"]) == [f"{page}/photos.zip/{name}" for name in ("brown-fish.jpg", "plain-blue.png")]
    assert list(table["caption"]) == ["brown-fish", "plain-blue"]
    assert np.stack(table["caption_vector"]).shape == (2, 128)
    assert "2 images: 2 done, 0 to do" in run_page(page, "photos.zip", "captions.yaml").stdout
    with zipfile.ZipFile(page / "photos.zip", "w") as archive:
        archive.write(EXAMPLES / "plain-blue.png", "plain-blue.png")
    assert "1 row to drop" in run_page(page, "photos.zip", "captions.yaml", "--prune").stdout
    assert list(load_annotations(page / "out" / "a.csv")["caption"]) == ["plain-blue"]
    missing = run_page(page, "others.zip", "captions.yaml")
    assert missing.returncode == UNUSABLE
    assert missing.stderr == f"run.py: {page}/others.zip does not exist: name a zip file\n"
