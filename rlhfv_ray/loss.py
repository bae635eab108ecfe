"""The objective: DPO on segment-weighted log-probabilities (DDPO), and what is watched beside it.

Symbols: P pairs; policy pi_theta is trained, reference pi_ref is its frozen start; y_w chosen, y_l rejected.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhfv_ray.config import LossConfig
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
    return PreferenceLoss(
        -logsigmoid(chosen_rewards - rejected_rewards), chosen_rewards, rejected_rewards
    )


class StepLoss(NamedTuple):
    """The loss of one batch, with what its metrics need; each pair's values (P,)."""

    total: Tensor  # scalar: preference_weight * mean preference loss + sft_weight * mean negative log-likelihood of chosen
    preference: PreferenceLoss | None  # None where chosen answers are all that is learnt from
    logps: Float[Tensor, " B"]  # then of the chosen answers alone
    changed_share: Float[Tensor, ""]  # share of the scored tokens that are corrected


def batch_loss(scored: Float[Tensor, "B A"], batch: PairBatch, config: LossConfig) -> StepLoss:
    """The loss of a batch: DDPO on pairs whose reference log-probabilities are known, imitation of the chosen answers, or both.

        total = preference_weight * mean DDPO loss - sft_weight * mean over pairs of log pi(y_w|x)

    The second term is the RLHF-V release's; it is scored like the preference itself, so with `normalize` every answer weighs the same.

    Args:
        scored: the policy's log-probability of every answer token.
        batch: masks, and the reference's log-probabilities.
        config: beta, gamma and the weights.
    """
    pairs = len(batch.ids)
    weights = segment_weights(
        batch.answers >= 0, batch.changed, gamma=config.gamma, dtype=scored.dtype
    )
    share = _changed_share(weights, batch.changed)
    if config.is_sft:
        logps = weighted_logps(scored[:pairs], weights[:pairs], normalize=config.normalize)
        return StepLoss(-config.sft_weight * logps.mean(), None, logps, share)
    assert batch.reference_token_logps is not None, "the reference stage fills these in"
    logps = weighted_logps(scored, weights, normalize=config.normalize)
    reference = weighted_logps(
        batch.reference_token_logps.to(scored.dtype), weights, normalize=config.normalize
    )
    preference = dpo_loss(
        logps[:pairs], logps[pairs:], reference[:pairs], reference[pairs:], beta=config.beta
    )
    total = (
        config.preference_weight * preference.losses.mean()
        - config.sft_weight * logps[:pairs].mean()
    )
    return StepLoss(total, preference, logps, share)


def _changed_share(
    weights: Float[Tensor, "B A"], changed: Bool[Tensor, "B A"]
) -> Float[Tensor, ""]:
    scored = weights > 0
    return (changed & scored).sum() / scored.sum()


def preference_metrics(step: StepLoss) -> Float[Tensor, " M"]:
    """What is watched during training, as one vector in the order of `METRICS`, NaN where there is no preference; no device sync.

    A pair counts as accurate when its chosen answer's reward is strictly the higher one.
    """
    if step.preference is None:
        values = {
            "loss": step.total,
            "logps/chosen": step.logps.mean(),
            "segments/share": step.changed_share,
        }
    else:
        losses, chosen, rejected = step.preference
        pairs, margins = len(losses), chosen - rejected
        values = {
            "loss": step.total,
            "loss/preference": losses.mean(),
            "rewards/chosen": chosen.mean(),
            "rewards/rejected": rejected.mean(),
            "rewards/margins": margins.mean(),
            "rewards/accuracies": (margins > 0).float().mean(),
            "logps/chosen": step.logps[:pairs].mean(),
            "logps/rejected": step.logps[pairs:].mean(),
            "segments/share": step.changed_share,
        }
    nothing = step.total.new_full((), float("nan"))
    return torch.stack([values.get(name, nothing).detach().float() for name in METRICS])


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
