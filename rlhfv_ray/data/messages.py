"""Messages of a conversation, and image placeholders in texts: one rule for all formats.

`<image>` stands for the picture in the field's data sets. In a question it is taken out, because
the chat template writes the model's own. A second one asks for a second picture, and one in an
answer for an answer with a picture: such rows are set aside. So are rows that hold an image token
of any model family, which one model would take for its picture and another one would learn as text.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlhfv_ray.data.row_fields import UNSUPPORTED, unusable

PLACEHOLDER = "<image>"
IMAGE_TOKENS = re.compile(  # of model families and training tools; those of sound and video, too
    r"<(?:image|video|audio|img|/img|ImageHere|ImageContent|IMG_CONTEXT|image_\d+|im_patch|im_start"
    r"|im_end|image_soft_token|start_of_image|end_of_image|image_pad|image_placeholder"
    r"|fake_token_around_image|global-img|row_\d+_col_\d+)>"
    r"|<\|(?:image|video|vision|audio|img|placeholder|AUDIO|IMAGE|VIDEO)[a-z_]*\d*\|>"
    r"|\[IMG(?:_BREAK|_END)?\]"
)
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
# Fields of a message that say how it is to be used, beside `loss` and `weight`.
MESSAGE_FIELDS = ("tool_calls", "function_call", "reasoning_content", "thinking", *UNSUPPORTED)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    text: str
    learned: bool = True  # False: the answer is context only


def question_text(*texts: str) -> list[str]:
    """Return a conversation's questions without the placeholder of its one picture.

    Raises:
        DataError: `multi_image` or `image_token`, then the reason.

    Example:
        >>> question_text("<image>What is it?", "And why?")
        ['What is it?', 'And why?']
    """
    if sum(text.count(PLACEHOLDER) for text in texts) > 1:
        raise unusable("multi_image", f"the text has more than one {PLACEHOLDER}")
    questions = [
        text.replace(PLACEHOLDER, "").strip() if PLACEHOLDER in text else text for text in texts
    ]
    for question in questions:
        check_image_tokens("a question", question)
    return questions


def check_image_tokens(name: str, text: str) -> None:
    """Refuse a text that holds an image token.

    Raises:
        DataError: `image_token`, then the token.
    """
    if match := IMAGE_TOKENS.search(text):
        reason = f"{name} holds {match.group()!r}, which stands for a picture and is no text"
        raise unusable("image_token", reason)


def messages_of(value: object, role: str) -> list[Message]:
    """Return messages; a text alone is one message of a role, and None is none.

    Raises:
        DataError: `bad_row` or `unsupported_field`, then the reason.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [Message(role, value)]
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise unusable("bad_row", f"expected text or messages, found {type(value).__name__}")
    return [_message(turn) for turn in turns]


def _message(turn: Mapping[str, object]) -> Message:
    for name in MESSAGE_FIELDS:
        if turn.get(name):
            reason = f"a message has {name}, which is not supported"
            raise unusable("unsupported_field", reason)
    name = str(turn.get("role") or turn.get("from"))
    role = ROLES.get(name, name)
    return Message(role, _content(turn), _is_learned(turn, role))


def _is_learned(turn: Mapping[str, object], role: str) -> bool:
    """Return False for an answer that its message takes out of the loss."""
    for name in ("loss", "weight"):
        value = turn.get(name)
        if value is None:
            continue
        if value not in (0, 1):  # False and True are equal to them
            raise unusable("unsupported_field", f"a message has {name} {value!r}, not 0 or 1")
        if role != "assistant" and value:
            reason = f"a message of role {role} has {name} {value!r}: only answers are learnt"
            raise unusable("unsupported_field", reason)
        if not value:
            return False
    return True


def _content(turn: Mapping[str, object]) -> str:
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part_text(part) for part in content)
    reason = f"a message's content must be text or a list of parts, not {type(content).__name__}"
    raise unusable("bad_row", reason)


def part_text(part: object) -> str:
    """Return the text of one part of a message; an image becomes its placeholder.

    Raises:
        DataError: `bad_row` for a part of another type.
    """
    if isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
        return PLACEHOLDER
    if isinstance(part, Mapping) and part.get("type") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
    raise unusable("bad_row", "a message's content must be text or parts of type text and image")


def split_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """Return the text of a leading system message, and the messages after it."""
    if messages and messages[0].role == "system":
        return messages[0].text, messages[1:]
    return "", messages


def turns_of(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Return the questions and answers of a conversation, as pairs in order.

    Raises:
        DataError: `bad_roles`, then the reason.

    Example:
        >>> turns_of([Message("user", "What?"), Message("assistant", "A cat.")])
        [('What?', 'A cat.')]
    """
    roles = [message.role for message in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        reason = f"expected user and assistant in turn, found {', '.join(roles) or 'none'}"
        raise unusable("bad_roles", reason)
    texts = [message.text for message in messages]
    return list(zip(texts[::2], texts[1::2], strict=True))


def only_text(messages: Sequence[Message], role: str) -> str:
    """Return the text of the only message, which must have this role; of none, nothing.

    Raises:
        DataError: `multi_turn` or `not_learnt`, then the reason.
    """
    if not messages:
        return ""
    roles = [message.role for message in messages]
    if roles != [role]:
        raise unusable("multi_turn", f"expected one {role} message, found {', '.join(roles)}")
    if not messages[0].learned:
        raise unusable("not_learnt", f"the {role} message is taken out of the loss")
    return messages[0].text


def system_text(row: Mapping[str, object], message: str) -> str:
    """Return a row's system prompt: of its column, or of its first message.

    Raises:
        DataError: `bad_row` or `image_token`, then the reason.
    """
    texts = [message]
    for name in ("system", "system_prompt"):
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            raise unusable("bad_row", f"{name} must be text, not {type(value).__name__}")
        texts.append(value or "")
    different = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if len(different) > 1:
        raise unusable("bad_row", "the row has several system prompts")
    system = different[0] if different else ""
    check_image_tokens("the system prompt", system)
    return system
