"""The files that a path names: sub-folders, globs, hub names, and the images beside them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhfv_ray.data import list_slices, load_pairs, read_slice
from rlhfv_ray.data.files.sources import data_files
from rlhfv_ray.errors import DataError
from tests.unit.data.rows import CHOSEN, QUESTION, RED, REJECTED, jsonl, plain_row


def test_sub_folders_and_their_images(tmp_path: Path) -> None:
    """Catches: shards in sub-folders left out; two of one name, whose rows get equal ids; images
    looked for in one place only.
    """
    for folder, image in (("one", "a.png"), ("two/deep", "top.png")):
        (tmp_path / folder).mkdir(parents=True)
        jsonl(tmp_path / folder / "x.jsonl", [plain_row(image=image)])
    (tmp_path / "top.png").write_bytes(RED)  # beside all shards
    (tmp_path / "_drafts").mkdir()
    jsonl(tmp_path / "_drafts" / "x.jsonl", [plain_row()])
    pairs = list(load_pairs(tmp_path))
    assert [pair.id for pair in pairs] == ["one/x.jsonl:0", "two/deep/x.jsonl:0"]
    assert {pair.image for pair in pairs} == {RED}
    assert pairs[1].position == "two/deep/x.jsonl:1"


def test_globs(tmp_path: Path) -> None:
    """Catches: a glob taken for a file's name; files that it does not name."""
    for name in ("a1.jsonl", "a2.jsonl", "b.jsonl", "readme.md"):
        jsonl(tmp_path / name, [plain_row()])
    assert [file.name for file in data_files(tmp_path / "a*.jsonl")] == ["a1.jsonl", "a2.jsonl"]
    assert [file.name for file in data_files(f"{tmp_path}/[ab]*")] == [
        *("a1.jsonl", "a2.jsonl", "b.jsonl")
    ]
    with pytest.raises(DataError, match="no_data"):
        data_files(tmp_path / "c*.jsonl")


@pytest.mark.slow
def test_a_hub_name_is_loaded_by_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a hub's data set whose images are decoded and saved anew, or that is not found.

    A folder stands in for the hub: `datasets` loads both by one function.
    """
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    row = {"image": {"bytes": RED, "path": "1.png"}, "question": QUESTION}
    table = pa.Table.from_pylist([{**row, "chosen": CHOSEN, "rejected": REJECTED}])
    features = {"image": {"_type": "Image"}}
    features |= {
        name: {"dtype": "string", "_type": "Value"} for name in ("question", "chosen", "rejected")
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), folder / "train.parquet")
    (part,) = list_slices(f"hub:{folder}")
    ((_, pair),) = read_slice(part)
    assert not isinstance(pair, DataError), pair
    assert (part.format, pair.image) == ("rlaifv", RED)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="no_data: 'owner/absent' is no file here, and the hub"):
        list_slices("owner/absent")
