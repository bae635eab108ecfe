"""Template, token ids and changed-token masks of one pair.

The prompt is what generation sees: the model's own chat template up to the assistant's turn, image tokens expanded by the
processor. It is never cut. An answer is everything the template adds for the assistant, so it ends with the token that ends
the turn; only answers are scored.
"""

from collections.abc import Sequence
from typing import Any, get_args

from PIL.Image import Image

from rlhfv_ray.data.images import decode_image
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import ChangedTokens, EncodedPair, Example, PreferencePair, Span
from rlhfv_ray.segments import Rule, changed_tokens


def prompt_text(processor: Any, question: str) -> str:
    """The chat template of one image and one question, up to where the assistant speaks."""
    return processor.apply_chat_template(
        [_user(question)], add_generation_prompt=True, tokenize=False
    )


def prompt_ids(processor: Any, image: Image, question: str) -> list[int]:
    """Token ids of the prompt, image tokens expanded."""
    return processor(images=[image], text=[prompt_text(processor, question)])["input_ids"][0]


def answer_ids(processor: Any, question: str, answer: str) -> tuple[list[int], list[Span]]:
    """Token ids of an answer as the template continues the prompt, and each token's characters in the answer.

    Ids are cut from the tokenised whole where the prompt's ids are a prefix of it, so that tokens meet at the border as
    they do in generation; else the answer is tokenised alone.
    """
    prompt = prompt_text(processor, question)
    whole = processor.apply_chat_template([_user(question), _assistant(answer)], tokenize=False)
    ids, offsets = _continued(processor, prompt, whole)
    lead = max(
        whole.find(answer, len(prompt)) - len(prompt), 0
    )  # characters the template puts before the answer
    return ids, [(start - lead, stop - lead) for start, stop in offsets]


def conversation_ids(
    processor: Any, turns: Sequence[tuple[str, str]]
) -> tuple[list[int], list[bool]]:
    """Token ids of all that follows a conversation's first question, and which of them are answers, ends of turns included."""
    messages: list[dict[str, Any]] = []
    answers: list[Span] = []
    for number, (question, answer) in enumerate(turns):
        messages.append(_user(question, image=number == 0))
        before = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        messages.append(_assistant(answer))
        whole = processor.apply_chat_template(messages, tokenize=False)
        answers.append((len(before), len(whole)))
    prompt = prompt_text(processor, turns[0][0])
    ids, offsets = _continued(processor, prompt, whole)
    return ids, _within(
        offsets, [(start - len(prompt), stop - len(prompt)) for start, stop in answers]
    )


def _continued(processor: Any, prompt: str, whole: str) -> tuple[list[int], list[Span]]:
    """Token ids of what a conversation's text has beyond its prompt, and each token's characters there."""
    if not whole.startswith(prompt):
        raise DataError(
            "template: the chat template's prompt is not how its conversation begins; use another template."
        )
    before = processor.tokenizer(prompt)["input_ids"]
    encoded = processor.tokenizer(whole, return_offsets_mapping=True)
    ids, offsets, shift = encoded["input_ids"], encoded["offset_mapping"], len(prompt)
    if ids[: len(before)] == before:
        ids, offsets = ids[len(before) :], offsets[len(before) :]
    else:
        encoded = processor.tokenizer(
            whole[len(prompt) :], add_special_tokens=False, return_offsets_mapping=True
        )
        ids, offsets, shift = encoded["input_ids"], encoded["offset_mapping"], 0
    return list(ids), [(start - shift, stop - shift) for start, stop in offsets]


def encode_pair(
    pair: PreferencePair, processor: Any, *, min_match: int, max_length: int, spans: bool = True
) -> EncodedPair:
    """Encode a pair for a model.

    Args:
        pair: question, answers and image.
        processor: the model's processor, with a fast tokenizer and a chat template.
        min_match: see `changed_tokens`.
        max_length: longest prompt + answer, in tokens.
        spans: use the spans that a human marked, where there are any.

    Raises:
        DataError: the image cannot be read, an answer does not fit, or both answers give the same tokens.
    """
    prompt = prompt_ids(processor, decode_image(pair.image), pair.question)
    chosen, chosen_offsets = answer_ids(processor, pair.question, pair.chosen)
    rejected, rejected_offsets = answer_ids(processor, pair.question, pair.rejected)
    _check_length(prompt, chosen, rejected, max_length=max_length)
    if chosen == rejected:
        raise DataError(
            "equal_answers: chosen and rejected give the same tokens, so there is nothing to prefer."
        )
    changed = {
        rule: _changed(prompt, chosen, rejected, rule=rule, min_match=min_match)
        for rule in get_args(Rule)
    }
    if spans and (pair.chosen_spans is not None or pair.rejected_spans is not None):
        marked = ChangedTokens(
            _within(chosen_offsets, pair.chosen_spans or ()),
            _within(rejected_offsets, pair.rejected_spans or ()),
        )
        changed = dict.fromkeys(changed, marked)
    return EncodedPair(pair.id, pair.image, prompt, chosen, rejected, changed)


def encode_example(example: Example, processor: Any, *, max_length: int) -> EncodedPair:
    """Encode a conversation to imitate: every answer in it is scored, later questions are not.

    Args:
        example: image, questions and answers.
        processor: see `encode_pair`.
        max_length: longest conversation, in tokens.

    Raises:
        DataError: the image cannot be read, or the conversation does not fit.
    """
    prompt = prompt_ids(processor, decode_image(example.image), example.turns[0][0])
    ids, scored = conversation_ids(processor, example.turns)
    _check_length(prompt, ids, max_length=max_length)
    changed = {rule: ChangedTokens([False] * len(ids), []) for rule in get_args(Rule)}
    return EncodedPair(
        example.id, example.image, prompt, ids, [], changed, None if all(scored) else scored
    )


def _check_length(prompt: list[int], *answers: list[int], max_length: int) -> None:
    length = len(prompt) + max(map(len, answers))
    if length > max_length:
        raise DataError(
            f"too_long: {len(prompt)} prompt + {length - len(prompt)} answer tokens exceed data.max_length = {max_length}."
        )


def _user(question: str, *, image: bool = True) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [*([{"type": "image"}] if image else []), {"type": "text", "text": question}],
    }


def _assistant(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": answer}]}


def _changed(
    prompt: list[int], chosen: list[int], rejected: list[int], *, rule: Rule, min_match: int
) -> ChangedTokens:
    """`both_sides` compares the answers alone; `muffin` the whole sequences but their first token, as the release does."""
    context = prompt[1:] if rule == "muffin" else []
    masks = changed_tokens(context + chosen, context + rejected, rule=rule, min_match=min_match)
    return ChangedTokens(*(mask[len(context) :] for mask in masks))


def _within(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token shares a character with a marked span."""
    return [
        any(start < stop_ and start_ < stop for start_, stop_ in spans) for start, stop in offsets
    ]
