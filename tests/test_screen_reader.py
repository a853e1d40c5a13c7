"""The server's page as a screen reader reads it out: word by word, from choosing a picture to its speech.

The screen reader is @guidepup/virtual-screen-reader, a simulator that runs in the page, in Chromium as in
test_serve_page.py. It says what the page tells assistive technology; real ones put that into words of their own.
"""

import re
import wave
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests.npm_packages import npm_file
from tests.test_gallery import driver  # noqa: F401 (a fixture)
from tests.test_serve_page import CUP, Page, Served, page, served  # noqa: F401 (the last two are fixtures)

PACKAGE = "@guidepup/virtual-screen-reader@0.33.0"


class Reader:
    """A screen reader in an open page, at its beginning."""

    def __init__(self, driver: webdriver.Chrome, module: str) -> None:  # noqa: F811
        self.driver = driver
        script, replaced = re.subn(r"export\{.*?([\w$]+) as virtual\}", r"window.virtual = \1", module)
        assert replaced == 1
        # Over the debugger, since the page's Content-Security-Policy allows no other scripts than its own.
        driver.execute_cdp_cmd("Runtime.evaluate", {"expression": f"(() => {{{script}\n}})()"})
        self.do("await virtual.start({ container: document.body })")

    def do(self, script: str, argument: Any = None) -> Any:
        """Run statements that may wait, and know `argument`; return what they return."""
        work = f"(async () => {{ {script} }})()"
        value = self.driver.execute_async_script(
            f"const [argument, end] = arguments; {work}.then(end, (error) => end(`${{error}}`))", argument
        )
        assert isinstance(value, list | None), value
        return value

    def heard(self, end: str) -> list[str]:
        """What has been said since the last call; `end` is waited for."""
        said: list[str] = self.do(HEARD, end)
        return said

    def read_to(self, end: str) -> list[str]:
        """Go on item by item, up to what is said as `end`: what is said on the way."""
        self.do(READ, end)
        return self.heard(end)


HEARD = """
let log = [];
for (let tries = 0; tries < 200 && !log.includes(argument); tries++) {
  if (tries) await new Promise((resolve) => setTimeout(resolve, 50));
  log = await virtual.spokenPhraseLog();
}
await virtual.clearSpokenPhraseLog();
return log;
"""
READ = """
await virtual.clearSpokenPhraseLog();
for (let steps = 0; steps < 200 && (await virtual.lastSpokenPhrase()) !== argument; steps++) await virtual.next();
"""


@pytest.fixture(scope="module")
def module(pytestconfig: pytest.Config) -> str:
    return npm_file(pytestconfig, PACKAGE, "lib/esm/index.browser.js")


def speech(folder: Path) -> str:
    with wave.open(str(folder / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000 * 2 * 20))
    return str(folder / "speech.wav")


def test_from_a_picture_to_its_speech(module: str, page: Page, served: Served) -> None:  # noqa: F811
    served.answers[40] = {**CUP, "speech": speech(page.folder), "flags": "low_confidence"}
    page.open(served.url)
    reader = Reader(page.driver, module)
    assert reader.read_to("end of form, Give a picture") == TO_GIVE_A_PICTURE
    served.may_go_on.clear()
    page.give(page.picture())
    said = reader.heard("polite: Being described…")
    assert [each for each in said if not each.startswith("polite: Waiting")] == [
        "heading, cup.png, level 3",
        "polite: Sending…",
        "polite: Being described…",
    ]
    served.may_go_on.set()
    found = "An orange cup on a green background. Text on the picture: XZWH. Take care: the model was not sure."
    assert reader.heard(f"polite: cup.png: {found}") == [f"polite: cup.png: {found}"]
    assert reader.read_to("end of article") == THE_CUP
    page.press(Keys.TAB)
    assert reader.heard("Speech") == ["Speech"]
    page.press(Keys.SPACE)
    page.until(lambda: page.script("return document.querySelector('audio').currentTime > 0"))


TO_GIVE_A_PICTURE = [
    "link, Skip to the results",
    "banner",
    "heading, Describe pictures, level 1",
    "group, Language of this page",
    "button, English, pressed",
    "button, Русский, not pressed",
    "end of group, Language of this page",
    "end of banner",
    "main",
    "form, Give a picture",
    "heading, Give a picture, level 2",
    "group, How much detail",
    "How much detail",
    "radio, Brief, not checked, position 1, set size 3",
    "Brief",
    "radio, Normal, checked, position 2, set size 3",
    "Normal",
    "radio, Full, not checked, position 3, set size 3",
    "Full",
    "end of group, How much detail",
    "Language of the answer",
    "combobox, Language of the answer, en, has popup listbox, not expanded",
    "option, English, en, not selected, position 1, set size 2",
    "option, Русский, ru, not selected, position 2, set size 2",
    "end of combobox, Language of the answer, en, has popup listbox, not expanded",
    "paragraph",
    "Choose pictures",  # the input, which has no role in ARIA
    "Choose pictures",  # its label
    "end of paragraph",
    "paragraph",
    "You can also paste a picture or its address, or drop files on this page. The answer begins at once.",
    "end of paragraph",
    "Address of a picture",
    "textbox, Address of a picture, placeholder https://",
    "button, Describe it",
    "end of form, Give a picture",
]


def paragraph(text: str) -> list[str]:
    return ["paragraph", text, "end of paragraph"]


def named(name: str, text: str) -> list[str]:
    return ["term", name, "end of term", "definition", text, "end of definition"]


THE_CUP = [
    "cup.png",
    "end of heading, cup.png, level 3",
    *paragraph("An orange cup on a green background."),
    "paragraph",
    "Take care:",
    "the model was not sure",
    ".",
    "end of paragraph",
    "Speech",  # the player, which has no role in ARIA
    "paragraph",
    "button, Copy the text",
    "button, Download as JSON",
    "end of paragraph",
    *named("In full", "An orange cup on a green background. The text reads XZWH."),
    *named("Text on the picture", "XZWH"),
    *named("Category", "household"),
    *named("Keywords", "cup, orange"),
    "figure",
    "end of article",
]


def test_what_is_wrong_is_heard_at_once(module: str, page: Page, served: Served) -> None:  # noqa: F811
    page.open(served.url)
    reader = Reader(page.driver, module)
    reader.read_to("button, Describe it")
    reader.do("await virtual.act()")
    sentence = "Enter an address that begins with https:// or http://."
    assert reader.heard(f"polite: {sentence}")[1:] == [
        f"textbox, Address of a picture, {sentence}, invalid, placeholder https://",
        f"polite: {sentence}",
    ]
    (page.folder / "bad.png").write_bytes(b"no picture")
    page.give(page.folder / "bad.png")
    sentence = "This file is not a picture of a known kind. Choose a JPEG, PNG, WebP or HEIC file, for example."
    assert reader.heard(f"polite: bad.png: {sentence}") == [
        "heading, bad.png, level 3",
        "polite: Sending…",
        f"polite: bad.png: {sentence}",
    ]
    assert reader.read_to("end of article") == [
        "bad.png",
        "end of heading, bad.png, level 3",
        *paragraph(sentence),
        "button, Try again",
        "end of article",
    ]


def test_everything_is_heard_in_russian(module: str, page: Page, served: Served) -> None:  # noqa: F811
    served.answers[40] = {"description": "A cup.", "description_ru": "Оранжевая чашка."}
    page.open(served.url)
    page.find("[data-language=ru]").click()
    page.find("#answer-language option[value=ru]").click()
    reader = Reader(page.driver, module)
    served.may_go_on.clear()
    page.give(page.picture())
    assert "polite: Отправляется…" in reader.heard("polite: Картинка описывается…")
    served.may_go_on.set()
    assert reader.heard("polite: cup.png: Оранжевая чашка.") == ["polite: cup.png: Оранжевая чашка."]
    assert reader.read_to("end of article")[2:] == [
        *paragraph("Оранжевая чашка."),
        "paragraph",
        "button, Прочитать вслух",
        "button, Скопировать текст",
        "button, Скачать как JSON",
        "end of paragraph",
        "figure",
        "end of article",
    ]
