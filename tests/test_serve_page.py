"""The server's page in a real browser, as those who see it and those who hear it use it: given a picture, what is said.

Needs chromium and chromedriver, as test_gallery.py. Most rows come from a function of the test, behind the server's own
HTTP interface; one test has the bundled models.
"""

import base64
import itertools
import json
import re
import shutil
import socket
import threading
import time
import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import HTTPException
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.conftest import EXAMPLES, PROJECT
from tests.test_gallery import HOSTILE, driver, requested  # noqa: F401 (driver is a fixture)
from tests.test_serve import running
from vec_pipeline.commands.search.query import Makers, Vector
from vec_pipeline.commands.serve.access import hash_of
from vec_pipeline.commands.serve.annotator import Annotator
from vec_pipeline.commands.serve.api import Service, create_app
from vec_pipeline.commands.serve.intake import Intake
from vec_pipeline.commands.serve.limits import Limited
from vec_pipeline.commands.serve.metrics import Metrics
from vec_pipeline.commands.serve.rows import Rows
from vec_pipeline.commands.serve.search import Search
from vec_pipeline.commands.serve.uploads import Uploads
from vec_pipeline.downloads import DownloadError
from vec_pipeline.downloads.client import checked
from vec_pipeline.downloads.network import PrivateAddressError, connection_failure, failure_of
from vec_pipeline.downloads.responses import check_redirect, is_picture
from vec_pipeline.memory import describe_failure
from vec_pipeline.pictures import Limits, decode
from vec_pipeline.record import COLUMNS, Record, Stage, UserError

PAGE = PROJECT / "vec_pipeline" / "commands" / "serve" / "page"
WAIT_S = 20.0
TYPES = {**COLUMNS, "flags": "text", "objects": "json", "speech": "file", "asked": "text"}
TYPES |= {
    "people_count": "number",
    "people": "json",
    "description_ru": "text",
    "description_audio": "file",
    "description_ru_audio": "file",
}
CUP = {
    "description": "An orange cup on a green background.",
    "text": "An orange cup on a green background. The text reads XZWH.",
    "image_text": "XZWH",
    "categories": "household",
    "keywords": "cup, orange",
}
HEARD_OF_THE_CUP = [
    "heading cup.png",
    "An orange cup on a green background.",
    "button Read aloud",
    "button Copy the text",
    "button Download as JSON",
    "In full",
    "An orange cup on a green background. The text reads XZWH.",
    "Text on the picture",
    "XZWH",
    "Category",
    "household",
    "Keywords",
    "cup, orange",
]


class Words(Makers):
    """Vectors that say which of three words a text has; rows have them as the test gives them.

    columns: that there are.
    """

    def __init__(self) -> None:
        super().__init__(self.stage_of, lambda stage: nullcontext())
        self.columns = ["image_vector"]
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def stage_of(self, name: str) -> tuple[Stage, str]:
        if name not in self.columns:
            raise UserError("there is none")
        return Stage(), name

    def sight_query(self, text: str) -> Vector:
        assert self.may_go_on.wait(30)
        return vector_of(text)

    def meaning_query(self, text: str) -> Vector:
        return vector_of(text)


def vector_of(text: str) -> Vector:
    return np.array([word in text for word in ("cup", "cat", "tree")], np.float32)


class Served:
    """The server in a thread of this process, whose rows are `answers`, by the width of the picture in pixels.

    unfetched: why there is no picture at an address.
    """

    def __init__(self, folder: Path, token: str = "", most_waiting: int = 100, most_bytes: int = 10**6) -> None:
        self.answers: dict[int, dict[str, Any]] = {}
        self.unfetched = {"http://private/": "PrivateAddress: the host is in a private network"}
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.makers = Words()
        self.details = ["brief", "normal", "full"]
        self.languages: dict[str, frozenset[str]] = {"en": frozenset(), "ru": frozenset()}
        self.service = self.made(folder, most_waiting)
        self.listening = socket.create_server(("127.0.0.1", 0))
        port = self.listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        hosts = frozenset({f"127.0.0.1:{port}"})
        app = Limited(create_app(self.service), hash_of(token) if token else "", hosts, most_bytes, 60)
        self.server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],))
        self.thread.start()

    def made(self, folder: Path, most_waiting: int) -> Service:
        def executor(way: str) -> Callable[[Iterable[list[Record]]], Iterator[list[Record]]]:
            return lambda chunks: (self.annotated(chunk, way) for chunk in chunks)

        def fetch(url: str) -> bytes:
            if url in self.unfetched:
                raise UserError(self.unfetched[url])
            return png(int(url.rpartition("/")[2]))

        rows = Rows(TYPES, None)
        annotator = Annotator(executor, rows.save, rows.has_result, most_waiting, 64)
        uploads, metrics = Uploads(folder), Metrics(lambda: annotator.number_waiting)
        intake = Intake(annotator, uploads, rows, metrics)
        return Service(
            annotator, intake, folder.parent, uploads, rows, ["describe"], self.languages, self.details,
            fetch, metrics, Search(self.makers, rows, None),
        )  # fmt: skip

    def annotated(self, chunk: list[Record], way: str) -> list[Record]:
        assert self.may_go_on.wait(30)
        for record in chunk:
            width = Image.open(BytesIO(record.values["content"].read())).width
            values = self.answers.get(width, CUP)
            record.error = values.get("error", "")
            record.values.update(values, asked=way)
        return chunk

    def end(self) -> None:
        self.may_go_on.set()
        self.service.annotator.close(1)
        self.server.should_exit = True
        self.thread.join(20)
        self.listening.close()


class Page:
    """A browser with the server's page open."""

    def __init__(self, driver: webdriver.Chrome, folder: Path) -> None:  # noqa: F811
        self.driver = driver
        self.folder = folder

    def open(self, url: str, path: str = "/") -> None:
        self.driver.get("about:blank")
        self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "all"})
        self.driver.get(url + path)
        if path == "/":
            self.until(lambda: self.find("#history-count").text or self.find("#token-form").is_displayed())

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return self.script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.trim().replace(/\\s+/g, ' '))",
            selector,
        )

    def said(self) -> list[str]:
        """What the live region has said since the page was opened."""
        return self.texts("#said p")

    def until(self, condition: Callable[[], Any]) -> Any:
        end_s = time.monotonic() + WAIT_S
        while not (value := condition()):
            assert time.monotonic() < end_s, f"still not so; what was said: {self.said()}"
            time.sleep(0.03)
        return value

    def until_equal(self, function: Callable[[], Any], expected: Any) -> None:
        end_s = time.monotonic() + WAIT_S
        while (value := function()) != expected and time.monotonic() < end_s:
            time.sleep(0.03)
        assert value == expected

    def give(self, *pictures: Path) -> None:
        """Choose pictures, as the browser's own dialog does."""
        self.find("#files").send_keys("\n".join(map(str, pictures)))

    def picture(self, name: str = "cup.png", width_px: int = 40) -> Path:
        path = self.folder / name
        path.write_bytes(png(width_px))
        return path

    def press(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def tab_to(self, name: str) -> None:
        """Press Tab until the element with that name, as a screen reader says it, has the focus."""
        for _ in range(30):
            self.press(Keys.TAB)
            if self.driver.switch_to.active_element.accessible_name == name:
                return
        raise AssertionError(f"Tab does not lead to {name}")

    def focused_text(self) -> str:
        return self.script("return document.activeElement.textContent.trim()")

    def emulate(self, width_px: int = 1280, scheme: str = "light", scale: float = 1, is_phone: bool = False) -> None:
        metrics = {"width": width_px, "height": 860, "deviceScaleFactor": scale, "mobile": is_phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def findings(self) -> set[tuple[str, str]]:
        """What axe-core finds: the rule, and the first element. Colours are looked at when they no longer change."""
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE})
        found = self.driver.execute_async_script(
            "const end = arguments[0];"
            "Promise.allSettled(document.getAnimations().map(each => each.finished)).then(() => axe.run()).then(end)"
        )
        return {(each["id"], each["nodes"][0]["html"]) for each in found["violations"]}

    def heard(self, selector: str) -> list[str]:
        """What a screen reader reads in an element, from top to bottom: texts, and the roles and names of controls."""
        nodes = self.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        by_id = {node["nodeId"]: node for node in nodes}
        root = self.driver.execute_cdp_cmd("DOM.getDocument", {})["root"]["nodeId"]
        found = self.driver.execute_cdp_cmd("DOM.querySelector", {"nodeId": root, "selector": selector})
        described = self.driver.execute_cdp_cmd("DOM.describeNode", {"nodeId": found["nodeId"]})["node"]
        [top] = [node for node in nodes if node.get("backendDOMNodeId") == described["backendNodeId"]]
        return list(read(top, by_id))


AXE = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
SAID_WITH_ROLE = ("heading", "button", "link", "radio", "textbox", "searchbox", "image", "Audio", "combobox")


def read(node: dict[str, Any], by_id: dict[str, dict[str, Any]]) -> Iterator[str]:
    role, name = node.get("role", {}).get("value"), node.get("name", {}).get("value", "")
    if not node["ignored"] and role in SAID_WITH_ROLE:
        yield f"{role} {name}"
    elif not node["ignored"] and role == "StaticText":
        yield name
    else:
        within = [text for child in node.get("childIds", ()) for text in read(by_id[child], by_id)]
        is_text = role == "paragraph" and not any(text.startswith(SAID_WITH_ROLE) for text in within)
        yield from ["".join(within)] if is_text and within else within


def png(width_px: int) -> bytes:
    target = BytesIO()
    Image.new("RGB", (width_px, 40), (30, 150, 40)).save(target, "PNG")
    return target.getvalue()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "uploads")
    yield served
    served.end()


@pytest.fixture
def page(driver: webdriver.Chrome, tmp_path: Path) -> Iterator[Page]:  # noqa: F811
    """A page; when a test ends, nothing but refusals may stand in the console, and nobody else may have been asked."""
    page = Page(driver, tmp_path)
    page.emulate()
    yield page
    console = [entry["message"] for entry in driver.get_log("browser")]
    assert [line for line in console if "Failed to load resource" not in line] == []
    asked = [
        address for address in requested(driver) if not re.match("(http://127.0.0.1:|about:|data:|blob:)", address)
    ]
    assert asked == []
    assert driver.execute_script("return window.hacked") is None
    driver.get("about:blank")


# --- from a picture to its description


def test_the_bundled_models_answer_in_russian_by_keyboard_alone(page: Page) -> None:
    config = page.folder / "config.yaml"
    config.write_text(SPOKEN if shutil.which("espeak-ng") else SPOKEN.partition("  - use: speak")[0])
    with running(None, config=config) as server:
        page.open(server.url)
        page.driver.execute_cdp_cmd("Page.enable", {})
        page.driver.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": True})
        page.tab_to("Русский")
        page.press(Keys.SPACE)
        page.tab_to("Обычно")
        page.press(Keys.ARROW_RIGHT)
        assert page.script("return new FormData(document.getElementById('ask')).get('detail')") == "full"
        page.press(Keys.ARROW_LEFT)  # the bundled model knows the words of one length of answers
        page.tab_to("Язык ответа")
        page.press("Р")
        page.tab_to("Выбрать картинки")
        requested(page.driver)
        page.press(Keys.SPACE)
        choose(page, EXAMPLES / "red-flower.png")
        page.until(lambda: page.texts(".lead"))
        assert page.texts(".lead") == [RED_FLOWER]
        assert page.focused_text() == "red-flower.png"  # the heading of the result
        assert page.said()[0] == "Отправляется…"
        assert page.said()[-1] == f"red-flower.png: {RED_FLOWER}"
        if shutil.which("espeak-ng"):
            page.until(lambda: page.script("return document.querySelector('audio').readyState") == 4)
            page.tab_to("Речь на русском")
            page.press(Keys.SPACE)
            page.until(lambda: page.script("return document.querySelector('audio').currentTime > 0"))
        page.tab_to("Скачать как JSON")
        page.tab_to("Похожие картинки")
        page.tab_to("Что найти")
        page.press("a red flower", Keys.ENTER)
        page.until_equal(lambda: page.said()[-2:], ["Идёт поиск…", "Найдена одна картинка."])
        assert page.texts("#found button > span > span") == [RED_FLOWER]
        page.tab_to("Найти в списке")
        assert page.texts("#rows button > span > span") == [RED_FLOWER]
        page.until(lambda: page.script("return document.querySelector('figure img').naturalWidth"))
        assert server.end() == 0


SPOKEN = """
output: output/annotations.csv
device: cpu
categories: [animal, plant, household]
stages:
  - {use: open_image, max_size_px: 112}
  - {use: describe, model: models/demo/vision_language}
  - {use: embed_image, model: models/demo/clip}
  - {use: structure, model: models/demo/llama/llama.gguf}
  - {use: translate, model: models/demo/translation}
  - {use: speak, texts: [description_ru], language: ru}
"""
RED_FLOWER = "Красный цветок на зелёном фоне, вверху."


def choose(page: Page, path: Path) -> None:
    """Answer the dialog that the keyboard has opened."""
    opened: list[dict[str, Any]] = []

    def is_open() -> bool:
        messages = (json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance"))
        opened.extend(each["params"] for each in messages if each["method"] == "Page.fileChooserOpened")
        return bool(opened)

    page.until(is_open)
    files = {"files": [str(path)], "backendNodeId": opened[0]["backendNodeId"]}
    page.driver.execute_cdp_cmd("DOM.setFileInputFiles", files)
    page.driver.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": False})


def test_from_a_picture_to_its_speech_by_keyboard_alone(page: Page, served: Served) -> None:
    with wave.open(str(page.folder / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000 * 2 * 20))
    served.answers[40] = {**CUP, "speech": str(page.folder / "speech.wav")}
    page.open(served.url)
    page.give(page.picture())
    page.until(lambda: page.script("return document.querySelector('audio')?.readyState") == 4)
    assert page.script("return document.querySelector('audio').duration") == pytest.approx(20)
    assert "Read aloud" not in page.texts(".card button")  # it has a voice already
    page.press(Keys.TAB)
    assert page.script("return document.activeElement.tagName") == "AUDIO"
    assert page.script("return document.activeElement.getAttribute('aria-label')") == "Speech"
    page.press(Keys.SPACE)
    page.until(lambda: page.script("return document.querySelector('audio').currentTime > 0"))
    page.press(Keys.SPACE)
    page.until(lambda: page.script("return document.querySelector('audio').paused"))


def test_speech_in_the_language_of_the_answer_is_offered(page: Page, served: Served) -> None:
    with wave.open(str(page.folder / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    speech = {f"{name}_audio": str(page.folder / "speech.wav") for name in ("description", "description_ru")}
    served.answers[40] = {**CUP, "description_ru": "Оранжевая чашка.", **speech}
    page.open(served.url)
    page.give(page.picture())
    page.until(lambda: page.texts(".lead") == [CUP["description"]])
    labels = "return [...document.querySelectorAll('audio')].map(e => e.getAttribute('aria-label'))"
    assert page.script(labels) == ["Speech in English"]
    page.find("#answer-language option[value=ru]").click()
    page.give(page.picture())
    page.until(lambda: "Оранжевая чашка." in page.texts(".lead"))
    assert page.script(labels) == ["Speech in Russian", "Speech in English"]


def test_what_is_said_from_sending_to_the_description(page: Page, served: Served) -> None:
    page.open(served.url)
    served.may_go_on.clear()
    page.give(page.picture())
    page.until(lambda: "Being described…" in page.said())
    assert page.texts(".state") == ["Being described…"]
    served.may_go_on.set()
    page.until(lambda: len(page.said()) > 2)
    assert [each for each in page.said() if not each.startswith("Waiting")] == [
        "Sending…",
        "Being described…",
        "cup.png: An orange cup on a green background. Text on the picture: XZWH.",
    ]
    assert page.texts(".state") == [""]
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    [log] = [node for node in tree if node.get("role", {}).get("value") == "log"]
    live = {"name": "live", "value": {"type": "token", "value": "polite"}}
    assert [node["nodeId"] for node in tree if live in node.get("properties", ())] == [
        log["nodeId"]
    ]  # nothing else speaks


def test_a_long_wait_is_not_silent(page: Page, served: Served) -> None:
    hasten = "const real = setInterval; window.setInterval = (call, ms) => real(call, ms / 40);"
    added = page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": hasten})
    try:
        page.open(served.url)
    finally:
        page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    assert page.said() == []
    served.may_go_on.clear()
    page.give(page.picture())
    page.until(lambda: page.said().count("Still at work: cup.png.") > 1)
    served.may_go_on.set()
    page.until(lambda: page.texts(".lead"))
    before = page.said()
    time.sleep(1.2)
    assert page.said() == before


def test_how_much_of_a_large_picture_has_been_sent_is_said_at_some_steps(page: Page, served: Served) -> None:
    page.open(served.url)
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.script(
        "window.times = []; new MutationObserver(() => times.push(Date.now()))"
        ".observe(document.getElementById('said'), { childList: true })"
    )
    upload_at(page, 60_000)
    page.give(large(page, "slow.png", 40))
    page.until(lambda: "Sent: " in page.texts(".state")[0])
    share = page.script("return document.querySelector('progress').value")
    assert share >= int(page.texts(".state")[0][6:-3]) / 100
    page.until(lambda: page.texts(".lead"))
    percents = [int(said[6:-3]) for said in page.said() if said.startswith("Sent: ")]
    assert percents and percents[-1] < 100
    assert all(later - earlier >= 25 for earlier, later in itertools.pairwise([0, *percents]))
    before = len(page.said())
    upload_at(page, 500_000)  # in two seconds, with nothing to say
    page.give(large(page, "fast.png", 41))
    page.until(lambda: len(page.texts(".lead")) == 2)
    times = page.script("return times")
    sent = [number for number, said in enumerate(page.said()) if said.startswith("Sent: ")]
    assert all(times[number] - times[number - 1] >= 2900 for number in sent), page.said()[before:]
    upload_at(page, -1)


def upload_at(page: Page, bytes_per_s: int) -> None:
    network = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": bytes_per_s}
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", network)


def large(page: Page, name: str, width_px: int) -> Path:
    """A picture of 900 kB."""
    path = page.picture(name, width_px)
    path.write_bytes(path.read_bytes() + bytes(900_000))
    return path


def test_each_of_several_pictures_is_said(page: Page, served: Served) -> None:
    served.answers |= {width: {"description": f"Picture {width}."} for width in range(40, 50)}
    page.open(served.url)
    page.give(*(page.picture(f"{width}.png", width) for width in range(40, 50)))
    page.until(lambda: len(page.said()) == 11)
    assert page.said()[0] == "Sending 10 pictures."
    for number, said in enumerate(page.said()[1:], 1):
        assert re.fullmatch(rf"{number} of 10\. (\d+)\.png: Picture \1\.", said)
    assert page.focused_text() == "40.png"
    assert page.texts(".card h3") == [f"{width}.png" for width in range(40, 50)]
    assert page.texts(".lead") == [f"Picture {width}." for width in range(40, 50)]


def test_what_is_heard_of_a_result_word_by_word(page: Page, served: Served) -> None:
    served.answers[41] = {
        "description": "Two cups.",
        "flags": "low_confidence text_mismatch ocr_missing own_flag",
        "objects": [thing("cup", [0, 0, 9, 9]), thing("cup", [9, 9, 20, 20]), thing("person", [1, 1, 30, 30])],
        "error": "structure: ValueError: no answer",
    }
    page.open(served.url)
    page.give(page.picture())
    page.until(lambda: page.texts(".lead"))
    assert page.heard(".card") == HEARD_OF_THE_CUP
    page.give(page.picture("cups.png", 41))
    page.until(lambda: page.texts(".lead")[0] == "Two cups.")
    care = "Take care: the model was not sure; words on the picture may be missing or misspelt; own_flag."
    assert page.said()[-1] == f"cups.png: Two cups. {care}"
    assert page.heard(".card") == [
        "heading cups.png",
        "This picture could not be finished (structure: no answer). Try again, or choose another file.",
        "button Try again",
        "Two cups.",
        care,
        *HEARD_OF_THE_CUP[2:5],
        "Objects",
        "cup: 2, person: 1",
    ]


def thing(label: str, box: Sequence[int]) -> dict[str, Any]:
    return {"label": label, "score": 0.9, "box": list(box)}


def test_boxes_lie_on_the_picture_in_pixels_of_its_file(page: Page, served: Served) -> None:
    served.answers[3000] = {"description": "A person.", "objects": [thing("person", [1500, 0, 3000, 40])]}
    page.open(served.url)
    page.give(page.picture("wide.png", 3000))
    page.until(
        lambda: page.script(
            "return document.querySelector('figure rect') && document.querySelector('figure img').naturalWidth == 1024"
        )
    )
    picture, box = page.script(
        "return ['figure img', 'figure rect'].map(s => document.querySelector(s).getBoundingClientRect().toJSON())"
    )
    assert box["left"] == pytest.approx(picture["left"] + picture["width"] / 2, abs=2.5)
    assert box["right"] == pytest.approx(picture["right"], abs=2.5)
    assert page.find("figure text").text == "person"


def test_pictures_are_pasted_and_dropped_and_addresses_too(page: Page, served: Served) -> None:
    page.open(served.url)
    for number, (kind, what) in enumerate([("paste", "data"), ("drop", "data"), ("paste", "url"), ("drop", "url")]):
        page.script(HAND_OVER, kind, what, base64.b64encode(png(40 + number)).decode(), "https://example.org/40")
        page.until(lambda count=number + 1: len(page.texts(".lead")) == count)
    assert page.texts(".card h3") == ["https://example.org/40", "https://example.org/40", "given.png", "given.png"]
    assert page.script(HAND_OVER, "paste", "url", "", "no address")  # it is left to the browser
    assert page.script(HAND_OVER.replace('"files"', '"url"'), "paste", "url", "", "https://example.org/45")
    assert len(page.texts(".card")) == 4


def test_each_address_of_a_list_is_taken_and_what_is_none_is_said(page: Page, served: Served) -> None:
    page.open(served.url)
    addresses = [f"https://example.org/{number}" for number in range(40, 44)]
    page.script(HAND_OVER, "drop", "uris", "", "\r\n".join(["# two", *addresses[:2], ""]))
    page.until(lambda: len(page.texts(".lead")) == 2)
    assert page.texts(".card h3") == addresses[:2]
    assert not page.find("#url-error").is_displayed()
    page.script(HAND_OVER, "paste", "url", "", "\n".join([addresses[2], "no address", "file:///a.png"]))
    page.until(lambda: len(page.texts(".lead")) == 3)
    assert page.texts("#url-error") == ["Lines that are no address were left out: 2."]
    assert page.texts("#url-error")[0] in page.said()
    page.find("#details input").click()
    at_a_choice = HAND_OVER.replace('getElementById("files")', 'querySelector("#details input")')
    page.script(at_a_choice, "paste", "url", "", addresses[3])
    page.until(lambda: len(page.texts(".lead")) == 4)
    assert not page.find("#url-error").is_displayed()
    nothing = "There is no picture in this, and no address of one: give pictures, or addresses such as https://…"
    for kind, what, text in [("drop", "uris", "file:///a.png"), ("drop", "url", ""), ("paste", "url", "no address")]:
        before = len(page.said())
        page.script(HAND_OVER, kind, what, "", text)
        assert page.said()[before:] == page.texts("#url-error") == [nothing]
    assert len(page.texts(".card")) == 4


HAND_OVER = """
const [kind, what, content, text] = arguments;
const data = new DataTransfer();
if (what !== "data") data.setData(what === "url" ? "text/plain" : "text/uri-list", text);
else {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  data.items.add(new File([bytes], "given.png", { type: "image/png" }));
}
const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
const event = kind === "paste" ? new ClipboardEvent("paste", options) : new DragEvent("drop", options);
return document.getElementById("files").dispatchEvent(event);
"""


def test_detail_and_language_are_asked_for(page: Page, served: Served) -> None:
    served.answers[40] = {**CUP, "description_ru": "Оранжевая чашка."}
    page.open(served.url)
    page.find("input[value=full]").click()
    page.find("#answer-language option[value=ru]").click()
    page.give(page.picture())
    page.until(lambda: page.texts(".lead"))
    assert page.texts(".lead") == ["Оранжевая чашка."]
    assert page.find(".lead").get_attribute("lang") == "ru"
    assert page.said()[-1].startswith("cup.png: Оранжевая чашка.")
    row = json.loads(page.driver.execute_async_script(ROW))
    assert row["asked"] == "full"
    shown = "return [...document.querySelectorAll('#answer-language option:not([hidden])')].map(each => each.value)"
    assert page.script(shown) == ["en", "ru"]
    served.details[:] = ["normal"]
    del served.languages["en"]
    page.open(served.url)
    assert not page.find("#details").is_displayed() and not page.find("#answer-language").is_displayed()
    assert page.script(shown) == ["ru"]
    page.give(page.picture())
    page.until(lambda: page.texts(".lead"))
    assert page.texts(".lead") == ["Оранжевая чашка."]


ROW = """
const end = arguments[0];
const newest = fetch("/v1/annotations").then((response) => response.json());
newest.then(([id]) => fetch(`/v1/annotations/${id}`)).then((response) => response.text()).then(end);
"""


def test_copy_download_and_read_aloud(page: Page, served: Served, tmp_path: Path) -> None:
    permissions = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": served.url}
    page.driver.execute_cdp_cmd("Browser.grantPermissions", permissions)
    downloads = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
    page.open(served.url)
    page.give(page.picture())
    page.until(lambda: page.texts(".lead"))
    copy, download = page.driver.find_elements(By.CSS_SELECTOR, ".buttons button")[1:]
    copy.click()
    page.until(lambda: page.said()[-1] == "Copied.")
    copied = page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied == f"{CUP['description']}\nText on the picture: XZWH\nCategory: household\nKeywords: cup, orange"
    download.click()
    saved = page.until(lambda: list(tmp_path.glob("*.json")))
    assert json.loads(saved[0].read_text())["description"] == CUP["description"]
    page.script(
        "speechSynthesis.speak = (speech) => { window.spoken = speech; };"
        "speechSynthesis.cancel = () => window.spoken?.onend();"
    )
    read_aloud = page.find(".buttons button")
    read_aloud.click()
    assert page.script("return [spoken.text, spoken.lang]") == [copied, "en"]
    assert read_aloud.text == "Stop reading"
    read_aloud.click()
    assert read_aloud.text == "Read aloud"
    page.script("window.spoken = null")
    read_aloud.click()
    page.script("spoken.onerror({ error: 'synthesis-failed' })")
    assert read_aloud.text == "Read aloud"
    assert page.said()[-1].startswith("This browser has no voice for the text. Install one")


# --- earlier pictures


def test_the_list_of_earlier_pictures(page: Page, served: Served) -> None:
    served.answers |= {width: {**CUP, "description": f"Cafés number {width}."} for width in range(40, 60)}
    page.open(served.url)
    assert page.texts("#history-count") == ["There are none yet."]
    page.give(*(page.picture(f"{width}.png", width) for width in range(40, 60)))
    page.until(lambda: len(page.texts("#rows li")) == 20)
    assert page.said()[-1].endswith(f"{page.texts('#rows button > span > span')[0]} Text on the picture: XZWH.")
    page.driver.refresh()
    page.until(lambda: page.texts("#history-count") == ["12 of 12 loaded pictures"])
    page.find("#more").send_keys(Keys.ENTER)
    page.until_equal(lambda: page.texts("#history-count"), ["20 of 20 loaded pictures"])
    assert not page.find("#more").is_displayed()
    assert page.script("return [...document.querySelectorAll('#rows button')].indexOf(document.activeElement)") == 12
    found = page.texts("#rows button > span > span")
    assert sorted(found) == [f"Cafés number {width}." for width in range(40, 60)]
    page.find("#filter").send_keys("47 cafes")
    page.until_equal(lambda: page.texts("#history-count"), ["1 of 20 loaded pictures"])
    page.until_equal(lambda: page.said()[-1:], ["1 of 20 loaded pictures"])
    assert len(page.said()) == 1  # not at each key
    page.tab_to(page.find("#rows li:not([hidden]) button").accessible_name)
    page.press(Keys.ENTER)
    assert page.focused_text() == "Cafés number 47."
    assert page.texts(".lead") == ["Cafés number 47."]


# --- the search


def things(page: Page, served: Served, *names: str) -> None:
    """Open the page, and give a picture of each thing."""
    for number, name in enumerate(names):
        served.answers[40 + number] = {"description": f"A {name}.", "image_vector": vector_of(name)}
    page.open(served.url)
    page.give(*(page.picture(f"{name}.png", 40 + number) for number, name in enumerate(names)))
    page.until(lambda: len(page.texts("#rows li")) == len(names))
    page.driver.refresh()
    page.until(lambda: len(page.texts("#rows li")) == len(names))


def test_a_text_is_searched_for_by_keyboard_and_the_number_of_results_is_said(page: Page, served: Served) -> None:
    things(page, served, "cup", "cat", "tree")
    page.tab_to("What to look for")
    served.makers.may_go_on.clear()
    page.press("a cat", Keys.ENTER)
    page.until_equal(page.said, ["Searching…"])
    served.makers.may_go_on.set()
    page.until_equal(page.said, ["Searching…", "3 results."])
    assert page.driver.switch_to.active_element.accessible_name == "What to look for"
    assert page.texts("#found-title") == ["Results for “a cat”: 3"]
    heard = [re.match(r"button (A \w+)\.", text) for text in page.heard("#found")]
    assert [each and each[1] for each in heard] in (["A cat", "A cup", "A tree"], ["A cat", "A tree", "A cup"])
    page.until(lambda: page.script("return document.querySelector('#found img').naturalWidth") == 41)
    page.tab_to("Find pictures")
    page.press(Keys.TAB, Keys.ENTER)
    assert page.focused_text() == "A cat." and page.texts(".lead") == ["A cat."]  # the heading of its card


def test_what_is_like_a_result_is_found_and_has_the_focus(page: Page, served: Served) -> None:
    things(page, served, "cup", "cat", "cup and cat")
    page.find("#rows button").send_keys(Keys.ENTER)
    page.until(lambda: page.texts(".lead"))
    name = page.focused_text()
    page.tab_to("More like this")
    page.press(Keys.ENTER)
    page.until_equal(page.focused_text, f"Like “{name}”: 2")
    assert page.heard("#search")[-3] == f"heading Like “{name}”: 2"
    assert page.said() == ["Searching…"]
    assert name not in page.texts("#found button > span > span")
    served.makers.columns = []
    page.open(served.url)
    page.find("#rows button").click()
    assert page.texts(".buttons button") == ["Read aloud", "Copy the text", "Download as JSON"]
    assert not page.find("#search").is_displayed()


def test_where_to_search_is_asked_if_there_is_a_choice(page: Page, served: Served) -> None:
    served.makers.columns = ["image_vector", "text_vector", "dino_vector"]
    served.answers[40] = {"description": "A cup.", "image_vector": [1, 0, 0], "text_vector": [0, 0, 1]}
    served.answers[41] = {"description": "A tree.", "image_vector": [0, 0, 1], "text_vector": [1, 0, 0]}
    page.open(served.url)
    page.give(page.picture("a.png", 40), page.picture("b.png", 41))
    page.until(lambda: len(page.texts("#rows li")) == 2)
    assert page.find("#search-in").accessible_name == "Where"
    assert page.texts("#search-in option") == ["in what can be seen", "in the descriptions"]
    page.find("#search-text").send_keys("tree", Keys.ENTER)
    page.until_equal(lambda: page.texts("#found button > span > span"), ["A tree.", "A cup."])
    page.find("#search-in option[value=text]").click()
    page.find("#search-text").send_keys(Keys.ENTER)
    page.until_equal(lambda: page.texts("#found button > span > span"), ["A cup.", "A tree."])


def test_a_search_that_fails_says_why(page: Page, served: Served) -> None:
    page.open(served.url)
    assert not page.find("#search-in").is_displayed()
    page.find("#search-text").send_keys("  ", Keys.ENTER)
    assert page.said() == ["Enter what to look for."]
    assert page.find("#search-text").get_attribute("aria-invalid") == "true"
    assert page.driver.switch_to.active_element.accessible_name == "What to look for"
    page.find("#search-text").send_keys("cup", Keys.ENTER)
    page.until_equal(page.said, ["Enter what to look for.", "Searching…", "Nothing was found."])
    assert page.find("#search-text").get_attribute("aria-invalid") == "false"
    served.makers.columns = []
    page.find("#search-text").send_keys(Keys.ENTER)
    page.until(lambda: page.find("#search-error").is_displayed())
    reason = "this server cannot search in image: its configuration has no stage such as embed_image"
    assert page.said()[-1] == f"The server cannot use this ({reason}). Change it and try again."
    assert page.texts("#search-error") == [page.said()[-1]]


def test_an_answer_that_comes_after_the_next_search_is_not_shown(page: Page, served: Served) -> None:
    things(page, served, "cup", "cat")
    served.makers.columns += ["text_vector"]
    page.driver.refresh()
    page.until(lambda: page.find("#search-in").is_displayed())
    served.makers.may_go_on.clear()
    page.find("#search-text").send_keys("cat", Keys.ENTER)
    page.find("#search-in option[value=text]").click()
    page.find("#search-text").send_keys(Keys.ENTER)
    page.until_equal(lambda: page.said()[-1:], ["Nothing was found."])
    served.makers.may_go_on.set()
    time.sleep(0.5)
    assert page.said() == ["Searching…", "Searching…", "Nothing was found."]
    assert page.texts("#found-title") == ["Results for “cat”: 0"]


def test_a_row_that_was_not_uploaded_is_a_text(page: Page, served: Served) -> None:
    page.open(served.url)
    row = {"description": "A cup of a run.", "image_path": "/photos/cup.png", "image_vector": [1, 0, 0]}
    served.service.rows.in_memory = lambda: [row]  # type: ignore[method-assign]
    page.find("#search-text").send_keys("cup", Keys.ENTER)
    page.until_equal(lambda: page.said()[-1:], ["1 result."])
    assert page.heard("#found") == ["A cup of a run.", "cup.png"]


# --- people


def test_people_are_counted_and_what_is_said_of_them_is_worded_as_a_guess(page: Page, served: Served) -> None:
    served.answers[40] = {
        "description": "Four people.",
        "objects": [thing("person", [0, 0, 9, 9]), thing("dog", [9, 9, 20, 20])],
        "people_count": 4,
        "people": [
            {"box": [0, 0, 9, 9], "age": {"adult": 0.1, "child": 0.9}, "gender": {"Female": 0.988, "Male": 0.012}},
            {"box": [1, 1, 5, 5], "age": None, "gender": None},
            {"box": [2, 2, 5, 5], "age": {"20-29": 0.5, "3-9": 0.5}, "gender": None},
            {"box": [3, 3, 5, 5], "age": None, "gender": {"other": 1}},
        ],
    }
    served.answers[41] = {"description": "One person.", "people_count": 1, "people": [{"box": [0, 0, 9, 9]}]}
    served.answers[42] = {"description": "Nobody.", "people_count": 0, "people": []}
    page.open(served.url)
    page.give(page.picture())
    page.until(lambda: page.texts("figure svg"))
    assert page.heard(".card")[-8:] == [
        "Objects",
        "person: 1, dog: 1",
        "People",
        "4",
        *PEOPLE_HEARD,
    ]
    assert page.texts("figure text") == ["person 1", "dog", "2", "3", "4"]
    assert "People" not in page.said()[-1]
    page.script("speechSynthesis.speak = (speech) => { window.spoken = speech; }")
    page.find(".buttons button").click()  # Read aloud
    assert page.script("return spoken.text").split("\n") == [
        "Four people.",
        "Objects: person: 1, dog: 1",
        "People: 4",
        *PEOPLE_HEARD[:-1],
    ]
    page.find("[data-language=ru]").click()
    assert page.texts(".says li")[0] == "Человек 1: возможно, ребёнок (90 %), возможно, женского пола (99 %)"
    page.find("[data-language=en]").click()
    assert page.findings() == set()
    page.give(page.picture("one.png", 41), page.picture("nobody.png", 42))
    page.until(lambda: len(page.texts(".lead")) == 3)
    assert page.heard(".card")[-2:] == ["People", "1"]
    assert "People" not in page.heard(".card:nth-child(2)")


PEOPLE_HEARD = [
    "Person 1: perhaps a child (90 %), perhaps female (99 %)",
    "Person 3: perhaps aged 20-29 (50 %)",
    "Person 4: perhaps other (100 %)",
    "These are guesses by how people look, and often wrong.",
]


# --- what goes wrong is said


def test_a_busy_server_is_asked_again(page: Page, tmp_path: Path) -> None:
    served = Served(tmp_path / "uploads", most_waiting=1)
    try:
        page.open(served.url)
        served.may_go_on.clear()
        page.give(page.picture("first.png", 40))
        page.until(lambda: "Being described…" in page.said())
        page.give(page.picture("second.png", 41))
        busy = "The server is busy. It is asked again in 2 seconds."
        page.until(lambda: busy in page.said())
        assert page.texts(".state")[0] == busy
        served.may_go_on.set()
        page.until(lambda: len(page.texts(".lead")) == 2)
        assert page.said()[-1].startswith("second.png: An orange cup")
    finally:
        served.end()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"no picture",
            "This file is not a picture of a known kind. Choose a JPEG, PNG, WebP or HEIC file, for example.",
        ),
        (bytes(1_100_000), "The file is too large: this server takes 1 MB at most. Choose a smaller one."),
    ],
)
def test_a_refused_file_is_said_with_what_to_do(page: Page, served: Served, content: bytes, sentence: str) -> None:
    page.open(served.url)
    (page.folder / "bad.png").write_bytes(content)
    page.give(page.folder / "bad.png")
    page.until(lambda: page.texts(".card .error"))
    assert page.texts(".card .error") == [sentence]
    assert page.said()[-1] == f"bad.png: {sentence}"
    assert not page.find("figure").is_displayed()
    assert page.find(".card .error").location["x"] == page.find(".card h3").location["x"] < 400  # no empty column
    page.press(Keys.TAB)
    assert page.focused_text() == "Try again"


def test_a_server_that_is_gone_is_said_and_tried_again(page: Page, served: Served) -> None:
    page.open(served.url)
    page.driver.execute_cdp_cmd("Network.enable", {})
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": True, **network})
    page.give(page.picture())
    page.until(lambda: page.texts(".card .error"))
    assert page.texts(".card .error")[0].startswith("The server cannot be reached. Check the connection")
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": False, **network})
    page.press(Keys.TAB, Keys.ENTER)
    page.until(lambda: page.texts(".lead"))
    assert page.texts(".card .error") == []


def test_addresses(page: Page, served: Served) -> None:
    page.open(served.url)
    page.find("#url").send_keys("cup.png", Keys.ENTER)
    assert page.said() == ["Enter an address that begins with https:// or http://."]
    assert page.find("#url").get_attribute("aria-invalid") == "true"
    page.find("#url").clear()
    page.find("#url").send_keys("http://private/", Keys.ENTER)
    page.until_equal(lambda: page.texts(".card .error"), [PRIVATE])
    assert page.texts("#url-error") == [""]  # what describes the field, though it is hidden
    assert page.find("#url").get_attribute("aria-invalid") == "false"
    page.find("#url").send_keys("https://example.org/44", Keys.ENTER)
    page.until(lambda: page.texts(".lead"))
    assert page.focused_text() == "https://example.org/44"


PRIVATE = (
    "The address is in a private network, from which this server takes nothing. "
    "Give another address, or send the picture itself."
)
CUT = "The file is cut off: a part of the picture is missing. Send the whole file."
DAMAGED = "The file is damaged, or not a picture of a known kind. Choose another file."
FEW_PIXELS = "The picture is too large: this server takes 1 megapixels at most. Choose a smaller one."
FEW_MB = "The file is too large: this server takes 2 MB at most. Choose a smaller one."
NO_PICTURE = (
    "There is no picture at this address, but something else, such as a web page. "
    "Give the address of the picture itself."
)
NOT_FOUND = "The picture was not found at this address. Check the address."
UNREACHED = (
    "The site of this address cannot be reached, or does not answer as it should. "
    "Check the address, or try again later."
)


def of_decoder(content: bytes, megapixels: int = 179) -> str:
    """The error of a row whose picture cannot be opened."""
    with pytest.raises(Exception) as raised:  # of any decoder
        decode(content, Limits(384, megapixels))
    return f"open_image: {describe_failure(raised.value).message}"


def of_download(attempt: Callable[[], Any]) -> str:
    """Why a picture was not fetched."""
    with pytest.raises(DownloadError) as raised:
        attempt()
    return f"{raised.value.kind}: {raised.value}"


def fail(error: Exception) -> None:
    raise error


def saved(kind: str) -> bytes:
    target = BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(target, kind)
    return target.getvalue()


def test_usual_causes_are_known_by_the_errors_that_are_really_raised(page: Page, served: Served) -> None:
    expected = {
        of_decoder(saved("PNG")[:60]): CUT,
        of_decoder(saved("JPEG")[:200]): CUT,
        of_decoder(saved("JPEG2000")[:200]): CUT,
        of_decoder(saved("HEIF")[:1500]): DAMAGED,
        of_decoder(saved("WEBP")[:90]): DAMAGED,
        of_decoder(b"no picture"): DAMAGED,
        of_decoder(b"<svg>"): DAMAGED,
        of_decoder(b""): "The file is empty. Choose another one.",
        of_decoder(png(100_000), megapixels=1): FEW_PIXELS,
        of_download(lambda: fail(connection_failure(PrivateAddressError()))): PRIVATE,
        of_download(lambda: fail(connection_failure(ConnectionRefusedError(111, "")))): UNREACHED,
        of_download(lambda: fail(failure_of(TimeoutError()))): UNREACHED,
        of_download(lambda: is_picture(b"<html>", "", is_whole=True)): NO_PICTURE,
        of_download(lambda: check_redirect("http://a/1.png", "http://a/not-found.png")): NOT_FOUND,
        of_download(lambda: checked("a")): "The address is not complete, or has a mistake. Correct it.",
        of_download(lambda: fail(connection_failure(socket.gaierror(socket.EAI_NONAME, "")))): UNREACHED,
        "HTTP404: Not Found": NOT_FOUND,
        "HTTP503: Service Unavailable (3 attempts)": UNREACHED,
        "download: HTTP410: Gone": NOT_FOUND,
        "TooLarge: more than max_download_mb (2)": FEW_MB,
        "more than 2 MB": FEW_MB,
        "structure: ValueError: image file is truncated": "unknown",
        "describe: ConnectionError: Connection refused": "unknown",
        "open_image: OSError: [Errno 5] Input/output error": "unknown",
    }
    # The server leaves the kind of a failed download out.
    expected |= {text.partition(": ")[2]: sentence for text, sentence in expected.items() if text[0].isupper()}
    page.open(served.url)
    found = page.driver.execute_async_script(WORDED, list(expected))
    assert dict(zip(expected, found, strict=True)) == expected


WORDED = """
const [texts, end] = arguments;
Promise.all([import("/page/errors.js"), import("/page/words.js")]).then(([{ worded }, { translated }]) =>
  end(texts.map((each) => worded(each, "unknown")).map(({ text, values }) => translated(text, values))));
"""


def test_why_a_picture_failed_is_a_sentence_in_the_language_of_the_page(page: Page, served: Served) -> None:
    served.answers[40] = {"error": "open_image: OSError: image file is truncated"}
    cut = "Файл обрывается: части картинки нет. Отправьте файл целиком."
    page.open(served.url)
    page.give(page.picture())
    page.until_equal(lambda: page.texts(".card .error"), [CUT])
    assert page.said()[-1] == f"cup.png: {CUT}"
    page.find("[data-language=ru]").click()
    assert page.texts(".card .error") == [cut]
    page.find("#url").send_keys("http://private/", Keys.ENTER)
    private = "Адрес находится в частной сети, из которой этот сервер ничего не берёт."
    page.until(lambda: page.texts(".card .error")[0].startswith(private))
    assert page.said()[-1].startswith(f"http://private/: {private}")
    page.driver.refresh()
    page.until_equal(lambda: page.texts("#rows button > span > span"), [cut])
    page.find("#rows button").click()
    assert page.focused_text() == page.texts("#rows small")[0]  # when, and not the hash in its address
    page.find("[data-language=en]").click()
    assert page.texts("#rows button > span > span") == [CUT]
    page.find("#filter").send_keys("cut off")
    assert page.find("#rows button").is_displayed()


def test_other_errors_are_marked_as_english_and_have_no_class_name(page: Page, served: Served) -> None:
    served.answers[40] = {"error": "structure: ValueError: no answer"}
    served.unfetched["http://odd/"] = "OddError: it is odd"
    page.open(served.url)
    page.find("[data-language=ru]").click()
    page.give(page.picture())
    marked = "[lang=en]:not(button):not(option)"
    unfinished = "Картинку не удалось обработать (structure: no answer). Попробуйте ещё раз или выберите другой файл."
    page.until_equal(lambda: page.texts(".card .error"), [unfinished])
    assert page.texts(f".card .error {marked}") == page.texts(f"#said {marked}") == ["structure: no answer"]
    page.find("#url").send_keys("http://odd/", Keys.ENTER)
    page.until(lambda: "Сервер не может это использовать (it is odd)" in page.texts(".card .error")[0])
    page.until_equal(lambda: page.texts(f"#said {marked}"), ["structure: no answer", "it is odd"])
    served.makers.columns = []
    page.find("#search-text").send_keys("cup", Keys.ENTER)
    page.until(lambda: page.find("#search-error").is_displayed())
    reason = page.texts(f"#search-error {marked}")
    assert reason[0].startswith("this server cannot search in image")
    assert page.texts(f"#said {marked}")[2:] == reason
    page.driver.refresh()
    page.until_equal(lambda: page.texts("#rows button > span > span"), [unfinished])
    assert page.texts(f"#rows {marked}") == ["structure: no answer"]


def test_a_list_that_cannot_be_loaded_is_said_in_the_language_of_the_page(page: Page, served: Served) -> None:
    page.open(served.url)
    served.service.rows.latest = lambda *_: fail(HTTPException(503, "it is closed"))  # type: ignore[method-assign, assignment]
    page.driver.refresh()
    page.until_equal(
        page.said, ["The list could not be loaded: The server cannot answer now (it is closed). Try again in a minute."]
    )
    assert page.texts("#said [lang=en]") == ["it is closed"]
    page.find("[data-language=ru]").click()
    sentence = "Сервер сейчас не может ответить (it is closed). Попробуйте через минуту."
    assert page.texts("#history-count") == [sentence]
    assert page.texts("#history-count [lang=en]") == ["it is closed"]


def test_the_token_is_asked_for_and_kept_for_the_tab(page: Page, tmp_path: Path) -> None:
    served = Served(tmp_path / "uploads", token="the right one")
    served.answers[40] = {**CUP, "speech": str(tmp_path / "speech.wav")}
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    try:
        page.open(served.url)
        assert not page.find("#ask").is_displayed()
        assert page.driver.switch_to.active_element.accessible_name == "Token"
        page.press(Keys.ENTER)
        assert page.said() == ["Enter the token."]
        page.press("a wrong one", Keys.ENTER)
        page.until(lambda: len(page.said()) == 2)
        assert page.said()[1] == "The server does not accept this token. Check it and enter it again."
        assert page.driver.switch_to.active_element.accessible_name == "Token"
        page.press("the right one", Keys.ENTER)
        page.until_equal(lambda: page.texts("#history-count"), ["There are none yet."])
        assert page.driver.switch_to.active_element.accessible_name == "Choose pictures"
        page.give(page.picture())
        page.until(lambda: page.script("return document.querySelector('audio')?.readyState") == 4)
        page.until(lambda: page.script("return document.querySelector('figure img')?.naturalWidth") == 40)
        page.driver.refresh()
        page.until_equal(lambda: page.texts("#history-count"), ["1 of 1 loaded pictures"])
        assert not page.find("#token-form").is_displayed()
        page.driver.get(f"{served.url}/docs")
        page.until(lambda: page.texts(".operation"))
        assert page.script("return localStorage.length") == 0
    finally:
        served.end()


# --- whatever a picture or a file is called


def test_hostile_texts_are_texts(page: Page, served: Served) -> None:
    names = [f"{number} {text.replace('/', '')[:60]}.png" for number, text in enumerate(HOSTILE)]
    for number, text in enumerate(HOSTILE):
        boxes = [thing(text, [0, 0, 9, 9])]
        every = dict.fromkeys(("description", "text", "image_text", "categories", "keywords", "flags", "error"), text)
        served.answers[40 + number] = {**every, "text": f"{text} in full", "objects": boxes}
    page.emulate(width_px=360, is_phone=True)
    page.open(served.url)
    page.give(*(page.picture(name, 40 + number) for number, name in enumerate(names)))
    page.until(lambda: len(page.texts(".lead")) == len(HOSTILE))
    assert sorted(page.texts(".card h3")) == sorted(" ".join(name.split()) for name in names)
    assert {" ".join(text.split()) for text in HOSTILE} == set(page.texts(".lead"))
    assert page.script("return document.querySelectorAll('[onerror], [onload], #cards script, img[src=x]').length") == 0
    assert page.script(FITS)
    page.driver.refresh()
    page.until(lambda: page.texts("#history-count")[0].startswith(f"{len(HOSTILE)} of"))
    assert page.script(FITS)
    page.find("#rows button").click()
    assert page.texts(".card .error") and "Try again" not in page.texts(".card button")  # its file is not here any more


# --- for everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "ru"])
def test_axe_finds_nothing(page: Page, served: Served, scheme: str, language: str) -> None:
    served.answers[41] = {**CUP, "error": "structure: ValueError: no", "flags": "low_confidence"}
    page.emulate(scheme=scheme)
    page.open(served.url)
    page.find(f"[data-language={language}]").click()
    page.find("#url").send_keys("x", Keys.ENTER)
    page.find("#search-text").send_keys(" ", Keys.ENTER)
    page.give(page.picture(), page.picture("41.png", 41))
    page.until(lambda: len(page.texts(".lead")) == 2)
    served.may_go_on.clear()
    page.give(page.picture("42.png", 42))
    page.until(lambda: page.find(".state progress"))
    page.script("document.getElementById('token-form').hidden = false")
    assert page.findings() == set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_page_of_the_api(page: Page, served: Served, scheme: str) -> None:
    page.emulate(scheme=scheme)
    page.open(served.url, "/docs")
    page.until(lambda: page.texts(".operation"))
    assert page.findings() == set()


@pytest.mark.parametrize(
    ("width_px", "scale", "is_phone", "font"),
    [(360, 1, True, ""), (640, 2, False, ""), (320, 4, False, ""), (360, 1, False, "200%")],
    ids=["phone", "200 %", "400 %", "phone with letters of 200 %"],
)
def test_nothing_is_wider_than_the_window(
    page: Page, served: Served, width_px: int, scale: float, is_phone: bool, font: str
) -> None:
    served.makers.columns = ["image_vector", "text_vector"]  # between which there is a choice
    page.emulate(width_px, scale=scale, is_phone=is_phone)
    page.open(served.url)
    page.script("document.documentElement.style.fontSize = arguments[0]", font)
    page.give(page.picture("W" * 100 + ".png"))
    page.until(lambda: page.texts(".lead"))
    left = "return ['figure', '.says'].map(name => document.querySelector(name).getBoundingClientRect().left)"
    assert len(set(page.script(left))) == 1  # one above the other
    for language in ("en", "ru"):
        page.find(f"[data-language={language}]").click()
        assert page.script(FITS)
        cut = page.script(
            "return [...document.querySelectorAll('main *')].filter(e => getComputedStyle(e).overflowX === 'visible' &&"
            "e.clientWidth && e.scrollWidth > e.clientWidth + 1 && !e.closest('.unseen, select')).map(e => e.outerHTML)"
        )
        assert cut == []
    page.driver.get(f"{served.url}/docs")
    page.until(lambda: page.texts(".operation"))
    page.script("document.documentElement.style.fontSize = arguments[0]", font)
    assert page.script(FITS)


FITS = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"


def test_without_styles_the_order_is_the_same(page: Page, served: Served) -> None:
    page.open(served.url)
    page.give(page.picture())
    page.until(lambda: page.texts(".lead"))
    page.script("for (const sheet of document.styleSheets) sheet.disabled = true")
    order = [
        "h1",
        "#details",
        "#files",
        "#url",
        "#results-title",
        ".card h3",
        ".lead",
        ".buttons",
        "dl",
        "#search-text",
        "#filter",
        "#rows",
    ]
    tops = page.script("return arguments[0].map(s => document.querySelector(s).getBoundingClientRect().top)", order)
    assert tops == sorted(tops)
    assert not page.find("#token-form").is_displayed()
    assert page.heard(".card") == HEARD_OF_THE_CUP


def test_the_page_speaks_russian(page: Page, served: Served) -> None:
    page.driver.execute_cdp_cmd("Network.setUserAgentOverride", {"userAgent": "a", "acceptLanguage": "ru-RU"})
    try:
        page.open(served.url)
    finally:
        page.driver.execute_cdp_cmd("Network.setUserAgentOverride", {"userAgent": "", "acceptLanguage": ""})
    page.give(page.picture())
    page.until(lambda: page.texts(".lead"))
    assert page.find("html").get_attribute("lang") == "ru"
    assert page.driver.title == "Описание картинок"
    assert page.find(".languages").accessible_name == "Язык страницы"
    assert page.find("#answer-language").get_attribute("value") == "ru"
    assert page.said()[-1] == f"cup.png: {CUP['description']} Текст на картинке: XZWH."
    assert page.heard(".card")[2:5] == ["button Прочитать вслух", "button Скопировать текст", "button Скачать как JSON"]
    assert page.find(".lead").get_attribute("lang") == "en"  # a screen reader changes its voice
    english = re.compile(r"[A-Za-z]{3,}")
    texts = [re.sub(f"^({'|'.join(SAID_WITH_ROLE)}) ", "", text) for text in page.heard("#ask")]
    assert len(texts) > 8 and [text for text in texts if english.search(text.replace("https://", ""))] == []
    page.find("[data-language=en]").click()
    assert page.heard(".card") == HEARD_OF_THE_CUP
    assert page.find("[data-language=en]").get_attribute("aria-pressed") == "true"
    page.driver.refresh()
    assert page.until(lambda: page.driver.title) == "Describe pictures"  # it is remembered


SCRIPTS = ("page.js", "server.js", "results.js", "history.js", "search.js", "errors.js", "shared.js")


def test_every_text_of_the_page_has_a_translation() -> None:
    words = (PAGE / "words.js").read_text()
    translations = words[words.index("RUSSIAN = {") : words.index("};")]
    known = set(re.findall(r'^  "(.+?)":\s', translations, re.MULTILINE))
    html = (PAGE / "index.html").read_text()
    used = set(re.findall(r"data-say[^>]*>([^<\n]+)<", html)) | set(
        re.findall(r'aria-label="([^"]+)" data-say-label', html)
    )
    scripts = "".join((PAGE / name).read_text() for name in SCRIPTS)
    used |= {text for text in known if f'"{text}"' in scripts}
    written = set(re.findall(r'"([A-Z][^"]*[.…]|[A-Z]\w+(?: \w+)+)"', scripts))
    assert used | written == known
    for english, russian in re.findall(r'^  "(.+?)":\s+"(.+?)",$', translations, re.MULTILINE):
        assert re.search("[а-я]", russian) or english == russian
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", russian)), english


def test_the_page_of_the_api_lists_every_request(page: Page, served: Served) -> None:
    page.open(served.url, "/docs")
    page.until(lambda: page.texts(".operation"))
    text = page.driver.execute_async_script("fetch('/openapi.json').then(r => r.text()).then(arguments[0])")
    schema = json.loads(text)
    expected = [f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods]
    assert page.texts(".operation h2") == expected
    first = page.find(".operation").text
    for name in ("file", "url", "detail", "language", "stages", "wait_s", "200", "202", "413", "415", "429"):
        assert name in page.texts(".operation:first-child dt"), name
    assert f"curl --form file=@picture.jpg {served.url}/v1/annotations" in first
    assert f"curl '{served.url}/v1/search?text=a+red+flower'" in page.texts(".operation code")


def test_no_file_of_the_page_has_anything_inline_or_from_elsewhere() -> None:
    for path in PAGE.iterdir():
        text = path.read_text()
        assert not re.search(
            r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|style=|<script>|\son\w+=\"", text
        ), path
        assert set(re.findall(r"https?://\w[\w.]+", text)) <= {"http://www.w3.org"}, path
