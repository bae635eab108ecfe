"""Pretrain the shapes world's base model: `python experiments/pretrain_shapes.py OUT`.

Three steps, much as real vision-language models are made. The vision tower learns what is in each patch, from the truth.
The whole model learns to describe pictures from careful captions, and then from careless ones, which name things that
are not there: the hallucinations that DDPO is to remove. About 10 minutes on two cores; the result ships with the
package in `rlhfv_ray/shapes/checkpoint`.
"""

import io
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedModel

from rlhfv_ray.models import load_policy
from rlhfv_ray.shapes.captions import QUESTIONS, caption, careless_caption
from rlhfv_ray.shapes.model import SHIPPED, build_model, build_processor
from rlhfv_ray.shapes.scenes import CELL, COLORS, SHAPES, SIDE, Scene, cells, make_scenes, render


@dataclass(frozen=True)
class Pretraining:
    """How long and how fast to pretrain."""

    out: Path = SHIPPED
    """Folder for the model and its processor."""
    start: str = ""
    """A model folder to go on from, with careless captions only; empty: from random weights."""
    scenes: int = 16_000
    """Pictures to draw; captions are drawn anew each time a picture is seen."""
    vision_steps: int = 400
    """Steps of 128 pictures for the vision tower alone."""
    careful_steps: int = 450
    """Steps of 64 careful captions for the whole model."""
    careless_steps: int = 400
    """Steps of 64 careless captions after those."""
    learning_rate: float = 1e-3
    """Peak of the one-cycle schedule over all captions; the vision tower alone takes twice that."""
    seed: int = 0
    """Of scenes, captions and weights."""


def draw_pixels(scenes: list[Scene]) -> Tensor:
    """All pictures, (N, 3, SIDE, SIDE) uint8."""
    arrays = [np.asarray(Image.open(io.BytesIO(render(scene)))) for scene in scenes]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def pixel_values(pixels: Tensor) -> Tensor:
    """The processor's transform on uint8 pixels of the right size: to [-1, 1]."""
    return pixels.float() / 127.5 - 1


PATCHES = (SIDE // CELL) ** 2
HEADS = (
    1 + len(SHAPES),
    1 + len(COLORS),
    PATCHES,
)  # what a patch's feature must tell: shape, colour, place


def patch_labels(scene: Scene) -> list[list[int]]:
    """For each patch, row by row: shape and colour (0 nothing, else 1 + index), and the patch's own number."""
    labels = [[0, 0, patch] for patch in range(PATCHES)]
    for (row, column), group in cells(scene):
        kind = [1 + SHAPES.index(group.shape), 1 + tuple(COLORS).index(group.color)]
        labels[row * (SIDE // CELL) + column][:2] = kind
    return labels


def one_cycle(
    parameters: list[nn.Parameter], peak: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and its one-cycle schedule."""
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=steps, pct_start=0.1
    )


def pretrain_vision(
    model: LlavaForConditionalGeneration, pixels: Tensor, labels: Tensor, config: Pretraining
) -> None:
    """Teach the vision tower the content and place of every patch; the classifier on top is thrown away."""
    tower = model.model.vision_tower
    head = nn.Linear(tower.config.hidden_size, sum(HEADS))
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer, schedule = one_cycle(parameters, 2 * config.learning_rate, config.vision_steps)
    rng = np.random.default_rng(config.seed)
    for step in range(config.vision_steps):
        rows = torch.from_numpy(rng.integers(len(pixels), size=128))
        logits = head(tower(pixel_values(pixels[rows])).last_hidden_state[:, 1:]).split(
            HEADS, dim=-1
        )
        wanted = labels[rows].unbind(-1)
        parts = [
            cross_entropy(told.flatten(0, 1), want.flatten())
            for told, want in zip(logits, wanted, strict=True)
        ]
        loss = torch.stack(parts).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            found = (logits[0].argmax(-1) == wanted[0])[wanted[0] > 0].float().mean()
            print(f"vision step {step + 1} loss {loss.item():.4f} shapes {found:.3f}", flush=True)


def caption_batch(
    processor: LlavaProcessor, scenes: list[Scene], rng: random.Random, *, careful: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Captions of scenes as (input_ids, attention_mask, labels), (B, T), labels on the answer only."""
    prompts, texts = [], []
    for scene in scenes:
        user = {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": rng.choice(QUESTIONS)}],
        }
        prompt = processor.apply_chat_template([user], add_generation_prompt=True)
        prompts.append(prompt.replace("<image>", "<image>" * PATCHES))
        text = caption(scene.setting, scene.groups) if careful else careless_caption(scene, rng)
        texts.append(f"{prompts[-1]}{text}</s>")
    batch = processor.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    for row, prompt in enumerate(processor.tokenizer(prompts).input_ids):
        labels[row, : len(prompt)] = -100
    return batch.input_ids, batch.attention_mask, labels


def pretrain_captions(
    model: PreTrainedModel,
    processor: LlavaProcessor,
    scenes: list[Scene],
    pixels: Tensor,
    config: Pretraining,
) -> None:
    """Teach the whole model to describe pictures: first truly, which teaches it to look, then as careless people do."""
    parameters = list(model.parameters())
    optimizer, schedule = one_cycle(
        parameters, config.learning_rate, config.careful_steps + config.careless_steps
    )
    rng, started = random.Random(config.seed), time.perf_counter()
    for step in range(config.careful_steps + config.careless_steps):
        rows = [rng.randrange(len(scenes)) for _ in range(64)]
        input_ids, attention_mask, labels = caption_batch(
            processor, [scenes[row] for row in rows], rng, careful=step < config.careful_steps
        )
        loss = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            pixel_values=pixel_values(pixels[torch.tensor(rows)]),
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(
                f"step {step + 1} loss {loss.item():.4f} {time.perf_counter() - started:.0f} s",
                flush=True,
            )


def main(config: Pretraining) -> None:
    """Pretrain and save."""
    torch.manual_seed(config.seed)
    scenes = make_scenes(config.scenes, seed=config.seed)
    pixels = draw_pixels(scenes)
    if config.start:
        model, processor = load_policy(config.start, dtype="fp32")
        model.train()
        config = replace(config, careful_steps=0)
    else:
        rng = random.Random(config.seed)
        texts = [
            f"USER:\n{rng.choice(QUESTIONS)}\nASSISTANT:\n{careless_caption(scene, rng)}"
            for scene in scenes[:2000]
        ]
        processor = build_processor(texts)
        model = build_model(processor)
        pretrain_vision(
            model, pixels, torch.tensor([patch_labels(scene) for scene in scenes]), config
        )
    pretrain_captions(model, processor, scenes, pixels, config)
    model.save_pretrained(config.out)
    processor.save_pretrained(config.out)


if __name__ == "__main__":
    main(tyro.cli(Pretraining, description=__doc__))
