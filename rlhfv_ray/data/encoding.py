"""Encode one pair: chat template, token ids and changed-token masks.

The prompt is what generation sees: the model's own chat template up to the assistant's turn, with
image tokens expanded by the processor. It is never cut. An answer is everything that the template
adds for the assistant, so it ends with the token that ends the turn. Only answers are scored.

Offsets: every token has a span [start, stop) of characters. It is counted in the text that the
tokenizer got, then from the prompt's end, then from the answer's first character, as human-marked
spans are.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from PIL.Image import Image

from rlhfv_ray.config import LARGEST_IMAGE
from rlhfv_ray.data.images import decode_image
from rlhfv_ray.data.release_labels import release_labels as labelled
from rlhfv_ray.data.templates import (
    Messages,
    adds_special_tokens,
    answered,
    asked,
    assistant_message,
    check_special_tokens,
    context_messages,
    end_width,
    ended,
    process,
    prompt_text,
    render,
    user_message,
)
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import ChangedTokens, EncodedPair, Example, PreferencePair, Span
from rlhfv_ray.segments import Rule, changed_tokens

# Of what follows here. It is in the names of all stages whose results depend on prompts or answers.
VERSION = 3
CHANGED_TURN = (
    "template: this chat template renders an earlier turn differently once a later one follows; "
    "use another template, or conversations of one turn."
)


def prompt_ids(processor: Any, image: Image, question: str, before: Messages = ()) -> list[int]:
    """Return the token ids of the prompt, image tokens expanded."""
    # Ovis2 counts its image tokens in tensors only.
    text = prompt_text(processor, question, before)
    inputs = process(processor, [image], [text], return_tensors="pt")
    return inputs["input_ids"][0].tolist()


class AnswerTokens(NamedTuple):
    """An answer after its prompt, up to and with what the template writes behind it."""

    ids: list[int]
    offsets: list[Span]  # characters of each token, counted from the answer's first one
    tail: int  # number of tokens after the answer's last character


def answer_ids(processor: Any, question: str, answer: str, before: Messages = ()) -> AnswerTokens:
    """Return the tokens of an answer after its prompt.

    Prompt and answer are tokenized together if the prompt's ids are a prefix of the result. Tokens
    then meet at the border as they do in generation. Otherwise the answer is tokenized alone.

    A template that writes nothing that ends a generation (that of llava-1.5-7b-hf, as published)
    gets the tokenizer's end-of-sequence token in its place: a model that never learns to stop does
    not stop.

    Raises:
        DataError: the template changes the answer.
    """
    prompt = prompt_text(processor, question, before)
    start, stop, text = answered(processor, asked(question, before), prompt, answer)
    ids, offsets = _continued(processor, prompt, ended(processor, text, stop))
    lead = start - len(prompt)
    tail = sum(begin >= stop - len(prompt) for begin, _ in offsets)
    return AnswerTokens(ids, [(begin - lead, end - lead) for begin, end in offsets], tail)


class EncodedAnswer(NamedTuple):
    """A prompt, an answer behind it, and which of the answer's tokens are scored."""

    prompt: list[int]
    answer: AnswerTokens
    scored: list[bool]  # flags of the first tokens; all behind them are scored


def _release_answer(processor: Any, question: str, answer: str) -> EncodedAnswer:
    """Return an answer as the release's labels cover it.

    The first token that they cover stands in the question's turn, before the picture. Everything
    from there on is in the place of an answer, and what they leave out is not scored.
    """
    user = [user_message(question)]
    start, stop, _ = answered(processor, user, prompt_text(processor, question), answer)
    tokens = labelled(processor, [*user, assistant_message(answer)])
    first = tokens.covered.index(True)
    scored = tokens.covered[first:]
    left_out = max((position for position, flag in enumerate(scored) if not flag), default=-1)
    offsets = [(begin - start, end - start) for begin, end in tokens.offsets[first:]]
    tail = sum(begin >= stop for begin, _ in tokens.offsets[first:])
    behind = AnswerTokens(tokens.ids[first:], offsets, tail)
    return EncodedAnswer(tokens.ids[:first], behind, scored[: left_out + 1])


def conversation_ids(
    processor: Any,
    turns: Sequence[tuple[str, str]],
    *,
    before: Messages = (),
    learned: Sequence[bool] = (),
) -> tuple[list[int], list[bool]]:
    """Return the token ids after a conversation's first question, and a mask of its answers.

    The mask is True on answers and on the token that ends each of them, False on later questions
    and on what the template writes between the turns.

    Args:
        processor: the model's.
        turns: (question, answer), in order.
        before: messages before them.
        learned: flags of the answers; one that is False stays out of the mask. Empty: all are True.

    Raises:
        DataError: the template changes an answer, or an earlier turn once a later one follows.
    """
    messages = list(before)
    answers: list[Span] = []  # characters of each answer with its end, in the conversation's text
    text = ""  # of the conversation so far, with the ends that the template leaves out
    rendered = ""  # of the conversation so far, by the template
    first_prompt = prompt_text(processor, turns[0][0], before)
    for number, (question, answer) in enumerate(turns):
        messages = asked(question, messages)
        prompt = render(processor, messages, add_generation_prompt=True)
        start, stop, after = answered(processor, messages, prompt, answer)
        messages.append(assistant_message(answer))
        if not after.startswith(rendered):
            raise DataError(CHANGED_TURN)
        added = len(text) - len(rendered)  # characters of ends that were added so far
        text += ended(processor, after, stop)[len(rendered) :]
        rendered = after
        if not learned or learned[number]:
            end = end_width(processor, text[stop + added :])
            answers.append((start + added, stop + added + end))
    ids, offsets = _continued(processor, first_prompt, text)
    width = len(first_prompt)
    spans = [(start - width, stop - width) for start, stop in answers]
    return ids, _within(offsets, spans)


def _continued(processor: Any, prompt: str, text: str) -> tuple[list[int], list[Span]]:
    """Return the token ids of a text after its prompt, and each token's span after the prompt."""
    # Text alone: the image placeholder is one token here, so both sides count alike.
    special = adds_special_tokens(processor, prompt)
    before = processor.tokenizer(prompt, add_special_tokens=special)["input_ids"]
    encoded = processor.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
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
    pair: PreferencePair,
    processor: Any,
    *,
    min_match: int,
    max_length: int,
    spans: bool = True,
    release_labels: bool = False,
) -> EncodedPair:
    """Encode a pair for a model.

    Args:
        pair: question, answers and image.
        processor: the model's processor, with a fast tokenizer and a chat template.
        min_match: see `changed_tokens`.
        max_length: longest prompt + answer, in tokens.
        spans: use the spans that a human marked, where the pair has them.
        release_labels: score what the RLHF-V release scores; for Muffin.

    Raises:
        DataError: the image cannot be read, an answer does not fit, both answers give the same
            tokens, a text holds one of the model's special tokens, or its template has no place for
            the system prompt.
    """
    turns = itertools.chain.from_iterable(pair.history)
    texts = [pair.system, *turns, pair.question, pair.chosen, pair.rejected]
    check_special_tokens(processor, texts)
    before = context_messages(processor, pair.system, pair.history)
    image = decode_image(pair.image, max_pixels=LARGEST_IMAGE)
    scored: list[bool] | None = None
    if release_labels:
        _check_no_context(before)
        prompt, chosen, scored = _release_answer(processor, pair.question, pair.chosen)
        rejected = _release_answer(processor, pair.question, pair.rejected).answer
    else:
        prompt = prompt_ids(processor, image, pair.question, before)
        chosen = answer_ids(processor, pair.question, pair.chosen, before)
        rejected = answer_ids(processor, pair.question, pair.rejected, before)
    _check_length(prompt, chosen.ids, rejected.ids, max_length=max_length)
    if chosen.ids == rejected.ids:
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
            _within(chosen.offsets, pair.chosen_spans or ()),
            _within(rejected.offsets, pair.rejected_spans or ()),
        )
        changed = dict.fromkeys(changed, marked)
    return EncodedPair(
        *(pair.id, pair.image, prompt, chosen.ids, rejected.ids, changed, scored),
        position=pair.position,
    )


def encode_example(
    example: Example,
    processor: Any,
    *,
    max_length: int,
    release_labels: bool = False,
) -> EncodedPair:
    """Encode a conversation for supervised fine-tuning.

    The loss covers the tokens of every answer and no token of a question.

    Args:
        example: image, questions and answers.
        processor: see `encode_pair`.
        max_length: largest number of tokens in a conversation.
        release_labels: as in `encode_pair`.

    Raises:
        DataError: the image cannot be read, the conversation does not fit, or as `encode_pair`.
    """
    check_special_tokens(processor, [example.system, *itertools.chain(*example.turns)])
    before = context_messages(processor, example.system)
    image = decode_image(example.image, max_pixels=LARGEST_IMAGE)
    if release_labels:
        _check_no_context(before)
        tokens = labelled(processor, _messages(example.turns))
        first = tokens.covered.index(True)
        prompt, ids, scored = tokens.ids[:first], tokens.ids[first:], tokens.covered[first:]
    else:
        prompt = prompt_ids(processor, image, example.turns[0][0], before)
        ids, scored = conversation_ids(
            processor, example.turns, before=before, learned=example.learned
        )
    _check_length(prompt, ids, max_length=max_length)
    changed = {rule: ChangedTokens([False] * len(ids), []) for rule in get_args(Rule)}
    stored_mask = None if all(scored) else scored  # one turn, the usual case, needs no mask
    return EncodedPair(
        *(example.id, example.image, prompt, ids, [], changed, stored_mask),
        position=example.position,
        dropped_marks=example.dropped_marks,
    )


def _check_no_context(before: Messages) -> None:
    """Refuse what the release's texts have no place for."""
    if before:
        raise DataError(
            "release_labels: the row has a system prompt or earlier turns, for which the release "
            "has no labels."
        )


def _messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for number, (question, answer) in enumerate(turns):
        messages += [user_message(question, image=number == 0), assistant_message(answer)]
    return messages


def _check_length(prompt: list[int], *answers: list[int], max_length: int) -> None:
    # Refused, not cut: a cut answer would teach the model to stop in the middle.
    longest = max(map(len, answers))
    if len(prompt) + longest > max_length:
        raise DataError(
            f"too_long: {len(prompt)} prompt + {longest} answer tokens exceed data.max_length = "
            f"{max_length}."
        )


def _changed(
    prompt: list[int],
    chosen: AnswerTokens,
    rejected: AnswerTokens,
    *,
    rule: Rule,
    min_match: int,
) -> ChangedTokens:
    """Compare what the rule compares, and return the masks of the answers' tokens."""
    if rule == "muffin":
        # Muffin's quirk: the release compares whole sequences, prompt included, without their first
        # token. Its difflib may match answer tokens with prompt tokens; `both_sides` avoids that.
        context = prompt[1:]
        masks = changed_tokens(
            context + chosen.ids, context + rejected.ids, rule=rule, min_match=min_match
        )
        return ChangedTokens(*(mask[len(context) :] for mask in masks))
    # What the template writes behind an answer is no part of it, and never corrected. It is often
    # shorter than `min_match`, so that a change of the last word would take it along.
    bodies = [answer.ids[: len(answer.ids) - answer.tail] for answer in (chosen, rejected)]
    masks = changed_tokens(*bodies, rule=rule, min_match=min_match)
    return ChangedTokens(masks[0] + [False] * chosen.tail, masks[1] + [False] * rejected.tail)


def _within(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Return one flag per token: True if it shares a character with one of the spans."""
    return [_overlaps(offset, spans) for offset in offsets]


def _overlaps(token: Span, spans: Sequence[Span]) -> bool:
    # Half-open ranges: a token that only touches a span's border shares no character with it.
    return any(token[0] < stop and start < token[1] for start, stop in spans)
