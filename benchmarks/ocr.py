"""How well read_text reads drawn words and a photographed page, and how fast, beside rapidocr alone and tesseract.

    .venv/bin/python benchmarks/ocr.py --number 300 --page page.png

Prints the table of docs/stages/read_text.md. Half of the words are in Latin letters, half in Cyrillic ones. Seconds are
of the CPU, with all its children; loading is left out.
"""

import argparse
import math
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from models.demo.drawing import RGB_OF_BACKGROUND, jpeg_artefacts, luminance, noisy, tinted  # noqa: E402
from models.demo.scenes import LEXICON  # noqa: E402
from vec_pipeline.record import UserError  # noqa: E402
from vec_pipeline.stages.read_text import ReadText  # noqa: E402

FONTS = [Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf" for name in (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono-Bold"
)]  # fmt: skip
SIZE = (448, 336)
SMALLEST_PX, LARGEST_PX = 24, 72  # of the type
RUSSIAN = """
    АПТЕКА БАНК ВОКЗАЛ ВЫХОД ГОСТИНИЦА ДВЕРЬ ДОМ ЖИЗНЬ ЗАВОД ЗИМА ИГРА КАФЕ КНИГА КОФЕ ЛЕТО ЛОДКА МАГАЗИН МЕТРО МОЛОКО
    МОРЕ МУЗЕЙ НОЧЬ ОКНО ОСЕНЬ ПАРК ПЛОЩАДЬ ПОЕЗД ПОЧТА РЕКА РЫНОК САД СВЕТ СКИДКА СТАНЦИЯ СТОП ТЕАТР ТИШИНА УЛИЦА ФИЛЬМ
    ХЛЕБ ЦВЕТЫ ЦЕНТР ЧАЙ ЧАСЫ ШАПКА ШКОЛА ЩУКА ЭТАЖ ЮБИЛЕЙ ЯБЛОКО Аптека Вокзал Дверь Книга Молоко Площадь Улица Школа
""".split()
PAGE = """
    Region-based segmentation Let us first determine markers of the coins and the background. These markers are pixels
    that we can label unambiguously as either object or background. Here, the markers are found at the two extreme parts
    of the histogram of grey values: >>> markers = np.zeros_like(coins)
""".split()  # what skimage's page.png shows


class Picture(NamedTuple):
    """A picture, and the words on it."""

    image: Image.Image
    words: Sequence[str]


Reader = Callable[[list[Picture]], list[str]]  # returns the text of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--page", type=Path, help="skimage/data/page.png of scikit-image")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    sets = {
        "Latin": [drawn(rng, rng.choice(LEXICON)) for _ in range(options.number // 2)],
        "Cyrillic": [drawn(rng, rng.choice(RUSSIAN)) for _ in range(options.number // 2)],
    }
    if options.page:
        sets["page.png"] = [Picture(Image.open(options.page).convert("RGB"), PAGE)]
    print(
        f"| reader | {' | '.join(f'{name}, words exact | s/image' for name in sets)} |\n|{'---|' * (1 + 2 * len(sets))}"
    )
    for name, make in READERS.items():
        try:
            read = make()
        except UserError as error:
            print(f"| {name} | {error} |")
            continue
        print(f"| {name} | {' | '.join(measured(read, pictures) for pictures in sets.values())} |", flush=True)


def drawn(rng: random.Random, word: str) -> Picture:
    """A word in any colour that can be read, size and font, at most 5 degrees askew, on a plain ground; some grainy."""
    ground = tinted(RGB_OF_BACKGROUND[rng.choice(tuple(RGB_OF_BACKGROUND))], rng)
    font_path = rng.choice(FONTS)
    size_px = rng.randint(SMALLEST_PX, LARGEST_PX)
    size_px = min(
        size_px, math.floor(size_px * 0.85 * SIZE[0] / ImageFont.truetype(font_path, size_px).getlength(word))
    )
    mask = Image.new("L", SIZE)
    ImageDraw.Draw(mask).text((SIZE[0] / 2, SIZE[1] / 2), word, 255, ImageFont.truetype(font_path, size_px), "mm")
    turned = mask.rotate(rng.uniform(-5, 5) * (rng.random() < 0.4), Image.Resampling.BICUBIC)
    image = Image.new("RGB", SIZE, ground)
    image.paste((0, 0, 0) if luminance(ground) > 110 else (255, 255, 255), (0, 0), turned)
    image = noisy(image, rng.uniform(2, 12), rng) if rng.random() < 0.3 else image
    return Picture(jpeg_artefacts(image, rng.randint(40, 92)) if rng.random() < 0.3 else image, [word])


def measured(read: Reader, pictures: list[Picture]) -> str:
    start_s = cpu_s()
    texts = read(pictures)
    seconds = (cpu_s() - start_s) / len(pictures)
    words = sum(len(picture.words) for picture in pictures)
    exact = sum(shared(text.split(), picture.words) for text, picture in zip(texts, pictures, strict=True))
    return f"{exact / words:.1%} | {seconds:.2f}"


def shared(found: Sequence[str], words: Sequence[str]) -> int:
    """How many of the words were found."""
    left = list(found)
    return sum(word in left and not left.remove(word) for word in words)  # type: ignore[func-returns-value]


def cpu_s() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


class Content(NamedTuple):
    content: bytes

    def read(self) -> bytes:
        return self.content


def stage(**options: Any) -> Reader:
    own = ReadText(**options)
    own.fetch()
    model = own.load()

    def read(pictures: list[Picture]) -> list[str]:
        rows = [{"content": Content(png(picture.image))} for picture in pictures]
        batches = [rows[start : start + own.batch_size] for start in range(0, len(rows), own.batch_size)]
        return [result["ocr_text"] for batch in batches for result in own.run(model, batch, own.batch_size)]

    return read


def rapidocr_alone() -> Reader:
    """RapidOCR as its README calls it."""
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Global.log_level": "critical"})
    return lambda pictures: [" ".join(engine(np.asarray(each.image)[:, :, ::-1]).txts or ()) for each in pictures]


def tesseract_alone(languages: str) -> Reader:
    """The program as its manual calls it."""
    command = ["tesseract", "-", "-", "-l", languages]
    return lambda pictures: [
        subprocess.run(command, input=png(each.image), capture_output=True, check=True).stdout.decode()
        for each in pictures
    ]


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


READERS: dict[str, Callable[[], Reader]] = {
    "rapidocr alone": rapidocr_alone,
    "tesseract alone, eng": lambda: tesseract_alone("eng"),
    "tesseract alone, rus+eng": lambda: tesseract_alone("rus+eng"),
    "read_text": lambda: stage(engine="rapidocr"),
    "read_text, language: ru": lambda: stage(engine="rapidocr", language="ru"),
    "read_text, engine: tesseract": lambda: stage(engine="tesseract"),
    "read_text, engine: tesseract, language: ru": lambda: stage(engine="tesseract", language="ru"),
}


if __name__ == "__main__":
    main()
