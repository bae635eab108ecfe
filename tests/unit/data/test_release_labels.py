"""The release's labels; `tests/golden/muffin_text.json` compares them with its own functions."""

import pytest

from rlhfv_ray.data.release_labels import piece_lengths, release_labels
from rlhfv_ray.data.templates import assistant_message, user_message
from rlhfv_ray.errors import DataError
from rlhfv_ray.models import load_processor
from tests.families_muffin import muffin


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
