"""How fast images are described: `generate` on one image after another, `generate` in batches, and slots, side by side.

    .venv/bin/python benchmarks/describe.py            # bundled model, and a random one of 150 M parameters, on the CPU
    .venv/bin/python benchmarks/describe.py --gpu      # Qwen2-VL-7B's shapes with random weights, against the roofline

All sides get the same model, pictures, question and number of new tokens, and take turns in one process; printed are
medians, and how many answers equal those of the first side.
"""

import argparse
import os
import platform
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

from vec_pipeline.engines.batched_generate import BatchedGenerate, image_prompt  # noqa: E402
from vec_pipeline.engines.qwen_slots import QwenSlots  # noqa: E402
from vec_pipeline.prompts import PROMPTS  # noqa: E402

BUNDLED = PROJECT / "models" / "demo" / "vision_language"
EXAMPLES = PROJECT / "examples" / "images"
QUESTION = PROMPTS["en"].describe
BATCH = 16
H200_BYTES_PER_S, H200_FLOP_PER_S = 4.3e12, 790e12  # what one reaches: memory, and bf16 products

TEXT_7B: dict[str, Any] = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
VISION_7B = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": 3584}
TEXT_SMALL = TEXT_7B | {
    "hidden_size": 768, "intermediate_size": 4096, "num_attention_heads": 12, "num_key_value_heads": 2,
    "vocab_size": 16384, "rope_parameters": TEXT_7B["rope_parameters"] | {"mrope_section": [8, 12, 12]},
}  # fmt: skip
VISION_SMALL = {"depth": 6, "embed_dim": 384, "num_heads": 6, "mlp_ratio": 4, "hidden_size": 768}


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
    parser.add_argument("--gpu", action="store_true", help="Qwen2-VL-7B's shapes on the GPU")
    parser.add_argument("--parameters", type=int, default=150, help="millions of the random model (CPU)")
    parser.add_argument("--new-tokens", type=int, default=128, help="of every answer of a random model")
    parser.add_argument("--image-px", type=int, help="side of a random model's images (CPU: 112, GPU: 384)")
    parser.add_argument("--slots", type=int, nargs="+", help="(CPU: 8 16 32, GPU: 16 64 256)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["bundled", "random"], help="of the two CPU comparisons")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine(options.gpu, options.threads))
    if options.gpu:
        on_gpu(options)
        return
    if options.only != "random":
        model, processor = bundled_qwen()
        compare("bundled model", model, processor, 64, examples(), options.slots or [8, 16, 32], 25, options.rounds)
    if options.only != "bundled":
        model, processor = random_qwen(options.parameters, options.image_px or 112)
        name = f"random weights, {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters"
        slots = options.slots or [8, 16, 32]
        compare(name, model, processor, options.new_tokens, examples(), slots, 2, options.rounds)


def compare(
    name: str, model: Any, processor: Any, new_tokens: int, pictures: list[Image.Image], slots: list[int],
    naive_images: int, rounds: int,
) -> list[Side]:  # fmt: skip
    """Let all sides take turns and print their table. naive_images: how many of them the slowest side gets a round."""

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

    return AutoModelForImageTextToText.from_pretrained(BUNDLED, dtype=torch.float32).eval(), bundled_processor(112)


def bundled_processor(image_px: int) -> Any:
    """The demo's tokenizer and template, for images of `image_px` x `image_px` pixels at most."""
    from transformers import AutoImageProcessor, AutoProcessor

    processor = AutoProcessor.from_pretrained(BUNDLED)
    size = {"shortest_edge": 56 * 56, "longest_edge": (-(-image_px // 28) * 28) ** 2}
    processor.image_processor = AutoImageProcessor.from_pretrained(BUNDLED, backend="pil", size=size)
    return processor


def random_qwen(parameters_millions: float, image_px: int = 112) -> tuple[Any, Any]:
    """A Qwen2-VL of about that size with random weights, float32 on the CPU, and the demo's processor.

    Proportions are those of the 7B. Nothing ends its answers, so they have exactly `max_new_tokens` tokens.
    """
    vision, embeddings = 12.0, 2 * 16384 * 768 / 1e6  # millions, as the layers: 768 wide, with a gated 4096
    a_layer = 768 * (2 * 768 + 2 * 128 + 3 * 4096) / 1e6
    layers = max(1, round((parameters_millions - vision - embeddings) / a_layer))
    return random_model(TEXT_SMALL | {"num_hidden_layers": layers}, VISION_SMALL, torch.float32), bundled_processor(
        image_px
    )


def random_model(text: dict[str, Any], vision: dict[str, Any], dtype: torch.dtype, device: str = "cpu") -> Any:
    from transformers import AutoModelForImageTextToText, Qwen2VLConfig

    torch.manual_seed(0)
    tokens = {"image_token_id": 721, "video_token_id": 722, "vision_start_token_id": 718, "vision_end_token_id": 719}
    text = text | {"bos_token_id": None, "eos_token_id": None}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 710
    return model


def examples() -> list[Image.Image]:
    paths = [path for path in sorted(EXAMPLES.iterdir()) if path.suffix in (".png", ".jpg")]
    return [Image.open(path).convert("RGB") for path in paths]


def on_gpu(options: argparse.Namespace) -> None:
    """The true shapes of Qwen2-VL-7B: images a second, then what a prefill and a step take beside what they must."""
    image_px = options.image_px or 384
    model = random_model(TEXT_7B, VISION_7B, torch.bfloat16, "cuda")
    processor = bundled_processor(image_px)
    pictures = [image.resize((image_px, image_px)) for image in examples()]
    slots = options.slots or [16, 64, 256]
    name = f"Qwen2-VL-7B's shapes in bf16, random weights, {image_px} x {image_px} pixels"
    compare(name, model, processor, options.new_tokens, pictures, slots, 1, min(options.rounds, 3))
    print("\n| slots | prefill, ms an image | roofline | decode step, ms | roofline |\n|---|---|---|---|---|")
    for count in slots:
        prefill_s, step_s, prompt_tokens = times(model, processor, pictures, count, options.new_tokens)
        least_prefill_s, least_step_s = roofline(model, count, prompt_tokens, options.new_tokens, image_px)
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

    shortest = 5  # tokens: the engine takes four steps before it looks
    short_s, long_s = seconds(shortest), seconds(new_tokens)
    step_s = (long_s - short_s) / (new_tokens - shortest)
    prompt = processor(text=[image_prompt(processor, QUESTION)], images=images[:1])["input_ids"][0]
    return short_s - (shortest - 1) * step_s, step_s, len(prompt)


def roofline(model: Any, rows: int, prompt_tokens: int, new_tokens: int, image_px: int) -> tuple[float, float]:
    """The seconds that an image's prefill and a step of all rows take at the very least on an H200."""
    text = model.config.text_config
    decoder = sum(p.numel() for p in model.model.language_model.layers.parameters())
    head, vision = model.lm_head.weight.numel(), sum(p.numel() for p in model.model.visual.blocks.parameters())
    patches = (-(-image_px // 28) * 2) ** 2
    prefill_flop = 2 * (decoder * prompt_tokens + vision * patches + head)
    head_size = text.hidden_size // text.num_attention_heads
    cache = rows * (prompt_tokens + new_tokens / 2) * 2 * text.num_hidden_layers * text.num_key_value_heads * head_size
    step_bytes, step_flop = 2 * (decoder + head + cache), 2 * (decoder + head) * rows
    return prefill_flop / H200_FLOP_PER_S, max(step_bytes / H200_BYTES_PER_S, step_flop / H200_FLOP_PER_S)


def machine(uses_gpu: bool, threads: int) -> str:
    import transformers

    where = torch.cuda.get_device_name() if uses_gpu else f"{platform.machine()}, {threads} threads"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{where}, Python {platform.python_version()}, {versions}"


if __name__ == "__main__":
    main()
