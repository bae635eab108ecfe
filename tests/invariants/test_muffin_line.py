"""A small random Muffin in the release's layout goes the whole line on pairs of the shapes world.

Two workers over gloo, without Ray: reference, training with ZeRO 2 and 3, export, reload, answers,
scores. `tests/ray/test_muffin_line.py` does it by the commands; here are a tenth of its updates.
"""

import functools
import pickle
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.workers import free_port
from eval.benchmarks.shapes import ShapesBenchmark
from experiments.recipes import muffin_vqa
from rlhfv_ray.config import (
    DataConfig,
    DDPOConfig,
    GenerationConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ScaleConfig,
)
from rlhfv_ray.data import list_slices, write_pairs
from rlhfv_ray.data.encoding import encode_pair
from rlhfv_ray.data.mixture import list_sources
from rlhfv_ray.data.reference_table import MIXED
from rlhfv_ray.inference.generate import answer_prompts
from rlhfv_ray.inference.model_check import check_model
from rlhfv_ray.inference.parts import part_path
from rlhfv_ray.inference.reference import ReferenceActor, encode_slice, reference_inputs
from rlhfv_ray.inference.sft_examples import ExampleTables
from rlhfv_ray.models import layout_of, load_model, load_policy
from rlhfv_ray.models.batch import collate_pairs
from rlhfv_ray.records import Answer
from rlhfv_ray.shapes.world import write_benchmark
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.training.job import TrainJob
from rlhfv_ray.training.metrics_log import read_records
from tests.conftest import careless_pairs
from tests.families_muffin import write_release
from tests.invariants.test_families import assert_same, scores_and_gradients
from tests.ray.test_worker import run_jobs
from tests.unit.data.test_sft_formats import in_file, tsv

LN_2 = 0.6931471805599453
SCALE = ScaleConfig(workers=2, micro_batch=1, rows=4)
STAGES = (2, 3)
BEIT3_A = ("beit3.*[.]A[.]", "beit3.vision_embed")


def encoded_pairs(config: DDPOConfig, folder: Path) -> Path:
    """Fill a folder with the reference log-probs of a configuration's pairs."""
    folder.mkdir()
    shards = list_slices(config.data.path, rows=4)
    check = functools.partial(
        check_model, config=config.model, data=config.data, shards=shards, folder=folder
    )
    actor = ReferenceActor(config.model, batch=4, check=check, data=config.data)
    for part, piece in enumerate(shards):
        table = actor(encode_slice(piece, model=config.model, data=config.data))
        pq.write_table(table, part_path(folder, part))
    write_json(folder / "config.json", reference_inputs(config.model, config.data))
    return folder


def encoded_examples(config: DDPOConfig, folder: Path) -> Path:
    """Fill a folder with the examples of a configuration's mixed data."""
    folder.mkdir()
    shards = list_sources(config.data, rows=4)
    check = functools.partial(
        check_model, config=config.model, data=config.data, shards=shards, folder=folder
    )
    tables = ExampleTables(config.model, check, MIXED)
    for part, piece in enumerate(shards):
        rows = encode_slice(piece, model=config.model, data=config.data)
        pq.write_table(tables(rows), part_path(folder, part))
    return folder


def fine_tuning(model: ModelConfig, folder: Path) -> DDPOConfig:
    """Return the recipe of RLHF-V's fine-tuning on small files, three updates of four rows."""
    folder.mkdir()
    chat = [{"from": "human", "value": "What is there?"}, {"from": "gpt", "value": "A red star."}]
    questions = {"question": "Which colour is the star?", "answer": "red"}
    paths: list[str] = []
    for name, content in (("vqav2", questions), ("unimm", chat)):
        (folder / name).mkdir()
        paths.append(str(in_file(folder / name, tsv(content))))
    recipe = muffin_vqa()
    return replace(
        recipe,
        model=model,
        data=replace(recipe.data, path=paths[0], mixed_with=(paths[1],), mix_weights=(2, 2)),
        optim=replace(recipe.optim, batch=4, steps=3, learning_rate=1e-3),
        scale=replace(SCALE, zero_stage=2),
    )


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Path:
    """A folder with the `model`, and its trainings `zero-2`, `zero-3`, `augmented` and `sft`."""
    folder = tmp_path_factory.mktemp("line")
    write_pairs(careless_pairs(8), folder / "pairs.parquet")
    path = str(write_release(folder / "model", shards=3))
    model = ModelConfig(path=path, dtype="fp32", allow_pickle=True)
    config = DDPOConfig(
        model=model,
        data=DataConfig(path=str(folder / "pairs.parquet"), rule="both_sides"),
        loss=LossConfig(beta=0.1, gamma=5.0, normalize=True),
        optim=OptimConfig(learning_rate=1e-3, warmup=0, batch=4, steps=3, zero_rate=BEIT3_A),
        scale=SCALE,
    )
    augmented = replace(config, data=replace(config.data, augment="muffin"))
    imitating = fine_tuning(model, folder / "data")
    references = {
        "plain": encoded_pairs(config, folder / "reference"),
        "augmented": encoded_pairs(augmented, folder / "augmented-reference"),
        "sft": encoded_examples(imitating, folder / "examples"),
    }
    runs = {
        f"zero-{stage}": (replace(config, scale=replace(SCALE, zero_stage=stage)), "plain")
        for stage in STAGES
    }
    runs |= {"augmented": (augmented, "augmented"), "sft": (imitating, "sft")}
    jobs = {}
    leases = []
    for name, (settings, reference) in runs.items():
        (folder / name).mkdir()
        leases.append(hold_lease(folder / name))
        token = leases[-1].__enter__()
        jobs[name] = TrainJob(settings, references[reference], {}, folder / name, token)
    (folder / "jobs-2.pickle").write_bytes(pickle.dumps(jobs))
    torch.multiprocessing.spawn(run_jobs, args=(2, free_port(), folder), nprocs=2)
    for lease in leases:
        lease.__exit__(None, None, None)
    assert pickle.loads((folder / "errors-2.pickle").read_bytes()) == {}
    return folder


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_records(folder)]


def test_both_stages_begin_at_ln_2_learn_and_agree(line):
    """Catches: a reference that two workers do not reproduce, weights that ZeRO 3 gathers in
    another way, such as those that are parameters and no modules."""
    two, three = (losses(line / f"zero-{stage}") for stage in STAGES)
    assert two[0] == pytest.approx(LN_2, abs=1e-6)
    assert two[-1] < two[0] - 0.003
    assert three == pytest.approx(two, abs=1e-5)


def test_augmented_pictures_are_the_references(line):
    """Catches: a picture that is cropped in another way for the reference than for the policy,
    whose first loss is not ln 2; pictures that are not changed at all."""
    assert losses(line / "augmented")[0] == pytest.approx(LN_2, abs=1e-6)
    first, second = (
        pq.read_table(next(iter(sorted((line / name).glob("part-*.parquet")))))
        for name in ("reference", "augmented-reference")
    )
    assert first["image"] == second["image"]
    assert first["chosen_logps"] != second["chosen_logps"]


def test_mixed_data_is_learnt(line):
    """Catches: a recipe of fine-tuning that cannot run, or learns from neither source."""
    first, *_, last = losses(line / "sft")
    assert last < first - 0.01


def test_the_picture_side_rests_and_all_else_moves(line):
    """Catches: BEiT-3's weights of pictures that move, or its queries that do not."""
    before, _ = load_model(ModelConfig(path=str(line / "model"), dtype="fp32", allow_pickle=True))
    after, _ = load_policy(line / "zero-2" / "model", dtype="fp32", device="cpu")
    weights = dict(after.named_parameters())
    moved = {
        name: not torch.equal(weight, weights[name]) for name, weight in before.named_parameters()
    }
    pictures = [name for name in moved if ".A." in name or "vision_embed" in name]
    assert pictures and not any(moved[name] for name in pictures)
    assert moved["model.query"] and moved["model.mm_projector.weight"]
    assert sum(moved.values()) > 0.9 * (len(moved) - len(pictures))


def test_shared_rows_equal_plain_rows(line):
    """Catches: query tokens or a picture that belong to another row of the trained model."""
    model, processor = load_policy(line / "zero-2" / "model", dtype="fp32", device="cpu")
    pairs = [
        encode_pair(pair, processor, min_match=3, max_length=2048) for pair in careless_pairs(4)
    ]
    layouts = (layout_of(model), layout_of(model, "plain"))
    assert layouts[0].shared and not layouts[1].shared
    batches = [
        collate_pairs(pairs, processor, rule="both_sides", layout=layout) for layout in layouts
    ]
    shared, plain = (
        scores_and_gradients(model, batch, layout)
        for batch, layout in zip(batches, layouts, strict=True)
    )
    assert_same(shared, plain)


def test_exports_load_answer_and_are_scored(line):
    """Catches: an export in other names than the release's; answers that change with the cache, or
    with other questions in their batch; answers that cannot be scored."""
    folder = line / "zero-3" / "model"
    names = load_file(folder / "model.safetensors").keys()
    assert {"model.query", "model.embed_tokens.weight", "lm_head.weight"} <= names
    assert not any("language_model" in name for name in names)
    loaded, processor = load_policy(folder, dtype="fp32", device="cpu")
    (line / "benchmark").mkdir()
    write_benchmark(line / "benchmark", count=4, seed=0)
    benchmark = ShapesBenchmark(line / "benchmark", decoding={})
    longer = [" Is it red?" * number for number in range(4)]  # prompts of four lengths
    prompts = [
        replace(prompt, question=prompt.question + more)
        for prompt, more in zip(benchmark.prompts, longer, strict=True)
    ]
    decoding = GenerationConfig(max_new_tokens=6, repetition_penalty=3.0)
    together = answer_prompts(loaded, processor, prompts, decoding)
    assert together == [
        answer_prompts(loaded, processor, [prompt], decoding)[0] for prompt in prompts
    ]
    loaded.generation_config.use_cache = False
    assert together == answer_prompts(loaded, processor, prompts, decoding)
    assert any(together)
    answers = [
        Answer(prompt.id, prompt.question, text)
        for prompt, text in zip(benchmark.prompts, together, strict=True)
    ]
    assert benchmark.score(answers, {}).rates()["n"] == 4
