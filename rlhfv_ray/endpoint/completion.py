"""The body of a chat completion, checked against its shape once and read as a reply."""

from typing import Annotated

import msgspec

from rlhfv_ray.endpoint.records import Reply, Status, Usage

Count = Annotated[int, msgspec.Meta(ge=0, le=10**9)]  # tokens; no model reads or writes more


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    model: str | None = None
    system_fingerprint: str | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")  # read apart: a verdict counts without it


class _Usage(msgspec.Struct):
    prompt_tokens: Count
    completion_tokens: Count


def read_completion(body: bytes) -> tuple[Reply, Usage | None]:
    """Return the reply in the body of a response with status 200, and its usage if it states one.

    Raises:
        ValueError: the body is no chat completion.

    Example:
        >>> reply, usage = read_completion(b'{"choices": [{"message": {"content": "4"}}]}')
        >>> reply.text, usage
        ('4', None)
        >>> read_completion(b"<html>")
        Traceback (most recent call last):
        ValueError: no chat completion: '<html>'
    """
    try:
        completion = msgspec.json.decode(body, type=_Completion)
    except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
        shown = body.decode(errors="replace")
        raise ValueError(f"no chat completion: {shown!r}") from None  # cut once it is redacted
    choice = completion.choices[0]
    text = choice.message.content or ""
    status: Status = "ok"
    if choice.message.refusal or choice.finish_reason == "content_filter":
        status, text = "refused", choice.message.refusal or text
    elif choice.finish_reason == "length":
        status = "truncated"
    elif not text.strip():
        status = "empty"
    usage = _read_usage(completion.usage)
    tokens_in, tokens_out = usage or (0, 0)
    reply = Reply(
        status,
        text,
        model=completion.model or "",
        fingerprint=completion.system_fingerprint or "",
        tokens_in=tokens_in,
        tokens_out=tokens_out,
    )
    return reply, usage


def _read_usage(content: msgspec.Raw) -> Usage | None:
    """Return the token counts, or None if the server sent none that can be read."""
    try:
        usage = msgspec.json.decode(content, type=_Usage)
    except (ValueError, RecursionError):
        return None
    return Usage(usage.prompt_tokens, usage.completion_tokens)
