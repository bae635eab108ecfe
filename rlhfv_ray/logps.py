"""Compute token log-probabilities and their segment-weighted sum.

Shapes: B answers of up to A tokens, N scored tokens of a batch (each once), V words, D features.
Log-probabilities are in nats.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from rlhfv_ray.records import PairBatch

IGNORED = -100  # label of a token that is not scored: prompt or padding
# Bytes of fp32 logits held at a time. With more tokens than fit, the tokens are scored in chunks,
# and each chunk is computed again in backward.
HEAD_BYTES = 48 * 1024**2
HEAD_SHARE = 128  # a GPU may hold this part of its memory, because every chunk is a few launches


def head_limit(gpu_bytes: int) -> int:
    """Return the bytes of fp32 logits to hold at a time.

    Args:
        gpu_bytes: memory of the GPU; 0 on a CPU.

    Examples:
        >>> head_limit(0) // 2**20, head_limit(80 * 2**30) // 2**20
        (48, 640)
    """
    return max(HEAD_BYTES, gpu_bytes // HEAD_SHARE)


def token_logps(logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]) -> Float[Tensor, "B S"]:
    """Return the log-probability of every labelled token given the tokens before it.

    Half-precision logits are scored in fp32, as the RLHF-V release does (`get_batch_logps`).

    Args:
        logits: the model's output; position t predicts token t+1.
        labels: token ids, -100 where nothing is scored.

    Returns:
        Nats, S = T-1, 0 where the label is -100.

    Raises:
        ValueError: logits and labels differ in number or length of their rows.

    Examples:
        >>> token_logps(torch.zeros(1, 3, 4), torch.tensor([[0, -100, 2]]))
        tensor([[ 0.0000, -1.3863]])
    """
    if logits.shape[:2] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}")
    targets = labels[:, 1:]  # (B, S): position t of the logits predicts token t + 1
    scored = targets != IGNORED  # (B, S) bool, answer tokens
    logps = widened(logits[:, :-1]).log_softmax(-1)  # (B, S, V)
    indices = targets.masked_fill(~scored, 0)  # gather refuses -100; any word does, it is zeroed
    target_logps = logps.gather(-1, indices.unsqueeze(-1)).squeeze(-1)  # (B, S)
    return target_logps.masked_fill(~scored, 0.0)


def head_logps(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, " N"],
    *,
    limit: int = HEAD_BYTES,
) -> Float[Tensor, " N"]:
    """Return the log-probability of each target, from the feature that predicts it.

    The numbers are those of `token_logps`, without the logits of all tokens in memory.

    Args:
        hidden: the model's last features, one per scored token.
        weight: weight of the output head.
        bias: bias of the output head, if it has one.
        targets: token ids.
        limit: bytes of fp32 logits that may be kept for backward. If all fit, they are kept.
            Otherwise the tokens are scored in chunks of at most this size, and each chunk is
            computed again in backward.

    Returns:
        Nats, fp32 (float64 for float64 features).

    Examples:
        >>> head_logps(torch.zeros(2, 3), torch.ones(4, 3), None, torch.tensor([0, 3]))
        tensor([-1.3863, -1.3863])
    """
    tokens = len(hidden)
    tokens_per_limit = max(1, limit // (4 * len(weight)))  # fp32: 4 bytes for each of V logits
    chunks = -(-tokens // tokens_per_limit)  # rounded up
    # Chunks of about equal size: each costs one pass over the (V, D) gradient of the weight.
    chunk_size = -(-tokens // max(1, chunks))
    return _HeadLogps.apply(hidden, weight, bias, targets, chunk_size)


class _HeadLogps(torch.autograd.Function):
    """Compute log softmax(hidden @ weight.T + bias)[target], with softmax overwriting the logits.

    Shapes inside: C tokens of one chunk, C <= N.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (N, D)
        weight: Tensor,  # (V, D)
        bias: Tensor | None,  # (V,)
        targets: Tensor,  # (N,)
        chunk_size: int,
    ) -> Tensor:
        logps = []
        normalizers = []
        softmax = None  # (N, V), kept for backward only if all tokens make one chunk
        chunks = zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
        for features, labels in chunks:
            logits = widened(functional.linear(features, weight, bias))  # (C, V)
            target_logits = logits.gather(-1, labels.unsqueeze(-1))  # (C, 1)
            largest = logits.amax(-1, keepdim=True)  # (C, 1); without it exp overflows
            # In place: the logits are the largest tensor of a training step.
            exponentials = logits.sub_(largest).exp_()  # (C, V)
            total = exponentials.sum(-1, keepdim=True)  # (C, 1)
            logps.append((target_logits - largest - total.log()).squeeze(-1))  # (C,)
            normalizers.append(largest + total.log())  # (C, 1) log-sum-exp, what backward needs
            if len(hidden) <= chunk_size and any(ctx.needs_input_grad):
                softmax = exponentials.div_(total)
            del logits, exponentials  # frees (C, V) before the next chunk allocates its own
        ctx.chunk_size = chunk_size
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalizers), softmax)
        return torch.cat(logps)  # (N,)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalizers, saved_softmax = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # Chunks add to the head's gradients in fp32: a sum in bf16 would lose small terms.
        wide = gradient.dtype
        to_hidden = torch.zeros_like(hidden) if needs_hidden else None  # (N, D)
        to_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None  # (V, D)
        to_bias = torch.zeros_like(bias, dtype=wide) if needs_bias else None  # (V,)
        for start in range(0, len(hidden), ctx.chunk_size):
            chunk = slice(start, start + ctx.chunk_size)
            features = hidden[chunk]  # (C, D)
            scale = gradient[chunk].unsqueeze(-1)  # (C, 1) d loss / d logp of each target
            softmax = saved_softmax  # (C, V); one chunk holds all tokens where it was saved
            if softmax is None:
                # No name of its own: it would keep this chunk beside the next one.
                softmax = (
                    widened(functional.linear(features, weight, bias))
                    .sub_(normalizers[chunk])
                    .exp_()
                )
            # d logp / d logits = onehot - softmax, times the incoming gradient, in place.
            slope = softmax.mul_(-scale)  # (C, V)
            slope.scatter_add_(-1, targets[chunk].unsqueeze(-1), scale)
            slope = slope.to(hidden.dtype)  # matrix products run in the model's own precision
            if to_hidden is not None:
                torch.mm(slope, weight, out=to_hidden[chunk])
            if to_weight is not None:
                accumulate(to_weight, slope.T, features)
            if to_bias is not None:
                to_bias += slope.sum(0)
            del softmax, slope  # as in forward
        if to_weight is not None:
            to_weight = to_weight.to(weight.dtype)
        if to_bias is not None:
            to_bias = to_bias.to(bias.dtype)
        return to_hidden, to_weight, to_bias, None, None


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to a sum in place, without memory for the product if dtypes agree."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def widened(logits: Tensor) -> Tensor:
    """Return logits in the precision they are scored in: half precision becomes fp32."""
    return logits.float() if logits.element_size() < 4 else logits


def segment_weights(
    scored: Bool[Tensor, "B A"],
    changed: Bool[Tensor, "B A"],
    *,
    gamma: float,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "B A"]:
    """Return the weight of every token: gamma if corrected, 1 if not, 0 beyond the answer's end.

    Examples:
        >>> scored = torch.tensor([[True, True, False]])
        >>> segment_weights(scored, torch.tensor([[False, True, False]]), gamma=5.0)
        tensor([[1., 5., 0.]])
    """
    # Mask and gamma in one tensor, so that N = |y_u| + gamma |y_c| (Eq. 5) is its sum.
    return scored.to(dtype) * (1 + (gamma - 1) * changed.to(dtype))


def weighted_logps(
    token_logps: Float[Tensor, "B S"], weights: Float[Tensor, "B S"], *, normalize: bool
) -> Float[Tensor, " B"]:
    """Score each answer by the segment-weighted sum of its token log-probabilities.

    RLHF-V (arXiv 2312.00849), Eq. 5, with N = |y_u| + gamma |y_c|:

        log pi(y|x) = 1/N (sum over y_u of log p_i + gamma * sum over y_c of log p_i)

    Args:
        token_logps: in nats, 0 where nothing is scored.
        weights: gamma on corrected tokens, 1 on the other answer tokens, 0 on prompt and padding.
        normalize: divide by N, as the paper does; the released command does not.

    Returns:
        Nats per answer; nats per weighted token if `normalize`.

    Examples:
        Tokens with p = 1/2, 1/4, 1/8, the last corrected, gamma 5: -(1 + 2 + 5*3) ln 2.

        >>> logps = torch.tensor([[0.5, 0.25, 0.125]]).log()
        >>> weighted_logps(logps, torch.tensor([[1.0, 1.0, 5.0]]), normalize=False)
        tensor([-12.4766])
    """
    total = (token_logps * weights).sum(-1)  # (B,)
    # N > 0: every answer that is scored here has at least the token that ends its turn.
    return total / weights.sum(-1) if normalize else total


def policy_token_logps(policy: Callable[..., Tensor], batch: PairBatch) -> Float[Tensor, "B A"]:
    """Run the forward pass and return the log-probabilities of all answer tokens of a batch.

    The value is 0 beyond an answer's end. Reference pass and training step both call this function,
    so that they agree before the first update.

    Args:
        policy: an `AnswerPolicy`, or the engine that wraps one.
        batch: encoded pairs or examples.
    """
    logps = policy(batch.inputs, batch.predictors, batch.targets)  # (N,) each scored token once
    padded = torch.cat([logps, logps.new_zeros(1)])  # (N + 1,): the index -1 reads the appended 0
    return padded[batch.answers]  # (B, A); a token that both answers share is read by both
