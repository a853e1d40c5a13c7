"""Pairs in the report: the edited picture over its original, and the slider between them, by keyboard and by mouse."""

from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests.pairs import BLUE, RED, draw, pair, write_pairs
from tests.rows import failed, finished, write_declared
from tests.test_gallery import Page, driver, emulated, opened, violations  # noqa: F401 (a fixture)
from tests.test_report import make_report, thumbnails, values_of
from vec_pipeline.commands.report.thumbnails import Thumbnails
from vec_pipeline.sources.folder import LocalFile

SIZE = (400, 300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gallery of a pair, of one whose pictures have other sides, of one without a result, and of a failure."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [pair(folder, number, edited_text="A blue car.") for number in range(3)]
    for number, sizes in enumerate((SIZE, (200, 400))):
        draw(folder / f"photos/{number}.png", RED, sizes)
        draw(folder / f"edited/{number}.png", BLUE, sizes)
    rows[2].values["edited_path"] = ""
    rows[2].key = "https://example.org/gone.png#reddit/abc/def/0"
    make_report(write_pairs(folder, *rows, failed(3)), folder / "site")
    return folder / "site"


@pytest.fixture
def page(driver: webdriver.Chrome, site: Path) -> Iterator[Page]:  # noqa: F811
    yield from opened(driver, site)


# --- the folder


def test_edited_pictures_have_thumbnails_of_their_own(site: Path) -> None:
    rows = values_of(site, "data-rows-0.js")
    found = thumbnails(site)
    for original, edited, size in zip(rows["thumbnail"][:2], rows["edited"], ((192, 144), (96, 192)), strict=False):
        for name, colour in ((original, RED), (edited, BLUE)):
            with Image.open(found[name]) as small:
                assert (small.format, small.size) == ("WEBP", size)
                assert np.abs(np.array(small.convert("RGB"))[5, 5].astype(int) - colour).max() < 8
    assert rows["edited_link"][0] == (site.parent / "edited/0.png").as_uri()
    assert rows["edited"][2:] == rows["edited_link"][2:] == ["", ""]
    assert rows["request"] == ["make the vehicle blue"] * 2 + ["", ""]


def test_a_csv_without_pairs_has_none_of_it(tmp_path: Path) -> None:
    csv = write_declared(tmp_path / "a.csv", {"audio": "file"}, [finished(0, audio="audio/0.wav")])
    make_report(csv, tmp_path / "site")
    assert not {"edited", "edited_link", "request"} & set(values_of(tmp_path / "site", "data-rows-0.js"))


def test_a_report_of_an_edited_picture_that_is_gone(tmp_path: Path) -> None:
    csv = write_pairs(tmp_path, pair(tmp_path, 0), pair(tmp_path, 1))
    (tmp_path / "edited/0.png").unlink()
    (tmp_path / "edited/1.png").write_bytes(b"<svg onload=alert(1)>")
    make_report(csv, tmp_path / "site")
    assert values_of(tmp_path / "site", "data-rows-0.js")["edited"] == ["", ""]
    assert len(thumbnails(tmp_path / "site")) == 2


def test_a_row_without_an_edited_picture_asks_no_source(tmp_path: Path) -> None:
    """An empty key would stand for the working folder, with all that is in it."""
    asked: list[str] = []

    def content_of(key: str) -> LocalFile:
        asked.append(key)
        return LocalFile(key)

    path = draw(tmp_path / "a.png", RED)
    with closing(Thumbnails(tmp_path / "thumbnails", content_of)) as found:
        pictures = found.of(["", str(path)])
    assert asked == [str(path)]
    assert [bool(picture.thumbnail) for picture in pictures] == [False, True]


# --- the slider


def colours_at(page: Page, *shares: float) -> list[str]:
    """What is seen at shares of the picture's width, by a screenshot."""
    seen = np.asarray(Image.open(BytesIO(page.find("#detail-picture").screenshot_as_png)).convert("RGB")).astype(int)
    middle = seen[seen.shape[0] // 2]
    inside = [x for x in range(len(middle)) if min(np.abs(middle[x] - colour).max() for colour in (RED, BLUE)) < 12]
    first, last = inside[0], inside[-1]
    columns = [middle[round(first + share * (last - first))] for share in shares]
    return ["red" if np.abs(column - RED).max() < 12 else "blue" for column in columns]


def open_pair(page: Page, row: int) -> None:
    page.open(f"image={row}")
    page.until(
        lambda: page.script(
            "const images = [...document.querySelectorAll('#detail-picture img')];"
            "return images.length === 2 && images.every(e => e.src.endsWith('.png') && e.naturalWidth)"
        )
    )


def test_half_of_each_is_seen_at_first(page: Page) -> None:
    open_pair(page, 0)
    assert colours_at(page, 0.02, 0.45, 0.55, 0.98) == ["red", "red", "blue", "blue"]
    assert page.script("return document.querySelector('#detail-picture .edited').alt") == (
        "The result of “make the vehicle blue”"
    )
    facts = dict(zip(page.texts("#detail-facts dt"), page.texts("#detail-facts dd"), strict=True))
    assert (facts["Request"], facts["Text of the result"]) == ("make the vehicle blue", "A blue car.")
    link = page.find("#detail-facts").find_element("link text", "Open the result")
    assert str(link.get_attribute("href")).endswith("edited/0.png")


def test_the_slider_moves_by_keyboard(page: Page) -> None:
    """And the arrow keys that move it do not open the next image."""
    open_pair(page, 0)
    slider = page.find("#pair-share")
    assert slider.accessible_name == "Where original and result meet"
    slider.send_keys(Keys.ARROW_RIGHT * 10)
    assert slider.get_attribute("aria-valuetext") == "original 60\u00a0%, result 40\u00a0%"
    assert colours_at(page, 0.55, 0.65) == ["red", "blue"]
    slider.send_keys(Keys.END)
    assert colours_at(page, 0.02, 0.98) == ["red", "red"]
    slider.send_keys(Keys.HOME)
    assert colours_at(page, 0.02, 0.98) == ["blue", "blue"]
    assert page.hash == "#image=0"


def test_the_seam_is_within_the_picture_and_stays_there(page: Page) -> None:
    """An upright picture is narrower than the place for it, and that place changes with the window."""
    open_pair(page, 1)
    for width_px in (1280, 900):
        page.driver.set_window_size(width_px, 900)
        page.until(lambda: colours_at(page, 0.02, 0.4, 0.6, 0.98) == ["red", "red", "blue", "blue"])
    page.driver.set_window_size(1280, 900)


def test_the_slider_begins_in_the_middle_of_each_pair_and_is_not_there_without_one(page: Page) -> None:
    open_pair(page, 0)
    page.find("#pair-share").send_keys(Keys.END)
    page.find("#next").click()
    page.until_equal(lambda: page.find("#pair-share").get_attribute("value"), "50")
    page.find("#next").click()
    page.until(lambda: not page.find("#pair").is_displayed())
    assert page.texts("#detail-title") == ["gone.png"]
    assert page.script("return document.querySelectorAll('#detail-picture .edited, .seam').length") == 0
    assert not page.script("return document.querySelector('#detail-facts').textContent.includes('Open the result')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width_px", [400, 1280])
def test_accessibility(page: Page, scheme: str, width_px: int) -> None:
    with emulated(page, scheme, width_px):
        open_pair(page, 0)
        assert violations(page) == set()
        assert page.find("#pair-share").size["width"] > 150
