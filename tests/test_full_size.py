"""Pictures for models that need more pixels: the size that boxes are measured in, and errors as texts of rows."""

from dataclasses import dataclass
from io import BytesIO

import pytest
from PIL import Image

from vec_pipeline.pictures.full_size import Opened, open_all, opened

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 30 10"><rect width="30" height="10" fill="red"/></svg>'


@dataclass(frozen=True)
class Bytes:
    content: bytes

    def read(self) -> bytes:
        if self.content == b"no memory":
            raise MemoryError
        return self.content


def encoded(size: tuple[int, int], kind: str, orientation: int = 1) -> bytes:
    target, exif = BytesIO(), Image.Exif()
    exif[0x112] = orientation
    Image.new("RGB", size, "red").save(target, kind, exif=exif)
    return target.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "AVIF"])
def test_the_size_is_that_of_the_file_the_right_way_up(kind: str) -> None:
    picture = opened(encoded((400, 100), kind, orientation=6), lambda size: 200, 179)
    assert picture.size == (100, 400)
    assert picture.image.size == (50, 200)


def test_the_side_may_depend_on_the_size() -> None:
    asked: list[tuple[int, int]] = []
    picture = opened(encoded((400, 100), "PNG"), lambda size: asked.append(size) or size[1], 179)
    assert set(asked) == {(400, 100)}
    assert picture.image.size == (100, 25)


@pytest.mark.parametrize("side_px", [192, 1920])
def test_every_stage_measures_a_drawing_alike(side_px: int) -> None:
    picture = opened(SVG, lambda size: side_px, 179)
    assert picture.image.size == (side_px, side_px // 3)
    assert picture.size == (1024, 341)


def test_a_picture_that_cannot_be_opened_is_a_text_among_the_others() -> None:
    contents = [Bytes(encoded((40, 30), "PNG")), Bytes(b""), Bytes(encoded((30, 40), "PNG"))]
    first, broken, last = open_all(contents, lambda size: 20, 179)
    assert isinstance(first, Opened) and isinstance(last, Opened)
    assert (first.image.size, last.image.size) == ((20, 15), (15, 20))
    assert broken == "UnidentifiedImageError: the file is empty"


@pytest.mark.parametrize("others", [0, 2])
def test_too_little_memory_is_raised(others: int) -> None:
    with pytest.raises(MemoryError):
        open_all([Bytes(b"no memory")] + [Bytes(encoded((4, 4), "PNG"))] * others, lambda size: 20, 179)
