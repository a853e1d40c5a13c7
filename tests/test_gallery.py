"""The report's page in a real browser: what is shown, found, sorted and opened, by mouse and by keyboard.

Needs chromium and chromedriver (Debian packages chromium and chromium-driver). Without them these tests are skipped, or
fail where VEC_REQUIRE_BROWSER is set, as .ci/run does.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import JavascriptException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.test_report import make_report, record, write_csv
from tests.test_report_boxes import LINE, boxed, boxed_csv
from vec_pipeline.record import Record

FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-dev-shm-usage --window-size=1280,900"
).split()
EXTRA_COLUMNS = ("text_confidence", "clip_score", "flags", "faces")
COLOURS = {"red": (210, 30, 30), "green": (30, 150, 40), "blue": (30, 60, 200)}
ROWS = 1_200  # two pieces of data, and many times what fits on a screen
WAIT_S = 15.0
HOSTILE = (
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=1</script>",
    "\"><svg onload=window.hacked=1> ' ` ${window.hacked=1}",
    "line\u2028separators\u2029here",
    "\u202eright to left override \u05e9\u05dc\u05d5\u05dd",
    "W" * 400,
    "javascript:window.hacked=1",
)

Value = TypeVar("Value")


class Page:
    """A browser with the gallery open."""

    def __init__(self, driver: webdriver.Chrome, site: Path) -> None:
        self.driver = driver
        self.address = (site / "index.html").as_uri()

    def open(self, state: str = "") -> None:
        """Load the page from scratch, with that state in its hash, until all rows have arrived."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}#{state}")
        self.until(lambda: self.script("return isComplete() && plan !== null && !isRenderDue"))

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def until(self, condition: Callable[[], Value]) -> Value:
        """Wait for a condition to become true."""
        end_s = time.monotonic() + WAIT_S
        while True:
            try:
                if value := condition():
                    return value
            except (JavascriptException, StaleElementReferenceException):
                pass  # the page is changing
            assert time.monotonic() < end_s, f"still not so after {WAIT_S:.0f} s: {self.count()!r}"
            time.sleep(0.03)

    def until_equal(self, function: Callable[[], Value], expected: Value) -> None:
        """Wait for a value; the failure shows the last one."""
        end_s = time.monotonic() + WAIT_S
        while (value := function()) != expected and time.monotonic() < end_s:
            time.sleep(0.03)
        assert value == expected

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The text of what a selector finds, whether it is in view or not."""
        return self.script("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)

    def count(self) -> str:
        return self.script("return document.getElementById('count').textContent")

    def names(self) -> list[str]:
        """The names of the images in the grid, as far as its tiles exist."""
        return self.script("return [...document.querySelectorAll('#grid a')].map(a => nameOf(Number(a.dataset.row)))")

    def focused(self) -> str:
        return self.script(
            "const e = document.activeElement;"
            "return e.id || (e.dataset && e.dataset.row && nameOf(Number(e.dataset.row))) || e.tagName"
        )

    def press(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def choose(self, name: str, value: str) -> None:
        self.find(f"#{name} option[value='{value}']").click()

    @property
    def hash(self) -> str:
        return self.script("return location.hash")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gallery of 1,200 rows: 24 pictures of three colours, errors, hostile texts, and many without a file."""
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "annotations.settings.yaml").write_text("columns: {faces: number}\nstages: {}\n")
    csv = write_csv(folder / "annotations.csv", [*pictures(folder), *failures(), *hostile(), *others()], EXTRA_COLUMNS)
    (folder / "annotations.log").write_text("  describe     90.0 s, and 10.0 s to load its model\n")
    make_report(csv, folder / "site 100% ünique")
    return folder / "site 100% ünique"


def pictures(folder: Path) -> Iterator[Record]:
    rng = np.random.default_rng(0)
    for number in range(24):
        name = list(COLOURS)[number % 3]
        path = folder / f"{name} {number:02}.jpg"
        Image.new("RGB", (320, 200), COLOURS[name]).save(path)
        vector = np.eye(8)[number % 3] + rng.normal(0, 0.02, 8)
        yield record(
            path,
            vector.tolist(),
            text=f"A plain {name} picture, number {number}. Nothing else.",
            description=f"A plain {name} picture.",
            categories=name,
            keywords=f"{name}, plain, number {number}",
            image_text="CAFÉ" if number == 5 else "",
            text_confidence=f"{0.5 + number / 50:.2f}",
            clip_score=f"{0.4 - number / 100:.2f}",
            flags="low_confidence" if number < 4 else "",
            faces=number / 3 if number != 4 else "",
        )


def failures() -> Iterator[Record]:
    yield record("/photos/broken.jpg", error="open_image: OSError: image file is truncated")
    yield record("/photos/empty.jpg", error="open_image: UnidentifiedImageError: the file is empty")


def hostile() -> Iterator[Record]:
    for text in HOSTILE:
        yield record(
            f"/photos/hostile {text.replace('/', '')[:60]}.jpg",
            text=text,
            description=text,
            categories="hostile",
            keywords=text,
            image_text=text,
            error=f"describe: ValueError: {text}",
            flags="low_confidence",
        )


def others() -> Iterator[Record]:
    number = ROWS - 24 - 2 - len(HOSTILE)
    for index in range(number):
        yield record(f"/photos/other {index}.jpg", categories="other", description=f"Another one, {index}.")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    if not (browser and chromedriver):
        reason = "chromium and chromedriver are needed: apt install chromium chromium-driver"
        if os.environ.get("VEC_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    driver.get("about:blank")
    requested(driver)  # what the first page of the browser itself has requested
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome, site: Path) -> Iterator[Page]:
    """The gallery; when a test ends, nothing may stand in the console, and no network may have been asked."""
    yield from opened(driver, site)


def opened(driver: webdriver.Chrome, site: Path) -> Iterator[Page]:
    yield Page(driver, site)
    assert [entry["message"] for entry in driver.get_log("browser")] == []
    assert [address for address in requested(driver) if not address.startswith(("file://", "data:", "about:"))] == []
    assert driver.execute_script("return window.hacked") is None


def requested(driver: webdriver.Chrome) -> list[str]:
    """The addresses of all requests since the last call."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


def test_shows_pictures_with_what_is_known_of_them(page: Page) -> None:
    page.open()
    assert page.count() == "1,200 images"
    first = page.find("#grid a")
    image = first.find_element(By.TAG_NAME, "img")
    page.until(lambda: page.script("return arguments[0].naturalWidth", image) == 192)
    assert image.get_attribute("alt") == "A plain red picture."
    assert image.get_attribute("loading") == "lazy"
    assert "A plain red picture." in first.text
    assert "low_confidence" in first.text
    assert page.texts("#grid a")[4].endswith("confidence 58\u00a0%")
    assert any(address.endswith(".webp") for address in requested(page.driver))


def test_only_tiles_near_the_window_exist(page: Page) -> None:
    page.open()
    assert 20 < len(page.names()) < 80
    page.script("scrollTo(0, document.body.scrollHeight)")
    page.until(lambda: "other 1166.jpg" in page.names())
    assert len(page.names()) < 80
    position = page.until(lambda: page.hash.startswith("#at=") and page.hash)
    page.open(position.removeprefix("#"))
    assert "other 1166.jpg" in page.names()  # a bookmark leads back
    setsizes = page.script("return [...document.querySelectorAll('#grid li')].map(e => e.getAttribute('aria-setsize'))")
    assert set(setsizes) == {"1200"}


def test_grid_stays_within_the_page_when_a_scroll_bar_comes(page: Page) -> None:
    page.open("category=red")
    right = "return Math.max(...[...document.querySelectorAll('#grid li')].map(e => e.getBoundingClientRect().right))"
    page.choose("category", "")
    page.until_equal(page.count, "1,200 images")
    assert page.script(right) <= page.script(
        "return document.getElementById('main').getBoundingClientRect().right - 23"
    )


def test_filters(page: Page) -> None:
    page.open()
    page.choose("category", "green")
    page.until_equal(page.count, "8 of 1,200 images")
    assert all(name.startswith("green") for name in page.names())
    page.choose("flag", "low_confidence")
    page.until_equal(page.names, ["green 01.jpg"])
    assert page.hash == "#category=green&flag=low_confidence"
    assert page.texts("#chips li") == ["Category: green", "Flag: low_confidence", "Clear all"]
    page.find("#chips li:last-child button").click()
    page.until_equal(page.count, "1,200 images")
    page.find("#keyword").send_keys("number 7", Keys.ENTER)
    page.until_equal(page.names, ["green 07.jpg"])
    page.driver.back()
    page.until_equal(page.count, "1,200 images")
    page.find("#errors").click()
    page.until_equal(page.count, f"{2 + len(HOSTILE)} of 1,200 images")
    assert "open_image: OSError" in page.texts("#grid a")[0]


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("NUMBER picture 17.", ["blue 17.jpg"]),  # every word, in any order and case
        ("cafe", ["blue 05.jpg"]),  # without the accent
        ("truncated", ["broken.jpg"]),  # an error
        ("blue 08", ["blue 08.jpg"]),  # a name
        ("nowhere to be found", []),
    ],
)
def test_search(page: Page, typed: str, names: list[str]) -> None:
    page.open()
    page.find("#q").send_keys(typed)
    page.until_equal(page.names, names)
    page.until(lambda: page.hash.startswith("#q="))
    assert page.texts(".empty") == ([] if names else ["No image matches these filters."])


def test_sort(page: Page) -> None:
    page.open("category=red")
    by_number = [f"red {number:02}.jpg" for number in range(0, 24, 3)]
    page.until_equal(page.names, by_number)
    page.choose("sort", "clip")
    page.until_equal(page.names, by_number[::-1])
    page.find("#direction").click()
    page.until_equal(page.names, by_number)
    assert page.hash == "#category=red&sort=-clip"
    page.open("sort=-confidence")
    page.until_equal(lambda: page.names()[:3], ["blue 23.jpg", "green 22.jpg", "red 21.jpg"])
    page.open("sort=confidence")
    assert page.names()[:2] == ["red 00.jpg", "green 01.jpg"]  # those without a value are last in both directions
    page.open("sort=name&q=other")
    assert page.names()[:3] == ["other 0.jpg", "other 1.jpg", "other 2.jpg"]  # numbers by their value
    page.open("sort=-category")
    assert page.names()[0].startswith("red")


def test_one_image_by_keyboard(page: Page) -> None:
    page.open()
    page.press(Keys.TAB)
    assert page.focused() == "skip"
    page.press(Keys.ENTER)
    assert page.focused() == "red 00.jpg"
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert page.focused() == "green 01.jpg"
    page.press(Keys.ARROW_DOWN)
    columns = page.script("return columns")
    assert page.focused() == page.names()[1 + columns]
    page.press(Keys.ARROW_UP, Keys.ENTER)
    page.until(lambda: page.find("#detail").is_displayed())
    assert page.find("#detail").aria_role == "dialog"
    assert page.find("#detail").accessible_name == "green 01.jpg"
    assert page.hash == "#image=1"
    picture = page.until(lambda: page.find("#detail-picture img[src$='green%2001.jpg']"))
    page.until(lambda: page.script("return arguments[0].naturalWidth", picture) == 320)  # the file itself
    assert picture.get_attribute("alt") == "A plain green picture."
    facts = page.find("#detail-facts").text
    for fact in (
        "A plain green picture, number 1. Nothing else.",
        "plain",
        "number 1",
        "low_confidence",
        "0.520",
        "0.390",
        "faces\n0.333333",
    ):
        assert fact in facts
    page.press(Keys.ARROW_RIGHT)
    page.until_equal(lambda: page.find("#detail-title").text, "blue 02.jpg")
    assert page.find("#detail-place").text == "3 of 1,200"
    page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    page.until_equal(lambda: page.find("#detail-title").text, "red 00.jpg")
    assert not page.find("#previous").is_enabled()
    page.press(Keys.ARROW_RIGHT, Keys.ESCAPE)
    page.until(lambda: not page.find("#detail").is_displayed())
    page.until_equal(page.focused, "green 01.jpg")  # focus is on the image that was shown last
    assert page.hash in ("", "#")
    page.press(Keys.END)
    page.until_equal(page.focused, "other 1166.jpg")
    page.press(Keys.HOME)
    page.until_equal(page.focused, "red 00.jpg")


def test_one_image_by_mouse(page: Page) -> None:
    page.open("q=picture")
    page.find("#grid a[data-row='4']").click()
    page.until_equal(lambda: page.find("#detail-title").text, "green 04.jpg")
    links = page.driver.find_elements(By.CSS_SELECTOR, "#detail-facts a[target=_blank]")
    assert [link.get_attribute("href").rpartition("/")[2] for link in links] == ["green%2004.jpg"]
    assert "faces" not in page.find("#detail-facts").text  # it has none
    assert page.texts("#detail-facts .strip a")[0].startswith("A plain green")  # its near-duplicates
    page.driver.back()
    page.until(lambda: not page.find("#detail").is_displayed())
    page.driver.forward()
    page.until(lambda: page.find("#detail").is_displayed())
    page.find("#next").click()
    page.until_equal(lambda: page.find("#detail-title").text, "blue 05.jpg")
    next(
        link for link in page.driver.find_elements(By.CSS_SELECTOR, "#detail-facts a") if link.text == "number 5"
    ).click()
    page.until_equal(page.names, ["blue 05.jpg"])
    assert not page.find("#detail").is_displayed()


def test_an_image_whose_file_is_gone(page: Page) -> None:
    page.open("image=24")
    page.until(lambda: page.find("#detail").is_displayed())
    assert page.find("#detail-picture").text == "No picture\nThe image was not available when this report was made."
    assert "open_image: OSError: image file is truncated" in page.find("#detail-facts").text


def test_an_image_elsewhere_is_linked_and_not_loaded(page: Page) -> None:
    """A report needs no network."""
    page.open("image=0")
    page.until(lambda: page.find("#detail").is_displayed())
    page.script("data.link[0] = 'https://example.org/a.jpg'; showPicture(0); $('detail-facts').append(...factsOf(0))")
    sources = page.script("return [...document.querySelectorAll('#detail-picture img')].map(e => e.src)")
    assert [source.endswith(".webp") for source in sources] == [True]
    assert page.find("#detail-picture").text == ""
    assert page.texts("#detail-facts a[href='https://example.org/a.jpg']") == ["Open the image"]
    assert not any(address.startswith("https:") for address in requested(page.driver))


def test_near_duplicates(page: Page) -> None:
    page.open("view=groups")
    assert page.texts("#groups h3") == [f"Group {number}: 8 images" for number in (1, 2, 3)]
    page.find("#groups section a").click()  # Show in the grid
    page.until_equal(page.count, "8 of 1,200 images")
    assert {name.split()[0] for name in page.names()} == {"red"}
    page.open("view=groups&category=blue")
    assert page.texts("#groups h3") == ["Group 3: 8 images"]


def test_map(page: Page) -> None:
    page.open("view=map")
    dots = page.until(lambda: page.script("return mapDots.map(dot => [dot.row, dot.x, dot.y])"))
    assert {row for row, _, _ in dots} == set(range(24))
    row, x, y = dots[0]
    canvas = page.find("#map")
    left, top = x - canvas.size["width"] / 2, y - canvas.size["height"] / 2
    ActionChains(page.driver).move_to_element_with_offset(canvas, round(left), round(top)).perform()
    page.until(lambda: page.find("#map-tip").is_displayed())
    shown = int(page.find("#map-tip").get_attribute("data-row"))
    assert shown % 3 == row % 3  # that image, or one that lies on it and so is of its colour
    page.until(lambda: page.script("return document.querySelector('#map-tip img').naturalWidth"))
    ActionChains(page.driver).move_to_element_with_offset(canvas, round(left), round(top)).click().perform()
    page.until(lambda: page.find("#detail").is_displayed())
    assert page.hash == f"#view=map&image={shown}"
    page.press(Keys.ESCAPE)
    page.until_equal(page.focused, "map")
    page.press("+", "+", Keys.ARROW_LEFT)
    page.until(lambda: "1.96" in page.hash)  # a slow second key comes after the first one's zoom is in it
    zoom = page.script("return mapCamera.zoom")
    assert zoom == pytest.approx(1.96)
    page.open(page.hash.removeprefix("#"))
    assert page.script("return mapCamera.zoom") == pytest.approx(zoom)
    page.find("#map").send_keys("0")
    assert page.script("return mapCamera.zoom") == 1
    page.until(lambda: len(page.texts("#map-list a")) == 18)  # the same by keyboard: a list of what is in the middle
    page.find("#legend button[data-category='green']").click()
    page.until_equal(page.count, "8 of 1,200 images")
    page.until(lambda: set(page.texts("#map-list .says")) == {"A plain green picture."})


def test_map_can_be_dragged_and_zoomed_at_the_pointer(page: Page) -> None:
    page.open("view=map")
    page.until(lambda: page.script("return mapDots.length") == 24)
    before = page.script("return mapDots.find(dot => dot.row === 0)")
    canvas = page.find("#map")
    ActionChains(page.driver).move_to_element_with_offset(canvas, -400, -200).click_and_hold().move_by_offset(
        60, 40
    ).release().perform()
    after = page.script("return mapDots.find(dot => dot.row === 0)")
    assert (after["x"] - before["x"], after["y"] - before["y"]) == pytest.approx((60, 40), abs=1)
    page.script("zoomMap(2, arguments[0].x, arguments[0].y)", after)
    zoomed = page.script("return mapDots.find(dot => dot.row === 0)")
    assert (zoomed["x"], zoomed["y"]) == pytest.approx((after["x"], after["y"]), abs=0.5)


def test_summary(page: Page) -> None:
    page.open("view=summary")
    cards = page.texts(".card")
    assert cards[:3] == ["1,200images", "9with an error, 0.8\u00a0%", "8with text on the image, 0.7\u00a0%"]
    assert page.texts("[aria-label='Categories'] li")[:2] == ["other1,167", "red8"]
    assert page.texts("[aria-label='Seconds per stage'] li") == ["describe90.0\u00a0s + 10.0\u00a0s"]
    plot = page.find("svg[role=img]").get_attribute("aria-label")
    assert plot.startswith("Confidence of the text. 0.50 to 0.55: 3; 0.55 to 0.60: 2; 0.60 to 0.65: 3;")
    next(link for link in page.driver.find_elements(By.CSS_SELECTOR, ".bars a") if "OSError" in link.text).click()
    page.until_equal(page.names, ["broken.jpg"])


@pytest.mark.parametrize("view", ["grid", "groups", "map", "summary"])
def test_text_is_never_html(page: Page, view: str) -> None:
    page.open(f"view={view}&category=hostile")
    page.until(lambda: page.find(f"#view-{view}").is_displayed())
    if view == "grid":
        assert page.texts("#grid .says") == list(HOSTILE)
        for position, text in enumerate(HOSTILE):
            page.script("go({ image: String(24 + 2 + arguments[0]) })", position)
            page.until_equal(lambda text=text: page.texts("#detail .lead"), [text])
    if view == "summary":
        assert f"describe: ValueError{len(HOSTILE)}" in page.texts("[aria-label='Errors'] li")
    assert page.script("return document.querySelectorAll('[onerror], [onload], svg[onload], img[src=x]').length") == 0
    width = page.script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]  # nor does a long word burst the page


def test_a_state_made_up_by_somebody_else_does_no_harm(page: Page) -> None:
    page.open("view=<b>&q=%3Cimg%20src=x%20onerror=window.hacked=1%3E&sort=constructor&image=99999&map=a,b&at=x")
    assert page.texts("#chips bdi")[0] == f"“{HOSTILE[0]}”"
    page.until_equal(page.count, "1 of 1,200 images")


def violations(page: Page) -> set[tuple[str, str]]:
    """What axe-core finds, and whether the page is wider than the window."""
    page.script(files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    is_wide = page.script("return document.documentElement.scrollWidth > innerWidth")
    return {(each["id"], each["nodes"][0]["html"]) for each in found["violations"]} | (
        {("wide", "")} if is_wide else set()
    )


@contextmanager
def emulated(page: Page, scheme: str, width_px: int) -> Iterator[None]:
    """A block in which the page is as wide, and in the colours, that a reader has asked for."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    metrics = {"width": width_px, "height": 860, "deviceScaleFactor": 1, "mobile": width_px == 400}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        yield
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("width_px", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(page: Page, scheme: str, width_px: int) -> None:
    """axe-core finds nothing, the contrast of text included, in any view and in the dialog."""
    with emulated(page, scheme, width_px):
        for state in ("", "errors=1", "view=groups", "view=map", "view=summary", "image=1"):
            page.open(state)
            assert violations(page) == set(), state


def test_count_is_announced(page: Page) -> None:
    page.open()
    assert page.find("#count").aria_role == "status"
    page.choose("category", "blue")
    page.until_equal(page.count, "8 of 1,200 images")


def test_a_missing_part_is_told(page: Page, site: Path) -> None:
    part = next(site.glob("gallery/data-*/data-rows-1.js"))
    part.rename(part.with_suffix(".away"))
    try:
        page.driver.get("about:blank")
        page.driver.get(page.address)
        page.until(lambda: page.find("#notice").is_displayed())
        assert "data-rows-1.js" in page.find("#notice").text
        assert len(page.names()) > 20  # the rest is shown
        log = [entry["message"] for entry in page.driver.get_log("browser")]
        assert all("ERR_FILE_NOT_FOUND" in message for message in log)
    finally:
        part.with_suffix(".away").rename(part)


RED_BOX = (96, 48, 240, 192)  # of a red rectangle in pictures of 384 x 288 pixels
PERSON_BOX = (260, 100, 330, 260)
SIGN = [[100, 230], [200, 240], [198, 262], [98, 252]]
CROWD = 300
ROWS_WITH_BOXES = ("scene.png", "turned.jpg", "turned.webp", "crowd.png", "hostile.png", "plain.png", "gone.png")
LINE_OF_BOX = "document.querySelector(`svg.boxes [data-box='${arguments[0]}'] polygon:not(.halo)`)"


def thing(label: str, score: float, *box: int) -> dict[str, Any]:
    return {"label": label, "score": score, "box": box}


@pytest.fixture(scope="module")
def boxed_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gallery of a few pictures with boxes: turned ones, one with 300 small objects, and one with hostile texts."""
    folder = tmp_path_factory.mktemp("boxes")
    image = Image.new("RGB", (384, 288), "white")
    image.paste((220, 20, 20), RED_BOX)
    turn = Image.Exif()
    turn[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = image.transpose(Image.Transpose.ROTATE_90)
    image.save(folder / "scene.png")
    turned.save(folder / "turned.jpg", exif=turn, quality=95)
    turned.save(folder / "turned.webp", exif=turn, lossless=True)
    Image.new("RGB", (1600, 1000), "grey").save(folder / "crowd.png")
    for name in ("hostile.png", "plain.png"):
        image.save(folder / name)
    car, person = thing("car", 0.912, *RED_BOX), thing("person", 0.8, *PERSON_BOX)
    guess = {**person, "age": {"adult": 0.98, "child": 0.02}, "gender": {"female": 0.972, "male": 0.028}}
    sign = {**LINE, "text": "Sälé 50 %", "box": SIGN}
    evil = [thing(text, 0.9 - i / 100, 10 * i, 10, 10 * i + 60, 200) for i, text in enumerate((*HOSTILE, "x" * 10_000))]
    values: list[dict[str, Any]] = [
        {"objects": [car, person], "people": [guess], "ocr_boxes": [sign]},
        {"objects": [car]},
        {"objects": [car]},
        {"objects": crowd()},
        {"objects": evil, "ocr_boxes": [{**LINE, "text": each["label"]} for each in evil], "people": [guess]},
        {"objects": [], "people": [], "ocr_boxes": []},
        {"objects": [person] * 3},
    ]
    rows = [boxed(folder / name, **row) for name, row in zip(ROWS_WITH_BOXES, values, strict=True)]
    make_report(boxed_csv(folder / "annotations.csv", *rows), folder / "site")
    return folder / "site"


def crowd() -> list[dict[str, Any]]:
    """Three hundred objects of 4 to 90 pixels, the last of a single one."""
    rng = np.random.default_rng(0)
    left, top = rng.integers(0, 1500, CROWD), rng.integers(0, 870, CROWD)
    width, height = rng.integers(4, 90, CROWD), rng.integers(4, 120, CROWD)
    boxes = np.stack([left, top, left + width, top + height], axis=1)
    boxes[-1] = 1590, 990, 1591, 991
    labels = rng.choice(["person", "car", "traffic light"], CROWD)
    return [
        thing(str(label), 0.99 - i / 500, *box)
        for i, (label, box) in enumerate(zip(labels, boxes.tolist(), strict=True))
    ]


@pytest.fixture
def boxed_page(driver: webdriver.Chrome, boxed_site: Path) -> Iterator[Page]:
    yield from opened(driver, boxed_site)
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def resize(page: Page, width: int, height: int = 780) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def open_image(page: Page, name: str, *, ending: str = "") -> None:
    """Open the dialog, until the file itself is shown, or what ends so."""
    page.open(f"image={ROWS_WITH_BOXES.index(name)}")
    page.until(lambda: page.script("return document.querySelector('#detail-picture img').naturalWidth"))
    page.until(lambda: page.find("#detail-picture img").get_attribute("src").endswith(ending or name))


def box_on_screen(page: Page, index: int) -> list[float]:
    """Left, top, right and bottom of a box, in pixels of the window."""
    return page.script(
        f"const line = {LINE_OF_BOX}, matrix = line.getScreenCTM();"
        "const points = [...line.points].map(point => point.matrixTransform(matrix));"
        "const x = points.map(point => point.x), y = points.map(point => point.y);"
        "return [Math.min(...x), Math.min(...y), Math.max(...x), Math.max(...y)]",
        index,
    )


def red_on_screen(page: Page) -> list[float]:
    """Where the picture in the dialog is red, in pixels of the window, by a screenshot without the boxes."""
    page.script("for (const node of document.querySelectorAll('.boxes')) node.style.visibility = 'hidden'")
    figure = page.find("#detail-picture")
    red, green, blue = np.asarray(Image.open(BytesIO(figure.screenshot_as_png)).convert("RGB")).T.astype(int)
    x, y = np.nonzero((red > 170) & (green < 140) & (blue < 140))
    left, top = page.script("const box = arguments[0].getBoundingClientRect(); return [box.left, box.top]", figure)
    return [left + x.min(), top + y.min(), left + x.max() + 1, top + y.max() + 1]


def visible_tags(page: Page) -> list[str]:
    return page.script(
        "return [...document.querySelectorAll('.tag')].filter(tag => tag.checkVisibility({ visibilityProperty: true }))"
        ".map(tag => tag.innerText.trim().replaceAll('\u00a0', ' '))"
    )


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize(
    ("name", "ending", "is_elsewhere"),
    [
        ("scene.png", "", False),
        ("turned.jpg", "", False),
        ("turned.webp", ".webp", False),
        ("scene.png", ".webp", True),  # there is but its thumbnail
    ],
)
def test_boxes_lie_on_what_they_are_of(
    boxed_page: Page, name: str, ending: str, is_elsewhere: bool, width: int
) -> None:
    resize(boxed_page, width)
    open_image(boxed_page, name, ending="" if is_elsewhere else ending)
    if is_elsewhere:
        boxed_page.script("data.link[0] = 'https://example.org/a.png'; showPicture(0)")
        boxed_page.until(lambda: boxed_page.script("return document.querySelector('#detail-picture img').naturalWidth"))
    assert boxed_page.find("#detail-picture img").get_attribute("src").endswith(ending or name)
    assert box_on_screen(boxed_page, 0) == pytest.approx(red_on_screen(boxed_page), abs=2)
    resize(boxed_page, width + 40, 600)  # they follow the picture
    boxed_page.until_equal(lambda: boxed_page.script("return innerWidth"), width + 40)
    assert box_on_screen(boxed_page, 0) == pytest.approx(red_on_screen(boxed_page), abs=2)
    tag = (
        "const tag = document.querySelector(\".tag[data-box='0']\").getBoundingClientRect();"
        "return [tag.left, tag.bottom]"
    )
    corner = box_on_screen(boxed_page, 0)[:2]
    boxed_page.until(lambda: boxed_page.script(tag) == pytest.approx(corner, abs=2))


def test_boxes_are_listed_and_labelled(boxed_page: Page) -> None:
    page = boxed_page
    open_image(page, "scene.png")
    assert visible_tags(page) == ["car 91 %", "person 80 %\nadult 98 %, female 97 %", "Sälé 50 %"]
    assert len(page.texts("svg.boxes g")) == 3  # a person has one box, not two
    assert page.script(f"return {LINE_OF_BOX}.getAttribute('points')", 2) == "100 230 200 240 198 262 98 252"
    entries = page.driver.find_elements(By.CSS_SELECTOR, ".entry")
    names = ["car 91\u00a0%", "person 80\u00a0% adult 98\u00a0%, female 97\u00a0%", "Sälé 50 % 100\u00a0%"]
    assert [" ".join(entry.accessible_name.split(" ")) for entry in entries] == names
    lists = page.driver.find_elements(By.CSS_SELECTOR, ".entries")
    assert [each.accessible_name for each in lists] == ["Objects, the surest first", "Lines of text"]
    assert [each.aria_role for each in lists] == ["list", "list"]
    assert len(page.texts(".entry[tabindex='0']")) == len(lists)
    colours = page.script("return [...document.querySelectorAll('.tag')].map(e => getComputedStyle(e).backgroundColor)")
    assert len(set(colours)) == 3


def test_labels_of_one_image_have_colours_of_their_own(boxed_page: Page) -> None:
    boxed_page.open()
    ten = "return [...labelColours(head.objects.slice(...arguments).map(([label]) => label)).values()]"
    first = boxed_page.script(ten, 0, 10)
    assert len(set(first)) == 10
    assert boxed_page.script(ten, 1, 11) == [*first[1:], first[0]]  # the eleventh label takes what is left
    assert boxed_page.script(ten, 10, 11) == [first[0]]
    assert len(boxed_page.script(ten, 0, 11)) == 11
    without_tenth = ten.replace("slice(...arguments)", "filter((_, i) => i !== 9)")
    assert boxed_page.script(without_tenth) == [*first[:9], first[9]]  # the first has that of the eleventh


def test_layers_are_switched_by_keyboard(boxed_page: Page) -> None:
    page = boxed_page
    open_image(page, "scene.png")
    assert page.texts("#layers label") == ["Objects 2", "People 1", "Text 1"]
    page.find("#layer-people").send_keys(Keys.SPACE)
    page.until_equal(lambda: visible_tags(page), ["car 91 %", "person 80 %", "Sälé 50 %"])
    page.press(Keys.TAB, Keys.SPACE)
    assert page.focused() == "layer-text"
    page.until_equal(lambda: visible_tags(page), ["car 91 %", "person 80 %"])
    page.find("#layer-objects").send_keys(Keys.SPACE)
    page.until_equal(lambda: visible_tags(page), [])
    page.find("#layer-people").send_keys(Keys.SPACE)
    page.until_equal(lambda: visible_tags(page), ["person 80 %\nadult 98 %, female 97 %"])
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_LEFT)  # to another image and back
    page.until(lambda: visible_tags(page) == ["person 80 %\nadult 98 %, female 97 %"])
    page.script("document.querySelector('.entry').focus()")  # what is listed is shown even so
    page.until_equal(lambda: visible_tags(page), ["car 91 %"])
    page.script("head.boxed.people = head.boxed.text = 0; fillLayers()")  # as of a CSV with objects alone
    assert page.find("#layers").text.split() == ["Objects", "2"]


def test_an_entry_and_its_box_are_highlighted_together(boxed_page: Page) -> None:
    page = boxed_page
    open_image(page, "scene.png")
    active = "return [...document.querySelectorAll('.active')].map(e => `${e.classList[0]} ${e.dataset.box}`)"

    def hover(element: WebElement, *offset: int) -> None:
        ActionChains(page.driver).move_to_element_with_offset(element, *offset or (0, 0)).perform()

    hover(page.find(".entry[data-box='1']"))
    page.until_equal(lambda: sorted(page.script(active)), ["box 1", "entry 1", "tag 1"])
    assert visible_tags(page) == ["person 80 %\nadult 98 %, female 97 %"]
    hover(page.find("#detail-title"))
    page.until_equal(lambda: page.script(active), [])
    hover(page.find("svg.boxes [data-box='0']"))
    page.until_equal(lambda: sorted(page.script(active)), ["box 0", "entry 0", "tag 0"])
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.until(lambda: len(visible_tags(page)) > 3)  # nothing is left of it in another image


def test_entries_by_keyboard(boxed_page: Page) -> None:
    page = boxed_page
    open_image(page, "scene.png")
    chosen = "return document.activeElement.classList.contains('entry') && document.activeElement.dataset.box"
    for _ in range(20):
        page.press(Keys.TAB)
        if page.script(chosen) == "0":
            break
    page.press(Keys.ARROW_DOWN)
    assert page.script(chosen) == "1"
    page.until_equal(lambda: visible_tags(page), ["person 80 %\nadult 98 %, female 97 %"])
    page.press(Keys.ARROW_DOWN)  # it is the last
    assert page.script(chosen) == "1"
    page.press(Keys.TAB)
    assert page.script(chosen) == "2"  # one step of Tab for each list
    ActionChains(page.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    assert page.script(chosen) == "1"
    page.press(Keys.HOME)
    assert page.script(chosen) == "0"
    page.press(Keys.END)
    assert page.script(chosen) == "1"
    page.script("showPicture(0)")  # as when the file comes after its thumbnail
    page.until(lambda: page.script("return document.querySelector('.tag.active').dataset.box === '1'"))
    page.script("$('close').focus()")
    assert page.texts(".active") == []
    page.press(Keys.ARROW_RIGHT)  # still the next image
    page.until_equal(lambda: page.find("#detail-title").text, "turned.jpg")


def test_on_a_phone_an_entry_brings_the_picture_into_view(boxed_page: Page) -> None:
    resize(boxed_page, 360, 560)
    open_image(boxed_page, "scene.png")
    boxed_page.script("document.querySelector('.detail-body').scrollTop = 1000")
    top = "return document.getElementById('detail-picture').getBoundingClientRect().top"
    assert boxed_page.script(top) < 0
    boxed_page.find(".entry").click()
    boxed_page.until(lambda: boxed_page.script(top) >= 0)
    assert visible_tags(boxed_page) == ["car 91 %"]


def test_three_hundred_boxes_can_be_told_apart(boxed_page: Page) -> None:
    page = boxed_page
    open_image(page, "crowd.png")
    rects = page.script(
        "return [...document.querySelectorAll('.tag:not(.crowded)')].map(tag => tag.getBoundingClientRect())"
        ".map(r => [r.left, r.top, r.right, r.bottom])"
    )
    assert 10 < len(rects) < CROWD  # the others have no place
    assert len(visible_tags(page)) == len(rects)
    edges = np.array(rects)
    low, high = np.maximum(edges[:, None, :2], edges[:, :2]), np.minimum(edges[:, None, 2:], edges[:, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    np.fill_diagonal(shared, 0)
    assert shared.max() < 1  # no label covers another
    unreached = page.script(
        "const area = i => areaOf(boxes[i]);"
        "return [...document.querySelectorAll('g.box')].filter(box => {"
        "  const r = box.lastChild.getBoundingClientRect();"
        "  const hit = document.elementFromPoint((r.left + r.right) / 2, (r.top + r.bottom) / 2);"
        "  const other = hit.closest('[data-box]');"
        "  return !other || (!hit.closest('.tag') && area(other.dataset.box) > area(box.dataset.box));"
        "}).map(box => box.dataset.box)"
    )
    assert unreached == []  # large ones lie under small ones
    page.script("document.querySelectorAll('.entry')[299].focus()")
    assert len(visible_tags(page)) == 1
    assert page.find(".entries").size["height"] < 300
    page.script("document.querySelector('.entries').scrollTop = 0")
    pointer = ActionBuilder(page.driver)
    pointer.pointer_action.move_to_location(*map(round, box_on_screen(page, CROWD - 1)[:2]))
    pointer.perform()
    page.until_equal(lambda: page.script("return document.querySelector('.box.active').dataset.box"), str(CROWD - 1))
    bottoms = "return ['.entry.active', '.entries'].map(s => document.querySelector(s).getBoundingClientRect().bottom)"
    entry, view = page.script(bottoms)
    assert entry <= view + 1  # the list has scrolled to it


def test_more_boxes_than_are_shown(boxed_page: Page) -> None:
    open_image(boxed_page, "scene.png")
    boxed_page.script("data.objects[0] = Array(10000).fill(data.objects[0][0]); readBoxes(0); showPicture(0);")
    boxed_page.script("$('detail-facts').replaceChildren(...factsOf(0))")
    assert len(boxed_page.texts(".entry")) == 1001
    assert boxed_page.texts(".entries + .muted") == ["The first 1,000 of 10,000."]


def test_labels_and_lines_are_never_html(boxed_page: Page) -> None:
    page = boxed_page
    open_image(page, "hostile.png")
    texts = [*HOSTILE, "x" * 10_000]
    assert page.texts(".entries .name") == [*texts, "person", *texts]
    assert page.texts("#layers label") == ["Objects 8", "People 1", "Text 8"]
    assert page.texts(".tag bdi")[: len(HOSTILE)] == [text[:120] for text in HOSTILE]
    assert all(
        chip.size["height"] < 40 for chip in page.driver.find_elements(By.CSS_SELECTOR, "#detail-facts .chips a")
    )
    assert page.script("const facts = $('detail-facts'); return facts.scrollWidth <= facts.clientWidth")
    page.script("document.querySelectorAll('.entry')[7].focus()")
    for selector in (".tag.active", ".entry.active"):
        size = page.find(selector).size
        assert size["width"] < 500
        assert size["height"] < 300
    assert page.script("return document.querySelectorAll('[onerror], [onload], svg[onload], img[src=x]').length") == 0
    page.open("view=summary")
    assert set(texts) < set(page.texts("[aria-label=Objects] .name"))
    options = page.script("return [...document.querySelectorAll('#object option')].map(e => e.value)")
    assert {"", "car", "person", *texts} <= set(options)
    width = page.script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]


def test_a_picture_without_boxes_or_without_a_size(boxed_page: Page) -> None:
    page = boxed_page
    open_image(page, "plain.png")
    assert page.texts("#layers label") == ["Objects 0", "People 0", "Text 0"]
    assert page.texts(".boxes, .entries, .entry") == []
    page.open(f"image={ROWS_WITH_BOXES.index('gone.png')}")
    assert page.texts(".entry") == ["person 80\u00a0%"] * 3
    assert page.texts(".boxes") == []
    open_image(page, "scene.png")
    page.script("data.size[0] = [768, 576]; showPicture(0)")  # of a drawing, say, which a browser shows in another size
    page.until(lambda: page.script("return document.querySelector('#detail-picture img').src").endswith("scene.png"))
    assert page.script("return document.querySelector('svg.boxes').getAttribute('viewBox')") == "0 0 768 576"
    page.script("data.size[0] = null; showPicture(0)")
    page.until(lambda: page.script("return document.querySelector('#detail-picture img').src").endswith("scene.png"))
    assert box_on_screen(page, 0) == pytest.approx(red_on_screen(page), abs=2)  # by the file itself
    page.script("data.link[0] = 'https://example.org/a.png'; showPicture(0)")
    assert page.find("#detail-picture figcaption").text == "Its boxes cannot be drawn, since its size is not known."


def test_filters_by_object_and_by_text(boxed_page: Page) -> None:
    page = boxed_page
    page.open()
    assert page.texts("#object option")[:3] == ["All", "car (4)", "person (3)"]
    page.choose("object", "person")
    page.until_equal(page.names, ["scene.png", "crowd.png", "gone.png"])
    page.find("#text").click()
    page.until_equal(page.names, ["scene.png"])
    assert page.hash == "#object=person&text=1"
    assert page.texts("#chips li") == ["Object: person", "With text", "Clear all"]
    page.open("text=1&q=sale")  # words that were read are found, without the accents
    page.until_equal(page.names, ["scene.png"])
    assert page.find("#text").is_selected()
    page.find("#text").click()
    page.until_equal(lambda: page.hash, "#q=sale")
    open_image(page, "scene.png")
    page.driver.find_element(By.LINK_TEXT, "car").click()
    page.until_equal(lambda: page.hash, "#object=car")
    page.until_equal(page.names, ["scene.png", "turned.jpg", "turned.webp", "crowd.png"])


def test_summary_of_objects(boxed_page: Page) -> None:
    boxed_page.open("view=summary")
    numbers = dict(
        zip(*(boxed_page.texts(f"[aria-label=Objects] {each}") for each in (".name", ".number")), strict=True)
    )
    people = sum(each["label"] == "person" for each in crowd())
    assert numbers["person"] == f"{people + 4} in 3"
    assert numbers["x" * 10_000] == "1 in 1"
    counts = [int(number.split()[0]) for number in numbers.values()]
    assert counts == sorted(counts, reverse=True)
    bars = "return [...document.querySelectorAll('[aria-label=Objects] .track')].map(e => e.children.length)"
    assert boxed_page.script(bars) == [2, 2, 2, *[1] * (len(counts) - 3)]


def test_nothing_is_shown_of_boxes_where_the_csv_has_none(page: Page) -> None:
    page.open("image=1")
    for name in ("object", "text", "layers"):
        assert not page.find(f"#{name}").is_displayed(), name
    assert page.texts(".boxes, .entries") == []
    page.open("view=summary")
    assert page.texts("[aria-label=Objects]") == []


AXE_OF_BOXES = [
    ("light", 1280, ["object=car&text=1", "view=summary", "image=3"]),
    ("dark", 360, ["image=0", "image=4"]),
]


@pytest.mark.parametrize(("scheme", "width", "states"), AXE_OF_BOXES)
def test_accessibility_of_boxes(boxed_page: Page, scheme: str, width: int, states: list[str]) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    boxed_page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    resize(boxed_page, width)
    try:
        for state in states:
            boxed_page.open(state)
            assert violations(boxed_page) == set(), state
    finally:
        boxed_page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
