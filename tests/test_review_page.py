"""The review page in a real browser, by keyboard: corrections, undo, many at once, and what survives kills.

Needs chromium and chromedriver, as test_gallery.py. The server is `serve --review-only` in a process of its own, over
the rows of the bundled models.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx2
import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.conftest import PROJECT, Run, copied
from tests.test_gallery import FLAGS, HOSTILE, driver  # noqa: F401 (driver is a fixture)
from tests.test_report import record, write_csv
from tests.test_serve_page import PAGE, Page, page  # noqa: F401 (page is a fixture)
from vec_pipeline import load_annotations
from vec_pipeline.commands.serve.access import hash_of
from vec_pipeline.commands.serve.review import bulk
from vec_pipeline.corrections import EDIT

STARTS = re.compile(r"(http://127\.0\.0\.1:(\d+))/review reviews ")
SCRIPTS = sorted(path.name for path in PAGE.glob("review*.js"))


class Server:
    """`serve --review-only` in a process of its own; it can be killed and started again at the same address."""

    def __init__(self, csv: Path) -> None:
        self.csv, self.url, self.port = csv, "", "0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "vec_pipeline", "serve", "--review-only", "--csv", str(self.csv)]
        self.process = subprocess.Popen(
            [*command, "--port", self.port], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        found = STARTS.match(line)
        assert found, line
        self.url, self.port = found[1], found[2]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def post(self, path: str, body: Any) -> Any:
        return httpx2.post(f"{self.url}/v1/review/{path}", json=body, timeout=20).raise_for_status().json()

    def values(self, name: str) -> dict[str, Any]:
        """The row of a picture, as readers of the CSV see it."""
        table = load_annotations(self.csv, vectors=False)
        row: dict[str, Any]
        [row] = table[table["image_path"].str.endswith(name)].to_dict("records")
        return row


class Review(Page):
    """A browser with the review page open."""

    def show(self, server: Server, state: str = "") -> None:
        """Open the page from scratch, with what the browser has stored, until the list is there."""
        self.driver.get("about:blank")
        self.driver.get(f"{server.url}/review#{state}")
        self.until(lambda: self.find("#count").text)
        if "view=grid" not in state and "0 pictures" not in self.find("#count").text:
            self.until(lambda: self.find("#one-title").text)

    def forget(self, server: Server) -> None:
        self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": server.url, "storageTypes": "all"})

    def value(self, column: str) -> str:
        return str(self.script("return document.getElementById(`field-${arguments[0]}`).value", column))

    def focused_id(self) -> str:
        return str(self.script("return document.activeElement.id"))

    def together(self, modifier: str, key: str) -> None:
        ActionChains(self.driver).key_down(modifier).send_keys(key).key_up(modifier).perform()

    def until_saved(self) -> None:
        self.until(lambda: self.find("#saving").text == "Saved.")

    def block(self, *addresses: str) -> None:
        """Let requests to these addresses fail, as if the server did not answer."""
        self.driver.execute_cdp_cmd("Network.enable", {})
        self.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": list(addresses)})


@pytest.fixture(scope="module")
def rows(example_run: tuple[Run, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the rows of the bundled models: what is corrected here is nobody else's."""
    return copied(example_run[1], tmp_path_factory.mktemp("review"))


@pytest.fixture(scope="module")
def server(rows: Path) -> Iterator[Server]:
    server = Server(rows)
    yield server
    server.kill()


@pytest.fixture
def review(page: Page, server: Server) -> Review:  # noqa: F811
    """The page with nothing stored in the browser."""
    found = Review(page.driver, page.folder)
    found.block()
    found.forget(server)
    return found


# --- by keyboard alone


def test_corrects_undoes_and_replaces_by_keyboard_alone(review: Review, server: Server) -> None:
    review.show(server, "order=csv")
    first = review.find("#one-title").text
    review.press("e")
    assert review.focused_id() == "field-description"
    review.together(Keys.CONTROL, "a")
    review.press("A corrected description.")
    review.together(Keys.CONTROL, Keys.ENTER)
    review.until(lambda: review.find("#place").text.startswith("2 of 25"))
    assert review.focused_id() == "one-title"
    review.until_saved()
    row = server.values(first)
    assert (row["description"], row["verified"]) == ("A corrected description.", "accepted")
    review.press("k")
    review.until_equal(lambda: review.find("#one-title").text, first)
    assert "A corrected description." not in review.find("#fields .machine").text
    assert review.find("#mark").text == "accepted"
    review.press("u")
    review.until(lambda: review.value("description") != "A corrected description.")
    assert review.said()[-1].startswith("Undone")
    assert server.values(first)["verified"] == ""

    review.press("g")
    assert review.focused_text().startswith(review.value("description"))
    review.press("x", Keys.ARROW_RIGHT, "x")
    assert review.find("#count").text == "25 pictures · 2 selected"
    review.press("b")
    review.until(lambda: review.find("#bulk").get_attribute("open"))
    review.tab_to("Column")
    review.press("d")
    assert review.script("return document.getElementById('bulk-column').value") == "description"
    review.tab_to("Find")
    review.press("background")
    review.tab_to("Replace with")
    review.press("backdrop", Keys.ENTER)
    review.until(lambda: review.find("#bulk-examples").is_displayed())
    assert review.find("#bulk-count").text == "Values that would change: 2, of 2 pictures."
    assert review.focused_id() == "bulk-apply"
    review.press(Keys.ENTER)
    review.until(lambda: not review.find("#bulk").get_attribute("open"))
    review.until(lambda: review.said()[-1].startswith("Changed values: 2."))
    table = load_annotations(server.csv, vectors=False)
    assert table["description"].str.contains("backdrop").sum() == 2
    assert review.script("return document.activeElement.getAttribute('role')") == "option"
    review.together(Keys.CONTROL, "z")
    review.until(lambda: review.said()[-1] == "Undone. Pictures: 2.")
    assert not load_annotations(server.csv, vectors=False)["description"].str.contains("backdrop").any()


def test_decides_on_one_after_another(review: Review, server: Server) -> None:
    review.show(server, "order=csv&where=categories:animal")
    names = [Path(path).name for path in animals(server)]
    review.press("a")
    review.until_equal(lambda: review.find("#one-title").text, names[1])
    review.press("r")
    review.until_equal(lambda: review.find("#one-title").text, names[2])
    review.press("k", "k")
    review.until_equal(lambda: review.find("#one-title").text, names[0])
    review.press("a")  # stays accepted; the next is decided already
    review.until_equal(lambda: review.find("#one-title").text, names[2])
    review.until_saved()
    assert [server.values(name)["verified"] for name in names[:3]] == ["accepted", "rejected", ""]
    assert review.said()[-1].startswith(f"3 of {len(names)}: ")
    review.press("k", "k")
    review.until_equal(lambda: review.find("#one-title").text, names[0])
    review.find("#accept").click()  # pressed again: no longer decided
    review.until_equal(lambda: review.find("#mark").text, "")
    review.press("u", "u", "u")
    review.until(lambda: server.values(names[0])["verified"] == "" == server.values(names[1])["verified"])


SLOW = {"offline": False, "latency": 600, "downloadThroughput": -1, "uploadThroughput": -1}


def test_a_decision_is_not_taken_back_and_leads_nobody_away(review: Review, server: Server) -> None:
    """All but the first and the last are decided on, and the next is looked for by a slow server."""
    numbers = httpx2.get(f"{server.url}/v1/review", params={"where": "categories:animal", "order": "csv"}).json()[
        "rows"
    ]
    accept = {"kind": "set", "column": "verified", "value": "accepted"}
    act = server.post("bulk", {"rows": numbers[1:-1], "operation": accept, "preview": False})["act"]
    names = [Path(path).name for path in animals(server)]
    review.show(server, f"order=csv&where=categories:animal&row={numbers[-1]}")
    try:
        review.driver.execute_cdp_cmd("Network.emulateNetworkConditions", SLOW)
        review.press("a", "e")  # who edits stays
        review.until_saved()
        time.sleep(1)
        assert (review.find("#one-title").text, review.focused_id()) == (names[-1], "field-description")
        review.press(Keys.ESCAPE, "a", "a")
        review.until_equal(lambda: review.find("#one-title").text, names[0])
        review.script(
            "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', repeat: true, bubbles: true}))"
        )
        time.sleep(1)
        assert (server.values(names[-1])["verified"], server.values(names[0])["verified"]) == ("accepted", "")
    finally:
        review.driver.execute_cdp_cmd("Network.emulateNetworkConditions", SLOW | {"latency": 0})
    review.press("u")
    server.post("undo", {"act": act})
    review.until(lambda: server.values(names[-1])["verified"] == "")


def animals(server: Server) -> list[str]:
    table = load_annotations(server.csv, vectors=False, where="categories:animal")
    return list(table["image_path"])


def test_undo_goes_back_to_the_picture_and_takes_what_was_just_typed(review: Review, server: Server) -> None:
    review.show(server, "order=csv&where=categories:animal")
    first, before = review.find("#one-title").text, review.value("description")
    review.press("a")
    review.until(lambda: review.find("#place").text.startswith("2 of"))
    review.press("u")
    review.until_equal(lambda: review.find("#one-title").text, first)
    review.until_equal(lambda: review.find("#mark").text, "")
    review.press("e", Keys.END, " Typed.", Keys.ESCAPE, "u")
    review.until(lambda: review.said().count("Undone. Pictures: 1.") == 2)
    review.until_equal(lambda: review.value("description"), before)
    review.press("u")
    review.until(lambda: review.said()[-1].startswith("There is nothing to undo."))


def test_a_field_is_saved_a_second_after_the_last_key(review: Review, server: Server) -> None:
    review.show(server, "where=path~red-flower")
    review.press("e", Keys.END, " And more")
    review.until_saved()
    assert server.values("red-flower.png")["description"].endswith(" And more")
    assert review.focused_id() == "field-description"
    review.tab_to("Back to the machine’s")
    review.press(Keys.ENTER)
    review.until(lambda: " And more" not in review.value("description"))
    assert review.focused_id() == "field-description"
    review.until(lambda: not server.values("red-flower.png")["description"].endswith("more"))
    review.find("#history summary").click()
    review.until(lambda: len(review.texts("#entries li")) == 2)
    assert "And more → the machine’s" in review.texts("#entries li")[0]


def test_what_is_typed_while_the_field_is_being_saved_is_saved_next(review: Review, server: Server) -> None:
    review.show(server, "where=path~red-flower")
    slow = {"offline": False, "latency": 1500, "downloadThroughput": -1, "uploadThroughput": -1}
    review.driver.execute_cdp_cmd("Network.enable", {})
    review.driver.execute_cdp_cmd("Network.emulateNetworkConditions", slow)
    try:
        review.press("e", Keys.END, " One.", Keys.TAB)
        time.sleep(0.3)  # on its way by now
        review.find("#field-description").send_keys(" Two.", Keys.TAB)
        review.until(lambda: server.values("red-flower.png")["description"].endswith(" One. Two."))
        assert not review.find("#conflict").get_attribute("open")
    finally:
        review.driver.execute_cdp_cmd("Network.emulateNetworkConditions", slow | {"latency": 0})
    review.until_saved()
    review.press(Keys.ESCAPE, "u", "u")
    review.until(lambda: "One." not in server.values("red-flower.png")["description"])


def test_a_value_that_cannot_be_is_refused_with_a_sentence(review: Review, server: Server) -> None:
    review.show(server, "where=path~red-flower")
    review.script("document.querySelector('#fields details').open = true")
    review.block("*/v1/review/correct")
    review.find("#field-keywords").send_keys(", seen")
    field = review.find("#field-text_confidence")
    field.send_keys("abc", Keys.TAB)
    review.block()  # both are sent together, and what is wrong with one does not keep the other
    error = review.find("#field-text_confidence-error")
    review.until(error.is_displayed)
    assert "is not a number" in error.text and error.text in review.said()[-1]
    field.send_keys("d")
    review.together(Keys.CONTROL, Keys.ENTER)  # neither accepts nor goes on
    review.until(lambda: "red-flower.png: text_confidence: " in review.said()[-1] and "abcd'" in review.said()[-1])
    assert (review.find("#mark").text, server.values("red-flower.png")["verified"]) == ("corrected", "")
    field.clear()
    field.send_keys("0.5", Keys.TAB)
    review.until(lambda: server.values("red-flower.png")["text_confidence"] == 0.5)
    assert not error.is_displayed()
    assert server.values("red-flower.png")["keywords"].endswith(", seen")
    review.press(Keys.ESCAPE, "u", "u")
    review.until(lambda: not server.values("red-flower.png")["keywords"].endswith(", seen"))
    assert server.values("red-flower.png")["text_confidence"] != 0.5


def test_filter_order_and_view_are_in_the_address(review: Review, server: Server) -> None:
    review.show(server, "order=csv")
    review.press("/")
    review.press("categories:animal", Keys.ENTER)
    review.until(lambda: review.find("#count").text == f"{len(animals(server))} of 25 pictures")
    review.press(Keys.ESCAPE, "g", Keys.END)
    expected = review.focused_text()
    number = httpx2.get(f"{server.url}/v1/review", params={"where": "categories:animal", "order": "csv"}).json()[
        "rows"
    ][-1]
    review.until(lambda: f"row={number}" in review.driver.current_url)
    review.driver.refresh()
    review.until(lambda: len(review.texts("#grid .says")) == len(animals(server)))
    assert "view=grid" in review.driver.current_url and "order=csv" in review.driver.current_url
    assert expected in review.texts("#grid [role=option]")
    review.press("g")
    review.until(lambda: "view=" not in review.driver.current_url)
    review.driver.refresh()
    review.until(lambda: review.find("#one-title").text)
    assert review.find("#place").text == f"{len(animals(server))} of {len(animals(server))}"


def test_a_filter_that_cannot_be_read_leaves_the_list(review: Review, server: Server) -> None:
    review.show(server)
    review.press("/")
    review.press("colour:red", Keys.ENTER)
    review.until(lambda: review.find("#where-error").text.startswith("query: unknown column 'colour'"))
    assert review.find("#where").get_attribute("aria-invalid") == "true"
    assert review.find("#count").text == "25 pictures"
    review.together(Keys.CONTROL, "a")
    review.press("path~nosuch", Keys.ENTER)
    review.until(lambda: review.find("#empty").text == "No picture fits the filter.")
    assert not review.find("#one-view").is_displayed()


def test_keys_are_listed_and_single_ones_can_be_switched_off(review: Review, server: Server) -> None:
    review.show(server, "order=csv")
    first = review.find("#one-title").text
    review.press("?")
    assert "J →" in review.texts("#keys th")[0]
    review.find("#keys-on").click()
    review.press(Keys.ESCAPE, "j", "e")
    assert review.find("#one-title").text == first and not review.focused_id().startswith("field")
    review.press(Keys.ARROW_RIGHT)  # not a letter
    review.until(lambda: review.find("#one-title").text != first)
    review.driver.refresh()
    review.until(lambda: review.find("#one-title").text)
    name = review.find("#one-title").text
    review.press("j")
    assert review.find("#one-title").text == name


def test_letters_of_another_layout_are_known_by_their_place(review: Review, server: Server) -> None:
    review.show(server, "order=csv")
    first = review.find("#one-title").text
    review.script(
        "const event = new KeyboardEvent('keydown', {key: 'о', code: 'KeyJ', bubbles: true, cancelable: true});"
        "document.body.dispatchEvent(event)"
    )
    review.until(lambda: review.find("#one-title").text not in ("", first))


# --- many at once


@pytest.mark.parametrize(
    ("operation", "options", "example"),
    [
        ("add_keyword", {"keyword": "drawn"}, "drawn"),
        ("remove_keyword", {"keyword": "flower"}, "flower"),
        ("rename_keyword", {"keyword": "flower", "to": "blossom"}, "blossom"),
        ("trigger", {"column": "text", "text": "sks"}, "sks, A red flower"),
        ("prefix", {"column": "text", "text": "Photo: "}, "Photo: A red flower"),
        ("suffix", {"column": "text", "text": " End."}, "End."),
        ("case", {"column": "text", "to": "upper"}, "A RED FLOWER"),
        ("set", {"column": "categories", "value": "plants"}, "plants"),
        ("replace", {"column": "text", "find": "(red) (flower)", "with": r"\2 \1", "regex": True}, "A flower red"),
        ("reject", {}, "rejected"),
    ],
)
def test_every_operation_has_a_preview(
    review: Review, server: Server, operation: str, options: dict[str, Any], example: str
) -> None:
    review.show(server, "where=path~red-flower")
    review.press("b")
    review.find(f"#operation option[value={operation}]").click()
    for name, value in options.items():
        field = review.find(f"#bulk-{name}")
        if value is True:
            field.click()
        elif field.tag_name == "select":
            review.find(f"#bulk-{name} option[value={value}]").click()
        else:
            field.send_keys(value)
    before = server.values("red-flower.png")
    review.find("#bulk-preview").click()
    review.until(lambda: review.find("#bulk-examples").is_displayed())
    assert example in review.find("#bulk-examples").text
    assert review.find("#bulk-count").text == "Values that would change: 1, of 1 pictures."
    assert server.values("red-flower.png") == before
    review.press(Keys.ESCAPE)


def test_what_cannot_be_done_to_many_is_said_in_the_dialog(review: Review, server: Server) -> None:
    review.show(server)
    review.press("b")
    review.find("#bulk-regex").click()
    review.find("#bulk-find").send_keys("(", Keys.ENTER)
    review.until(lambda: "missing )" in review.find("#bulk-error").text)
    assert not review.find("#bulk-apply").is_enabled()
    review.find("#bulk-find").send_keys(Keys.BACKSPACE, "nothing like it", Keys.ENTER)
    review.until(lambda: review.find("#bulk-count").text == "Nothing would change. Pictures looked at: 25.")
    assert not review.find("#bulk-error").is_displayed() and not review.find("#bulk-apply").is_enabled()


def test_any_change_can_be_undone_from_the_list_of_all(review: Review, server: Server) -> None:
    keywords = server.values("red-flower.png")["keywords"]
    operation = {"kind": "add_keyword", "keyword": "added"}
    server.post("bulk", {"where": "", "operation": operation, "preview": False, "who": "Ann"})
    review.show(server, "where=path~red-flower")
    assert "added" in review.value("keywords")
    review.press("c")
    review.until(lambda: review.texts("#acts-list li"))
    assert "Ann; values: 25" in review.texts("#acts-list li")[0]
    review.find("#acts-list button").click()
    review.until(lambda: review.find("#acts-said").text == "Undone. Pictures: 25.")
    assert server.values("red-flower.png")["keywords"] == keywords
    review.until(lambda: review.value("keywords") == keywords)
    review.until(lambda: "undone" in review.texts("#acts-list li")[1])
    assert review.texts("#acts-list li:nth-child(2) button") == [] and review.texts("#acts-list li:first-child button")
    review.press("a", "j")  # letters do nothing behind a dialog
    review.press(Keys.ESCAPE)
    assert review.find("#mark").text != "accepted"
    review.find("[data-language=ru]").click()
    review.press("c")
    review.until(lambda: review.texts("#acts-list li"))
    assert review.texts("#acts-list li")[0].startswith("отмена: добавление «added» в keywords")
    review.press(Keys.ESCAPE)
    review.find("[data-language=en]").click()


def test_what_was_changed_after_an_act_cannot_be_undone_with_it(review: Review, server: Server) -> None:
    review.show(server, "where=path~plain-blue")
    review.press("e", Keys.END, " One.", Keys.ESCAPE)
    review.until_saved()
    correct(server, "plain-blue", "description", "Another.")
    review.press("u")
    review.until(lambda: review.said()[-1] == "This cannot be undone: a value was changed after it.")
    assert server.values("plain-blue.png")["description"] == "Another."


def test_what_is_selected_by_mouse_is_decided_by_one_act(review: Review, server: Server) -> None:
    review.show(server, "order=csv&view=grid&where=categories:animal")
    names = [Path(path).name for path in animals(server)]
    tiles = review.until(lambda: review.script("return [...document.querySelectorAll('#grid [role=option]')]"))
    review.until(lambda: len(review.texts("#grid .says")) == len(names))
    ActionChains(review.driver).key_down(Keys.CONTROL).click(tiles[0]).key_up(Keys.CONTROL).perform()
    ActionChains(review.driver).key_down(Keys.SHIFT).click(tiles[2]).key_up(Keys.SHIFT).perform()
    assert [tile.get_attribute("aria-selected") for tile in tiles[:4]] == ["true", "true", "true", "false"]
    review.press("a")
    review.until(lambda: review.texts("#grid .mark") == ["accepted"] * 3)
    assert [server.values(name)["verified"] for name in names[:4]] == ["accepted"] * 3 + [""]
    assert review.find("#count").text.endswith("of 25 pictures")  # nothing is selected any more
    review.press("u")
    review.until(lambda: "accepted" not in review.texts("#grid .mark"))
    review.press(Keys.HOME)
    review.together(Keys.SHIFT, Keys.ARROW_RIGHT)
    review.together(Keys.SHIFT, Keys.ARROW_RIGHT)
    assert review.find("#count").text.endswith(" · 3 selected")
    review.press(Keys.ESCAPE)
    assert review.find("#count").text.endswith("of 25 pictures")
    tiles[1].click()
    review.until_equal(lambda: review.find("#one-title").text, names[1])


def test_a_preview_is_of_what_is_asked_now_and_of_what_was_typed(review: Review, server: Server) -> None:
    review.show(server, "where=path~red-flower")
    review.press("e", Keys.END, " Xyzzy", Keys.ESCAPE, "b")
    review.find("#bulk-column option[value=description]").click()
    review.find("#bulk-find").send_keys("xyzzy", Keys.ENTER)
    review.until(lambda: review.find("#bulk-apply").is_enabled())
    assert review.texts("#bulk [name=which]:disabled") == [""]  # nothing is selected
    review.find("#bulk-find").send_keys("x")
    assert not review.find("#bulk-apply").is_enabled() and not review.find("#bulk-examples").is_displayed()
    review.press(Keys.ESCAPE, "u")
    review.until(lambda: "Xyzzy" not in server.values("red-flower.png")["description"])


# --- two at once


def correct(server: Server, name: str, column: str, value: str) -> None:
    """Somebody else, Ann, corrects a picture."""
    [number] = httpx2.get(f"{server.url}/v1/review", params={"where": f"path~{name}"}).json()["rows"]
    server.post("correct", {"changes": [{"row": number, "column": column, "value": value, "seen": None}], "who": "Ann"})


def test_what_somebody_else_does_is_shown(review: Review, server: Server) -> None:
    review.show(server, "where=path~two-pink-arrows")
    correct(server, "two-pink-arrows", "description", "Arrows.")
    review.until(lambda: review.value("description") == "Arrows.")
    assert review.said()[-1] == "Ann has changed something."
    review.show(server, "where=pink&view=grid&order=csv")
    review.until(lambda: "Arrows." in review.texts("#grid .says"))
    correct(server, "two-pink-arrows", "description", "Two arrows.")
    review.press("a")  # an act of this tab, with which it has not seen the other
    review.until(lambda: "Two arrows." in review.texts("#grid .says"))
    review.press("u")


def test_two_who_save_the_same_are_not_asked(review: Review, server: Server) -> None:
    review.show(server, "where=path~two-pink-arrows")
    review.block("*/v1/review/correct")
    review.press("e")
    review.together(Keys.CONTROL, "a")
    review.press("Signs.", Keys.TAB)
    review.until(lambda: review.find("#saving").text.startswith("Not saved yet"))
    correct(server, "two-pink-arrows", "description", "Signs.")
    review.block()
    review.until_saved()
    assert not review.find("#conflict").get_attribute("open")


def test_two_tabs_know_of_each_other(review: Review, server: Server) -> None:
    review.show(server, "where=path~%2Fyellow-moon.png")
    first, second = review.driver.current_window_handle, open_tab(review, server, "where=path~%2Fyellow-moon.png")
    review.press("e", Keys.END, " Seen.")
    review.until_saved()
    review.driver.switch_to.window(first)
    review.until(lambda: review.value("description").endswith(" Seen."))
    review.block("*/v1/review/correct")  # so that this tab saves after the other
    review.press("e", Keys.END, " Mine.", Keys.TAB)
    review.until(lambda: review.find("#saving").text.startswith("Not saved yet"))
    review.driver.switch_to.window(second)
    review.press(" Theirs.")
    review.until(lambda: server.values("yellow-moon.png")["description"].endswith(" Theirs."))
    review.driver.switch_to.window(first)
    review.block()
    review.until(lambda: review.find("#conflict").get_attribute("open"))
    assert review.find("#mine").text.endswith("Seen. Mine.")
    assert review.find("#theirs").text.endswith("Seen. Theirs.")
    assert review.find("#theirs-by").text.startswith("By somebody, ")
    assert review.findings() == set()
    review.press(Keys.ESCAPE, Keys.ESCAPE)  # a decision is needed
    assert review.find("#conflict").get_attribute("open")
    review.find("#keep").click()
    review.until(lambda: server.values("yellow-moon.png")["description"].endswith("Seen. Mine."))
    review.driver.switch_to.window(second)
    review.until(lambda: review.value("description").endswith("Seen. Mine."))
    review.driver.close()
    review.driver.switch_to.window(first)


def open_tab(review: Review, server: Server, state: str) -> str:
    review.driver.switch_to.new_window("tab")
    review.show(server, state)
    handle: str = review.driver.current_window_handle
    return handle


KEPT = "return Object.keys(localStorage).filter(name => name.startsWith('review ')).sort()"
NO_LOCKS = {"source": "Object.defineProperty(navigator, 'locks', {value: undefined})"}


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_draft_is_taken_over_when_its_tab_is_closed(review: Review, server: Server, has_locks: bool) -> None:
    scripts = []

    def show(text: str) -> None:
        if not has_locks:  # as at an address without https
            added = review.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", NO_LOCKS)
            scripts.append(added["identifier"])
        review.show(server, "where=path~orange-cup")
        review.block("*/v1/review/correct")
        review.press("e", Keys.END, text, Keys.TAB)
        review.until(lambda: review.find("#saving").text.startswith("Not saved yet"))

    first = review.driver.current_window_handle
    review.driver.switch_to.new_window("tab")
    second = review.driver.current_window_handle
    show(" Of the second.")
    review.driver.switch_to.window(first)
    show(" Of the first.")
    time.sleep(4.5)  # a look for drafts of closed tabs
    assert len(review.script(KEPT)) == 2
    assert not any("typed before" in said for said in review.said())
    review.driver.switch_to.window(second)
    review.driver.close()
    review.driver.switch_to.window(first)
    review.block()
    review.until(lambda: review.find("#conflict").get_attribute("open"))
    assert (review.find("#mine").text[-14:], review.find("#theirs").text[-13:]) == ("Of the second.", "Of the first.")
    review.find("#keep").click()
    review.until(lambda: server.values("orange-cup-XZWH.png")["description"].endswith(" Of the second."))
    review.until(lambda: review.script(KEPT) == [])
    review.press(Keys.ESCAPE, "u", "u")
    review.until(lambda: "Of the" not in server.values("orange-cup-XZWH.png")["description"])
    for script in scripts[1:]:
        review.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": script})


def test_theirs_can_be_taken(review: Review, server: Server) -> None:
    review.show(server, "where=path~purple-cat.png")
    review.block("*/v1/review/correct")
    review.press("e", Keys.END, " Mine.", Keys.TAB)
    review.until(lambda: review.find("#saving").text.startswith("Not saved yet"))
    correct(server, "purple-cat.png", "description", "A kitten.")
    review.block()
    review.until(lambda: review.find("#conflict").get_attribute("open"))
    assert review.find("#theirs-by").text.startswith("By Ann, ")
    review.find("#take").click()
    review.until(lambda: review.value("description") == "A kitten.")
    assert server.values("purple-cat.png")["description"] == "A kitten."
    assert review.script("return Object.keys(localStorage).filter(name => name.startsWith('review '))") == []


# --- kills


def test_a_server_that_was_killed_gets_what_was_typed_meanwhile(review: Review, server: Server) -> None:
    review.show(server, "where=path~orange-cup")
    server.kill()
    review.press("e", Keys.END, " Typed without a server.")
    review.until(lambda: review.find("#saving").text.startswith("Not saved yet: the server does not answer."))
    assert any(said.startswith("Not saved yet") for said in review.said())
    server.start()
    review.until_saved()
    assert server.values("orange-cup-XZWH.png")["description"].endswith(" Typed without a server.")


def test_what_was_typed_goes_to_its_picture_wherever_that_is_by_then(review: Review, tmp_path: Path) -> None:
    """A row has another number by then, or is not there; what was typed for another CSV waits for that one."""
    rows = [record(f"/photos/{name}.jpg", description=f"{name}.") for name in ('a "quoted", one', "b", "c")]
    first, second = write_csv(tmp_path / "first.csv", rows), write_csv(tmp_path / "second.csv", rows)
    server = Server(first)
    try:
        review.show(server, "order=csv")
        server.kill()
        review.press("e", Keys.END, " One.", Keys.ESCAPE, "j", "j", "e", Keys.END, " Three.", Keys.ESCAPE)
        review.until(lambda: review.find("#saving").text.startswith("Not saved yet"))
        write_csv(first, [rows[1], rows[0]])
        server.start()
        review.until(lambda: server.values("one.jpg")["description"].endswith(" One."))
        assert server.values("b.jpg")["description"] == "b."
        review.until(lambda: [name.split("/")[-1] for name in review.script(KEPT)] == ["c.jpg\ndescription"])
        server.kill()
        server.csv = second
        server.start()
        review.show(server)
        time.sleep(0.5)
        assert server.values("c.jpg")["description"] == "c." and len(review.script(KEPT)) == 1
        server.kill()
        server.csv = write_csv(first, rows)
        server.start()
        review.show(server)
        review.until(lambda: server.values("c.jpg")["description"].endswith(" Three."))
    finally:
        server.kill()


def test_a_page_of_an_earlier_server_changes_no_other_row(review: Review, tmp_path: Path) -> None:
    rows = [record(f"/photos/{name}.jpg", description=f"{name}.") for name in "abc"]
    server = Server(write_csv(tmp_path / "first.csv", rows))

    def serve(name: str, of: list[Any]) -> None:
        server.kill()
        server.csv = write_csv(tmp_path / name, of)
        server.start()

    def verified() -> list[str]:
        return [server.values(f"{name}.jpg").get("verified", "") for name in "abc"]

    try:
        review.show(server, "order=csv")
        serve("first.csv", rows[1:])
        review.press("j", "k", "a")  # a.jpg, of which the server has no row; number 0 is b.jpg
        review.until(lambda: review.find("#notice").text.startswith("The server was started again"))
        assert review.find("#count").text == "2 pictures"
        serve("first.csv", rows)
        review.until(lambda: review.find("#to-new").text == "New pictures: 1. Load them")
        review.find("#to-new").click()
        review.until(lambda: review.find("#count").text == "3 pictures")
        review.press("g", Keys.HOME, "x")
        serve("first.csv", rows)
        review.press("a")  # of a selection by numbers
        review.until(lambda: review.find("#notice").text.startswith("The server was started again"))
        assert review.find("#count").text == "3 pictures" and verified()[1:] == ["", ""]
        review.press("r")
        review.until(lambda: "rejected" in verified())
        serve("second.csv", rows)
        review.press("u")  # that act is of the first CSV
        review.until(lambda: any(said.startswith("The server was started again") for said in review.said()))
        review.until(lambda: review.said()[-1] == "Pictures: 3.")  # the list is loaded again
        review.press("u")
        review.until(lambda: review.said()[-1].startswith("There is nothing to undo."))
        assert verified() == ["", "", ""]
    finally:
        server.kill()


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[tuple[webdriver.Chrome, subprocess.Popen[bytes]]]:
    """A browser in a process that can be killed."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    port = profile / "DevToolsActivePort"
    port.unlink(missing_ok=True)
    command = [path, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options = webdriver.ChromeOptions()
    end_s = time.monotonic() + 20
    while not (port.exists() and "\n" in port.read_text()):
        assert time.monotonic() < end_s and process.poll() is None
        time.sleep(0.05)
    options.debugger_address = f"127.0.0.1:{port.read_text().splitlines()[0]}"
    service = Service(shutil.which("chromedriver"))
    found = webdriver.Chrome(options=options, service=service)
    try:
        yield found, process
    finally:
        process.kill()
        process.wait()
        service.stop()


@pytest.mark.usefixtures("driver")  # which says where there is no browser
def test_a_browser_that_was_killed_has_what_was_typed(server: Server, tmp_path: Path) -> None:
    """Neither the server nor the browser is there in the end; another browser, with the same profile, saves it."""
    with browser(tmp_path) as (first, process):
        review = Review(first, tmp_path)
        review.show(server, "where=path~red-house")
        review.block("*/v1/review/correct")
        review.press("e", Keys.END, " Typed before the kill.")
        stored = tmp_path / "Default" / "Local Storage" / "leveldb"
        review.until(lambda: any(b"Typed before the kill." in path.read_bytes() for path in stored.glob("*.log")))
        process.kill()
        process.wait()
    assert "Typed" not in server.values("red-house-above-yellow-moon-SVQDB.jpg")["description"]
    (tmp_path / "SingletonLock").unlink(missing_ok=True)
    with browser(tmp_path) as (second, _):
        review = Review(second, tmp_path)
        review.show(server, "where=path~red-flower")  # another picture
        review.until(lambda: "Typed" in server.values("red-house-above-yellow-moon-SVQDB.jpg")["description"])
        review.until(lambda: review.said() and any("What was typed before" in said for said in review.said()))


# --- 25,000 rows


MEASURE = """
window.measured = [];
let pressed_ms = 0;
document.addEventListener("keydown", (event) => (pressed_ms = event.timeStamp), true);
new MutationObserver(() => {
  const from_ms = pressed_ms;
  if (document.querySelector("#picture img"))
    requestAnimationFrame(() => requestAnimationFrame((now_ms) => window.measured.push(now_ms - from_ms)));
}).observe(document.getElementById("picture"), { childList: true });
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """25,000 rows, of which the first 100 have a picture, of 12 megapixels."""
    folder = tmp_path_factory.mktemp("many")
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((4000, 3000)).save(folder / "00000.jpg", quality=90)
    for number in range(1, 100):
        os.link(folder / "00000.jpg", folder / f"{number:05}.jpg")
    text = "A description as long as those that models write, of two lines or so in the page."
    rows = (
        record(folder / f"{number:05}.jpg", text=text, description=f"{number}: {text}", categories="other")
        for number in range(25_000)
    )
    server = Server(write_csv(folder / "annotations.csv", list(rows)))
    yield server
    server.kill()


def test_the_next_of_25_000_pictures_is_there_within_100_ms_of_a_key(page: Page, many: Server) -> None:  # noqa: F811
    review = Review(page.driver, page.folder)
    review.show(many, "order=csv")
    review.until(lambda: review.script("return document.images.length"))
    time.sleep(2)  # somebody looks at the first one
    review.script(MEASURE)
    for number in range(2, 22):
        review.press("j")
        review.until(lambda: len(review.script("return measured")) == number - 1)  # noqa: B023
        assert review.find("#place").text == f"{number} of 25,000"
        time.sleep(0.2)
    measured_ms = sorted(review.script("return measured"))
    print(
        f"median {measured_ms[10]:.0f} ms, 90th percentile {measured_ms[18]:.0f} ms, longest {measured_ms[-1]:.0f} ms"
    )
    assert measured_ms[10] < 100
    assert review.script("return document.images.length") < 10


def test_a_grid_of_25_000_rows_has_few_tiles(page: Page, many: Server) -> None:  # noqa: F811
    review = Review(page.driver, page.folder)
    review.show(many, "order=csv&view=grid")
    review.until(lambda: "0: A description" in "".join(review.texts("#grid .says")))
    review.press("g", "g", Keys.END)
    review.until(lambda: "24999: A description" in "".join(review.texts("#grid .says")))
    last = review.driver.switch_to.active_element
    assert (last.get_attribute("aria-posinset"), last.get_attribute("aria-setsize")) == ("25000", "25000")
    assert review.script("return document.querySelectorAll('#grid [role=option]').length") < 80


# --- how it looks and sounds


def test_the_token_is_asked_for_and_pictures_come_with_it(review: Review, rows: Path, tmp_path: Path) -> None:
    shutil.copy(rows, tmp_path)
    (tmp_path / "annotations.token").write_text(hash_of("secret") + "\n")
    server = Server(tmp_path / rows.name)
    try:
        review.driver.get(f"{server.url}/review")
        review.until(lambda: review.find("#token").is_displayed())
        assert review.focused_id() == "token" and not review.find("#ask").is_displayed()
        assert review.findings() == set()
        review.press("secret", Keys.ENTER)
        review.until(lambda: review.script("return document.images.length"))
        assert review.find("#count").text == "25 pictures" and review.focused_id() == "where"
    finally:
        server.kill()


def test_hostile_texts_are_texts(review: Review, tmp_path: Path) -> None:
    columns = ("text", "description", "categories", "keywords", "flags")
    rows = []
    for text in HOSTILE:
        values: dict[str, Any] = dict.fromkeys(columns, text)
        rows.append(record(f"/photos/{text.replace('/', '')}.jpg", **values))
    server = Server(write_csv(tmp_path / "hostile.csv", rows, ["flags"]))
    try:
        for state in ("", "view=grid"):
            review.show(server, f"order=csv&{state}")
            for text in HOSTILE:
                if not state:
                    assert review.value("keywords") == text
                    review.press("j")
            assert review.script("return window.hacked") is None
        review.show(server, "order=csv")
        review.press("e", Keys.END, "<img src=x onerror=window.hacked=1>")
        review.together(Keys.CONTROL, Keys.ENTER)
        review.until_saved()
        review.press("k", "c")
        review.until(lambda: review.texts("#acts-list li"))
        review.press(Keys.ESCAPE)
        review.find("#history summary").click()
        review.until(lambda: "onerror=window.hacked=1" in "".join(review.texts("#entries li")))
        review.press("b")
        review.find("#bulk-find").send_keys("img", Keys.ENTER)
        review.until(lambda: review.find("#bulk-examples").is_displayed())
        assert review.script("return window.hacked") is None
    finally:
        server.kill()


@pytest.mark.parametrize(("scheme", "width_px", "language"), [("light", 1280, "en"), ("dark", 390, "ru")])
def test_axe_finds_nothing(review: Review, server: Server, scheme: str, width_px: int, language: str) -> None:
    review.emulate(width_px, scheme=scheme, is_phone=width_px < 500)
    review.show(server, "order=csv")
    review.find(f"[data-language={language}]").click()
    review.press("e", Keys.END, ".", Keys.ESCAPE)  # a corrected value
    review.until(lambda: review.find("#saving").text in ("Saved.", "Сохранено."))
    assert (review.findings(), is_wide(review)) == (set(), False)
    review.press("u", "c")
    review.until(lambda: review.texts("#acts-list li"))
    assert review.findings() == set()
    review.press(Keys.ESCAPE, "?")
    assert (review.findings(), is_wide(review)) == (set(), False)
    review.press(Keys.ESCAPE, "b")
    review.find("#bulk-find").send_keys("a", Keys.ENTER)
    review.until(lambda: review.find("#bulk-examples").is_displayed())
    assert (review.findings(), is_wide(review)) == (set(), False)
    review.press(Keys.ESCAPE, "g", "x")
    review.until(lambda: review.texts("#grid img") and review.texts("#grid .says"))
    assert (review.findings(), is_wide(review)) == (set(), False)
    review.press("/", "colour:red", Keys.ENTER)
    review.until(lambda: review.find("#where-error").is_displayed())
    assert review.findings() == set()


def is_wide(review: Review) -> bool:
    return bool(review.script("return document.documentElement.scrollWidth > innerWidth"))


def test_the_focus_is_seen_and_nothing_traps_it(review: Review, server: Server) -> None:
    review.show(server, "order=csv")
    seen = []
    for _ in range(40):
        review.press(Keys.TAB)
        name, outline = review.script(
            "const e = document.activeElement; return [e.id || e.tagName, getComputedStyle(e).outlineStyle]"
        )
        if name == "BODY":
            break
        seen.append(name)
        assert outline != "none", name
    for name in ("where", "order", "to-bulk", "next", "accept", "field-description", "field-keywords", "who"):
        assert name in seen
    review.press("?", Keys.TAB, Keys.TAB, Keys.ESCAPE)
    assert not review.find("#help").get_attribute("open")


def test_what_a_screen_reader_hears(review: Review, server: Server) -> None:
    review.show(server, "where=path~red-flower")
    heard = review.heard("#one-view")
    first = heard.index("heading red-flower.png")
    assert heard[first : first + 6] == [
        "heading red-flower.png", "1 of 1", "button Previous", "button Next", "button Accept", "button Reject",
    ]  # fmt: skip
    fields = [text for text in heard if text.startswith(("textbox", "combobox"))]
    names = ("textbox Description", "combobox Category", "textbox Keywords", "textbox In full")
    assert fields[:5] == [*names, "textbox Text on the picture"]
    review.press("a")
    review.until(lambda: review.said()[-2:] == ["accepted", "That was the last one that nobody has decided on."])
    assert review.find("#accept").get_attribute("aria-pressed") == "true"
    review.find("#accept").click()
    review.press("j")
    review.until(lambda: review.said()[-2:] == ["no longer decided", "This is the last picture."])
    review.until_saved()


def test_the_page_speaks_russian(review: Review, server: Server) -> None:
    review.show(server, "order=csv")
    review.find("[data-language=ru]").click()
    assert review.driver.title == "Проверка"
    heard = [text for name in ("#one-view", "#ask", ".top", "main > .bar") for text in review.heard(name)]
    texts = {re.sub(r"^(heading|button|textbox|combobox|searchbox|image) ", "", text) for text in heard}
    shown = {review.value(name) for name in ("description", "categories", "keywords", "text", "image_text")}
    shown |= {"English", "Числа и JSON", review.find("#one-title").text, review.find("#key").text}
    english = [text for text in texts - shown if re.search(r"[A-Za-z]{4,}", text)]
    assert [text for text in english if not text.startswith("text_confidence")] == []
    review.find("[data-language=en]").click()
    assert review.driver.title == "Review"


OPERATIONS = [
    {"kind": "replace", "find": "{one}", "with": "{two}"},
    *({"kind": kind, "text": "{one}"} for kind in ("prefix", "suffix", "trigger")),
    *({"kind": "case", "to": to} for to in ("lower", "upper", "sentence")),
    *({"kind": kind, "keyword": "{one}"} for kind in ("add_keyword", "remove_keyword")),
    {"kind": "rename_keyword", "keyword": "{one}", "to": "{two}"},
    *({"kind": kind} for kind in ("unique_keywords", "sort_keywords", "reset")),
    {"kind": "set", "value": "{one}"},
]


def test_the_page_knows_the_name_of_every_act() -> None:
    made = TypeAdapter[bulk.Operation](bulk.AnyOperation)
    names = {made.validate_python({**each, "column": "{column}"}).what() for each in OPERATIONS}
    script = (PAGE / "review-words.js").read_text("utf-8")
    known = dict(re.findall(r"^  '(.+)': \"(.+)\",$", script, re.MULTILINE))
    assert names | {"reset all columns", "undo: {act}", EDIT} == known.keys()
    for english, russian in known.items():
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", russian)), english
    kinds = {kind for each in get_args(get_args(bulk.AnyOperation)[0]) for kind in kinds_of(each)}
    assert kinds == {each["kind"] for each in OPERATIONS}


def kinds_of(operation: type[bulk.Operation]) -> tuple[str, ...]:
    return get_args(operation.model_fields["kind"].annotation)


NOT_SAID = {"Enter", "Escape", "Home", "Control", "Ctrl", "dialog .close"}


def test_every_text_of_the_page_has_a_translation() -> None:
    pattern = re.compile(r'^  "((?:[^"\\]|\\.)+)":\s+"(.+?)",$', re.MULTILINE)
    known = dict(pattern.findall((PAGE / "review-words.js").read_text("utf-8")))
    of_all = set(re.findall(r'^  "(.+?)":\s', (PAGE / "words.js").read_text("utf-8"), re.MULTILINE))
    html = (PAGE / "review.html").read_text("utf-8")
    used = set(re.findall(r"data-say[^>-]*>([^<\n]+)<", html))
    used |= set(re.findall(r'aria-label="([^"]+)" data-say-label', html))
    scripts = "".join((PAGE / name).read_text("utf-8") for name in SCRIPTS if name != "review-words.js")
    scripts = re.sub(r"/\*[^*]*\*/|//.*", "", scripts)  # texts alone, no comments
    used |= set(re.findall(r'"((?:[A-Z{]|[a-z]+[ ,])[^"]*[ .…’}][^"]*|[A-Z][a-z]{3,})"', scripts)) - NOT_SAID
    assert used - known.keys() - of_all == set()
    assert {text for text in known.keys() - used if f'"{text}"' not in scripts} == set()
    for english, russian in known.items():
        assert re.search("[а-я]", russian.lower()) or english.startswith("By {"), english
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", russian)), english
