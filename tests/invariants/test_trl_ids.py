"""Prompts, answers and scored tokens are those of TRL's own code, on every family in the tests.

TRL's collator for preferences with pictures renders with its `apply_chat_template` and tokenises
with the family's processor. Where ours are others, or TRL makes none, a table says why.
"""

import pytest
from transformers.utils import is_torchvision_available

from rlhfv_ray.data import decode_image
from rlhfv_ray.data.encoding import encode_pair
from rlhfv_ray.models import load_processor
from tests.families import FAMILIES, save, smolvlm
from tests.families_a import FAMILIES_A
from tests.families_b import FAMILIES_B
from tests.families_c import FAMILIES_C
from tests.families_d import FAMILIES_D
from tests.families_vision import FAMILIES_VISION
from tests.unit.data.test_encoding import BEGINNING, LLAVA_1_5, with_template
from tests.whole_line import line_pairs

with_torchvision = pytest.mark.skipif(
    not is_torchvision_available(), reason="needs torchvision: make models"
)
MAKES = [*FAMILIES, *FAMILIES_A, *FAMILIES_B, *FAMILIES_C, *FAMILIES_D]
# Its processor in the tests has no part for videos, which a text alone asks for.
MAKES.remove(smolvlm)
MAKES += [pytest.param(make, marks=with_torchvision) for make in FAMILIES_VISION]
OTHER_ANSWERS = {
    "mllama": "TRL's answers begin with a second <s>, which the processor adds to every text",
    "chameleon": "TRL's answers end with the token between a prompt and its answer",
}
NO_ROWS = {
    "paligemma": "its processor takes no text without an image, as TRL's answers are",
    "paligemma2": "as paligemma",
    "got_ocr2": "its processor takes no nested images, as TRL's are",
}


def trl_ids(processor, pairs) -> list[tuple[list[int], list[int]]]:
    """Return prompt and answer ids of TRL's rows: all chosen answers, then all rejected ones."""
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    examples = [
        {
            "images": [decode_image(pair.image)],
            "prompt": [{"role": "user", "content": pair.question}],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in pairs
    ]
    batch = DataCollatorForVisionPreference(processor)(examples)
    rows = []
    for ids, real, answer in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        is_answer = answer.bool()
        rows.append((ids[real.bool() & ~is_answer].tolist(), ids[is_answer].tolist()))
    return rows


def our_ids(processor, pairs) -> list[tuple[list[int], list[int]]]:
    """Return ours in the same order."""
    encoded = [encode_pair(pair, processor, min_match=3, max_length=4096) for pair in pairs]
    chosen = [(pair.prompt_ids, pair.chosen_ids) for pair in encoded]
    return chosen + [(pair.prompt_ids, pair.rejected_ids) for pair in encoded]


@pytest.mark.parametrize("make", MAKES)
def test_rows_are_trls(make, tmp_path):
    """Catches: a prompt or an answer with other tokens than the field trains on; a difference that
    is gone and still excused."""
    processor = load_processor(save(make, tmp_path / "model"))
    pairs = line_pairs()
    ours = our_ids(processor, pairs)
    if make.__name__ in NO_ROWS:
        with pytest.raises((ValueError, AttributeError)):
            trl_ids(processor, pairs)
        return
    theirs = trl_ids(processor, pairs)
    assert [prompt for prompt, _ in ours] == [prompt for prompt, _ in theirs]
    answers = [[answer for _, answer in rows] for rows in (ours, theirs)]
    assert (answers[0] == answers[1]) == (make.__name__ not in OTHER_ANSWERS)
    for answer, other in zip(*answers, strict=True):
        # All of ours, and at most one token around it.
        assert answer in (other, other[1:], other[:-1])


def test_a_template_that_begins_and_ends_its_turns_gives_trls_rows(processor):
    """Catches: a second bos beside the template's own, or an end after the turn's own."""
    changed = with_template(processor, BEGINNING)
    assert our_ids(changed, line_pairs()) == trl_ids(changed, line_pairs())


def test_llavas_published_template_gets_a_beginning_and_an_end_that_trl_leaves_out(processor):
    """Catches: the tokenizer's bos lost, without which LLaVA was never trained; an answer after
    which nothing is learnt to stop."""
    changed = with_template(processor, LLAVA_1_5)
    words = changed.tokenizer
    rows = zip(our_ids(changed, line_pairs()), trl_ids(changed, line_pairs()), strict=True)
    for (prompt, answer), (trl_prompt, trl_answer) in rows:
        assert prompt == [words.bos_token_id, *trl_prompt]
        assert answer == [*trl_answer[:-1], words.eos_token_id]
        assert words.decode(trl_answer[-1:]) == " "  # the blank behind an answer
