"""Folders as the hub has them: each loads, or is refused in one sentence before anything starts."""

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, Qwen2_5OmniConfig

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.data.encoding import encode_pair
from rlhfv_ray.data.templates import end_tokens
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.models import (
    architecture_of,
    check_image_tokens,
    load_policy,
    load_processor,
    processor_of,
)
from tests.unit.models.conftest import change_json

SCREEN = 24 * 80  # characters


def check_folder(path):
    check_image_tokens(ModelConfig(path=str(path)))


def refusals(folder):
    """Return what is said of a folder before anything starts, and when it is loaded."""
    texts = []
    for read in (check_folder, load_policy):
        with pytest.raises(ConfigError) as error:
            read(folder)
        texts.append(str(error.value))
        assert len(texts[-1]) < SCREEN
    return texts


@pytest.mark.parametrize(
    "method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "torchao", "new"]
)
@pytest.mark.parametrize("place", ["config", "text_config", "compression_config"])
def test_quantised_weights_are_refused_by_name(copy, method, place):
    """Catches: a quantised model that fails in its first step, or trains what is not there; the
    settings of a method that transformers skips, exported beside weights that are not quantised."""
    settings = {"quant_method": method, "bits": 4}
    config = json.loads((copy / "config.json").read_text())
    if place == "compression_config":
        config[place] = settings
    else:
        target = config if place == "config" else config[place]
        target["quantization_config"] = settings
    change_json(copy / "config.json", **config)
    for text in refusals(copy):
        assert f"quantised ({method})" in text and "checkpoint that they were made of" in text


def test_quantised_weights_without_a_method_are_refused(copy):
    """Catches: "quantised (None)"."""
    change_json(copy / "config.json", quantization_config={"bits": 4})
    assert all("quantised (by no named method)" in text for text in refusals(copy))


@pytest.mark.parametrize("config", [LlamaConfig, Qwen2_5OmniConfig])
def test_models_that_take_no_pictures_with_text_are_refused(copy, config):
    """Catches: a text-only or omni model shown as a stack trace with a list of 60 classes."""
    config().save_pretrained(copy)
    for text in refusals(copy):
        assert f"type {config.model_type} is not an image-text-to-text model" in text


def test_a_folder_of_2024_takes_its_patches_from_the_models_config(copy, small_model):
    """Catches: a LLaVA refused that was published before its processor knew its patches."""
    path = copy / "processor_config.json"
    settings = json.loads(path.read_text())
    for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        settings.pop(name)
    path.write_text(json.dumps(settings))
    assert load_processor(copy).to_dict() == load_processor(small_model).to_dict()
    check_folder(copy)
    load_policy(copy, dtype="fp32", device="cpu")


def test_weights_of_more_words_than_the_config_has_are_refused(copy):
    """Catches: a vocabulary that ends in an index error, or in new random embeddings."""
    text = json.loads((copy / "config.json").read_text())["text_config"]
    change_json(copy / "config.json", text_config=text | {"vocab_size": text["vocab_size"] - 8})
    before, loading = refusals(copy)
    assert f"embeddings of {text['vocab_size'] - 8}" in before
    assert "2 weights are mismatched (first: lm_head.weight, model.language_model" in loading


def test_a_padding_token_without_an_embedding_is_refused(copy):
    """Catches: a token added for padding alone, which ends in an index error in the first batch."""
    processor = load_processor(copy)
    check_folder(copy)
    processor.tokenizer.add_special_tokens({"pad_token": "<added>"})
    processor.save_pretrained(copy)
    with pytest.raises(ConfigError, match="tokenizer has tokens up to number"):
        check_folder(copy)


def test_tokens_that_nothing_uses_need_no_embedding(copy):
    """Catches: a published model refused for added tokens that no row has."""
    processor = load_processor(copy)
    processor.tokenizer.add_tokens(["<unused>"])
    processor.save_pretrained(copy)
    check_folder(copy)


def test_a_model_whose_processor_takes_no_template_loads_as_it_is_told(copy):
    """Catches: "add chat_template.jinja" said of a model that does not read it."""
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    change_json(copy / "processor_config.json", processor_class="ChameleonProcessor")
    with pytest.raises(ConfigError, match=r"add chat_template\.jinja"):
        load_processor(copy)
    (copy / "chat_template.jinja").write_text(template)
    assert load_processor(copy).chat_template == template


@pytest.mark.parametrize("kind", ["omnilmm", "minicpmv"])
def test_models_that_transformers_lacks_are_named(copy, kind):
    """Catches: "unrecognized model" said of a model that the field knows."""
    change_json(copy / "config.json", model_type=kind)
    for read in (architecture_of, load_policy):
        with pytest.raises(ConfigError, match="transformers") as error:
            read(copy)
        assert "not part of transformers" in str(error.value)


def test_a_template_in_the_tokenizers_settings_is_used(copy):
    """Catches: a published model refused because its template stands in an older place."""
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    change_json(copy / "tokenizer_config.json", chat_template=template)
    assert load_processor(copy).chat_template == template


def test_of_several_templates_the_default_is_used(copy):
    """Catches: a folder of further templates that is taken for a template."""
    folder = copy / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("{{ 'tools' }}")
    assert load_processor(copy).chat_template == load_processor("shapes").chat_template


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_length_in_the_tokenizers_files_cuts_nothing(copy, file, processor, pairs):
    """Catches: questions cut off without a word, because the tokenizer was saved after a call that
    cut its texts."""
    cut = {"max_length": 12, "stride": 0}
    if file == "tokenizer.json":
        change_json(
            copy / file, truncation={"direction": "Right", "strategy": "LongestFirst", **cut}
        )
    else:
        change_json(copy / file, truncation_strategy="longest_first", **cut)
    ours, whole = (
        encode_pair(pairs[0], each, min_match=3, max_length=1024)
        for each in (load_processor(copy), processor)
    )
    assert ours.prompt_ids == whole.prompt_ids
    assert ours.chosen_ids == whole.chosen_ids


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('text alone') }}", "text alone"),
        ("{% for message in messages %}", "Unexpected end of template"),
        ("{{ 'user: ' + messages[0]['content'] }}", "can only concatenate str"),
    ],
)
def test_a_template_that_takes_no_picture_is_refused_before_anything_starts(copy, template, reason):
    """Catches: a stack trace of jinja2; every row set aside, one after the other."""
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match=f"chat template cannot write.*{reason}"):
        check_folder(copy)


def test_an_end_of_answers_without_an_embedding_is_refused(copy):
    """Catches: a token that the template writes behind an answer alone, and an index error in the
    reference pass, behind the tokens that the self-check compares."""
    processor = load_processor(copy)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    processor.chat_template = processor.chat_template.replace("</s>", "<|end|>")
    processor.save_pretrained(copy)
    with pytest.raises(ConfigError, match="tokenizer has tokens up to number"):
        check_folder(copy)


def test_rows_with_a_word_that_the_model_has_no_embedding_of_are_set_aside(copy, pairs):
    """Catches: one row that ends a reference pass with an index error, after hours perhaps."""
    changed = load_processor(copy)
    changed.tokenizer.add_tokens(["unicorn"])
    changed.save_pretrained(copy)
    processor = processor_of(ModelConfig(path=str(copy)))
    encode_pair(pairs[0], processor, min_match=3, max_length=1024)
    row = replace(pairs[0], rejected="There is a unicorn.")
    with pytest.raises(DataError, match="unknown_token: a text holds 'unicorn'"):
        encode_pair(row, processor, min_match=3, max_length=1024)


def split_weights(folder):
    """Replace a model's weights with two shards and their index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    shards = {
        name: f"model-0000{1 + number % 2}-of-00002.safetensors"
        for number, name in enumerate(names)
    }
    for shard in set(shards.values()):
        held = {name: weights[name] for name in names if shards[name] == shard}
        save_file(held, folder / shard, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_load_and_none_may_be_missing(copy):
    """Catches: a download that broke off, told of only by the actors that load the model."""
    split_weights(copy)
    check_folder(copy)
    load_policy(copy, dtype="fp32", device="cpu")
    second = copy / "model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    for broken in (whole[:-8], pointer, b""):
        second.write_bytes(broken)
        with pytest.raises(ConfigError, match="model-00002-of-00002.safetensors is missing or dam"):
            check_folder(copy)
    second.unlink()
    with pytest.raises(ConfigError, match="model-00002-of-00002.safetensors is missing or dam"):
        check_folder(copy)
    (copy / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ConfigError, match="index.json is missing or damaged"):
        check_folder(copy)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "generation_config.json is damaged"),
        ("[]", "generation_config.json holds no settings"),
        (
            '{"eos_token_id": "</s>"}',
            "eos_token_id = '</s>' in generation_config.json is no number",
        ),
    ],
)
def test_settings_of_generation_that_cannot_be_read_are_named(copy, text, reason):
    """Catches: a stack trace of the tokenizer or of json, which names no file."""
    (copy / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load_processor(copy)


@pytest.mark.parametrize("number", [-1, 10**6])
def test_an_end_that_is_no_token_leaves_the_tokenizers_own(copy, number):
    """Catches: an overflow in the tokenizer for -1, which stands for no token."""
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [number]}))
    processor = load_processor(copy)
    assert end_tokens(processor) == (processor.tokenizer.eos_token,)


def test_a_tokenizer_without_padding_and_end_is_refused(copy):
    """Catches: "please report the model" said where a setting is missing."""
    path = copy / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for name in ("pad_token", "eos_token"):
        settings.pop(name, None)
    path.write_text(json.dumps(settings))
    (copy / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="neither a pad_token nor an eos_token"):
        load_processor(copy)
