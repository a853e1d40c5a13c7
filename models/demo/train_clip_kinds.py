"""Train the demo CLIP on, with a new image tower that tells kinds of objects apart.

The image tower of train_clip.py learns from captions. Colour, background, place and count suffice to tell those apart,
and it hardly knows kinds. This one starts from the DINOv2 model (train_dino.py), which does, and the text tower from
train_clip.py's. Besides, each picture must find its own caption among some that differ only in the kind of object.
"""

import json
import logging
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import Dinov2Model

from models.demo import train_dino
from models.demo.picture_pool import Example, answers, random_example
from models.demo.scenes import KINDS, Scene, Thing
from models.demo.tower import (
    HEADS,
    LAYERS,
    MEAN,
    PATCH_PX,
    SIDE_PX,
    STD,
    WIDENING,
    WIDTH,
    augmented,
    labelled,
    normalised,
    trained_tower,
)
from models.demo.train_clip import (
    MOST_LOGIT_SCALE,
    PREPROCESSING,
    Heads,
    contrastive_loss,
    fits,
    phrase_for,
)
from models.demo.training import Progress, Renewed, use_one_thread
from models.demo.vector_training import DEMO, Optimiser, load_state, lr_factor, save_state

START = DEMO / "clip"  # its text tower and tokenizer
OUTPUT = DEMO / "clip"
SEED = 37
STEPS_PER_MINUTE = 55
VISION = {
    "image_size": SIDE_PX,
    "patch_size": PATCH_PX,
    "width": WIDTH,
    "head_width": WIDTH // HEADS,
    "layers": LAYERS,
    "mlp_ratio": WIDENING,
    "no_ln_pre": True,  # as DINOv2
}
SCENES, CROWDS, POOL_SIZE = 112, 16, 3_000  # in a batch, in a batch, of scenes
NEW_SCENES, NEW_CROWDS = 32, 4  # per step
ASKED, ALTERNATIVES = 32, 6  # scenes of a batch that get so many captions with different kinds
LEARNING_RATE = 6e-4
REPORT_EVERY = 50  # steps

log = logging.getLogger(__name__)


def main(minutes: float) -> None:
    """Train for as many steps as take so many minutes on an idle core, resuming an unfinished training."""
    use_one_thread(SEED)
    prepare_folder()
    model = open_clip.create_model(f"local-dir:{OUTPUT}", load_weights=False)
    copy_text_tower(model)
    copy_image_tower(model.visual, Dinov2Model.from_pretrained(train_dino.OUTPUT))
    tokenize = open_clip.get_tokenizer(f"local-dir:{OUTPUT}")
    heads, (_, patch_head) = Heads(), trained_tower()
    everything = nn.ModuleDict({"clip": model, "heads": heads, "patch": patch_head})
    optimiser = Optimiser(everything, LEARNING_RATE, blocks="resblocks")
    progress = Progress(round(minutes * STEPS_PER_MINUTE))
    parts = {"model": everything, "optimiser": optimiser, "progress": progress}
    load_state("clip_kinds", parts)
    rng = random.Random(f"{SEED}/pool/{progress.step}")
    scenes = Renewed(POOL_SIZE, lambda rng: random_example(rng, held_out=False), rng)
    crowds = Renewed(POOL_SIZE // 4, labelled, rng)
    while progress.done < 1:
        rng = random.Random(f"{SEED}/{progress.step}")
        examples = scenes.sample(SCENES, NEW_SCENES, rng)
        pixels = np.stack([example.pixels for example in examples])
        crowd_pixels, labels = (
            np.stack(column) for column in zip(*crowds.sample(CROWDS, NEW_CROWDS, rng), strict=True)
        )
        vectors, tokens = image_vectors(model, augmented(np.concatenate((pixels, crowd_pixels)), rng))
        loss = loss_of_scenes(model, heads, tokenize, examples, vectors[:SCENES], rng)
        loss = loss + 0.3 * patch_head.loss(tokens[SCENES:], torch.from_numpy(labels).long())
        optimiser.step(loss, lr_factor(progress.done))
        with torch.no_grad():
            model.logit_scale.clamp_(max=MOST_LOGIT_SCALE)
        progress.step += 1
        if progress.step % REPORT_EVERY == 0 or progress.done == 1:
            save_state("clip_kinds", parts)
            figures = accuracy(model, tokenize, held_out_examples(300))
            log.info(
                "step %d of %d, loss %.3f, %s, %s",
                progress.step,
                progress.steps,
                loss.item(),
                patch_head.right,
                figures,
            )
    export(model)


def prepare_folder() -> None:
    """Write the tokenizer and the config from which open_clip builds the model."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for file in START.glob("tokenizer*.json"):
        if START != OUTPUT:
            shutil.copyfile(file, OUTPUT / file.name)
    config = json.loads((START / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] = VISION
    config["preprocess_cfg"] = {**PREPROCESSING, "mean": MEAN, "std": STD}
    (OUTPUT / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def copy_text_tower(model: nn.Module) -> None:
    weights = load_file(START / "open_clip_model.safetensors")
    text = {name: weight.float() for name, weight in weights.items() if not name.startswith("visual.")}
    model.load_state_dict(text, strict=False)


@torch.no_grad()
def copy_image_tower(visual: nn.Module, dino: Dinov2Model) -> None:
    """Take over a DINOv2 model of the same shape exactly; only the projection to DIMENSIONS is new."""
    embeddings = dino.embeddings
    projection = embeddings.patch_embeddings.projection
    visual.conv1.weight.copy_(projection.weight)
    visual.class_embedding.copy_(embeddings.cls_token[0, 0])
    visual.positional_embedding.copy_(embeddings.position_embeddings[0])
    visual.positional_embedding[1:] += projection.bias
    for block, layer in zip(visual.transformer.resblocks, dino.encoder.layer, strict=True):
        attention = layer.attention
        queries_keys_values = (attention.q_proj, attention.k_proj, attention.v_proj)
        block.attn.in_proj_weight.copy_(torch.cat([linear.weight for linear in queries_keys_values]))
        block.attn.in_proj_bias.copy_(torch.cat([linear.bias for linear in queries_keys_values]))
        block.ln_1.load_state_dict(layer.norm1.state_dict())
        block.ln_2.load_state_dict(layer.norm2.state_dict())
        block.mlp.c_fc.load_state_dict(layer.mlp.fc1.state_dict())
        scaled = (
            (block.attn.out_proj, attention.o_proj, layer.layer_scale1.lambda1),
            (block.mlp.c_proj, layer.mlp.fc2, layer.layer_scale2.lambda1),
        )
        for new, old, scale in scaled:
            new.weight.copy_(scale[:, None] * old.weight)
            new.bias.copy_(scale * old.bias)
    visual.ln_post.load_state_dict(dino.layernorm.state_dict())
    nn.init.normal_(visual.proj, std=WIDTH**-0.5)


def image_vectors(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (batch, DIMENSIONS) of length 1, and the last block's patch tokens (batch, patches, WIDTH), normed."""
    output = model.visual.forward_intermediates(images, indices=1, output_fmt="NLC", normalize_intermediates=True)
    return functional.normalize(output["image_features"], dim=-1), output["image_intermediates"][0]


def loss_of_scenes(
    model: nn.Module, heads: Heads, tokenize: HFTokenizer, examples: list[Example], vectors: Tensor, rng: random.Random
) -> Tensor:
    """Contrastive over the batch and over kinds, and what the picture as a whole shows."""
    phrases = [phrase_for(example.scene, rng) for example in examples]
    text = model.encode_text(tokenize([phrase.text for phrase in phrases]), normalize=True)
    scale = model.logit_scale.exp()
    contrast = contrastive_loss(scale * vectors @ text.T, fits([example.scene for example in examples], phrases))
    things, capitals = heads.whole_loss(vectors, torch.tensor([answers(example.scene) for example in examples]))
    return contrast + kinds_loss(model, tokenize, examples, vectors, rng) + 2 * things + 0.3 * capitals


def kinds_loss(
    model: nn.Module, tokenize: HFTokenizer, examples: list[Example], vectors: Tensor, rng: random.Random
) -> Tensor:
    """Each of some pictures finds its caption among ALTERNATIVES that differ only in the kind of object."""
    asked = [index for index, example in enumerate(examples) if len(example.scene.things) == 1][:ASKED]
    captions = []
    for index in asked:
        scene = examples[index].scene
        others = rng.sample([kind for kind in KINDS if kind != scene.things[0].kind], ALTERNATIVES - 1)
        captions += [scene.caption(), *(of_kind(scene, kind).caption() for kind in others)]
    text = model.encode_text(tokenize(captions), normalize=True).view(len(asked), ALTERNATIVES, -1)
    logits = model.logit_scale.exp() * (text @ vectors[asked][..., None]).squeeze(-1)
    return functional.cross_entropy(logits, torch.zeros(len(asked), dtype=torch.long))


def of_kind(scene: Scene, kind: str) -> Scene:
    """The same scene of one kind of object, but of another kind."""
    return replace(scene, things=(Thing(kind, scene.things[0].colour),))


def held_out_examples(number: int) -> list[Example]:
    rng = random.Random(f"{SEED}/held out")
    return [random_example(rng, held_out=True) for _ in range(number)]


@torch.no_grad()
def accuracy(model: nn.Module, tokenize: HFTokenizer, examples: list[Example]) -> str:
    """Shares of scenes of one kind whose caption is nearest among those of all kinds, and of captions whose picture, or
    one of equal caption, is among the nearest 1 and 5."""
    model.eval()
    pixels = np.stack([example.pixels for example in examples])
    own = model.visual.preprocess_cfg
    images = normalised(pixels, own["mean"], own["std"])
    vectors = torch.cat([model.encode_image(part, normalize=True) for part in images.split(100)])
    captions = [example.scene.caption() for example in examples]
    nearest = (model.encode_text(tokenize(captions), normalize=True) @ vectors.T).topk(5).indices.tolist()
    right = [[captions[found] == caption for found in row] for caption, row in zip(captions, nearest, strict=True)]
    one = [
        (example.scene, vector)
        for example, vector in zip(examples, vectors, strict=True)
        if len(example.scene.things) == 1
    ]
    kinds = [kind_found(model, tokenize, scene, vector) == scene.things[0].kind for scene, vector in one]
    model.train()
    shares = {"kind": kinds, "recall@1": [row[0] for row in right], "recall@5": [any(row) for row in right]}
    return ", ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in shares.items())


def kind_found(model: nn.Module, tokenize: HFTokenizer, scene: Scene, vector: Tensor) -> str:
    text = model.encode_text(tokenize([of_kind(scene, kind).caption() for kind in KINDS]), normalize=True)
    return KINDS[int((text @ vector).argmax())]


def print_accuracy(folder: Path = OUTPUT, number: int = 500) -> None:
    """Print the shares for the model in a folder."""
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    print(accuracy(model, open_clip.get_tokenizer(f"local-dir:{folder}"), held_out_examples(number)))


def export(model: nn.Module) -> None:
    """Write the weights as float16, which open_clip loads as float32."""
    weights = {name: weight.half().contiguous() for name, weight in model.state_dict().items()}
    file = OUTPUT / "open_clip_model.safetensors"
    save_file(weights, file)
    file.chmod(0o644)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)
