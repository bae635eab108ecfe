"""encode_pair: template, borders, masks, and what it refuses."""

import itertools
from copy import deepcopy
from dataclasses import replace

import pytest
from tokenizers.processors import TemplateProcessing

from rlhfv_ray.data import decode_image
from rlhfv_ray.data.encoding import answer_ids, conversation_ids, encode_pair, prompt_ids
from rlhfv_ray.data.templates import END_TOKENS, ends_answers, prompt_text
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
        chosen, rejected = changed_tokens(
            row.chosen_ids[:-1], row.rejected_ids[:-1], rule="both_sides"
        )
        assert row.changed["both_sides"] == ([*chosen, False], [*rejected, False])


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
    ids, offsets, _ = answer_ids(thinking, "What?", answer)
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
    ids, offsets, _ = answer_ids(processor, "What?", answer)
    assert len(ids) == len(offsets)
    assert processor.tokenizer.decode(ids) == answer + "</s>"


def test_prompt_ids_agree_with_the_processor_on_a_batch(pairs, processor):
    """Catches: generation asking another prompt than training scored."""
    images = [decode_image(pair.image) for pair in pairs[:3]]
    texts = [prompt_text(processor, pair.question) for pair in pairs[:3]]
    batch = processor(images=images, text=texts, padding=True, padding_side="left")
    for ids, mask, image, pair in zip(
        batch["input_ids"], batch["attention_mask"], images, pairs[:3], strict=True
    ):
        unpadded = [token for token, flag in zip(ids, mask, strict=True) if flag]
        assert unpadded == prompt_ids(processor, image, pair.question)


# As published with llava-1.5-7b-hf: an answer is its text and a blank, without an end.
LLAVA_1_5 = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Writes the beginning itself, trims answers, and ends turns with a token and a line break.
BEGINNING = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<turn>' + message['role'] + '\n' }}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<image>{% else %}{{ content['text'] | trim }}{% endif %}"
    "{% endfor %}{{ '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)


def with_template(processor, template):
    """Return a copy of the processor with another template, and a tokenizer that adds a bos."""
    changed = deepcopy(processor)
    changed.chat_template = template
    changed.tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = ("<s>", changed.tokenizer.bos_token_id)
    changed.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[bos]
    )
    return changed


def own_ids(processor, pair, answer=None):
    """Return the ids that transformers makes of a prompt, or of a conversation, by itself."""
    image = decode_image(pair.image)
    content = [{"type": "image", "image": image}, {"type": "text", "text": pair.question}]
    messages = [{"role": "user", "content": content}]
    if answer is not None:
        messages += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    return list(
        processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=answer is None, return_dict=True
        )["input_ids"][0]
    )


@pytest.mark.parametrize("template", [LLAVA_1_5, BEGINNING], ids=["no beginning", "beginning"])
def test_a_prompt_has_one_beginning(pairs, processor, template):
    """Catches: a second bos where the template writes one itself, or none where it writes none."""
    changed = with_template(processor, template)
    ids = prompt_ids(changed, decode_image(pairs[0].image), pairs[0].question)
    assert ids == own_ids(changed, pairs[0])
    assert ids.count(changed.tokenizer.bos_token_id) == 1


def test_ids_are_transformers_own(pairs, processor):
    """Catches: an answer that training sees with other tokens than everybody else."""
    changed = with_template(processor, BEGINNING)
    row = encode_pair(pairs[0], changed, min_match=3, max_length=512)
    for ids, answer in ((row.chosen_ids, pairs[0].chosen), (row.rejected_ids, pairs[0].rejected)):
        assert row.prompt_ids + ids == own_ids(changed, pairs[0], answer)


def test_an_answer_always_ends(pairs, processor):
    """Catches: a template without an end token, after which no model learns to stop."""
    changed = with_template(processor, LLAVA_1_5)
    assert ends_answers(processor) and not ends_answers(changed)
    ids, offsets, tail = answer_ids(changed, "What?", "a red star")
    assert changed.tokenizer.decode(ids) == " a red star</s>"
    assert ids[-1] == changed.tokenizer.eos_token_id and tail == 1
    # transformers' own ids but for the blank, which becomes the end
    own = own_ids(changed, pairs[0], "a red star")
    prompt = prompt_ids(changed, decode_image(pairs[0].image), pairs[0].question)
    assert own[len(prompt) : -1] == ids[:-1]
    assert len(offsets) == len(ids)


def test_without_any_end_the_row_is_set_aside(processor):
    """Catches: a tokenizer without an eos_token, as a traceback or as answers without an end."""
    changed = with_template(processor, LLAVA_1_5)
    changed.tokenizer.eos_token = None
    setattr(changed.tokenizer, END_TOKENS, ())
    with pytest.raises(DataError, match="nothing ends an answer"):
        answer_ids(changed, "What?", "a star")
    setattr(changed.tokenizer, END_TOKENS, ("</s>",))
    assert changed.tokenizer.decode(answer_ids(changed, "What?", "a star").ids) == " a star</s>"


def test_a_token_of_the_models_settings_ends_an_answer(processor):
    """Catches: a second end after the model's own, which generation never reaches."""
    changed = with_template(processor, BEGINNING.replace("</s>", "<end>"))
    changed.tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    assert not ends_answers(changed)
    setattr(changed.tokenizer, END_TOKENS, ("<end>",))
    assert ends_answers(changed)
    assert changed.tokenizer.decode(answer_ids(changed, "What?", "a star").ids) == "a star<end>\n"


@pytest.mark.parametrize("template", [LLAVA_1_5, BEGINNING], ids=["no end", "end"])
def test_no_token_of_a_later_turn_is_scored(processor, template):
    """Catches: the beginning of the user's next turn learnt as the end of an answer."""
    changed = with_template(processor, template)
    ids, scored = conversation_ids(changed, [("What?", "a star"), ("Where?", "on top")])
    runs = [
        changed.tokenizer.decode([token for token, _ in group])
        for flag, group in itertools.groupby(zip(ids, scored, strict=True), lambda pair: pair[1])
        if flag
    ]
    assert [run.strip() for run in runs] == ["a star</s>", "on top</s>"]


def test_spans_follow_an_answer_that_the_template_trims(pairs, processor):
    """Catches: spans that shift with the blanks that a template trims."""
    changed = with_template(processor, BEGINNING)
    pair = replace(
        pairs[0],
        chosen="  a red star ",
        rejected=" a blue ring",
        chosen_spans=((4, 7),),
        rejected_spans=((3, 7),),
    )
    row = encode_pair(pair, changed, min_match=3, max_length=512)
    assert marked(changed, row.chosen_ids, row.changed["muffin"].chosen) == "red"
    assert marked(changed, row.rejected_ids, row.changed["muffin"].rejected) == "blue"


def test_an_answer_is_found_by_its_place(pairs, processor):
    """Catches: an answer taken for the same word in the template's own text."""
    thinking = with_template(
        processor,
        BEGINNING.replace("{{ content['text'] | trim }}", "<think></think>{{ content['text'] }}"),
    )
    pair = replace(pairs[0], chosen="think", rejected="a star", chosen_spans=((0, 5),))
    row = encode_pair(pair, thinking, min_match=3, max_length=512)
    flags = row.changed["muffin"].chosen
    offsets = answer_ids(thinking, pair.question, "think").offsets
    assert [start >= 0 and stop <= 5 for start, stop in offsets] == flags


def test_an_answer_that_the_template_changes_is_set_aside(pairs, processor):
    """Catches: an answer of which the template drops a part, learnt as if it were whole."""
    cutting = with_template(
        processor, BEGINNING.replace("['text'] | trim", "['text'].split('</think>')[-1]")
    )
    with pytest.raises(DataError, match="changes the answer"):
        answer_ids(cutting, "What?", "hm</think>a star")
    assert answer_ids(cutting, "What?", "a star").ids


def test_a_change_of_the_last_word_leaves_the_end_alone(pairs, processor):
    """Catches: gamma on the token that ends the turn, because the run behind the edit is short."""
    pair = replace(pairs[0], chosen="there is a red star", rejected="there is a red ring")
    row = encode_pair(pair, processor, min_match=3, max_length=256)
    assert marked(processor, row.chosen_ids, row.changed["both_sides"].chosen) == "star"
    muffin = marked(processor, row.chosen_ids, row.changed["muffin"].chosen)
    assert muffin == "star</s>"  # as the release has it


def test_earlier_turns_stand_in_the_prompt_and_are_not_scored(pairs, processor):
    """Catches: earlier turns that are dropped, an image in a later one, another answer's tokens."""
    talk = replace(pairs[0], history=(("what is there ?", "a star ."),))
    row = encode_pair(talk, processor, min_match=3, max_length=512)
    alone = encode_pair(pairs[0], processor, min_match=3, max_length=512)
    assert (row.chosen_ids, row.rejected_ids) == (alone.chosen_ids, alone.rejected_ids)
    text = processor.tokenizer.decode(row.prompt_ids).replace("<image>" * 16, "<image>")
    assert text == (
        f"USER:<image>\nwhat is there ?ASSISTANT:\na star .</s>USER:{pairs[0].question}ASSISTANT:\n"
    )
