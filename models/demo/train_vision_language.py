"""Trains the vision-language model from scratch, on drawn scenes: `python -m models.demo.train_vision_language`.

First the vision tower alone learns what is in every patch: object, colour, letter and the letter's index in its word. A
caption says far too little about a picture to learn letters from; patch labels on crowded collages say a lot. Then the
whole model learns to answer, with the patch labels as an auxiliary loss.

Two processes of one thread each train the same weights in shared memory without locks ("Hogwild", Recht et al. 2011):
at this size that is several times faster than one process of two threads.
"""

import argparse
import json
import math
import queue
import random
import shutil
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from transformers.vision_utils import get_vision_position_ids

from models.demo.muon import Muon
from models.demo.vision_language_data import (
    BACKGROUND_CLASSES,
    CENTRE,
    CLASSES,
    COLOUR,
    IGNORED,
    INDEX_LEFT,
    KIND,
    LETTER_LEFT,
    LONGEST_WORD,
    Batch,
    batches,
)
from models.demo.vision_language_model import MERGED, PATCH_PX, SYSTEM_MESSAGE, build_model, build_processor
from models.demo.vision_language_prompts import answer, random_question

FOLDER = Path(__file__).parent / "vision_language"
STATE_FILE = Path(__file__).parent / ".training" / "vision_language.pt"

SEED = 1
TRAINERS = 2
PICTURES_PER_BATCH = 32
SHARE_OF_SEEING = 0.4  # of the time, for the first phase
SHARE_OF_COLLAGES = {"see": 0.8, "answer": 0.45}
SHARE_OF_FRESH = 0.35  # of the batches, once the pool of earlier ones is full
BATCHES_IN_POOL = 400  # of each trainer: 0.5 GB
MUON_RATE = 3e-3
ADAM_RATE = 1.5e-3
WARMUP_SHARE = 0.03  # of a phase
FINAL_RATE = {"see": 0.15, "answer": 0.01}  # of the largest
VISION_SHARE = 0.4  # of the rate, for the vision tower in the second phase
WEIGHT_DECAY = 0.02
AUXILIARY_WEIGHT = 0.3
SAVE_EVERY_S = 300.0
LOG_EVERY_STEPS = 50


class PatchHeads(nn.Module):
    """Reads the patch labels off the vision tower, before and after its merger. Used in training only."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.patch_norm, self.patch = nn.LayerNorm(vision_width), nn.Linear(vision_width, sum(CLASSES))
        self.token_norm, self.token = nn.LayerNorm(text_width), nn.Linear(text_width, MERGED**2 * sum(CLASSES))
        self.background = nn.Linear(text_width, len(BACKGROUND_CLASSES))
        self.word = nn.Linear(text_width, LONGEST_WORD * 27)

    def loss(self, patches: Tensor, tokens: Tensor, labels: Tensor, backgrounds: Tensor) -> Tensor:
        """patches: (pictures, patches, vision_width); tokens: (pictures, patches / 4, text_width); labels and
        backgrounds as in Batch."""
        normed = self.token_norm(tokens)
        before = self.patch(self.patch_norm(patches)).flatten(0, 1)
        after = self.token(normed).view(before.shape)
        labels = labels.flatten(0, 1)
        of_background = functional.cross_entropy(self.background(normed.mean(1)), backgrounds)
        return 0.5 * patch_loss(before, labels) + patch_loss(after, labels) + of_background

    def word_loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Which letter of the word, if any, is in each token at each index: for pictures with one word."""
        letters = labels[..., LETTER_LEFT : LETTER_LEFT + 2].reshape(-1, 2 * MERGED**2)
        indices = labels[..., INDEX_LEFT : INDEX_LEFT + 2].reshape(-1, 2 * MERGED**2)
        wanted = torch.zeros(len(letters), LONGEST_WORD + 1, dtype=torch.long)
        wanted.scatter_(1, indices.clamp(min=0), letters.clamp(min=0))
        wanted[(letters < 0).any(1)] = IGNORED
        scores = self.word(self.token_norm(tokens)).view(-1, 27)
        return functional.cross_entropy(scores, wanted[:, 1:].flatten(), class_weights(27, 0.1), ignore_index=IGNORED)


def patch_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Sum over the columns of the labels of the cross entropy. scores: (n, sum(CLASSES)), labels: (n, 7)."""
    total = torch.zeros(())
    for column, column_scores in enumerate(torch.split(scores, CLASSES, -1)):
        weights = None
        if column == CENTRE:
            weights = torch.tensor([1.0, 4.0])
        elif column >= LETTER_LEFT:  # most patches have no letter
            weights = class_weights(CLASSES[column], 0.15)
        total = total + functional.cross_entropy(column_scores, labels[:, column], weights, ignore_index=IGNORED)
    return total


def class_weights(classes: int, of_nothing: float) -> Tensor:
    weights = torch.ones(classes)
    weights[0] = of_nothing
    return weights


@torch.no_grad()
def share_right(scores: Tensor, labels: Tensor, column: int) -> float:
    """Accuracy of one column of the labels, over the patches that have one."""
    predicted = torch.split(scores, CLASSES, -1)[column].argmax(-1)
    wanted = labels[..., column]
    told = wanted >= 0 if column == COLOUR else wanted > 0
    return float((predicted[told] == wanted[told]).float().mean())


class Tower:
    """The model's vision tower for pictures of one size, all in one call.

    The library's own forward attends to one picture at a time, which is many small calls; this computes the same from
    the same weights.
    """

    def __init__(self, model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor) -> None:
        self.visual = model.model.visual
        images = processor.image_processor
        self.mean = 255 * torch.tensor(images.image_mean).view(3, 1)
        self.deviation = 255 * torch.tensor(images.image_std).view(3, 1)
        self.rotations: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def patches(self, pixels: Tensor) -> Tensor:
        """Cut pictures, uint8 (pictures, height, width, 3), into patches as the processor does: normalised,
        (pictures, patches, 3 * 14 * 14), by squares of MERGED x MERGED patches."""
        rows, columns = pixels.shape[1] // PATCH_PX, pixels.shape[2] // PATCH_PX
        split = pixels.view(-1, rows // MERGED, MERGED, PATCH_PX, columns // MERGED, MERGED, PATCH_PX, 3)
        ordered = split.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(len(pixels), rows * columns, 3, PATCH_PX**2)
        return ((ordered - self.mean) / self.deviation).flatten(2)

    def __call__(self, patches: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """patches: as above, of pictures of `rows` by `columns` patches. Returns the patches before the merger,
        (pictures, patches, vision_width), and the tokens after it, (pictures, patches / 4, text_width)."""
        # Both frames of the patch embedding see the same picture, so their weights add up.
        weights = self.visual.patch_embed.proj.weight.sum(2).flatten(1)
        hidden = functional.linear(patches, weights)
        cosines, sines = self.rotation(rows, columns)
        for block in self.visual.blocks:
            hidden = hidden + attend(block.attn, block.norm1(hidden), cosines, sines)
            hidden = hidden + block.mlp(block.norm2(hidden))
        merger = self.visual.merger
        squares = merger.ln_q(hidden).view(len(hidden), rows * columns // MERGED**2, -1)
        return hidden, merger.mlp(squares)

    def rotation(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary positions: (patches, head_width / 2) each."""
        if (rows, columns) not in self.rotations:
            positions = get_vision_position_ids(torch.tensor([[1, rows, columns]]), MERGED)
            cosines, sines = self.visual.rotary_pos_emb(torch.zeros(1), positions)
            half = cosines.shape[-1] // 2
            self.rotations[rows, columns] = cosines[:, :half].contiguous(), sines[:, :half].contiguous()
        return self.rotations[rows, columns]


def attend(attention: Any, hidden: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    pictures, patches, _ = hidden.shape
    mixed = attention.qkv(hidden).view(pictures, patches, 3, attention.num_heads, attention.head_dim)
    mixed = mixed.permute(2, 0, 3, 1, 4)
    queries, keys = rotate(mixed[:2], cosines, sines).unbind(0)
    attended = functional.scaled_dot_product_attention(queries, keys, mixed[2], scale=attention.scaling)
    projected: Tensor = attention.proj(attended.transpose(1, 2).reshape(pictures, patches, -1))
    return projected


def rotate(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = states.chunk(2, -1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), -1)


class Speaker:
    """Turns questions and answers into the language model's loss."""

    def __init__(self, model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor) -> None:
        self.model, self.tokenizer = model, processor.tokenizer
        start = f"<|im_start|>system\n{SYSTEM_MESSAGE}<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        self.before = torch.tensor(self.tokenizer(start).input_ids)
        self.prompts: dict[str, Tensor] = {}

    def loss(self, tokens: Tensor, grid: tuple[int, int], batch: Batch, rng: random.Random) -> tuple[Tensor, float]:
        """Cross entropy of the answers' tokens, and the share that is right. One question for the whole batch.

        tokens: the vision tower's, (pictures, n, width); grid: their rows and columns, whose product is n.
        """
        chosen = [index for index, scene in enumerate(batch.scenes) if scene is not None]
        task, prompt = random_question(rng)
        answers = self.padded([answer(batch.scenes[index], task) for index in chosen])  # type: ignore[arg-type]
        embed = self.model.model.language_model.embed_tokens
        rows = len(chosen)
        after = self.prompt(prompt)
        parts = (embed(self.before).expand(rows, -1, -1), tokens[chosen], embed(after).expand(rows, -1, -1))
        inputs = torch.cat((*parts, embed(answers[:, :-1].clamp(min=0))), 1)
        positions = answer_positions(len(self.before), grid, inputs.shape[1]).unsqueeze(1).expand(3, rows, -1)
        output = self.model.model.language_model(inputs_embeds=inputs, position_ids=positions, use_cache=False)
        hidden = output.last_hidden_state[:, -answers.shape[1] :]
        told = answers != IGNORED
        scores = self.model.lm_head(hidden[told])
        loss = functional.cross_entropy(scores, answers[told])
        return loss, float((scores.argmax(-1) == answers[told]).float().mean())

    def prompt(self, text: str) -> Tensor:
        """The tokens between picture and answer."""
        if text not in self.prompts:
            framed = f"<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
            self.prompts[text] = torch.tensor(self.tokenizer(framed).input_ids)
        return self.prompts[text]

    def padded(self, answers: list[str]) -> Tensor:
        """(answers, longest) tokens, each answer closed by the end of the turn and filled up with IGNORED."""
        spelled = [torch.tensor(ids) for ids in self.tokenizer([f"{text}<|im_end|>" for text in answers]).input_ids]
        return nn.utils.rnn.pad_sequence(spelled, batch_first=True, padding_value=IGNORED)


def answer_positions(before: int, grid: tuple[int, int], length: int) -> Tensor:
    """Multimodal rotary positions (time, row, column) of a sequence with one picture: (3, length), as Qwen2-VL's
    `get_rope_index` gives them."""
    rows, columns = grid
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    picture = torch.stack((torch.zeros(rows * columns, dtype=torch.long), y.flatten(), x.flatten())) + before
    after = torch.arange(length - before - rows * columns) + before + max(grid)
    return torch.cat((torch.arange(before).expand(3, -1), picture, after.expand(3, -1)), 1)


@dataclass
class Run:
    """What both trainers share, apart from the weights."""

    model: Qwen2VLForConditionalGeneration
    heads: PatchHeads
    processor: Qwen2VLProcessor
    minutes: float
    elapsed_s: dict[str, float] = field(default_factory=lambda: {"see": 0.0, "answer": 0.0})

    def phase_s(self, phase: str) -> float:
        share = SHARE_OF_SEEING if phase == "see" else 1 - SHARE_OF_SEEING
        return 60 * self.minutes * share

    def save_state(self) -> None:
        STATE_FILE.parent.mkdir(exist_ok=True)
        state = {"model": self.model.state_dict(), "heads": self.heads.state_dict(), "elapsed_s": self.elapsed_s}
        torch.save(state, STATE_FILE.with_suffix(".new"))
        STATE_FILE.with_suffix(".new").replace(STATE_FILE)

    def load_state(self) -> None:
        state = torch.load(STATE_FILE, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.elapsed_s = state["elapsed_s"]


def main(minutes: float = 90.0) -> None:
    """Train for that many minutes in all, resuming an interrupted training."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    processor = build_processor()
    model = build_model(processor)
    vision, text = model.config.vision_config, model.config.text_config
    run = Run(model, PatchHeads(vision.embed_dim, text.hidden_size), processor, minutes)
    if STATE_FILE.exists():
        run.load_state()
    model.share_memory()
    run.heads.share_memory()
    for phase in ("see", "answer"):
        if run.elapsed_s[phase] < run.phase_s(phase):
            train_phase(run, phase)
    export(run, FOLDER)
    STATE_FILE.unlink(missing_ok=True)


def train_phase(run: Run, phase: str) -> None:
    """One phase, in TRAINERS processes that share the weights and one process that draws."""
    context = multiprocessing.get_context("fork")
    drawn = context.Queue(8)
    drawer = context.Process(target=put_batches, args=(drawn, phase, run.elapsed_s[phase]), daemon=True)
    drawer.start()
    others = [context.Process(target=train, args=(run, phase, rank, drawn)) for rank in range(1, TRAINERS)]
    for other in others:
        other.start()
    train(run, phase, 0, drawn)
    for other in others:
        other.join()
    drawer.terminate()


def put_batches(drawn: Any, phase: str, elapsed_s: float) -> None:
    """Draw batches without end. A resumed training draws other batches than before."""
    seed = hash((SEED, phase == "see", round(elapsed_s)))
    for batch in batches(seed, PICTURES_PER_BATCH, SHARE_OF_COLLAGES[phase]):
        drawn.put(batch)


def train(run: Run, phase: str, rank: int, drawn: Any) -> None:
    """The training loop of one process. Process 0 logs, and saves every SAVE_EVERY_S."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED + 100 * rank)
    rng = random.Random(SEED + 100 * rank)
    optimisers = build_optimisers(run, phase)
    parameters = [
        parameter for optimiser in optimisers for group in optimiser.param_groups for parameter in group["params"]
    ]
    tower, speaker = Tower(run.model, run.processor), Speaker(run.model, run.processor)
    resumed_at = time.monotonic() - run.elapsed_s[phase]
    saved_at = time.monotonic()
    averages: dict[str, float] = {}
    for step, batch in enumerate(pooled(drawn, rng), 1):
        run.elapsed_s[phase] = time.monotonic() - resumed_at
        progress = run.elapsed_s[phase] / run.phase_s(phase)
        if progress >= 1:
            break
        set_rate(optimisers, progress, FINAL_RATE[phase])
        loss, measured = batch_loss(run, tower, speaker, batch, phase, rng)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        for name, value in measured.items():
            if math.isfinite(value):  # a batch may have nothing to measure
                averages[name] = 0.98 * averages.get(name, value) + 0.02 * value
        if rank == 0 and step % LOG_EVERY_STEPS == 0:
            rounded = {name: round(value, 3) for name, value in averages.items()}
            print(json.dumps({"phase": phase, "step": step, "s": round(run.elapsed_s[phase]), **rounded}), flush=True)
        if rank == 0 and time.monotonic() > saved_at + SAVE_EVERY_S:
            saved_at = time.monotonic()
            run.save_state()
            if phase == "answer":
                export(run, FOLDER)
    if rank == 0:
        run.save_state()


def pooled(drawn: Any, rng: random.Random) -> Iterator[Batch]:
    """New batches mixed with earlier ones, since drawing a picture takes a large part of the time of learning it."""
    pool: list[Batch] = []
    while True:
        fresh = None
        if len(pool) < 20:
            fresh = drawn.get()
        elif len(pool) < BATCHES_IN_POOL or rng.random() < SHARE_OF_FRESH:
            try:
                fresh = drawn.get_nowait()
            except queue.Empty:
                fresh = None
        if fresh is None:
            yield rng.choice(pool)
            continue
        if len(pool) < BATCHES_IN_POOL:
            pool.append(fresh)
        else:
            pool[rng.randrange(BATCHES_IN_POOL)] = fresh
        yield fresh


def build_optimisers(run: Run, phase: str) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest: embeddings, norms, biases, heads, and the merger's
    widest matrix, which would cost Muon more than all the others together."""
    matrices: dict[bool, list[nn.Parameter]] = {True: [], False: []}  # of the vision tower, and of the language model
    rest: dict[bool, list[nn.Parameter]] = {True: list(run.heads.parameters()), False: []}
    for name, parameter in run.model.named_parameters():
        inside = ".blocks." in name or ".layers." in name or ".merger.mlp.2" in name
        (matrices if inside and parameter.dim() == 2 else rest)[".visual." in name].append(parameter)
    return [
        Muon(rate_groups(matrices, phase), MUON_RATE, WEIGHT_DECAY),
        torch.optim.AdamW(rate_groups(rest, phase), ADAM_RATE, (0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True),
    ]


def rate_groups(parameters: dict[bool, list[nn.Parameter]], phase: str) -> list[dict[str, Any]]:
    """Parameter groups with a share of the rate. In the second phase the vision tower learns more slowly, or the large
    first steps of the language model would destroy what it learnt in the first."""
    if phase == "see":
        return [{"params": parameters[True], "share": 1.0}]
    return [{"params": parameters[True], "share": VISION_SHARE}, {"params": parameters[False], "share": 1.0}]


def set_rate(optimisers: list[torch.optim.Optimizer], progress: float, final: float) -> None:
    """Warm up linearly, then decay along a cosine to the final share of the rate. progress: 0 to 1."""
    share = min(1.0, progress / WARMUP_SHARE) * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
    for optimiser, rate in zip(optimisers, (MUON_RATE, ADAM_RATE), strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate * share * group["share"]


def batch_loss(
    run: Run, tower: Tower, speaker: Speaker, batch: Batch, phase: str, rng: random.Random
) -> tuple[Tensor, dict[str, float]]:
    """The loss to minimise, and values to log."""
    labels = torch.from_numpy(batch.labels).long()
    rows, columns = batch.pixels.shape[1] // PATCH_PX, batch.pixels.shape[2] // PATCH_PX
    patches, tokens = tower(augmented(tower.patches(torch.from_numpy(batch.pixels))), rows, columns)
    auxiliary = run.heads.loss(patches, tokens, labels, torch.from_numpy(batch.backgrounds))
    measured = {"auxiliary": auxiliary.item()}
    with torch.no_grad():
        scores = run.heads.token(run.heads.token_norm(tokens)).view(*labels.shape[:2], -1)
        for name, column in (("kind", KIND), ("colour", COLOUR), ("letter", LETTER_LEFT), ("index", INDEX_LEFT)):
            measured[name] = share_right(scores, labels, column)
    if phase == "see":
        return auxiliary, measured
    single = [index for index, scene in enumerate(batch.scenes) if scene is not None]
    auxiliary = auxiliary + run.heads.word_loss(tokens[single], labels[single])
    spoken, right = speaker.loss(tokens, (rows // MERGED, columns // MERGED), batch, rng)
    return spoken + AUXILIARY_WEIGHT * auxiliary, {"answer": spoken.item(), "right": right, **measured}


def augmented(patches: Tensor) -> Tensor:
    """Vary brightness and contrast of normalised pictures, and add noise to half of them: no picture comes twice."""
    contrast, brightness, noise, noisy = torch.rand(4, len(patches), 1, 1).unbind()
    varied = patches * (0.94 + 0.12 * contrast) + 0.18 * (brightness - 0.5)
    return varied + 0.12 * noise * (noisy < 0.5) * torch.randn_like(patches)


def export(run: Run, folder: Path) -> None:
    """Save model and processor as half-precision safetensors, atomically."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    deepcopy(run.model).eval().half().save_pretrained(new)
    run.processor.save_pretrained(new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=90.0)
    main(parser.parse_args().minutes)
