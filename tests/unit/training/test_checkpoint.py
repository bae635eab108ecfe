"""Checkpoints of a real DeepSpeed engine in a process group of one, and all ways to tear one."""

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.errors import CheckpointError
from rlhfv_ray.models import (
    AnswerPolicy,
    layout_of,
    load_policy,
    processor_digest,
)
from rlhfv_ray.storage.files import sealed, unsealed, write_json
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.training.checkpoint import (
    MANIFEST,
    SPARE,
    TAG,
    Writer,
    checkpoint_bytes,
    export_policy,
    latest_checkpoint,
    load_checkpoint,
    require_space,
    saved_step,
    weights_of,
)
from tests.conftest import small_disk
from tests.unit.training.saving import equal, logps, save_checkpoint, update

pytestmark = pytest.mark.slow

# ZeRO stage and dtype: each keeps its state in another place of DeepSpeed.
STATES = [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32"), (3, "bf16")]


@pytest.fixture(scope="module")
def trained(new_engine, small_model):
    """An engine after one update."""
    engine = new_engine(small_model)
    update(engine)
    return engine


@pytest.fixture(scope="module")
def other(new_engine, small_model):
    """A second engine, to load into."""
    return new_engine(small_model)


@pytest.fixture
def writer(tmp_path):
    with hold_lease(tmp_path) as token:
        yield Writer(tmp_path, token, keep=3)


@pytest.fixture
def two(trained, writer):
    """A writer's checkpoints of updates 1 and 2."""
    for step in (1, 2):
        save_checkpoint(
            trained, writer, step=step, records=[{"step": number} for number in range(1, step + 1)]
        )
    return writer


def folders(writer) -> list[Path]:
    return sorted(writer.checkpoints.iterdir())


@pytest.mark.parametrize(("zero", "dtype"), STATES)
def test_loaded_engine_goes_on_as_the_saved_one(zero, dtype, new_engine, small_model, tmp_path):
    """Catches: master weights, AdamW's moments or records that a checkpoint loses."""
    engine = new_engine(small_model, zero, dtype)
    again = new_engine(small_model, zero, dtype)
    for token in (9, 10, 11):
        update(engine, token)
    with hold_lease(tmp_path) as token:
        save_checkpoint(engine, Writer(tmp_path, token, keep=1), step=3, records=[{"step": 3}])
    update(again, 12)
    assert not equal(weights_of(engine), weights_of(again))
    assert load_checkpoint(again, tmp_path) == (3, [{"step": 3}])
    assert equal(weights_of(engine), weights_of(again))
    for token in (12, 13, 14, 15):
        update(engine, token)
        update(again, token)
    assert equal(weights_of(engine), weights_of(again))


def test_nothing_saved_is_a_start_from_0(other, tmp_path):
    """Catches: a first run that fails for lack of a checkpoint."""
    assert load_checkpoint(other, tmp_path) == (0, [])


def truncate(folder: Path) -> None:
    shard = shard_of(folder)
    shard.write_bytes(shard.read_bytes()[:-100])


def flip_byte(folder: Path) -> None:
    shard = shard_of(folder)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def shard_of(folder: Path) -> Path:
    return next((folder / TAG).glob("*optim_states.pt"))


def rewrite(folder: Path, text: str, other: str) -> None:
    manifest = (folder / MANIFEST).read_text()
    assert text in manifest
    (folder / MANIFEST).write_text(manifest.replace(text, other))


DAMAGES = {
    "truncated": truncate,
    "flipped byte": flip_byte,
    "missing shard": lambda folder: shard_of(folder).unlink(),
    "records gone": lambda folder: (folder / "records.jsonl").unlink(),
    "empty manifest": lambda folder: (folder / MANIFEST).write_text(""),
    "half manifest": lambda folder: (folder / MANIFEST).write_text('{"step": 2}'),
    "manifest of another kind": lambda folder: (folder / MANIFEST).write_text("[1, 2]"),
    "another update in the manifest": lambda folder: rewrite(folder, '"step": 2', '"step": 1'),
    "another world in the manifest": lambda folder: rewrite(folder, '_size": 1', '_size": 3'),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "nothing but the folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_gives_way_to_an_older_one(damage, other, two, caplog):
    """Catches: a damaged checkpoint that is loaded, or that hides an older intact one."""
    older, newest = folders(two)
    DAMAGES[damage](newest)
    assert saved_step(two.folder) == (2 if (newest / MANIFEST).exists() else 1)
    with caplog.at_level(logging.WARNING):
        step, records = load_checkpoint(other, two.folder)
    assert (step, records) == (1, [{"step": 1}])
    assert str(newest) in caplog.text
    assert latest_checkpoint(two.folder)[0] == older


def test_only_the_newest_are_kept(trained, writer):
    """Catches: a disk filled with checkpoints, or the newest one pruned."""
    for step in (1, 2, 3, 4, 10):
        save_checkpoint(trained, writer, step=step, records=[])
    assert [folder.name[:11] for folder in folders(writer)] == [
        "step-000003",
        "step-000004",
        "step-000010",
    ]


def test_new_checkpoint_outlives_damaged_later_ones(trained, two):
    """Catches: the only intact checkpoint pruned in favour of damaged ones of later updates."""
    for folder in folders(two):
        flip_byte(folder.rename(folder.with_name(folder.name.replace("step-00000", "step-00001"))))
    save_checkpoint(trained, Writer(two.folder, two.token, keep=1), step=5, records=[])
    assert latest_checkpoint(two.folder)[1].step == 5


def test_torn_attempt_of_the_same_step_is_replaced(trained, two):
    """Catches: shards of a lost attempt mixed into the manifest of the next."""
    newest = folders(two)[-1]
    (newest / MANIFEST).unlink()
    (newest / TAG / "left_over.pt").write_bytes(b"old")
    save_checkpoint(trained, two, step=2, records=[])
    target, manifest = latest_checkpoint(two.folder)
    assert manifest.step == 2
    assert not (target / TAG / "left_over.pt").exists()
    assert f"{TAG}/left_over.pt" not in manifest.files


@pytest.mark.parametrize(("share", "trained"), [(2.0, True), (0.98, True), (8.0, False)])
def test_a_checkpoint_that_does_not_fit_is_not_begun(share, trained, group, writer):
    """Catches: the disk check removed, turned round, or without its 5 % to spare.

    16 bytes per trained weight in fp32 (weight, master copy, two moments), 4 per frozen one.
    """
    with pytest.raises(
        CheckpointError, match=r"GiB free, and a checkpoint takes .* Free some disk space"
    ):
        save_checkpoint(meta_engine(writer, share, trained), writer, step=1, records=[])
    assert not writer.checkpoints.exists()


@pytest.mark.parametrize(("share", "trained"), [(0.5, True), (2.0, False)])
def test_a_checkpoint_that_fits_passes_the_disk_check(share, trained, group, writer):
    """Catches: a disk check that always refuses, or counts AdamW's states of frozen weights."""
    engine = meta_engine(writer, share, trained)
    with pytest.raises(AttributeError, match="checkpoint_engine"):  # past the check: no real engine
        save_checkpoint(engine, writer, step=1, records=[])


def meta_engine(writer, share: float, trained: bool):
    """One weight, without memory, whose 16 bytes per number are a share of the free space."""
    count = int(share * shutil.disk_usage(writer.folder).free / 16)
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.empty(count, device="meta"), requires_grad=trained)
    return SimpleNamespace(module=module)


def test_a_disk_full_in_the_middle_of_writing_leaves_the_last_one_whole(trained, other, tmp_path):
    """Catches: half a checkpoint taken for a complete one, or taking the room of the next.

    There is room for the weights, but not for the records.
    """
    needed = sum(weight.numel() for weight in trained.module.parameters()) * 16
    with small_disk(tmp_path, 8 * needed) as disk, hold_lease(disk) as token:
        writer = Writer(disk, token, keep=3)
        filler = disk / "filler"
        save_checkpoint(trained, writer, step=1, records=[{"step": 1}])
        filler.write_bytes(b"x" * (shutil.disk_usage(disk).free - int(SPARE * needed) - 4096))
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(
                trained, writer, step=2, records=[{"step": 2, "skipped_pairs": "x" * needed}]
            )
        torn = folders(writer)[-1]
        assert any(torn.rglob("*.pt")) and not (torn / MANIFEST).exists()
        assert load_checkpoint(other, disk)[0] == 1
        filler.unlink()
        save_checkpoint(trained, writer, step=3, records=[])
        assert [folder.name[:11] for folder in folders(writer)] == ["step-000001", "step-000003"]


def test_space_of_a_checkpoint_by_hand():
    """Catches: AdamW's states, a weight's dtype or frozen weights left out of the bytes needed.

    Trained: 6 in fp32 * (4 + 12). Frozen: 4 in bf16 * 2. Together 104 bytes, and 5 % spare.
    """
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 2, bias=False),
        torch.nn.Linear(2, 2, bias=False, dtype=torch.bfloat16).requires_grad_(False),
    )
    assert checkpoint_bytes(model) == int(1.05 * 104) == 109


def test_too_little_space_is_refused_with_the_figures(tmp_path):
    """Catches: the comparison left out or turned round, or a checkpoint that just fits refused."""
    writer = Writer(tmp_path, "token", keep=3)
    require_space(writer, needed=2**30, free=2**30)
    require_space(writer, needed=2**30, free=2**31)
    with pytest.raises(CheckpointError, match=r"1.000 GiB free.* takes 2.000.*keep.* now 3"):
        require_space(writer, needed=2**31, free=2**30)
    with pytest.raises(CheckpointError, match="GiB free"):
        require_space(writer, needed=2**30, free=2**30 - 1)


def test_a_disk_without_room_gets_no_checkpoint(trained, two, monkeypatch):
    """Catches: a checkpoint that is begun, or pushes out older ones, before space is checked."""
    before = folders(two)
    free = checkpoint_bytes(trained.module) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(CheckpointError, match=r"GiB free, and a checkpoint takes"):
        save_checkpoint(trained, two, step=3, records=[])
    assert folders(two) == before


def test_driver_that_lost_its_lease_publishes_nothing(trained, two, small_model, processor):
    """Catches: checkpoints or models of two drivers in one folder, after a node seemed lost."""
    model = two.folder / "model"
    model.mkdir()
    lost = replace(two, token="former")
    with pytest.raises(CheckpointError, match="taken over by another driver"):
        save_checkpoint(trained, lost, step=3, records=[])
    assert latest_checkpoint(two.folder)[1].step == 2
    assert not list(two.checkpoints.glob(f"step-000003-*/{MANIFEST}"))
    with pytest.raises(CheckpointError, match="taken over by another driver"):
        config = ModelConfig(path=str(small_model))
        export_policy(trained, processor, model, config, writer=lost)
    assert not list(model.iterdir())


def test_a_layout_of_its_own_is_refused_with_the_flags_that_fit(other, two):
    """Catches: files of ZeRO stage 0 in bf16 read as if they were flat shares."""
    manifest = folders(two)[-1] / MANIFEST
    write_json(manifest, sealed(unsealed(manifest.read_text()) | {"zero_stage": 0}))
    with pytest.raises(CheckpointError, match=r"--scale.workers 1 --scale.zero-stage 0"):
        load_checkpoint(other, two.folder)


def test_a_checkpoint_of_another_reference_is_refused(trained, other, writer):
    """Catches: a run that goes on against log-probs that were made again with other numbers."""
    save_checkpoint(trained, replace(writer, reference="one"), step=1, records=[])
    with pytest.raises(CheckpointError, match=r"other reference log-probs.*delete"):
        load_checkpoint(other, writer.folder, reference="another")
    assert load_checkpoint(other, writer.folder, reference="one") == (1, [])


# ZeRO stages before and after, dtype, LoRA rank. No adapters in bf16: stages 2 and 3 round them
# differently from the first update on.
RESHARDED = [
    (1, 3, "fp32", 0),
    (3, 2, "fp32", 4),
    (2, 3, "fp32", 4),
    (2, 3, "bf16", 0),
    (3, 1, "bf16", 0),
]


@pytest.mark.parametrize(("saved", "zero", "dtype", "rank"), RESHARDED)
def test_another_zero_stage_goes_on_as_the_saved_one(
    saved, zero, dtype, rank, new_engine, small_model, tmp_path
):
    """Catches: master weights, moments, AdamW's count or forward weights lost between stages."""
    engine = new_engine(small_model, saved, dtype, lora_rank=rank)
    again = new_engine(small_model, zero, dtype, lora_rank=rank)
    for token in (9, 10, 11):
        update(engine, token)
    with hold_lease(tmp_path) as token:
        save_checkpoint(engine, Writer(tmp_path, token, keep=1), step=3, records=[{"step": 3}])
    assert load_checkpoint(again, tmp_path) == (3, [{"step": 3}])
    assert equal(weights_of(engine), weights_of(again))
    for token in (12, 13, 14, 15):
        update(engine, token)
        update(again, token)
    for name, tensor in weights_of(engine).items():
        torch.testing.assert_close(weights_of(again)[name], tensor, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("zero", "dtype"), STATES)
def test_exported_policy_loads_with_the_same_logits(
    zero, dtype, new_engine, small_model, processor, writer, tmp_path
):
    """Catches: an export with other, missing or random weights, or without its processor."""
    engine = new_engine(small_model, zero, dtype)
    update(engine)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "left_over").write_text("of an earlier try")
    (tmp_path / ".model.killed").mkdir()
    export_policy(engine, processor, folder, ModelConfig(path=str(small_model)), writer=writer)
    assert not list(tmp_path.glob(".model.*"))
    model, exported = load_policy(folder, dtype=dtype, device="cpu")
    assert equal(weights_of(engine), model.state_dict())
    with torch.no_grad():
        assert torch.equal(logps(AnswerPolicy(model, layout_of(model))), logps(engine))
    assert processor_digest(exported) == processor_digest(processor)
    assert not (folder / "left_over").exists()
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in [*folder.iterdir(), tmp_path / "new"]}
    assert len(modes) == 1  # a colleague can read all of it, or nothing


@pytest.mark.parametrize("zero", [2, 3])
def test_adapters_are_merged_on_export(zero, new_engine, small_model, writer, tmp_path):
    """Catches: an export without the adapters, or one that only peft can load."""
    processor = load_policy(small_model)[1]
    engine = new_engine(small_model, zero, lora_rank=4)
    before = logps(engine).detach()
    for token in (9, 10, 11):
        update(engine, token)
    config = ModelConfig(path=str(small_model), lora_rank=4)
    export_policy(engine, processor, tmp_path / "model", config, writer=writer)
    model, _ = load_policy(tmp_path / "model", dtype="fp32", device="cpu")
    with torch.no_grad():
        exported, trained = logps(AnswerPolicy(model, layout_of(model))), logps(engine)
    torch.testing.assert_close(exported, trained, atol=1e-5, rtol=0)
    assert (trained - before).abs().max() > 1e-3
    assert not (tmp_path / "model" / "adapter").exists()  # the projector was trained, too


def test_adapters_alone_are_exported_beside_the_merged_model(
    new_engine, small_model, writer, tmp_path
):
    """Catches: adapters that peft cannot load onto the base, or that are another model's."""
    model, processor = load_policy(small_model, dtype="fp32", device="cpu")
    parts = {"lora_rank": 4, "trainable": ("language",)}
    engine = new_engine(small_model, 2, **parts)
    update(engine)
    config = ModelConfig(path=str(small_model), **parts)
    export_policy(engine, processor, tmp_path / "model", config, writer=writer)
    adapted = PeftModel.from_pretrained(model, tmp_path / "model" / "adapter").eval()
    plain = adapted.get_base_model()
    with torch.no_grad():
        alone, trained = logps(AnswerPolicy(plain, layout_of(plain))), logps(engine)
    torch.testing.assert_close(alone, trained, atol=1e-5, rtol=0)
    assert adapted.peft_config["default"].base_model_name_or_path == str(small_model)
    assert_vllm_takes(tmp_path / "model", small_model)


def assert_vllm_takes(folder: Path, base: Path) -> None:
    """Check what vLLM asks of a model's folder and of its adapters, where files alone show it.

    vLLM chooses its class by `architectures`, loads weights by the names that the base's have, and
    reads tokenizer, template and image settings from files. Of adapters it takes LoRA without
    trained biases, whole modules and DoRA (vllm/lora/peft_helper.py), by names that end in
    `lora_A.weight` or `lora_B.weight` (vllm/lora/utils.py).
    """
    config, of_base = (json.loads((each / "config.json").read_text()) for each in (folder, base))
    assert config["architectures"] == of_base["architectures"]
    assert config["model_type"] == of_base["model_type"]
    assert tensor_names(folder / "model.safetensors") == tensor_names(base / "model.safetensors")
    names = {path.name for path in folder.iterdir()}
    assert names >= {"tokenizer.json", "chat_template.jinja", "processor_config.json"}
    lora = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert lora["peft_type"] == "LORA" and lora["bias"] == "none" and not lora["use_dora"]
    assert lora["modules_to_save"] is None and isinstance(lora["target_modules"], list)
    assert {"r", "lora_alpha"} <= lora.keys()
    layers = {name.removesuffix(".weight") for name in tensor_names(folder / "model.safetensors")}
    last_parts = {name.rsplit(".", 1)[-1] for name in layers}
    for name in tensor_names(folder / "adapter" / "adapter_model.safetensors"):
        layer = re.fullmatch(r"base_model\.model\.(.+)\.lora_[AB]\.weight", name)
        assert layer and layer[1].rsplit(".", 1)[-1] in last_parts, name


def tensor_names(file: Path) -> set[str]:
    with safe_open(file, "pt") as tensors:
        return set(tensors.keys())
