"""Answers that are not generated here: from a file in one of the release's formats, or from a model behind an endpoint."""

import base64
import io
import logging
from collections.abc import Sequence
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
SENT_AS_THEY_ARE = ("JPEG", "PNG", "WEBP", "GIF")

log = logging.getLogger(__name__)


def read_answer_file(path: str, prompts: Sequence[Prompt]) -> list[Answer]:
    """Read answers to a benchmark's prompts.

    Formats: JSON lines `{question_id, prompt, text}` or `{image_id, question, answer}`, and MMHal-Bench's list with `model_answer`. Rows are
    matched by id, in any order.

    Raises:
        DataError: an answer is missing, there is one too many or one twice, or the ids are others.
    """
    rows = read_json_rows(path, (), what="answers")
    text = _column(rows, TEXTS, path)
    wanted = {name: prompt for prompt in prompts for name in (prompt.id, _number(prompt.id))}
    column = next(
        (name for name in IDS if all(_number(row.get(name, "")) in wanted for row in rows)), None
    )
    if column is None:
        shown = {name: rows[0][name] for name in IDS if name in rows[0]}
        raise DataError(
            f"answers = {path!r}: its ids are not the benchmark's. It has rows such as {shown}, the benchmark has "
            f"{', '.join(prompt.id for prompt in prompts[:3])}, ... Ids are looked for in the fields {', '.join(IDS)}."
        )
    found = {
        wanted[_number(name)].id: row
        for name, row in index_by(rows, column, what=f"answers = {path!r}").items()
    }
    missing = [prompt.id for prompt in prompts if prompt.id not in found]
    if missing or len(found) != len(rows):
        raise DataError(
            f"answers = {path!r}: {len(rows)} rows for {len(prompts)} prompts; {len(missing)} prompts are without an answer "
            f"({', '.join(missing[:5])})."
        )
    _compare_questions(prompts, found, path)
    return [Answer(prompt.id, prompt.question, str(found[prompt.id][text])) for prompt in prompts]


def _column(rows: Sequence[JsonRow], names: Sequence[str], path: str) -> str:
    for name in names:
        if all(isinstance(row, dict) and isinstance(row.get(name), str) for row in rows):
            return name
    raise DataError(
        f"answers = {path!r}: no field holds a text in every row; looked for {', '.join(names)}."
    )


def _number(name: object) -> str:
    """An id without what COCO's file names add to it."""
    bare = str(name).rsplit("/", 1)[-1].removesuffix(".jpg")
    return (
        bare.rsplit("_", 1)[-1].lstrip("0") or "0"
        if bare.startswith("COCO_")
        else bare.lstrip("0") or "0"
    )


def _compare_questions(prompts: Sequence[Prompt], found: dict[str, JsonRow], path: str) -> None:
    asked = {
        name: next((str(row[field]) for field in QUESTIONS if field in row), "")
        for name, row in found.items()
    }
    other = [p.id for p in prompts if asked[p.id] and p.question.strip() not in asked[p.id]]
    if other:
        log.warning(
            "%s: %d of %d answers are to another question than the benchmark asks, the first %s: %r",
            *(path, len(other), len(prompts), other[0], asked[other[0]]),
        )


def endpoint_answers(
    prompts: Sequence[Prompt],
    endpoint: EndpointConfig,
    generation: GenerationConfig,
    cache: Path,
    *,
    console: Console,
) -> list[Answer]:
    """Have a model behind an endpoint answer; a refusal is its answer, and so is what was cut at `max_new_tokens`.

    Raises:
        ConfigError: decoding that the protocol does not know.
        JudgeError: answers are missing, or the endpoint cannot be used.
    """
    check_decoding(generation)
    asked = [
        Request(prompt.id, prompt.question, image=data_uri(prompt.image), whole=False)
        for prompt in prompts
    ]
    settings = replace(
        endpoint, temperature=generation.temperature, max_tokens=generation.max_new_tokens
    )
    replies, _ = ask(
        asked, settings, cache, readable=said_something, title="Answers, api", console=console
    )
    without = [request.id for request, reply in zip(asked, replies, strict=True) if not reply.kept]
    if without:
        raise JudgeError(
            f"{endpoint.model} left {len(without)} of {len(prompts)} prompts unanswered ({', '.join(without[:5])}); the same command asks "
            "again for these alone."
        )
    return [
        Answer(p.id, p.question, reply.text.strip())
        for p, reply in zip(prompts, replies, strict=True)
    ]


def check_decoding(generation: GenerationConfig) -> None:
    """Refuse what cannot be asked of an endpoint."""
    known = GenerationConfig(
        max_new_tokens=generation.max_new_tokens, temperature=generation.temperature
    )
    if generation != known:
        raise ConfigError(
            "An endpoint decodes by generation.max_new_tokens and generation.temperature alone (endpoint.seed, where the server knows it): "
            "leave the other generation fields, and --decoding, as they are."
        )


def said_something(text: str) -> bool:
    """Whether a reply is an answer."""
    return bool(text.strip())


def data_uri(image: bytes) -> str:
    """An encoded image as the protocol carries it; of a kind that servers do not know, as PNG."""
    decode_image(image)  # broken and oversized ones are refused here
    kind = Image.open(io.BytesIO(image)).format
    if kind not in SENT_AS_THEY_ARE:
        buffer = io.BytesIO()
        decode_image(image).save(buffer, format="PNG")
        image, kind = buffer.getvalue(), "PNG"
    return f"data:{Image.MIME[kind]};base64,{base64.b64encode(image).decode()}"
