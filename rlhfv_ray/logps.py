"""Token log-probabilities and their segment-weighted sum.

Shapes: B answers of up to A tokens; N scored tokens of a batch, each once; V words, D features. All in nats.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from rlhfv_ray.records import PairBatch

IGNORED = -100  # label of a token that is not scored: prompt, padding
HEAD_BYTES = (
    48 * 1024**2
)  # of logits at a time; tokens beyond are scored in chunks, computed again in backward


def token_logps(logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]) -> Float[Tensor, "B S"]:
    """Log-probability of every labelled token given what stands before it, from full logits.

    Half-precision logits are scored in fp32, as the RLHF-V release does (`get_batch_logps`).

    Args:
        logits: the model's output; position t predicts token t+1.
        labels: token ids, -100 where nothing is scored.

    Returns:
        Nats, S = T-1, 0 where the label is -100.

    Example:
        >>> token_logps(torch.zeros(1, 3, 4), torch.tensor([[0, -100, 2]]))
        tensor([[ 0.0000, -1.3863]])
    """
    scored = labels[:, 1:]
    kept = scored != IGNORED
    logits = logits[:, :-1]
    logps = (
        widened(logits)
        .log_softmax(-1)
        .gather(-1, scored.masked_fill(~kept, 0).unsqueeze(-1))
        .squeeze(-1)
    )
    return logps.masked_fill(~kept, 0.0)


def head_logps(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, " N"],
    *,
    limit: int = HEAD_BYTES,
) -> Float[Tensor, " N"]:
    """Log-probability of each target from the feature that predicts it; the same numbers as `token_logps` without its logits.

    Args:
        hidden: the model's last features, one per scored token.
        weight: of the output head.
        bias: of the output head.
        targets: token ids.
        limit: bytes of fp32 logits that may be kept for backward. Where all fit they are; else the tokens are scored in chunks of that
            size, and each chunk is computed again in backward.

    Returns:
        Nats, fp32 (float64 for float64 features).

    Example:
        >>> head_logps(torch.zeros(2, 3), torch.ones(4, 3), None, torch.tensor([0, 3]))
        tensor([-1.3863, -1.3863])
    """
    chunks = -(-len(hidden) // max(1, limit // (4 * len(weight))))
    rows = -(
        -len(hidden) // max(1, chunks)
    )  # all about as large: each costs a pass over the weight's gradient
    return _HeadLogps.apply(hidden, weight, bias, targets, rows)


class _HeadLogps(torch.autograd.Function):
    """log softmax(hidden @ weight.T + bias)[target], with softmax itself overwriting the logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int
    ) -> Tensor:
        logps, normalizers, kept = [], [], None
        for some, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = widened(functional.linear(some, weight, bias))
            target, largest = logits.gather(-1, wanted.unsqueeze(-1)), logits.amax(-1, keepdim=True)
            exponentials = logits.sub_(
                largest
            ).exp_()  # in place: the logits are the largest tensor there is
            total = exponentials.sum(-1, keepdim=True)
            logps.append((target - largest - total.log()).squeeze(-1))
            normalizers.append(largest + total.log())
            if len(hidden) <= rows and any(ctx.needs_input_grad):
                kept = exponentials.div_(total)
            del logits, exponentials  # before the next chunk's are made
        ctx.rows = rows
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalizers), kept)
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalizers, kept = ctx.saved_tensors
        to_hidden, to_weight, to_bias = (
            torch.zeros_like(tensor, dtype=dtype) if tensor is not None and needed else None
            for tensor, needed, dtype in zip(
                (hidden, weight, bias),
                ctx.needs_input_grad,
                (None, gradient.dtype, gradient.dtype),
                strict=False,
            )
        )
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            some, scale = hidden[part], gradient[part].unsqueeze(-1)
            softmax = kept
            if softmax is None:
                softmax = (
                    widened(functional.linear(some, weight, bias)).sub_(normalizers[part]).exp_()
                )
            slope = softmax.mul_(-scale)  # d logp / d logits = onehot - softmax
            slope.scatter_add_(-1, targets[part].unsqueeze(-1), scale)
            slope = slope.to(hidden.dtype)
            if to_hidden is not None:
                torch.mm(slope, weight, out=to_hidden[part])
            if to_weight is not None:
                accumulate(to_weight, slope.T, some)
            if to_bias is not None:
                to_bias += slope.sum(0)
            del softmax, slope
        cast = [
            None if found is None else found.to(tensor.dtype)
            for found, tensor in ((to_weight, weight), (to_bias, bias))
        ]
        return to_hidden, *cast, None, None


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product to a sum in place, without room for the product where the dtypes allow it."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def widened(logits: Tensor) -> Tensor:
    """Logits as they are scored: half precision becomes fp32."""
    return logits.float() if logits.element_size() < 4 else logits


def segment_weights(
    scored: Bool[Tensor, "B A"],
    changed: Bool[Tensor, "B A"],
    *,
    gamma: float,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "B A"]:
    """The weight of every answer token: gamma on corrected ones, 1 on the rest, 0 beyond the answer's end.

    Example:
        >>> segment_weights(torch.tensor([[True, True, False]]), torch.tensor([[False, True, False]]), gamma=5.0)
        tensor([[1., 5., 0.]])
    """
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

    Example:
        Tokens with p = 1/2, 1/4, 1/8, the last corrected, gamma 5: -(1 + 2 + 5*3) ln 2.

        >>> logps = torch.tensor([[0.5, 0.25, 0.125]]).log()
        >>> weighted_logps(logps, torch.tensor([[1.0, 1.0, 5.0]]), normalize=False)
        tensor([-12.4766])
    """
    total = (token_logps * weights).sum(-1)
    return total / weights.sum(-1) if normalize else total


def policy_token_logps(policy: Callable[..., Tensor], batch: PairBatch) -> Float[Tensor, "B A"]:
    """The forward pass: log-probabilities of all answer tokens of a batch of pairs, 0 beyond an answer's end.

    Reference pass and training step both call this, so that before the first update they agree.

    Args:
        policy: an `AnswerPolicy`, or the engine that wraps one.
        batch: of pairs.
    """
    logps = policy(batch.inputs, batch.predictors, batch.targets)
    return torch.cat([logps, logps.new_zeros(1)])[batch.answers]  # index -1: nothing
