"""Stages in parts on real Ray: unusable rows, resume, killed actors, a full object store."""

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from rlhfv_ray import cluster as ray_cluster
from rlhfv_ray.config import GenerationConfig, ScaleConfig
from rlhfv_ray.data import write_pairs
from rlhfv_ray.data.reference_table import load_reference, unusable_rows
from rlhfv_ray.errors import DataError
from rlhfv_ray.inference.generate import generate_answers
from rlhfv_ray.inference.parts import SIZES, digest_path, map_parts, part_path, read_parts
from rlhfv_ray.inference.reference import compute_reference_logps
from rlhfv_ray.inference.sft_examples import encode_examples
from rlhfv_ray.records import Prompt
from rlhfv_ray.shapes.scenes import make_scenes, render
from rlhfv_ray.shapes.world import write_captions
from tests.conftest import careless_pairs, wait_for
from tests.ray.conftest import killing

pytestmark = pytest.mark.ray


def test_every_pair_once_in_order_and_a_second_run_does_nothing(reference, config):
    """Catches: rows lost, doubled or reordered by actors; finished parts computed again."""
    ids = [pair.id for pair in careless_pairs(40)]
    assert list(load_reference(reference)["id"]) == ids
    assert unusable_rows(reference) == []
    before = {path.name: path.stat().st_mtime_ns for path in reference.glob("part-*")}
    assert len(before) == 8
    compute_reference_logps(config.model, config.data, config.scale, reference)
    assert {path.name: path.stat().st_mtime_ns for path in reference.glob("part-*")} == before


def test_missing_parts_are_made_again_and_are_the_same(reference, config, tmp_path):
    """Catches: a resume that starts from the beginning, or gives other numbers."""
    copy_parts(reference, tmp_path, (0, 1, 2, 5, 6, 7))
    before = (tmp_path / "part-00001.parquet").stat().st_mtime_ns
    compute_reference_logps(config.model, config.data, config.scale, tmp_path)
    assert read_parts(tmp_path).equals(read_parts(reference))
    assert (tmp_path / "part-00001.parquet").stat().st_mtime_ns == before


def copy_parts(folder: Path, to: Path, numbers: Sequence[int]) -> None:
    """Copy what an interrupted run leaves: some parts, and the sizes that they were cut by."""
    parts = [path(folder, number).name for path in (part_path, digest_path) for number in numbers]
    for name in (SIZES, *parts):
        (to / name).write_bytes((folder / name).read_bytes())


def test_a_resume_with_another_cut_ends_with_the_same_rows(reference, config, tmp_path):
    """Catches: parts matched by number alone, which leave out the rows that another cut moves.

    Four of eight parts of five rows exist; the command goes on with ten rows a part.
    """
    copy_parts(reference, tmp_path, (0, 1, 2, 3))
    other = replace(config.scale, rows=10, inference_batch=3)
    compute_reference_logps(config.model, config.data, other, tmp_path)
    assert read_parts(tmp_path).equals(read_parts(reference))


def test_parts_of_an_unknown_cut_are_made_again(reference, config, tmp_path):
    """Catches: a part that nobody knows the rows of, taken as it is."""
    part = part_path(tmp_path, 0)
    part.write_bytes(part_path(reference, 5).read_bytes())
    compute_reference_logps(config.model, config.data, config.scale, tmp_path)
    assert read_parts(tmp_path).equals(read_parts(reference))


@pytest.fixture
def on_a_cluster(cluster, monkeypatch):
    """Let stages take the Ray for one that others use too: they compute in actors there."""
    monkeypatch.delenv("RLHFV_PRIVATE_RAY")


def has_a_part(folder: Path) -> bool:
    """Return True if the first part of a stage exists."""
    return any(folder.glob("part-*.parquet"))


def test_killed_task_changes_nothing(reference, config, tmp_path):
    """Catches: rows lost with a killed process, or computed twice.

    The process is killed after its first part.
    """
    many = replace(config.scale, rows=2)
    with killing("MapBatches(_compute)", lambda: has_a_part(tmp_path)):
        compute_reference_logps(config.model, config.data, many, tmp_path)
    assert_same_rows(tmp_path, reference)


def test_killed_actor_changes_nothing(on_a_cluster, reference, config, tmp_path):
    """Catches: rows lost with a killed actor of a cluster, or computed twice."""
    many = replace(config.scale, rows=2)
    with killing("MapWorker", lambda: has_a_part(tmp_path)):
        compute_reference_logps(config.model, config.data, many, tmp_path)
    assert_same_rows(tmp_path, reference)


def assert_same_rows(folder: Path, reference: Path) -> None:
    ours, theirs = read_parts(folder), read_parts(reference)
    assert ours["id"].to_pylist() == theirs["id"].to_pylist()
    for name in ("chosen_logps", "rejected_logps"):
        for a, b in zip(ours[name].to_pylist(), theirs[name].to_pylist(), strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def test_killed_generation_actor_changes_nothing(on_a_cluster, config, tmp_path):
    """Catches: answers lost with a killed actor, doubled, or sampled differently.

    Each prompt has random numbers of its own.
    """
    prompts = [
        Prompt(str(scene.id), render(scene), "What is there?") for scene in make_scenes(24, seed=8)
    ]
    scale = replace(config.scale, rows=2, inference_batch=2)
    generation = GenerationConfig(max_new_tokens=12, temperature=1.0)
    answer = functools.partial(
        generate_answers, config.model, prompts, generation=generation, scale=scale, title=""
    )
    for name in ("undisturbed", "disturbed"):
        (tmp_path / name).mkdir()
    with killing("MapWorker", lambda: has_a_part(tmp_path / "disturbed")):
        disturbed = answer(tmp_path / "disturbed")
    assert disturbed == answer(tmp_path / "undisturbed")
    assert [result.id for result in disturbed] == [prompt.id for prompt in prompts]
    assert len({result.text for result in disturbed}) > 12


def test_an_object_store_that_spills_changes_nothing(reference, config, tmp_path):
    """Catches: rows lost when the object store (200 MB here) is full and spills to disk."""
    held = [ray.put(np.full(9_000_000, number, dtype=np.float64)) for number in range(4)]
    spilled = Path(ray._private.worker._global_node.get_session_dir_path()).glob(
        "ray_spilled_objects*/*"
    )
    assert list(spilled)
    compute_reference_logps(config.model, config.data, config.scale, tmp_path)
    assert_same_rows(tmp_path, reference)
    assert [float(ray.get(array)[0]) for array in held] == [0, 1, 2, 3]


def test_unusable_rows_are_set_aside_with_id_and_reason(config, tmp_path, cluster):
    """Catches: an unusable row that stops the job or vanishes; the limit on their share ignored."""
    pairs = careless_pairs(10)
    pairs[3] = replace(pairs[3], image=b"\xff\xd8\xff broken")
    pairs[7] = replace(pairs[7], chosen=pairs[7].chosen + " and" * 600)
    path = tmp_path / "pairs.parquet"
    write_pairs(pairs, path)
    data = replace(config.data, path=str(path), max_length=512, max_unusable=0.2)
    folder = tmp_path / "reference"
    folder.mkdir()
    compute_reference_logps(config.model, data, config.scale, folder)
    rows = {row["id"]: row["reason"] for row in unusable_rows(folder)}
    assert rows.keys() == {pairs[3].id, pairs[7].id}
    assert rows[pairs[3].id].startswith("image_unreadable")
    assert rows[pairs[7].id].startswith("too_long")
    assert len(load_reference(folder)) == 8
    with pytest.raises(DataError, match=r"2 of 10 rows .* cannot be used .*max-unusable"):
        compute_reference_logps(config.model, replace(data, max_unusable=0.1), config.scale, folder)


def test_no_usable_pair_is_an_error(config, tmp_path, cluster):
    """Catches: training on nothing."""
    path = tmp_path / "pairs.parquet"
    write_pairs([replace(pair, image=b"no image") for pair in careless_pairs(3)], path)
    folder = tmp_path / "reference"
    folder.mkdir()
    with pytest.raises(DataError, match="no pair is left"):
        compute_reference_logps(
            config.model,
            replace(config.data, path=str(path), max_unusable=1.0),
            config.scale,
            folder,
        )
    assert pq.read_table(folder / "unusable_rows.parquet").num_rows == 3


def test_examples_are_encoded_by_the_same_pipeline(cluster, config, tmp_path):
    """Catches: examples that are lost, or an unusable one that ends the stage."""
    scenes = make_scenes(12, seed=5)
    write_captions(scenes, tmp_path / "captions.parquet")
    broken = pq.read_table(tmp_path / "captions.parquet").to_pylist()
    broken[3]["answer"] = " "
    pq.write_table(pa.Table.from_pylist(broken), tmp_path / "captions.parquet")
    data = replace(config.data, path=str(tmp_path / "captions.parquet"), max_unusable=0.1)
    folder = tmp_path / "examples"
    folder.mkdir()
    encode_examples(config.model, data, config.scale, folder)
    examples = load_reference(folder)
    assert list(examples["id"]) == [f"shapes:{scene.id}" for scene in scenes if scene.id != 3]
    assert "chosen_logps" not in examples.column_names
    assert set(map(len, examples["rejected_ids"])) == {0}
    assert [row["id"] for row in unusable_rows(folder)] == ["shapes:3"]


def test_the_next_stage_runs_in_the_same_process(cluster, tmp_path):
    """Catches: a process for each stage, with its imports; the last stage's model kept for it."""
    scale = ScaleConfig(actors=1, cpus=0.5)
    processes = set()
    for stage in (3, 5):
        folder = tmp_path / str(stage)
        map_parts([1, 2], folder, actor=functools.partial(Times, stage), scale=scale, title="")
        parts = read_parts(folder).to_pydict()
        assert parts["product"] == [stage, 2 * stage]
        processes |= set(parts["process"])
    assert len(processes) == 1


class Times:
    """Multiplies a shard by a number."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, shard: int) -> pa.Table:
        """Return one row."""
        return pa.table({"product": [shard * self.factor], "process": [os.getpid()]})


def process_of(shard: int) -> tuple[int, int]:
    """Return a shard and the process that prepared it."""
    return shard, os.getpid()


class Processes:
    """Tells which process prepared a part, and which one computed it."""

    def __call__(self, rows: tuple[int, int]) -> pa.Table:
        """Return one row."""
        shard, prepared = rows
        return pa.table({"shard": [shard], "prepared": [prepared], "computed": [os.getpid()]})


@pytest.mark.parametrize("gpu", [True, False])
def test_only_actors_on_gpus_have_their_shards_prepared_elsewhere(cluster, gpu, tmp_path):
    """Catches: a GPU that waits for images; a process more, with its imports, without a GPU."""
    map_parts(
        [0, 1, 2],
        tmp_path,
        actor=Processes,
        prepare=process_of,
        scale=ScaleConfig(gpu=gpu, actors=1, cpus=1),
        title="Processes",
    )
    parts = read_parts(tmp_path)
    assert parts["shard"].to_pylist() == [0, 1, 2]
    shared = set(parts["prepared"].to_pylist()) & set(parts["computed"].to_pylist())
    assert bool(shared) != gpu


HOLDER = """
import sys
import ray

@ray.remote(num_cpus=2)
class Holder:
    def ready(self):
        return True

ray.init(sys.argv[1], logging_level="ERROR")
holder = Holder.remote()
ray.get(holder.ready.remote())
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_job_waits_for_another_ones_cpus_and_goes_on(cluster, monkeypatch, caplog):
    """Catches: a job that starves, or gives up, while another job has the CPUs, without a word."""
    monkeypatch.setattr(ray_cluster, "QUIET_S", 0.5)
    address = ray.get_runtime_context().gcs_address
    waiting = threading.Thread(
        target=functools.partial(ray_cluster.wait_for_resources, timeout=60),
        args=("Training", [{"CPU": 1.0}]),
        daemon=True,
    )
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waiting.start()
        wait_for(lambda: "Training waits until 1 x (1 CPU) are free" in caplog.text, 30)
        groups = ray.util.placement_group_table().values()
        assert "PENDING" in {group["state"] for group in groups}  # what an autoscaler counts
        assert f"process {holder.pid}" in caplog.text
        holder.communicate("\n", timeout=60)
    waiting.join(timeout=60)
    assert not waiting.is_alive()
