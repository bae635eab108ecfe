"""Encode one pair: chat template, token ids and changed-token masks.

The prompt is what generation sees: the model's own chat template up to the assistant's turn, with
image tokens expanded by the processor. It is never cut. An answer is everything that the template
adds for the assistant, so it ends with the token that ends the turn. Only answers are scored.

Offsets: every token has a span [start, stop) of characters. It is counted in the text that the
tokenizer got, then from the prompt's end, then from the answer's first character, as human-marked
spans are.
"""

from collections.abc import Sequence
from typing import Any, get_args

from PIL.Image import Image

from rlhfv_ray.data.images import decode_image
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import ChangedTokens, EncodedPair, Example, PreferencePair, Span
from rlhfv_ray.segments import Rule, changed_tokens


def prompt_text(processor: Any, question: str) -> str:
    """Return the chat template of one image and one question, up to the assistant's turn."""
    return processor.apply_chat_template(
        [_user(question)], add_generation_prompt=True, tokenize=False
    )


def prompt_ids(processor: Any, image: Image, question: str) -> list[int]:
    """Return the token ids of the prompt, image tokens expanded."""
    text = prompt_text(processor, question)
    return processor(images=[image], text=[text])["input_ids"][0]


def answer_ids(processor: Any, question: str, answer: str) -> tuple[list[int], list[Span]]:
    """Return the token ids of an answer after its prompt, and each token's span in the answer.

    Prompt and answer are tokenized together if the prompt's ids are a prefix of the result. Tokens
    then meet at the border as they do in generation. Otherwise the answer is tokenized alone.
    """
    prompt = prompt_text(processor, question)
    text = processor.apply_chat_template([_user(question), _assistant(answer)], tokenize=False)
    ids, offsets = _continued(processor, prompt, text)
    # Characters that the template puts between prompt and answer: LLaVA-1.5's prompt ends with
    # "ASSISTANT:", and the answer follows a space. A template that trims the answer hides it (-1).
    lead = max(text.find(answer, len(prompt)) - len(prompt), 0)
    return ids, [(start - lead, stop - lead) for start, stop in offsets]


def conversation_ids(
    processor: Any, turns: Sequence[tuple[str, str]]
) -> tuple[list[int], list[bool]]:
    """Return the token ids after a conversation's first question, and a mask of its answers.

    The mask is True on answers and on the tokens that end their turns, False on later questions.
    """
    messages: list[dict[str, Any]] = []
    answers: list[Span] = []  # characters of each answer in the conversation's text
    text = ""
    for number, (question, answer) in enumerate(turns):
        messages.append(_user(question, image=number == 0))  # the image stands in the first turn
        before = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        messages.append(_assistant(answer))
        text = processor.apply_chat_template(messages, tokenize=False)
        answers.append((len(before), len(text)))
    prompt = prompt_text(processor, turns[0][0])
    ids, offsets = _continued(processor, prompt, text)
    spans = [(start - len(prompt), stop - len(prompt)) for start, stop in answers]
    return ids, _within(offsets, spans)


def _continued(processor: Any, prompt: str, text: str) -> tuple[list[int], list[Span]]:
    """Return the token ids of a text after its prompt, and each token's span after the prompt."""
    if not text.startswith(prompt):
        raise DataError(
            "template: a conversation must begin with its prompt, but this chat template renders "
            "the two differently; use another template."
        )
    # Text alone: the image placeholder is one token here, so both sides count alike.
    before = processor.tokenizer(prompt)["input_ids"]
    encoded = processor.tokenizer(text, return_offsets_mapping=True)
    if encoded["input_ids"][: len(before)] == before:
        ids = encoded["input_ids"][len(before) :]
        offsets = encoded["offset_mapping"][len(before) :]
        shift = len(prompt)  # these offsets count from the start of the text
    else:  # the border falls inside a token, which generation could not produce after the prompt
        encoded = processor.tokenizer(
            text[len(prompt) :], add_special_tokens=False, return_offsets_mapping=True
        )
        ids = encoded["input_ids"]
        offsets = encoded["offset_mapping"]
        shift = 0
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
        spans: use the spans that a human marked, where the pair has them.

    Raises:
        DataError: the image cannot be read, an answer does not fit, or both answers give the same
            tokens.
    """
    prompt = prompt_ids(processor, decode_image(pair.image), pair.question)
    chosen, chosen_offsets = answer_ids(processor, pair.question, pair.chosen)
    rejected, rejected_offsets = answer_ids(processor, pair.question, pair.rejected)
    _check_length(prompt, chosen, rejected, max_length=max_length)
    if chosen == rejected:
        raise DataError(
            "equal_answers: chosen and rejected give the same tokens, so neither can be preferred."
        )
    # Masks of all rules are stored, so that a change of rule or gamma encodes nothing again.
    changed = {
        rule: _changed(prompt, chosen, rejected, rule=rule, min_match=min_match)
        for rule in get_args(Rule)
    }
    if spans and (pair.chosen_spans is not None or pair.rejected_spans is not None):
        # Marks win over every rule. The unmarked side of a marked pair has no corrected token.
        marked = ChangedTokens(
            _within(chosen_offsets, pair.chosen_spans or ()),
            _within(rejected_offsets, pair.rejected_spans or ()),
        )
        changed = dict.fromkeys(changed, marked)
    return EncodedPair(pair.id, pair.image, prompt, chosen, rejected, changed)


def encode_example(example: Example, processor: Any, *, max_length: int) -> EncodedPair:
    """Encode a conversation for supervised fine-tuning.

    The loss covers the tokens of every answer and no token of a question.

    Args:
        example: image, questions and answers.
        processor: see `encode_pair`.
        max_length: largest number of tokens in a conversation.

    Raises:
        DataError: the image cannot be read, or the conversation does not fit.
    """
    prompt = prompt_ids(processor, decode_image(example.image), example.turns[0][0])
    ids, scored = conversation_ids(processor, example.turns)
    _check_length(prompt, ids, max_length=max_length)
    changed = {rule: ChangedTokens([False] * len(ids), []) for rule in get_args(Rule)}
    stored_mask = None if all(scored) else scored  # one turn, the usual case, needs no mask
    return EncodedPair(example.id, example.image, prompt, ids, [], changed, stored_mask)


def _check_length(prompt: list[int], *answers: list[int], max_length: int) -> None:
    # Refused, not cut: a cut answer would teach the model to stop in the middle.
    longest = max(map(len, answers))
    if len(prompt) + longest > max_length:
        raise DataError(
            f"too_long: {len(prompt)} prompt + {longest} answer tokens exceed data.max_length = "
            f"{max_length}."
        )


def _user(question: str, *, image: bool = True) -> dict[str, Any]:
    images = [{"type": "image"}] if image else []
    return {"role": "user", "content": [*images, {"type": "text", "text": question}]}


def _assistant(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": answer}]}


def _changed(
    prompt: list[int], chosen: list[int], rejected: list[int], *, rule: Rule, min_match: int
) -> ChangedTokens:
    """Compare what the rule compares, and return the masks of the answers' tokens."""
    # Muffin's quirk: the release compares whole sequences, prompt included, without their first
    # token. Its difflib may match answer tokens with prompt tokens; `both_sides` avoids that.
    context = prompt[1:] if rule == "muffin" else []
    chosen_mask, rejected_mask = changed_tokens(
        context + chosen, context + rejected, rule=rule, min_match=min_match
    )
    return ChangedTokens(chosen_mask[len(context) :], rejected_mask[len(context) :])


def _within(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Return one flag per token: True if it shares a character with one of the spans."""
    return [_overlaps(offset, spans) for offset in offsets]


def _overlaps(token: Span, spans: Sequence[Span]) -> bool:
    # Half-open ranges: a token that only touches a span's border shares no character with it.
    return any(token[0] < stop and start < token[1] for start, stop in spans)
