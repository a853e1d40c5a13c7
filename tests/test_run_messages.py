"""What libraries print in a run goes to the log beside the CSV, what the worker says to the terminal."""

import os
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import EXAMPLES, PROJECT, run_worker
from vec_pipeline import load_annotations

SPEAK = """
import os, subprocess, sys, logging, warnings
from pathlib import Path
from vec_pipeline import terminal
from vec_pipeline.commands.run.messages import start_log, stderr_in
terminal.protect()
log = Path(sys.argv[1])
start_log(log, "warning")
print("before", file=sys.stderr)
try:
    with stderr_in(log) as stream:
        print("for the terminal", file=stream)
        os.write(2, b"by a library in C\\n")
        subprocess.run(["sh", "-c", "echo by a child >&2"])
        print("by a library in Python", file=sys.stderr)
        warnings.warn("a warning")
        logging.getLogger("somebody").warning("by a logger")
        logging.getLogger("somebody").info("not worth a line")
        logging.getLogger("vec_pipeline.stages").warning("by ourselves")
        raise ValueError
except ValueError:
    print("after", file=sys.stderr)
"""


def test_only_the_worker_speaks_to_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "annotations.log"
    log.write_text("of the last run\n")
    run = subprocess.run([sys.executable, "-c", SPEAK, str(log)], cwd=PROJECT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.splitlines() == ["before", "for the terminal", "after"]
    text = log.read_text()
    assert text.startswith("of the last run\n")
    for said in (
        "by a library in C",
        "by a child",
        "by a library in Python",
        "a warning",
        "by a logger",
        "by ourselves",
    ):
        assert text.count(said) == 1, said
    assert "not worth a line" not in text


def test_a_stream_that_is_not_on_the_descriptor_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever reads standard error in this process reads it on."""
    from vec_pipeline.commands.run.messages import stderr_in

    with stderr_in(tmp_path / "a.log") as stream:
        assert stream is sys.stderr
        os.write(2, b"in C\n")
    os.write(2, b"again\n")
    assert (tmp_path / "a.log").read_text() == "in C\n"
    assert capfd.readouterr().err == "again\n"


def damaged_tiff() -> bytes:
    """Of which libtiff says: LZWDecode: Not enough data at scanline."""
    buffer = BytesIO()
    Image.effect_noise((300, 300), 80).convert("RGB").save(buffer, "TIFF", compression="tiff_lzw")
    content = buffer.getvalue()
    middle = len(content) // 2
    return content[:middle] + bytes(50) + content[middle + 50 :]


def jpeg_with_odd_metadata() -> bytes:
    """Of which Pillow warns: Corrupt EXIF data."""
    buffer = BytesIO()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + bytes(12)
    Image.open(EXAMPLES / "red-flower.png").convert("RGB").save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def test_messages_about_pictures_are_in_the_log(tmp_path: Path) -> None:
    folder, output = tmp_path / "pictures", tmp_path / "out" / "annotations.csv"
    folder.mkdir()
    (folder / "damaged.tif").write_bytes(damaged_tiff())
    (folder / "odd.jpg").write_bytes(jpeg_with_odd_metadata())
    run = run_worker(folder, "--output", output)
    assert run.returncode == 0, run.stdout + run.stderr
    log = output.with_suffix(".log").read_text()
    for words in ("LZWDecode", "Corrupt EXIF data"):
        assert words in log
        assert words not in run.stdout + run.stderr
    assert "2/2" in run.stderr, "the progress stays"
    table = load_annotations(output).set_index("image_path")
    assert "truncated_image" in table.loc[str((folder / "damaged.tif").resolve()), "flags"]
    assert "truncated_image" not in table.loc[str((folder / "odd.jpg").resolve()), "flags"]


def test_the_library_alone_prints_no_warnings(tmp_path: Path) -> None:
    """`report` and `search` open pictures too, without a log."""
    (tmp_path / "odd.jpg").write_bytes(jpeg_with_odd_metadata())
    program = (
        "import sys; from vec_pipeline.stages.open_image import OpenImage, open_image; OpenImage().load()\n"
        "open_image(open(sys.argv[1], 'rb').read(), 64)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "odd.jpg")], cwd=PROJECT, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_these_pictures_would_be_spoken_of() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open(BytesIO(jpeg_with_odd_metadata())) as image:
            image.getexif()
    assert any("Corrupt EXIF" in str(each.message) for each in caught)
