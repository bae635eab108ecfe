"""Answers from elsewhere: a file in one of the release's formats, or a model behind an endpoint."""

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from rich.console import Console

from eval.inputs.json_rows import JsonRow, index_by, read_json_rows
from rlhfv_ray.config import EndpointConfig, GenerationConfig
from rlhfv_ray.data import decode_image
from rlhfv_ray.endpoint.records import Request
from rlhfv_ray.endpoint.run import ask
from rlhfv_ray.errors import ConfigError, DataError, JudgeError
from rlhfv_ray.records import Answer, Prompt

IDS = ("id", "question_id", "image_id")
TEXTS = ("text", "answer", "model_answer")
QUESTIONS = ("prompt", "question")
SENT_AS_THEY_ARE = ("JPEG", "PNG", "WEBP", "GIF")  # image formats that servers accept

log = logging.getLogger(__name__)


def read_answer_file(path: str, prompts: Sequence[Prompt]) -> list[Answer]:
    """Read answers to a benchmark's prompts.

    Formats: JSON lines `{question_id, prompt, text}` or `{image_id, question, answer}`, and
    MMHal-Bench's list with `model_answer`. Rows are matched by id, in any order.

    Raises:
        DataError: an answer is missing, superfluous or there twice, or the ids do not match.
    """
    rows = read_json_rows(path, (), what="answers")
    text_field = _text_field(rows, path)
    prompt_ids: dict[str, str] = {}
    for prompt in prompts:
        prompt_ids[prompt.id] = prompt.id
        prompt_ids[_short_id(prompt.id)] = prompt.id
    id_field = _id_field(rows, prompts, prompt_ids, path)
    indexed = index_by(rows, id_field, what=f"answers = {path!r}")
    row_of = {prompt_ids[_short_id(row_id)]: row for row_id, row in indexed.items()}
    missing = [prompt.id for prompt in prompts if prompt.id not in row_of]
    if missing or len(row_of) != len(rows):
        raise DataError(
            f"answers = {path!r}: {len(rows)} rows for {len(prompts)} prompts; {len(missing)} "
            f"prompts are without an answer ({', '.join(missing[:5])})."
        )
    _compare_questions(prompts, row_of, path)
    return [
        Answer(prompt.id, prompt.question, str(row_of[prompt.id][text_field])) for prompt in prompts
    ]


def _text_field(rows: Sequence[JsonRow], path: str) -> str:
    """Return the first field of `TEXTS` that holds a text in every row."""
    for name in TEXTS:
        if all(isinstance(row, dict) and isinstance(row.get(name), str) for row in rows):
            return name
    raise DataError(
        f"answers = {path!r}: no field holds a text in every row; looked for {', '.join(TEXTS)}."
    )


def _id_field(
    rows: Sequence[JsonRow], prompts: Sequence[Prompt], prompt_ids: Mapping[str, str], path: str
) -> str:
    """Return the first field of `IDS` whose values all are ids of the benchmark."""
    for name in IDS:
        if all(_short_id(row.get(name, "")) in prompt_ids for row in rows):
            return name
    example = {name: rows[0][name] for name in IDS if name in rows[0]}
    raise DataError(
        f"answers = {path!r}: its ids are not the benchmark's. It has rows such as {example}, the "
        f"benchmark has {', '.join(prompt.id for prompt in prompts[:3])}, ... Ids are read from "
        f"the fields {', '.join(IDS)}."
    )


def _short_id(name: object) -> str:
    """Return an id without folder, `.jpg`, COCO's prefix and leading zeros.

    Example:
        >>> _short_id("val2014/COCO_val2014_000000000042.jpg"), _short_id("0007"), _short_id("a_1")
        ('42', '7', 'a_1')
    """
    short = str(name).rsplit("/", 1)[-1].removesuffix(".jpg")
    if short.startswith("COCO_"):
        short = short.rsplit("_", 1)[-1]
    return short.lstrip("0") or "0"


def _compare_questions(prompts: Sequence[Prompt], row_of: Mapping[str, JsonRow], path: str) -> None:
    """Warn if the file's answers are to other questions than the benchmark's."""
    differing: list[tuple[str, str]] = []  # (id, question in the file)
    for prompt in prompts:
        row = row_of[prompt.id]
        question = next((str(row[field]) for field in QUESTIONS if field in row), "")
        if question and prompt.question.strip() not in question:
            differing.append((prompt.id, question))
    if differing:
        log.warning(
            "%s: %d of %d answers are to another question than the benchmark asks, the first "
            "%s: %r",
            path,
            len(differing),
            len(prompts),
            *differing[0],
        )


def endpoint_answers(
    prompts: Sequence[Prompt],
    endpoint: EndpointConfig,
    generation: GenerationConfig,
    cache: Path,
    *,
    console: Console,
) -> list[Answer]:
    """Have a model behind an endpoint answer prompts.

    A refusal counts as an answer, and so does a text that was cut off at `max_new_tokens`.

    Raises:
        ConfigError: the decoding has settings that the protocol lacks.
        JudgeError: answers are missing, or the endpoint cannot be used.
    """
    check_decoding(generation)
    requests = [
        Request(prompt.id, prompt.question, image=data_uri(prompt.image), whole=False)
        for prompt in prompts
    ]
    settings = replace(
        endpoint, temperature=generation.temperature, max_tokens=generation.max_new_tokens
    )
    replies, _ = ask(
        requests, settings, cache, readable=said_something, title="Answers, api", console=console
    )
    missing: list[str] = []
    answers: list[Answer] = []
    for prompt, reply in zip(prompts, replies, strict=True):
        if not reply.received:
            missing.append(f"{prompt.id}: {reply.status}")
        answers.append(Answer(prompt.id, prompt.question, reply.text.strip()))
    if missing:
        raise JudgeError(
            f"{endpoint.model} left {len(missing)} of {len(prompts)} prompts unanswered "
            f"({', '.join(missing[:5])}); the same command asks again for these alone."
        )
    return answers


def check_decoding(generation: GenerationConfig) -> None:
    """Check that the protocol knows all decoding settings.

    Raises:
        ConfigError: a setting other than `max_new_tokens` and `temperature` was changed.
    """
    supported = GenerationConfig(
        max_new_tokens=generation.max_new_tokens, temperature=generation.temperature
    )
    if generation != supported:
        raise ConfigError(
            "An endpoint decodes by generation.max_new_tokens and generation.temperature alone, "
            "and by endpoint.seed if the server knows it: leave the other generation fields, and "
            "--decoding, as they are."
        )


def said_something(text: str) -> bool:
    """Return True if a reply is an answer: it is not blank."""
    return bool(text.strip())


def data_uri(image: bytes) -> str:
    """Return an encoded image as a data URI; formats that servers do not accept become PNG.

    Raises:
        DataError: the image is broken or too large.
    """
    decoded = decode_image(image)
    format_name = Image.open(io.BytesIO(image)).format
    if format_name not in SENT_AS_THEY_ARE:
        buffer = io.BytesIO()
        decoded.save(buffer, format="PNG")
        image = buffer.getvalue()
        format_name = "PNG"
    return f"data:{Image.MIME[format_name]};base64,{base64.b64encode(image).decode()}"
