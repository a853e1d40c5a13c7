"""Prompts of the two language models, in each language. `prompt:` of a stage in config.yaml replaces its prompt."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

NAME = re.compile(r"[^\W\d][\w.-]*")
BRACKETS = str.maketrans("", "", "<>[]|\u25c1\u25b7")  # no model spells its control tokens without some of these
MOST_CHARACTERS = 500  # of one value that is filled in


@dataclass(frozen=True)
class Prompts:
    """The prompts of one language.

    describe: the question to the vision-language model about each image.
    brief, full: the same for a shorter and for a longer answer.
    structure: the system message of the language model; `{category}` is replaced by one of the next two.
    any_category: the instruction for the category if no categories are configured.
    one_category: the same if some are; `{categories}` is replaced by their list.
    """

    describe: str
    brief: str
    full: str
    structure: str
    any_category: str
    one_category: str


PROMPTS = {
    "en": Prompts(
        describe=(
            "Describe this image in one or two sentences: the main objects, their colours and number, where they are, "
            "and the background. Then transcribe all text in the image exactly as it is written. If there is no text, "
            "say so plainly."
        ),
        brief="Describe this image in one short sentence: what it shows, and the words on it that stand out, if any.",
        full=(
            "Describe this image in detail: every object with its colour, number and position, people and what they "
            "do, how things relate to each other, the background, the light and the style. Then transcribe all text "
            "in the image exactly as it is written. If there is no text, say so plainly."
        ),
        structure=(
            "You turn the description of an image into one JSON object with four fields. "
            "description: what the image shows, in one or two sentences. "
            "category: {category} "
            "keywords: up to 10 words or short phrases, the most important first, none twice. "
            "image_text: the text seen in the image, letter by letter as the description quotes it; empty if there is "
            "none. Answer in English."
        ),
        any_category="one or two words that name what kind of image it is.",
        one_category="the best fitting of: {categories}.",
    ),
    "ru": Prompts(
        describe=(
            "Опиши это изображение одним или двумя предложениями: главные объекты, их цвет и количество, где они "
            "находятся и какой фон. Затем перепиши весь текст на изображении точно так, как он написан. Если текста "
            "нет, прямо скажи об этом. Отвечай по-русски."
        ),
        brief=(
            "Опиши это изображение одним коротким предложением: что на нём и какие слова бросаются в глаза, если они "
            "есть. Отвечай по-русски."
        ),
        full=(
            "Опиши это изображение подробно: каждый объект, его цвет, количество и положение, людей и что они делают, "
            "как всё связано между собой, фон, свет и стиль. Затем перепиши весь текст на изображении точно так, как "
            "он написан. Если текста нет, прямо скажи об этом. Отвечай по-русски."
        ),
        structure=(
            "Ты превращаешь описание изображения в один объект JSON с четырьмя полями. "
            "description: что показано на изображении, в одном или двух предложениях. "
            "category: {category} "
            "keywords: до 10 слов или коротких словосочетаний, самые важные первыми, без повторов. "
            "image_text: текст на изображении, буква в букву, как его приводит описание; пусто, если текста нет. "
            "Отвечай по-русски; текст изображения не переводи."
        ),
        any_category="одно или два слова, которые называют вид изображения.",
        one_category="наиболее подходящее из списка: {categories}.",
    ),
}


def placeholders(prompt: str) -> tuple[str, ...]:
    """The names in braces of a prompt, each once. Raises ValueError for braces that hold no name."""
    try:
        parts = list(Formatter().parse(prompt))
    except ValueError as error:
        raise ValueError(f"prompt: {error}: {{{{ and }}}} stand for braces") from None
    for _, name, form, conversion in parts:
        if name is not None and (form or conversion or not NAME.fullmatch(name)):
            raise ValueError(f"prompt: {{{name}}} is not the name of a value: {{{{ and }}}} stand for braces")
    return tuple(dict.fromkeys(name for _, name, _, _ in parts if name is not None))


def filled(prompt: str, values: Mapping[str, Any]) -> str:
    """The prompt with the values in the places of their names; one that is missing is an empty text.

    Brackets in them are left out, as a file may be called like a model's control token, `<image>`.
    """

    def text(name: str | None) -> str:
        value = "" if name is None or values.get(name) is None else str(values[name])
        return " ".join(value.translate(BRACKETS).split())[:MOST_CHARACTERS]

    return "".join(literal + text(name) for literal, name, _, _ in Formatter().parse(prompt))
