"""collate_pairs: predictors, masks, padding, pixels. tests/invariants compares the layouts."""

import pytest
import torch

from rlhfv_ray.models.batch import (
    CHOSEN,
    COMMON,
    FORKS,
    REJECTED,
    Layout,
    branch_mask,
    collate_pairs,
    common_start,
    map_tensors,
)
from rlhfv_ray.records import ReferencePair

LAYOUTS = {
    "plain": Layout(),
    "shared": Layout(shared=True),
    "packed": Layout(shared=True, row_tokens=200),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_positions_of_targets_masks_and_reference(encoded, processor, name):
    """Catches: masks or reference log-probs one position off their tokens; chosen and rejected
    answers mixed up."""
    pairs = [
        ReferencePair(
            **vars(pair),
            chosen_logps=[-0.5] * len(pair.chosen_ids),
            rejected_logps=[-2.0] * len(pair.rejected_ids),
        )
        for pair in encoded[:3]
    ]
    batch = collate_pairs(pairs, processor, rule="both_sides", layout=LAYOUTS[name])
    tokens = batch.inputs["input_ids"].flatten()
    assert batch.ids == tuple(pair.id for pair in pairs)
    for number, pair in enumerate(pairs):
        changed = pair.changed["both_sides"]
        for answer, ids, corrected, value in (
            (number, pair.chosen_ids, changed.chosen, -0.5),
            (number + 3, pair.rejected_ids, changed.rejected, -2.0),
        ):
            indices = batch.answers[answer]  # (A,), into the N scored tokens
            scored = indices >= 0
            assert scored.tolist() == [True] * len(ids) + [False] * (len(indices) - len(ids))
            assert batch.targets[indices[scored]].tolist() == ids
            # Each token is predicted at the position of the token before it.
            previous = [pair.prompt_ids[-1], *ids[:-1]]
            assert tokens[batch.predictors[indices[scored]]].tolist() == previous
            assert batch.changed[answer][scored].tolist() == corrected
            assert not batch.changed[answer][~scored].any()
            assert (batch.reference_token_logps[answer] == torch.where(scored, value, 0.0)).all()


def test_shared_rows_hold_prompt_and_common_beginning_once(encoded, processor):
    """Catches: a layout that saves nothing; positions that do not go back where the answers part;
    a wrong branch."""
    pair = next(pair for pair in encoded if common_start(pair) > 2)
    layout = Layout(shared=True)
    inputs = collate_pairs([pair], processor, rule="muffin", layout=layout).inputs
    common, prompt = common_start(pair), len(pair.prompt_ids)
    tails = pair.chosen_ids[common:], pair.rejected_ids[common:]
    assert inputs["input_ids"].tolist() == [
        pair.prompt_ids + pair.chosen_ids[:common] + tails[0] + tails[1]
    ]
    assert inputs["input_ids"].shape[1] == layout.tokens_of(pair) < Layout().tokens_of(pair)
    fork = prompt + common
    chosen_steps = range(fork, fork + len(tails[0]))
    rejected_steps = range(fork, fork + len(tails[1]))
    assert inputs["position_ids"].tolist() == [[*range(fork), *chosen_steps, *rejected_steps]]
    branches = [COMMON] * fork + [CHOSEN] * len(tails[0]) + [REJECTED] * len(tails[1])
    assert inputs["branches"].tolist() == [branches]
    assert len(inputs["pixel_values"]) == 1


def test_rows_take_pairs_up_to_the_budget(encoded, processor):
    """Catches: a budget that is ignored or overrun; a pair lost or doubled in packing."""
    layout = Layout(
        shared=True, row_tokens=2 * max(Layout(shared=True).tokens_of(pair) for pair in encoded[:6])
    )
    batch = collate_pairs(encoded[:6], processor, rule="muffin", layout=layout)
    rows, width = batch.inputs["input_ids"].shape
    assert 1 < rows < 6
    assert width <= layout.row_tokens
    used = (batch.inputs["branches"] >= 0).sum()
    assert used == sum(layout.tokens_of(pair) for pair in encoded[:6])


def test_mask_by_hand():
    """Catches: branches or pairs that see each other; padding that is seen, or is NaN."""
    # common, chosen, rejected of pair 0; common, chosen, rejected of pair 1; padding
    mask = branch_mask(torch.tensor([[0, 1, 2, 3, 4, 5, -1]]))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]


def test_pixels_are_the_processors_and_the_same_for_both_answers(encoded, processor):
    """Catches: a random crop or flip; another image for the rejected answer."""
    batch = collate_pairs(encoded[:2], processor, rule="muffin")
    pixels = batch.inputs["pixel_values"]
    assert torch.equal(pixels[:2], pixels[2:])
    again = collate_pairs(encoded[:2], processor, rule="muffin").inputs["pixel_values"]
    assert torch.equal(pixels, again)
    assert batch.reference_token_logps is None


def test_a_change_reaches_every_tensor_but_the_forks(encoded, processor):
    """Catches: a tensor left behind in memory from which a GPU cannot copy beside its work."""
    pairs = [
        ReferencePair(
            **vars(pair),
            chosen_logps=[-0.5] * len(pair.chosen_ids),
            rejected_logps=[-2.0] * len(pair.rejected_ids),
        )
        for pair in encoded[:2]
    ]
    batch = collate_pairs(pairs, processor, rule="muffin", layout=LAYOUTS["shared"])
    copied = map_tensors(batch, torch.clone)
    for before, after in ((batch.inputs, copied.inputs), (batch._asdict(), copied._asdict())):
        for name, value in before.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(after[name], value)
                assert (after[name] is value) == (name == FORKS)
    encoded_only = collate_pairs(encoded[:1], processor, rule="muffin", layout=LAYOUTS["plain"])
    assert map_tensors(encoded_only, torch.clone).reference_token_logps is None
