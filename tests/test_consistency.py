"""No row is made of results that belong to different inputs: shown with the bundled models, run after run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import EXAMPLES, PROJECT, Run
from vec_pipeline import load_annotations

CONFIG = """
device: cpu
categories: [animal, building, household, plant, shape, sky, vehicle, sign, nothing]
stages:
- {use: open_image, max_size_px: 112}
- use: tests.hungry.HungryDescribe
  name: describe
  model: models/demo/vision_language
  max_new_tokens: 64
  batch_size: 4
- {use: embed_text, model: models/demo/sentences}
- {use: embed_image, model: models/demo/clip}
- {use: structure, model: models/demo/llama/llama.gguf, batch_size: 4}
- {use: flag, low_confidence: 0.98, low_clip_score: 0.33}
"""
PICTURES = ["orange-cup-XZWH.png", "pink-square-to-the-left-of-blue-flower.png", "purple-tree-FLUTE.png"]
COLUMNS = ["text", "description", "categories", "keywords", "image_text", "clip_score"]
HALF_SIZE = "describe.largest_px=3200"  # of a side of 112 pixels


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def photos(folder: Path, prefix: str = "") -> Path:
    folder.mkdir()
    for name in PICTURES:
        shutil.copy(EXAMPLES / name, folder / f"{prefix}{name}")
    return folder


def run(config: Path, source: Path, output: Path, *options: str) -> Run:
    arguments = [source, "--config", config, "--output", output, *options]
    return subprocess.run(
        [sys.executable, "run.py", *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True, timeout=240
    )


def rows(output: Path) -> pd.DataFrame:
    table = load_annotations(output)
    table.index = pd.Index([Path(path).name for path in table["image_path"]])
    return table


def test_a_picture_described_with_fewer_pixels_shares_nothing_with_its_copy(config: Path, tmp_path: Path) -> None:
    """Memory is short for the first folder; the same pictures under other names come when it is not."""
    first, second = photos(tmp_path / "first"), photos(tmp_path / "second", "copy of ")
    run(config, first, tmp_path / "whole.csv")
    whole = rows(tmp_path / "whole.csv")
    output = tmp_path / "annotations.csv"
    assert run(config, first, output, "--set", HALF_SIZE).returncode == 0
    lowered = rows(output)
    assert all("pixels_lowered" in flags for flags in lowered["flags"])
    assert run(config, second, output).returncode == 0
    table = rows(output)
    differing = [name for name in PICTURES if lowered.loc[name, "text"] != whole.loc[name, "text"]]
    assert differing, "fewer pixels must make another text of one of them, or this shows nothing"
    for name in PICTURES:
        copy = table.loc[f"copy of {name}"]
        assert copy[COLUMNS].to_dict() == whole.loc[name, COLUMNS].to_dict()
        assert copy["flags"] == whole.loc[name, "flags"]
        assert table.loc[name, COLUMNS].to_dict() == lowered.loc[name, COLUMNS].to_dict()


def test_a_score_made_without_the_text_does_not_come_back_with_it(config: Path, tmp_path: Path) -> None:
    """The describer fails once, and the image is embedded without its optional text; then errors are retried."""
    source, output = photos(tmp_path / "photos"), tmp_path / "annotations.csv"
    assert run(config, source, output, "--set", "describe.is_broken=true").returncode == 1
    broken = rows(output)
    assert broken["error"].str.startswith("describe: ValueError").all()
    assert broken["clip_score"].isna().all()
    assert run(config, source, output, "--retry-errors").returncode == 0
    table = rows(output)
    assert set(table["error"]) == {""}
    assert table["clip_score"].between(0.1, 1).all()
