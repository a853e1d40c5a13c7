"""An image tower that knows what is on every patch of a drawn picture: where the DINOv2 model and the CLIP start.

A caption says too little about a picture to learn the kinds of objects from; the labels of patches on crowded pictures
say a lot. The tower starts from the vision tower of the bundled vision-language model, which has learned them with
rotary positions, and learns them again with the positions that DINOv2 and CLIP have: added to the patches.
"""

import logging
import random

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from models.demo.train_vision_language import patch_loss, share_right
from models.demo.training import Progress, Renewed, use_one_thread
from models.demo.vector_training import DEMO, STATES, Optimiser, load_state, lr_factor, save_state
from models.demo.vision_language_data import CLASSES, COLOUR, KIND, LETTER_LEFT, labelled_picture

SIDE_PX, PATCH_PX = 112, 14
PATCHES = SIDE_PX // PATCH_PX  # along one side
WIDTH, LAYERS, HEADS, WIDENING = 160, 5, 5, 2
COPIED_LAYERS = 4  # the last layer is new: it collects what the whole picture shows
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the vision-language model

SEED = 23
STEPS_PER_MINUTE = 90
BATCH, POOL_SIZE, NEW_PER_STEP = 96, 3_000, 24
SHARE_OF_COLLAGES = 0.8
LEARNING_RATE = 2e-3
REPORT_EVERY = 50  # steps

log = logging.getLogger(__name__)


def main(minutes: float) -> None:
    """Train for as many steps as take so many minutes on an idle core, resuming an unfinished training."""
    use_one_thread(SEED)
    tower, head = build_tower(), PatchHead()
    optimiser = Optimiser(nn.ModuleDict({"tower": tower, "head": head}), LEARNING_RATE, blocks="encoder.layer")
    progress = Progress(round(minutes * STEPS_PER_MINUTE))
    parts = {"tower": tower, "head": head, "optimiser": optimiser, "progress": progress}
    load_state("tower", parts)
    pool = Renewed(POOL_SIZE, labelled, random.Random(f"{SEED}/pool/{progress.step}"))
    while progress.done < 1:
        rng = random.Random(f"{SEED}/{progress.step}")
        pixels, labels = (np.stack(column) for column in zip(*pool.sample(BATCH, NEW_PER_STEP, rng), strict=True))
        tokens = tower(pixel_values=augmented(pixels, rng)).last_hidden_state[:, 1:]
        loss = head.loss(tokens, torch.from_numpy(labels).long())
        optimiser.step(loss, lr_factor(progress.done))
        progress.step += 1
        if progress.step % REPORT_EVERY == 0 or progress.done == 1:
            log.info("step %d of %d, loss %.3f, %s", progress.step, progress.steps, loss.item(), head.right)
            save_state("tower", parts)


def trained_tower() -> tuple[Dinov2Model, "PatchHead"]:
    """The tower and its head as `main` left them."""
    state = torch.load(STATES / "tower.pt")
    tower, head = build_tower(), PatchHead()
    tower.load_state_dict(state["tower"])
    head.load_state_dict(state["head"])
    return tower, head


def build_tower() -> Dinov2Model:
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        mlp_ratio=WIDENING,
        image_size=SIDE_PX,
        patch_size=PATCH_PX,
        layerscale_value=1.0,
        use_mask_token=False,
    )
    tower = Dinov2Model(config)
    copy_vision_language_tower(tower)
    return tower


@torch.no_grad()
def copy_vision_language_tower(tower: Dinov2Model) -> None:
    """Copy the layers of the vision-language model's tower; what it lacks starts small, and positions as patches do."""
    weights = load_file(DEMO / "vision_language" / "model.safetensors")
    learned = {name.removeprefix("visual."): weight.float() for name, weight in weights.items()}
    embeddings = tower.embeddings
    # Both frames of its patch embedding see the same picture, so their weights add up.
    embeddings.patch_embeddings.projection.weight.copy_(learned["patch_embed.proj.weight"].sum(2))
    embeddings.patch_embeddings.projection.bias.zero_()
    rows, columns = 1.0 * torch.randn(2, PATCHES, WIDTH)
    embeddings.position_embeddings[0, 1:] = (rows[:, None] + columns).flatten(0, 1)
    for index, layer in enumerate(tower.encoder.layer):
        if index >= COPIED_LAYERS:
            for linear in (layer.attention.o_proj, layer.mlp.fc2):
                nn.init.normal_(linear.weight, std=0.02)
            continue
        old = {
            name.removeprefix(f"blocks.{index}."): weight
            for name, weight in learned.items()
            if name.startswith(f"blocks.{index}.")
        }
        attention = layer.attention
        qkv = zip(old["attn.qkv.weight"].chunk(3), old["attn.qkv.bias"].chunk(3), strict=True)
        for linear, (weight, bias) in zip((attention.q_proj, attention.k_proj, attention.v_proj), qkv, strict=True):
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        for new, name in (
            (attention.o_proj, "attn.proj"),
            (layer.norm1, "norm1"),
            (layer.norm2, "norm2"),
            (layer.mlp.fc1, "mlp.fc1"),
            (layer.mlp.fc2, "mlp.fc2"),
        ):
            new.weight.copy_(old[f"{name}.weight"])
            new.bias.copy_(old[f"{name}.bias"])


class PatchHead(nn.Module):
    """Reads the labels of the patches off the tower's tokens. Used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, sum(CLASSES))
        self.right = ""

    def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """tokens: (pictures, patches, WIDTH), row by row; labels: (pictures, patches, columns of CLASSES)."""
        scores = self.linear(tokens)
        named = {"kinds": KIND, "colours": COLOUR, "letters": LETTER_LEFT}
        shares = {name: share_right(scores, labels, column) for name, column in named.items()}
        self.right = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        return patch_loss(scores.flatten(0, 1), labels.flatten(0, 1))


def labelled(rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """A square picture, mostly a crowded one, and the labels of its patches row by row."""
    pixels, labels, _, _ = labelled_picture(rng, SIDE_PX, SIDE_PX, collage_wanted=rng.random() < SHARE_OF_COLLAGES)
    squares = labels.reshape(PATCHES // 2, PATCHES // 2, 2, 2, -1)  # the vision-language model's order
    return pixels, squares.swapaxes(1, 2).reshape(PATCHES**2, -1)


def augmented(pixels: np.ndarray, rng: random.Random) -> Tensor:
    """Preprocess uint8 pictures (batch, height, width, 3), with a little change of brightness and contrast."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    contrast, brightness = torch.rand(2, len(pixels), 1, 1, 1, generator=generator).mul(0.2).sub(0.1)
    return normalised(pixels).mul(1 + contrast).add(brightness)


def normalised(pixels: np.ndarray, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    zero, one = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - zero) / one
