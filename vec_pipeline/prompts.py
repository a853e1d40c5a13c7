"""Prompts of the two language models, in each language. `prompt:` of a stage in config.yaml replaces its prompt."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompts:
    """The prompts of one language.

    describe: the question to the vision-language model about each image.
    structure: the system message of the language model; `{category}` is replaced by one of the next two.
    any_category: the instruction for the category if no categories are configured.
    one_category: the same if some are; `{categories}` is replaced by their list.
    """

    describe: str
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
