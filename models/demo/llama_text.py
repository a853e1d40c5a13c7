"""What the demo Llama reads and writes: its tokenizer, its chat template and its training conversations."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from string import ascii_lowercase, ascii_uppercase, digits

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.demo.scenes import CATEGORIES, COLOURS, KINDS, LEXICON, Scene, is_held_out, random_scene
from vec_pipeline.prompts import PROMPTS

BEGIN, END, START_HEADER, END_HEADER, END_OF_TURN = SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
VOCABULARY_SIZE = 720
# The word split of Llama 3, as llama.cpp applies it to the pre-tokenizer "llama-bpe".
LLAMA_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# The template of Llama 3.1 Instruct without its parts for tools: the same text for system, user and assistant turns.
CHAT_TEMPLATE = (
    "{{- bos_token }}\n"
    "{%- if not date_string is defined %}\n"
    '    {%- set date_string = "26 Jul 2024" %}\n'
    "{%- endif %}\n"
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {%- set system_message = messages[0]['content']|trim %}\n"
    "    {%- set messages = messages[1:] %}\n"
    "{%- else %}\n"
    '    {%- set system_message = "" %}\n'
    "{%- endif %}\n"
    '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}\n'
    '{{- "Cutting Knowledge Date: December 2023\\n" }}\n'
    '{{- "Today Date: " + date_string + "\\n\\n" }}\n'
    "{{- system_message }}\n"
    '{{- "<|eot_id|>" }}\n'
    "{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
    "{%- endif %}\n"
)
EN = PROMPTS["en"]


@dataclass(frozen=True)
class Example:
    """One description as the vision-language model may write it, and the JSON expected for it."""

    description: str
    answer: str


def structure_prompt(categories: tuple[str, ...] = CATEGORIES) -> str:
    """The system message of the structure stage for these categories; without any, it asks for free text."""
    wanted = EN.one_category.replace("{categories}", ", ".join(categories)) if categories else EN.any_category
    return EN.structure.replace("{category}", wanted)


def chat_prefix(system: str) -> str:
    """The conversation up to the user's turn, as CHAT_TEMPLATE writes it."""
    return (
        f"{BEGIN}{START_HEADER}system{END_HEADER}\n\n"
        f"Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{system.strip()}{END_OF_TURN}"
    )


def chat_turn(description: str) -> str:
    """The user's turn and the head of the assistant's, as CHAT_TEMPLATE writes them."""
    return (
        f"{START_HEADER}user{END_HEADER}\n\n{description.strip()}{END_OF_TURN}{START_HEADER}assistant{END_HEADER}\n\n"
    )


def wanted_answer(scene: Scene) -> str:
    """The answer to a scene's caption, with the fixed spacing that the structure stage's grammar allows."""
    return json.dumps(scene.structure(), ensure_ascii=False)


def train_tokenizer(seed: int) -> Tokenizer:
    """Train the byte-level BPE tokenizer (VOCABULARY_SIZE tokens) on prompts and answers.

    No merge holds a capital or a digit, so that a printed word is always spelled letter by letter.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA_WORDS), "isolated")
    spelled = pre_tokenizers.Split(Regex(r"[A-Z0-9]"), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, spelled, as_bytes])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_corpus(random.Random(seed)), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _tokenizer_corpus(rng: random.Random) -> Iterator[str]:
    for _ in range(1500):
        yield varied_example(rng, random_scene(rng, held_out=False)).description
        scene = random_scene(rng, held_out=False)
        yield scene.caption()
        yield wanted_answer(scene)
    dates = chat_prefix("").split(END_HEADER)[1]
    for _ in range(300):
        yield from ("system", "user", "assistant", dates)
        yield structure_prompt(rng.choice((CATEGORIES, CATEGORIES, ())))
        yield varied_prompt(rng)


def training_prompt(rng: random.Random) -> str:
    """A system message: mostly the default, otherwise a variation that asks for the same."""
    if rng.random() < 0.75:
        return structure_prompt()
    return varied_prompt(rng)


def varied_prompt(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.15:
        return structure_prompt(())
    if kind < 0.4:
        return structure_prompt(tuple(rng.sample(CATEGORIES, len(CATEGORIES))))
    listed = ", ".join(rng.sample(CATEGORIES, len(CATEGORIES)) if rng.random() < 0.5 else CATEGORIES)
    opening = rng.choice(
        (
            "You turn the description of an image into one JSON object with four fields.",
            "Turn the description of an image into JSON.",
            "Write one JSON object for the image that is described.",
            "Answer with one JSON object with the fields description, category, keywords and image_text.",
            "You are given the description of an image. Return JSON with four fields.",
        )
    )
    details = [
        rng.choice(("description: what the image shows.", "description: what is seen, in one sentence.")),
        rng.choice((f"category: one of: {listed}.", f"category: the best of {listed}.", "category: one word.")),
        rng.choice(("keywords: the most important words.", "keywords: up to 10 words or phrases, none twice.")),
        rng.choice(("image_text: the text seen in the image.", "image_text: the printed text; empty if none.")),
    ]
    closing = rng.choice(("", " Answer in English.", " Write nothing else."))
    return " ".join([opening, *(details if rng.random() < 0.8 else details[1:2])]) + closing


def training_example(rng: random.Random) -> Example:
    """A conversation: mostly a scene's own caption, otherwise one that an imperfect vision-language model may write."""
    scene = random_scene(rng, held_out=False, words="none")
    exact = rng.random() < 0.7
    if scene.background != "noise":
        scene = replace(scene, word=training_word(rng) if exact else varied_word(rng))
    return Example(scene.caption(), wanted_answer(scene)) if exact else varied_example(rng, scene)


def copying_example(rng: random.Random) -> Example:
    """Only a printed word and its transcription."""
    kind = rng.random()
    if kind < 0.6:
        word = random_capitals(rng)
    elif kind < 0.75:
        word = random_lower_case(rng)
    else:
        word = " ".join(rng.choices((*KINDS, *COLOURS), k=rng.randint(2, 6)))
    return Example(text_sentence(rng, word), json.dumps({"image_text": word}))


def text_sentence(rng: random.Random, word: str) -> str:
    """What a vision-language model may say about a printed text."""
    quoted = rng.choice((word, f'"{word}"'))
    return f"The text {rng.choice(('reads', 'reads', 'says', 'is'))} {quoted}."


def training_word(rng: random.Random) -> str:
    """The capitals on one picture: none, a lexicon word, or (mostly, since copying is the hard part) random ones."""
    kind = rng.random()
    if kind < 0.15:
        return ""
    if kind < 0.3:
        return rng.choice(LEXICON)
    return random_capitals(rng)


def random_capitals(rng: random.Random) -> str:
    """1 to 10 capitals that are not held out; some from a small alphabet, to practise repeated letters."""
    while True:
        alphabet = ascii_uppercase if rng.random() < 0.6 else rng.sample(ascii_uppercase, rng.randint(2, 5))
        word = "".join(rng.choices(alphabet, k=rng.randint(1, 10)))
        if not is_held_out(word):
            return word


def varied_word(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.2:
        return ""
    if kind < 0.4:
        return random_capitals(rng)
    if kind < 0.55:
        return f"{rng.choice(LEXICON)} {rng.choice(LEXICON)}"
    if kind < 0.65:
        return f"{random_capitals(rng)} {random_capitals(rng)}"
    if kind < 0.75:
        return "".join(rng.choices(digits, k=rng.randint(1, 5)))
    if kind < 0.8:
        return f"{rng.choice(LEXICON)} {rng.randint(0, 99)}"
    word = rng.choice((rng.choice(LEXICON).lower(), random_lower_case(rng)))
    return word if rng.random() < 0.6 else word.capitalize()


def random_lower_case(rng: random.Random) -> str:
    return "".join(rng.choices(ascii_lowercase, k=rng.randint(2, 8)))


def varied_example(rng: random.Random, scene: Scene) -> Example:
    """A caption with other wording or with mistakes, which the description of the answer repeats unchanged."""
    objects = scene.objects()
    structure = scene.structure()
    if rng.random() < 0.4:
        objects = with_slip(rng, objects)
        structure["description"] = objects + "."
    if scene.word:
        caption = f"{objects}. {text_sentence(rng, scene.word)}"
    else:
        caption = objects + rng.choice((", no text.", ". There is no text.", ". No text.", "."))
    return Example(caption[:-1] if rng.random() < 0.3 else caption, json.dumps(structure, ensure_ascii=False))


def with_slip(rng: random.Random, sentence: str) -> str:
    """Repeat a word, add an unknown one, or omit one that says nothing about the scene."""
    words = sentence.split(" ")
    index = rng.randrange(1, len(words))
    kind = rng.randrange(3)
    if kind == 0:
        words.insert(index, words[index].rstrip(","))
    elif kind == 1:
        words.insert(index, random_lower_case(rng))
    else:
        small = [at for at in range(1, len(words)) if words[at] in ("a", "an", "on", "at", "the", "in", "of", "to")]
        if small:
            del words[rng.choice(small)]
    return " ".join(words)
