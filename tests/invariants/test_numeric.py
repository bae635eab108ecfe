"""Two ways to the same number: cached and live reference, batched and single, the loss and what its paper says.

Plain torch on small real models, in fp32 where ways of batching are compared and in float64 where formulas are.
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
    """The pairs with reference log-probs, scored longest first in batches of 4, through the file's rows."""
    import pyarrow as pa

    ordered = sorted(encoded[:PAIRS], key=lambda pair: -len(pair.chosen_ids))
    with torch.no_grad():
        scored = [
            pair
            for start in range(0, PAIRS, 4)
            for pair in score_pairs(model, processor, ordered[start : start + 4])
        ]
    rows = pa.Table.from_pylist([to_row(pair) for pair in scored], schema=SCHEMA).to_pylist()
    by_id = {row["id"]: from_row(row) for row in rows}
    return [by_id[pair.id] for pair in encoded[:PAIRS]]


@pytest.fixture(scope="module")
def off(cached):
    """The same pairs with a reference that differs from the policy, so that losses are not all ln 2."""
    rng = random.Random(0)
    return [
        replace(pair, chosen_logps=[value + rng.gauss(0, 1) for value in pair.chosen_logps])
        for pair in cached
    ]


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
    """Catches: reference and policy scored differently: other pixels, masks, weights, or positions; padding that is scored."""
    losses = losses_of(
        model, processor, cached, gamma=gamma, normalize=normalize, rule=rule, beta=0.1
    )
    assert list(losses.values()) == pytest.approx([math.log(2)] * PAIRS, abs=STEP_0)


def test_cached_reference_is_the_live_one(model, processor, encoded, cached):
    """Catches: log-probs lost or shifted on the way through the reference folder's rows and into a batch."""
    batch = collate_pairs(cached, processor, rule="muffin")
    with torch.no_grad():
        made = collate_pairs(encoded[:PAIRS], processor, rule="muffin", layout=model.layout)
        live = policy_token_logps(model, made)
    torch.testing.assert_close(batch.reference_token_logps, live, atol=BATCHING, rtol=0)
    assert ((live != 0) == (batch.answers >= 0)).all()
    assert live.min() < -0.01


def test_losses_do_not_hang_on_who_else_is_in_the_batch(model, processor, off):
    """Catches: padding attended to or scored, a mean over the padded width, or pairs mixed up by order or batch."""
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
    batch = collate_pairs(
        off, processor, rule="both_sides"
    )  # plain rows, whose padding a mask of 0 and 1 tells
    width, wide = batch.inputs["input_ids"].shape[1], 17
    wider = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0}

    def pad(tensor, value):
        return torch.nn.functional.pad(tensor, (0, wide), value=value)

    padded = batch._replace(
        inputs={
            name: pad(tensor, wider[name]) if name in wider else tensor
            for name, tensor in batch.inputs.items()
        },
        predictors=batch.predictors + batch.predictors // width * wide,
        answers=pad(batch.answers, -1),
        changed=pad(batch.changed, False),
        reference_token_logps=pad(batch.reference_token_logps, 0.0),
    )
    settings = {"beta": 0.5, "gamma": 5.0, "normalize": True, "sft_weight": 0.1}
    with torch.no_grad():
        narrow, wide = (
            batch_loss(policy_token_logps(model, made), made, LossConfig(**settings))
            for made in (batch, padded)
        )
    torch.testing.assert_close(
        wide.preference.losses, narrow.preference.losses, atol=BATCHING, rtol=0
    )
    torch.testing.assert_close(wide.total, narrow.total, atol=BATCHING, rtol=0)
    torch.testing.assert_close(wide.changed_share, narrow.changed_share, atol=BATCHING, rtol=0)


@pytest.fixture(scope="module")
def doubled(small_model):
    """The small model in float64, in plain rows: Llama's norms round to fp32, and shared rows add gradients up before they are rounded."""
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
        stored, changed = getattr(pair, f"{side}_logps"), getattr(pair.changed[rule], side)
        for logp, kept, corrected in zip(
            answer_logps(model, processor, pair, side), stored, changed, strict=True
        ):
            factor = gamma if corrected else 1.0
            total, reference, weight = (
                total + factor * logp,
                reference + factor * kept,
                weight + factor,
            )
        scores[side] = (total - reference) / (weight if normalize else 1.0)
    return -torch.log(1 / (1 + torch.exp(-beta * (scores["chosen"] - scores["rejected"]))))


def fast_loss(model, processor, pairs, *, beta, gamma, normalize, rule):
    batch = collate_pairs(pairs, processor, rule=rule, layout=model.layout)
    reference = torch.zeros(
        batch.changed.shape, dtype=torch.float64
    )  # the file's fp32 values, in float64
    for row, logps in enumerate(
        [*(pair.chosen_logps for pair in pairs), *(pair.rejected_logps for pair in pairs)]
    ):
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
    rng, pairs = random.Random(1), []
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
    """Catches: anything that DDPO does to plain DPO where it should do nothing. The other side: softmax, sums, one logistic."""
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
    """Catches: a loss of the right value with a wrong gradient: a detached term, a weight on the wrong token, padding that pulls."""
    settings = {"beta": 0.5, "gamma": gamma, "normalize": normalize, "rule": rule}
    weights = [weight for weight in doubled.parameters() if weight.requires_grad]
    fast = fast_loss(doubled, processor, doubled_pairs, **settings).total
    slow = torch.stack(
        [slow_loss(doubled, processor, pair, **settings) for pair in doubled_pairs]
    ).mean()
    assert float(fast) == pytest.approx(float(slow), abs=FORMULA)
    pulled, wanted = (
        torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        for loss in (fast, slow)
    )
    assert sum(float(gradient.abs().sum()) for gradient in wanted) > 0.1
    for got, gradient in zip(pulled, wanted, strict=True):
        torch.testing.assert_close(got, gradient, atol=FORMULA, rtol=1e-7)
