"""The first loss, and the suspects of a skipped update, on numbers by hand."""

import math

import pytest
import torch

from rlhfv_ray.training.step_checks import repeats, starts_at_reference, suspect_pairs

LN_2 = torch.tensor([math.log(2)] * 2)
LOGPS = torch.tensor([-1.0, -2.0, -3.0])


@pytest.mark.parametrize(
    ("loss_error", "token_error", "dtype", "passes"),
    [
        (0.0, 0.0, "fp32", True),
        (1e-3, 0.0, "fp32", True),  # large beta magnifies rounding, but the tokens agree
        (0.0, 1e-3, "fp32", True),  # the loss agrees: rounding of long answers cancels
        (1e-3, 1e-3, "fp32", False),
        (-1e-3, -1e-3, "fp32", False),  # distances, not signed differences
        (1e-3, 1e-3, "bf16", True),
        (2e-2, 2e-2, "bf16", False),
        (math.nan, 1e-3, "fp32", False),
        (math.nan, math.nan, "fp32", False),
    ],
)
def test_first_loss_passes_by_loss_or_by_tokens(loss_error, token_error, dtype, passes):
    """Catches: a first-loss gate that never fails, or that asks for loss and tokens together."""
    result = starts_at_reference(LN_2 + loss_error, LOGPS, LOGPS + token_error, dtype=dtype)
    assert bool(result) is passes


@pytest.mark.parametrize(
    ("token_error", "rounding", "passes"),
    [
        (9e-3, None, True),  # a check from before rounding was measured
        (9e-3, 3e-3, True),
        (9e-3, 2e-3, False),
        (0.0, 0.0, True),
        (9e-6, 0.0, True),  # as in fp32
        (1e-4, 0.0, False),
        (math.nan, 3e-3, False),
    ],
)
def test_first_loss_in_bf16_is_as_close_as_two_passes(token_error, rounding, passes):
    """Catches: a tolerance so wide that another forward pass goes unseen where rows repeat."""
    losses = LN_2 - 2.3e-3  # within the tolerance of a check that measured nothing
    result = starts_at_reference(
        losses, LOGPS, LOGPS + token_error, dtype="bf16", rounding=rounding
    )
    assert bool(result) is (passes or rounding is None)


def test_first_loss_of_a_batch_is_its_mean():
    """Catches: one pair's loss taken for the batch's. Off by +1e-3 and -1e-3: ln 2 together."""
    losses = LN_2 + torch.tensor([1e-3, -1e-3])
    assert starts_at_reference(losses, LOGPS, LOGPS + 1, dtype="fp32")
    assert not starts_at_reference(losses[:1], LOGPS, LOGPS + 1, dtype="fp32")


def test_suspects_are_the_pairs_of_non_finite_batches():
    """Catches: finite batches' pairs blamed, or the pairs of a second non-finite batch left out."""
    batches = [(("a", "b"), True), (("c", "d"), False), (("e",), True), (("f",), False)]
    assert suspect_pairs(batches) == ["c", "d", "f"]


def test_all_pairs_are_suspects_if_every_loss_is_finite():
    """Catches: a non-finite gradient that blames nobody, so that the skip goes unnoticed."""
    assert suspect_pairs([(("a", "b"), True), (("c",), True)]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("loss", "recorded", "dtype", "same"),
    [
        (0.65, 0.65, "fp32", True),
        (0.6509, 0.65, "fp32", True),
        (0.652, 0.65, "fp32", False),
        (0.648, 0.65, "fp32", False),  # a distance, not a signed difference
        (0.69, 0.65, "bf16", True),
        (0.71, 0.65, "bf16", False),
        (6.005, 6.0, "fp32", True),  # a larger loss rounds by more
        (6.007, 6.0, "fp32", False),
        (math.nan, 0.65, "bf16", False),
    ],
)
def test_a_repeated_loss_is_the_recorded_one(loss, recorded, dtype, same):
    """Catches: a resume from other weights, data or reference that goes unnoticed, or rounding by
    other workers that stops one.
    """
    assert repeats(loss, recorded, dtype=dtype) is same
