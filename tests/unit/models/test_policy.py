"""AnswerPolicy on the small model: the model's own numbers, by either way through its head."""

from dataclasses import replace

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhfv_ray.models import AnswerPolicy, layout_of, load_policy, recompute_activations
from rlhfv_ray.models.batch import FORKS, collate_pairs


@pytest.fixture(scope="module")
def model(small_model):
    return load_policy(small_model, dtype="fp32", device="cpu")[0]


@pytest.mark.parametrize("split_head", [True, False])
def test_scores_are_the_models_own_log_probabilities(model, processor, encoded, split_head):
    """Catches: a token scored from the wrong feature, by either way through the head."""
    pair = encoded[0]
    layout = replace(layout_of(model, "plain"), split_head=split_head)
    batch = collate_pairs([pair], processor, rule="muffin", layout=layout)
    policy = AnswerPolicy(model, layout)
    with torch.no_grad():
        logps = policy(batch.inputs, batch.predictors, batch.targets)  # (N,)
        logits = model(
            input_ids=torch.tensor([pair.prompt_ids + pair.chosen_ids]),
            pixel_values=batch.inputs["pixel_values"][:1],
        ).logits[0]  # (T, V)
    start = len(pair.prompt_ids) - 1  # the prompt's last token predicts the answer's first
    expected = [
        logits[start + step].log_softmax(-1)[token] for step, token in enumerate(pair.chosen_ids)
    ]
    chosen = logps[: len(pair.chosen_ids)]
    torch.testing.assert_close(chosen, torch.stack(expected), atol=1e-5, rtol=0)


def test_inputs_of_a_batch_stay_as_they_are(model, processor, encoded):
    """Catches: a forward pass that takes the forks out of its batch, so that a second one fails."""
    layout = layout_of(model)
    batch = collate_pairs(encoded[:2], processor, rule="muffin", layout=layout)
    policy = AnswerPolicy(model, layout)
    with torch.no_grad():
        first = policy(batch.inputs, batch.predictors, batch.targets)
        second = policy(batch.inputs, batch.predictors, batch.targets)
    assert {"branches", FORKS} <= batch.inputs.keys()
    assert torch.equal(first, second)


def test_only_layers_enter_training_mode(model):
    """Catches: dropout that wakes up where activations are recomputed."""
    recompute_activations(model, 1)
    try:
        training = [module for module in model.modules() if module.training]
        assert training
        assert all(isinstance(module, GradientCheckpointingLayer) for module in training)
    finally:
        recompute_activations(model, 0)
    assert not any(module.training for module in model.modules())
