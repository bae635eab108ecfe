"""The release's labels; `tests/golden/muffin_text.json` compares them with its own functions."""

import pytest

from rlhfv_ray.data.encoding import encode_example, encode_pair
from rlhfv_ray.data.reference_table import MASKED, from_row
from rlhfv_ray.data.release_labels import piece_lengths, release_labels
from rlhfv_ray.data.templates import assistant_message, user_message
from rlhfv_ray.errors import DataError
from rlhfv_ray.inference.reference import part_table, score_pairs
from rlhfv_ray.models import AnswerPolicy, layout_of, load_processor
from rlhfv_ray.records import Example, PreferencePair
from tests.families_muffin import muffin
from tests.invariants.test_families import picture


def test_the_header_and_questions_are_not_covered_but_for_two_tokens():
    """Catches: a question that is learnt; an answer, its role or the end that is not."""
    _, processor = muffin()
    messages = [
        user_message("a red star?"),
        assistant_message("green"),
        user_message("a b", image=False),
    ]
    tokens = release_labels(processor, [*messages, assistant_message("c")])
    words = processor.tokenizer.convert_ids_to_tokens(tokens.ids)
    covered = [word for word, flag in zip(words, tokens.covered, strict=True) if flag]
    text = processor.tokenizer.convert_tokens_to_string(covered).replace("\n", "|").replace(" ", "")
    # The halves of `###` of both questions, the answers with their own `###`, and the end.
    assert text == "###" + "###Assistant:green|" + "###" + "###Assistant:c|" + "###"
    assert len(piece_lengths(processor, messages)) == 4


def test_other_templates_are_refused():
    """Catches: labels made up for a model whose texts the release never saw."""
    with pytest.raises(DataError, match=r"data\.release_labels needs the template of Muffin"):
        release_labels(load_processor("shapes"), [user_message("?"), assistant_message("a star")])


ANSWERS = ("A red circle.", "A blue square on a street.")


@pytest.fixture(scope="module")
def encoded():
    """A model, and one pair with our labels and with the release's."""
    model, processor = muffin()
    pair = PreferencePair("0", picture(0, 40, 30), "a star?", *ANSWERS, chosen_spans=((2, 5),))
    limits = {"min_match": 3, "max_length": 200}
    ours = encode_pair(pair, processor, **limits)
    return (
        model.eval(),
        processor,
        ours,
        encode_pair(pair, processor, release_labels=True, **limits),
    )


def test_both_labels_are_of_the_same_rows(encoded):
    """Catches: a text that differs with its labels; a mark of a human that moved to other tokens;
    scored tokens of the question, beyond the two."""
    _, processor, ours, release = encoded
    for side in ("chosen_ids", "rejected_ids"):
        assert ours.prompt_ids + getattr(ours, side) == release.prompt_ids + getattr(release, side)
    marked = []
    for pair in (ours, release):
        flags = zip(pair.chosen_ids, pair.changed["muffin"].chosen, strict=True)
        marked.append([token for token, flag in flags if flag])
    assert marked[0] == marked[1] != []
    words = processor.tokenizer.convert_ids_to_tokens(release.chosen_ids)
    left_out = {word for word, flag in zip(words, release.scored, strict=False) if not flag}
    assert {"<im_start>", "<im_patch>", "<im_end>"} <= left_out
    assert words[: release.scored.index(False)] == ["##", "#"]


@pytest.mark.parametrize("layout", ["shared", "plain"])
def test_what_the_release_scores_besides_cancels_in_sums(encoded, layout):
    """Catches: tokens of the question scored on one side alone, or at the wrong place; a picture
    that stands within an answer's tokens and is lost; a mask that the tables do not hold."""
    model, processor, ours, release = encoded
    policy = AnswerPolicy(model, layout_of(model, layout))
    sums = []
    for pair in (ours, release):
        scored = score_pairs(policy, processor, [pair])
        table = part_table(scored, MASKED)
        stored = from_row(table.to_pylist()[0])
        assert stored.scored == scored[0].scored
        sums.append((sum(stored.chosen_logps), sum(stored.rejected_logps)))
    margins = [chosen - rejected for chosen, rejected in sums]
    assert margins[0] == pytest.approx(margins[1], abs=1e-5)
    assert sums[1][0] < sums[0][0] - 0.1  # and they do count


def test_examples_are_covered_too():
    """Catches: fine-tuning with the release's labels that scores what DDPO does not."""
    _, processor = muffin()
    example = Example("0", picture(0, 40, 30), (("a star?", "green"), ("a b?", "red")))
    pair = encode_example(example, processor, max_length=200, release_labels=True)
    tokens = release_labels(
        processor,
        [
            user_message("a star?"),
            assistant_message("green"),
            user_message("a b?", image=False),
            assistant_message("red"),
        ],
    )
    assert pair.prompt_ids + pair.chosen_ids == tokens.ids
    assert [False] * len(pair.prompt_ids) + pair.scored == tokens.covered
