"""Files that stages make: beside the CSV, and made again where they are gone."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from tests.conftest import EXAMPLES, PROJECT
from vec_pipeline import load_annotations
from vec_pipeline.config import ConfigError, load_config
from vec_pipeline.record import Stage, Values
from vec_pipeline.settings import stage_settings


@dataclass(frozen=True, kw_only=True)
class Thumbnail(Stage):
    """image -> a small copy of it, in a file named by its pixels' average; none of a wide one."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[Mapping[str, str]] = {"small": "file", "width_px": "number"}

    side_px: int = 8

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [self.save(row["image"]) for row in rows]

    def save(self, image: Any) -> Values:
        if image.width > image.height:
            return {"small": None, "width_px": image.width}
        small = image.resize((self.side_px, self.side_px)).convert("RGB")
        name = f"small/{small.tobytes().hex()[:40]}.png"
        (self.csv_folder / "small").mkdir(exist_ok=True)
        small.save(self.csv_folder / name)
        return {"small": name, "width_px": image.width}


def run(folder: Path, *arguments: str, images: Path) -> "subprocess.CompletedProcess[str]":
    stages = [{"use": "open_image", "max_size_px": 112}, {"use": "tests.test_output_files.Thumbnail"}]
    (folder / "config.yaml").write_text(yaml.safe_dump({"stages": stages}))
    command = [sys.executable, str(PROJECT / "run.py"), str(images), "--config", str(folder / "config.yaml")]
    return subprocess.run(
        [*command, "--output", str(folder / "out/annotations.csv"), *arguments],
        capture_output=True, text=True, timeout=240, cwd=PROJECT,
    )  # fmt: skip


def some_images(folder: Path) -> Path:
    (folder / "images").mkdir()
    for picture in sorted(EXAMPLES.glob("*.png"))[:3]:
        (folder / "images" / picture.name).write_bytes(picture.read_bytes())
    return folder / "images"


def test_files_lie_beside_the_csv_and_rows_name_them_from_there_on(tmp_path: Path) -> None:
    images = some_images(tmp_path)
    assert run(tmp_path, images=images).returncode == 0
    names = list(load_annotations(tmp_path / "out/annotations.csv").small)
    assert len({*names}) == 3 and all((tmp_path / "out" / name).is_file() for name in names)
    assert "csv_folder" not in (tmp_path / "out/annotations.settings.yaml").read_text()
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "out")
    assert run(tmp_path, images=images).returncode == 0, "a folder that moves has the same settings"


def test_a_file_that_is_gone_is_made_again_though_its_result_is_cached(tmp_path: Path) -> None:
    images = some_images(tmp_path)
    run(tmp_path, images=images)
    output = tmp_path / "out/annotations.csv"
    first, second, third = (tmp_path / "out" / name for name in load_annotations(output).small)
    rows, before = output.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    refreshed = run(tmp_path, "--refresh", images=images)
    assert "1 row to update (files of 1 row are gone)" in refreshed.stdout
    assert second.is_file() and first.stat().st_mtime_ns == before and third.is_file()
    assert output.read_bytes() == rows, "the row names the same file"
    assert "nothing to refresh" in run(tmp_path, "--refresh", images=images).stdout
    second.unlink()
    output.unlink()
    assert run(tmp_path, images=images).returncode == 0
    assert second.is_file() and first.stat().st_mtime_ns == before, "of the others the results are taken"


def test_rows_without_a_file_are_not_made_again(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "images/wide.png")
    run(tmp_path, images=tmp_path / "images")
    assert "nothing to refresh" in run(tmp_path, "--refresh", images=tmp_path / "images").stdout


def test_every_stage_knows_the_folder_of_the_csv_which_no_option_changes(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("output: a/b.csv\nstages:\n  - {use: open_image, csv_folder: elsewhere}\n  - flag\n")
    with pytest.raises(ConfigError, match=r"unknown option 'open_image\.csv_folder'"):
        load_config(path)
    path.write_text("output: a/b.csv\nstages: [open_image, flag]\n")
    config = load_config(path)
    assert [stage.csv_folder for stage in config.stages] == [Path("a")] * 2
    assert config.stages[1] == type(config.stages[1])() and "csv_folder" not in stage_settings(config.stages[0])
