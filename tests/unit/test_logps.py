"""head_logps against the plain log-softmax of full logits."""

import itertools

import pytest
import torch

from benchmarks.measure import peak_bytes
from rlhfv_ray.logps import head_logps

WORDS, FEATURES, TOKENS = 57, 16, 23
ONE_CHUNK, SMALL_CHUNKS = 2**30, 4 * WORDS * 5  # bytes: all tokens, five tokens


def problem(dtype, *, bias):
    generator = torch.Generator().manual_seed(0)
    shapes = [(TOKENS, FEATURES), (WORDS, FEATURES), (WORDS,)]
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]
    targets = torch.randint(WORDS, (TOKENS,), generator=generator)
    slope = torch.randn(TOKENS, generator=generator, dtype=torch.float64)
    return [*tensors[:2], tensors[2] if bias else None], targets, slope


def gradients(logps, slope, tensors):
    return torch.autograd.grad(
        (logps * slope.to(logps.dtype)).sum(), [t for t in tensors if t is not None]
    )


@pytest.mark.parametrize(
    ("limit", "bias"), itertools.product((ONE_CHUNK, SMALL_CHUNKS, 1), (False, True))
)
def test_equals_log_softmax_of_full_logits(limit, bias):
    """Catches: another chunk's normaliser, a lost last chunk, a gradient without a term."""
    (hidden, weight, offset), targets, slope = problem(torch.float64, bias=bias)
    logits = torch.nn.functional.linear(hidden, weight, offset)
    expected = logits.log_softmax(-1)[torch.arange(TOKENS), targets]
    actual = head_logps(hidden, weight, offset, targets, limit=limit)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)
    tensors = (hidden, weight, offset)
    for ours, theirs in zip(
        gradients(actual, slope, tensors), gradients(expected, slope, tensors), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("limit", [ONE_CHUNK, SMALL_CHUNKS])
def test_half_precision_is_scored_in_fp32(limit):
    """Catches: log-softmax in bf16 (1e-2 nats a token); weight gradients summed in bf16."""
    (hidden, weight, _), targets, slope = problem(torch.bfloat16, bias=False)
    logits = (hidden @ weight.T).float()
    expected = logits.log_softmax(-1)[torch.arange(TOKENS), targets]
    actual = head_logps(hidden, weight, None, targets, limit=limit)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    for ours, theirs in zip(
        gradients(actual, slope, (hidden, weight)),
        gradients(expected, slope, (hidden, weight)),
        strict=True,
    ):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.02)


def test_frozen_head_still_passes_gradients_on():
    """Catches: a frozen head (LoRA) that stops the body's gradient, or that computes its own."""
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
    """Catches: memory that grows with tokens * words. Counts what is saved for backward."""
    (hidden, weight, _), targets, _ = problem(torch.float32, bias=False)

    def saved(limit):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda t: t
        ):
            head_logps(hidden, weight, None, targets, limit=limit)
        return max(sizes)

    assert saved(ONE_CHUNK) == TOKENS * WORDS
    assert saved(SMALL_CHUNKS) == WORDS * FEATURES  # the weight itself


def test_backward_holds_one_chunk_at_a_time():
    """Catches: the logits of a chunk that stay in memory while those of the next one are made."""
    words, chunk = 4096, 16
    hidden, weight = (torch.randn(rows, 2, requires_grad=True) for rows in (4 * chunk, words))
    targets = torch.zeros(4 * chunk, dtype=torch.long)
    limit = 4 * words * chunk
    total = head_logps(hidden, weight, None, targets, limit=limit).sum()
    assert limit <= peak_bytes(total.backward, torch.device("cpu")) < 1.5 * limit
