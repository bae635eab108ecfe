"""A hundred thousand rows through the stage that reads and encodes: no process grows with them."""

import functools
import threading
from pathlib import Path

import psutil
import pytest

from rlhfv_ray.config import DataConfig, ModelConfig, ScaleConfig
from rlhfv_ray.data import list_slices
from rlhfv_ray.data.reference_table import SCHEMA, unusable_rows
from rlhfv_ray.inference.parts import map_parts
from rlhfv_ray.inference.reference import collect_unusable, encode_slice, part_table
from rlhfv_ray.shapes.model import BIASED
from tests.unit.data.files.test_parquet import write_rows

pytestmark = pytest.mark.ray
ROWS = 100_000
BOUND = 100  # MiB


class EncodedRows:
    """In the place of the reference model: keeps the encoded rows as they are."""

    def __call__(self, rows):
        return part_table([row if isinstance(row, tuple) else scored(row) for row in rows], SCHEMA)


def scored(row):
    """A row with log-probs of zero."""
    from rlhfv_ray.records import ReferencePair

    zeros = {
        "chosen_logps": [0.0] * len(row.chosen_ids),
        "rejected_logps": [0.0] * len(row.rejected_ids),
    }
    return ReferencePair(**vars(row), **zeros)


class MemoryWatch(threading.Thread):
    """Samples the private memory of the driver and of every process that computes, MiB.

    Pages of Ray's object store and of files are shared: they are no process's own.
    """

    def __init__(self, folder: Path, parts: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.parts, self.over = folder, parts, threading.Event()
        self.first: dict[int, float] = {}  # by process, once a tenth of the parts exist
        self.most: dict[int, float] = {}

    def run(self) -> None:
        """Sample until the work is over."""
        driver = psutil.Process()
        while not self.over.wait(1):
            if len(list(self.folder.glob("part-*.parquet"))) < self.parts / 10:
                continue
            for process in (driver, *driver.children(recursive=True)):
                self.sample(process)

    def sample(self, process: psutil.Process) -> None:
        """Note the memory of one process."""
        try:
            memory = process.memory_info()
            title = " ".join(process.cmdline())
        except psutil.Error:  # it has ended meanwhile
            return
        if process.pid == psutil.Process().pid or title.startswith("ray::"):
            private = (memory.rss - memory.shared) / 2**20
            self.first.setdefault(process.pid, private)
            self.most[process.pid] = max(private, self.most.get(process.pid, 0))

    def growth(self) -> dict[int, float]:
        """Growth of each process."""
        return {pid: most - self.first[pid] for pid, most in self.most.items()}


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["rows.parquet", "rows.json", "rows.jsonl"])
def test_no_process_grows_with_the_rows(name: str, cluster, pairs, tmp_path: Path) -> None:
    """Catches: a driver that keeps every row, or a worker that keeps what it has read."""
    path = write_rows(tmp_path / name, ROWS, pairs[0].image)
    model, folder = ModelConfig(path=str(BIASED)), tmp_path / "encoded"
    data = DataConfig(path=str(path))
    shards = list_slices(path, rows=64)
    watch = MemoryWatch(folder, len(shards))
    watch.start()
    try:
        map_parts(
            shards,
            folder,
            prepare=functools.partial(encode_slice, model=model, data=data),
            actor=EncodedRows,
            scale=ScaleConfig(actors=2, rows=64),
            title="Rows",
        )
        collect_unusable(folder, data)
    finally:
        watch.over.set()
        watch.join()
    growth = watch.growth()
    print(f"{name}: growth of {len(growth)} processes: {sorted(map(round, growth.values()))} MiB")
    assert unusable_rows(folder) == []
    assert len(growth) >= 3  # driver and two that compute
    assert max(growth.values()) < BOUND
