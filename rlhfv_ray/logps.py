"""Token log-probabilities and their segment-weighted sum.

Shapes: B rows, T tokens, V words; S = T-1 positions, position s scores token s+1. All in nats.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhfv_ray.records import PairBatch

IGNORED = -100  # label of a token that is not scored: prompt, padding


def token_logps(logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]) -> Float[Tensor, "B S"]:
    """Log-probability of every labelled token given what stands before it.

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
    logits = logits.float() if logits.element_size() < 4 else logits
    logps = logits.log_softmax(-1).gather(-1, scored.masked_fill(~kept, 0).unsqueeze(-1)).squeeze(-1)
    return logps.masked_fill(~kept, 0.0)


def segment_weights(
    labels: Int[Tensor, "B T"], changed: Bool[Tensor, "B S"], *, gamma: float, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "B S"]:
    """The weight of every position: gamma on corrected tokens, 1 on the rest of the answer, 0 elsewhere.

    Example:
        >>> segment_weights(torch.tensor([[-100, 3, 4]]), torch.tensor([[False, True]]), gamma=5.0)
        tensor([[1., 5.]])
    """
    scored = labels[:, 1:] != IGNORED
    return scored.to(dtype) * (1 + (gamma - 1) * changed.to(dtype))


def weighted_logps(
    token_logps: Float[Tensor, "B S"], weights: Float[Tensor, "B S"], *, normalize: bool
) -> Float[Tensor, " B"]:
    """Score each answer by the segment-weighted sum of its token log-probabilities.

    RLHF-V (arXiv 2312.00849), Eq. 5, with N = |y_u| + gamma |y_c|:

        log pi(y|x) = 1/N (sum over y_u of log p_i + gamma * sum over y_c of log p_i)

    Args:
        token_logps: in nats, from `token_logps`.
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


def policy_token_logps(model: Callable[..., Any], batch: PairBatch) -> Float[Tensor, "B S"]:
    """The forward pass: log-probabilities of all answer tokens of a batch of pairs.

    Reference pass and training step both call this, so that before the first update they agree.
    """
    return token_logps(model(**batch.inputs, use_cache=False).logits, batch.labels)
