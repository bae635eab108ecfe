"""head_logps against the plain log-softmax of full logits."""

import itertools

import pytest
import torch

from rlhfv_ray.logps import head_logps

WORDS, FEATURES, TOKENS = 57, 16, 23
ONE_CHUNK, SMALL_CHUNKS = 2**30, 4 * WORDS * 5  # bytes: all tokens, five tokens


def problem(dtype, *, bias):
    generator = torch.Generator().manual_seed(0)
    shapes = [(TOKENS, FEATURES), (WORDS, FEATURES), (WORDS,)]
    made = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]
    targets = torch.randint(WORDS, (TOKENS,), generator=generator)
    slope = torch.randn(TOKENS, generator=generator, dtype=torch.float64)
    return [*made[:2], made[2] if bias else None], targets, slope


def gradients(logps, slope, tensors):
    return torch.autograd.grad(
        (logps * slope.to(logps.dtype)).sum(), [t for t in tensors if t is not None]
    )


@pytest.mark.parametrize(
    ("limit", "bias"), itertools.product((ONE_CHUNK, SMALL_CHUNKS, 1), (False, True))
)
def test_equals_log_softmax_of_full_logits(limit, bias):
    """Catches: a chunk scored with another's normaliser, a last short chunk lost, a gradient that misses a term. float64."""
    (hidden, weight, offset), targets, slope = problem(torch.float64, bias=bias)
    logits = torch.nn.functional.linear(hidden, weight, offset)
    wanted = logits.log_softmax(-1)[torch.arange(TOKENS), targets]
    got = head_logps(hidden, weight, offset, targets, limit=limit)
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)
    tensors = (hidden, weight, offset)
    for ours, theirs in zip(
        gradients(got, slope, tensors), gradients(wanted, slope, tensors), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("limit", [ONE_CHUNK, SMALL_CHUNKS])
def test_half_precision_is_scored_in_fp32(limit):
    """Catches: log-softmax in bf16 (1e-2 nats a token); weight gradients added up in bf16 chunk by chunk."""
    (hidden, weight, _), targets, slope = problem(torch.bfloat16, bias=False)
    logits = (hidden @ weight.T).float()
    wanted = logits.log_softmax(-1)[torch.arange(TOKENS), targets]
    got = head_logps(hidden, weight, None, targets, limit=limit)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    for ours, theirs in zip(
        gradients(got, slope, (hidden, weight)),
        gradients(wanted, slope, (hidden, weight)),
        strict=True,
    ):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.02)


def test_frozen_head_still_passes_gradients_on():
    """Catches: LoRA or a frozen head that stops the body's gradient, or that computes one nobody wants."""
    (hidden, weight, _), targets, slope = problem(torch.float64, bias=False)
    frozen = weight.detach()
    (ours,) = gradients(
        head_logps(hidden, frozen, None, targets, limit=SMALL_CHUNKS), slope, (hidden,)
    )
    (theirs, _) = gradients(
        head_logps(hidden, weight, None, targets, limit=ONE_CHUNK), slope, (hidden, weight)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_chunks_keep_no_logits():
    """Catches: memory that grows with tokens * words after all. Bytes saved for backward, counted."""
    (hidden, weight, _), targets, _ = problem(torch.float32, bias=False)

    def saved(limit):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t
        ):
            head_logps(hidden, weight, None, targets, limit=limit)
        return max(kept)

    assert saved(ONE_CHUNK) == TOKENS * WORDS
    assert saved(SMALL_CHUNKS) == WORDS * FEATURES  # the weight itself
