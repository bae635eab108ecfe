"""Chat templates: the text of a prompt, of an answer behind it, and where the answer ends."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from PIL.Image import Image

from rlhfv_ray.errors import DataError

MARK = "\ue000"  # of Unicode's private use: stands in no text of people
Messages = Sequence[dict[str, Any]]
# Attributes of a tokenizer: further tokens that end a generation; arguments of the chat template;
# tokens that its model has no embedding of.
END_TOKENS = "rlhfv_end_tokens"
TEMPLATE_ARGUMENTS = "rlhfv_template_arguments"
NOT_EMBEDDED = "rlhfv_not_embedded"


def prompt_text(processor: Any, question: str, before: Messages = ()) -> str:
    """Return the chat template of one image and one question, up to the assistant's turn.

    Args:
        processor: the model's.
        question: the last one.
        before: messages before it, from `context_messages`.
    """
    return render(processor, asked(question, before), add_generation_prompt=True)


def asked(question: str, before: Messages = ()) -> list[dict[str, Any]]:
    """Return the messages up to a question; the first question has the image."""
    is_first = all(message["role"] != "user" for message in before)
    return [*before, user_message(question, image=is_first)]


def context_messages(
    processor: Any, system: str = "", history: Sequence[tuple[str, str]] = ()
) -> list[dict[str, Any]]:
    """Return the messages before a question: the system prompt and the earlier turns.

    Raises:
        DataError: there is a system prompt, but the template has no place for one.
    """
    messages: list[dict[str, Any]] = []
    if system:
        _check_system(processor, system)
        messages.append(_text_message("system", system))
    for question, answer in history:
        messages = [*asked(question, messages), assistant_message(answer)]
    return messages


def _check_system(processor: Any, system: str) -> None:
    """Refuse a system prompt that the template drops, refuses, or writes as another's turn."""
    texts = []
    for role in ("system", "assistant", "user"):
        messages = [_text_message(role, MARK), user_message("?")]
        try:
            texts.append(render(processor, messages, add_generation_prompt=True))
        except TemplateError:  # by `raise_exception` in a template
            texts.append("")
    as_system, *as_others = texts
    if as_system.count(MARK) != 1 or as_system in as_others:
        raise DataError(
            f"system_prompt: the row has one ({system[:40]!r}), but the model's chat template has "
            "no system role; use another template, or data without system prompts."
        )


def answering_prompt(processor: Any, question: str) -> str:
    """Return the text of one image and one question with which a model is asked for its answer.

    It is the prompt of training, except for Muffin, whose template has another one for it.
    """
    return render(processor, [user_message(question)], add_generation_prompt=True, answering=True)


def process(processor: Any, images: Sequence[Image], texts: Sequence[str], **settings: Any) -> Any:
    """Call a processor on one image and one rendered text per row.

    A template that writes the beginning of the sequence itself gets no second one, which is the
    rule of transformers' `apply_chat_template(tokenize=True)`.
    """
    if not adds_special_tokens(processor, texts[0]):
        settings["add_special_tokens"] = False
    try:  # one list of images per text
        return processor(images=[[image] for image in images], text=list(texts), **settings)
    except (TypeError, AttributeError) as error:  # Fuyu's, without torchvision
        raise DataError(
            f"processor: {type(processor).__name__} cannot prepare a picture and a question "
            f"({type(error).__name__}: {error}). If it can prepare none, it may need torchvision."
        ) from error
    except ValueError as error:
        if "Nested images" not in str(error):
            raise
        # GOT-OCR2 reads nested images as the pages of one document.
        return processor(images=list(images), text=list(texts), **settings)


def answered(processor: Any, messages: Messages, prompt: str, answer: str) -> tuple[int, int, str]:
    """Render an answer behind the messages before it.

    The answer's place is where the template puts a mark in its stead. Its text could stand
    elsewhere too: "think" stands in "</think>".

    Returns:
        First and last character of the answer in the text, and the text. The first one is counted
        as if the template had left the answer's blanks.

    Raises:
        DataError: the template changes the answer.
    """
    text = render(processor, [*messages, assistant_message(answer)])
    marked = render(processor, [*messages, assistant_message(MARK)])
    if not marked.startswith(prompt):
        raise DataError(
            "template: a conversation must begin with its prompt, but this chat template renders "
            "the two differently; use another template, or, where it opens a thought, what turns "
            "that off (--model.template-arguments)."
        )
    before, mark, behind = marked[len(prompt) :].partition(MARK)
    start, stop = len(prompt) + len(before), len(text) - len(behind)
    written = text[start:stop]  # the answer, perhaps without its blanks
    around_it = marked[:start] == text[:start] and behind == text[stop:]
    if not (mark and around_it and written.strip() == answer.strip()):
        raise DataError(
            "template: this chat template changes the answer, or drops a part of it, so that its "
            "tokens cannot be found; use another template."
        )
    shift = len(answer) - len(answer.lstrip()) - (len(written) - len(written.lstrip()))
    return start - shift, stop, text


def ended(processor: Any, text: str, stop: int) -> str:
    """Return a text whose last answer, which stops at a character, ends a generation.

    Raises:
        DataError: the template ends no answer, and there is no token that does.
    """
    tail = text[stop:]
    if end_width(processor, tail):
        return text
    ends = end_tokens(processor)
    if not ends:
        raise DataError(
            "template: nothing ends an answer. Give the tokenizer an eos_token, or name one in the "
            "model's generation_config.json."
        )
    return text[:stop] + (tail if tail.strip() else "") + ends[0]


def end_width(processor: Any, tail: str) -> int:
    """Return the number of characters up to the end of the first token that ends a generation.

    It is 0 if there is none.
    """
    ends = [tail.find(end) + len(end) for end in end_tokens(processor) if end in tail]
    return min(ends, default=0)


def end_tokens(processor: Any) -> tuple[str, ...]:
    """Return what ends a generation: the tokenizer's token, those of the model's settings, which
    `load_processor` reads, and the family's texts.
    """
    of_model = getattr(processor.tokenizer, END_TOKENS, ())
    ends = (processor.tokenizer.eos_token, *of_model, *answer_ends(processor))
    tokens = dict.fromkeys(ends)
    return tuple(token for token in tokens if token)


def answer_ends(processor: Any) -> tuple[str, ...]:
    """Return the texts, no tokens of their own, that end an answer of the processor's family."""
    return getattr(processor, "answer_ends", ())


def before_end(processor: Any, text: str, *, stop: Sequence[str] = ()) -> str:
    """Return a generated text up to the first end of an answer, without outer blanks."""
    for end in (*stop, *answer_ends(processor)):
        text = text.split(end, 1)[0]
    return text.strip()


def answer_of(processor: Any, text: str, *, stop: Sequence[str] = ()) -> str:
    """Return the answer in a generated text.

    A family may write the role of the answer before it (`answer_role`), which is cut off.
    """
    text = before_end(processor, text, stop=stop)
    role = getattr(processor, "answer_role", "")
    return text.split(role, 1)[1].strip() if role and role in text else text


def ends_answers(processor: Any) -> bool:
    """Return True if the chat template itself ends an answer's generation."""
    prompt = prompt_text(processor, "?")
    _, stop, text = answered(processor, [user_message("?")], prompt, "Yes.")
    return bool(end_width(processor, text[stop:]))


def render(
    processor: Any,
    messages: Messages,
    *,
    add_generation_prompt: bool = False,
    answering: bool = False,
) -> str:
    """Return the text of a conversation, without a thought where the template can leave it out.

    A thought is no part of an answer that is learnt from or scored.
    """
    thinking = "enable_thinking" in processor.chat_template
    settings: dict[str, Any] = {"enable_thinking": False} if thinking else {}
    settings |= template_arguments(processor)
    if answering and answer_ends(processor):  # only such a family has a prompt of its own for it
        settings["answering"] = True
    return processor.apply_chat_template(
        list(messages), add_generation_prompt=add_generation_prompt, tokenize=False, **settings
    )


def template_arguments(processor: Any) -> dict[str, Any]:
    """Return the arguments that a job gives the chat template (`model.template_arguments`)."""
    return getattr(processor.tokenizer, TEMPLATE_ARGUMENTS, {})


def adds_special_tokens(processor: Any, text: str) -> bool:
    """Return True if the tokenizer may add its special tokens: the text has no beginning yet."""
    beginning = processor.tokenizer.bos_token
    return beginning is None or not text.startswith(beginning)


def _text_message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def user_message(question: str, *, image: bool = True) -> dict[str, Any]:
    """Return a message of the user, with the image before its text."""
    images = [{"type": "image"}] if image else []
    return {"role": "user", "content": [*images, {"type": "text", "text": question}]}


def assistant_message(answer: str) -> dict[str, Any]:
    """Return a message of the assistant."""
    return _text_message("assistant", answer)


def check_special_tokens(processor: Any, texts: Sequence[str]) -> None:
    """Refuse texts with a special token of the model: it would end a turn, or stand for a picture.

    Raises:
        DataError: `special_token`, then the token; `unknown_token` for a token of the tokenizer
            alone, of which the model has no embedding.
    """
    tokens = set(processor.tokenizer.all_special_tokens)
    tokens |= {
        value
        for name, value in vars(processor).items()
        if name.endswith("_token") and isinstance(value, str)
    }
    # A plain word or sign may be a special token, too: as padding, it does no harm.
    marked = [token for token in tokens if len(token) > 2 and not token[0].isalnum()]
    not_embedded = getattr(processor.tokenizer, NOT_EMBEDDED, ())
    for text in texts:
        for token in marked:
            if token in text:
                raise DataError(
                    f"special_token: a text holds {token!r}, which has a meaning of its own to "
                    "this model; take it out of the row."
                )
        for token in not_embedded:
            if token in text:
                raise DataError(
                    f"unknown_token: a text holds {token!r}, a token that was added to the "
                    "tokenizer and not to the model, which has no embedding of it."
                )
