"""The reference stage on real Ray: quarantine, resume, killed actors."""

import threading
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhfv_ray.cluster import read_parts
from rlhfv_ray.data import write_pairs
from rlhfv_ray.data.reference_rows import load_reference, rejected_rows
from rlhfv_ray.errors import DataError
from rlhfv_ray.examples import encode_examples
from rlhfv_ray.reference import compute_reference_logps
from rlhfv_ray.shapes.scenes import make_scenes
from rlhfv_ray.shapes.world import write_captions
from tests.conftest import careless_pairs
from tests.ray.conftest import ray_processes, wait_for

pytestmark = pytest.mark.ray


def test_every_pair_once_in_order_and_a_second_run_does_nothing(reference, config):
    """Catches: rows lost, doubled or reordered by parallel actors; finished parts computed again."""
    ids = [pair.id for pair in careless_pairs(40)]
    assert list(load_reference(reference)["id"]) == ids
    assert rejected_rows(reference) == []
    before = {path.name: path.stat().st_mtime_ns for path in reference.glob("part-*")}
    assert len(before) == 8
    compute_reference_logps(config.model, config.data, config.scale, reference)
    assert {path.name: path.stat().st_mtime_ns for path in reference.glob("part-*")} == before


def test_missing_parts_are_made_again_and_are_the_same(reference, config, tmp_path):
    """Catches: a resume that starts over, or that gives other numbers."""
    for number in (0, 1, 2, 5, 6, 7):
        name = f"part-{number:05d}.parquet"
        (tmp_path / name).write_bytes((reference / name).read_bytes())
    kept = (tmp_path / "part-00001.parquet").stat().st_mtime_ns
    compute_reference_logps(config.model, config.data, config.scale, tmp_path)
    assert read_parts(tmp_path).equals(read_parts(reference))
    assert (tmp_path / "part-00001.parquet").stat().st_mtime_ns == kept


def test_killed_actor_changes_nothing(reference, config, tmp_path):
    """Catches: rows lost with a killed actor, or computed twice. The actor is killed after its first part."""
    killed = []

    def kill():
        wait_for(lambda: any(tmp_path.glob("part-*.parquet")))
        for process in ray_processes("MapWorker"):
            process.kill()
            killed.append(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    many = replace(config.scale, rows=2)  # parts enough for the killer to be in time
    compute_reference_logps(config.model, config.data, many, tmp_path)
    killer.join()
    assert killed
    ours, theirs = read_parts(tmp_path), read_parts(reference)
    assert ours["id"].to_pylist() == theirs["id"].to_pylist()
    for name in ("chosen_logps", "rejected_logps"):
        for a, b in zip(ours[name].to_pylist(), theirs[name].to_pylist(), strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def test_unusable_rows_are_set_aside_with_id_and_reason(config, tmp_path, cluster):
    """Catches: a bad row that stops the job, or that vanishes; the limit on their share ignored."""
    pairs = careless_pairs(10)
    pairs[3] = replace(pairs[3], image=b"\xff\xd8\xff broken")
    pairs[7] = replace(pairs[7], chosen=pairs[7].chosen + " and" * 600)
    path = tmp_path / "pairs.parquet"
    write_pairs(pairs, path)
    data = replace(config.data, path=str(path), max_length=512, max_rejected=0.2)
    folder = tmp_path / "reference"
    folder.mkdir()
    compute_reference_logps(config.model, data, config.scale, folder)
    rows = {row["id"]: row["reason"] for row in rejected_rows(folder)}
    assert rows.keys() == {pairs[3].id, pairs[7].id}
    assert rows[pairs[3].id].startswith("image_unreadable")
    assert rows[pairs[7].id].startswith("too_long")
    assert len(load_reference(folder)) == 8
    with pytest.raises(DataError, match=r"2 of 10 rows .* cannot be used .*max-rejected"):
        compute_reference_logps(config.model, replace(data, max_rejected=0.1), config.scale, folder)


def test_no_usable_pair_is_an_error(config, tmp_path, cluster):
    """Catches: training on nothing."""
    path = tmp_path / "pairs.parquet"
    write_pairs([replace(pair, image=b"no image") for pair in careless_pairs(3)], path)
    folder = tmp_path / "reference"
    folder.mkdir()
    with pytest.raises(DataError, match="no pair is left"):
        compute_reference_logps(
            config.model, replace(config.data, path=str(path), max_rejected=1.0), config.scale, folder
        )
    assert pq.read_table(folder / "rejected_rows.parquet").num_rows == 3


def test_examples_are_encoded_by_the_same_pipeline(cluster, config, tmp_path):
    """Catches: examples that are lost, or that end the stage where one cannot be used."""
    scenes = make_scenes(12, seed=5)
    write_captions(scenes, tmp_path / "captions.parquet")
    broken = pq.read_table(tmp_path / "captions.parquet").to_pylist()
    broken[3]["answer"] = " "
    pq.write_table(pa.Table.from_pylist(broken), tmp_path / "captions.parquet")
    data = replace(config.data, path=str(tmp_path / "captions.parquet"), max_rejected=0.1)
    folder = tmp_path / "examples"
    folder.mkdir()
    encode_examples(config.model, data, config.scale, folder)
    made = load_reference(folder)
    assert list(made["id"]) == [f"shapes:{scene.id}" for scene in scenes if scene.id != 3]
    assert "chosen_logps" not in made.column_names and set(map(len, made["rejected_ids"])) == {0}
    assert [row["id"] for row in rejected_rows(folder)] == ["shapes:3"]
