"""The self-check accepts what gives the model's own numbers, and sees planted errors."""

import functools
from dataclasses import replace

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from rlhfv_ray.data.encoding import encode_pair
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models import load_policy
from rlhfv_ray.models.self_check import TOKENS, Sample, choose_samples, in_fp32, self_check


@pytest.fixture
def model(small_model):
    return load_policy(small_model, dtype="fp32", device="cpu")[0]


@pytest.fixture(scope="module")
def samples(pairs, processor):
    rows = [
        Sample(pair.question, encode_pair(pair, processor, min_match=3, max_length=256))
        for pair in pairs[:4]
    ]
    return choose_samples(rows)


def test_a_known_model_takes_the_fastest_rows(model, samples, processor):
    """Catches: a right layout that is refused; a check that leaves the model changed."""
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    outcome = self_check(model, processor, samples)
    assert (outcome.layout, outcome.split_head) == ("shared", True)
    assert outcome.tokens > 20 and outcome.distance <= 1e-5
    assert outcome.gradient_distance is not None and outcome.gradient_distance <= 1e-5
    assert outcome.refused == {} and outcome.rounding is None
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert all(weight.requires_grad for weight in model.parameters())


def test_rows_with_tokens_that_are_not_scored_are_right(model, samples, processor):
    """Catches: conversations refused because of their later questions, which training leaves out
    and whose log-probs would count as 0."""
    sample = samples[0]
    left_out = [True] + [False] * (len(sample.pair.chosen_ids) - 1)
    conversation = replace(sample.pair, rejected_ids=[], scored=left_out)
    outcome = self_check(model, processor, [sample._replace(pair=conversation)])
    assert outcome.layout == "shared"
    assert outcome.tokens == min(TOKENS, len(conversation.chosen_ids))


def test_plain_rows_where_they_are_asked_for(model, samples, processor):
    """Catches: an option that does nothing."""
    assert self_check(model, processor, samples, layout="plain").layout == "plain"


def test_a_model_that_ignores_its_picture_is_refused(model, samples, processor):
    """Catches: a checkpoint without its projector, trained on text alone."""
    with torch.no_grad():
        for weight in model.model.multi_modal_projector.parameters():
            weight.zero_()
    with pytest.raises(ConfigError, match="does not look at its picture"):
        self_check(model, processor, samples)


def test_a_model_that_gives_no_numbers_is_named(model, samples, processor):
    """Catches: a damaged weight called a model that is not understood."""
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(ConfigError, match="log-probability NaN"):
        self_check(model, processor, samples)


class Capped(LlavaForConditionalGeneration):
    """Scales its logits behind the head."""

    @functools.wraps(LlavaForConditionalGeneration.forward)  # generation reads its arguments
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 0.5 * output.logits
        return output


def test_logits_scaled_behind_the_head_are_the_models_own(model, samples, processor):
    """Catches: the head on answer tokens alone, where the model does more than that."""
    model.__class__ = Capped
    outcome = self_check(model, processor, samples)
    assert (outcome.layout, outcome.split_head) == ("shared", False)
    assert ["nats from" in reason for reason in outcome.refused.values()] == [True]


def test_a_mask_that_leaks_is_refused(model, samples, processor, monkeypatch):
    """Catches: a forward pass of whole rows in which a token sees later ones."""
    language = model.model.language_model
    forward = language.forward

    def leaking(*args, attention_mask=None, **kwargs):
        embedded = kwargs["inputs_embeds"]
        if embedded.shape[1] > 1:  # generation's single tokens come after all they see
            rows, tokens, _ = embedded.shape
            attention_mask = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool)
            kwargs.pop("forks", None)
        return forward(*args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(language, "forward", leaking)
    with pytest.raises(ConfigError, match="is not understood, so it is not trained") as error:
        self_check(model, processor, samples)
    assert "plain rows, all logits" in str(error.value)


def test_a_model_in_bf16_is_checked_in_fp32_and_left_as_it_was(small_model, samples, processor):
    """Catches: a check blurred by rounding; weights that are not the same after it."""
    model, _ = load_policy(small_model, dtype="bf16", device="cpu")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with in_fp32(model):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    outcome = self_check(model, processor, samples)
    assert outcome.dtype == "float32"
    assert outcome.rounding is not None and outcome.rounding < 0.01
    after = model.state_dict()
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_device_that_fails_says_nothing_about_the_model(model, samples, processor):
    """Catches: a model refused as not understood because its GPU broke in the check."""

    def fail(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    hook = model.get_input_embeddings().register_forward_pre_hook(fail)
    try:
        with pytest.raises(torch.AcceleratorError):
            self_check(model, processor, samples)
    finally:
        hook.remove()


def test_short_and_long_rows_are_taken(samples, pairs):
    """Catches: a sample in which nothing is padded."""
    lengths = [len(sample.pair.chosen_ids) + len(sample.pair.rejected_ids) for sample in samples]
    assert len(samples) == 2 and lengths[0] < lengths[1]
    assert choose_samples(samples[:1]) == samples[:1]
