"""Two ways to the same number: cached and live reference, batched and single, loss and paper.

Plain torch on small real models: fp32 where batching is compared, float64 where formulas are.
"""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch

from rlhfv_ray.config import LossConfig
from rlhfv_ray.data.reference_table import SCHEMA, from_row, to_row
from rlhfv_ray.inference.reference import score_pairs
from rlhfv_ray.logps import policy_token_logps
from rlhfv_ray.loss import batch_loss
from rlhfv_ray.models import AnswerPolicy, layout_of, load_policy
from rlhfv_ray.models.batch import collate_pairs

STEP_0 = 1e-6  # of ln 2, the trainer's own gate
BATCHING = 1e-5  # nats: padding and order change the order of fp32 sums
FORMULA = 1e-10  # float64
PAIRS = 6


@pytest.fixture(scope="module")
def small(small_model):
    return load_policy(small_model, dtype="fp32", device="cpu")[0]


@pytest.fixture(scope="module", params=["small", "policy"])
def model(request):
    """A model with random weights, and the shipped one: what holds must not hang on the weights."""
    loaded = request.getfixturevalue(request.param)
    return AnswerPolicy(loaded, layout_of(loaded))


@pytest.fixture(scope="module")
def cached(model, processor, encoded):
    """The pairs with reference log-probs, scored longest first in batches of 4, as stored rows."""
    import pyarrow as pa

    ordered = sorted(encoded[:PAIRS], key=lambda pair: -len(pair.chosen_ids))
    with torch.no_grad():
        scored = []
        for start in range(0, PAIRS, 4):
            scored += score_pairs(model, processor, ordered[start : start + 4])
    rows = pa.Table.from_pylist([to_row(pair) for pair in scored], schema=SCHEMA).to_pylist()
    by_id = {row["id"]: from_row(row) for row in rows}
    return [by_id[pair.id] for pair in encoded[:PAIRS]]


@pytest.fixture(scope="module")
def off(cached):
    """The same pairs with a reference unlike the policy, so that losses are not all ln 2."""
    rng = random.Random(0)
    pairs = []
    for pair in cached:
        shifted = [value + rng.gauss(0, 1) for value in pair.chosen_logps]
        pairs.append(replace(pair, chosen_logps=shifted))
    return pairs


def losses_of(model, processor, pairs, *, rule="both_sides", beta=0.5, gamma=5.0, normalize=True):
    """Loss by pair id."""
    batch = collate_pairs(pairs, processor, rule=rule, layout=model.layout)
    with torch.no_grad():
        step = batch_loss(
            policy_token_logps(model, batch), batch, LossConfig(beta, gamma, normalize)
        )
    return dict(zip(batch.ids, step.preference.losses.tolist(), strict=True))


@pytest.mark.parametrize(
    ("gamma", "normalize", "rule"),
    itertools.product((1.0, 5.0), (True, False), ("muffin", "both_sides")),
)
def test_step_0_is_ln_2(model, processor, cached, gamma, normalize, rule):
    """Catches: padding that is scored; other pixels, masks, weights or positions in one pass."""
    losses = losses_of(
        model, processor, cached, gamma=gamma, normalize=normalize, rule=rule, beta=0.1
    )
    assert list(losses.values()) == pytest.approx([math.log(2)] * PAIRS, abs=STEP_0)


def test_cached_reference_is_the_live_one(model, processor, encoded, cached):
    """Catches: log-probs lost or shifted between the reference folder's rows and a batch."""
    batch = collate_pairs(cached, processor, rule="muffin")
    with torch.no_grad():
        fresh = collate_pairs(encoded[:PAIRS], processor, rule="muffin", layout=model.layout)
        live = policy_token_logps(model, fresh)
    torch.testing.assert_close(batch.reference_token_logps, live, atol=BATCHING, rtol=0)
    assert ((live != 0) == (batch.answers >= 0)).all()
    assert live.min() < -0.01


def test_losses_do_not_hang_on_who_else_is_in_the_batch(model, processor, off):
    """Catches: padding attended to or scored, a mean over the padded width, pairs mixed up."""
    together = losses_of(model, processor, off)
    assert len({round(loss, 6) for loss in together.values()}) == PAIRS
    for order in ([5, 3, 1, 0, 2, 4], [2, 2, 0]):
        again = losses_of(model, processor, [off[number] for number in order])
        assert again == pytest.approx({key: together[key] for key in again}, abs=BATCHING)
    for size in (1, 2, 4):
        split = {}
        for start in range(0, PAIRS, size):
            split |= losses_of(model, processor, off[start : start + size])
        assert split == pytest.approx(together, abs=BATCHING)


def test_padding_to_any_width_changes_nothing(model, processor, off):
    """Catches: a loss that hangs on the longest answer of its batch."""
    # Plain rows: a mask of 0 and 1 marks their padding.
    batch = collate_pairs(off, processor, rule="both_sides")
    width = batch.inputs["input_ids"].shape[1]
    extra = 17
    wider = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0}

    def pad(tensor, value):
        return torch.nn.functional.pad(tensor, (0, extra), value=value)

    padded = batch._replace(
        inputs={
            name: pad(tensor, wider[name]) if name in wider else tensor
            for name, tensor in batch.inputs.items()
        },
        predictors=batch.predictors + batch.predictors // width * extra,
        answers=pad(batch.answers, -1),
        changed=pad(batch.changed, False),
        reference_token_logps=pad(batch.reference_token_logps, 0.0),
    )
    settings = {"beta": 0.5, "gamma": 5.0, "normalize": True, "sft_weight": 0.1}
    with torch.no_grad():
        narrow = batch_loss(policy_token_logps(model, batch), batch, LossConfig(**settings))
        wide = batch_loss(policy_token_logps(model, padded), padded, LossConfig(**settings))
    torch.testing.assert_close(
        wide.preference.losses, narrow.preference.losses, atol=BATCHING, rtol=0
    )
    torch.testing.assert_close(wide.total, narrow.total, atol=BATCHING, rtol=0)
    torch.testing.assert_close(wide.changed_share, narrow.changed_share, atol=BATCHING, rtol=0)


@pytest.fixture(scope="module")
def doubled(small_model):
    """The small model in float64, in plain rows.

    Llama's norms round to fp32, and shared rows add gradients before they are rounded.
    """
    loaded = load_policy(small_model, dtype="fp32", device="cpu")[0].double()
    return AnswerPolicy(loaded, layout_of(loaded, "plain"))


def answer_logps(model, processor, pair, side: str) -> list[torch.Tensor]:
    """Log-probability of each token of one unpadded answer, from softmax and log written out."""
    ids = pair.prompt_ids + getattr(pair, f"{side}_ids")
    pixels = collate_pairs([pair], processor, rule="muffin").inputs["pixel_values"][:1].double()
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values": pixels}
    probabilities = model.model(**inputs, use_cache=False).logits[0].softmax(-1)
    return [
        probabilities[position - 1, ids[position]].log()
        for position in range(len(pair.prompt_ids), len(ids))
    ]


def slow_loss(model, processor, pair, *, beta, gamma, normalize, rule):
    """One pair's loss, token by token, from RLHF-V's Eq. 4 and 5."""
    scores = {}
    for side in ("chosen", "rejected"):
        total = reference = weight = 0.0
        policy_logps = answer_logps(model, processor, pair, side)
        reference_logps = getattr(pair, f"{side}_logps")
        changed = getattr(pair.changed[rule], side)
        tokens = zip(policy_logps, reference_logps, changed, strict=True)
        for policy_logp, reference_logp, corrected in tokens:
            factor = gamma if corrected else 1.0  # Eq. 5
            total = total + factor * policy_logp
            reference = reference + factor * reference_logp
            weight = weight + factor  # N
        scores[side] = (total - reference) / (weight if normalize else 1.0)
    return -torch.log(1 / (1 + torch.exp(-beta * (scores["chosen"] - scores["rejected"]))))


def fast_loss(model, processor, pairs, *, beta, gamma, normalize, rule):
    batch = collate_pairs(pairs, processor, rule=rule, layout=model.layout)
    # (B, A) the file's fp32 values in float64, chosen answers first
    reference = torch.zeros(batch.changed.shape, dtype=torch.float64)
    answers = [pair.chosen_logps for pair in pairs] + [pair.rejected_logps for pair in pairs]
    for row, logps in enumerate(answers):
        reference[row, : len(logps)] = torch.tensor(logps, dtype=torch.float64)
    inputs = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in batch.inputs.items()
    }
    batch = batch._replace(inputs=inputs, reference_token_logps=reference)
    return batch_loss(policy_token_logps(model, batch), batch, LossConfig(beta, gamma, normalize))


@pytest.fixture(scope="module")
def doubled_pairs(doubled, processor, encoded):
    """Three pairs with a reference near the float64 model."""
    rng = random.Random(1)
    pairs = []
    for pair in encoded[:3]:
        values = {}
        for side in ("chosen", "rejected"):
            with torch.no_grad():
                exact = answer_logps(doubled, processor, pair, side)
            values[f"{side}_logps"] = [float(value) + rng.gauss(0, 0.3) for value in exact]
        pairs.append(as_reference(pair, values))
    return pairs


def as_reference(pair, values):
    from rlhfv_ray.records import ReferencePair

    return ReferencePair(**vars(pair), **values)


def test_gamma_1_unnormalised_is_dpo(doubled, processor, doubled_pairs):
    """Catches: DDPO that differs from DPO where it must not. Expected: sums and one logistic."""
    fast = fast_loss(
        doubled, processor, doubled_pairs, beta=0.3, gamma=1.0, normalize=False, rule="muffin"
    )
    for row, pair in enumerate(doubled_pairs):
        ratio = {}
        for side in ("chosen", "rejected"):
            with torch.no_grad():
                policy = sum(map(float, answer_logps(doubled, processor, pair, side)))
            ratio[side] = policy - sum(getattr(pair, f"{side}_logps"))
        expected = math.log(1 + math.exp(-0.3 * (ratio["chosen"] - ratio["rejected"])))
        assert fast.preference.losses[row].item() == pytest.approx(expected, abs=FORMULA)


@pytest.mark.parametrize(
    ("gamma", "normalize", "rule"),
    [(5.0, True, "both_sides"), (5.0, False, "muffin"), (1.1, False, "both_sides")],
)
def test_gradient_is_that_of_the_formula(doubled, processor, doubled_pairs, gamma, normalize, rule):
    """Catches: a right loss with a wrong gradient: a detached term, a misplaced weight, padding."""
    settings = {"beta": 0.5, "gamma": gamma, "normalize": normalize, "rule": rule}
    weights = [weight for weight in doubled.parameters() if weight.requires_grad]
    fast = fast_loss(doubled, processor, doubled_pairs, **settings).total
    slow = torch.stack(
        [slow_loss(doubled, processor, pair, **settings) for pair in doubled_pairs]
    ).mean()
    assert float(fast) == pytest.approx(float(slow), abs=FORMULA)
    options = {"allow_unused": True, "materialize_grads": True}
    actual = torch.autograd.grad(fast, weights, **options)
    expected = torch.autograd.grad(slow, weights, **options)
    assert sum(float(gradient.abs().sum()) for gradient in expected) > 0.1
    for ours, formula in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, formula, atol=FORMULA, rtol=1e-7)
