"""Training on real Ray Train and DeepSpeed: the same result whatever the scale, and after faults."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from rlhfv_ray.checkpoint import latest_checkpoint
from rlhfv_ray.data.reference_rows import load_reference
from rlhfv_ray.errors import StageFailedError, StaleReferenceError
from rlhfv_ray.models import load_policy
from rlhfv_ray.progress import read_records
from rlhfv_ray.train import batch_rows
from tests.ray.conftest import ray_processes, train, wait_for, with_scale

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def plain(config, reference, tmp_path_factory) -> Path:
    """The run all others are compared with: two workers, ZeRO 2, no fault."""
    return train(config, reference, tmp_path_factory.mktemp("plain"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_records(folder)]


def assert_same(ours: Path, theirs: Path, *, atol: float) -> None:
    assert losses(ours) == pytest.approx(losses(theirs), abs=atol)
    for name, tensor in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], tensor, atol=atol, rtol=0)


def test_run_leaves_records_checkpoints_and_a_model(plain, config, small_model):
    """Catches: updates missing from the record, a first loss that is not ln 2, a model that did not change or load."""
    records = read_records(plain)
    assert [record["step"] for record in records] == list(range(1, 13))
    assert records[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-6)
    assert records[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert records[-1]["loss"] < records[0]["loss"]
    assert all(record["grad_norm"] > 0 and record["tokens_per_second"] > 0 for record in records)
    _, manifest = latest_checkpoint(plain)
    assert (manifest.step, manifest.world_size, manifest.zero_stage) == (12, 2, 2)
    assert len(list((plain / "checkpoints").iterdir())) == config.scale.keep
    model, _ = load_policy(plain / "model", device="cpu")
    start, _ = load_policy(small_model, device="cpu")
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_zero_stages_give_the_same_curve(plain, config, reference, tmp_path, stage):
    """Catches: a ZeRO stage with other gradients, or whose weights are not gathered on export. Stage 2 is `plain`."""
    assert_same(train(with_scale(config, zero_stage=stage), reference, tmp_path / "run"), plain, atol=1e-4)


def test_one_worker_accumulating_equals_two(plain, config, reference, tmp_path):
    """Catches: batches that depend on the number of workers, or gradients scaled by it."""
    assert_same(train(with_scale(config, workers=1), reference, tmp_path / "run"), plain, atol=1e-5)


def test_killed_worker_changes_nothing(plain, config, reference, tmp_path):
    """Catches: updates lost or done twice after a worker dies. One of two is killed once a checkpoint is there."""
    folder, killed = tmp_path / "run", []

    def kill():
        wait_for(lambda: latest_checkpoint(folder) is not None)
        victim = ray_processes("RayTrainWorker")[0]
        victim.kill()
        killed.append(victim.pid)

    train(config, reference, folder, alongside=kill)
    assert killed
    assert_same(folder, plain, atol=0)
    assert [record["step"] for record in read_records(folder)] == list(range(1, 13))


def test_resumed_run_equals_uninterrupted_even_past_a_torn_checkpoint(plain, config, reference, tmp_path):
    """Catches: optimizer state, order of pairs or schedule lost on resume; a torn checkpoint taken for whole."""
    folder = tmp_path / "run"
    shutil.copytree(plain, folder)
    shutil.rmtree(folder / "model")
    (folder / "metrics.jsonl").unlink()
    newest, _ = latest_checkpoint(folder)
    shard = max((newest / "engine").iterdir(), key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-100])
    assert latest_checkpoint(folder)[1].step == 9
    train(config, reference, folder)
    assert_same(folder, plain, atol=0)


def with_nan(reference: Path, folder: Path, rows: set[int]) -> tuple[Path, list[str]]:
    """A copy of the reference folder in which some pairs' log-probs are not numbers; and their ids."""
    shutil.copytree(reference, folder)
    ids = list(load_reference(reference)["id"])
    bad = [ids[row] for row in sorted(rows)]
    for path in folder.glob("part-*"):
        table = pq.read_table(path)
        changed = table.to_pylist()
        for row in changed:
            if row["id"] in bad:
                row["chosen_logps"] = [float("nan")] * len(row["chosen_logps"])
        pq.write_table(type(table).from_pylist(changed, schema=table.schema), path)
    return folder, bad


def test_update_with_a_non_finite_loss_is_skipped_and_named(config, reference, tmp_path):
    """Catches: a NaN on one of two ranks that poisons the weights, or is skipped without a trace."""
    row = batch_rows(40, 4, seed=0, step=5)[0]
    poisoned, bad = with_nan(reference, tmp_path / "reference", {row})
    folder = train(config, poisoned, tmp_path / "run")
    skipped = [record for record in read_records(folder) if record["skipped"]]
    where = [step + 1 for step in range(12) if row in batch_rows(40, 4, seed=0, step=step)]
    assert [record["step"] for record in skipped] == where
    assert all(bad[0] in record["skipped_pairs"] for record in skipped)
    assert all(len(record["skipped_pairs"]) == config.scale.micro_batch for record in skipped)  # that rank's batch
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())


def test_several_in_a_row_stop_the_run_with_the_last_checkpoint_intact(config, reference, tmp_path):
    """Catches: a run that skips for ever, that is retried by Ray, or that saves after the poison."""
    rows = {row for step in range(4, 12) for row in batch_rows(40, 4, seed=0, step=step)}
    rows -= {row for step in range(4) for row in batch_rows(40, 4, seed=0, step=step)}
    poisoned, bad = with_nan(reference, tmp_path / "reference", rows)
    folder = tmp_path / "run"
    with pytest.raises(StageFailedError, match=r"Updates 5 to 7 were skipped.*3 in a row stop the run") as error:
        train(config, poisoned, folder)
    assert any(pair in str(error.value) for pair in bad)
    assert latest_checkpoint(folder)[1].step == 3
    assert not (folder / "model").exists()


def test_first_loss_must_be_ln_2(config, reference, tmp_path):
    """Catches: training against the log-probs of another model."""
    wrong = tmp_path / "reference"
    shutil.copytree(reference, wrong)
    for path in wrong.glob("part-*"):
        table = pq.read_table(path)
        rows = [{**row, "chosen_logps": [value - 0.01 for value in row["chosen_logps"]]} for row in table.to_pylist()]
        pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    with pytest.raises(StaleReferenceError, match="not those of the model to be trained"):
        train(config, wrong, tmp_path / "run")


def test_bf16_trains(config, small_model, reference, tmp_path):
    """Catches: a precision that only works in a table. Its reference is fp32's, so the gate at 1e-2 is tested too."""
    bf16 = replace(config, model=replace(config.model, dtype="bf16"), optim=replace(config.optim, steps=3))
    folder = train(bf16, reference, tmp_path / "run")
    assert len(losses(folder)) == 3
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())
