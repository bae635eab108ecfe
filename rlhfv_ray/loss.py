"""Compute the objective, DPO on segment-weighted log-probabilities (DDPO), and its metrics.

Symbols: P pairs, B = 2P answers of up to A tokens. The policy pi_theta is trained, the reference
pi_ref is its frozen start. y_w is the chosen answer, y_l the rejected one.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhfv_ray.config import PREFERENCE_LOSSES, LossConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.logps import segment_weights, weighted_logps
from rlhfv_ray.records import PairBatch
from rlhfv_ray.registry import registered


class PreferenceLoss(NamedTuple):
    """Loss and rewards of every pair."""

    losses: Tensor  # (P,) nats
    chosen_rewards: Tensor  # (P,) beta * (policy - reference), nats
    rejected_rewards: Tensor  # (P,)


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
        beta: strength of the pull towards the reference, > 0.

    Raises:
        ValueError: the scores differ in shape, which would be broadcast.

    Examples:
        Where the policy still is the reference, every reward is 0 and the loss ln 2.

        >>> same = torch.tensor([-3.0])
        >>> dpo_loss(same, same, same, same, beta=0.1).losses
        tensor([0.6931])
    """
    scores = (chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps)
    if len({score.shape for score in scores}) > 1:
        raise ValueError(f"scores of different shapes: {[tuple(score.shape) for score in scores]}")
    # The implicit reward of DPO (RLHF-V, Eq. 3); its partition term cancels in the difference.
    chosen_rewards = beta * (chosen_logps - reference_chosen_logps)  # (P,)
    rejected_rewards = beta * (rejected_logps - reference_rejected_logps)  # (P,)
    # logsigmoid in one step: log(sigmoid(x)) underflows to -inf where x is far below 0.
    losses = -logsigmoid(chosen_rewards - rejected_rewards)  # (P,), Eq. 4
    return PreferenceLoss(losses, chosen_rewards, rejected_rewards)


def check_preference_loss(config: LossConfig) -> None:
    """Try a preference loss on three pairs, so that a fault in it does not end a training later.

    Raises:
        ConfigError: it cannot be imported, raises an error, does not return one number of each kind
            for each pair, or has no finite gradient.
    """
    preference_loss = registered(PREFERENCE_LOSSES, config.kind, setting="loss.kind")
    policy = torch.tensor([[-1.0, -2.0, -3.0], [-3.0, -2.0, -1.0]], requires_grad=True)  # (2, P)
    reference = torch.full((2, 3), -2.0)
    try:
        preference = preference_loss(*policy, *reference, beta=config.beta)
        fault = _fault_of(preference, policy, beta=config.beta)
    except Exception as error:  # noqa: BLE001 (of any type: the function can be anybody's)
        fault = f"fails with beta = {config.beta:g} ({type(error).__name__}: {error})"
    if fault:
        raise ConfigError(f"loss.kind = {config.kind!r} {fault}. Correct its function.")


def _fault_of(preference: object, policy: Tensor, *, beta: float) -> str:
    """Return what is wrong with the loss of three pairs; nothing if it can train."""
    if not isinstance(preference, PreferenceLoss):
        return f"returns {type(preference).__name__}, not a PreferenceLoss of three tensors"
    shapes = [tuple(torch.as_tensor(part).shape) for part in preference]
    if shapes != [(3,)] * 3:
        return f"returns tensors of the shapes {shapes} for 3 pairs, not one number for each"
    if not preference.losses.requires_grad:
        return "returns losses without a gradient to the policy, so that nothing is learnt"
    (gradient,) = torch.autograd.grad(preference.losses.sum(), policy)
    if not all(part.isfinite().all() for part in (*preference, gradient)):
        return f"is not finite with beta = {beta:g}, or its gradient is not"
    return ""


class StepLoss(NamedTuple):
    """The loss of one batch and the values its metrics need."""

    total: Tensor  # scalar: preference_weight * mean preference loss + sft_weight * mean NLL of y_w
    preference: PreferenceLoss | None  # None in supervised fine-tuning
    logps: Float[Tensor, " B"]  # chosen answers first; (P,) in fine-tuning, chosen answers alone
    changed_share: Float[Tensor, ""]  # corrected tokens / scored tokens


def batch_loss(scored: Float[Tensor, "B A"], batch: PairBatch, config: LossConfig) -> StepLoss:
    """Return the loss of a batch: a preference loss of its pairs, by default DDPO, imitation of its
    chosen answers, or both.

        total = preference_weight * mean of the pairs - sft_weight * mean of log pi(y_w|x)

    The second term is the RLHF-V release's. It uses the score of the preference itself, so with
    `normalize` every answer weighs the same. Supervised fine-tuning can also take the mean over all
    tokens of an update (`sft_mean`). DDPO needs the reference's log-probabilities.

    Args:
        scored: the policy's log-probability of every answer token.
        batch: masks, and the reference's log-probabilities.
        config: beta, gamma and the weights of both terms.
    """
    pairs = len(batch.ids)
    is_scored = batch.answers >= 0  # (B, A); -1 beyond an answer's end
    weights = segment_weights(  # (B, A): gamma on y_c, 1 on y_u, 0 elsewhere
        is_scored, batch.changed, gamma=config.gamma, dtype=scored.dtype
    )
    share = _changed_share(weights, batch.changed)
    if config.is_sft:
        # (P,) chosen answers alone: an example has no rejected answer.
        logps = weighted_logps(scored[:pairs], weights[:pairs], normalize=config.normalize)
        imitated = logps.mean()
        if config.sft_mean == "tokens":
            # The engine averages over passes and workers: the sum of all tokens over their number.
            assert batch.pass_tokens is not None, "the sampler fills this in"
            imitated = (scored[:pairs] * weights[:pairs]).sum() / batch.pass_tokens
        return StepLoss(-config.sft_weight * imitated, None, logps, share)
    assert batch.reference_token_logps is not None, "the reference stage fills these in"
    # Policy and reference get the same weights, so that both scores are Eq. 5 of the same segments.
    logps = weighted_logps(scored, weights, normalize=config.normalize)  # (B,)
    reference = weighted_logps(  # (B,)
        batch.reference_token_logps.to(scored.dtype), weights, normalize=config.normalize
    )
    preference_loss = registered(PREFERENCE_LOSSES, config.kind, setting="loss.kind")
    preference = preference_loss(  # rows 0 .. P-1 are chosen, P .. 2P-1 rejected
        logps[:pairs], logps[pairs:], reference[:pairs], reference[pairs:], beta=config.beta
    )
    preference_term = config.preference_weight * preference.losses.mean()
    sft_term = -config.sft_weight * logps[:pairs].mean()
    return StepLoss(preference_term + sft_term, preference, logps, share)


def _changed_share(
    weights: Float[Tensor, "B A"], changed: Bool[Tensor, "B A"]
) -> Float[Tensor, ""]:
    """Return corrected tokens / scored tokens, whatever gamma is."""
    scored = weights > 0  # (B, A); padding has weight 0
    return (changed & scored).sum() / scored.sum()


def preference_metrics(step: StepLoss) -> Float[Tensor, " M"]:
    """Return the metrics of one step as a vector in the order of `METRICS`, without device sync.

    Metrics of the preference are NaN in supervised fine-tuning. A pair counts as accurate if its
    margin is strictly above 0.
    """
    values = {"loss": step.total, "segments/share": step.changed_share}
    if step.preference is None:
        values["logps/chosen"] = step.logps.mean()
    else:
        losses, chosen, rejected = step.preference
        pairs = len(losses)
        margins = chosen - rejected  # (P,)
        values |= {
            "loss/preference": losses.mean(),
            "rewards/chosen": chosen.mean(),
            "rewards/rejected": rejected.mean(),
            "rewards/margins": margins.mean(),
            # Strict: before the first update all margins are 0, and the accuracy must be 0, not 1.
            "rewards/accuracies": (margins > 0).float().mean(),
            "logps/chosen": step.logps[:pairs].mean(),
            "logps/rejected": step.logps[pairs:].mean(),
        }
    missing = step.total.new_full((), float("nan"))  # on the step's device, so that stack works
    # One vector: reading it later costs one device sync instead of nine.
    return torch.stack([values.get(name, missing).detach().float() for name in METRICS])


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
