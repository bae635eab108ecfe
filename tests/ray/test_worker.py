"""The worker's loop without Ray, on two gloo processes that run all cases.

The curve is the same at every scale, and a non-finite update changes nothing. test_train.py shows
that Ray Train runs the same loop to the same bits.
"""

import contextlib
import functools
import itertools
import math
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.workers import free_port, group, write
from rlhfv_ray.config import DDPOConfig, LossConfig
from rlhfv_ray.data.reference_table import load_reference
from rlhfv_ray.errors import (
    CheckpointError,
    ConfigError,
    RlhfvError,
    StageFailedError,
    StaleReferenceError,
)
from rlhfv_ray.inference.parts import write_part
from rlhfv_ray.inference.reference import reference_inputs
from rlhfv_ray.models.self_check import SelfCheck
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.training import worker as training
from rlhfv_ray.training.checkpoint import latest_checkpoint
from rlhfv_ray.training.job import TrainJob
from rlhfv_ray.training.metrics_log import METRICS_FILE, read_records
from rlhfv_ray.training.sampler import global_batch_indices, nested_subset
from rlhfv_ray.training.worker import train_worker
from tests.ray.conftest import assert_same, losses, weights, with_scale

pytestmark = [pytest.mark.ray, pytest.mark.aside]


def run_jobs(rank: int, world: int, port: int, folder: Path) -> None:
    """Run all jobs of a world size on one rank; rank 0 writes records, and the errors by job."""
    errors = {}
    with group(rank, world, port):
        for name, job in pickle.loads((folder / f"jobs-{world}.pickle").read_bytes()).items():
            try:
                with overflow_on_rank_1(rank) if name in OVERFLOWING else contextlib.nullcontext():
                    train_worker(job, functools.partial(write, rank, job.folder))
            except RlhfvError as error:
                errors[name] = error
    if rank == 0:
        (folder / f"errors-{world}.pickle").write_bytes(pickle.dumps(errors))


@contextlib.contextmanager
def overflow_on_rank_1(rank: int) -> Iterator[None]:
    """Until the body ends, make one weight's gradient of the sixth update infinite on rank 1."""
    load_engine = training.load_engine

    def load(config: DDPOConfig, check: SelfCheck) -> tuple[Any, Any]:
        engine, processor = load_engine(config, check)
        weight = next(weight for weight in engine.module.parameters() if weight.requires_grad)
        updates_begun = itertools.count(1)  # an update is one backward pass on each rank

        def overflow(gradient: torch.Tensor) -> torch.Tensor | None:
            is_planted = next(updates_begun) == 6 and rank == 1
            return torch.full_like(gradient, float("inf")) if is_planted else None

        weight.register_hook(overflow)
        return engine, processor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "load_engine", load)
        yield


def with_nan(reference: Path, folder: Path, rows: set[int]) -> Path:
    """Return a copy of the reference folder with NaN log-probs for some pairs."""
    return with_logps(reference, folder, {row: float("nan") for row in rows})


def with_logps(reference: Path, folder: Path, shifts: dict[int, float]) -> Path:
    """Return a copy of the reference folder with shifted chosen log-probs of some pairs."""
    shutil.copytree(reference, folder)
    ids = list(load_reference(reference)["id"])
    moved = {ids[row]: shift for row, shift in shifts.items()}
    for path in folder.glob("part-*"):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for row in rows:
            row["chosen_logps"] = [
                value + moved.get(row["id"], 0.0) for value in row["chosen_logps"] or []
            ]
        pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    return folder


def with_shifted_parts(reference: Path, folder: Path) -> Path:
    """Return a copy of the reference folder as it is made again with other numbers."""
    with_logps(reference, folder, {0: 1e-3})
    for number, path in enumerate(sorted(folder.glob("part-*"))):
        write_part(pq.read_table(path), folder, number)
    return folder


RESIZED = {  # workers and ZeRO stage of the second part of a run
    "one worker at ZeRO 3, then two at 2": {"workers": 2, "zero_stage": 2},
    "one worker at ZeRO 2, then two at 3": {"workers": 2, "zero_stage": 3},
    "two workers at ZeRO 3, then one at 2": {"workers": 1, "zero_stage": 2},
    "two workers at ZeRO 2, then one at 3": {"workers": 1, "zero_stage": 3},
}
CHANGED = {  # what one worker at ZeRO 3 begins, and two at ZeRO 2 then meet
    "another beta": lambda job, remade: replace(
        job, config=replace(job.config, loss=replace(job.config.loss, beta=0.3))
    ),
    "another reference": lambda job, remade: replace(job, reference=remade),
}
BEGUN = RESIZED | {name: {"workers": 2, "zero_stage": 2} for name in CHANGED}
LOST = "record lost at the end"  # of a training, and then the same command again
OVERFLOWING = {"overflow": 2, "overflow at ZeRO 3": 3}  # ZeRO stage
IMITATION = LossConfig(gamma=1.0, normalize=True, sft_weight=1.0, preference_weight=0.0)
STOPPED_AFTER = {"five updates": 5, "five updates at ZeRO 3": 5, **dict.fromkeys(OVERFLOWING, 6)}
BAD = global_batch_indices(40, 4, seed=0, step=5)[0]  # a pair of the sixth update
LATE = {row for step in range(4, 12) for row in global_batch_indices(40, 4, seed=0, step=step)}
LATE -= {row for step in range(4) for row in global_batch_indices(40, 4, seed=0, step=step)}


@pytest.fixture(scope="module")
def cases(config, reference, tmp_path_factory):
    """Configuration and reference folder of every job, by name."""
    folder = tmp_path_factory.mktemp("references")
    short = replace(config.optim, steps=3)
    model = config.model
    return {
        "plain": (config, reference),
        "zero 0": (with_scale(config, zero_stage=0), reference),
        "zero 1": (with_scale(config, zero_stage=1), reference),
        "zero 3": (with_scale(config, zero_stage=3), reference),
        "one worker": (with_scale(config, workers=1), reference),
        LOST: (with_scale(config, workers=1), reference),
        "plain rows": (replace(config, model=replace(model, layout="plain")), reference),
        "recomputed": (with_scale(config, recompute=1), reference),
        "packed rows": (with_scale(config, row_tokens=200), reference),
        "bf16": (replace(config, model=replace(model, dtype="bf16"), optim=short), reference),
        "adapters": (replace(config, model=replace(model, lora_rank=4)), reference),
        "limited": (replace(config, data=replace(config.data, limit=8)), reference),
        "imitation": (replace(config, loss=IMITATION), reference),
        "imitation, one worker": (
            with_scale(replace(config, loss=IMITATION), workers=1),
            reference,
        ),
        "skipped": (config, with_nan(reference, folder / "one", {BAD})),
        "stopped": (config, with_nan(reference, folder / "many", LATE)),
        "five updates": (config, reference),
        **{
            name: (with_scale(config, zero_stage=stage), reference)
            for name, stage in {**OVERFLOWING, "five updates at ZeRO 3": 3}.items()
        },
        "stale": (config, with_logps(reference, folder / "stale", dict.fromkeys(range(40), -0.01))),
        **{
            name: (
                with_scale(config, workers=3 - end["workers"], zero_stage=5 - end["zero_stage"]),
                reference,
            )
            for name, end in BEGUN.items()
        },
        "too large": (with_scale(config, memory_gib=0.001), reference),
    }


@pytest.fixture(scope="module")
def trained(cases, tmp_path_factory):
    """The folder of all jobs, and the errors by job."""
    folder = tmp_path_factory.mktemp("workers")
    remade = with_shifted_parts(cases["plain"][1], folder / "remade")
    jobs: dict[int, dict[str, TrainJob]] = {1: {}, 2: {}}  # by number of workers
    later: dict[int, dict[str, TrainJob]] = {1: {}, 2: {}}
    leases = []
    for name, (config, reference) in cases.items():
        (folder / name).mkdir()
        lease = hold_lease(folder / name)
        leases.append(lease)
        inputs = reference_inputs(config.model, config.data)
        job = TrainJob(config, reference, inputs, folder / name, lease.__enter__())
        jobs[config.scale.workers][name] = job
        if name in STOPPED_AFTER:
            jobs[config.scale.workers][name] = replace(job, stop_after=STOPPED_AFTER[name])
        if name in BEGUN:  # started like this, and completed by the other number of workers
            jobs[config.scale.workers][name] = replace(job, stop_after=5, export=folder)
            change = CHANGED.get(name, lambda job, remade: job)
            later[3 - config.scale.workers][name] = change(
                replace(job, config=with_scale(config, **BEGUN[name])), remade
            )
    later[1][LOST] = jobs[1][LOST]
    errors = {}
    for part, (world, batch) in enumerate([*jobs.items(), *later.items()]):
        if part == len(jobs):
            for name in BEGUN:  # updates 4 and 5 are on record, and will be repeated
                newest, _ = latest_checkpoint(folder / name)
                shutil.rmtree(newest)
            (folder / LOST / METRICS_FILE).unlink()
        (folder / f"jobs-{world}.pickle").write_bytes(pickle.dumps(batch))
        torch.multiprocessing.spawn(run_jobs, args=(world, free_port(), folder), nprocs=world)
        errors |= pickle.loads((folder / f"errors-{world}.pickle").read_bytes())
    for lease in leases:
        lease.__exit__(None, None, None)
    return folder, errors


def test_errors_are_only_where_they_belong(trained):
    """Catches: a case that failed, and so was never compared."""
    folder, errors = trained
    assert errors.keys() == {"stopped", "stale", "too large", *CHANGED}
    assert losses(folder / "plain")[0] == pytest.approx(0.6931471805599453, abs=1e-6)
    assert losses(folder / "plain")[-1] < losses(folder / "plain")[0]


def test_ray_train_runs_the_same_loop(trained, ray_run):
    """Catches: anything that Ray Train does to the result."""
    assert_same(trained[0] / "plain", ray_run, atol=0)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_zero_stages_give_the_same_curve(trained, stage):
    """Catches: a ZeRO stage with other gradients, or weights that are not gathered on export.

    Stage 2 is `plain`.
    """
    folder, _ = trained
    assert_same(folder / f"zero {stage}", folder / "plain", atol=1e-4)


@pytest.mark.parametrize("name", ["one worker", "plain rows", "packed rows", "recomputed"])
def test_what_changes_only_speed_changes_nothing(trained, name):
    """Catches: gradients that depend on workers, the layout of rows or recomputed activations."""
    folder, _ = trained
    assert_same(folder / name, folder / "plain", atol=1e-5)


@pytest.mark.parametrize("name", RESIZED)
def test_others_end_what_was_begun(trained, name):
    """Catches: optimizer state or the position in the data lost with more or fewer workers.

    All updates see the pairs of the undisturbed run, so all losses are the same.
    """
    folder, _ = trained
    assert_same(folder / name, folder / "plain", atol=1e-4)
    assert [record["step"] for record in read_records(folder / name)] == list(range(1, 13))
    ends = {manifest.name.split("-")[2] for manifest in (folder / name / "checkpoints").iterdir()}
    # The two checkpoints left are the later workers': the run did not end with the earlier ones.
    assert ends == {f"{RESIZED[name]['workers']}w"}


def test_a_record_lost_after_the_last_update_is_made_again(trained):
    """Catches: a finished training whose figures and MLflow curves lack updates, without a word."""
    folder, _ = trained
    assert_same(folder / LOST, folder / "one worker", atol=0)
    assert [record["step"] for record in read_records(folder / LOST)] == list(range(1, 13))


def test_what_is_not_repeated_as_recorded_stops_the_resume(trained):
    """Catches: another loss, model or code that a resume goes on with, unnoticed."""
    folder, errors = trained
    assert isinstance(errors["another beta"], CheckpointError)
    assert "Update 4 was repeated from a checkpoint" in str(errors["another beta"])
    assert str(folder / "another beta" / "metrics.jsonl") in str(errors["another beta"])
    assert latest_checkpoint(folder / "another beta")[1].step == 3


def test_a_reference_made_again_with_other_numbers_stops_the_resume(trained):
    """Catches: updates against two references in one run."""
    folder, errors = trained
    assert isinstance(errors["another reference"], CheckpointError)
    assert "other reference log-probs" in str(errors["another reference"])
    assert len(read_records(folder / "another reference")) == 5


def test_update_with_a_non_finite_loss_is_skipped_and_named(cases, trained):
    """Catches: a NaN on one of two ranks that reaches the weights, or is skipped silently."""
    config, reference = cases["skipped"]
    folder = trained[0] / "skipped"
    skipped = [record for record in read_records(folder) if record["skipped"]]
    updates = [
        step + 1 for step in range(12) if BAD in global_batch_indices(40, 4, seed=0, step=step)
    ]
    assert [record["step"] for record in skipped] == updates
    bad = load_reference(reference)["id"][BAD]
    assert all(bad in record["skipped_pairs"] for record in skipped)
    # only the batch of that rank
    assert all(len(record["skipped_pairs"]) == config.scale.micro_batch for record in skipped)
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())


@pytest.mark.parametrize("name", OVERFLOWING)
def test_update_with_a_non_finite_gradient_is_skipped_on_all_ranks(trained, reference, name):
    """Catches: an infinite gradient on one of two ranks that moves the weights, or is not named.

    The losses are finite, so every pair of the update is named. The model after the sixth update
    is the model after the fifth, bit by bit.
    """
    folder, _ = trained
    records = read_records(folder / name)
    assert [record["step"] for record in records if record["skipped"]] == [6]
    assert math.isfinite(records[5]["loss"])
    ids = load_reference(reference)["id"]
    pairs = {ids[row] for row in global_batch_indices(40, 4, seed=0, step=5)}
    assert set(records[5]["skipped_pairs"]) == pairs
    before = weights(folder / name.replace("overflow", "five updates"))
    for weight, tensor in weights(folder / name).items():
        assert torch.equal(tensor, before[weight])
    assert latest_checkpoint(folder / name)[1].step == 3


def test_several_in_a_row_stop_the_run_with_the_last_checkpoint_intact(cases, trained):
    """Catches: a run that skips for ever, or that saves a checkpoint after a skipped update."""
    folder, errors = trained
    assert isinstance(errors["stopped"], StageFailedError)
    assert "Updates 5 to 7 were skipped" in str(errors["stopped"])
    assert "3 in a row stop the run" in str(errors["stopped"])
    ids = load_reference(cases["stopped"][1])["id"]
    assert any(ids[row] in str(errors["stopped"]) for row in LATE)
    assert latest_checkpoint(folder / "stopped")[1].step == 3
    assert not (folder / "stopped" / "model").exists()


def test_first_loss_must_be_ln_2(trained):
    """Catches: training against the log-probs of another model."""
    folder, errors = trained
    assert isinstance(errors["stale"], StaleReferenceError)
    assert "not those of the model to be trained" in str(errors["stale"])
    assert read_records(folder / "stale") == []


def test_a_step_that_cannot_fit_is_refused_before_weights_load(trained):
    """Catches: a job that runs out of memory hours later, or an error that names no remedy."""
    folder, errors = trained
    assert isinstance(errors["too large"], ConfigError)
    assert "What would fit: " in str(errors["too large"])
    assert "--scale.memory-gib" in str(errors["too large"])
    record, *_ = read_records(folder / "plain")
    assert 0 < record["memory/predicted_gib"] < 1
    assert record["recompute"] == 0


def test_bf16_trains(trained):
    """Catches: a precision that is offered but does not train.

    Its reference is in fp32, so the first loss also tests the gate's tolerance of 1e-2.
    """
    folder = trained[0] / "bf16"
    assert len(losses(folder)) == 3
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())


def test_adapters_train_and_are_merged(trained):
    """Catches: adapters that learn nothing, or an export in which they are missing."""
    folder, _ = trained
    assert losses(folder / "adapters")[0] == pytest.approx(0.6931471805599453, abs=1e-6)
    assert losses(folder / "adapters")[-1] < losses(folder / "adapters")[0]
    assert weights(folder / "adapters").keys() == weights(folder / "plain").keys()


def test_imitation_learns_the_chosen_answers_alone(trained):
    """Catches: SFT with a preference loss or a reference, or that depends on the workers."""
    folder, errors = trained
    assert not errors.keys() & {"imitation", "imitation, one worker"}
    records = read_records(folder / "imitation")
    assert len(records) == 12
    # 6.12 to 5.76 nats a token in twelve updates
    assert records[-1]["loss"] < 0.97 * records[0]["loss"]
    names = set().union(*records)
    assert not any(name.startswith(("rewards/", "loss/preference")) for name in names)
    assert_same(folder / "imitation, one worker", folder / "imitation", atol=1e-4)


def test_a_limit_trains_on_so_many_pairs(trained, config, reference):
    """Catches: a limit that is ignored, or that draws other pairs in every epoch.

    An update has four pairs, so two updates see all eight.
    """
    folder, errors = trained
    assert "limited" not in errors
    limited, full = losses(folder / "limited"), losses(folder / "plain")
    assert limited[0] == pytest.approx(full[0], abs=1e-6)  # each ln 2
    assert limited[-1] < full[-1]  # eight pairs are learnt sooner than forty
    chosen = nested_subset(40, 8, seed=0)
    assert len(set(chosen)) == 8 and set(chosen) < set(nested_subset(40, 20, seed=0))
