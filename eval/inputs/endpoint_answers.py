"""Answers of a model behind an endpoint."""

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from rich.console import Console

from rlhfv_ray.config import EndpointConfig, GenerationConfig
from rlhfv_ray.data import decode_image
from rlhfv_ray.endpoint.records import Request
from rlhfv_ray.endpoint.run import ask
from rlhfv_ray.errors import ConfigError, JudgeError
from rlhfv_ray.records import Answer, Prompt

SENT_AS_THEY_ARE = ("JPEG", "PNG", "WEBP", "GIF")  # image formats that servers accept


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
    title = f"Answers, {endpoint.model}"
    replies, _ = ask(
        requests, settings, cache, readable=said_something, title=title, console=console
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
