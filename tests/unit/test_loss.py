"""logps and loss against the RLHF-V release (tests/golden/SOURCES.md), in float64, and by hand."""

import inspect
import json
import math
from pathlib import Path

import pytest
import torch

from rlhfv_ray.config import PREFERENCE_LOSSES, LossConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.logps import IGNORED, segment_weights, token_logps, weighted_logps
from rlhfv_ray.loss import (
    METRICS,
    PreferenceLoss,
    batch_loss,
    check_preference_loss,
    dpo_loss,
    preference_metrics,
)
from rlhfv_ray.records import PairBatch

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/muffin_ddpo.json").read_text())["losses"]
TOLERANCE = 1e-9


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scores(case, side):
    part = case[side]
    labels = torch.tensor(part["labels"])
    changed = torch.tensor(part["changed"])
    logps = token_logps(double(part["logits"]), labels)
    weights = segment_weights(
        labels[:, 1:] != IGNORED, changed, gamma=case["gamma"], dtype=torch.float64
    )
    return labels, logps, weights, weighted_logps(logps, weights, normalize=case["normalize"])


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_release(case):
    """Catches: another value than the release's: log-probs, weights, score, loss, rewards."""
    score = {}
    for side in ("chosen", "rejected"):
        labels, logps, _, score[side] = scores(case, side)
        # The release leaves numbers on unscored positions; ours are 0.
        scored = labels[:, 1:] != IGNORED
        torch.testing.assert_close(
            logps[scored], double(case[side]["token_logps"])[scored], atol=TOLERANCE, rtol=0
        )
        assert (logps[~scored] == 0).all()
        torch.testing.assert_close(
            logps.sum(-1), double(case[side]["sum_logps"]), atol=TOLERANCE, rtol=0
        )
        torch.testing.assert_close(
            logps.sum(-1) / scored.sum(-1), double(case[side]["mean_logps"]), atol=TOLERANCE, rtol=0
        )
        torch.testing.assert_close(score[side], double(case[side]["score"]), atol=TOLERANCE, rtol=0)
    reference = double(case["ref_chosen"]), double(case["ref_rejected"])
    result = dpo_loss(score["chosen"], score["rejected"], *reference, beta=case["beta"])
    for ours, name in zip(result, ("losses", "chosen_rewards", "rejected_rewards"), strict=True):
        torch.testing.assert_close(ours, double(case[name]), atol=TOLERANCE, rtol=0)


def batch_of(labels, changed, reference) -> PairBatch:
    """Return a batch with only what the loss needs: scored and corrected positions, reference."""
    scored = labels[:, 1:] != IGNORED
    answers = torch.where(scored, scored.flatten().cumsum(0).view_as(scored) - 1, -1)
    pairs = tuple("abcdef"[: len(labels) // 2])
    return PairBatch(pairs, {}, torch.empty(0), torch.empty(0), answers, changed, reference)


def test_half_precision_logits_are_scored_in_fp32():
    """Catches: log_softmax in bf16, which is off by 1e-2 nats a token."""
    logits = torch.randn(2, 5, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.randint(50, (2, 5), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(token_logps(logits, labels), token_logps(logits.float(), labels))


def test_shapes_that_do_not_fit_are_refused():
    """Catches: scores broadcast against each other; logits scored with labels of fewer tokens.

    Only tests check the annotations, so the functions are taken without these checks.
    """
    with pytest.raises(ValueError, match=r"logits \(2, 4, 5\) do not fit labels \(2, 3\)"):
        inspect.unwrap(token_logps)(torch.zeros(2, 4, 5), torch.zeros(2, 3, dtype=torch.long))
    scored = torch.zeros(3)
    with pytest.raises(ValueError, match="scores of different shapes"):
        inspect.unwrap(dpo_loss)(scored[:, None], scored, scored, scored, beta=0.1)


def test_gamma_one_unnormalised_is_dpo():
    """Catches: weights that change DPO where they should not. Expected: DPO written out."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 11, generator=generator, dtype=torch.float64)
    labels = torch.randint(11, (4, 6), generator=generator)
    labels[:, :2] = IGNORED
    reference = torch.randn(4, 5, generator=generator, dtype=torch.float64).masked_fill(
        labels[:, 1:] == IGNORED, 0
    )
    changed = torch.rand(4, 5, generator=generator) < 0.5
    batch = batch_of(labels, changed, reference)
    step = batch_loss(token_logps(logits, labels), batch, LossConfig(0.3, 1.0, False))
    probabilities = logits.softmax(-1)
    expected = []
    for chosen, rejected in ((0, 2), (1, 3)):
        ratio = {}
        for row in (chosen, rejected):
            logps = [math.log(probabilities[row, t - 1, labels[row, t]]) for t in range(2, 6)]
            ratio[row] = sum(logps) - reference[row].sum()
        expected.append(-math.log(1 / (1 + math.exp(-0.3 * (ratio[chosen] - ratio[rejected])))))
    torch.testing.assert_close(step.preference.losses, double(expected), atol=1e-12, rtol=0)


def test_sft_weight_adds_negative_log_likelihood_of_chosen():
    """Catches: no effect, or the wrong sign. Uniform over 4 words, 2 tokens: 2 ln 4 nats."""
    labels = torch.tensor([[IGNORED, 1, 2], [IGNORED, 3, 0]])
    batch = batch_of(labels, torch.zeros(2, 2, dtype=torch.bool), torch.full((2, 2), -math.log(4)))
    logps = token_logps(torch.zeros(2, 3, 4), labels)
    step = batch_loss(logps, batch, LossConfig(1.0, 1.0, False, sft_weight=0.5))
    assert step.total.item() == pytest.approx(math.log(2) + 0.5 * 2 * math.log(4), abs=1e-6)


def test_without_preference_it_is_cross_entropy():
    """Catches: rejected answers or the reference in supervised fine-tuning.

    Expected: torch's own cross-entropy, one mean per answer.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 11, generator=generator, dtype=torch.float64)
    labels = torch.randint(11, (4, 6), generator=generator)
    labels[0, :2] = IGNORED
    labels[1, :4] = IGNORED  # a shorter answer weighs as much
    batch = batch_of(labels, torch.zeros(4, 5, dtype=torch.bool), torch.zeros(4, 5))._replace(
        reference_token_logps=None
    )
    config = LossConfig(gamma=1.0, normalize=True, sft_weight=2.0, preference_weight=0.0)
    step = batch_loss(token_logps(logits, labels), batch, config)
    each = [
        torch.nn.functional.cross_entropy(logits[row, :-1], labels[row, 1:], ignore_index=IGNORED)
        for row in (0, 1)
    ]
    assert step.total.item() == pytest.approx(2 * sum(loss.item() for loss in each) / 2, abs=1e-12)
    values = dict(zip(METRICS, preference_metrics(step).tolist(), strict=True))
    assert values["loss"] == pytest.approx(step.total.item())
    assert math.isnan(values["rewards/margins"]) and math.isnan(values["loss/preference"])


def test_metrics_by_hand():
    """Catches: metrics in another order than their names.

    Rewards 2 and 0.5, and -1 and 1: margins 1.5, -2.
    """
    changed = torch.tensor([[True], [False], [True], [False]])
    batch = batch_of(torch.tensor([[IGNORED, 1]] * 4), changed, torch.zeros(4, 1))
    step = batch_loss(
        torch.tensor([[2.0], [-1.0], [0.5], [1.0]]), batch, LossConfig(1.0, 1.0, False)
    )
    values = dict(zip(METRICS, preference_metrics(step).tolist(), strict=True))
    losses = [math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(2))]
    assert values == pytest.approx(
        {
            "loss": sum(losses) / 2,
            "loss/preference": sum(losses) / 2,
            "rewards/chosen": 0.5,
            "rewards/rejected": 0.75,
            "rewards/margins": -0.25,
            "rewards/accuracies": 0.5,
            "logps/chosen": 0.5,
            "logps/rejected": 0.75,
            "segments/share": 0.5,
        },
        abs=1e-6,
    )


def test_equal_rewards_are_not_accurate():
    """Catches: `>=` in the accuracy, by which an untrained policy is right on all pairs.

    Margins 0 and 1: one of two pairs is accurate.
    """
    changed = torch.zeros(4, 1, dtype=torch.bool)
    batch = batch_of(torch.tensor([[IGNORED, 1]] * 4), changed, torch.zeros(4, 1))
    logps = torch.tensor([[2.0], [1.0], [2.0], [0.0]])  # chosen, chosen, rejected, rejected
    step = batch_loss(logps, batch, LossConfig(1.0, 1.0, False))
    values = dict(zip(METRICS, preference_metrics(step).tolist(), strict=True))
    assert values["rewards/accuracies"] == 0.5
    assert values["rewards/margins"] == 0.5


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("preference_weight", [1.0, 0.0])
def test_changed_share_is_of_the_scored_tokens(gamma, preference_weight):
    """Catches: a share of all positions (2/6), of the weight (2/13), or with flagged padding (3/5).

    Three chosen and two rejected tokens; one of each is corrected, and so is the padding: 2/5.
    """
    labels = torch.tensor([[IGNORED, 1, 2, 3], [IGNORED, 1, 2, IGNORED]])
    changed = torch.tensor([[True, False, False], [False, True, True]])
    batch = batch_of(labels, changed, torch.zeros(2, 3))
    config = LossConfig(0.5, gamma, True, sft_weight=1.0, preference_weight=preference_weight)
    step = batch_loss(torch.full((2, 3), -1.0), batch, config)
    assert step.changed_share.item() == pytest.approx(2 / 5)
    values = dict(zip(METRICS, preference_metrics(step).tolist(), strict=True))
    assert values["segments/share"] == pytest.approx(2 / 5)


def test_extreme_margins_stay_finite():
    """Catches: log(sigmoid(x)) computed in two steps, which is -inf at x = -200."""
    wide = torch.tensor([200.0])
    result = dpo_loss(-wide, wide, torch.zeros(1), torch.zeros(1), beta=1.0)
    assert result.losses.item() == pytest.approx(400.0)


def mean_loss(*logps, beta):
    return PreferenceLoss(dpo_loss(*logps, beta=beta).losses.mean(), *logps[:2])


def column_loss(*logps, beta):
    return PreferenceLoss(dpo_loss(*logps, beta=beta).losses[:, None], *logps[:2])


def detached_loss(*logps, beta):
    return dpo_loss(*(part.detach() for part in logps), beta=beta)


def infinite_loss(*logps, beta):
    return PreferenceLoss((logps[0] - logps[0]) ** 0.5, *logps[:2])  # 0, with an infinite slope


def no_loss(*logps, beta):
    dpo_loss(*logps, beta=beta)


def failing_loss(*logps, beta):
    return {}["sigma"]


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        (mean_loss, "not one number for each"),
        (column_loss, "not one number for each"),
        (detached_loss, "nothing is learnt"),
        (infinite_loss, "is not finite with beta = 0.5"),
        (no_loss, "returns NoneType, not a PreferenceLoss"),
        (failing_loss, r"fails with beta = 0.5 \(KeyError: 'sigma'\)"),
    ],
)
def test_a_loss_is_tried_before_it_trains(loss, problem, monkeypatch):
    """Catches: a new loss that learns nothing without a word, or ends four trainings in a row."""
    place = f"{__name__}:{loss.__name__}"
    monkeypatch.setitem(PREFERENCE_LOSSES, "wrong", place)
    with pytest.raises(ConfigError, match=problem):
        check_preference_loss(LossConfig(kind="wrong"))


@pytest.mark.parametrize("kind", sorted(PREFERENCE_LOSSES))
@pytest.mark.parametrize("beta", [1e-3, 100.0])
def test_our_losses_pass_the_trial(kind, beta):
    """Catches: a trial that refuses a loss that trains."""
    check_preference_loss(LossConfig(kind=kind, beta=beta))
