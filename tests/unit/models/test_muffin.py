"""Muffin: release folders load and are saved as they are, and what cannot be loaded is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhfv_ray.config import DDPOConfig, GenerationConfig, ModelConfig, ScaleConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.inference.generate import answer_prompts
from rlhfv_ray.models import check_image_tokens, load_model, load_policy, predict_memory
from rlhfv_ray.models.adapters import meta_model, parameter_counts
from rlhfv_ray.models.loading import load_weights
from rlhfv_ray.models.memory import StepSize
from rlhfv_ray.models.muffin import resized_positions
from rlhfv_ray.records import Prompt
from tests.families import save
from tests.families_muffin import (
    RELEASE,
    change_config,
    muffin,
    write_release,
    write_slow_tokenizer,
)
from tests.golden.check import GOLDEN
from tests.invariants.test_families import picture

BEIT3 = "model.vision_tower.beit3."
UNUSED = {f"{BEIT3}text_embed.weight", f"{BEIT3}vision_embed.mask_token"}
POSITIONS = f"{BEIT3}encoder.embed_positions.A.weight"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release") / "model")


@pytest.fixture
def copy(release, tmp_path):
    return shutil.copytree(release, tmp_path / "model")


def of(folder):
    """Return the settings with which a release's pickles are loaded."""
    return ModelConfig(path=str(folder), dtype="fp32", allow_pickle=True)


def test_saved_again_it_is_the_same_to_the_bit(tmp_path):
    """Catches: weights by other names than the release's, or changed on their way."""
    source = GOLDEN / "muffin_tiny"
    model = load_weights(str(source), ModelConfig(path=str(source)))
    model.save_pretrained(tmp_path)
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    given, written = (json.loads((path / "config.json").read_text()) for path in (source, tmp_path))
    renamed = {"architectures", "torch_dtype"}
    assert {name: written.get(name) for name in given.keys() - renamed} == {
        name: value for name, value in given.items() if name not in renamed
    }


def test_pickles_need_permission_and_then_load(release):
    """Catches: pickles loaded unasked; shards, unused weights or an older buffer that stop it; the
    release's wrong token ids in generation."""
    with pytest.raises(ConfigError, match=r"pickles.*--model\.allow-pickle"):
        load_policy(release, dtype="fp32", device="cpu")
    model, processor = load_model(of(release))
    check_image_tokens(ModelConfig(path=str(release)))
    words = processor.tokenizer
    assert words.is_fast
    assert words.convert_ids_to_tokens(model.config.image_token_id) == "<im_patch>"
    for settings in (model.config, model.generation_config):
        assert (settings.bos_token_id, settings.eos_token_id) == (1, 2)
        assert settings.pad_token_id == words.convert_tokens_to_ids("[PAD]")
    # Answers in a batch are those of one prompt at a time; with beams, and without the cache.
    prompts = [Prompt(f"{number}", picture(number, 40, 30 + number), "What?") for number in (0, 1)]
    for decoding in (
        GenerationConfig(max_new_tokens=6),
        GenerationConfig(max_new_tokens=4, beams=3),
    ):
        together = answer_prompts(model, processor, prompts, decoding)
        alone = [answer_prompts(model, processor, [prompt], decoding)[0] for prompt in prompts]
        assert together == alone
    cached = answer_prompts(model, processor, prompts, GenerationConfig(max_new_tokens=3))
    model.generation_config.use_cache = False
    assert cached == answer_prompts(model, processor, prompts, GenerationConfig(max_new_tokens=3))


def test_what_is_saved_from_here_needs_no_permission(release, tmp_path):
    """Catches: an export whose processor, template or weights differ from those of its source."""
    model, processor = load_model(of(release))
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    again, its_processor = load_policy(tmp_path, dtype="fp32", device="cpu")
    assert its_processor.chat_template == processor.chat_template
    assert its_processor.image_processor.to_dict() == processor.image_processor.to_dict()
    text = "### Human: <im_start><im_patch><im_end>\na red star\n### "
    assert its_processor.tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.slow
def test_true_size_has_the_names_and_numbers_of_the_release(tmp_path):
    """Catches: a module that the release's model does not have, has by another name, or has in
    another shape; a step whose memory is off by its vision tower."""
    write_slow_tokenizer(tmp_path)
    added = ("[PAD]", "<im_patch>", "<im_start>", "<im_end>")
    numbers = {token: 32000 + index for index, token in enumerate(added)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(numbers))
    sizes = {"hidden_size": 5120, "intermediate_size": 13824, "num_query": 64, "vocab_size": 32004}
    layers = {"num_hidden_layers": 40, "num_attention_heads": 40, "mm_vision_config": None}
    (tmp_path / "config.json").write_text(json.dumps({**RELEASE, **sizes, **layers}))
    model = meta_model(ModelConfig(path=str(tmp_path)))
    counts = {part: total for part, (total, _) in parameter_counts(model).items()}
    vision = 607_757_312 + 64 * 1024  # and the queries
    assert counts == {"vision": vision, "projector": 5_248_000, "language": 13_015_905_280}
    shapes = {name: list(weight.shape) for name, weight in model.named_parameters()}
    golden = json.loads((GOLDEN / "muffin_names.json").read_text())
    expected = {
        f"{BEIT3}{name.replace('.N.', f'.{layer}.')}": entry["shape"]
        for name, entry in golden["vision_tower.beit3."].items()
        for layer in range(entry["count"])
    }
    ours = {name: shape for name, shape in shapes.items() if name.startswith(BEIT3)}
    assert ours == {name: shape for name, shape in expected.items() if name not in UNUSED}
    config = DDPOConfig(
        model=ModelConfig(path=str(tmp_path)), scale=ScaleConfig(workers=8, zero_stage=3)
    )
    pixels = {"pixel_values": torch.zeros(1, 3, 448, 448)}
    memory = predict_memory(config, StepSize(1, 600, pixels, 300))
    assert 3 < memory.weights / 2**30 < 3.5  # 13.63e9 numbers of 2 bytes on 8 workers
    assert 25 < memory.total / 2**30 < 40


def test_positions_fit_another_side(copy):
    """Catches: a checkpoint of one side that another cannot load, or loads with its rows moved."""
    model, _ = load_model(of(copy))
    change_config(copy, mm_vision_config={**RELEASE["mm_vision_config"], "image_size": 48})
    larger, processor = load_model(of(copy))
    before, after = (
        m.model.vision_tower.beit3.encoder.embed_positions.A.weight for m in (model, larger)
    )
    assert after.shape == (3 + 36, 32)
    assert torch.equal(before[:3], after[:3])
    assert torch.equal(after, resized_positions(before, 39))
    assert dict(processor.image_processor.size) == {"height": 48, "width": 48}


def test_weights_of_another_size_are_named(tmp_path):
    """Catches: weights that are cut or left as they were made, because their shapes differ."""
    folder = save(muffin, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    narrow = {**weights, "model.mm_projector.weight": weights["model.mm_projector.weight"][:16]}
    save_file(narrow, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"mismatch|mm_projector"):
        load_policy(folder, dtype="fp32", device="cpu")
    torn = {**weights, POSITIONS: weights[POSITIONS][:10]}  # 10 - 3 is no square
    save_file(torn, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"mismatch|embed_positions"):
        load_policy(folder, dtype="fp32", device="cpu")


def test_image_tokens_must_stand_between_their_marks():
    """Catches: features that are put where no picture was meant."""
    model, _ = muffin()
    patch, start, end = (
        getattr(model.config, f"im_{name}_token") for name in ("patch", "start", "end")
    )
    right = [1, start, patch, patch, patch, patch, end, 5]
    pixels = torch.zeros(1, 3, 32, 32)
    assert model(input_ids=torch.tensor([right]), pixel_values=pixels).logits.shape[1] == 8
    for wrong in ([1, start, patch, patch, patch, end, 5, 5], right[1:-2], [1, *right[2:]]):
        with pytest.raises(ValueError, match="between <im_start> and <im_end>"):
            model(input_ids=torch.tensor([wrong]), pixel_values=pixels)
    with pytest.raises(ValueError, match="2 pictures were given, but the text has 1"):
        model(input_ids=torch.tensor([right]), pixel_values=pixels.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="32 x 32 pixels"):
        model(input_ids=torch.tensor([right]), pixel_values=torch.zeros(1, 3, 40, 40))
