"""What bad input gets: one row with an error, or exit status 2 and one sentence, and every good row unharmed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tests.conftest import EXAMPLES, PROJECT, run_worker
from tests.tiny_gguf import write_tiny_gguf
from vec_pipeline import load_annotations

GOOD = "red car, good.png"


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good pictures under odd names among every kind of bad one."""
    folder = tmp_path_factory.mktemp("mixed")
    example = sorted(path for path in EXAMPLES.iterdir() if path.suffix == ".png")[0]
    odd_names = (GOOD, 'quo"te.png', "new\nline.png", "Кириллица.PNG", os.fsdecode(b"un\xffdecodable.png"))
    for name in odd_names:
        shutil.copy(example, folder / name)
    Image.new("RGB", (1, 1), "red").save(folder / "one pixel.png")
    Image.new("RGB", (1, 20000), "red").save(folder / "tall.png")
    (folder / "empty.jpg").touch()
    content = example.read_bytes()
    (folder / "truncated.png").write_bytes(content[: len(content) // 2])
    (folder / "text.jpg").write_text("this is no image")
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    (folder / "vanished.png").symlink_to(folder / "nowhere")
    return folder


@pytest.fixture(scope="module")
def mixed_run(
    mixed_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> "tuple[subprocess.CompletedProcess[str], pd.DataFrame, Path]":
    output = tmp_path_factory.mktemp("output") / "annotations.csv"
    run = run_worker(mixed_folder, "--output", output)
    table = load_annotations(output)
    table.index = pd.Index([Path(path).name for path in table["image_path"]])
    return run, table, output


def test_bad_pictures_cost_their_own_row_only(
    mixed_run: "tuple[subprocess.CompletedProcess[str], pd.DataFrame, Path]",
) -> None:
    run, table, _ = mixed_run
    assert run.returncode == 1, run.stderr
    bad = {"empty.jpg", "text.jpg", "bomb.png", "nowhere"}
    assert set(table.index[table["error"] != ""]) == bad
    assert table.loc["bomb.png", "error"].startswith("open_image: TooManyPixels: 400 megapixels are more than max_meg")
    assert "truncated_image" in table.loc["truncated.png", "flags"].split()
    assert all(error.startswith("open_image: ") for error in table.loc[sorted(bad), "error"])
    assert "4 of them with an error" in run.stdout


def test_odd_names_and_shapes_get_normal_rows(
    mixed_run: "tuple[subprocess.CompletedProcess[str], pd.DataFrame, Path]",
) -> None:
    _, table, _ = mixed_run
    good = table.loc[GOOD]
    for name in ('quo"te.png', "new\nline.png", "Кириллица.PNG", "un\\xffdecodable.png"):
        assert table.loc[name, "text"] == good["text"] != ""
    for name in ("one pixel.png", "tall.png"):
        assert table.loc[name, "text"] != ""
        assert len(table.loc[name, "image_vector"]) == len(good["image_vector"])


def test_retry_errors_replaces_rows_in_place(
    mixed_run: "tuple[subprocess.CompletedProcess[str], pd.DataFrame, Path]", mixed_folder: Path, tmp_path: Path
) -> None:
    _, table, output = mixed_run
    copy = tmp_path / output.name
    for suffix in (".csv", ".settings.yaml"):
        shutil.copy(output.with_suffix(suffix), copy.with_suffix(suffix))
    content = (mixed_folder / "text.jpg").read_bytes()
    shutil.copy(mixed_folder / GOOD, mixed_folder / "text.jpg")
    try:
        again = run_worker(mixed_folder, "--output", copy, "--retry-errors")
    finally:
        (mixed_folder / "text.jpg").write_bytes(content)
    assert again.returncode == 1
    retried = load_annotations(copy)
    assert list(retried["image_path"]) == list(table["image_path"])
    row = retried[retried["image_path"].str.endswith("text.jpg")].iloc[0]
    assert row["error"] == ""
    assert row["text"] == table.loc[GOOD, "text"]
    assert (retried["error"] != "").sum() == 3


def refused(*arguments: object) -> str:
    """Run, expect exit status 2, and return the one sentence."""
    run = subprocess.run(
        [sys.executable, str(PROJECT / "run.py"), *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 2, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    sentence = run.stderr.strip().splitlines()[-1]
    assert sentence.startswith("run.py: "), run.stderr
    return sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "nowhere does not exist"),
        ((EXAMPLES, "--config", "configs/deom.yaml"), "configs/demo.yaml"),
        ((EXAMPLES, "--set", "describe.batchsize=3"), "batch_size"),
        ((EXAMPLES, "--set", "describe.batch_size=many"), "describe.batch_size"),
        ((EXAMPLES, "--set", "chunksize=3"), "chunk_size"),
        ((EXAMPLES, "--set", "structure.model=models/demo/llama/lama.gguf"), "models/demo/llama/llama.gguf"),
        ((EXAMPLES, "--set", "language=fr"), "language"),
        ((EXAMPLES, "--set", "stages=[describe]"), "model"),
        ((EXAMPLES, "--set", "stages=[]"), "`stages:` with a list of stages is missing"),
        ((EXAMPLES, "--set", "stages=[flag, open_image]"), "move open_image before it"),
        ((EXAMPLES, "--set", "sources=[nowhere]"), "sources: nowhere cannot be imported"),
        ((EXAMPLES, "nowhere/else"), "nowhere/else does not exist"),
        ((EXAMPLES, "--unknown"), "--unknown"),
        ((EXAMPLES, "--limit", "many"), "argument --limit: 'many' is not an integer"),
        ((EXAMPLES, "--limit", "-1"), "--limit"),
        ((EXAMPLES, "--refresh", "--limit", 1), "--refresh updates all rows: leave --limit and --retry-errors out"),
        ((EXAMPLES, "--refresh", "--retry-errors"), "leave --limit and --retry-errors out"),
        ((), "the following arguments are required: SOURCE"),
    ],
)  # fmt: skip
def test_unusable_arguments_are_named(arguments: tuple[object, ...], words: str, tmp_path: Path) -> None:
    config = () if "--config" in arguments else ("--config", PROJECT / "configs/demo.yaml")
    assert words in refused(*arguments, *config, "--output", tmp_path / "annotations.csv")
    assert not (tmp_path / "annotations.csv").exists()


@pytest.mark.parametrize("content", [(), ("notes.txt",), (".hidden.png",)])
def test_a_folder_without_images_is_refused(content: tuple[str, ...], tmp_path: Path) -> None:
    for name in content:
        (tmp_path / name).touch()
    sentence = refused(tmp_path, "--config", PROJECT / "configs/demo.yaml", "--output", tmp_path / "out" / "a.csv")
    assert sentence == "run.py: no image found: name other files or folders"


def test_a_run_that_could_not_begin_leaves_nothing_that_refuses_the_next(tmp_path: Path) -> None:
    """The model lacked a layer, which only loading shows, and another one is named: no row was made with the first."""
    broken, output = tmp_path / "broken.gguf", tmp_path / "a.csv"
    write_tiny_gguf(broken, metadata={"llama.block_count": 3})
    demo = (EXAMPLES / "red-flower.png", "--config", PROJECT / "configs/demo.yaml", "--output", output)
    assert "broken.gguf" in refused(*demo, "--set", f"structure.model={broken}")
    assert len(load_annotations(output)) == 0
    again = run_worker(EXAMPLES / "red-flower.png", "--output", output)
    assert again.returncode == 0, again.stderr
    assert load_annotations(output)["text"].tolist() != [""]


def test_a_foreign_csv_is_left_byte_for_byte(tmp_path: Path) -> None:
    output = tmp_path / "annotations.csv"
    output.write_bytes(b"path,label\r\na.jpg,cat")
    assert "other columns" in refused(EXAMPLES, "--config", PROJECT / "configs/demo.yaml", "--output", output)
    assert output.read_bytes() == b"path,label\r\na.jpg,cat"
    assert sorted(tmp_path.iterdir()) == [output]


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    demo = ("--config", PROJECT / "configs/demo.yaml")
    assert "is a directory" in refused(EXAMPLES, *demo, "--output", tmp_path)
    assert "cannot be" in refused(EXAMPLES, *demo, "--output", tmp_path / "file" / "annotations.csv")


def test_a_corrupt_model_file_is_exit_2_and_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    sentence = refused(
        EXAMPLES, "--config", PROJECT / "configs/demo.yaml", "--output", tmp_path / "a.csv", "--limit", 1,
        "--set", f"structure.model={broken}",
    )  # fmt: skip
    assert "structure" in sentence
    assert "broken.gguf" in sentence


def test_a_missing_model_file_is_named_before_any_model_loads(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "llama.gguf").touch()
    sentence = refused(
        EXAMPLES, "--config", PROJECT / "configs/demo.yaml", "--output", tmp_path / "a.csv",
        "--set", f"structure.model={tmp_path / 'llama'}", "--set", "structure.file=lama.gguf",
    )  # fmt: skip
    assert "llama.gguf" in sentence
    assert "structure" in sentence
    assert not (tmp_path / "a.csv").exists()


def test_a_full_disk_stops_cleanly_with_whole_rows(tmp_path: Path) -> None:
    """No file may grow over 100 kB: the CSV, or the result cache, meets the limit in the middle of the run."""
    output = tmp_path / "annotations.csv"
    limited = f"ulimit -f 100; exec {sys.executable} {PROJECT / 'run.py'} {EXAMPLES} --output {output}"
    run = subprocess.run(
        ["bash", "-c", f"{limited} --config {PROJECT / 'configs/demo.yaml'} --set chunk_size=8"],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 2, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert "free some disk space, then rerun" in run.stderr
    assert output.read_bytes().endswith(b"\n")
    assert set(load_annotations(output)["error"]) <= {""}
    assert run_worker(EXAMPLES, "--output", output).returncode == 0
    assert len(load_annotations(output)) == sum(path.suffix != ".json" for path in EXAMPLES.iterdir())


def test_a_hub_model_without_a_network_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    sentence = refused(
        EXAMPLES, "--config", PROJECT / "configs/demo.yaml", "--output", tmp_path / "a.csv",
        "--set", "describe.model=Qwen/Qwen2-VL-2B-Instruct",
    )  # fmt: skip
    assert "Qwen/Qwen2-VL-2B-Instruct" in sentence
    assert "`model:`" in sentence


def test_the_production_set_without_a_gpu_says_what_it_needs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    sentence = refused(EXAMPLES, "--config", PROJECT / "config.yaml", "--output", tmp_path / "a.csv")
    assert "17 GB" in sentence
    assert "configs/small.yaml" in sentence
