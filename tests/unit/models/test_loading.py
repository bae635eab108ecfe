"""Loading a model: errors that a user can act on, and digests that change with the files."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils.import_utils import is_torchvision_available

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.data import decode_image
from rlhfv_ray.data.encoding import encode_pair
from rlhfv_ray.data.templates import end_tokens
from rlhfv_ray.errors import ConfigError, StageFailedError
from rlhfv_ray.logps import policy_token_logps
from rlhfv_ray.models import (
    AnswerPolicy,
    architecture_of,
    check_image_tokens,
    layout_of,
    load_model,
    load_policy,
    load_processor,
    planned_counts,
    processor_digest,
    resolve_model,
    save_processor,
    weights_digest,
)
from rlhfv_ray.models.batch import collate_pairs
from rlhfv_ray.models.loading import model_inputs
from rlhfv_ray.storage.stages import Stage, run_stages
from tests.unit.models.conftest import change_json


def check_folder(path):
    check_image_tokens(ModelConfig(path=str(path)))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "model.path is not set"),
        ("/no/such/model", "'/no/such/model': no such folder"),
        ("./model", "no such folder"),
        ("model", "no such folder"),
        ("~/no-such-model-here", "no such folder"),
    ],
)
def test_paths_that_are_no_model(path, message):
    """Catches: a mistyped folder that is looked up on the internet as a hub name."""
    with pytest.raises(ConfigError, match=message):
        resolve_model(path)


def test_dtypes_and_devices_that_are_none():
    """Catches: torch's words for a dtype that has another name here; a bare AssertionError."""
    with pytest.raises(ConfigError, match="dtype = 'fp16': allowed are fp32, bf16 and auto"):
        load_policy("shapes", dtype="fp16")
    for device in ("cdua", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device = '{device}' cannot be used"):
            load_policy("shapes", device=device)


def test_names_of_models():
    """Catches: `shapes` not shipped with the package."""
    assert load_processor("shapes").tokenizer.is_fast


def test_folder_without_config_is_refused(copy):
    """Catches: a checkpoint folder given instead of its model folder, shown as a stack trace."""
    (copy / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_policy(copy)


def test_missing_chat_template_is_refused(copy):
    """Catches: a template-less model that fails in every worker, pair by pair."""
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        load_processor(copy)


def test_missing_tokenizer_file_is_refused(copy):
    """Catches: a slow tokenizer taken if tokenizer.json is missing. It gives no character offsets,
    which human-marked spans need."""
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="tokenizer"):
        load_processor(copy)


def test_pickled_weights_are_refused(copy):
    """Catches: `pytorch_model.bin`, a pickle that runs code, opened if safetensors are missing."""
    model, _ = load_policy(copy, dtype="fp32", device="cpu")
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot be loaded.*safetensors"):
        load_policy(copy, dtype="fp32", device="cpu")


def test_truncated_weights_are_refused(copy):
    """Catches: a half-copied model shown as a stack trace of safetensors, which names no file."""
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_policy(copy, dtype="fp32", device="cpu")


def test_dtype_is_as_asked(small_model):
    """Catches: `fp32` that keeps a checkpoint's bf16, or dropout left on."""
    for name, dtype in (
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("auto", torch.float32),
    ):
        model, _ = load_policy(small_model, dtype=name, device="cpu")
        assert {weight.dtype for weight in model.parameters()} == {dtype}
        assert not model.training


def test_image_tokens_that_do_not_fit_the_model(copy):
    """Catches: image tokens that do not match the model's features, noticed only in the first
    forward pass on a paid cluster.

    64 x 64 pixels in patches of 16 are 16 features. A processor set to patches of 8 writes 64
    tokens.
    """
    check_folder(copy)
    change_json(copy / "processor_config.json", patch_size=8)
    with pytest.raises(ConfigError, match="64 image tokens .* 16 features"):
        check_folder(copy)


def test_weights_digest_sees_one_byte(copy, small_model):
    """Catches: reference log-probs of other weights or of another configuration taken for ours."""
    before = weights_digest(copy)
    assert before == weights_digest(small_model)  # the folder's name is no part of it
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    changed = weights_digest(copy)
    change_json(copy / "config.json", vision_feature_layer=-2)
    assert len({before, changed, weights_digest(copy)}) == 3


MUTATIONS: dict[str, tuple[str, str]] = {
    "config.json": ('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-03'),
    "generation_config.json": ("{", '{"no_repeat_ngram_size": 2,'),
    "chat_template.jinja": ("USER", "HUMAN"),
    "processor_config.json": ('"resample": 3', '"resample": 2'),
    "tokenizer.json": ("{", "{ "),
    "tokenizer_config.json": ('"eos_token": "</s>"', '"eos_token": "<s>"'),
}


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_model_that_training_exported_is_checked(small_model, tmp_path, name):
    """Catches: answers of a damaged model under a name of their own, and a later training on it."""

    def export(folder, token):
        shutil.copytree(small_model, folder / "model")

    (train,) = run_stages([Stage("train", {}, export, title="training")], tmp_path)
    config = ModelConfig(path=str(train.folder / "model"), dtype="fp32")
    assert model_inputs(config) == model_inputs(replace(config, path=str(small_model)))
    path = train.folder / "model" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for use in (model_inputs, lambda config: check_image_tokens(config)):
        with pytest.raises(StageFailedError, match=f"model/{name} is not what the stage wrote"):
            use(config)


def test_every_file_of_a_checkpoint_is_in_the_name_of_its_answers(copy):
    """Catches: answers taken for those of a checkpoint of which any file was changed since.

    The tokenizer's own file is changed in its layout alone, which changes no answer.
    """
    config = ModelConfig(path=str(copy), dtype="fp32")
    before = model_inputs(config)
    for file in sorted(copy.iterdir()):
        original = file.read_bytes()
        if file.suffix == ".safetensors":
            file.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        else:
            old, new = MUTATIONS[file.name]
            assert old in original.decode(), file.name
            file.write_text(original.decode().replace(old, new, 1))
        assert (model_inputs(config) == before) == (file.name == "tokenizer.json"), file.name
        file.write_bytes(original)
    assert model_inputs(config) == before
    assert model_inputs(replace(config, attention="eager")) != before


def test_processor_digest_names_what_changed(copy):
    """Catches: another template, pixel transform, tokenizer or number of image tokens with the same
    fingerprint."""
    before = processor_digest(load_processor(copy))
    assert before == processor_digest(load_processor(copy))

    def differ() -> set[str]:
        now = processor_digest(load_processor(copy))
        return {name for name in before if now[name] != before[name]}

    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").write_text(template.replace("USER:", "HUMAN:"))
    assert differ() == {"template"}
    (copy / "chat_template.jinja").write_text(template)
    stored = (copy / "processor_config.json").read_text()
    change_json(copy / "processor_config.json", patch_size=8)
    assert differ() == {"image_tokens"}
    (copy / "processor_config.json").write_text(stored)
    change_json(
        copy / "processor_config.json",
        image_processor=json.loads(stored)["image_processor"] | {"image_mean": [0.4, 0.5, 0.5]},
    )
    assert differ() == {"pixels"}
    (copy / "processor_config.json").write_text(stored)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert differ() == {"tokenizer"}


def test_flash_attention_that_cannot_be_had_is_refused(small_model):
    """Catches: an option that silently does something else. Flash attention refuses fp32."""
    with pytest.raises(
        ConfigError, match=r"flash_attention_2' needs .*pip install.*Leave --model.attention auto"
    ):
        load_model(ModelConfig(path=str(small_model), dtype="fp32", attention="flash_attention_2"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_the_one_asked_for(small_model, attention):
    """Catches: an option that does nothing; shared rows with an attention that adds their mask."""
    model, _ = load_model(ModelConfig(path=str(small_model), dtype="fp32", attention=attention))
    assert model.config.get_text_config()._attn_implementation == attention
    assert layout_of(model).shared == (attention == "sdpa")


def test_pickled_weights_only_when_asked_for(small_model, tmp_path):
    """Catches: code run by loading a checkpoint; pickles refused without saying how to allow them;
    pickles that the digest ignores."""
    folder = tmp_path / "pickled"
    shutil.copytree(small_model, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    without_weights = weights_digest(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    assert weights_digest(folder) != without_weights
    with pytest.raises(ConfigError, match=r"are pickles, which can run code.*--model.allow-pickle"):
        load_model(ModelConfig(path=str(folder), dtype="fp32"))
    model, _ = load_model(ModelConfig(path=str(folder), dtype="fp32", allow_pickle=True))
    assert all(
        torch.equal(tensor, weights[name])
        for name, tensor in model.state_dict().items()
        if name in weights
    )


@pytest.mark.parametrize("problem", ["missing", "unexpected"])
def test_weights_that_are_not_the_configs_are_refused(copy, problem):
    """Catches: random weights in place of missing ones, or another architecture loaded in part."""
    weights = load_file(copy / "model.safetensors")
    changed = (
        dict(list(weights.items())[1:])
        if problem == "missing"
        else {**weights, "extra.weight": torch.zeros(2)}
    )
    save_file(changed, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ConfigError,
        match=rf"1 weights are {problem} \(first: .*not the model that its config.json describes",
    ):
        load_policy(copy)


def test_template_without_a_place_for_the_image_is_refused(copy):
    """Catches: a text-only template, with which the model would train without any image."""
    (copy / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message['role'] }}{% endfor %}"
    )
    with pytest.raises(ConfigError, match="leaves no place for an image"):
        check_folder(copy)


CODE = """
from transformers import LlavaConfig, LlavaForConditionalGeneration

class ShyConfig(LlavaConfig):
    model_type = "shy"

class Shy(LlavaForConditionalGeneration):
    config_class = ShyConfig
"""


@pytest.fixture
def shy(copy):
    """A model whose class is code in its own folder."""
    (copy / "shy.py").write_text(CODE)
    model, _ = load_policy(copy, device="cpu")
    # `state_dict` has the names that the class itself uses; saved checkpoints have older ones.
    save_file(dict(model.state_dict()), copy / "model.safetensors", {"format": "pt"})
    classes = {"AutoConfig": "shy.ShyConfig", "AutoModelForImageTextToText": "shy.Shy"}
    change_json(copy / "config.json", model_type="shy", architectures=["Shy"], auto_map=classes)
    return copy


def test_code_of_a_checkpoint_runs_only_when_asked(shy, pairs, small_model):
    """Catches: a checkpoint's code that runs without permission, or gives other numbers."""
    for read in (load_policy, architecture_of, check_folder, weights_digest_of_hub):
        with pytest.raises(
            ConfigError, match=r"brings Python code of its own.*--model.trust-remote-code"
        ):
            read(shy)
    config = ModelConfig(path=str(shy), dtype="fp32", trust_remote_code=True)
    model, processor = load_model(config)
    assert type(model).__name__ == "Shy"
    check_image_tokens(ModelConfig(path=str(shy), trust_remote_code=True))
    layout = layout_of(model)
    assert layout == layout_of(model, "shared")  # which the self-check tries, like all others
    known, _ = load_policy(small_model, device="cpu")
    encoded = [encode_pair(pair, processor, min_match=3, max_length=256) for pair in pairs[:3]]
    batch = collate_pairs(encoded, processor, rule="muffin", layout=layout)
    layout = layout_of(model, "plain", split_head=False)
    known_layout = layout_of(known, "plain")
    known_batch = collate_pairs(encoded, processor, rule="muffin", layout=known_layout)
    expected = policy_token_logps(AnswerPolicy(known, known_layout), known_batch)
    logps = policy_token_logps(AnswerPolicy(model, layout), batch)
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)
    assert planned_counts(config) == planned_counts(replace(config, path=str(small_model)))


def weights_digest_of_hub(path):
    """Read the files that `weights_digest` reads of a hub name; a folder's digest needs no code."""
    before = weights_digest(path)
    (path / "shy.py").write_text(CODE + "# changed")
    assert weights_digest(path) != before  # other code, another model
    return load_processor(path) and architecture_of(path)


def test_settings_for_videos_survive_saving(small_model, tmp_path):
    """Catches: an aligned Qwen2-VL that other programs cannot load, because its video part was not
    loaded here and so not saved; one that lacks the file that transformers 4 reads."""
    source, folder = tmp_path / "source", shutil.copytree(small_model, tmp_path / "saved")
    shutil.copytree(small_model, source)
    save_processor(load_processor(small_model), str(source), folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in small_model.iterdir()}
    (source / "video_preprocessor_config.json").write_text('{"fps": 2}')
    (source / "preprocessor_config.json").write_text('{"size": 7}')
    change_json(source / "processor_config.json", video_processor={"fps": 2}, image_seq_length=77)
    save_processor(load_processor(small_model), str(source), folder)
    assert json.loads((folder / "video_preprocessor_config.json").read_text()) == {"fps": 2}
    assert json.loads((folder / "preprocessor_config.json").read_text()) == {"size": 7}
    saved = json.loads((folder / "processor_config.json").read_text())
    assert saved == {
        **json.loads((small_model / "processor_config.json").read_text()),
        "video_processor": {"fps": 2},
    }


def test_a_saved_tokenizer_does_not_depend_on_its_last_call(small_model, tmp_path):
    """Catches: two exports of one training whose files differ, because one process has padded
    texts before it and the other has not."""
    processor = load_processor(small_model)
    save_processor(processor, str(small_model), tmp_path / "unused")
    processor.tokenizer(["one", "one and two"], padding=True, truncation=True, max_length=2)
    save_processor(processor, str(small_model), tmp_path / "used")
    for path in (tmp_path / "unused").iterdir():
        assert path.read_bytes() == (tmp_path / "used" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("read", [load_policy, check_folder, architecture_of])
def test_unknown_architecture_is_refused(copy, read):
    """Catches: a model of another library, shown as a stack trace."""
    change_json(copy / "config.json", model_type="nonesuch")
    with pytest.raises(ConfigError, match=r"(architecture|processor).*cannot be"):
        read(copy)


def test_end_tokens_are_those_of_the_models_settings(copy):
    """Catches: an end of the model's own that is not learnt as one."""
    generation = copy / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [2, 5]}))
    processor = load_processor(copy)
    fifth = processor.tokenizer.convert_ids_to_tokens(5)
    assert end_tokens(processor) == ("</s>", fifth)


def test_a_digest_does_not_depend_on_the_calls_before(pairs):
    """Catches: the padding of a processor's last batch in the name of every stage after it."""
    processor = load_processor("shapes")
    fresh = processor_digest(processor)
    images = [decode_image(pair.image) for pair in pairs[:2]]
    processor(images=images, text=["<image>", "<image> a"], padding=True, return_tensors="pt")
    assert processor_digest(processor) == fresh


def test_each_world_has_its_base_model():
    """Catches: one world's model under the other world's name; the name of a model on a hub."""
    from rlhfv_ray.shapes import model

    assert resolve_model("shapes") == str(model.BALANCED)
    assert resolve_model("shapes-biased") == str(model.BIASED)


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
@pytest.mark.parametrize(
    ("kind", "family", "images"),
    [
        ("mistral3", "Pixtral", "Pixtral"),
        ("llava", "Pixtral", "Pixtral"),
        ("cohere2_vision", "Cohere2Vision", "Cohere2Vision"),
        ("lfm2_vl", "Lfm2Vl", "Lfm2Vl"),
        ("llama4", "Llama4", "Llama4"),
        ("molmo2", "Molmo2", "Molmo2"),
        ("kimi_k25", "Kimi_K25", "Kimi_K25"),
    ],
)
def test_families_that_need_torchvision_are_refused_by_name(copy, kind, family, images):
    """Catches: a TypeError, or rows set aside one by one, where a package is missing."""
    change_json(copy / "config.json", model_type=kind)
    change_json(
        copy / "processor_config.json",
        processor_class=f"{family}Processor",
        image_processor={"image_processor_type": f"{images}ImageProcessor"},
    )
    with pytest.raises(ConfigError, match=r"needs torchvision: .*rlhfv-ray\[vision\]"):
        load_processor(copy)
