"""Arguments of the chat template: the same ones wherever a model is used, and no others."""

import hashlib
import json
from dataclasses import replace
from functools import partial

import pytest

from eval.config import EvalConfig, LoadConfig
from rlhfv_ray.config import DataConfig, ModelConfig
from rlhfv_ray.data import list_slices
from rlhfv_ray.data.encoding import encode_pair
from rlhfv_ray.data.templates import answering_prompt, prompt_text
from rlhfv_ray.doctor import Checkup, doctor
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.inference.reference import encode_slice, reference_inputs
from rlhfv_ray.models import (
    check_image_tokens,
    load_model,
    load_processor,
    processor_digest,
    processor_of,
)
from rlhfv_ray.models.loading import model_inputs

OPENED = "{% if add_generation_prompt %}ASSISTANT:\n"
THOUGHT = "{% if thinking is not defined or thinking %}<think>{% endif %}"


@pytest.fixture
def thinking(copy):
    """A model whose prompts open a thought, unless its template is told not to."""
    template = (copy / "chat_template.jinja").read_text()
    assert OPENED in template
    (copy / "chat_template.jinja").write_text(template.replace(OPENED, OPENED + THOUGHT))
    return ModelConfig(path=str(copy), dtype="fp32", template_arguments=("thinking=false",))


def test_every_use_of_a_model_has_the_same_prompt(thinking, pairs, processor, tmp_path):
    """Catches: an argument that training gets, and the reference or generation does not."""
    expected = prompt_text(processor, "What?")
    _, loaded = load_model(thinking)  # reference, generation and training
    for used in (loaded, processor_of(thinking)):
        assert prompt_text(used, "What?") == answering_prompt(used, "What?") == expected
    encode = partial(encode_pair, min_match=3, max_length=256)
    without = processor_of(replace(thinking, template_arguments=()))
    assert prompt_text(without, "What?") == expected + "<think>"
    with pytest.raises(DataError, match=r"--model\.template-arguments"):
        encode(pairs[0], without)
    assert encode(pairs[0], loaded) == encode(pairs[0], processor)
    loaded.save_pretrained(tmp_path / "exported")  # the job's arguments are not the model's
    exported = {file.name: file.read_text() for file in (tmp_path / "exported").iterdir()}
    assert not [name for name, text in exported.items() if "template_arguments" in text]


def test_the_pairs_of_a_reference_have_the_arguments(thinking, pairs, tmp_path):
    """Catches: pairs encoded with another prompt than the one that the model is loaded with."""
    (tmp_path / "a.png").write_bytes(pairs[0].image)
    row = {"id": "a", "image": "a.png", "question": "What?", "chosen": "a star"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"rejected": "a ring"}))
    data = DataConfig(path=str(tmp_path / "rows.jsonl"))
    (shard,) = list_slices(data.path)
    for arguments, usable in ((("thinking=false",), True), ((), False)):
        (encoded,) = encode_slice(
            shard, model=replace(thinking, template_arguments=arguments), data=data
        )
        assert isinstance(encoded, tuple) is not usable


def test_arguments_enter_fingerprints_only_when_set(thinking):
    """Catches: answers with a thought taken for those without; finished folders with new names."""
    without = replace(thinking, template_arguments=())
    template = load_processor(thinking.path).chat_template
    assert (
        processor_digest(processor_of(without))["template"]
        == hashlib.sha256(template.encode()).hexdigest()[:16]
    )
    spaced = replace(thinking, template_arguments=("thinking= false",))  # the same value
    for inputs in (model_inputs, lambda model: reference_inputs(model, DataConfig(), rows="rows")):
        assert inputs(thinking) != inputs(without)
        assert inputs(thinking) == inputs(spaced)


def test_arguments_that_do_nothing_are_refused(thinking):
    """Catches: a mistyped argument, which jinja ignores; one that breaks every prompt."""
    with pytest.raises(
        ConfigError, match=r"'no_thought=false': the chat template .* takes no no_thought"
    ):
        processor_of(replace(thinking, template_arguments=("no_thought=false",)))
    for entry in ("thinking", "=false", "messages=[]", "tokenize=true"):
        with pytest.raises(ConfigError, match=r"model.template_arguments = .*NAME=VALUE"):
            ModelConfig(template_arguments=(entry,))
    with pytest.raises(ConfigError, match=r"loading.template_arguments = .*NAME=VALUE"):
        LoadConfig(template_arguments=("thinking",))


def test_checks_of_a_model_render_its_prompts_with_them(copy, capsys):
    """Catches: a template that needs an argument, refused before the job or by the doctor."""
    file = copy / "chat_template.jinja"
    needs = "{% if style is not defined %}{{ raise_exception('style is missing') }}{% endif %}"
    file.write_text(needs + file.read_text())
    given = ("style=short",)
    check_image_tokens(ModelConfig(path=str(copy), template_arguments=given))
    assert doctor(Checkup(model=str(copy), template_arguments=given)) == 0
    assert "LlavaForConditionalGeneration" in capsys.readouterr().out
    with pytest.raises(Exception, match="style is missing"):
        check_image_tokens(ModelConfig(path=str(copy)))


def test_an_evaluation_gives_them_to_the_models_it_loads(thinking):
    """Catches: an option of evaluations that reaches no template."""
    loading = LoadConfig(dtype="fp32", template_arguments=thinking.template_arguments)
    assert EvalConfig(model=("m",), loading=loading).checkpoint(thinking.path) == thinking
