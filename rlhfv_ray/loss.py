"""The objective: DPO on segment-weighted log-probabilities (DDPO), and what is watched beside it.

Symbols: P pairs; policy pi_theta is trained, reference pi_ref is its frozen start; y_w chosen, y_l rejected.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhfv_ray.logps import segment_weights, weighted_logps
from rlhfv_ray.records import PairBatch


class PreferenceLoss(NamedTuple):
    """One value per pair, each (P,)."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def dpo_loss(
    chosen_logps: Float[Tensor, " P"],
    rejected_logps: Float[Tensor, " P"],
    reference_chosen_logps: Float[Tensor, " P"],
    reference_rejected_logps: Float[Tensor, " P"],
    *,
    beta: float,
) -> PreferenceLoss:
    """Direct preference optimisation (arXiv 2305.18290, Eq. 7; RLHF-V, Eq. 4).

        loss = -log sigmoid(r_w - r_l),    r = beta * (log pi_theta(y|x) - log pi_ref(y|x))

    With segment-weighted log-probabilities (`weighted_logps`) this is DDPO.

    Args:
        chosen_logps: score of y_w under the policy, nats.
        rejected_logps: score of y_l under the policy.
        reference_chosen_logps: score of y_w under the reference.
        reference_rejected_logps: score of y_l under the reference.
        beta: how dearly leaving the reference is paid for, > 0.

    Example:
        Where the policy still is the reference, every reward is 0 and the loss ln 2.

        >>> same = torch.tensor([-3.0])
        >>> dpo_loss(same, same, same, same, beta=0.1).losses
        tensor([0.6931])
    """
    chosen_rewards = beta * (chosen_logps - reference_chosen_logps)
    rejected_rewards = beta * (rejected_logps - reference_rejected_logps)
    return PreferenceLoss(-logsigmoid(chosen_rewards - rejected_rewards), chosen_rewards, rejected_rewards)


class StepLoss(NamedTuple):
    """The loss of one batch, with what its metrics need; each pair's values (P,)."""

    total: Tensor  # scalar: mean preference loss + sft_weight * mean negative log-likelihood of chosen
    preference: PreferenceLoss
    logps: Float[Tensor, " B"]
    changed_share: Float[Tensor, ""]  # share of the scored tokens that are corrected


def batch_loss(
    scored: Float[Tensor, "B A"], batch: PairBatch, *, beta: float, gamma: float, normalize: bool, sft_weight: float
) -> StepLoss:
    """The DDPO loss of a batch of pairs whose reference log-probabilities are known.

    Args:
        scored: the policy's log-probability of every answer token.
        batch: masks, and the reference's log-probabilities.
        beta: see `dpo_loss`.
        gamma: weight of corrected tokens.
        normalize: see `weighted_logps`.
        sft_weight: adds the release's term -sft_weight * mean(log pi(y_w|x)), scored like the preference itself.
    """
    assert batch.reference_token_logps is not None, "the reference stage fills these in"
    weights = segment_weights(batch.answers >= 0, batch.changed, gamma=gamma, dtype=scored.dtype)
    logps = weighted_logps(scored, weights, normalize=normalize)
    reference = weighted_logps(batch.reference_token_logps.to(scored.dtype), weights, normalize=normalize)
    pairs = len(batch.ids)
    preference = dpo_loss(logps[:pairs], logps[pairs:], reference[:pairs], reference[pairs:], beta=beta)
    total = preference.losses.mean() - sft_weight * logps[:pairs].mean()
    return StepLoss(total, preference, logps, _changed_share(weights, batch.changed))


def _changed_share(weights: Float[Tensor, "B A"], changed: Bool[Tensor, "B A"]) -> Float[Tensor, ""]:
    scored = weights > 0
    return (changed & scored).sum() / scored.sum()


def preference_metrics(step: StepLoss) -> Float[Tensor, " M"]:
    """What is watched during training, as one vector in the order of `METRICS`; no device sync.

    A pair counts as accurate when its chosen answer's reward is strictly the higher one.
    """
    losses, chosen, rejected = step.preference
    pairs = len(losses)
    margins = chosen - rejected
    values = [
        step.total,
        losses.mean(),
        chosen.mean(),
        rejected.mean(),
        margins.mean(),
        (margins > 0).float().mean(),
        step.logps[:pairs].mean(),
        step.logps[pairs:].mean(),
        step.changed_share,
    ]
    return torch.stack([value.detach().float() for value in values])


METRICS = (
    "loss",
    "loss/preference",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "segments/share",
)
