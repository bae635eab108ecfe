"""collate_pairs: positions, padding, pixels."""

import torch

from rlhfv_ray.batch import collate_pairs
from rlhfv_ray.logps import IGNORED
from rlhfv_ray.records import ReferencePair


def test_positions_of_labels_masks_and_reference(encoded, processor):
    """Catches: masks or reference log-probs one position off their tokens; chosen and rejected rows mixed up."""
    rows = [
        ReferencePair(
            **vars(pair), chosen_logps=[-0.5] * len(pair.chosen_ids), rejected_logps=[-2.0] * len(pair.rejected_ids)
        )
        for pair in encoded[:3]
    ]
    batch = collate_pairs(rows, processor, rule="both_sides")
    assert batch.ids == tuple(pair.id for pair in rows)
    for row, pair in enumerate(rows):
        for index, ids, changed, value in (
            (row, pair.chosen_ids, pair.changed["both_sides"].chosen, -0.5),
            (row + 3, pair.rejected_ids, pair.changed["both_sides"].rejected, -2.0),
        ):
            start = len(pair.prompt_ids)
            scored = batch.labels[index] != IGNORED
            assert scored.nonzero().flatten().tolist() == list(range(start, start + len(ids)))
            assert batch.labels[index][scored].tolist() == ids
            assert batch.changed[index][scored[1:]].tolist() == changed
            assert not batch.changed[index][~scored[1:]].any()
            assert (batch.reference_token_logps[index][scored[1:]] == value).all()
            assert (batch.reference_token_logps[index][~scored[1:]] == 0).all()
            length = start + len(ids)
            assert batch.inputs["attention_mask"][index].tolist() == [1] * length + [0] * (scored.numel() - length)
            assert batch.inputs["input_ids"][index, :length].tolist() == pair.prompt_ids + ids


def test_pixels_are_the_processors_and_the_same_for_both_answers(encoded, processor):
    """Catches: a random crop or flip; another image for the rejected answer."""
    batch = collate_pairs(encoded[:2], processor, rule="muffin")
    pixels = batch.inputs["pixel_values"]
    assert torch.equal(pixels[:2], pixels[2:])
    again = collate_pairs(encoded[:2], processor, rule="muffin").inputs["pixel_values"]
    assert torch.equal(pixels, again)
    assert batch.reference_token_logps is None
