"""JOB: answers of a policy to questions about images.

Prompts are cut into shards of `scale.rows`. Actors that hold the model answer a shard in padded
batches and write it as a part file. Sampling draws every prompt's random numbers from the seed and
the prompt's id, so its answer does not depend on the shard or the batch that it is in.
"""

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from rlhfv_ray.config import GenerationConfig, ModelConfig, ScaleConfig, changed_settings
from rlhfv_ray.data import decode_image
from rlhfv_ray.data.templates import answer_ends, answer_of, answering_prompt, process
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.inference.parts import begun_scale, map_parts, read_parts, write_part
from rlhfv_ray.models import generator, load_model
from rlhfv_ray.records import Answer, Prompt
from rlhfv_ray.storage.folder import display_path
from rlhfv_ray.storage.stages import Stage

ANSWERS = pa.schema({"id": pa.string(), "question": pa.string(), "text": pa.string()})


def generate_answers(
    model: ModelConfig,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    generation: GenerationConfig,
    scale: ScaleConfig,
    title: str,
) -> list[Answer]:
    """Answer prompts; existing parts are kept.

    Returns:
        One answer per prompt, in their order.

    Raises:
        StageFailedError: the folder holds answers to other prompts.
    """
    scale = begun_scale(folder, scale)
    starts = range(0, len(prompts), scale.rows)
    map_parts(
        [prompts[start : start + scale.rows] for start in starts],
        folder,
        actor=functools.partial(
            GenerationActor, model=model, generation=generation, batch=scale.inference_batch
        ),
        scale=scale,
        title=title,
    )
    answers = read_answers(folder)
    if [answer.id for answer in answers] != [prompt.id for prompt in prompts]:
        raise StageFailedError(
            f"{display_path(folder)} holds answers to other prompts. Delete it, and run the same "
            "command again."
        )
    return answers


def write_answers(answers: Sequence[Answer], folder: Path) -> None:
    """Write existing answers as one part that `read_answers` reads."""
    rows = [
        {"id": answer.id, "question": answer.question, "text": answer.text} for answer in answers
    ]
    write_part(pa.Table.from_pylist(rows, schema=ANSWERS), folder, 0)


def read_answers(folder: Path) -> list[Answer]:
    """Return the answers of a finished folder, in the prompts' order."""
    return [Answer(**row) for row in read_parts(folder).to_pylist()]


class GenerationActor:
    """Holds a policy, and answers the prompts of a shard."""

    def __init__(self, model: ModelConfig, generation: GenerationConfig, batch: int) -> None:
        self.model, self.processor = load_model(model)
        self.generation, self.batch = generation, batch

    def __call__(self, rows: Sequence[Prompt]) -> pa.Table:
        """Return one part's answers, in the schema `ANSWERS`."""
        texts: list[str] = []
        for start in range(0, len(rows), self.batch):
            batch = rows[start : start + self.batch]
            texts += answer_prompts(self.model, self.processor, batch, self.generation)
        columns = {
            "id": [row.id for row in rows],
            "question": [row.question for row in rows],
            "text": texts,
        }
        return pa.Table.from_pydict(columns, schema=ANSWERS)


@torch.inference_mode()
def answer_prompts(
    model: Any, processor: Any, prompts: Sequence[Prompt], generation: GenerationConfig
) -> list[str]:
    """Answer a few prompts in one batch, padded on the left."""
    inputs: Any = process(
        processor,
        [decode_image(prompt.image) for prompt in prompts],
        [answering_prompt(processor, prompt.question) for prompt in prompts],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ).to(model.device, model.dtype)
    # (P, prompt + answer) token ids, the prompts padded on the left
    tokens = generator(model)(
        **inputs,
        **_decoding(processor, generation),
        logits_processor=_sampling(prompts, generation),
    )
    answers = tokens[:, inputs["input_ids"].shape[1] :]
    texts = processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [answer_of(processor, text, stop=generation.stop) for text in texts]


def _decoding(processor: Any, generation: GenerationConfig) -> dict[str, Any]:
    tokenizer = processor.tokenizer
    stop = [*generation.stop, *answer_ends(processor)]
    settings: dict[str, Any] = {
        "max_new_tokens": generation.max_new_tokens,
        "num_beams": generation.beams,
        "do_sample": False,  # `SampledToken` leaves only the token that it drew
        "repetition_penalty": generation.repetition_penalty,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if stop:
        settings |= {"stop_strings": stop, "tokenizer": tokenizer}
    return settings


def _sampling(prompts: Sequence[Prompt], generation: GenerationConfig) -> LogitsProcessorList:
    """Return what turns scores into sampled tokens; nothing for greedy decoding."""
    if generation.temperature == 0:
        return LogitsProcessorList()
    processors = LogitsProcessorList([TemperatureLogitsWarper(generation.temperature)])
    if generation.top_p < 1:
        processors.append(TopPLogitsWarper(generation.top_p))
    streams = [random.Random(f"{generation.seed} {prompt.id}") for prompt in prompts]
    processors.append(SampledToken(streams))
    return processors


class SampledToken(LogitsProcessor):
    """Samples every row's token with the row's own random numbers.

    transformers samples a whole batch from one generator, so that a row's tokens depend on its
    neighbours.

    Args:
        streams: of random numbers, one for each row of the batch.
    """

    def __init__(self, streams: Sequence[random.Random]) -> None:
        self.streams = streams

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores in which only the sampled token is possible.

        Args:
            input_ids: (P, T) tokens so far; not used.
            scores: (P, V) logits.
        """
        bounds = scores.double().softmax(-1).cumsum(-1)  # (P, V) of each token's interval in (0, 1]
        draws = bounds.new_tensor([[stream.random()] for stream in self.streams])  # (P, 1)
        tokens = torch.searchsorted(bounds, draws * bounds[:, -1:], right=True)  # (P, 1)
        tokens = tokens.clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)


def decoding_inputs(generation: GenerationConfig) -> dict[str, Any]:
    """Return everything in decoding that answers depend on."""
    sampled = {"random_numbers": "per prompt"} if generation.temperature > 0 else {}
    return {**changed_settings(generation), **sampled}


def answers_stage(
    model: ModelConfig,
    prompts: Callable[[], Sequence[Prompt]],
    inputs: Mapping[str, Any],
    *,
    generation: GenerationConfig,
    scale: ScaleConfig,
    title: str,
) -> Stage:
    """Return the stage of a model's answers to prompts; `inputs` identify both."""

    def run(folder: Path, _: str) -> None:
        generate_answers(model, prompts(), folder, generation=generation, scale=scale, title=title)

    settings = {"decoding": decoding_inputs(generation), "dtype": model.dtype}
    return Stage("answers", {**inputs, **settings}, run, title=title)
