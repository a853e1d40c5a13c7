"""The baseline: what one writes with care from the libraries' own examples, one image after the other.

    .venv/bin/python benchmarks/naive_loop.py photos/ --config configs/demo.yaml --output naive.csv

Every model is loaded once. Models, prompts, lengths, image size and threads are those of the configuration; the rows
have the same columns as the worker's. It has no batches, slots, resume or recovery.
"""

import argparse
import csv
import json
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import numpy as np  # noqa: E402
import open_clip  # noqa: E402
import torch  # noqa: E402
from gensim.models.fasttext import load_facebook_vectors  # noqa: E402
from llama_cpp import Llama  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

from vec_pipeline.config import load_config  # noqa: E402
from vec_pipeline.device import resolve  # noqa: E402
from vec_pipeline.engines.llama_slots import best_threads  # noqa: E402
from vec_pipeline.record import COLUMNS  # noqa: E402


class NaiveLoop:
    """The models of a configuration, and one call of each per image."""

    def __init__(self, config_path: Path) -> None:
        self.stages: dict[str, Any] = {stage.name: stage for stage in load_config(config_path).stages}
        paths = {name: str(stage.path().resolve()) for name, stage in self.stages.items() if hasattr(stage, "model")}
        self.device = resolve(self.stages["describe"].device)
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.processor = AutoProcessor.from_pretrained(paths["describe"])
        self.describer = AutoModelForImageTextToText.from_pretrained(
            paths["describe"], dtype=dtype, device_map=self.device
        )
        self.sentences = SentenceTransformer(paths["embed_text"], device=self.device)
        words = Path(paths["embed_words"])
        self.words = load_facebook_vectors(str(words / "model.bin" if words.is_dir() else words))
        clip = f"local-dir:{paths['embed_image']}"
        self.clip, self.clip_transform = open_clip.create_model_from_pretrained(clip, device=self.device)
        structure = self.stages["structure"]
        threads = structure.threads or best_threads(Path(paths["structure"]).stat().st_size)
        self.llama = Llama(
            paths["structure"],
            n_ctx=structure.context_tokens,
            n_gpu_layers=-1 if self.device == "cuda" else 0,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def annotate(self, path: Path) -> dict[str, Any]:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        image.thumbnail([self.stages["open_image"].max_size_px] * 2)
        text, prefix = self.describe(image), self.stages["embed_text"].prefix
        answer = self.structure(text)
        extracted = json.loads(answer, strict=False)  # the library's grammar admits line feeds within a string
        return {
            "image_path": str(path.resolve()),
            "text": text,
            "description": extracted["description"],
            "categories": extracted["category"],
            "keywords": ", ".join(extracted["keywords"]),
            "image_text": extracted["image_text"],
            "text_vector": as_json(self.sentences.encode(prefix + text, normalize_embeddings=True)),
            "word2vec_vector": as_json(np.mean([self.words[word] for word in re.findall(r"\w+", text)], axis=0)),
            "image_vector": as_json(self.embed_image(image)),
            "timestamp": datetime.now().isoformat(timespec="seconds"),
            "error": "",
            "llama_extracted": answer,
        }

    @torch.inference_mode()
    def describe(self, image: Image.Image) -> str:
        stage = self.stages["describe"]
        content = [{"type": "image", "image": image}, {"type": "text", "text": stage.question()}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.device, dtype=self.describer.dtype)
        tokens = self.describer.generate(**inputs, max_new_tokens=stage.max_new_tokens, do_sample=False)
        return str(self.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()

    @torch.inference_mode()
    def embed_image(self, image: Image.Image) -> Any:
        pixels = self.clip_transform(image).unsqueeze(0).to(self.device)
        return self.clip.encode_image(pixels, normalize=True)[0].float().cpu().numpy()

    def structure(self, text: str) -> str:
        stage = self.stages["structure"]
        required = list(stage.answer_schema["properties"])
        schema = {**stage.answer_schema, "required": required, "additionalProperties": False}
        completion = self.llama.create_chat_completion(
            [{"role": "system", "content": stage.system_prompt()}, {"role": "user", "content": text}],
            response_format={"type": "json_object", "schema": schema},
            temperature=0.0,
            max_tokens=stage.max_tokens or None,
        )
        return str(completion["choices"][0]["message"]["content"])


def as_json(vector: Any) -> str:
    return json.dumps(vector.tolist(), separators=(",", ":"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--config", type=Path, default=PROJECT / "configs" / "demo.yaml")
    parser.add_argument("--output", type=Path, default=Path("naive.csv"))
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    loop = NaiveLoop(options.config)
    paths = [path for path in sorted(options.images.rglob("*")) if path.suffix in (".jpg", ".png")][: options.limit]
    start_s = time.perf_counter()
    with options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for path in paths:
            row = loop.annotate(path)
            writer.writerow(row[name] for name in COLUMNS)
            file.flush()
    print(f"{len(paths)} images in {time.perf_counter() - start_s:.3f} s, without loading")


if __name__ == "__main__":
    main()
