"""Shared rows, plain rows and the model's own logits give the same numbers and gradients in fp32.

This is tested on every family in `tests.families`.
"""

import random
from copy import deepcopy
from dataclasses import replace
from io import BytesIO

import pytest
import torch
from PIL import Image
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhfv_ray.config import GenerationConfig
from rlhfv_ray.data import decode_image
from rlhfv_ray.data.encoding import encode_example, encode_pair
from rlhfv_ray.inference.generate import answer_prompts
from rlhfv_ray.logps import IGNORED, policy_token_logps, token_logps
from rlhfv_ray.models import AnswerPolicy, layout_of, load_policy, recompute_activations
from rlhfv_ray.models import attention as attention_module
from rlhfv_ray.models.batch import collate_pairs, to_device
from rlhfv_ray.records import EncodedPair, Example, PreferencePair, Prompt
from tests.families import FAMILIES, save

TOKENS = 1e-5  # nats
GRADIENT = 1e-5  # of its norm
HALF = 0.03  # of the log-probs' mean size in bf16 (8 bits: 0.4 % per rounding), on wide weights

ANSWERS = [
    (
        "a red circle and a blue square",
        "a red circle and a green star on a street, next to a blue square",
    ),
    ("one blue square", "a red circle on a street"),  # nothing in common
    # One answer is the beginning of the other.
    ("a street and a star", "a street and a star, next to a red circle"),
    ("a red red red red circle", "a red red circle"),
]


def picture(seed: int, width: int, height: int) -> bytes:
    rng, image, file = random.Random(seed), Image.new("RGB", (width, height)), BytesIO()
    image.putdata([tuple(rng.randrange(256) for _ in range(3)) for _ in range(width * height)])
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda make: make.__name__)
def family(request, tmp_path_factory):
    """A family's model and processor, loaded, and pairs with images of several shapes."""
    folder = save(request.param, tmp_path_factory.mktemp(request.param.__name__) / "model")
    model, processor = load_policy(folder, dtype="fp32", device="cpu")
    shapes = [(60, 30), (40, 70), (64, 64), (100, 50)]
    pairs = [
        PreferencePair(f"{number}", picture(number, *shape), "What is there?", chosen, rejected)
        for number, (shape, (chosen, rejected)) in enumerate(zip(shapes, ANSWERS, strict=True))
    ]
    encoded = [encode_pair(pair, processor, min_match=3, max_length=2048) for pair in pairs]
    return model, processor, encoded


def scores_and_gradients(model, batch, layout):
    model.zero_grad(set_to_none=True)
    logps = policy_token_logps(AnswerPolicy(model, layout), batch)
    weights = torch.linspace(-1, 2, logps.numel()).view_as(logps)  # every token counts differently
    (logps * weights * (batch.answers >= 0)).sum().backward()
    gradients = {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }
    return logps.detach(), gradients


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], atol=TOKENS, rtol=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    total = torch.stack([gradient.norm() for gradient in theirs[1].values()]).norm()
    for name, gradient in theirs[1].items():
        distance = (ours[1][name] - gradient).norm()
        assert distance <= GRADIENT * (gradient.norm() + 0.1 * total), name


def test_shared_rows_equal_plain_rows(family):
    """Catches: a continuation that sees the other, wrong positions, another pair's image, or a
    mask that the family ignores."""
    model, processor, pairs = family
    layout = layout_of(model)
    assert layout.shared
    shared = scores_and_gradients(
        model, collate_pairs(pairs, processor, rule="muffin", layout=layout), layout
    )
    plain = layout_of(model, "plain")
    batch = collate_pairs(pairs, processor, rule="muffin", layout=plain)
    assert "branches" not in batch.inputs
    assert_same(shared, scores_and_gradients(model, batch, plain))


def test_shared_rows_need_no_mask(family, monkeypatch):
    """Catches: forks that do not reach a family's attention, so that masked scores are computed."""
    model, processor, pairs = family
    layout = layout_of(model)
    boolean_masks = []

    def record(module, query, key, value, attention_mask, **settings):
        # The masks of a vision tower are (B, 1, 1, T) or no bool.
        boolean_masks.append(
            attention_mask is not None
            and attention_mask.shape[-1] > 1
            and attention_mask.dtype == torch.bool
        )
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)

    monkeypatch.setattr(attention_module, "sdpa_attention_forward", record)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", record)
    batch = collate_pairs(pairs, processor, rule="muffin", layout=layout)
    policy_token_logps(AnswerPolicy(model, layout), batch)
    assert boolean_masks  # the vision tower's attention at least passed through here
    # In Gemma 3 the tokens of an image see each other both ways.
    assert any(boolean_masks) == (model.config.model_type == "gemma3")


def test_whole_model_scores_the_same(family):
    """Catches: different numbers from the path of untested families, which computes all logits."""
    model, processor, pairs = family
    split = layout_of(model, "plain")
    full = replace(split, split_head=False)
    assert split.split_head
    batch = collate_pairs(pairs, processor, rule="muffin", layout=split)
    assert_same(scores_and_gradients(model, batch, split), scores_and_gradients(model, batch, full))


def test_packed_rows_equal_single_rows(family):
    """Catches: pairs of one row that see each other, or images handed to the wrong pair."""
    model, processor, pairs = family
    single, packed = layout_of(model), layout_of(model, row_tokens=10_000)
    packed_batch = collate_pairs(pairs, processor, rule="muffin", layout=packed)
    assert packed_batch.inputs["input_ids"].shape[0] == 1
    single_batch = collate_pairs(pairs, processor, rule="muffin", layout=single)
    assert single_batch.inputs["input_ids"].shape[0] == len(pairs)
    assert_same(
        scores_and_gradients(model, packed_batch, packed),
        scores_and_gradients(model, single_batch, single),
    )


def own_inputs(processor, pair, answer):
    """What the processor itself makes of a conversation that ends with an answer's ids."""
    image = {"type": "image", "image": decode_image(pair.image)}
    question = {"type": "text", "text": "What is there?"}
    prompt = [{"role": "user", "content": [image, question]}]
    text = processor.tokenizer.decode(answer).removesuffix("</s>")
    reply = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    return processor.apply_chat_template(
        [*prompt, reply], tokenize=True, return_dict=True, return_tensors="pt"
    )


def test_plain_rows_are_the_models_own_logits(family):
    """Catches: a head or body other than the model's, a token scored from the wrong feature.

    The model gets one pair at a time, with the processor's inputs.
    """
    model, processor, pairs = family
    layout = layout_of(model, "plain")
    for pair in pairs:
        batch = collate_pairs([pair], processor, rule="muffin", layout=layout)
        ours = policy_token_logps(AnswerPolicy(model, layout), batch)
        for row, answer in enumerate((pair.chosen_ids, pair.rejected_ids)):
            inputs = own_inputs(processor, pair, answer)
            assert inputs["input_ids"][0].tolist() == pair.prompt_ids + answer
            labels = torch.tensor([[IGNORED] * len(pair.prompt_ids) + answer])
            logits = model(**inputs, use_cache=False).logits
            expected = token_logps(logits, labels)[0, len(pair.prompt_ids) - 1 :]
            torch.testing.assert_close(ours[row, : len(answer)], expected, atol=TOKENS, rtol=1e-6)
            assert (ours[row, len(answer) :] == 0).all()


def test_conversations_are_the_models_own_logits(family):
    """Catches: a later turn scored at the wrong position or not at all, in either layout; a
    template that loses a turn."""
    model, processor, pairs = family
    turns = (("What is there?", ANSWERS[0][0]), ("one", ANSWERS[1][0]))
    example = encode_example(Example("talk", pairs[0].image, turns), processor, max_length=2048)
    examples = [example, EncodedPair(**{**vars(pairs[1]), "rejected_ids": []})]
    assert example.scored is not None and not all(example.scored)
    layouts = layout_of(model), layout_of(model, "plain")
    shared, plain = (
        collate_pairs(examples, processor, rule="muffin", layout=layout) for layout in layouts
    )
    shared_results = scores_and_gradients(model, shared, layouts[0])
    assert_same(shared_results, scores_and_gradients(model, plain, layouts[1]))
    ids = torch.tensor([example.prompt_ids + example.chosen_ids])
    inputs = collate_pairs([example], processor, rule="muffin", layout=layouts[1]).inputs
    assert torch.equal(inputs["input_ids"], ids)
    logits = model(**inputs, use_cache=False).logits
    unscored = torch.tensor(
        [[True] * len(example.prompt_ids) + [not flag for flag in example.scored]]
    )
    labels = ids.masked_fill(unscored, IGNORED)  # (1, T)
    expected = token_logps(logits, labels)[0, len(example.prompt_ids) - 1 :].detach()  # (A,)
    logps = shared_results[0][0, : len(expected)]
    torch.testing.assert_close(logps, expected, atol=TOKENS, rtol=1e-6)
    assert (expected != 0).sum() == sum(example.scored)


def saved_bytes(model, batch, layout) -> int:
    """Return the bytes that a forward pass saves for backward, weights included."""
    storages = {}  # by address; they stay alive, so that no address is reused

    def save_storage(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save_storage, lambda tensor: tensor):
        policy_token_logps(AnswerPolicy(model, layout), batch)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("every", [1, 2])
def test_recomputed_activations_change_nothing_but_memory(family, every):
    """Catches: layers that do not recompute although they claim it; dropout that becomes active."""
    model, processor, pairs = family
    layout = layout_of(model)
    batch = collate_pairs(pairs, processor, rule="muffin", layout=layout)
    stored = scores_and_gradients(model, batch, layout)
    stored_bytes = saved_bytes(model, batch, layout)
    recompute_activations(model, every)
    try:
        assert saved_bytes(model, batch, layout) < stored_bytes
        assert_same(scores_and_gradients(model, batch, layout), stored)
    finally:
        recompute_activations(model, 0)
    assert saved_bytes(model, batch, layout) == stored_bytes


def test_answers_in_a_batch_are_those_of_one_prompt_at_a_time(family):
    """Catches: padding that a family sees, an image given to another prompt."""
    model, processor, pairs = family
    # At least one of them is not answered by the end token at once.
    questions = ("What is there?", "a red circle on a street", "one")
    prompts = [Prompt(pair.id, pair.image, question) for pair in pairs for question in questions]
    # Without the penalty some models repeat one token.
    decoding = GenerationConfig(max_new_tokens=6, repetition_penalty=3.0)
    together = answer_prompts(model, processor, prompts, decoding)
    assert together == [
        answer_prompts(model, processor, [prompt], decoding)[0] for prompt in prompts
    ]
    assert any(together)


def test_bf16_rounds_rows_alike(family):
    """Catches: a step of shared rows that loses more in bf16 than rounding does.

    The tolerance is `HALF` of the mean log-prob's size.
    """
    model, processor, pairs = family
    half = deepcopy(model).bfloat16()
    plain = layout_of(model, "plain")
    exact, _ = scores_and_gradients(
        model, collate_pairs(pairs, processor, rule="muffin", layout=plain), plain
    )
    exact = exact[exact != 0]  # (answer tokens,)
    for layout in (layout_of(half), layout_of(half, "plain")):
        batch = collate_pairs(pairs, processor, rule="muffin", layout=layout)
        batch = to_device(batch, half.device, half.dtype)
        logps = policy_token_logps(AnswerPolicy(half, layout), batch).detach().float()
        rounded = logps[batch.answers >= 0]
        assert (rounded - exact).abs().mean() / exact.abs().mean() <= HALF
