"""JOB: answers of a policy to questions about images.

Prompts are cut into shards of `scale.rows`, or of fewer, so that all actors have work. Pictures go
into one file of the folder, each once, and shards say where. Actors that hold the model answer a
shard in padded batches, prepare the next batch meanwhile, and write a part file. Sampling draws
every prompt's random numbers from the seed and the prompt's id, so its answer does not depend on
the shard or the batch that it is in.
"""

import copy
import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from rlhfv_ray.inference.pictures import PICTURES, StoredPrompt, load_prompts, store_pictures
from rlhfv_ray.inference.prefetch import prefetched
from rlhfv_ray.models import generator, load_model
from rlhfv_ray.records import Answer, Prompt
from rlhfv_ray.storage.folder import discard, display_path, fetch
from rlhfv_ray.storage.stages import Stage

PART_COST = 0.1  # batches; a rough figure, which keeps the parts of many prompts large
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
    scale = begun_scale(folder, replace(scale, rows=part_rows(len(prompts), scale)))
    pictures = folder / PICTURES
    stored = store_pictures(prompts, pictures)
    starts = range(0, len(prompts), scale.rows)
    map_parts(
        [stored[start : start + scale.rows] for start in starts],
        folder,
        actor=functools.partial(
            GenerationActor,
            model=model,
            generation=generation,
            batch=scale.inference_batch,
            pictures=pictures,
        ),
        scale=scale,
        title=title,
    )
    discard(pictures)
    answers = read_answers(folder)
    if [answer.id for answer in answers] != [prompt.id for prompt in prompts]:
        raise StageFailedError(
            f"{display_path(folder)} holds answers to other prompts. Delete it, and run the same "
            "command again."
        )
    return answers


def part_rows(prompts: int, scale: ScaleConfig) -> int:
    """Return the number of prompts of a part: at most `scale.rows`, in whole batches.

    Of several actors, each has a part where there are batches enough, and the one with the most
    work has as little as can be. One actor takes `scale.rows`.

    Example:
        Eight actors answer 300 prompts, 19 batches of 16. Five parts of 64 would leave three idle.

        >>> part_rows(300, ScaleConfig(actors=8, rows=64, inference_batch=16))
        16
    """
    if scale.actors == 1:
        return scale.rows
    batches = -(-prompts // scale.inference_batch)  # rounded up

    def cost(size: int) -> float:
        """Return the batches of the busiest actor if parts have some each, and its parts' own."""
        parts = -(-batches // size)
        turns = -(-parts // scale.actors)
        return turns * (size + PART_COST)

    largest = min(scale.rows // scale.inference_batch, batches // scale.actors)
    return scale.inference_batch * min(range(1, max(1, largest) + 1), key=cost)


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
    """Holds a policy, and answers the prompts of a shard.

    Args:
        model: the policy.
        generation: how answers are decoded.
        batch: prompts of a forward pass.
        pictures: file of the images.
    """

    def __init__(
        self, model: ModelConfig, generation: GenerationConfig, batch: int, pictures: Path
    ) -> None:
        self.model, self.processor = load_model(model)
        # Of the thread that prepares: two threads must not use one tokenizer.
        self.preparing = copy.deepcopy(self.processor)
        self.generation, self.batch, self.pictures = generation, batch, pictures

    def __call__(self, rows: Sequence[StoredPrompt]) -> pa.Table:
        """Return one part's answers, in the schema `ANSWERS`."""
        fetch(self.pictures)
        starts = range(0, len(rows), self.batch)
        batches = (rows[start : start + self.batch] for start in starts)
        texts: list[str] = []
        for prompts, inputs in prefetched(map(self.prepared, batches)):
            texts += answer_inputs(self.model, self.processor, prompts, inputs, self.generation)
        columns = {
            "id": [row.id for row in rows],
            "question": [row.question for row in rows],
            "text": texts,
        }
        return pa.Table.from_pydict(columns, schema=ANSWERS)

    def prepared(self, rows: Sequence[StoredPrompt]) -> tuple[list[Prompt], Any]:
        """Return a batch's prompts, and the model's inputs."""
        prompts = load_prompts(rows, self.pictures)
        return prompts, prompt_inputs(self.preparing, prompts)


def answer_prompts(
    model: Any, processor: Any, prompts: Sequence[Prompt], generation: GenerationConfig
) -> list[str]:
    """Answer a few prompts in one batch, padded on the left."""
    return answer_inputs(model, processor, prompts, prompt_inputs(processor, prompts), generation)


def prompt_inputs(processor: Any, prompts: Sequence[Prompt]) -> Any:
    """Return a model's inputs for a few prompts, padded on the left, in CPU memory."""
    return process(
        processor,
        [decode_image(prompt.image) for prompt in prompts],
        [answering_prompt(processor, prompt.question) for prompt in prompts],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


@torch.inference_mode()
def answer_inputs(
    model: Any,
    processor: Any,
    prompts: Sequence[Prompt],
    inputs: Any,
    generation: GenerationConfig,
) -> list[str]:
    """Answer the prompts that inputs were made of."""
    inputs = inputs.to(model.device, model.dtype)
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
