"""Families that nothing in the code names: the self-check finds their rows, or refuses them.

Small random models in their published form. Some need torchvision, and are skipped without it.
"""

import pytest
from transformers.utils import is_torchvision_available

from rlhfv_ray.config import GenerationConfig
from rlhfv_ray.data.encoding import encode_pair
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.inference.generate import answer_prompts
from rlhfv_ray.models import load_policy
from rlhfv_ray.models.self_check import Sample, self_check
from rlhfv_ray.records import PreferencePair, Prompt
from tests.families import save
from tests.families_a import FAMILIES_A
from tests.families_b import FAMILIES_B
from tests.families_c import FAMILIES_C
from tests.families_d import FAMILIES_D, REFUSED_D
from tests.families_muffin import muffin
from tests.families_vision import FAMILIES_VISION
from tests.invariants.test_families import ANSWERS, picture

TOKENS = 2e-5  # nats, largest distance of a token
GRADIENT = 1e-5
# Layers that carry a state from token to token, or attention that is not sdpa.
PLAIN = {"qwen3_5", "qwen3_5_moe", "minicpmv4_6", "minicpmv4_7", "llava_lfm2", "paligemma2"}
PLAIN |= {"gemma4_unified", "lfm2_vl", "llama4"}
# Cap, scale or mask their logits behind the head, or have no body apart from it.
WHOLE = {"gemma4", "gemma4_experts", "paligemma2", "granite4_vision", "chameleon", "blip2"}
WHOLE |= {"gemma4_unified", "llama4"}
# transformers 5.23 numbers its images on through a batch, so that plain rows are wrong.
ROWS_DEPEND = {"hunyuan_vl"}


with_torchvision = pytest.mark.skipif(
    not is_torchvision_available(), reason="needs torchvision: make models"
)
MORE = [*FAMILIES_A, *FAMILIES_B, *FAMILIES_C, *FAMILIES_D, muffin]
MORE += [pytest.param(make, marks=with_torchvision) for make in FAMILIES_VISION]


@pytest.fixture(scope="module", params=MORE, ids=lambda make: make.__name__)
def family(request, tmp_path_factory):
    """A family's name, model, processor, and pairs with images of several shapes."""
    return loaded(request.param, tmp_path_factory.mktemp("family"))


def loaded(make, folder):
    """Return what `family` holds."""
    name = make.__name__
    folder = save(make, folder / name)
    model, processor = load_policy(folder, dtype="fp32", device="cpu")
    shapes = [(60, 30), (40, 70), (64, 64), (100, 50)]
    pairs = [
        PreferencePair(f"{number}", picture(number, *shape), "What is there?", chosen, rejected)
        for number, (shape, (chosen, rejected)) in enumerate(zip(shapes, ANSWERS, strict=True))
    ]
    return name, model, processor, pairs


def samples_of(pairs, processor):
    return [
        Sample(pair.question, encode_pair(pair, processor, min_match=3, max_length=4096))
        for pair in pairs
    ]


@pytest.mark.parametrize("make", REFUSED_D, ids=lambda make: make.__name__)
def test_what_is_not_the_models_own_is_refused(make, tmp_path):
    """Catches: a model that is trained on other numbers than it answers with."""
    _, model, processor, pairs = loaded(make, tmp_path)
    with pytest.raises(ConfigError, match="The model .*") as error:
        self_check(model, processor, samples_of(pairs, processor))
    assert "docs/models.md" in str(error.value)


def test_rows_give_the_models_own_numbers(family):
    """Catches: inputs that a family needs and does not get; rows that it does not respect; a family
    refused, or in slower rows, without need."""
    name, model, processor, pairs = family
    outcome = self_check(model, processor, samples_of(pairs, processor))
    assert outcome.layout == ("plain" if name in PLAIN else "shared"), outcome.refused
    assert outcome.split_head == (name not in WHOLE), outcome.refused
    assert outcome.tokens > 40 and outcome.distance <= TOKENS
    assert (outcome.gradient_distance is None) == (name in ROWS_DEPEND)
    assert (outcome.gradient_distance or 0.0) <= GRADIENT


def test_answers_in_a_batch_are_those_of_one_prompt_at_a_time(family):
    """Catches: padding that a family sees, an image given to another prompt."""
    _, model, processor, pairs = family
    prompts = [Prompt(pair.id, pair.image, "What is there?") for pair in pairs[:3]]
    decoding = GenerationConfig(max_new_tokens=5, repetition_penalty=3.0)
    together = answer_prompts(model, processor, prompts, decoding)
    assert together == [
        answer_prompts(model, processor, [prompt], decoding)[0] for prompt in prompts
    ]
