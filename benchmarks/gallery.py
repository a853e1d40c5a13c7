"""What a gallery of 25,000 images costs: the time to make it, its size, and how soon a browser shows it.

    .venv/bin/python benchmarks/gallery.py
    .venv/bin/python benchmarks/gallery.py --images 1000 --side-px 4000    # thumbnails of large photographs

Pictures are drawn scenes; with 500 of them under 25,000 names, each name has its thumbnail made from its file. Texts
are as long as those of a 7B model, image vectors have 512 dimensions in 300 clusters. Needs chromium and chromedriver.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from models.demo.draw import main as draw  # noqa: E402
from tests.test_gallery import FLAGS  # noqa: E402
from vec_pipeline.record import COLUMNS, Record  # noqa: E402
from vec_pipeline.sinks.csv_file import encode_row, row_of  # noqa: E402

DIFFERENT = 500
CATEGORIES = "animal building household plant shape sky vehicle sign nothing portrait landscape food".split()
WORDS = (
    "a the of on with red small large street tree window light people sign water house old bright left behind".split()
)
EXTRA_COLUMNS = ("text_confidence", "clip_score", "flags")
WATCH = """
const watch = () => {
  const shown = [...document.querySelectorAll("#grid img")].filter((i) => i.getBoundingClientRect().top < innerHeight);
  if (!window.firstTile && shown.length) window.firstTile = performance.now();
  if (!window.firstView && shown.length && shown.every((i) => i.complete)) window.firstView = performance.now();
  if (!window.allRows && typeof plan !== "undefined" && plan) window.allRows = performance.now();
  if (!window.allRows || !window.firstView) requestAnimationFrame(watch);
};
watch();
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=25_000)
    parser.add_argument("--side-px", type=int, default=448, help="longest side of the pictures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=PROJECT / "output") as name:
        folder = Path(name)
        write_rows(folder, options.images, options.side_px)
        print(
            f"{options.images:,} images of {options.side_px} px, CSV of {size_mb(folder / 'annotations.csv'):,.0f} MB"
        )
        for what in ("made", "made again"):
            make(folder, what)
        site = folder / "site"
        for part in ("gallery/thumbnails", "gallery/data-2"):
            files = [path for path in (site / part).rglob("*") if path.is_file()]
            print(f"{part}: {len(files):,} files, {sum(map(size_mb, files)):,.1f} MB")
        measure_browser(site)


def size_mb(path: Path) -> float:
    return path.stat().st_size / 1e6


def write_rows(folder: Path, number: int, side_px: int) -> None:
    drawn = draw(folder / "drawn", min(DIFFERENT, number), seed=1)
    for path in drawn:
        if side_px > 448:
            with Image.open(path) as image:
                factor = side_px / max(image.size)
                image.resize((round(image.width * factor), round(image.height * factor))).save(path)
    (folder / "photos").mkdir()
    header = (*COLUMNS, *EXTRA_COLUMNS)
    with (folder / "annotations.csv").open("wb") as file:
        file.write(encode_row(header))
        for record, picture in zip(records(folder, number), range(number), strict=True):
            source = drawn[picture % len(drawn)]
            os.link(source, Path(record.key).with_suffix(source.suffix))
            record.key = str(Path(record.key).with_suffix(source.suffix))
            file.write(encode_row(row_of(record, header)))


def records(folder: Path, number: int) -> Iterator[Record]:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((300, 512))
    for index in range(number):
        words = rng.choice(WORDS, 130)
        vectors: dict[str, Any] = {
            "image_vector": centres[rng.integers(300)] + rng.choice([0.1, 0.5]) * rng.standard_normal(512),
            "text_vector": rng.standard_normal(384),
            "word2vec_vector": rng.standard_normal(300),
        }
        confidence = rng.beta(8, 2)
        yield Record(
            str(folder / "photos" / f"holiday {index:06}"),
            {
                "text": " ".join(words),
                "description": " ".join(words[:22]),
                "categories": CATEGORIES[rng.integers(len(CATEGORIES))],
                "keywords": ", ".join(dict.fromkeys(words[:8])),
                "image_text": "SALE" if rng.random() < 0.3 else "",
                "llama_extracted": "{}",
                "text_confidence": f"{confidence:.4f}",
                "clip_score": f"{rng.normal(0.27, 0.04):.4f}",
                "flags": "low_confidence" if confidence < 0.64 else "",
            }
            | {name: vector.astype(np.float32) for name, vector in vectors.items()},
        )


def make(folder: Path, what: str) -> None:
    start_s, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "vec_pipeline", "report", "--csv", folder / "annotations.csv"]
    subprocess.run([*command, "--out", folder / "site"], check=True, cwd=PROJECT, stderr=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    seconds = time.perf_counter() - start_s
    print(f"{what} in {seconds:.1f} s, {cpu_s:.1f} s of CPU, peak {used.ru_maxrss / 1024:,.0f} MB", flush=True)


def measure_browser(site: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or ""
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(60)
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    address = (site / "index.html").as_uri()
    times = []
    for _ in range(5):
        driver.get("about:blank")
        driver.get(address)
        while not driver.execute_script("return window.allRows && window.firstView"):
            time.sleep(0.02)
        times.append(driver.execute_script("return [window.firstTile, window.firstView, window.allRows]"))
    tile_s, view_s, rows_s = np.median(times, axis=0) / 1000
    print(f"first tiles after {tile_s:.2f} s, all pictures of the first view {view_s:.2f} s, all rows {rows_s:.2f} s")
    steps = {
        "free text": 'go({ q: "red window" })',
        "category": 'go({ q: "", category: "food" })',
        "sort by confidence": 'go({ category: "", sort: "-confidence" })',
        "sort by name": 'go({ sort: "name" })',
        "to the end": "scrollTo(0, document.body.scrollHeight)",
        "map": 'go({ sort: "", view: "map" })',
        "map, one zoom step": "zoomMap(1.2)",
        "near-duplicates": 'go({ view: "groups" })',
    }
    for name, step in steps.items():
        script = f"""
            const done = arguments[0], start = performance.now();
            {step};
            requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
        """
        print(f"{name}: {driver.execute_async_script(script):.0f} ms")
    used = driver.execute_script("return performance.memory.usedJSHeapSize") / 1e6
    print(f"{used:.0f} MB of JavaScript objects")
    driver.quit()


if __name__ == "__main__":
    main()
