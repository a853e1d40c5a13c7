"""How fast images are described: `generate` on one image after another, `generate` in batches, and slots.

    .venv/bin/python benchmarks/describe.py            # bundled model, and random ones of 150 M parameters, on the CPU
    .venv/bin/python benchmarks/describe.py --gpu      # Qwen2-VL-7B's and Qwen3-VL-4B's shapes, with the roofline

All sides get the same model, pictures, question and number of new tokens, and run alternately in one process. Prints
medians, and how many answers equal those of the first side.
"""

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as run.py does

import torch
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks import random_qwen3  # noqa: E402
from benchmarks.machine import machine, require_gpu  # noqa: E402
from benchmarks.random_models import (  # noqa: E402
    DEMO,
    TEXT_7B,
    TEXT_150M,
    VISION_7B,
    VISION_150M,
    qwen_processor,
    random_qwen,
)
from vec_pipeline.engines.batched_generate import BatchedGenerate, image_prompt  # noqa: E402
from vec_pipeline.engines.qwen_slots import QwenSlots  # noqa: E402
from vec_pipeline.prompts import PROMPTS  # noqa: E402

EXAMPLES = PROJECT / "examples" / "images"
QUESTION = PROMPTS["en"].describe
BATCH = 16
H200_BYTES_PER_S, H200_FLOP_PER_S = 4.3e12, 790e12  # what one reaches: memory, and bf16 products


@dataclass
class Side:
    """One way to describe images, and the seconds an image took in each round."""

    name: str
    describe: Callable[[Sequence[Image.Image]], list[str]]
    images: list[Image.Image]
    seconds: list[float]
    texts: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="Qwen2-VL-7B's and Qwen3-VL-4B's shapes on the GPU")
    parser.add_argument("--new-tokens", type=int, default=128, help="of every answer of a random model")
    parser.add_argument("--image-px", type=int, help="side of a random model's images (CPU: 112, GPU: 384)")
    parser.add_argument("--slots", type=int, nargs="+", help="(CPU: 8 16 32, GPU: 16 64 256)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["bundled", "random", "qwen3"], help="of the CPU comparisons")
    options = parser.parse_args()
    if options.gpu:
        require_gpu()
    torch.set_num_threads(options.threads)
    print(f"{machine('torch', 'transformers')}, {options.threads} threads")
    (on_gpu if options.gpu else on_cpu)(options)


def on_cpu(options: argparse.Namespace) -> None:
    """The bundled model, and random ones."""
    slots, image_px = options.slots or [8, 16, 32], options.image_px or 112

    def of_random(name: str, model: Any, processor: Any, naive_images: int) -> None:
        name += f" of random weights, {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters"
        compare(name, model, processor, options.new_tokens, examples(), slots, naive_images, options.rounds)

    if options.only in (None, "bundled"):
        compare("bundled model", *bundled_qwen(), 64, examples(), slots, 25, options.rounds)
    if options.only in (None, "random"):
        of_random("Qwen2-VL", random_qwen(TEXT_150M, VISION_150M, torch.float32), qwen_processor(image_px), 2)
    if options.only in (None, "qwen3"):
        model = random_qwen3.random_qwen3(random_qwen3.TEXT_150M, random_qwen3.VISION_150M, torch.float32)
        of_random("Qwen3-VL", model, random_qwen3.qwen3_processor(image_px), 8)


def compare(
    name: str, model: Any, processor: Any, new_tokens: int, pictures: list[Image.Image], slots: list[int],
    naive_images: int, rounds: int,
) -> list[Side]:  # fmt: skip
    """Run all sides alternately and print their table. naive_images: how many of them the slowest side gets a round."""

    def side(name: str, describe: Callable[[Sequence[Image.Image]], list[str]], at_once: int) -> Side:
        return Side(name, describe, list(islice(cycle(pictures), max(at_once, naive_images))), [], [])

    def engine_side(name: str, kind: type[BatchedGenerate] | type[QwenSlots], at_once: int) -> Side:
        engine = kind(model, processor, QUESTION, new_tokens)  # one a side, so that each keeps its cache
        return side(name, lambda images: [answer.text for answer in engine.generate(images, at_once)], at_once)

    sides = [side("`generate`, one by one", naive_loop(model, processor, new_tokens), 1)]
    sides.append(engine_side(f"`generate`, batches of {BATCH}", BatchedGenerate, BATCH))
    sides += [engine_side(f"{count} slots", QwenSlots, count) for count in slots]
    for each in sides:
        each.describe(each.images[:2])  # first calls allocate and choose kernels
    for _ in range(rounds):
        for each in sides:
            start_s = time.perf_counter()
            each.texts = each.describe(each.images)
            each.seconds.append((time.perf_counter() - start_s) / len(each.images))
    print(f"\n{name}, {new_tokens} new tokens{' at most' if model.generation_config.eos_token_id else ''}\n")
    print_table(sides)
    return sides


def print_table(sides: list[Side]) -> None:
    print("| side | ms an image | images/s | ratio | answers equal |\n|---|---|---|---|---|")
    naive = sides[0]
    for side in sides:
        seconds = statistics.median(side.seconds)
        # Paired by round: a busy machine slows both.
        ratio = statistics.median(a / b for a, b in zip(naive.seconds, side.seconds, strict=True))
        pairs = list(zip(naive.texts, side.texts, strict=False))
        equal = f"{sum(a == b for a, b in pairs)} of {len(pairs)}"
        print(f"| {side.name} | {seconds * 1e3:.0f} | {1 / seconds:.2f} | {ratio:.2f} | {equal} |", flush=True)


def naive_loop(model: Any, processor: Any, new_tokens: int) -> Callable[[Sequence[Image.Image]], list[str]]:
    """What the model card shows: one image after another through the processor and `generate`."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)

    def describe(images: Sequence[Image.Image]) -> list[str]:
        texts = []
        for image in images:
            inputs = processor(text=[prompt], images=[image], return_tensors="pt").to(model.device)
            tokens = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
            texts += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts

    return describe


def bundled_qwen() -> tuple[Any, Any]:
    """The demo's model and processor, in float32 on the CPU."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(DEMO / "vision_language", dtype=torch.float32)
    return model.eval(), qwen_processor(112)


def examples() -> list[Image.Image]:
    paths = [path for path in sorted(EXAMPLES.iterdir()) if path.suffix in (".png", ".jpg")]
    return [Image.open(path).convert("RGB") for path in paths]


def on_gpu(options: argparse.Namespace) -> None:
    """The true shapes of two models, one after the other, because a small GPU holds only one."""
    image_px = options.image_px or 384
    model = random_qwen(TEXT_7B, VISION_7B, torch.bfloat16, "cuda")
    compare_on_gpu("Qwen2-VL-7B", model, qwen_processor(image_px), image_px, options)
    del model
    gc.collect()
    torch.cuda.empty_cache()
    model = random_qwen3.random_qwen3(random_qwen3.TEXT_4B, random_qwen3.VISION_4B, torch.bfloat16, "cuda")
    compare_on_gpu("Qwen3-VL-4B", model, random_qwen3.qwen3_processor(image_px), image_px, options)


def compare_on_gpu(name: str, model: Any, processor: Any, image_px: int, options: argparse.Namespace) -> None:
    """Images a second, then what a prefill and a step take beside what they must."""
    pictures = [image.resize((image_px, image_px)) for image in examples()]
    slots = options.slots or [16, 64, 256]
    title = f"{name}'s shapes in bf16, random weights, {image_px} x {image_px} pixels"
    compare(title, model, processor, options.new_tokens, pictures, slots, 1, min(options.rounds, 3))
    print("\n| slots | prefill and resizing, ms an image | H200's roofline | decode step, ms | H200's roofline |")
    print("|---|---|---|---|---|")
    for count in slots:
        prefill_s, step_s, prompt_tokens = times(model, processor, pictures, count, options.new_tokens)
        patches = len(processor.image_processor(images=pictures[:1])["pixel_values"])
        least_prefill_s, least_step_s = roofline(model, count, prompt_tokens, options.new_tokens, patches)
        row = (prefill_s / count, least_prefill_s, step_s, least_step_s)
        print(f"| {count} | " + " | ".join(f"{seconds * 1e3:.2f}" for seconds in row) + " |", flush=True)


def times(
    model: Any, processor: Any, pictures: list[Image.Image], slots: int, new_tokens: int
) -> tuple[float, float, int]:
    """Seconds of the prefill of all slots and of one decode step, and the tokens of a prompt."""
    images = list(islice(cycle(pictures), slots))

    def seconds(tokens: int) -> float:
        engine = QwenSlots(model, processor, QUESTION, tokens)
        engine.generate(images, slots)  # records the step
        start_s = time.perf_counter()
        engine.generate(images, slots)
        return time.perf_counter() - start_s

    shortest = 5  # tokens: the engine takes four steps before it checks
    short_s, long_s = seconds(shortest), seconds(new_tokens)
    step_s = (long_s - short_s) / (new_tokens - shortest)
    prompt = processor(text=[image_prompt(processor, QUESTION)], images=images[:1])["input_ids"][0]
    return short_s - (shortest - 1) * step_s, step_s, len(prompt)


def roofline(model: Any, rows: int, prompt_tokens: int, new_tokens: int, patches: int) -> tuple[float, float]:
    """The seconds that an image's prefill and a step of all rows take at the very least on an H200."""
    text = model.config.text_config
    decoder = sum(p.numel() for p in model.model.language_model.layers.parameters())
    head, vision = model.lm_head.weight.numel(), sum(p.numel() for p in model.model.visual.blocks.parameters())
    prefill_flop = 2 * (decoder * prompt_tokens + vision * patches + head)
    head_size = model.model.language_model.layers[0].self_attn.head_dim
    cache = rows * (prompt_tokens + new_tokens / 2) * 2 * text.num_hidden_layers * text.num_key_value_heads * head_size
    step_bytes, step_flop = 2 * (decoder + head + cache), 2 * (decoder + head) * rows
    return prefill_flop / H200_FLOP_PER_S, max(step_bytes / H200_BYTES_PER_S, step_flop / H200_FLOP_PER_S)


if __name__ == "__main__":
    main()
