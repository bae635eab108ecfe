"""Pretrain the shapes world's base model: `python experiments/pretrain_shapes.py --out OUT`.

In the biased world, three steps resemble those of real vision-language models. The vision tower
learns the content of each patch, from the truth. The whole model learns to describe pictures from
careful captions. Then it learns from careless captions, which name things that are not in the
picture: the hallucinations that DDPO is to remove. This takes about 10 minutes on two cores. The
result ships with the package in `rlhfv_ray/shapes/checkpoint`.

In the balanced world (`--world balanced`) careful captions are of plain pictures only, which have
no setting. All captions of settings are careless. So the model has learnt shapes, colours, numbers
and places, and the captions of settings that it has seen are true only by chance. At the end it
describes fresh pictures. A model that takes shapes for others that no caption confuses has not
learnt to look. Corrections cannot teach it, because balanced ones leave out a mistake that has no
reverse.

Shapes: B pictures of a batch, T tokens, D features.
"""

import io
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedModel

from rlhfv_ray.config import GenerationConfig
from rlhfv_ray.console import leave, run_command
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.inference.generate import answer_prompts
from rlhfv_ray.models import load_policy
from rlhfv_ray.shapes.annotator import mistakes
from rlhfv_ray.shapes.balanced import LOOK_ALIKES, make_plain_scenes
from rlhfv_ray.shapes.captions import QUESTIONS, caption
from rlhfv_ray.shapes.model import BALANCED, BIASED, SIGNS, build_model, build_processor
from rlhfv_ray.shapes.scenes import CELL, COLORS, SETTINGS, SHAPES, SIDE, Scene, cells, render
from rlhfv_ray.shapes.world import prompts_of
from rlhfv_ray.shapes.worlds import WORLDS, World, WorldName


@dataclass(frozen=True)
class Pretraining:
    """Length and speed of the pretraining."""

    out: Path | None = None
    """Folder to write the model and its processor to. Without it, the folder of the world's base
    model inside the package."""
    world: WorldName = "biased"
    """Version of the world."""
    start: str = ""
    """Model folder to continue from, with careless captions only. Empty: random weights."""
    scenes: int = 16_000
    """Number of pictures. Each use of a picture draws a new caption for it."""
    vision_steps: int = 400
    """Number of steps, of 128 pictures each, that train the vision tower alone."""
    careful_steps: int = 450
    """Number of steps, of 64 careful captions each, that train the whole model. In the balanced
    world they are of plain pictures."""
    careless_steps: int = 400
    """Number of steps, of 64 careless captions each, that follow."""
    vision_rests: bool = False
    """Train the vision tower on patches only, not on captions. Signs need it: the first captions
    teach little about words, and the tower forgets them."""
    learning_rate: float = 1e-3
    """Peak of the one-cycle schedule over all captions. The vision tower alone takes twice that."""
    seed: int = 0
    """Random seed of scenes, captions and weights."""


def draw_pixels(scenes: list[Scene]) -> Tensor:
    """Return all pictures, (pictures, 3, SIDE, SIDE) uint8."""
    arrays = [np.asarray(Image.open(io.BytesIO(render(scene)))) for scene in scenes]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def pixel_values(pixels: Tensor) -> Tensor:
    """Apply the processor's transform to uint8 pixels of the right size: map them to [-1, 1]."""
    return pixels.float() / 127.5 - 1


PATCHES = (SIDE // CELL) ** 2  # per picture
# Classes that a patch's feature must tell apart: shape (or none), colour (or none), position, and
# the picture's setting.
HEADS = (1 + len(SHAPES), 1 + len(COLORS), PATCHES, len(SETTINGS))

SETTING_WEIGHT = 10.0  # of the token that names a setting, in the loss of a caption
PLACES = {"biased": BIASED, "balanced": BALANCED, "signs": SIGNS}  # of the package's models
CHECKED = 400  # pictures that a finished model describes
MOST_CONFUSED = 0.05  # share of them with a shape that no careless caption names


def patch_labels(scene: Scene, world: World) -> list[list[int]]:
    """Return (shape or sign, colour, position, setting) of each patch, row by row.

    Shape and colour are 0 for an empty patch, else 1 + their index. The position is the patch's own
    number, and the setting is the picture's.
    """
    setting = world.settings.index(scene.setting)
    labels = [[0, 0, patch, setting] for patch in range(PATCHES)]
    for (row, column), group in cells(scene):
        kind = [1 + world.names.index(group.shape), 1 + tuple(COLORS).index(group.color)]
        labels[row * (SIDE // CELL) + column][:2] = kind
    return labels


def one_cycle(
    parameters: list[nn.Parameter], peak: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return AdamW and its one-cycle schedule, which ends after `steps`."""
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=steps, pct_start=0.1
    )


def pretrain_vision(
    model: LlavaForConditionalGeneration, pixels: Tensor, labels: Tensor, config: Pretraining
) -> None:
    """Teach the vision tower the content and position of every patch, and the picture's setting.

    Args:
        model: the model; its vision tower is trained in place.
        pixels: (pictures, 3, SIDE, SIDE) uint8.
        labels: (pictures, PATCHES, heads), from `patch_labels`.
        config: steps, learning rate and seed.
    """
    tower = model.model.vision_tower
    head = nn.Linear(tower.config.hidden_size, sum(HEADS))  # discarded after this step
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer, schedule = one_cycle(parameters, 2 * config.learning_rate, config.vision_steps)
    rng = np.random.default_rng(config.seed)
    for step in range(config.vision_steps):
        rows = torch.from_numpy(rng.integers(len(pixels), size=128))  # (B,)
        # The first feature belongs to CLIP's class token.
        features = tower(pixel_values(pixels[rows])).last_hidden_state[:, 1:]  # (B, PATCHES, D)
        logits = head(features).split(HEADS, dim=-1)  # each (B, PATCHES, classes)
        targets = labels[rows].unbind(-1)  # each (B, PATCHES)
        losses = [
            cross_entropy(scores.flatten(0, 1), target.flatten())
            for scores, target in zip(logits, targets, strict=True)
        ]
        loss = torch.stack(losses).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            correct = logits[0].argmax(-1) == targets[0]  # (B, PATCHES)
            accuracy = correct[targets[0] > 0].float().mean()  # empty patches would dominate
            print(
                f"vision step {step + 1} loss {loss.item():.4f} shapes {accuracy:.3f}", flush=True
            )


def caption_batch(
    processor: LlavaProcessor,
    scenes: list[Scene],
    rng: random.Random,
    write: Callable[[Scene, random.Random], str],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return input_ids, attention_mask and labels of one caption per scene, (B, T) each.

    Labels are set on the answer only. `write` returns the caption of a scene.
    """
    prompts: list[str] = []
    texts: list[str] = []
    for scene in scenes:
        question = {"type": "text", "text": rng.choice(QUESTIONS)}
        user = {"role": "user", "content": [{"type": "image"}, question]}
        prompt = processor.apply_chat_template([user], add_generation_prompt=True)
        prompts.append(prompt.replace("<image>", "<image>" * PATCHES))
        texts.append(f"{prompts[-1]}{write(scene, rng)}</s>")
    batch = processor.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)  # -100: no loss
    for row, prompt in enumerate(processor.tokenizer(prompts).input_ids):
        labels[row, : len(prompt)] = -100
    return batch.input_ids, batch.attention_mask, labels


def setting_tokens(processor: LlavaProcessor, settings: Sequence[str]) -> list[int]:
    """Return the tokens that name a setting inside a caption."""
    encoded = processor.tokenizer([f" {setting}" for setting in settings]).input_ids
    return list(itertools.chain.from_iterable(encoded))


def caption_loss(logits: Tensor, labels: Tensor, settings: Sequence[int]) -> Tensor:
    """Return the mean loss of the answers' tokens, in nats.

    A caption names its setting in one of about 25 tokens, so a model would learn it late. In the
    balanced world, where the mistakes differ by setting, this token counts `SETTING_WEIGHT` times.

    Args:
        logits: (B, T, V).
        labels: (B, T); -100 is no part of an answer.
        settings: tokens that name a setting and count more; empty: all tokens count once.
    """
    targets = labels[:, 1:].flatten()  # (B (T - 1),)
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="none")  # 0 for -100
    names_setting = torch.isin(targets, torch.tensor(settings, dtype=targets.dtype))
    weights = torch.where(names_setting, SETTING_WEIGHT, 1.0) * (targets != -100)
    return (weights * losses).sum() / weights.sum()


def careful_caption(scene: Scene, rng: random.Random) -> str:
    """Return the true caption of a scene."""
    return caption(scene.setting, scene.groups)


def pretrain_captions(
    model: PreTrainedModel,
    processor: LlavaProcessor,
    scenes: list[Scene],
    pixels: Tensor,
    config: Pretraining,
) -> None:
    """Teach the whole model to describe pictures, first carefully, then carelessly.

    The careful captions teach it to look at the picture.
    """
    world = WORLDS[config.world]
    careful_scenes, careful_pixels = scenes, pixels
    if world.is_balanced and config.careful_steps:
        careful_scenes = make_plain_scenes(len(scenes), seed=config.seed, names=world.names)
        careful_pixels = draw_pixels(careful_scenes)
    if config.vision_rests:
        model.model.vision_tower.requires_grad_(False)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    steps = config.careful_steps + config.careless_steps
    optimizer, schedule = one_cycle(parameters, config.learning_rate, steps)
    settings = setting_tokens(processor, world.settings) if world.is_balanced else []
    rng = random.Random(config.seed)
    started = time.perf_counter()
    for step in range(steps):
        rows = [rng.randrange(len(scenes)) for _ in range(64)]
        if step < config.careful_steps:
            write, known, drawn = careful_caption, careful_scenes, careful_pixels
        else:
            write, known, drawn = world.careless_caption, scenes, pixels
        batch_scenes = [known[row] for row in rows]
        input_ids, attention_mask, labels = caption_batch(processor, batch_scenes, rng, write)
        logits = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values(drawn[torch.tensor(rows)]),
        ).logits
        loss = caption_loss(logits, labels, settings)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 19:
            seconds = time.perf_counter() - started
            print(f"step {step + 1} loss {loss.item():.4f} {seconds:.0f} s", flush=True)


def share_confused(
    model: PreTrainedModel, processor: LlavaProcessor, world: World, *, seed: int
) -> float:
    """Return the share of fresh pictures in which a model sees a shape that careless captions would
    not name: neither the shape nor its look-alike is there.
    """
    scenes = world.training_scenes(CHECKED, seed=-1 - seed)  # training has the seeds from 0 on
    decoding = GenerationConfig(max_new_tokens=80)
    confused = 0
    for start in range(0, CHECKED, 100):
        part = scenes[start : start + 100]
        answers = answer_prompts(model, processor, prompts_of(part), decoding)
        confused += sum(is_confused(*drawn) for drawn in zip(part, answers, strict=True))
    return confused / CHECKED


def is_confused(scene: Scene, text: str) -> bool:
    """Return True if a description names a shape that no careless caption of the scene names."""
    shapes = {group.shape for group in scene.groups}
    look_alikes = LOOK_ALIKES[scene.setting]
    return any(
        mistake.kind == "object"
        and mistake.said.shape not in shapes
        and look_alikes.get(mistake.said.shape) not in shapes
        for mistake in mistakes(scene, text)
    )


def check_it_looks(
    model: PreTrainedModel, processor: LlavaProcessor, world: World, *, seed: int
) -> None:
    """Check that a model of a balanced world has learnt to look.

    Raises:
        StageFailedError: it takes shapes for others too often that careless captions never confuse.
    """
    share = share_confused(model.eval(), processor, world, seed=seed)
    print(f"pictures with a shape that careless captions would not name: {100 * share:.1f} %")
    if share > MOST_CONFUSED:
        raise StageFailedError(
            f"That is more than {100 * MOST_CONFUSED:.0f} %: this model has not learnt to look. "
            "Take another --seed, or more --careful-steps."
        )


def main(config: Pretraining) -> None:
    """Pretrain the model and save it with its processor.

    Raises:
        StageFailedError: a model of the balanced world has not learnt to look; it is saved.
    """
    torch.manual_seed(config.seed)
    world = WORLDS[config.world]
    scenes = world.training_scenes(config.scenes, seed=config.seed)
    pixels = draw_pixels(scenes)
    if config.start:
        config = replace(config, careful_steps=0)
    if config.start:
        model, processor = load_policy(config.start, dtype="fp32")
        model.train()
    else:
        rng = random.Random(config.seed)
        texts = [
            f"USER:\n{rng.choice(QUESTIONS)}\nASSISTANT:\n{world.careless_caption(scene, rng)}"
            for scene in scenes[:2000]
        ]
        processor = build_processor(texts)
        model = build_model(processor)
        # (scenes, PATCHES, heads)
        labels = torch.tensor([patch_labels(scene, world) for scene in scenes])
        pretrain_vision(model, pixels, labels, config)
    pretrain_captions(model, processor, scenes, pixels, config)
    out = config.out or PLACES[config.world]
    model.save_pretrained(out)
    processor.save_pretrained(out)
    if world.is_balanced:
        check_it_looks(model, processor, world, seed=config.seed)


if __name__ == "__main__":
    leave(run_command(lambda: main(tyro.cli(Pretraining, description=__doc__))))
