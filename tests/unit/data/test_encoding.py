"""encode_pair: template, borders, masks, and what it refuses."""

from copy import deepcopy
from dataclasses import replace

import pytest

from rlhfv_ray.data.encoding import answer_ids, encode_pair, prompt_ids, prompt_text
from rlhfv_ray.errors import DataError
from rlhfv_ray.segments import changed_tokens


def marked(processor, ids, flags):
    return processor.tokenizer.decode(
        [token for token, flag in zip(ids, flags, strict=True) if flag]
    ).strip()


def test_answers_are_what_generation_would_continue_with(pairs, encoded, processor):
    """Catches: an answer without its first token or end of turn, a prompt that ends elsewhere."""
    for pair, row in zip(pairs, encoded, strict=True):
        assert processor.tokenizer.decode(row.chosen_ids) == pair.chosen + "</s>"
        assert processor.tokenizer.decode(row.rejected_ids) == pair.rejected + "</s>"
        text = processor.tokenizer.decode(row.prompt_ids).replace("<image>" * 16, "<image>")
        assert text == prompt_text(processor, pair.question)
        assert row.prompt_ids.count(processor.tokenizer.convert_tokens_to_ids("<image>")) == 16


def test_masks_of_both_rules(pairs, encoded):
    """Catches: a rule run on the wrong sequences.

    `muffin` compares whole sequences but for the first token, `both_sides` the answers.
    """
    for row in encoded:
        sequences = [(row.prompt_ids + ids)[1:] for ids in (row.chosen_ids, row.rejected_ids)]
        muffin = changed_tokens(*sequences, rule="muffin")
        shift = len(row.prompt_ids) - 1
        assert row.changed["muffin"] == (muffin[0][shift:], muffin[1][shift:])
        assert row.changed["both_sides"] == changed_tokens(
            row.chosen_ids, row.rejected_ids, rule="both_sides"
        )


def test_human_spans_win_over_both_rules(pairs, processor):
    """Catches: human-marked spans that are ignored, or that count for one rule only."""
    pair = replace(
        pairs[0],
        chosen="a beach with a red star at the top left.",
        rejected="a beach with a blue ring at the top left.",
        chosen_spans=((15, 23),),
        rejected_spans=((20, 24),),
    )
    row = encode_pair(pair, processor, min_match=3, max_length=256)
    assert row.changed["muffin"] == row.changed["both_sides"]
    assert marked(processor, row.chosen_ids, row.changed["muffin"].chosen) == "red star"
    assert marked(processor, row.rejected_ids, row.changed["muffin"].rejected) == "ring"


def test_spans_count_from_the_answers_first_character(pairs, processor):
    """Catches: spans shifted by what the template writes before the answer (`lead = 0`).

    Qwen3's template opens a finished answer with an empty thought that its prompt does not have.
    """
    thinking = deepcopy(processor)
    turn = "ASSISTANT:\n{% generation %}"
    assert turn in processor.chat_template
    thinking.chat_template = processor.chat_template.replace(turn, turn + "<think>\n\n</think>\n\n")
    assert prompt_text(thinking, "What?") == prompt_text(processor, "What?")
    answer = "a beach with a red star at the top left."
    ids, offsets = answer_ids(thinking, "What?", answer)
    spelled = [answer[start:stop] for start, stop in offsets if start >= 0]
    assert "".join(spelled).replace(" ", "") == answer.replace(" ", "")
    pair = replace(
        pairs[0],
        chosen=answer,
        rejected="a beach with a blue ring at the top left.",
        chosen_spans=((15, 23),),
        rejected_spans=((20, 24),),
    )
    row = encode_pair(pair, thinking, min_match=3, max_length=256)
    assert row.chosen_ids == ids
    assert marked(thinking, row.chosen_ids, row.changed["muffin"].chosen) == "red star"
    assert marked(thinking, row.rejected_ids, row.changed["muffin"].rejected) == "ring"


def test_unmarked_side_of_a_marked_pair_has_no_segment(pairs, processor):
    """Catches: one side's spans filled up by comparing tokens."""
    row = encode_pair(
        replace(pairs[0], rejected_spans=((0, 1),)), processor, min_match=3, max_length=256
    )
    assert not any(row.changed["both_sides"].chosen)


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_max_length_is_inclusive(pairs, processor, spare, fits):
    """Catches: off by one, or an answer cut instead of set aside."""
    row = encode_pair(pairs[0], processor, min_match=3, max_length=10_000)
    length = len(row.prompt_ids) + max(len(row.chosen_ids), len(row.rejected_ids)) + spare
    if fits:
        assert encode_pair(pairs[0], processor, min_match=3, max_length=length) == row
    else:
        with pytest.raises(
            DataError, match=r"too_long: \d+ prompt \+ \d+ answer tokens exceed data.max_length"
        ):
            encode_pair(pairs[0], processor, min_match=3, max_length=length)


def test_same_tokens_and_unreadable_image_are_refused(pairs, processor):
    """Catches: training on a pair without signal; a broken image that stops the job."""
    with pytest.raises(DataError, match="equal_answers"):
        encode_pair(
            replace(pairs[0], rejected=pairs[0].chosen), processor, min_match=3, max_length=256
        )
    with pytest.raises(DataError, match="image_"):
        encode_pair(replace(pairs[0], image=b"GIF89a"), processor, min_match=3, max_length=256)


def test_odd_text_survives(pairs, processor):
    """Catches: emoji, right-to-left text or template markers that shift the mask or the border."""
    answer = "שלום 😀 <image> ASSISTANT: {{ x }} café"
    ids, offsets = answer_ids(processor, "What?", answer)
    assert len(ids) == len(offsets)
    assert processor.tokenizer.decode(ids) == answer + "</s>"


def test_prompt_ids_agree_with_the_processor_on_a_batch(pairs, processor):
    """Catches: generation asking another prompt than training scored."""
    from rlhfv_ray.data import decode_image

    images = [decode_image(pair.image) for pair in pairs[:3]]
    texts = [prompt_text(processor, pair.question) for pair in pairs[:3]]
    batch = processor(images=images, text=texts, padding=True, padding_side="left")
    for ids, mask, image, pair in zip(
        batch["input_ids"], batch["attention_mask"], images, pairs[:3], strict=True
    ):
        unpadded = [token for token, flag in zip(ids, mask, strict=True) if flag]
        assert unpadded == prompt_ids(processor, image, pair.question)
