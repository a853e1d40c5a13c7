"""calibrate: which rows count as right and wrong, what is fitted to them, and what it says where they tell nothing."""

import csv
import json
import math
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import EXAMPLES, run_worker
from tests.rows import finished, write, write_declared
from vec_pipeline.__main__ import main
from vec_pipeline.annotations import load_annotations
from vec_pipeline.calibration import DOUBT_COLUMNS, Calibration, Term, doubt, notes
from vec_pipeline.commands.calibrate import fitting
from vec_pipeline.commands.calibrate.labels import Marked, marked_rows
from vec_pipeline.corrections import EDIT, VERIFIED, Change, Corrections
from vec_pipeline.record import Record
from vec_pipeline.stages.flag import Flag

SCENES = Path(__file__).parent / "scene_signals.csv"
MARKED, ROWS = 100, 900
RIGHT, WRONG = 58, 42  # of these, by `truth`

NONE = np.zeros(0)

Array = np.ndarray[Any, Any]


def key(number: int) -> str:
    return f"/photos/{number:06}.jpg"


def row(number: int, **values: Any) -> Record:
    """A finished row; None leaves a value out."""
    record = finished(number, **values)
    record.values = {name: value for name, value in record.values.items() if value is not None}
    return record


def mark(path: Path, marks: dict[int, str]) -> None:
    correct(path, [Change(key(number), VERIFIED, mark) for number, mark in marks.items()])


def correct(path: Path, changes: Sequence[Change], what: str = EDIT) -> int:
    layer = Corrections(path)
    act = layer.correct(changes, what, "me")
    layer.close()
    return act


def truth(rows: int, seed: int = 1) -> tuple[Array, Array, Array, Array]:
    """Confidences, scores, the probability that a row of these is wrong, and whether it is."""
    generator = np.random.default_rng(seed)
    confidence = (1 - 10 ** generator.uniform(-3.5, -1, rows)).round(4)
    score = generator.normal(0.3, 0.05, rows).round(4)
    logit = -1.2 + 1.2 * np.log((1 - confidence) / confidence) + 6.2 - 25 * (score - 0.3)
    p_wrong = 1 / (1 + np.exp(-logit))
    return confidence, score, p_wrong, generator.random(rows) < p_wrong


def made(folder: Path, is_wrong: Sequence[bool] | Array, rows: int = MARKED, **values: Any) -> Path:
    """A CSV of which the first rows are marked."""
    confidence, score, *_ = truth(rows)
    records = [
        row(number, **{"text_confidence": confidence[number], "clip_score": score[number], **values})
        for number in range(rows)
    ]
    path = folder / "annotations.csv"
    path.with_name("annotations.settings.yaml").write_text('{"stages": {"describe": {"use": "describe"}}}')
    write(path, records)
    mark(path, {number: "rejected" if wrong else "accepted" for number, wrong in enumerate(is_wrong)})
    return path


def calibrate(path: Path, *arguments: object) -> int:
    return main(["--csv", str(path), *map(str, arguments)], command="calibrate")


Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV with 100 marks, and beside it what was fitted to them."""
    path = made(tmp_path_factory.mktemp("calibrated"), truth(MARKED)[3])
    assert calibrate(path, "--out", path.parent / "drawn") == 0
    return path


def fitted(path: Path) -> Calibration:
    return Calibration.load(path.with_name("annotations.calibration.json"))


# --- what is fitted


def test_p_wrong_is_about_what_it_should_be(calibrated: Path) -> None:
    confidence, score, p_wrong, is_wrong = truth(ROWS, seed=2)
    model = fitted(calibrated)
    found = np.array(
        [model.p_wrong({"text_confidence": a, "clip_score": b}) for a, b in zip(confidence, score, strict=True)]
    )
    assert abs(found - p_wrong).mean() < 0.09
    assert fitting.calibration_error(found, is_wrong) < 0.08
    assert fitting.roc_auc(found, is_wrong) > fitting.roc_auc(p_wrong, is_wrong) - 0.02
    assert set(model.terms) == {"text_confidence", "clip_score"}, "what is the same in every row tells nothing"
    assert model.labels == {"right": RIGHT, "wrong": WRONG}


def test_the_scenes_of_the_benchmark_are_calibrated_by_100_marks() -> None:
    """Their signals are those of the bundled models: benchmarks/trust.py --signals."""
    with SCENES.open(newline="") as file:
        rows = [{name: float(cell or "nan") for name, cell in row.items()} for row in csv.DictReader(file)]
    is_wrong = np.array([row.pop("is_wrong") for row in rows], bool)
    signals = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    features = Marked(signals, is_wrong, Flag(), {}, 0, 0, 0, 0, NONE).features()
    errors, ranks = [], []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(rows))
        chosen, others = order[:MARKED], order[MARKED:]
        intercept, terms = fitting.fit({name: values[chosen] for name, values in features.items()}, is_wrong[chosen])
        model = Calibration(thresholds={}, intercept=intercept, terms=terms)
        p_wrong = np.array([model.p_wrong(rows[each]) for each in others])
        errors.append(fitting.calibration_error(p_wrong, is_wrong[others]))
        ranks.append(fitting.roc_auc(p_wrong, is_wrong[others]))
    assert np.mean(errors) <= 0.05
    assert np.mean(ranks) > 0.9


@pytest.mark.parametrize(("share", "flagged"), [(0.0, 0), (0.05, 2), (0.2, 11)])
def test_a_threshold_flags_so_many_of_the_right_rows(calibrated: Path, share: float, flagged: int) -> None:
    rows = marked_rows(calibrated)
    for each in fitting.fitted_thresholds(rows, share)[:2]:
        name = {"low_confidence": "text_confidence", "low_clip_score": "clip_score"}[each.option]
        below = rows.signals[name] < each.value
        assert (below & ~rows.is_wrong).sum() == flagged
        assert each.alarms == flagged / RIGHT
        assert each.caught == (below & rows.is_wrong).sum() / WRONG
        assert each.tells


def test_a_threshold_from_above(calibrated: Path) -> None:
    rows = marked_rows(calibrated)
    missing = np.where(rows.is_wrong, 0.8, 0.0)
    missing[np.flatnonzero(~rows.is_wrong)[:2]] = 0.5
    more = Marked({**rows.signals, "missing": missing}, rows.is_wrong, rows.flag, {}, 0, 0, 0, 0, NONE)
    (found,) = [each for each in fitting.fitted_thresholds(more, 0.05) if each.option == "ocr_missing"]
    assert found == ("ocr_missing", 0.0, 1.0, 2 / RIGHT, True)
    assert str(found.value) == "0.0", "not -0.0"


def test_a_signal_that_tells_nothing_leaves_its_threshold(calibrated: Path) -> None:
    generator = np.random.default_rng(3)
    rows = marked_rows(calibrated)
    noise = Marked(
        {**rows.signals, "clip_score": generator.random(MARKED)}, rows.is_wrong, rows.flag, {}, 0, 0, 0, 0, NONE
    )
    tells = {each.option: each.tells for each in fitting.fitted_thresholds(noise, 0.05)}
    assert tells == {"low_confidence": True, "low_clip_score": False, "repetitive": False}
    assert set(fitted(calibrated).thresholds) == {"low_confidence", "low_clip_score"}


def test_figures_are_of_rows_that_the_model_was_not_fitted_to() -> None:
    """A model of one signal per row would know each by heart."""
    generator = np.random.default_rng(0)
    is_wrong = np.arange(60) % 2 == 0
    names = {f"signal {number}": generator.random(60) for number in range(60)}
    assert fitting.fitted_model(names, is_wrong).figures["roc_auc"].value < 0.7


def test_calibration_error() -> None:
    p_wrong = np.repeat([0.1, 0.6], 50)
    assert fitting.calibration_error(p_wrong, np.arange(100) % 10 == 0) == pytest.approx(0.25)
    is_wrong = np.concatenate([np.arange(50) % 10 == 0, np.arange(50) % 10 < 6])
    assert fitting.calibration_error(p_wrong, is_wrong) == pytest.approx(0)
    assert fitting.calibration_error(p_wrong[:1], is_wrong[:1]) == pytest.approx(0.9)
    assert 0.02 < fitting.least_calibration_error(np.full(600, 0.5)) < 0.06
    assert 0.01 < fitting.least_calibration_error(np.full(600, 0.1)) < 0.04


def test_intervals_are_those_of_other_rows() -> None:
    half = np.arange(100) % 2 == 0
    value, low, high = fitting.bootstrapped(lambda p_wrong, is_wrong: float(is_wrong.mean()), half, half)
    assert (value, low, high) == (0.5, pytest.approx(0.402, abs=0.015), pytest.approx(0.598, abs=0.015))
    one = np.arange(12) == 0
    assert all(map(math.isfinite, fitting.bootstrapped(fitting.roc_auc, np.arange(12.0), one)))


def test_that_a_value_is_missing_tells_nothing() -> None:
    is_wrong = truth(MARKED)[3]
    signal = np.where(is_wrong, math.nan, truth(MARKED)[1])
    assert abs(fitting.fit({"clip_score": signal}, is_wrong)[1]["clip_score"].weight) < 0.5


def test_a_missing_value_counts_as_the_mean() -> None:
    score, is_wrong = truth(MARKED)[1], truth(MARKED)[3]
    difference = np.where(np.arange(MARKED) % 3, score + 0.1, math.nan)
    rare = np.where(np.arange(MARKED) < 49, score, math.nan)
    signals = {"clip_score": score, "pair_difference": difference, "pair_similarity": rare}
    intercept, terms = fitting.fit(signals, is_wrong)
    assert set(terms) == {"clip_score", "pair_difference"}, "most rows lack the other"
    assert terms["pair_difference"].mean == pytest.approx(np.nanmean(difference), rel=1e-4)
    model = Calibration(thresholds={}, intercept=intercept, terms=terms)
    mean = model.p_wrong({"clip_score": 0.3, "pair_difference": terms["pair_difference"].mean})
    assert model.p_wrong({"clip_score": 0.3, "pair_difference": math.nan}) == mean
    assert model.p_wrong({"clip_score": 0.3, "pair_difference": 0.0}) != mean
    assert model.p_wrong({"clip_score": math.nan, "pair_similarity": 0.5}) is None
    assert (model.p_wrong({"clip_score": 1e6}), model.p_wrong({"clip_score": -1e6})) == (0, 1)


# --- which rows count as right and wrong


@pytest.mark.parametrize(
    ("given", "what", "expected"),
    [
        ({VERIFIED: "accepted"}, EDIT, False),
        ({VERIFIED: "rejected"}, EDIT, True),
        ({VERIFIED: "accepted", "description": "A blue car."}, EDIT, True),
        ({VERIFIED: "accepted", "keywords": "car"}, EDIT, True),
        ({VERIFIED: "accepted", "description": "A red car, number 0."}, EDIT, False),  # as the machine has it
        ({VERIFIED: "accepted", "description": None}, EDIT, False),  # given back to the machine
        ({VERIFIED: "accepted", "description": "A blue car."}, "replace red by blue", False),
        ({VERIFIED: "accepted", "clip_score": "0.9"}, EDIT, False),  # people do not judge it
        ({"description": "A blue car."}, EDIT, None),  # not looked at as a whole
        ({VERIFIED: ""}, EDIT, None),
    ],
)
def test_a_row_is_wrong_where_people_rejected_or_edited_it(
    tmp_path: Path, given: dict[str, str | None], what: str, expected: bool | None
) -> None:
    path = write(tmp_path / "annotations.csv", [row(0)])
    correct(path, [Change(key(0), name, value) for name, value in given.items()], what)
    assert marked_rows(path).is_wrong.tolist() == ([] if expected is None else [expected])


def test_the_last_mark_of_a_row_counts_once(tmp_path: Path) -> None:
    path = write(tmp_path / "annotations.csv", [row(0)])
    mark(path, {0: "rejected"})
    mark(path, {0: "accepted"})
    assert marked_rows(path).is_wrong.tolist() == [False]
    layer = Corrections(path)
    layer.undo(2)
    assert marked_rows(path).is_wrong.tolist() == [True]
    layer.undo(1)
    layer.close()
    assert marked_rows(path).is_wrong.tolist() == []


def test_signals_are_the_machines(tmp_path: Path) -> None:
    path = write(tmp_path / "annotations.csv", [row(0)])
    correct(
        path,
        [
            Change(key(0), "clip_score", "0.9"),
            Change(key(0), "text", "on and on " * 9),
            Change(key(0), VERIFIED, "rejected"),
        ],
    )
    signals = marked_rows(path).signals
    assert signals["clip_score"].tolist() == [0.25]
    assert signals["repeated"].tolist() == [0.0]


def test_signals_are_what_the_flag_of_the_run_read(tmp_path: Path) -> None:
    boxes = [{"text": "SALF", "confidence": 0.95, "box": []}, {"text": "OPEN", "confidence": 0.92, "box": []}]
    types = {"text_confidence": "number", "clip_score": "number", "ocr_boxes": "json", "title": "text"}
    values = {"text_confidence": 0.5, "clip_score": None, "ocr_boxes": boxes, "title": "It says SALE, OPEN."}
    path = write_declared(tmp_path / "annotations.csv", types, [row(0, **values)])
    mark(path, {0: "accepted"})
    rows = marked_rows(path)
    assert rows.signals["missing"].tolist() == [1.0]
    assert rows.signals["invented"].tolist() == [1.0]
    assert np.isnan(rows.signals["clip_score"]).all()
    settings = path.with_name("annotations.settings.yaml")
    declared = json.loads(json.dumps({"columns": types, "sources": [], "stages": {
        "vlm": {"use": "describe", "version": 1, "write": {"text": "title"}, "model": "one"},
        "second": {"use": "describe", "version": 1, "write": {"text": "other", "text_confidence": "sure"}},
        "speak": {"use": "speak", "version": 1},
        "gone": {"use": "no_such_stage"},
        "flag": {"use": "flag", "version": 1, "read": {"text": "title"}, "write": {}, "clear_text": 0.94,
                 "low_confidence": 0.3, "calibration": "gone.json"},
    }}))  # fmt: skip
    settings.write_text(json.dumps(declared))
    rows = marked_rows(path)
    assert rows.signals["missing"].tolist() == [1.0], "OPEN is not clear"
    assert rows.flag.low_confidence == 0.3
    assert set(rows.stages) == {"vlm"}, "what the signals come from"
    model = Calibration(thresholds={}, intercept=0, terms={}, stages=rows.stages)
    (tmp_path / "fitted.json").write_text(model.text())
    stages = [Flag(), Flag(name="doubts", calibration=str(tmp_path / "fitted.json"))]
    assert notes(stages, declared["stages"]) == []
    declared["stages"]["vlm"]["model"] = "another"
    (note,) = notes(stages, declared["stages"])
    assert note.startswith("doubts.calibration was fitted to rows of other settings of vlm: mark rows of this CSV")


def test_words_in_letters_that_read_text_never_returned_do_not_count(tmp_path: Path) -> None:
    boxes = [{"text": "CTON", "confidence": 0.95, "box": []}]
    values = {"ocr_boxes": boxes, "text": "Знак «СТОП».", "image_text": "СТОП"}
    path = write_declared(tmp_path / "annotations.csv", {"ocr_boxes": "json"}, [row(0, **values)])
    mark(path, {0: "accepted"})
    signals = marked_rows(path).signals
    assert (signals["missing"].tolist(), signals["invented"].tolist()) == ([0.0], [0.0])


def test_marks_that_do_not_count_are_counted(tmp_path: Path, capsys: Printed) -> None:
    same = row(0).values["text"]
    records = [row(0), row(1, text=same), row(2), row(3, text=same, text_confidence=0.5)]
    records += [row(4, text=None, text_confidence=None, clip_score=None, image_text=None)]
    records += [row(5)]
    path = write(tmp_path / "annotations.csv", records)
    mark(path, dict.fromkeys((0, 1, 2, 3, 4, 5, 7, 8), "accepted"))
    corrections = Corrections(path)
    corrections.confirm({records[5].key: {"text": "corrected"}})
    corrections.close()
    assert calibrate(path) == 2
    assert capsys.readouterr().out.splitlines() == [
        "3 marked rows: 3 right, 0 wrong",
        "2 marks of pictures that have no row any more",
        "1 row with the same values as another one: counted once",
        "1 marked row without any signal: not used",
        "1 marked row refreshed after a correction: not used",
    ]


# --- what it says


def test_what_is_printed_and_written(calibrated: Path, capsys: Printed) -> None:
    assert calibrate(calibrated, "--false-alarms", 0.2) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("100 marked rows: 58 right, 42 wrong\n")
    content = json.loads(calibrated.with_name("annotations.calibration.json").read_text())
    assert f"low_confidence            0.64{content['thresholds']['low_confidence']:>9.4g}" in printed
    assert "repetitive                 0.3        -   it does not tell right from wrong" in printed
    for name, figure in {
        "ROC AUC": "roc_auc",
        "Brier score": "brier",
        "expected calibration error": "calibration_error",
    }.items():
        value, low, high = content["figures"][figure]
        assert f"{name:<40}{value:>8.3f}   {low:.3f} to {high:.3f}" in printed
        assert low <= value
        assert high > low
    assert 0.8 < content["figures"]["roc_auc"][0] < 0.95
    expected = fitting.fitted_thresholds(marked_rows(calibrated), 0.2)
    assert content["thresholds"] == {each.option: each.value for each in expected if each.tells}
    assert set(content["stages"]) == {"describe"}
    assert set(content["terms"]) == {"text_confidence", "clip_score"}


def test_pictures_show_what_was_found(calibrated: Path) -> None:
    texts = {}
    for name in ("reliability", "roc"):
        svg = calibrated.parent / "drawn" / f"{name}.svg"
        texts[name] = [each.text for each in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert "p_wrong, mean of about 10 rows" in texts["reliability"]
    assert "wrong rows caught" in texts["roc"]
    assert any("area under the curve 0.8" in str(each) for each in texts["roc"])


@pytest.mark.parametrize("is_chosen", [True, False])
def test_marks_of_doubtful_rows_alone_are_noticed(tmp_path: Path, capsys: Printed, is_chosen: bool) -> None:
    confidence, *_, is_wrong = truth(200)
    path = made(tmp_path, [], rows=200)
    order = np.argsort(confidence) if is_chosen else np.arange(200)
    mark(path, {int(each): "rejected" if is_wrong[each] else "accepted" for each in order[:60]})
    assert calibrate(path) in (0, 2)
    printed = capsys.readouterr().out
    assert ("\nThe marked rows have a lower text_confidence than the others (medians 0.9" in printed) == is_chosen


@pytest.mark.parametrize(
    ("is_wrong", "missing"),
    [
        ([True] * 10 + [False] * 20, "mark 20 more, on /review"),
        ([False] * 60, "mark 10 more, at least 10 of them wrong, on"),
        ([True] * 60, "mark 10 more, at least 10 of them right, on"),
        ([True] * 2 + [False] * 43, "mark 8 more, at least 8 of them wrong, on"),
        ([], "mark 50 more, at least 10 of them right, at least 10 of them wrong, on"),
    ],
)
def test_too_few_marks(tmp_path: Path, capsys: Printed, is_wrong: list[bool], missing: str) -> None:
    path = made(tmp_path, is_wrong)
    assert calibrate(path) == 2
    said = capsys.readouterr()
    assert f"{sum(is_wrong)} wrong" in said.out
    assert missing in said.err
    assert not path.with_name("annotations.calibration.json").exists()


def test_marks_that_have_nothing_to_do_with_the_signals(tmp_path: Path, capsys: Printed) -> None:
    path = made(tmp_path, np.random.default_rng(5).permutation(truth(MARKED)[3]))
    before = path.with_name("annotations.calibration.json")
    before.write_text("of before")
    assert calibrate(path) == 2
    said = capsys.readouterr()
    assert "the signals do not tell right from wrong (ROC AUC 0." in said.err
    assert before.read_text() == "of before"


def test_marks_of_rows_without_numbers(tmp_path: Path, capsys: Printed) -> None:
    path = made(tmp_path, truth(MARKED)[3], text_confidence=None, clip_score=None)
    assert calibrate(path) == 2
    assert "have no number that could tell right from wrong" in capsys.readouterr().err


def test_pictures_that_cannot_be_drawn_are_named_first(
    calibrated: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calibrate(calibrated, "--out", calibrated) == 2
    said = capsys.readouterr()
    assert "is a file: name a folder with --out" in said.err
    assert not said.out
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert calibrate(calibrated, "--out", calibrated.parent / "new") == 2
    assert "calibrate --out needs matplotlib: pip install 'vec-pipeline[figures]'" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["1", "-0.1", "nan", "five"])
def test_a_share_that_is_none(calibrated: Path, capsys: Printed, share: str) -> None:
    with pytest.raises(SystemExit):
        calibrate(calibrated, f"--false-alarms={share}")
    assert f"{share!r} is not a share, from 0 to below 1" in capsys.readouterr().err


# --- which rows to look at first


def test_doubt_ranks_rows() -> None:
    rows: list[dict[str, Any]] = [
        {"error": "describe: OSError: x", "text_confidence": 0.99},
        {"flags": "low_confidence truncated", "text_confidence": 0.9},
        {"flags": "low_confidence", "text_confidence": 0.5},
        {"flags": "truncated", "text_confidence": 0.9},
        {"flags": "", "clip_score": -0.6},
        {"flags": "", "clip_score": -0.2},
        {"flags": "", "text_confidence": 0.5, "clip_score": 0.9},
        {"flags": "blank_image pages", "text_confidence": 0.6, "error": ""},
        {"flags": None, "text_confidence": 0.99, "clip_score": math.nan},
    ]
    doubts = [doubt(row) for row in rows]
    assert doubts == sorted(doubts, reverse=True)
    assert len(set(doubts)) == len(doubts)
    assert all(0 <= each <= 1 for each in [*doubts, doubt({}), doubt({"text_confidence": 7, "clip_score": None})])
    assert doubt({"p_wrong": 0.3, "flags": "truncated", "error": "x"}) == 0.3
    assert doubt({"p_wrong": math.nan, "error": "x"}) == 1
    assert {name for row in rows for name in row} | {"p_wrong"} == set(DOUBT_COLUMNS)


def test_a_run_says_that_its_calibration_is_of_other_models(tmp_path: Path) -> None:
    file, output = tmp_path / "of.calibration.json", tmp_path / "annotations.csv"
    file.write_text(
        Calibration(
            thresholds={}, intercept=-1.0, terms={"clip_score": Term(0.3, 0.1, -1.0)}, stages={"describe": "0"}
        ).text()
    )
    run = run_worker(EXAMPLES, "--limit", 1, "--output", output, "--set", f"flag.calibration={file}")
    assert run.returncode == 0
    assert "flag.calibration was fitted to rows of other settings of describe: mark rows of this CSV" in run.stdout
    assert 0 < load_annotations(output)["p_wrong"][0] < 1
