"""Train the demo detector: an RT-DETR v2 that finds drawn objects, people and the elements of interface screens."""

import logging
import random
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import RTDetrImageProcessor, RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection

from models.demo.boxed import BoxedPicture
from models.demo.detection_pictures import LABELS, SIDE_PX, SORTS, random_picture
from models.demo.detector_accuracy import accuracy
from models.demo.detector_loss import DenseLoss, Targets
from models.demo.training import Progress, Renewed, export_half, use_one_thread
from models.demo.vector_training import DEMO, load_state, lr_factor, save_state

OUTPUT = DEMO / "detector"
SEED = 31
STEPS_PER_MINUTE = 90
WIDTH, QUERIES, DECODER_LAYERS = 96, 40, 2
BACKBONE: dict[str, Any] = {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 160], "depths": [1, 1, 1, 1]}

BATCH, POOL_SIZE, NEW_PER_STEP = 16, 1_500, 8
LEARNING_RATE, WEIGHT_DECAY, LARGEST_GRADIENT = 1.5e-3, 0.02, 5.0
AVERAGE = 0.998  # of the weights over the last 500 steps: exported in place of the latest
SAVE_EVERY, REPORT_EVERY = 100, 400  # steps
REPORT_PICTURES = 150  # of each sort

log = logging.getLogger(__name__)


def main(minutes: float) -> None:
    """Train for as many steps as take so many minutes on an idle core, resuming an unfinished training."""
    use_one_thread(SEED)
    model = build_model()
    dense = DenseLoss(WIDTH, len(LABELS), tuple(model.config.feat_strides), SIDE_PX)
    model.model.enc_output.register_forward_hook(lambda _module, _inputs, output: setattr(dense, "memory", output))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE), use_buffers=True)
    weights = [*model.parameters(), *dense.parameters()]
    optimiser = torch.optim.AdamW(grouped(weights), lr=LEARNING_RATE, betas=(0.9, 0.98))
    progress = Progress(round(minutes * STEPS_PER_MINUTE))
    parts = {"model": model, "dense": dense, "average": average, "optimiser": optimiser, "progress": progress}
    load_state("detector", parts)
    pool = Renewed(POOL_SIZE, lambda rng: random_picture(rng, held_out=False), random.Random(f"{SEED}/{progress.step}"))
    while progress.done < 1:
        rng = random.Random(f"{SEED}/step {progress.step}")
        loss = loss_of_batch(model, dense, pool.sample(BATCH, NEW_PER_STEP, rng), rng)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, LARGEST_GRADIENT)
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * lr_factor(progress.done)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.update_parameters(model)
        progress.step += 1
        if progress.step % SAVE_EVERY == 0 or progress.done == 1:
            log.info("step %d of %d, loss %.3f", progress.step, progress.steps, loss.item())
            save_state("detector", parts)
        if progress.step % REPORT_EVERY == 0 or progress.done == 1:
            export_half(average.module, build_processor(), OUTPUT)
            log.info("%s", accuracy(OUTPUT, held_out_pictures(REPORT_PICTURES)))


def build_model() -> RTDetrV2ForObjectDetection:
    backbone = RTDetrResNetConfig(**BACKBONE, layer_type="basic", out_indices=[2, 3, 4])
    config = RTDetrV2Config(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,  # the default freezes them, which is for pretrained backbones
        encoder_in_channels=BACKBONE["hidden_sizes"][1:],
        encoder_hidden_dim=WIDTH,
        d_model=WIDTH,
        decoder_in_channels=[WIDTH] * 3,
        encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=3 * WIDTH,
        encoder_attention_heads=WIDTH // 32,
        decoder_attention_heads=WIDTH // 32,
        decoder_layers=DECODER_LAYERS,
        hidden_expansion=0.5,
        num_queries=QUERIES,
        num_denoising=30,
        label_noise_ratio=0.3,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
    )
    model = RTDetrV2ForObjectDetection(config)
    initialise(model)
    return model.to(memory_format=torch.channels_last)


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Initialise for training from scratch: the class's own values are for what a checkpoint then overwrites."""
    kept = ("class_embed", "bbox_embed", "enc_score_head", "enc_bbox_head", "sampling_offsets", "attention_weights")
    for name, module in model.named_modules():
        if any(part in name for part in kept):
            continue
        if isinstance(module, nn.BatchNorm2d):
            module.weight.fill_(1.0)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    for name, module in model.named_modules():
        if hasattr(module, "layers") and ("bbox_embed" in name or "enc_bbox_head" in name):
            for layer in module.layers[:-1]:
                nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(module.layers[-1].weight)


def build_processor() -> RTDetrImageProcessor:
    return RTDetrImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX})


def grouped(weights: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases and scales."""
    return [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]


def loss_of_batch(
    model: RTDetrV2ForObjectDetection, dense: DenseLoss, pictures: list[BoxedPicture], rng: random.Random
) -> Tensor:
    model.train()
    pixels = pixels_of(pictures)
    if rng.random() < 0.5:
        pixels = (pixels * rng.uniform(0.9, 1.1) + rng.uniform(-0.04, 0.04)).clamp(0, 1)
    truths = [truth_of(picture) for picture in pictures]
    output = model(pixel_values=pixels, labels=[library_labels(truth) for truth in truths])
    loss: Tensor = output.loss + dense(output.enc_outputs_coord_logits, padded(truths))
    return loss


def pixels_of(pictures: list[BoxedPicture]) -> Tensor:
    """(pictures, 3, SIDE_PX, SIDE_PX), 0 to 1, as the image processor makes them."""
    pixels = torch.from_numpy(np.stack([np.asarray(picture.image) for picture in pictures]))
    return pixels.permute(0, 3, 1, 2).div(255).contiguous(memory_format=torch.channels_last)


def truth_of(picture: BoxedPicture) -> tuple[Tensor, Tensor]:
    """Boxes (objects, 4) as shares of the picture and labels (objects,)."""
    boxes = torch.tensor([item.box for item in picture.objects]).view(-1, 4) / SIDE_PX
    return boxes, torch.tensor([LABELS.index(item.label) for item in picture.objects], dtype=torch.long)


def library_labels(truth: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    boxes, labels = truth
    middles_and_sizes = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1)
    return {"class_labels": labels, "boxes": middles_and_sizes}


def padded(truths: list[tuple[Tensor, Tensor]]) -> Targets:
    boxes = nn.utils.rnn.pad_sequence([boxes for boxes, _ in truths], batch_first=True)
    labels = nn.utils.rnn.pad_sequence([labels for _, labels in truths], batch_first=True, padding_value=-1)
    if not labels.shape[1]:  # nothing in any picture
        return Targets(
            torch.zeros(len(truths), 1, 4), torch.zeros(len(truths), 1).long(), torch.zeros(len(truths), 1) > 0
        )
    return Targets(boxes, labels.clamp(min=0), labels >= 0)


def held_out_pictures(number: int) -> dict[str, list[BoxedPicture]]:
    """`number` pictures of each sort, of combinations that training never sees."""
    rng = random.Random(f"{SEED}/held out")
    return {sort: [random_picture(rng, held_out=True, sort=sort) for _ in range(number)] for sort in SORTS}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 45.0)
