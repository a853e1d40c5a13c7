"""Train the demo editing model: an InstructPix2Pix pipeline that learns three instructions from drawn pairs.

It works at 112 pixels, because printed words are gone at 64. Most of the training is on the first step of the
denoising, which decides everything: there is no signal in the noise yet, and each instruction has one right answer.
"""

import logging
import random
import sys
from typing import NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from torch import Tensor, nn

from models.demo.draw import SHARE_OF_SIZE, SIZES_PX
from models.demo.edit_model import build_pipeline, export_pipeline
from models.demo.edit_pairs import EDITS, Pair, random_pair
from models.demo.muon import Muon
from models.demo.training import Progress, use_one_thread
from models.demo.vector_training import DEMO, load_state, lr_factor, save_state

OUTPUT = DEMO / "edit"
SEED = 37
STEPS_PER_MINUTE = 66
BATCH = 16
LEARNING_RATE, LARGEST_GRADIENT = 3e-3, 1.0
FIRST_STEP, SHARE_OF_FIRST_STEP = 999, 0.8  # of the denoising; the other samples are from any step
CHANGED = 0.05  # difference of a pixel before and after, of -1 to 1, from which on it counts as changed
MOST_WEIGHT = 10.0  # of a pixel, however few are changed
LETTER_WEIGHT = 3.0  # times as much for words that are to stay, because the describer reads thin strokes
SAVE_EVERY, REPORT_EVERY = 100, 300  # steps

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Pictures of one size, float32 (pictures, 3, height, width) of -1 to 1.

    letters: (pictures, 1, height, width), 1 where letters are after the edit.
    """

    before: Tensor
    after: Tensor
    letters: Tensor
    instructions: list[str]


def main(minutes: float) -> None:
    """Train for as many steps as take so many minutes on an idle core, resuming an unfinished training."""
    use_one_thread(SEED)
    pipeline = build_pipeline()
    pipeline.unet.to(memory_format=torch.channels_last)
    muon, adam = optimisers(pipeline)
    progress = Progress(round(minutes * STEPS_PER_MINUTE))
    parts = {"unet": pipeline.unet, "text encoder": pipeline.text_encoder, "muon": muon, "adam": adam}
    parts["progress"] = progress
    load_state("edit", parts)
    weights = [*pipeline.unet.parameters(), *pipeline.text_encoder.parameters()]
    while progress.done < 1:
        set_learning_rates(muon, adam, LEARNING_RATE * lr_factor(progress.done))
        loss = loss_of_batch(pipeline, random.Random(f"{SEED}/{progress.step}"))
        loss.backward()
        nn.utils.clip_grad_norm_(weights, LARGEST_GRADIENT)
        for optimiser in (muon, adam):
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        progress.step += 1
        if progress.step % SAVE_EVERY == 0 or progress.done == 1:
            log.info("step %d of %d, loss %.4f", progress.step, progress.steps, loss.item())
            save_state("edit", parts)
        if progress.step % REPORT_EVERY == 0 or progress.done == 1:
            export_pipeline(pipeline, OUTPUT)
            log.info("errors where changed and elsewhere, of 255: %s", errors(pipeline))


def optimisers(pipeline: StableDiffusionInstructPix2PixPipeline) -> tuple[Muon, torch.optim.Optimizer]:
    """Muon for the matrices and kernels inside the U-Net; AdamW for its outermost level, and for all else."""
    outer = ("conv_in", "conv_out", "down_blocks.0.", f"up_blocks.{len(pipeline.unet.up_blocks) - 1}.", "embed")
    inside, others = [], list(pipeline.text_encoder.parameters())
    for name, weight in pipeline.unet.named_parameters():
        is_inside = weight.ndim >= 2 and not any(part in name for part in outer)
        (inside if is_inside else others).append(weight)
    return Muon(inside, LEARNING_RATE), torch.optim.AdamW(others, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)


def set_learning_rates(muon: Muon, adam: torch.optim.Optimizer, rate: float) -> None:
    for optimiser, factor in ((muon, 1.0), (adam, 0.5)):
        for group in optimiser.param_groups:
            group["lr"] = rate * factor


def loss_of_batch(pipeline: StableDiffusionInstructPix2PixPipeline, rng: random.Random) -> Tensor:
    size = rng.choices(SIZES_PX, SHARE_OF_SIZE)[0]
    batch = batch_of([random_pair(rng, size, held_out=False) for _ in range(BATCH)])
    steps = [FIRST_STEP if rng.random() < SHARE_OF_FIRST_STEP else rng.randrange(FIRST_STEP + 1) for _ in range(BATCH)]
    error = (predicted(pipeline, batch, torch.tensor(steps), rng) - batch.after).square().add(0.01**2).sqrt()
    return (error * weights_of(batch)).mean()


def batch_of(pairs: list[Pair]) -> Batch:
    examples = [(pair.before.seen()[0], *pair.after.seen()) for pair in pairs]
    before, after, letters = (torch.from_numpy(np.stack(column)) for column in zip(*examples, strict=True))
    before, after = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1 for pixels in (before, after))
    return Batch(before, after, letters[:, None].float(), [pair.instruction for pair in pairs])


def predicted(
    pipeline: StableDiffusionInstructPix2PixPipeline, batch: Batch, steps: Tensor, rng: random.Random
) -> Tensor:
    """The edited pictures as the U-Net predicts them from a step of the denoising on."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    noise = torch.randn(batch.after.shape, generator=generator)
    sample = torch.cat((pipeline.scheduler.add_noise(batch.after, noise, steps), batch.before), 1)
    tokens = pipeline.tokenizer(batch.instructions, padding="max_length", truncation=True, return_tensors="pt")
    states = pipeline.text_encoder(tokens.input_ids)[0]
    sample = sample.to(memory_format=torch.channels_last)
    answer: Tensor = pipeline.unet(sample, steps, encoder_hidden_states=states).sample
    return answer


def is_changed(batch: Batch) -> Tensor:
    """(pictures, 1, height, width)"""
    return (batch.after - batch.before).abs().amax(1, keepdim=True) > CHANGED


def weights_of(batch: Batch) -> Tensor:
    """Weights of the pixels, (pictures, 1, height, width): as much for what changes as for what stays."""
    changed = is_changed(batch).float()
    share = changed.mean((1, 2, 3), keepdim=True).clamp(1e-3, 1 - 1e-3)
    balanced = changed * (0.5 / share).clamp(max=MOST_WEIGHT) + (1 - changed) * (0.5 / (1 - share)).clamp(
        max=MOST_WEIGHT
    )
    return balanced * (1 + (LETTER_WEIGHT - 1) * batch.letters)


@torch.no_grad()
def errors(pipeline: StableDiffusionInstructPix2PixPipeline, number: int = 24) -> dict[str, tuple[float, float]]:
    """Mean error after the first step of the denoising, of held-out pairs of each edit."""
    found = {}
    for edit in EDITS:
        rng = random.Random(f"{SEED}/held out")
        batch = batch_of([random_pair(rng, SIZES_PX[0], held_out=True, edit=edit) for _ in range(number)])
        answer = predicted(pipeline, batch, torch.full((number,), FIRST_STEP), rng).clamp(-1, 1)
        error = 127.5 * (answer - batch.after).abs().mean(1, keepdim=True)
        changed = is_changed(batch)
        found[edit] = (round(error[changed].mean().item(), 1), round(error[~changed].mean().item(), 1))
    return found


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 50.0)
