"""The whole line on one small checkpoint, in one process without Ray.

The steps are: reference pass, two updates, export, load again, answer; and one update of adapters,
which are merged on export. The process needs a gloo group of its own (`line_pool`).
"""

import functools
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.workers import free_port, group, write
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
from rlhfv_ray.data.reference_table import from_row, load_reference
from rlhfv_ray.inference.generate import answer_prompts
from rlhfv_ray.inference.model_check import check_model, read_check
from rlhfv_ray.inference.parts import part_path
from rlhfv_ray.inference.reference import ReferenceActor, encode_slice, reference_inputs
from rlhfv_ray.logps import policy_token_logps
from rlhfv_ray.models import AnswerPolicy, load_policy
from rlhfv_ray.models.batch import collate_pairs, to_device
from rlhfv_ray.models.self_check import checked_layout
from rlhfv_ray.records import EncodedPair, PreferencePair, Prompt
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.training.checkpoint import load_checkpoint
from rlhfv_ray.training.job import TrainJob
from rlhfv_ray.training.metrics_log import read_records
from rlhfv_ray.training.worker import load_engine, train_worker
from tests.families import save
from tests.invariants.test_families import ANSWERS, picture

SIZES = [(60, 30), (40, 70), (64, 64), (100, 50)]  # of the pictures, pixels
QUESTION = "What is there?"
RANK = 2  # of the adapters
GROUPS: list[Any] = []  # of this process: DeepSpeed keeps the first that it meets


@dataclass(frozen=True)
class Training:
    """One training of the line."""

    losses: Sequence[float]  # of its updates
    moved: float  # share of the exported weights that are not the base model's
    apart: float  # largest distance of a log-prob of the loaded export from the engine's, nats


@dataclass(frozen=True)
class WholeLine:
    """The outcome of the line on one checkpoint."""

    whole: Training  # of all parts, two updates
    adapters: Training  # one update
    batched: bool  # the export answers several prompts at once as it answers each alone


def line_pool() -> ProcessPoolExecutor:
    """Return a pool of one new process with a group of its own, for `whole_line`."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_join_group)


def _join_group() -> None:
    disable_progress_bar()  # rows of the table stand between hundreds of bars else
    GROUPS.append(group(0, 1, free_port()))
    GROUPS[0].__enter__()


def line_pairs() -> list[PreferencePair]:
    """Return four pairs with pictures of several shapes."""
    return [
        PreferencePair(str(number), picture(number, *size), QUESTION, chosen, rejected)
        for number, (size, (chosen, rejected)) in enumerate(zip(SIZES, ANSWERS, strict=True))
    ]


def whole_line(make: Callable[[], tuple[Any, Any]], home: Path) -> WholeLine:
    """Run the line on a family's checkpoint.

    Args:
        make: returns the family's model and processor.
        home: receives `model`, `reference`, `run` and `adapters`.

    Raises:
        ConfigError: the model is refused before the reference pass.
    """
    home.mkdir()
    data = DataConfig(path=str(home / "pairs.parquet"), rule="both_sides")
    write_pairs(line_pairs(), home / "pairs.parquet")
    config = DDPOConfig(
        model=ModelConfig(path=str(save(make, home / "model")), dtype="fp32"),
        data=data,
        loss=LossConfig(beta=0.01, gamma=5.0, normalize=True),
        optim=OptimConfig(learning_rate=1e-3, warmup=0, batch=4, steps=2),
        scale=ScaleConfig(micro_batch=2, zero_stage=1),
    )
    score_reference(config, home / "reference")
    adapted = replace(config, model=replace(config.model, lora_rank=RANK))
    adapted = replace(adapted, optim=replace(config.optim, steps=1))
    return WholeLine(
        whole=train(config, home, "run"),
        adapters=train(adapted, home, "adapters"),
        batched=answers_agree(home / "run" / "model"),
    )


def score_reference(config: DDPOConfig, folder: Path) -> None:
    """Make the reference folder of a job as its actors do."""
    folder.mkdir()
    shards = list_slices(config.data.path, format="auto", rows=64)
    check = functools.partial(
        check_model, config=config.model, data=config.data, shards=shards, folder=folder
    )
    actor = ReferenceActor(config.model, batch=4, check=check)
    for part, shard in enumerate(shards):
        table = actor(encode_slice(shard, model=config.model, data=config.data))
        pq.write_table(table, part_path(folder, part))
    write_json(folder / "config.json", reference_inputs(config.model, config.data))


def train(config: DDPOConfig, home: Path, name: str) -> Training:
    """Train into a folder of `home`, and compare its export with what was trained."""
    folder, reference = home / name, home / "reference"
    folder.mkdir()
    inputs = reference_inputs(config.model, config.data)
    with hold_lease(folder) as token:
        job = TrainJob(config, reference, inputs, folder, token)
        train_worker(job, functools.partial(write, 0, folder))
    check = read_check(reference)
    engine, processor = load_engine(config, check)
    load_checkpoint(engine, folder)  # the trained weights, from before they were exported
    pairs = [from_row(row) for row in load_reference(reference)]
    trained = answer_logps(engine.module, processor, pairs)
    engine.destroy()
    model, processor = load_policy(folder / "model", dtype="fp32", device="cpu")
    exported = answer_logps(AnswerPolicy(model, checked_layout(model, check)), processor, pairs)
    return Training(
        losses=[record["loss"] for record in read_records(folder)],
        moved=moved_share(config.model.path, model),
        apart=(trained - exported).abs().max().item(),
    )


@torch.no_grad()
def answer_logps(
    policy: AnswerPolicy, processor: Any, pairs: Sequence[EncodedPair]
) -> torch.Tensor:
    """Return the log-probs (2P, A) of the answers' tokens, nats."""
    batch = collate_pairs(pairs, processor, rule="both_sides", layout=policy.layout)
    return policy_token_logps(policy, to_device(batch, policy.model.device, policy.model.dtype))


def moved_share(base: str, model: Any) -> float:
    """Return the share of a model's weights that are not those of the checkpoint `base`."""
    before, _ = load_policy(base, dtype="fp32", device="cpu")
    weights = zip(before.parameters(), model.parameters(), strict=True)
    moved = [not torch.equal(old, new) for old, new in weights]
    return sum(moved) / len(moved)


def answers_agree(folder: Path) -> bool:
    """Return True if a batch of prompts is answered as the prompts are alone."""
    model, processor = load_policy(folder, dtype="fp32", device="cpu")
    prompts = [Prompt(pair.id, pair.image, pair.question) for pair in line_pairs()]
    # Without the penalty some models repeat one token.
    decoding = GenerationConfig(max_new_tokens=5, repetition_penalty=3.0)
    together = answer_prompts(model, processor, prompts, decoding)
    return together == [
        answer_prompts(model, processor, [prompt], decoding)[0] for prompt in prompts
    ]
