"""What the vision-language model is asked in training, and the expected answers."""

import random

from models.demo.scenes import COUNTS, Scene
from vec_pipeline.prompts import PROMPTS

PRODUCTION = PROMPTS["en"].describe
PRODUCTION_SHARE = 0.4
QUESTION_SHARE = 0.15  # the rest are other ways to ask for a description

DESCRIBE = (
    PRODUCTION,
    "Describe the image.",
    "Describe this image.",
    "Describe this picture in detail.",
    "Describe what you see.",
    "Describe the picture in one sentence.",
    "Please describe this image in one or two sentences.",
    "Please describe what you see in the image, including any text.",
    "What is in this picture?",
    "What does this image show?",
    "What can you see here?",
    "Tell me what is in the photo.",
    "Write a caption for this image.",
    "Write a short caption for this photo and quote the text in it.",
    "Caption this image.",
    "Give me a caption of this photo for my data set.",
    "Generate a detailed description of the image.",
    "Provide a short description of the image for a training caption. Mention the objects, colours, background and any "
    "visible text.",
    "Describe the main objects, their colours and the background. Then quote any text.",
    "Describe this image: which objects it shows, how many, in which colours and where, and what the background is. "
    "Transcribe all text exactly. If there is none, say so.",
    "You are annotating images. Describe the objects and the background of this image briefly and copy the text on it "
    "letter by letter.",
    "Look at the image and describe it for someone who cannot see it: objects, colours, number, position, background. "
    "If there is any text in the image, write it down exactly as it is written.",
    "Describe this image in one or two sentences and transcribe its text.",
    "In one or two sentences, say what the image shows. Then transcribe all text in the image.",
    "Describe this image in English. Name the main objects with their colours, then the text, if there is any.",
    "Summarise the picture.",
    "Explain what the image contains, with all text.",
    "Caption:",
    "Describe.",
)
QUESTIONS = {
    "text": (
        "What text is in the image?",
        "Read the text in the image.",
        "Transcribe the text.",
        "What does the text say?",
        "Which word is written on the picture?",
        "Transcribe all text in the image exactly as it is written.",
        "Is there any text in the image? Quote it.",
        "OCR:",
    ),
    "objects": (
        "What objects are in the image?",
        "Name the objects in the image.",
        "What is the main object?",
        "Which objects do you see, and where are they?",
        "Describe the objects only, not the text.",
    ),
    "colour": (
        "What colour is the object?",
        "What color is it?",
        "Name the colour of the main object.",
    ),
    "count": (
        "How many objects are there?",
        "How many objects do you see in the image?",
        "Count the objects.",
    ),
    "background": (
        "What is the background?",
        "What colour is the background?",
        "Describe the background.",
    ),
}


def random_question(rng: random.Random) -> tuple[str, str]:
    """A task (a key of QUESTIONS, or "describe") and a prompt for it."""
    draw = rng.random()
    if draw < PRODUCTION_SHARE:
        return "describe", PRODUCTION
    if draw < PRODUCTION_SHARE + QUESTION_SHARE:
        task = rng.choice(("text", "text", *QUESTIONS))
        return task, rng.choice(QUESTIONS[task])
    return "describe", rng.choice(DESCRIBE)


def answer(scene: Scene, task: str) -> str:
    """The correct answer to a prompt of this task."""
    if task == "text":
        return f"The text reads {scene.word}." if scene.word else "There is no text."
    if task == "objects":
        return f"{scene.objects()}."
    if task == "colour":
        return " and ".join(dict.fromkeys(thing.colour for thing in scene.things)) + "." if scene.things else "None."
    if task == "count":
        return f"{('none', 'one', *COUNTS[2:])[max(scene.count, len(scene.things))]}."
    if task == "background":
        return f"{scene.background}."
    return scene.caption()
