"""IPO: identity preference optimisation (arXiv 2310.12036, Eq. 17)."""

from jaxtyping import Float
from torch import Tensor

from rlhfv_ray.loss import PreferenceLoss


def ipo_loss(
    chosen_logps: Float[Tensor, " P"],
    rejected_logps: Float[Tensor, " P"],
    reference_chosen_logps: Float[Tensor, " P"],
    reference_rejected_logps: Float[Tensor, " P"],
    *,
    beta: float,
) -> PreferenceLoss:
    """Return IPO's loss of every pair, with arguments as `dpo_loss` has them, in nats.

        loss = (h - 1 / (2 beta))^2,    h = (policy - reference) of y_w, minus that of y_l

    Where the policy still is the reference, it is 1 / (4 beta^2). TRL scores answers by the mean
    over their tokens, which is `normalize` with gamma 1.

    Examples:
        >>> import torch
        >>> same = torch.tensor([-3.0])
        >>> ipo_loss(same, same, same, same, beta=0.5).losses
        tensor([1.])
    """
    chosen = chosen_logps - reference_chosen_logps  # (P,)
    rejected = rejected_logps - reference_rejected_logps  # (P,)
    losses = (chosen - rejected - 1 / (2 * beta)) ** 2  # (P,)
    return PreferenceLoss(losses, beta * chosen, beta * rejected)
