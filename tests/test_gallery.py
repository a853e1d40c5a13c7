"""The report's page in a real browser: what is shown, found, sorted and opened, by mouse and by keyboard.

Needs chromium and chromedriver (Debian packages chromium and chromium-driver). Without them these tests are skipped, or
fail where VEC_REQUIRE_BROWSER is set, as .ci/run does.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import JavascriptException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.test_report import make_report, record, write_csv
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
    driver.get("about:blank")
    requested(driver)  # what the first page of the browser itself has requested
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome, site: Path) -> Iterator[Page]:
    """The gallery; when a test ends, nothing may stand in the console, and no network may have been asked."""
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


@pytest.mark.parametrize("width_px", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(page: Page, scheme: str, width_px: int) -> None:
    """axe-core finds nothing, the contrast of text included, in any view and in the dialog."""
    axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    metrics = {"width": width_px, "height": 860, "deviceScaleFactor": 1, "mobile": width_px == 400}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        for state in ("", "errors=1", "view=groups", "view=map", "view=summary", "image=1"):
            page.open(state)
            page.script(axe)
            found = page.driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
            assert {(found_["id"], found_["nodes"][0]["html"]) for found_ in found["violations"]} == set(), state
            assert page.script("return document.documentElement.scrollWidth <= innerWidth"), state
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


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
