"""Texts in another language: what is asked of each engine, what becomes of its answer, and the bundled translator."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, BertConfig, M2M100Config, M2M100Tokenizer
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

from models.demo import train_translation
from models.demo.scenes import Scene, Thing
from tests.conftest import EXAMPLES, PROJECT
from tests.endpoint_server import MODEL, EndpointServer, Reply, Request, completion
from tests.tiny_gguf import TRAINED_CONTEXT_TOKENS, write_tiny_gguf
from tests.tiny_translators import write_marian, write_nllb, write_t5
from vec_pipeline import load_annotations
from vec_pipeline.config import ConfigError, check_wiring, load_config
from vec_pipeline.engines import Answer, Message, translation
from vec_pipeline.engines.translation import Seq2Seq, has_words, request_of, sentences
from vec_pipeline.memory import ModelCache
from vec_pipeline.record import Interrupted, UserError, Values
from vec_pipeline.stages.structure import Structure
from vec_pipeline.stages.translate import Translate, is_other_language, lost_parts

DEMO = PROJECT / "models/demo/translation"
has_demo = pytest.mark.skipif(not DEMO.is_dir(), reason="models/demo/translation is not trained")
has_sentencepiece = pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is None, reason="Marian's tokenizer needs sentencepiece"
)


class Scripted:
    """Answers each text as a function says, and remembers what it was asked."""

    def __init__(self, answer: Callable[[str], str | Answer]) -> None:
        self.answer = answer
        self.asked: list[list[str]] = []
        self.conversations: list[Sequence[Message]] = []
        self.options: list[tuple[Any, ...]] = []

    def translate(self, texts: Sequence[str], at_once: int) -> list[Answer]:
        self.asked.append(list(texts))
        found = [self.answer(text) for text in texts]
        return [each if isinstance(each, Answer) else Answer(each, True, 9) for each in found]

    def generate(self, conversations: Sequence[Sequence[Message]], *options: Any) -> list[Answer]:
        """As LlamaProcess."""
        self.conversations += conversations
        self.options.append(options)
        return self.translate([each[-1]["content"] for each in conversations], options[-1])


def translated(
    answer: Callable[[str], str | Answer] | str, *texts: str, to: str = "ru", **options: Any
) -> list[Values]:
    """The rows that a stage makes of texts, with one answer to everything or a function of the text."""
    model = Scripted(answer if callable(answer) else lambda _: answer)
    stage = Translate(model="m", to=to, **options)
    return stage.run(model, [dict.fromkeys(stage.texts, text) for text in texts], 4)


def error_of(answer: str, text: str, to: str = "ru", **options: Any) -> str:
    [row] = translated(answer, text, to=to, **options)
    assert ("error" in row) != (f"description_{to}" in row)
    return str(row.get("error", ""))


# --- What a stage reads and writes


def test_each_column_is_translated_to_one_of_its_name_and_the_language() -> None:
    stage = Translate(model="m", to="ru", texts=("description", "keywords"))
    model = Scripted({"A red car.": "Красная машина.", "car, red": "машина, красный"}.__getitem__)
    rows = stage.run(model, [{"description": "A red car.", "keywords": "car, red"}], 4)
    assert rows == [{"description_ru": "Красная машина.", "keywords_ru": "машина, красный"}]
    assert stage.columns == {"description_ru": "text", "keywords_ru": "text"}


@pytest.mark.parametrize("text", ["", " \n", "42", '"SALE"', "…"])
def test_a_text_without_words_stays_as_it_is_and_is_not_asked_about(text: str) -> None:
    model = Scripted(lambda text: "Машина.")
    stage = Translate(model="m", to="ru")
    assert stage.run(model, [{"description": text}], 1) == [{"description_ru": text}]
    assert not any(model.asked)


def test_a_text_that_several_pictures_have_is_asked_about_once() -> None:
    model = Scripted(lambda text: "Машина.")
    rows = Translate(model="m", to="ru").run(model, [{"description": "A car."}] * 3, 4)
    assert rows == [{"description_ru": "Машина."}] * 3
    assert model.asked == [["A car."]]


def test_a_value_that_is_no_text_ends_the_run_with_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^translate: objects holds no text: take it out of translate.texts$"):
        Translate(model="m", to="ru", texts=("objects",)).run(Scripted(str), [{"objects": []}], 1)


STAGE = "stages: [{use: open_image}, {use: describe, model: m}, {use: translate, model: m, texts: [text], %s}]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("to: ru", ""),
        ("to: ru, write: {text_ru: russian}", ""),
        ("to: russian", "translate: to: 'russian' is not one of ar, be, bg, "),
        ("language: xx", "translate: language: 'xx' is not one of "),
        ("to: ru, language: ru", "translate: to: ru is the language of the texts already: set `to:` or `language:`"),
        ("to: ru, texts: []", "translate: texts: give the names of columns, each once, such as [description]"),
        ("to: ru, texts: [text, text]", "translate: texts: give the names of columns, each once"),
        ("to: ru, texts: [txt]", "stages: translate reads txt, which no earlier stage writes"),
        ("to: ru, engine: endpoint", "translate: engine: endpoint needs the address of a server"),
        (
            "to: ru, file: a.gguf, engine: endpoint, endpoint: 'http://127.0.0.1/v1'",
            "translate: file: is for a model on",
        ),
        (
            "to: ru, file: a.gguf, batch_size: 300",
            "translate: batch_size is 300, and llama.cpp decodes at most 255 at once",
        ),
    ],
)
def test_a_mistake_in_the_options_is_named(tmp_path: Path, options: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(STAGE.replace("texts: [text], ", "" if "texts:" in options else "texts: [text], ") % options)
    if message:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
            check_wiring(load_config(file).stages, {})
    else:
        check_wiring(load_config(file).stages, {})


def test_the_language_of_the_configuration_is_that_of_the_texts(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("language: ru\n" + STAGE % "to: en")
    assert load_config(file).stages[-1].language == "ru"  # type: ignore[attr-defined]


def test_stages_that_translate_other_columns_share_one_model() -> None:
    one = Translate(model="m", texts=("description",))
    assert Translate(model="m", texts=("text", "keywords")).loaded_as == one.loaded_as
    assert Translate(model="m", to="de").loaded_as != one.loaded_as


def test_engines_that_ask_others_run_beside_those_that_compute_here() -> None:
    here = Translate(model="m", to="ru")
    llama = Translate(model="m.gguf", to="ru")
    server = Translate(model="m", to="ru", engine="endpoint", endpoint="http://127.0.0.1/v1")
    assert [(stage.worker, stage.refills) for stage in (here, llama, server)] == [
        ("local", False),
        ("child", True),
        ("child", True),
    ]


# --- What becomes of an answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A red car.", "Красная машина."),
        ("3 cars cost 1,000.50 dollars in 2024.", "3 машины стоят 1 000,50 доллара в 2024 году."),
        ('A sign reads "SALE 50".', "Вывеска гласит «SALE 50»."),
        ("A photo of Anna Smith in Paris", "Фотография: Anna Smith, Paris"),
        ("The text reads SALE.", "Надпись: SALE."),
        ("ADIDAS ORIGINALS shoes", "Обувь ADIDAS ORIGINALS"),
        ("SALE", "SALE"),
        ("It says 'don't'.", "Написано: 'don't'."),
        ("A price of 1000", "Цена 1 000"),
        ("A price of 1,000", "Цена 1000"),
        ("2 100-gram bars", "2 плитки по 100 грамм"),
        ("A 3D model of the 1960s", "Трёхмерная модель шестидесятых"),
        ('A board 5" long and 6" wide.', "Доска 5 дюймов длиной и 6 шириной."),
    ],
)
def test_a_translation_that_keeps_what_must_stay_is_taken(text: str, answer: str) -> None:
    assert error_of(answer, text) == ""


@pytest.mark.parametrize(
    ("text", "answer", "lost"),
    [
        ('A sign reads "SALE".', "Вывеска гласит «ПРОДАЖА».", "'SALE'"),
        ('A sign reads "SALE".', "Вывеска гласит «Sale».", "'SALE'"),
        ("A sign reads «SALE» and “OPEN”.", "Вывеска: SALE.", "'OPEN'"),
        ("The sign says 'open now'.", "На вывеске написано «open».", "'open now'"),
        ("3 red cars", "Красные машины", "'3'"),
        ("2 cars, 2 cats", "2 машины и кошки", "'2'"),
        ("A price of 1,000", "Цена 1,00", "'000'"),
        ("3.5 red cars", "35 красных машин", "'3', '5'"),
        ('5 signs read "5".', "Вывески гласят «5».", "'5'"),
    ],
)
def test_a_translation_that_lacks_a_number_or_a_quoted_text_is_an_error(text: str, answer: str, lost: str) -> None:
    assert error_of(answer, text) == f"LostText: description_ru: the translation lacks {lost}: {answer!r}"


@pytest.mark.parametrize(
    ("text", "answer", "lost"),
    [
        ("There are 15 dogs", "هناك ١٥ كلبا", []),
        ("There are 15 dogs", "هناك ١٤ كلبا", ["15"]),
        ("هناك ١٥ كلبا", "There are 15 dogs", []),
        ("3台の車", "Cars", ["3"]),
        ("Room 007", "Комната 7", ["007"]),
    ],
)
def test_numbers_are_compared_by_their_digits_in_any_script(text: str, answer: str, lost: list[str]) -> None:
    assert lost_parts(text, answer) == lost


def test_what_was_lost_is_hidden_and_asked_for_once_more() -> None:
    answers = {
        'The sign "SALE" costs 3 dollars.': "Вывеска «РАСПРОДАЖА» стоит 3 доллара.",
        'The sign "X1" costs 3 dollars.': "Вывеска «X1» стоит 3 доллара.",
        "A car.": "Машина.",
    }
    model = Scripted(answers.__getitem__)
    rows = Translate(model="m", to="ru").run(
        model, [{"description": 'The sign "SALE" costs 3 dollars.'}, {"description": "A car."}], 4
    )
    assert rows == [{"description_ru": "Вывеска «SALE» стоит 3 доллара."}, {"description_ru": "Машина."}]
    assert model.asked == [['The sign "SALE" costs 3 dollars.', "A car."], ['The sign "X1" costs 3 dollars.']]


def test_a_mark_that_the_text_has_already_is_not_used_to_hide_another() -> None:
    answers = {
        'X1 is 7 and "SALE".': "X1 это семь.",
        'X1 is Z2 and "Z1".': "X1 это Z2 и «Z1».",
    }
    model = Scripted(answers.__getitem__)
    [row] = Translate(model="m", to="ru").run(model, [{"description": 'X1 is 7 and "SALE".'}], 4)
    assert row == {"description_ru": "X1 это 7 и «SALE»."}


def test_a_part_of_a_longer_number_is_not_hidden() -> None:
    model = Scripted(lambda text: "Машины 2013 года")
    Translate(model="m").run(model, [{"description": "3 cars of 2013"}], 1)
    assert model.asked[1] == ["X1 cars of 2013"]


def test_the_longer_of_two_quoted_texts_is_hidden_first() -> None:
    model = Scripted(lambda text: "Вывески")
    Translate(model="m").run(model, [{"description": 'Signs: "SALE" and "SALE NOW"'}], 1)
    assert model.asked[1] == ['Signs: "X1" and "X2"']


@pytest.mark.parametrize("second", ["Вывеска «X2».", "", Answer("Вывеска «X1»", False, 9)])
def test_the_first_answer_is_shown_where_the_second_is_no_better(second: str | Answer) -> None:
    [row] = translated(lambda text: second if "X1" in text else "Вывеска.", 'A sign "SALE".')
    assert row == {"error": "LostText: description_ru: the translation lacks 'SALE': 'Вывеска.'"}


def test_eleven_hidden_texts_come_back_each_in_its_place() -> None:
    text = "Signs: " + ", ".join(f'"W{letter}W"' for letter in "ABCDEFGHIJK")
    [row] = translated(lambda each: each.replace("Signs", "Вывески") if "WAW" not in each else "Вывески", text)
    assert row == {"description_ru": text.replace("Signs", "Вывески")}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer("Красная", False, 9), "CutAnswer: description_ru: the translation ends after 9 tokens: 'Красная'"),
        (Answer(" ", True, 1), "EmptyAnswer: description_ru: the translation is empty"),
        (Answer("", False, 0, error="ServerError: 500: no"), "ServerError: description_ru: 500: no"),
    ],
)
def test_an_answer_that_is_none_is_an_error_of_the_row(answer: Answer, error: str) -> None:
    assert translated(lambda _: answer, "A red car.") == [{"error": error}]


def test_a_server_that_failed_is_not_asked_for_what_its_answer_lacks() -> None:
    model = Scripted(lambda text: Answer("", False, 0, error="ServerError: 500: no"))
    Translate(model="m").run(model, [{"description": "3 cars"}], 1)
    assert model.asked == [["3 cars"]]


def test_the_other_columns_of_a_row_with_an_error_are_kept() -> None:
    stage = Translate(model="m", to="ru", texts=("description", "keywords", "text"))
    model = Scripted({"A car.": "", "car": "машина", "A cat.": ""}.__getitem__)
    assert stage.run(model, [{"description": "A car.", "keywords": "car", "text": "A cat."}], 4) == [
        {"keywords_ru": "машина", "error": "EmptyAnswer: description_ru: the translation is empty"}
    ]


@pytest.mark.parametrize(
    ("text", "answer", "to"),
    [
        ("A red car on the road.", "A red car on the road.", "ru"),
        ("A red car on the road.", "Ein rotes Auto auf der Straße.", "ru"),
        ("A red car on the road.", "Красная a red car on the road", "ru"),
        ("A red car on the road.", "Червона машина на дорозі", "ru"),
        ("A red car on the road.", "一辆红色的汽车", "ru"),
        ("A red car on the road.", "SALE", "ru"),
        ("A sign reads SALE.", "SALE.", "ru"),
        ("Car.", "Car.", "ru"),
        ("Car. Cat.", "Car. Cat.", "ru"),
        ("A red car on the road.", "Красная машина на дороге", "de"),
        ("A red car on the road.", "A red car on the road", "de"),
        ("A red car on the road.", "Красный автомобиль подъезжает", "uk"),
        ("A red car on the road.", "A red car", "ja"),
        ("A RED CAR ON A ROAD.", "A RED CAR ON A ROAD.", "ru"),
        ("A Red Car On The Road", "A Red Car On The Road", "ru"),
        ("A USB-C port. STOP THE CAR NOW", "STOP THE CAR NOW", "ru"),
    ],
)
def test_an_answer_in_another_script_or_language_is_an_error(text: str, answer: str, to: str) -> None:
    name = translation.LANGUAGES[to].name
    assert error_of(answer, text, to) == (f"WrongLanguage: description_{to}: the translation is not {name}: {answer!r}")


@pytest.mark.parametrize(
    ("text", "answer", "to"),
    [
        ("A red car on the road.", "Ein rotes Auto auf der Straße.", "de"),
        ("A red car on the road.", "道路を走る赤い車", "ja"),
        ("A red car on the road.", "Червоний автомобіль на дорозі", "uk"),
        ("A red car on the road.", "سيارة حمراء على الطريق", "ar"),
        ("A red car on the road.", "도로 위의 빨간 차", "ko"),
        ("Taxi, hotel, bar", "Taxi, Hotel, Bar", "de"),
        ("YouTube logo.", "Логотип YouTube.", "ru"),
        ("An iPhone screen.", "Экран iPhone.", "ru"),
        ("Photoshop window.", "Окно Photoshop.", "ru"),
        ("SAMSUNG GALAXY S24 ULTRA PHONE", "ТЕЛЕФОН SAMSUNG GALAXY S24 ULTRA", "ru"),
        ("A cat named Felix wears the shirt ADIDAS SUPERSTAR ORIGINALS", "Кот Felix, ADIDAS SUPERSTAR ORIGINALS", "ru"),
        (
            'The sign reads "a very long text in quotation marks"',
            "«a very long text in quotation marks» это знак",
            "ru",
        ),
    ],
)
def test_an_answer_in_the_language_is_taken(text: str, answer: str, to: str) -> None:
    assert error_of(answer, text, to) == ""


@pytest.mark.parametrize(
    ("text", "answer", "language", "to"),
    [
        ("En stor hund i en have", "En stor hund i en hage", "da", "nb"),
        ("En hund på en bil", "En hund på en bil", "nb", "sv"),
        ("Pes a auto na poli", "Pes a auto na poli", "sk", "cs"),
    ],
)
def test_words_may_be_the_same_in_languages_that_are_near(text: str, answer: str, language: str, to: str) -> None:
    assert error_of(answer, text, to, language=language) == ""
    assert error_of(answer, text, to, language="en").startswith("WrongLanguage: ")


def test_a_copy_of_a_text_without_capitals_is_no_translation() -> None:
    assert error_of("红色的汽车", "红色的汽车", "en", language="zh").startswith("WrongLanguage: ")
    assert error_of("红色的汽车 car", "红色的汽车", "en", language="zh").startswith("WrongLanguage: ")


def test_a_translation_from_russian_must_not_be_russian() -> None:
    assert error_of("A red car", "Красная машина", "en", language="ru") == ""
    assert error_of("Красная машина", "Красная машина", "en", language="ru").startswith("WrongLanguage: ")


def test_the_words_of_a_text_are_what_is_neither_quoted_nor_a_number() -> None:
    assert [has_words(text) for text in ("a", "я", '"a" b', '"a"', "7", "«а», 7", "")] == [
        *(True, True, True, False, False, False, False)
    ]
    assert lost_parts("7 and 7", "7") == ["7"]
    assert not is_other_language("Cars", "Машины", "en", "ru")


# --- Sequence-to-sequence models


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A car. Two cats!  No text.", [("A car.", " "), ("Two cats!", "  "), ("No text.", "")]),
        ("One line\n\nanother", [("One line", "\n\n"), ("another", "")]),
        ('It says "Stop. Look. Listen." twice. Yes.', [('It says "Stop. Look. Listen." twice.', " "), ("Yes.", "")]),
        ("It costs 3.50 dollars", [("It costs 3.50 dollars", "")]),
        ("Что это? «Да». 7 штук.", [("Что это?", " "), ("«Да».", " "), ("7 штук.", "")]),
        ("A car. ", [("A car. ", "")]),
        ("One. \n  two", [("One.", " \n  "), ("two", "")]),
        ("'A. B' c. D 'E. F'", [("'A. B' c.", " "), ("D 'E. F'", "")]),
        ("\nA car", [("A car", "")]),
    ],
)
def test_a_text_is_translated_sentence_by_sentence(text: str, parts: list[tuple[str, str]]) -> None:
    assert sentences(text) == parts


@pytest.mark.parametrize("text", ["a" + " " * 40_000 + "b", 'A "b". ' * 8_000])
def test_a_long_text_is_parted_in_a_time_that_grows_with_its_length(text: str) -> None:
    start_s = time.process_time()
    sentences(text)
    lost_parts(text, text)
    assert time.process_time() - start_s < 1


def copying(model: Seq2Seq) -> list[Any]:
    """Make a model repeat its input, as if it were the translation; the list gets the options of each call."""
    calls: list[Any] = []
    start = model.model.config.decoder_start_token_id or 0

    def generate(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        calls.append(options)
        return torch.cat((torch.full((len(input_ids), 1), start), input_ids), dim=1)

    model.model.generate = generate
    return calls


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "nllb": write_nllb,
    "madlad": lambda folder: write_t5(folder, ("<2ru>", "<2de>")),
    "t5": lambda folder: write_t5(folder, task_specific_params={"translation_en_to_ru": {"prefix": "Translate: "}}),
    "marian": lambda folder: write_marian(folder, source_lang="en", target_lang="ru"),
    "marian to several": lambda folder: write_marian(folder, marks=[">>rus<<", ">>ukr<<"]),
}
PROMPTS = {  # as the tokenizers read them back
    "nllb": "eng_Latn A red car</s>",
    "madlad": "<2ru> A red car</s>",
    "t5": "Translate<unk> A red car</s>",
    "marian": "A red car</s>",
    "marian to several": ">>rus<< A red car</s>",
}


@pytest.fixture(params=[pytest.param(name, marks=has_sentencepiece if "marian" in name else ()) for name in LAYOUTS])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The name of a layout of the hub, and a folder with a random model in it."""
    return request.param, LAYOUTS[request.param](tmp_path / "model")


def test_models_of_the_hub_are_told_the_language_as_they_were_trained(layout: tuple[str, Path]) -> None:
    name, folder = layout
    stage = Translate(model=str(folder), to="ru", device="cpu")
    stage.fetch()
    model = stage.load()
    seen: list[str] = []
    forced: list[Any] = []

    def generate(input_ids: torch.Tensor, forced_bos_token_id: int | None, **_: Any) -> torch.Tensor:
        seen.extend(model.tokenizer.batch_decode(input_ids))
        forced.append(model.tokenizer.convert_ids_to_tokens(forced_bos_token_id) if forced_bos_token_id else "")
        return input_ids

    model.model.generate = generate
    model.translate(["A red car"], 4)
    assert seen == [PROMPTS[name]]
    assert forced == ["rus_Cyrl" if name == "nllb" else ""]
    assert 1 <= stage.auto_batch_size(model, 0.0) <= 16


def test_random_weights_make_rows_or_errors_of_rows(layout: tuple[str, Path]) -> None:
    _, folder = layout
    stage = Translate(model=str(folder), to="ru", device="cpu")
    rows = stage.run(stage.load(), [{"description": "A red car. Two cats."}, {"description": ""}], 2)
    assert ("description_ru" in rows[0]) != ("error" in rows[0])
    assert rows[1] == {"description_ru": ""}


def test_sentences_of_many_texts_share_batches_and_are_put_together_again(tmp_path: Path) -> None:
    model = Seq2Seq(write_nllb(tmp_path), "en", "ru", "cpu")
    calls = copying(model)
    texts = ["A red car. Two cats.", "Two cats.", "A red\ncat"]
    assert [answer.text for answer in model.translate(texts, 2)] == texts
    assert len(calls) == 2  # four sentences that differ
    assert all(answer.is_complete for answer in model.translate(texts, 2))


def test_parts_without_words_are_copied(tmp_path: Path) -> None:
    model = Seq2Seq(write_nllb(tmp_path), "en", "ru", "cpu")
    calls = copying(model)
    [answer] = model.translate(['1. "SALE".\n2.'], 8)
    assert (answer.text, answer.is_complete, answer.error) == ('1. "SALE".\n2.', True, "")
    assert not calls
    assert [answer.text for answer in model.translate(["1. A red car."], 8)] == ["1. A red car."]
    assert [len(call["attention_mask"]) for call in calls] == [1]


def test_an_answer_without_an_end_is_cut(tmp_path: Path) -> None:
    model = Seq2Seq(write_nllb(tmp_path), "en", "ru", "cpu")
    copying(model)
    whole = model.model.generate
    model.model.generate = lambda **options: whole(**options)[:, :-1]
    [answer] = model.translate(["A red car."], 2)
    assert not answer.is_complete


def test_a_model_is_not_made_to_end_what_is_cut_off(tmp_path: Path) -> None:
    folder = write_nllb(tmp_path)
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "forced_eos_token_id": 2, "max_length": 9}))
    used = Seq2Seq(folder, "en", "ru", "cpu").model.generation_config
    assert (used.forced_eos_token_id, used.max_length) == (None, None)


def test_a_sentence_that_is_longer_than_the_model_reads_is_an_error_of_its_text_alone(tmp_path: Path) -> None:
    model = Seq2Seq(write_nllb(tmp_path), "en", "ru", "cpu")
    copying(model)
    first, second = model.translate(["A red car. " + "cat " * 600, "A red car."], 8)
    assert re.fullmatch(r"LongSentence: it has \d{4} tokens, and the model reads 1024", first.error)
    assert second.text == "A red car."


def test_an_answer_is_bounded_by_the_length_of_its_sentence(tmp_path: Path) -> None:
    model = Seq2Seq(write_nllb(tmp_path), "en", "ru", "cpu")
    calls = copying(model)
    model.translate(["A red car."], 1)
    [call] = calls
    assert call["max_new_tokens"] < 80
    assert call["do_sample"] is False


@pytest.mark.parametrize(
    ("layout_name", "to", "message"),
    [
        ("madlad", "fr", "model does not translate to fr: it knows de, ru: give another model, or change `to:`"),
        ("plain t5", "ru", "model does not say which languages it translates: give a model that translates, such as"),
        ("t5", "de", "model does not translate to de: it knows translation_en_to_ru: give another model"),
        pytest.param("marian", "de", "translates from en to ru, and not from en to de: give", marks=has_sentencepiece),
        pytest.param("marian to several", "de", "does not translate to de: it knows rus, ukr", marks=has_sentencepiece),
    ],
)
def test_a_model_of_other_languages_is_refused(tmp_path: Path, layout_name: str, to: str, message: str) -> None:
    folder = (LAYOUTS | {"plain t5": write_t5})[layout_name](tmp_path / "model")
    with pytest.raises(UserError, match=f"^translate: .*{re.escape(message)}"):
        Translate(model=str(folder), to=to).fetch()


@pytest.mark.parametrize(("to", "prefix"), [("nb", "<2no> "), ("he", "<2iw> "), ("ru", "<2ru> ")])
def test_a_language_may_have_another_code(tmp_path: Path, to: str, prefix: str) -> None:
    folder = write_t5(tmp_path, ("<2ru>", "<2no>", "<2iw>"))
    stage = Translate(model=str(folder), to=to, device="cpu")
    stage.fetch()
    assert stage.load()._request.prefix == prefix


class Vocabulary:
    """A tokenizer of the languages of M2M-100, and of words that are written as their codes."""

    init_kwargs: ClassVar[dict[str, str]] = {}

    def __init__(self, *languages: str) -> None:
        self.tokens = {f"__{name}__": index for index, name in enumerate(languages, 5)}
        self.tokens |= {"en": 1, "no": 2, "de": 3, "ru": 4}

    def get_vocab(self) -> dict[str, int]:
        return self.tokens


def test_a_model_with_a_mark_for_each_language_is_told_both() -> None:
    known = Vocabulary("en", "no", "ru")
    asked = {pair: request_of(known, M2M100Config(), Path("m"), *pair) for pair in [("en", "nb"), ("nb", "ru")]}
    assert asked == {
        ("en", "nb"): translation.Request(first_token=6, source="en"),
        ("nb", "ru"): translation.Request(first_token=7, source="no"),
    }
    with pytest.raises(ValueError, match=r"^m does not translate to de: it knows en, no, ru: .* or change `to:`$"):
        request_of(known, M2M100Config(), Path("m"), "en", "de")
    with pytest.raises(ValueError, match=r"^m does not translate from hy: it knows en, no, ru: .* change `language:`$"):
        request_of(known, M2M100Config(), Path("m"), "hy", "nb")


@has_sentencepiece
def test_the_vocabulary_of_m2m_100_has_its_languages(tmp_path: Path) -> None:
    folder = write_marian(tmp_path)
    marks = [f"__{name}__" for name in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
    tokenizer = M2M100Tokenizer(
        str(folder / "vocab.json"), str(folder / "source.spm"), additional_special_tokens=marks, src_lang="en"
    )
    request = request_of(tokenizer, M2M100Config(), Path("m"), "nb", "he")
    assert request == translation.Request(first_token=tokenizer.get_lang_id("he"), source="no")
    tokenizer.src_lang = request.source


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^translate: .* is a bert model, which does not translate: give a model that"):
        Translate(model=str(tmp_path), to="ru").fetch()


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^translate: .*config.json is missing: .* give a model that translates"):
        Translate(model=str(tmp_path), to="ru").fetch()


@pytest.mark.parametrize(
    ("file", "message"),
    [("model.safetensors", "model.safetensors is missing: "), ("tokenizer.json", "has no vocabulary (tokenizer.json")],
)
def test_a_missing_file_is_named(tmp_path: Path, file: str, message: str) -> None:
    folder = write_nllb(tmp_path)
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"^translate: .*{re.escape(message)}"):
        Translate(model=str(folder)).fetch()


def test_pickled_weights_are_refused_and_loaded_where_they_are_trusted(tmp_path: Path) -> None:
    folder = write_nllb(tmp_path / "model")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model.bin may be a pickle, .* set translate.allow_pickle: true"):
        Translate(model=str(folder), to="ru").fetch()
    trusting = Translate(model=str(folder), to="ru", allow_pickle=True, device="cpu")
    trusting.fetch()
    assert trusting.load().model.config.model_type == "m2m_100"


def test_a_missing_package_of_a_tokenizer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_nllb(tmp_path)
    (folder / "source.spm").touch()
    monkeypatch.setattr(translation, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^translate: .* needs sentencepiece: pip install 'vec-pipeline\[translate\]'"):
        Translate(model=str(folder), to="ru").fetch()


# --- Language models: llama.cpp, and servers


def test_a_language_model_is_told_both_languages_and_what_must_stay() -> None:
    model = Scripted(lambda text: "Красная машина.")
    stage = Translate(model="m.gguf", to="ru", context_tokens=512)
    assert stage.run(model, [{"description": "A red car."}], 3) == [{"description_ru": "Красная машина."}]
    assert model.conversations == [
        [
            {
                "role": "system",
                "content": "Translate the text of the user from English to Russian. Copy numbers, names and everything "
                "in quotation marks unchanged. Answer with the translation alone.",
            },
            {"role": "user", "content": "A red car."},
        ]
    ]


def test_an_answer_of_a_language_model_is_bounded_by_its_text_and_by_half_of_the_context() -> None:
    model = Scripted(lambda text: "Красная машина.")
    for text in ("A red car.", "A red car. " * 100):
        Translate(model="m.gguf", context_tokens=512).run(model, [{"description": text}], 3)
    assert model.options == [(None, 94, 3), (None, 256, 3)]


def test_the_prompt_decides_the_results_of_language_models_alone() -> None:
    assert "Russian" in Translate(model="m.gguf", to="ru").identity()
    assert Translate(model="m", to="ru").identity() == ""


def test_a_llama_answers_in_its_own_process(tmp_path: Path) -> None:
    stage = Translate(model=str(write_tiny_gguf(tmp_path / "tiny.gguf")), to="ru", device="cpu", context_tokens=1024)
    stage.fetch()
    model = stage.load()
    try:
        assert 1 <= stage.auto_batch_size(model, 0.0) <= 16
        [row] = stage.run(model, [{"description": "A red car."}], 1)
    finally:
        model.close()
    assert re.match("(CutAnswer|WrongLanguage|EmptyAnswer): description_ru: ", row["error"])


def test_a_text_that_does_not_fit_names_the_option_to_raise(tmp_path: Path) -> None:
    stage = Translate(model=str(write_tiny_gguf(tmp_path / "tiny.gguf")), to="ru", device="cpu", context_tokens=1024)
    model = stage.load()
    try:
        [row] = stage.run(model, [{"description": "A red car. " * 2_000}], 1)
    finally:
        model.close()
    assert row["error"] == (
        "LongText: description_ru: the text does not fit into 1,024 tokens: raise translate.context_tokens"
    )


def test_a_llama_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    with pytest.raises(UserError, match=r"^.*tiny.gguf: no such file or folder"):
        Translate(model=str(file), to="ru").fetch()
    file.write_bytes(b"GGUF and nothing more")
    with pytest.raises(UserError, match=r"^translate: .*tiny.gguf "):
        Translate(model=str(file), to="ru").fetch()
    with pytest.raises(UserError, match=r"^translate: .* is a folder: set translate.file to one of tiny.gguf$"):
        Translate(model=str(tmp_path), to="ru", engine="llama").fetch()
    write_tiny_gguf(file)
    with pytest.raises(UserError, match=f"--set translate.context_tokens={TRAINED_CONTEXT_TOKENS}$"):
        Translate(model=str(file), to="ru", context_tokens=8192).fetch()
    Translate(model=str(tmp_path), file="tiny.gguf", to="ru").fetch()


def test_structure_and_translate_share_one_llama(tmp_path: Path) -> None:
    model = str(write_tiny_gguf(tmp_path / "tiny.gguf"))
    structure = Structure(model=model, device="cpu", categories=("car",))
    translators = [Translate(model=model, device="cpu"), Translate(model=model, device="cpu", context_tokens=1024)]
    models = ModelCache([structure, *translators], 5, 0.0)
    try:
        with models.use(structure) as first, models.use(translators[1]) as other:
            assert other is not first
        with models.use(translators[0]) as second:
            assert second is first
            [row] = translators[0].run(second, [{"description": "A red car."}], 1)
            assert "description_ru: " in row["error"]
    finally:
        models.close()
    assert set(models.load_seconds) == {"structure", "translate"}


def test_the_options_of_a_shared_llama_are_those_of_structure() -> None:
    options: dict[str, Any] = {"model": "m.gguf", "device": "cpu", "allow_pickle": True}
    assert Translate(**options).loaded_as == Structure(**options).loaded_as


def test_parts_of_a_large_llama_are_downloaded_together() -> None:
    stage = Translate(model="owner/name", file="q4/m-00001-of-00003.gguf", to="ru")
    assert stage.is_llama
    assert stage.patterns == ("q4/m-?????-of-00003.gguf",)


def test_a_server_translates_several_texts_at_once() -> None:
    def answer(request: Request) -> Reply:
        return Reply(completion(f"Перевод {request.content.removeprefix('Text ')}"), delay_s=0.05)

    with EndpointServer(answer) as server:
        stage = Translate(model=MODEL, to="ru", engine="endpoint", endpoint=server.url)
        stage.fetch()
        model = stage.load()
        try:
            rows = stage.run(model, [{"description": f"Text {number}"} for number in range(12)], 4)
        finally:
            model.close()
    assert rows == [{"description_ru": f"Перевод {number}"} for number in range(12)]
    assert server.most_in_flight == 4
    [system, user] = server.requests[0].body["messages"]
    assert "from English to Russian" in system["content"]
    assert user["content"].startswith("Text ")


def test_rows_that_a_server_has_answered_are_kept_where_it_ends_the_run() -> None:
    stage = Translate(model="m", to="ru", texts=("description", "text"))
    rows = [
        {"description": "One", "text": "Two"},
        {"description": "Three", "text": ""},
        {"description": "Four", "text": ""},
    ]
    known = {"One": "Один", "Two": "Два", "Four": "Четыре"}

    class Down(Scripted):
        def translate(self, texts: Sequence[str], at_once: int) -> list[Answer]:
            raise Interrupted("it is down", [Answer(known[text], True, 1) if text in known else None for text in texts])

    with pytest.raises(Interrupted, match=r"^it is down$") as caught:
        stage.run(Down(str), rows, 4)
    assert caught.value.results == [
        {"description_ru": "Один", "text_ru": "Два"},
        None,
        {"description_ru": "Четыре", "text_ru": ""},
    ]


def test_a_row_whose_second_try_the_server_did_not_answer_is_left_for_the_next_run() -> None:
    class Down(Scripted):
        def translate(self, texts: Sequence[str], at_once: int) -> list[Answer]:
            if any("X1" in text for text in texts):
                raise Interrupted("it is down", [None] * len(texts))
            return super().translate(texts, at_once)

    rows = [{"description": "3 cars"}, {"description": "A car"}]
    with pytest.raises(Interrupted) as caught:
        Translate(model="m", to="ru").run(Down(lambda text: "Машина"), rows, 4)
    assert caught.value.results == [None, {"description_ru": "Машина"}]


# --- The bundled translator


@has_demo
def test_the_bundled_model_translates_what_it_was_not_trained_on() -> None:
    assert train_translation.share_exact(DEMO, train_translation.held_out_sentences(150)) >= 0.97


@has_demo
def test_the_bundled_model_is_small_and_refuses_other_languages() -> None:
    assert sum(file.stat().st_size for file in DEMO.iterdir()) < 4e6
    with pytest.raises(UserError, match="translates from en to ru, and not from en to de: give another model"):
        Translate(model="models/demo/translation", to="de").fetch()


@has_demo
def test_a_run_translates_the_descriptions_of_the_example_pictures(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    added = "  - use: translate\n    model: models/demo/translation\n    to: ru\n    texts: [description, keywords]\n"
    config.write_text((PROJECT / "configs/demo.yaml").read_text() + added)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for picture in sorted(EXAMPLES.glob("*.png"))[:12]:
        shutil.copy(picture, pictures)
    command = [sys.executable, str(PROJECT / "run.py"), str(pictures), "--config", str(config), "--output"]
    run = subprocess.run([*command, str(tmp_path / "a.csv")], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    rows = load_annotations(tmp_path / "a.csv")
    for path, description, russian, keywords in zip(
        *(rows[name] for name in ("image_path", "description", "description_ru", "keywords_ru")), strict=True
    ):
        truth = json.loads((EXAMPLES / Path(path).with_suffix(".json").name).read_text())
        things = tuple(Thing(**each) for each in truth["things"])
        scene = Scene(things, *(truth[name] for name in ("count", "place", "background", "word")))
        if description == truth["description"]:
            assert russian == train_translation.objects(scene) + "."
            assert keywords == ", ".join(map(train_translation.word, truth["keywords"]))
    assert rows["description_ru"].str.contains("фон").mean() > 0.8


@pytest.mark.parametrize(
    ("scene", "russian"),
    [
        (
            Scene((Thing("car", "red"),), 1, "at the left", "white", ""),
            "Красная машина на белом фоне, слева. Надписи нет.",
        ),
        (Scene((Thing("heart", "blue"),), 1, "", "blue", "GO"), "Синее сердце на синем фоне. Надпись гласит GO."),
        (Scene((Thing("fish", "pink"),), 4, "", "grey", ""), "Четыре розовые рыбы на сером фоне. Надписи нет."),
        (Scene((Thing("cloud", "blue"),), 2, "", "black", ""), "Два синих облака на чёрном фоне. Надписи нет."),
        (
            Scene((Thing("key", "brown"), Thing("tree", "blue")), 2, "above", "green", ""),
            "Коричневый ключ над синим деревом на зелёном фоне. Надписи нет.",
        ),
        (
            Scene((Thing("moon", "orange"), Thing("flower", "blue")), 2, "to the left of", "yellow", ""),
            "Оранжевая луна слева от синего цветка на жёлтом фоне. Надписи нет.",
        ),
        (Scene((), 0, "", "noise", ""), "Случайный шум без предметов, без надписи."),
    ],
)
def test_the_russian_of_the_training_agrees_in_gender_number_and_case(scene: Scene, russian: str) -> None:
    assert train_translation.caption(scene) == russian


def test_nobody_is_asked_to_run_a_models_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    folder = tmp_path / "own"
    shutil.copytree(DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    maps = dict.fromkeys(("AutoConfig", "AutoTokenizer", "AutoModelForSeq2SeqLM"), "conf.Thing")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "marian-x", "auto_map": maps}))
    (folder / "conf.py").write_text("open('ran', 'w')\n")
    with pytest.raises(UserError, match=r"^translate: \S+ runs Python files of its own: give "):
        Translate(model=str(folder)).fetch()
