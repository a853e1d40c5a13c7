"""Every flag is raised by what it names and by nothing else; the example pictures carry those they deserve.

With a calibration, its thresholds count, and rows have p_wrong.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from models.demo.drawing import draw
from models.demo.scenes import BACKGROUNDS, Scene
from tests.conftest import EXAMPLES, Run, copied, run_worker
from vec_pipeline import load_annotations
from vec_pipeline.calibration import Calibration, Term
from vec_pipeline.config import ConfigError, build_stage, load_config
from vec_pipeline.prompts import PROMPTS
from vec_pipeline.record import Values
from vec_pipeline.settings import changed_settings, fingerprint, recorded_settings, stage_settings
from vec_pipeline.stages.compare_pair import ComparePair
from vec_pipeline.stages.flag import THRESHOLDS, Flag, pixel_variance, repeated_share
from vec_pipeline.stages.open_image import OpenImage
from vec_pipeline.stages.read_text import ReadText

TEXT = 'A red car on a white background, at the left. The text reads "SALE".'


def picture(rgb: tuple[int, int, int] = (245, 245, 245)) -> Image.Image:
    """A red square on a plain ground."""
    image = Image.new("RGB", (112, 84), rgb)
    ImageDraw.Draw(image).rectangle((10, 10, 50, 50), fill=(214, 32, 36))
    return image


def flags(stage: Flag | None = None, **changed: Any) -> list[str]:
    """The flags of a row that deserves none, but for what is changed; None leaves a value out."""
    row: Values = {
        "image": picture(),
        "text": TEXT,
        "text_confidence": 0.97,
        "clip_score": 0.31,
        "image_text": "SALE",
        "is_truncated": False,
        **changed,
    }
    row = {name: value for name, value in row.items() if value is not None}
    [result] = (stage or Flag()).run(None, [row], 1)
    assert result.keys() == {"flags"}
    return str(result["flags"]).split()


def test_a_good_row_has_no_flag() -> None:
    assert flags() == []


def test_flags_are_in_a_fixed_order_separated_by_spaces() -> None:
    row = {
        "image": Image.new("RGB", (8, 8)),
        "text": "go on and on, " * 20,
        "text_confidence": 0.2,
        "clip_score": 0.1,
        "image_text": "STOP",
        "is_truncated": True,
        **seen(("OPEN", 0.99)),
        "pixels_lowered": True,
        "is_cut": True,
        "has_pages": True,
        "edit_difference": 0.0,
        "pair_difference": 0.0,
        "pair_similarity": 0.0,
    }
    every_flag = "low_confidence low_clip_score blank_image truncated repetitive text_mismatch"
    more = "ocr_missing ocr_invented pixels_lowered truncated_image pages edit_unchanged unchanged not_a_pair"
    assert Flag().run(None, [row], 1) == [{"flags": f"{every_flag} {more}"}]


def test_a_batch_gives_one_result_per_row_in_order() -> None:
    rows = [{"image": picture(), "text": text} for text in ("A car.", "A car. " * 30, "A boat.")]
    assert [result["flags"] for result in Flag().run(None, rows, 8)] == ["", "repetitive", ""]


def test_only_the_image_is_needed() -> None:
    assert Flag.reads == ("image",)
    assert Flag().run(None, [{"image": picture()}], 1) == [{"flags": ""}]


@pytest.mark.parametrize(("confidence", "expected"), [(0.639, ["low_confidence"]), (0.64, []), (1.0, [])])
def test_low_confidence(confidence: float, expected: list[str]) -> None:
    assert flags(text_confidence=confidence) == expected
    assert flags(text_confidence=np.float32(confidence + 1e-4)) == flags(text_confidence=confidence + 1e-4)


@pytest.mark.parametrize(("score", "expected"), [(0.199, ["low_clip_score"]), (-0.1, ["low_clip_score"]), (0.2, [])])
def test_low_clip_score(score: float, expected: list[str]) -> None:
    assert flags(clip_score=score) == expected


def test_thresholds_are_options() -> None:
    strict = Flag(low_confidence=0.98, low_clip_score=0.5, blank_image=1e5, repetitive=0.0)
    assert flags(strict, text="go on and on, on and on, on and on SALE") == [
        "low_confidence",
        "low_clip_score",
        "blank_image",
        "repetitive",
    ]
    lax = Flag(low_confidence=0.0, low_clip_score=0.0, blank_image=0.0, repetitive=1.0)
    assert flags(lax, text="SALE " * 50, text_confidence=0.01, clip_score=0.0, image=Image.new("RGB", (9, 9))) == []


@pytest.mark.parametrize("odd", [None, "", "high", math.nan, [0.1]])
def test_odd_values_raise_neither_errors_nor_flags(odd: object) -> None:
    assert flags(text_confidence=odd, clip_score=odd, is_truncated=odd, pixels_lowered=odd) == []
    assert flags(is_cut=odd, has_pages=odd) == []
    assert flags(edit_difference=odd, pair_difference=odd, pair_similarity=odd) == []
    assert "repetitive" not in flags(text=odd)
    assert flags(text=odd, image_text=odd) == (["empty_text"] if odd == "" else [])


@pytest.mark.parametrize("image", [Image.new("RGB", (1, 1)), Image.new("L", (30, 20), 7), Image.new("RGB", (400, 8))])
def test_one_colour_is_blank_whatever_the_size(image: Image.Image) -> None:
    assert flags(image=image) == ["blank_image"]


def test_camera_noise_on_one_colour_is_blank_and_random_pixels_are_not() -> None:
    noise = np.random.default_rng(0).normal(0, 10, (384, 384, 3))
    dark = Image.fromarray((20 + noise).clip(0, 255).astype(np.uint8))
    assert flags(image=dark) == ["blank_image"]
    wild = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    assert flags(image=Image.fromarray(wild)) == []


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_drawn_grounds_are_blank_until_something_is_drawn_on_them(background: str) -> None:
    for seed in range(10):  # of which some have the noise and the artefacts of cameras and files
        plain = draw(Scene((), 0, "", background, ""), random.Random(seed), scale=2).image
        printed = draw(Scene((), 0, "", background, "UP"), random.Random(seed), scale=2).image
        assert flags(image=plain) == ["blank_image"]
        assert flags(image=printed) == []


def test_one_line_of_print_is_not_blank() -> None:
    page = Image.new("RGB", (384, 384), "white")
    ImageDraw.Draw(page).text((100, 180), "page intentionally left blank", fill=(90, 90, 90))
    assert flags(image=page) == []


def test_colour_counts_where_brightness_is_the_same() -> None:
    image = Image.new("RGB", (100, 100), (120, 120, 120))
    image.paste((120, 133, 53), (0, 0, 50, 100))
    assert np.asarray(image.convert("L")).var() < 1
    assert pixel_variance(image) > 1000


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000"])
def test_a_blank_text(text: str) -> None:
    assert flags(text=text, image_text="") == ["empty_text"]
    assert flags(text=None, image_text="") == [], "one that is not there has an error of its own"


def test_truncated() -> None:
    assert flags(is_truncated=True) == ["truncated"]
    assert flags(is_truncated=None) == []


@pytest.mark.parametrize(
    "text",
    [
        "A red car on a white background. " * 3 + "SALE",
        "The text reads SALE" + " SALE" * 30,
        "SALE" + "!" * 200,
        "На картинке SALE, красная машина, красная машина, красная машина, красная машина, красная машина.",
        "一辆红色汽车停在白色背景上。" * 5 + " SALE",
    ],
)
def test_loops_are_repetitive(text: str) -> None:
    assert flags(text=text) == ["repetitive"]


@pytest.mark.parametrize("language", PROMPTS)
def test_prose_is_not_repetitive(language: str) -> None:
    assert repeated_share(f"{PROMPTS[language].describe} {PROMPTS[language].structure}") < 0.05
    assert flags(text="A red cup, a blue cup, a green cup and a red plate to the left of a blue plate. SALE") == []


@pytest.mark.parametrize(
    ("image_text", "text"),
    [
        ("sale", TEXT),
        ("“SALE”", TEXT),
        ("SALE\n50% OFF", "A sign. The text reads 'SALE' and below it '50% off'."),
        ("DON'T WALK", "The sign says: Don’t  walk."),
        ("СТОП", "Знак с надписью «Стоп»."),
        ("", TEXT),
        ('"!"', TEXT),
    ],
)
def test_text_on_the_image_may_be_written_otherwise(image_text: str, text: str) -> None:
    assert flags(image_text=image_text, text=text) == []


@pytest.mark.parametrize("image_text", ["SALES", "SAL", "SALE NOW", "OPEN"])
def test_invented_text_is_a_mismatch(image_text: str) -> None:
    assert flags(image_text=image_text) == ["text_mismatch"]


# --- against the text that read_text saw


def seen(*lines: tuple[str, float], scripts: tuple[str, ...] = ("LATIN",)) -> Values:
    """What read_text gives for lines of text and their confidence."""
    boxes = [{"text": text, "confidence": sure, "box": [[0, 0], [9, 0], [9, 5], [0, 5]]} for text, sure in lines]
    return {"ocr_boxes": boxes, "ocr_scripts": list(scripts)}


@pytest.mark.parametrize(
    ("lines", "text", "image_text", "expected"),
    [
        ([("SALE", 0.99)], TEXT, "SALE", []),
        ([("SALF", 0.99)], TEXT, "SALE", ["ocr_missing", "ocr_invented"]),
        ([("SALES", 0.99)], TEXT, "SALE", ["ocr_missing", "ocr_invented"]),
        ([("SALE", 0.99), ("OPEN", 0.99)], TEXT, "SALE", ["ocr_missing"]),
        ([("SALE", 0.99), ("OPEN", 0.89)], TEXT, "SALE", []),  # not clear enough to be missed
        ([("SALE", 0.61)], TEXT, "SALE", []),
        ([], TEXT, "SALE", ["ocr_invented"]),
        ([("C", 0.99)], "A moon. There is no text.", "", []),  # a shape, perhaps
        ([("OPEN", 0.99)], "A moon. There is no text.", "", ["ocr_missing"]),
        ([("ÉL", 0.99)], "A moon. There is no text.", "", ["ocr_missing"]),
        ([], "A moon. There is no text.", "", []),
        ([("Sa1e", 0.99)], TEXT, "SALE", []),
        ([("CAFÉ 0RO", 0.99)], "A sign. The text reads Cafe Oro.", "Cafe Oro", []),
        ([("THEMARKERS", 0.99)], "It says THE MARKERS.", "THE MARKERS", []),  # a space that is not seen
        ([("古古", 0.99)], "A tree. There is no text.", "", []),  # no spaces part its words
        ([("SALA 1ª", 0.99)], "It says SALB 1ª.", "SALB 1ª", ["ocr_missing", "ocr_invented"]),  # ª is Latin
        ([("segmen-", 0.99), ("tation", 0.99)], "It says: segmentation.", "segmentation", []),
    ],
)
def test_text_is_compared_with_what_was_read_on_the_picture(
    lines: list[tuple[str, float]], text: str, image_text: str, expected: list[str]
) -> None:
    assert flags(text=text, image_text=image_text, **seen(*lines)) == expected


def test_without_read_text_nothing_is_missing_or_invented() -> None:
    assert flags(ocr_boxes=None) == []
    assert {"ocr_boxes", "ocr_scripts"} <= {*Flag.optional} & {*ReadText.writes, *ReadText.intermediates}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A sign that says “SALE”, by a car.", []),
        ("A sign that says 'OPEN', by a driver's car.", ["ocr_missing", "ocr_invented"]),
        ("A sign, sale: it's the driver's.", []),
        ('Two signs: "SALE" and «OPEN».', ["ocr_invented"]),
    ],
)
def test_quoted_words_are_claimed_where_no_stage_extracts_them(text: str, expected: list[str]) -> None:
    assert flags(text=text, image_text=None, **seen(("SALE", 0.99))) == expected


def test_letters_that_the_recogniser_lacks_raise_no_flag() -> None:
    """It returns Latin letters that look like Cyrillic ones."""
    russian = {"text": "Знак с надписью «СТОП», машина.", "image_text": "СТОП"}
    assert flags(**russian, **seen(("CTON", 0.95))) == []
    assert flags(**russian, **seen(("CTON", 0.95), scripts=("CYRILLIC", "LATIN"))) == ["ocr_missing", "ocr_invented"]
    assert flags(**russian, **seen(("CTOП", 0.95), scripts=("CYRILLIC", "LATIN"))) == [], "its C is Latin"
    mixed = {"text": "Надпись СТОП OPEN.", "image_text": "СТОП OPEN"}
    assert flags(**mixed, **seen(("SALE", 0.95))) == ["ocr_invented"], "OPEN is in letters that it has"


def test_text_without_spaces_raises_no_flag() -> None:
    parking = {"text": "A sign: 停车场.", "image_text": "停车场"}
    assert flags(**parking, **seen(("停车塲处", 0.99), scripts=("CJK", "LATIN"))) == []


def test_shares_of_words_are_options() -> None:
    page = " ".join(f"word{number}" for number in range(10, 20))
    one_wrong = {"text": page.replace("word19", "else"), "image_text": page.replace("word19", "else")}
    assert flags(**one_wrong, **seen((page, 0.99))) == []
    strict = Flag(ocr_missing=0.05, ocr_invented=0.05)
    assert flags(strict, **one_wrong, **seen((page, 0.99))) == ["ocr_missing", "ocr_invented"]
    assert flags(Flag(clear_text=0.995), text="A car.", image_text="", **seen(("OPEN", 0.99))) == []
    assert flags(Flag(clear_text=0.99), text="A car.", image_text="", **seen(("OPEN", 0.99))) == ["ocr_missing"]


def test_pixels_lowered() -> None:
    assert flags(pixels_lowered=True) == ["pixels_lowered"]


@pytest.mark.parametrize(("value", "flag"), [("is_cut", "truncated_image"), ("has_pages", "pages")])
def test_what_the_models_did_not_see_of_a_file_is_flagged(value: str, flag: str) -> None:
    assert flags(**{value: True}) == [flag]
    assert flags(**{value: False}) == []
    assert {"is_cut", "has_pages"} <= {*Flag.optional} & {*OpenImage.intermediates}


@pytest.mark.parametrize(
    ("name", "low", "enough", "flag"),
    [
        ("edit_difference", 0.049, 0.05, "edit_unchanged"),
        ("pair_difference", 0.049, 0.05, "unchanged"),
        ("pair_similarity", 0.599, 0.6, "not_a_pair"),
    ],
)
def test_a_pair_that_is_none_is_flagged(name: str, low: float, enough: float, flag: str) -> None:
    assert flags(**{name: low}) == [flag]
    assert flags(**{name: enough}) == []
    assert flags(Flag(low_edit_difference=0.9, low_pair_similarity=0.9), **{name: 0.8}) == [flag]
    assert flags(Flag(low_edit_difference=0.0, low_pair_similarity=0.0), **{name: 0.01}) == []


def test_what_flags_read_of_pairs_is_what_compare_pair_writes() -> None:
    assert {"pair_difference", "pair_similarity"} <= {*Flag.optional} & {*ComparePair.writes}
    assert flags() == [], "without a pair there are no such flags"


def test_example_pictures_carry_the_flags_they_deserve(example_rows: pd.DataFrame) -> None:
    for name, row in example_rows.iterrows():
        is_blank = not (row["truth"]["things"] or row["truth"]["word"]) and row["truth"]["background"] != "noise"
        deserved = {"blank_image"} if is_blank else set()
        assert deserved <= set(row["flags"].split()) <= {*deserved, "low_confidence"}, name
    doubted = example_rows[example_rows["flags"].str.contains("low_confidence")]
    assert len(doubted) <= 2, "7 % of the right ones are flagged in docs/trust.md"
    assert example_rows.loc["plain-blue.png", "flags"] == "blank_image"


def test_an_answer_that_the_token_limit_cuts_is_flagged(tmp_path: Path) -> None:
    output = tmp_path / "annotations.csv"
    assert (
        run_worker(EXAMPLES / "red-flower.png", "--output", output, "--set", "describe.max_new_tokens=4").returncode
        == 0
    )
    [row] = load_annotations(output).to_dict("records")
    assert "truncated" in row["flags"].split()
    assert "flower on a green background" not in row["text"]


# --- with a calibration

TERMS = {"text_confidence": Term(4.0, 2.0, -1.5), "clip_score": Term(0.3, 0.05, -1.0), "missing": Term(0.2, 0.4, 0.8)}


def calibration(folder: Path, **changed: Any) -> Path:
    path = folder / "fitted.json"
    fitted: dict[str, Any] = {
        "thresholds": {"low_confidence": 0.99, "ocr_missing": 0.0},
        "intercept": -0.5,
        "terms": TERMS,
        **changed,
    }
    path.write_text(Calibration(**fitted).text())
    return path


def test_thresholds_of_a_calibration_count(tmp_path: Path) -> None:
    stage = Flag(calibration=str(calibration(tmp_path)), low_confidence=0.1, low_clip_score=0.3)
    read = seen(("RED SALE LATE", 0.99))
    good = {"image": picture(), "text": TEXT, "text_confidence": 0.98, "clip_score": 0.29, **read}
    [found] = stage.run(None, [good], 1)
    assert found["flags"] == "low_confidence low_clip_score ocr_missing", "options that it lacks stay as they are"
    assert (stage.low_confidence, stage.low_clip_score, stage.ocr_missing) == (0.99, 0.3, 0.0)
    assert Flag(low_confidence=0.1).low_confidence == 0.1
    assert Flag(calibration=str(calibration(tmp_path, thresholds={"batch_size": 1.0}))).batch_size == 64


def test_signals_are_the_numbers_that_flags_are_raised_by() -> None:
    row = {"text": TEXT, "image_text": "SALE NOW", "clip_score": 0.3, **seen(("SALE", 0.99), ("OPEN", 0.99))}
    found = Flag().signals(row)
    there = {name: value for name, value in found.items() if not math.isnan(value)}
    assert there == {"clip_score": 0.3, "repeated": 0.0, "mismatched": 0.5, "missing": 0.5, "invented": 0.5}
    assert all(map(math.isnan, Flag().signals({}).values()))


@pytest.mark.parametrize("option", THRESHOLDS)
def test_thresholds_that_are_fitted_are_those_of_their_signals(option: str) -> None:
    signal, is_above = THRESHOLDS[option]
    stage = Flag(**{option: 0.5})  # type: ignore[arg-type]
    missing = dict.fromkeys(stage.signals({}), math.nan)
    for value, is_raised in ((0.5, False), (0.51, is_above), (0.49, not is_above)):
        raised = [name for name, on in stage.flags({"image": picture()}, {**missing, signal: value}).items() if on]
        assert len(raised) == is_raised, value


def test_p_wrong_is_the_logistic_model_of_the_signals(tmp_path: Path) -> None:
    stage = Flag(calibration=str(calibration(tmp_path)))
    row = {"image": picture(), "text": TEXT, "text_confidence": 0.98, "clip_score": 0.26}
    read = {**row, **seen(("SALE", 0.99), ("OPEN", 0.99))}
    results = stage.run(None, [row, read, {"image": picture()}, {**row, "text_confidence": 1.0}], 4)
    logit = -0.5 - 1.5 * (math.log(0.98 / 0.02) - 4) / 2 - (0.26 - 0.3) / 0.05
    assert results[0]["p_wrong"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-4)
    with_words = logit + 0.8 * (0.5 - 0.2) / 0.4
    assert results[1]["p_wrong"] == pytest.approx(1 / (1 + math.exp(-with_words)), abs=1e-4)
    assert results[2]["p_wrong"] is None, "none of the signals is there"
    assert 0 < results[3]["p_wrong"] < results[0]["p_wrong"], "a confidence of 1 is one that was rounded"


def test_the_column_is_there_with_a_calibration_alone(tmp_path: Path) -> None:
    assert Flag(calibration=str(calibration(tmp_path))).columns == {"flags": "text", "p_wrong": "number"}
    assert Flag().columns == {"flags": "text"}


def test_results_depend_on_what_the_file_holds(tmp_path: Path) -> None:
    def made(**changed: Any) -> Flag:
        return Flag(calibration=str(calibration(tmp_path, **changed)))

    first = made()
    assert fingerprint(made(made="2026-11-26", labels={"right": 7})) == fingerprint(first)
    for changed in ({"intercept": 0.0}, {"terms": {}}, {"thresholds": {"low_confidence": 0.98}}):
        assert fingerprint(made(**changed)) != fingerprint(first)
    assert fingerprint(Flag(calibration="")) == fingerprint(Flag())
    assert "calibration" not in fingerprint(Flag()), "results of before the option was there stay"
    assert "identity" not in stage_settings(Flag())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist: make it with `vec-pipeline calibrate`"),
        ("", "is damaged, or not made by calibrate"),
        ("[]", "is damaged, or not made by calibrate"),
        ('{"version": 2}', "is damaged, or not made by calibrate"),
        ('{"version": 1, "thresholds": {}, "intercept": 0}', "is damaged, or not made by calibrate"),
        ('{"version": 1, "thresholds": {}, "intercept": NaN, "terms": {}}', "is damaged, or not made by calibrate"),
        ('{"version": 1, "thresholds": {"x": "y"}, "intercept": 0, "terms": {}}', "is damaged, or not made by"),
        (
            '{"version": 1, "thresholds": {}, "intercept": 0, "terms": {"x": {"mean": 0, "scale": 0, "weight": 1}}}',
            "is damaged, or not made by calibrate",
        ),
    ],
)
def test_a_calibration_that_cannot_be_used(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "fitted.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"^flag: calibration: {path} {reason}"):
        build_stage(Flag, {"use": "flag", "calibration": str(path)}, {})


def test_a_calibration_that_is_a_folder_or_of_nobody(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"flag: calibration: .* cannot be read"):
        build_stage(Flag, {"use": "flag", "calibration": str(tmp_path)}, {})
    with pytest.raises(ConfigError, match=r"flag: calibration: .*home"):
        build_stage(Flag, {"use": "flag", "calibration": "~no_such_user/fitted.json"}, {})


def test_a_calibration_is_found_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(calibration(tmp_path).parent))
    assert Flag(calibration="~/fitted.json").low_confidence == 0.99


def test_refresh_adds_p_wrong_and_loads_no_model(example_run: tuple[Run, Path], tmp_path: Path) -> None:
    output = copied(example_run[1], tmp_path, results=True)
    options = ("--output", output, "--set", f"flag.calibration={calibration(tmp_path)}")
    assert run_worker(EXAMPLES, *options).returncode == 2, (
        "without --refresh, rows of two settings would be in one file"
    )
    run = run_worker(EXAMPLES, *options, "--refresh")
    assert run.returncode == 0, run.stderr
    table = load_annotations(output)
    logit = np.log(table["text_confidence"] / (1 - table["text_confidence"]).clip(lower=1e-4)).clip(upper=9.2103)
    expected = -0.5 - 1.5 * (logit - 4) / 2 - (table["clip_score"] - 0.3) / 0.05
    assert np.allclose(table["p_wrong"], 1 / (1 + np.exp(-expected)), atol=1e-3)
    assert "loaded" not in (tmp_path / "annotations.log").read_text()
    calibration(tmp_path, intercept=2.0)
    assert "flag.identity" in run_worker(EXAMPLES, *options).stderr
    stage = load_config(Path("configs/demo.yaml"), [options[-1]]).stages[-1]
    assert changed_settings(recorded_settings(output), [stage], ["flags"])[0] == "flag.identity"
    assert json.loads((tmp_path / "fitted.json").read_text())["intercept"] == 2.0
