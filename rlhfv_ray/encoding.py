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
from rlhfv_ray.records import ChangedTokens, EncodedPair, PreferencePair, Span
from rlhfv_ray.segments import Rule, changed_tokens


def prompt_text(processor: Any, question: str) -> str:
    """The chat template of one image and one question, up to where the assistant speaks."""
    return processor.apply_chat_template([_user(question)], add_generation_prompt=True, tokenize=False)


def prompt_ids(processor: Any, image: Image, question: str) -> list[int]:
    """Token ids of the prompt, image tokens expanded."""
    return processor(images=[image], text=[prompt_text(processor, question)])["input_ids"][0]


def answer_ids(processor: Any, question: str, answer: str) -> tuple[list[int], list[Span]]:
    """Token ids of an answer as the template continues the prompt, and each token's characters in the answer.

    Ids are cut from the tokenised whole where the prompt's ids are a prefix of it, so that tokens meet at the border as
    they do in generation; else the answer is tokenised alone.
    """
    prompt = prompt_text(processor, question)
    reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    whole = processor.apply_chat_template([_user(question), reply], tokenize=False)
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
        encoded = processor.tokenizer(whole[len(prompt) :], add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets, shift = encoded["input_ids"], encoded["offset_mapping"], 0
    lead = max(whole.find(answer, len(prompt)) - len(prompt), 0)  # characters the template puts before the answer
    return list(ids), [(start - shift - lead, stop - shift - lead) for start, stop in offsets]


def encode_pair(pair: PreferencePair, processor: Any, *, min_match: int, max_length: int) -> EncodedPair:
    """Encode a pair for a model.

    Args:
        pair: question, answers and image.
        processor: the model's processor, with a fast tokenizer and a chat template.
        min_match: see `changed_tokens`.
        max_length: longest prompt + answer, in tokens.

    Raises:
        DataError: the image cannot be read, an answer does not fit, or both answers give the same tokens.
    """
    prompt = prompt_ids(processor, decode_image(pair.image), pair.question)
    chosen, chosen_offsets = answer_ids(processor, pair.question, pair.chosen)
    rejected, rejected_offsets = answer_ids(processor, pair.question, pair.rejected)
    length = len(prompt) + max(len(chosen), len(rejected))
    if length > max_length:
        raise DataError(
            f"too_long: {len(prompt)} prompt + {length - len(prompt)} answer tokens exceed data.max_length = {max_length}."
        )
    if chosen == rejected:
        raise DataError("equal_answers: chosen and rejected give the same tokens, so there is nothing to prefer.")
    changed = {rule: _changed(prompt, chosen, rejected, rule=rule, min_match=min_match) for rule in get_args(Rule)}
    if pair.chosen_spans is not None or pair.rejected_spans is not None:
        marked = ChangedTokens(
            _within(chosen_offsets, pair.chosen_spans or ()), _within(rejected_offsets, pair.rejected_spans or ())
        )
        changed = dict.fromkeys(changed, marked)
    return EncodedPair(pair.id, pair.image, prompt, chosen, rejected, changed)


def _user(question: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}


def _changed(prompt: list[int], chosen: list[int], rejected: list[int], *, rule: Rule, min_match: int) -> ChangedTokens:
    """`both_sides` compares the answers alone; `muffin` the whole sequences but their first token, as the release does."""
    context = prompt[1:] if rule == "muffin" else []
    masks = changed_tokens(context + chosen, context + rejected, rule=rule, min_match=min_match)
    return ChangedTokens(*(mask[len(context) :] for mask in masks))


def _within(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token shares a character with a marked span."""
    return [any(start < stop_ and start_ < stop for start_, stop_ in spans) for start, stop in offsets]
