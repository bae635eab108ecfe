"""The report of the doctor on one model: its self-check, its parts, and the memory of a step."""

import io
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from rlhfv_ray.config import DataConfig, DDPOConfig, ModelConfig
from rlhfv_ray.data.encoding import encode_pair
from rlhfv_ray.data.images import decode_image
from rlhfv_ray.data.templates import end_tokens, ends_answers
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models import (
    check_image_tokens,
    load_model,
    planned_counts,
    predict_memory,
    step_size,
)
from rlhfv_ray.models.self_check import Sample, choose_samples, self_check
from rlhfv_ray.records import PreferencePair
from rlhfv_ray.shapes.scenes import make_scenes, render

QUESTION = "Describe the picture."
ANSWERS = (
    ("A red circle on a beach.", "A red circle and a blue square on a beach."),
    (
        "There is a street with a green star at the top, and nothing else.",
        "There is a street with a green star at the top, a red ring, and a dog beside it.",
    ),
)
SIZES = ((64, 64), (160, 96))  # of the drawn pictures: width and height, pixels


def report_model(config: ModelConfig, console: Console) -> None:
    """Check a model by itself, on drawn pictures, and print the outcome.

    Args:
        config: its path and how it is loaded.
        console: that is printed to.

    Raises:
        ConfigError: the model cannot be loaded, or is not understood.
    """
    if not console.is_terminal:
        disable_progress_bar()  # transformers draws one in files and pipes, too
    check_image_tokens(config)
    model, processor = load_model(config)
    console.print(f"{type(model).__name__}, {type(processor).__name__}", highlight=False)
    samples = made_samples(processor)
    outcome = self_check(model, processor, samples, layout=config.layout)
    console.print(f"  {outcome}")
    if not ends_answers(processor):
        end, *_ = end_tokens(processor)
        console.print(f"  the chat template does not end answers: {end} is added and learnt")
    else:
        console.print(f"  answers end with one of {', '.join(end_tokens(processor))}")
    del model
    for part, (everything, trained) in planned_counts(config).items():
        line = f"  {part:<10} {everything:>15,} parameters, {trained:>15,} trained"
        console.print(line, highlight=False)
    config = replace(config, layout=outcome.layout)
    memory = memory_line(config, processor, samples, split_head=outcome.split_head)
    console.print(f"  {memory}", highlight=False)


def memory_line(
    config: ModelConfig, processor: object, samples: Sequence[Sample], *, split_head: bool
) -> str:
    """Return the memory of a training step on these pairs, or why it is not known."""
    experiment = DDPOConfig(model=config)
    try:
        pairs = [sample.pair for sample in samples]
        step = step_size(pairs, processor, experiment, split_head=split_head)
        return f"a step of {len(samples)} such pairs takes {predict_memory(experiment, step)}"
    except (RuntimeError, ValueError, TypeError, AttributeError, ConfigError) as error:
        return f"memory of a step: not known ({type(error).__name__}: {error})".splitlines()[0]


def made_samples(processor: object) -> list[Sample]:
    """Return two pairs about drawn pictures of two sizes.

    Some families make other tokens of a picture beside another one of another size.
    """
    data = DataConfig()
    samples = []
    for scene, size, (chosen, rejected) in zip(make_scenes(2, seed=0), SIZES, ANSWERS, strict=True):
        picture = io.BytesIO()
        decode_image(render(scene)).resize(size).save(picture, "PNG")
        pair = PreferencePair(f"drawn:{scene.id}", picture.getvalue(), QUESTION, chosen, rejected)
        encoded = encode_pair(
            pair, processor, min_match=data.min_match, max_length=1_000_000, spans=False
        )
        samples.append(Sample(QUESTION, encoded))
    return choose_samples(samples)
