"""The README says what is there: its commands, options, columns and exit statuses."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import run
from tests.conftest import PROJECT, Run
from vec_pipeline import commands
from vec_pipeline.config import load_config
from vec_pipeline.record import COLUMNS

README = (PROJECT / "README.md").read_text(encoding="utf-8")


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
    extra = load_config(PROJECT / "config.yaml").extra_columns()
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == (*COLUMNS, *extra)
    statuses = {int(status) for status in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert statuses == {run.ALL_FINE, run.SOME_ERRORS, run.UNUSABLE, run.INTERRUPTED}


def test_files_and_folders_named_exist() -> None:
    named = re.findall(r"`((?:vec_pipeline|configs|models|examples|benchmarks)/[\w./-]*)`", README)
    assert named
    assert all((PROJECT / name).exists() for name in named)


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
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
