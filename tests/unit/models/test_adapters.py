"""Trained parts and adapters; merging adapters changes nothing."""

from copy import deepcopy

import pytest
import torch

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.logps import policy_token_logps
from rlhfv_ray.models import (
    AnswerPolicy,
    layout_of,
    load_policy,
    merge_adapters,
    planned_counts,
    prepare_training,
)
from rlhfv_ray.models.adapters import parameter_counts, parts_of
from rlhfv_ray.models.batch import collate_pairs
from tests.families import FAMILIES, save
from tests.families_a import FAMILIES_A
from tests.families_b import FAMILIES_B

LORA = {"lora_rank": 4}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda make: make.__name__)
def folder(request, tmp_path_factory):
    """A family's model, saved."""
    return save(request.param, tmp_path_factory.mktemp(request.param.__name__) / "model")


def load(folder):
    return load_policy(folder, dtype="fp32", device="cpu")[0]


@pytest.fixture(scope="module")
def untrained(folder):
    """The family's model. Tests that change it do so to a copy, which is faster than loading."""
    return load(folder)


def test_parts_are_found_in_every_family(folder, untrained):
    """Catches: a family whose parts have other names, so that freezing one does nothing."""
    for part in ("vision", "projector", "language"):
        config = ModelConfig(path=str(folder), trainable=(part,))
        model = deepcopy(untrained)
        prepare_training(model, config)
        counts = parameter_counts(model)
        assert planned_counts(config) == counts
        assert counts.keys() == {"vision", "projector", "language"}
        assert {name for name, (_, trained) in counts.items() if trained} == {part}
        assert counts[part][0] == counts[part][1]


def test_adapters_train_alone_and_merge_to_the_same_model(folder, untrained):
    """Catches: base weights trained with the adapters, adapters on the vision tower, a merge at
    another scale."""
    config = ModelConfig(path=str(folder), trainable=("language",), **LORA)
    model = deepcopy(untrained)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepare_training(model, config)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("vision" in name or "visual" in name for name in trained)
    adapter_weights = sum(weight.numel() for weight in trained.values())
    assert planned_counts(config)["adapters"] == (adapter_weights, adapter_weights)
    with torch.no_grad():
        for weight in trained.values():
            weight.normal_(0, 0.1)
    plain = merge_adapters(deepcopy(untrained), config, model.state_dict())
    assert plain.state_dict().keys() == start.keys()
    moved = {
        name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, start[name])
    }
    assert moved
    ids = torch.randint(150, 250, (1, 12))
    with torch.no_grad():
        adapted = model(input_ids=ids, use_cache=False).logits  # (1, 12, V)
        merged = plain(input_ids=ids, use_cache=False).logits
        before = untrained(input_ids=ids, use_cache=False).logits
    assert (adapted - before).abs().max() > 1e-2
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)


def test_fresh_adapters_leave_the_policy_the_reference(small_model, encoded, processor):
    """Catches: a first loss that is not ln 2, because adapters start from something."""
    reference = load(small_model)
    policy = load(small_model)
    prepare_training(policy, ModelConfig(path=str(small_model), **LORA))
    layout = layout_of(reference)
    batch = collate_pairs(encoded[:3], processor, rule="muffin", layout=layout)
    logps = [
        policy_token_logps(AnswerPolicy(model, layout), batch) for model in (reference, policy)
    ]
    assert torch.equal(*logps)


def test_adapters_on_named_layers_only(small_model):
    """Catches: `lora_targets` ignored; a misspelt layer that trains nothing."""
    model = load(small_model)
    prepare_training(
        model, ModelConfig(path=str(small_model), lora_targets=("q_proj", "v_proj"), **LORA)
    )
    adapted = {
        name.split(".lora_")[0].rsplit(".", 1)[-1]
        for name, _ in model.named_parameters()
        if "lora_" in name
    }
    assert adapted == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match=r"no linear layer \['query'\]; it has \['down_proj'"):
        prepare_training(
            load(small_model), ModelConfig(path=str(small_model), lora_targets=("query",), **LORA)
        )


def test_an_adapter_folder_is_no_model(tmp_path):
    """Catches: an adapter given as the model, with an error that does not say so."""
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds an adapter, not a model"):
        load_policy(tmp_path)


def test_towers_of_other_names_are_no_language_model(tmp_path):
    """Catches: adapters on a tower whose name nobody listed; a projector that is not trained."""
    models = {make.__name__: make for make in (*FAMILIES_A, *FAMILIES_B)}
    for name in ("video_llava", "ovis2", "gemma4", "glm4v", "mllama"):
        model = load(save(models[name], tmp_path / name))
        part_of = parts_of(model)
        decoder = {id(weight) for weight in model.get_decoder().parameters()}
        decoder |= {id(weight) for weight in model.get_output_embeddings().parameters()}
        found = {"language": set(), "vision": set(), "projector": set()}
        for key, weight in model.named_parameters():
            found[part_of(key)].add(id(weight))
        assert found["language"] == decoder, name
        assert found["vision"] and found["projector"], name


def test_experts_without_adapters_are_told_of(tmp_path, caplog):
    """Catches: fused experts that get no adapters, unsaid; a router that an adapter breaks."""
    models = {make.__name__: make for make in FAMILIES_A}
    model = load(save(models["qwen3_vl_moe"], tmp_path / "moe"))
    prepare_training(model, ModelConfig(path="moe", **LORA))
    assert "4 fused weights of the language model" in caplog.text
    for name in ("gate_up_proj", "down_proj"):
        assert f"language_model.layers.*.mlp.experts.{name}" in caplog.text
    ids = torch.randint(150, 250, (1, 12))
    assert model(input_ids=ids, use_cache=False).logits.isfinite().all()
