"""Data mixed by blocks: the order is the release's, and ids of several sources stay apart."""

import json
from itertools import cycle, islice

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhfv_ray.config import DataConfig
from rlhfv_ray.data import read_slice
from rlhfv_ray.data.mixture import digest_sources, list_sources, mixed_rows, mixture_rows
from rlhfv_ray.data.repeats import check_ids
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.shapes.scenes import make_scenes, render

PICTURE = render(make_scenes(1, seed=3)[0])

SOURCES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=4)


@settings(deadline=None)
@given(SOURCES)
def test_blocks_take_turns_and_shorter_sources_start_again(sources):
    """Catches: another order than the release's, rows of a wrong source, a source that ends the
    mixture, more blocks than the longest source fills."""
    sizes, weights = zip(*sources, strict=True)
    streams = [cycle([(number, row) for row in range(size)]) for number, size in enumerate(sizes)]
    expected = []
    for _ in range(max(1, *(size // weight for size, weight in sources))):
        for stream, weight in zip(streams, weights, strict=True):
            expected += islice(stream, weight)
    firsts = [sum(sizes[:number]) for number in range(len(sizes))]
    assert mixture_rows(sizes, weights) == [firsts[number] + row for number, row in expected]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "a.png").write_bytes(PICTURE)
    for name, words in (("short", "red"), ("long", "a red star on a street")):
        rows = [
            {"id": str(row), "image": "a.png", "question": f"What is {row}?", "answer": words}
            for row in range(3)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    paths = [str(tmp_path / f"{name}.jsonl") for name in ("short", "long")]
    return DataConfig(path=paths[0], mixed_with=(paths[1],), mix_weights=(1, 2))


def test_ids_of_two_sources_stay_apart(data):
    """Catches: rows of two sources that are taken for one another, or end the job as repeats."""
    slices = list_sources(data, rows=2)
    assert [part.index for part in slices] == list(range(4))
    check_ids(slices)
    ids = [row_id for part in slices for row_id, _ in read_slice(part)]
    assert ids == ["0", "1", "2", "2/0", "2/1", "2/2"]
    before = digest_sources(data)
    with open(data.mixed_with[0], "a") as stream:
        stream.write("\n")
    assert digest_sources(data) != before


def test_rows_of_a_mixture(data):
    """Catches: weights that are not those of their sources; a source without rows that divides by
    zero; weights for another number of sources, which are silently cut."""
    pairs = Dataset.from_dict({"source": [0, 0, 0, 1, 1]})
    assert mixed_rows(pairs, data) == [0, 3, 4, 1, 3, 4, 2, 3, 4]
    assert list(mixed_rows(pairs, DataConfig(path="a"))) == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="no row of source 2"):
        mixed_rows(Dataset.from_dict({"source": [0, 0]}), data)
    with pytest.raises(ConfigError, match=r"mix_weights = \(50, 50\).*--data\.mixed-with"):
        _ = DataConfig(path="a", mix_weights=(50, 50)).source_weights
    with pytest.raises(ConfigError, match=r"mix_weights.*>= 1"):
        DataConfig(path="a", mixed_with=("b",), mix_weights=(0, 50))
