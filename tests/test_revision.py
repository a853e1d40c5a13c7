"""A hub model that moves on upstream: a CSV keeps the commit that it was begun with, and only --refresh moves it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import EXAMPLES, PROJECT, Run

CONFIG = """
device: cpu
stages:
- {use: open_image, max_size_px: 112}
- {use: tests.odd_stages.Silent, name: describe, answer: A red car.}
- {use: embed_text, model: demo/sentences}
"""
FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """The cache of the hub with one model of two commits, as huggingface_hub lays it out; main is the first."""
    folder = tmp_path / "hub" / "models--demo--sentences"
    for commit in (FIRST, SECOND):
        shutil.copytree(PROJECT / "models" / "demo" / "sentences", folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(FIRST)
    return folder


def run(folder: Path, *options: str, config: str = CONFIG) -> Run:
    (folder / "config.yaml").write_text(config)
    arguments = [folder / "photos", "--config", folder / "config.yaml", "--output", folder / "out" / "a.csv", *options]
    done = subprocess.run(
        [sys.executable, "run.py", *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def add_picture(folder: Path) -> None:
    (folder / "photos").mkdir(exist_ok=True)
    number = len(list((folder / "photos").iterdir()))
    shutil.copy(sorted(EXAMPLES.glob("*.png"))[number], folder / "photos")


def recorded(folder: Path) -> dict[str, object]:
    settings = yaml.safe_load((folder / "out" / "a.settings.yaml").read_text())["stages"]["embed_text"]
    return {name: settings[name] for name in ("revision", "commit")}


def test_a_commit_upstream_does_not_change_a_csv_that_is_half_done(hub: Path, tmp_path: Path) -> None:
    add_picture(tmp_path)
    run(tmp_path)
    assert recorded(tmp_path) == {"revision": "", "commit": FIRST}
    (hub / "refs" / "main").write_text(SECOND)
    shutil.move(hub / "snapshots" / SECOND, tmp_path / "away")  # whatever loads it fails
    for _ in range(2):  # the second has nothing to do
        add_picture(tmp_path)
        run(tmp_path)
        assert recorded(tmp_path) == {"revision": "", "commit": FIRST}
    shutil.move(tmp_path / "away", hub / "snapshots" / SECOND)
    refreshed = run(tmp_path, "--refresh")
    assert "3 rows to update (embed_text.commit)" in refreshed.stdout
    assert recorded(tmp_path) == {"revision": "", "commit": SECOND}
    assert "nothing to refresh" in run(tmp_path, "--refresh").stdout


def test_a_pinned_commit_is_used_and_recorded(hub: Path, tmp_path: Path) -> None:
    add_picture(tmp_path)
    pinned = CONFIG.replace("demo/sentences}", f"demo/sentences, revision: '{SECOND}'}}")
    run(tmp_path, config=pinned)
    settings = yaml.safe_load((tmp_path / "out" / "a.settings.yaml").read_text())["stages"]["embed_text"]
    assert settings["revision"] == SECOND
