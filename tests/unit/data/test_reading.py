"""Files and folders of pairs: which are data, how they are cut into slices, what is refused."""

import hashlib
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhfv_ray.data import (
    FORMATS,
    ReadOptions,
    Slice,
    data_digest,
    list_slices,
    load_pairs,
    read_slice,
    reading,
)
from rlhfv_ray.data.pair_formats import Format
from rlhfv_ray.data.row_fields import Row, say_once
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import PreferencePair
from tests.unit.data.rows import (
    CHOSEN,
    RED,
    jsonl,
    parquet,
    plain_row,
    read_all,
    rlhfv_row,
    tsv_line,
    write_format,
)


def test_missing_column_says_which_and_what_there_is(tmp_path: Path) -> None:
    """Bug: a renamed column read as None in every row."""
    with pytest.raises(DataError) as caught:
        list_slices(
            parquet(
                tmp_path / "x.parquet",
                [{"image": RED, "question": "q", "chosen": "a", "reject": "b"}],
            )
        )
    for word in ("'rlaifv'", "rejected is missing", "reject", "llamafactory", "x.parquet"):
        assert word in str(caught.value)


def test_wrong_and_unknown_format_are_refused(tmp_path: Path) -> None:
    """Bug: a format given by hand is not checked against the file."""
    path = write_format(tmp_path, "rlhfv")
    with pytest.raises(ConfigError, match="muffin_tsv"):
        list_slices(path, format="rlhf-v")
    with pytest.raises(DataError, match="prompt"):
        list_slices(path, format="trl")
    with pytest.raises(DataError, match="muffin_tsv"):
        list_slices(path, format="muffin_tsv")


def test_folder_of_one_format_in_name_order(tmp_path: Path) -> None:
    """Bug: shards in directory order; markers and temporary files read as data."""
    for number in (2, 0, 1):
        parquet(tmp_path / f"shard-{number}.parquet", [rlhfv_row(number)])
    (tmp_path / "_SUCCESS.json").write_text("{}")
    (tmp_path / ".shard-3.parquet").write_text("half written")
    assert [pair.id for pair in load_pairs(tmp_path)] == ["RLHF-V:0", "RLHF-V:1", "RLHF-V:2"]
    write_format(tmp_path, "rlaifv")
    with pytest.raises(DataError, match="rlaifv, rlhfv"):
        list_slices(tmp_path)


@pytest.mark.parametrize("name", ["nothing.parquet", "folder", "x.csv"])
def test_no_data_is_an_error(name: str, tmp_path: Path) -> None:
    """Bug: training on nothing."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=name):
        list_slices(tmp_path / name)


def test_an_empty_file_is_said_to_be_empty(tmp_path: Path) -> None:
    """Catches: a file without rows that is said to lack columns; one that costs a whole folder;
    rows that are lost because many blank lines stand before them.
    """
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("none.json", "empty.jsonl", "."):
        with pytest.raises(DataError, match="no_data: .* holds no rows"):
            list_slices(tmp_path / name)
    jsonl(tmp_path / "x.jsonl", [plain_row()])
    assert [part.title for part in list_slices(tmp_path)] == ["x.jsonl"]
    (tmp_path / "y.jsonl").write_bytes(b"\n" * 100 + (tmp_path / "x.jsonl").read_bytes())
    assert len(list(load_pairs(tmp_path))) == 2


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.json", "x.tsv"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[1, 2", b"<html>"])
def test_garbage_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    """Bug: a parser's error without the file's name, or an empty data set."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        list_slices(tmp_path / name)


def test_corrupt_parquet_page_is_named(tmp_path: Path) -> None:
    """Bug: damage behind an intact footer ends in an Arrow traceback."""
    path = parquet(
        tmp_path / "x.parquet", [rlhfv_row(idx) for idx in range(50)], compression="gzip"
    )
    data = bytearray(path.read_bytes())
    data[20:400] = b"\xff" * 380
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.parquet"):
        read_all(path)


def test_byte_order_mark_crlf_and_blank_lines(tmp_path: Path) -> None:
    """Bug: files saved on Windows lose their first row or gain empty ones."""
    path = jsonl(tmp_path / "x.jsonl", [])
    line = json.dumps(plain_row(), ensure_ascii=False).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n\n")
    assert [pair.id for pair in load_pairs(path)] == ["x.jsonl:0", "x.jsonl:2"]
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf [" + line + b"]")
    assert [pair.chosen for pair in load_pairs(path)] == [CHOSEN]


def test_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    """Bug: changed data passes for the old one."""
    path = jsonl(tmp_path / "x.jsonl", [plain_row()])
    first = data_digest(tmp_path)
    assert data_digest(path) == first
    path.rename(tmp_path / "y.jsonl")
    second = data_digest(tmp_path)
    jsonl(tmp_path / "y.jsonl", [plain_row(), plain_row()])
    assert len({first, second, data_digest(tmp_path)}) == 3


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_digest_sees_images_behind_paths(kind: str, tmp_path: Path) -> None:
    """Catches: log-probs of the former pictures, after pictures were changed under their names."""
    rows = [{**plain_row(), "image": "a.png"}, {**plain_row(), "image": "b.png"}]
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        images = [{"bytes": None, "path": row["image"]} for row in rows]
        rows = [{**row, "image": image} for row, image in zip(rows, images, strict=True)]
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        jsonl(path, rows)
    digests = [data_digest(path)]
    for name, content in (("a.png", b"1"), ("b.png", b"1"), ("b.png", b"2"), ("c.png", b"3")):
        (tmp_path / name).write_bytes(content)
        digests.append(data_digest(path))
    assert len(set(digests[:4])) == 4
    assert digests[4] == digests[3]  # no row names it


@pytest.mark.parametrize("key", ["image", "images"])
def test_digest_sees_a_path_among_embedded_images(key: str, tmp_path: Path) -> None:
    """Catches: a file taken for one that embeds all its images, because most of its rows do."""
    answers = {name: value for name, value in plain_row().items() if name != "image"}
    images: list[object] = [{"bytes": b"1", "path": None}, {"bytes": None, "path": "a.png"}]
    if key == "images":
        images = [[image] for image in images]
    path = tmp_path / "x.parquet"
    rows = [{**answers, "prompt": "What?", key: image} for image in images]
    pq.write_table(pa.Table.from_pylist(rows), path)
    digests = set()
    for content in (b"1", b"2"):
        (tmp_path / "a.png").write_bytes(content)
        digests.add(data_digest(path))
    assert len(digests) == 2


@pytest.mark.parametrize(
    "image",
    [
        {"image": b"1"},
        {"image": {"bytes": b"1", "path": "a.png"}},
        {"images": [{"bytes": b"1", "path": "a.png"}], "prompt": "What?"},
    ],
)
def test_digest_leaves_embedded_images_to_the_file(
    image: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: every row of a file of many GB decoded, only to find no path; a new name for data
    without paths.
    """
    answers = {name: value for name, value in plain_row().items() if name != "image"}
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist([{**answers, **image}]), path)
    monkeypatch.setattr(reading, "_stored_rows", lambda part: pytest.fail("rows were read"))
    file_digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert data_digest(path) == hashlib.sha256(f"x.parquet\0{file_digest}\n".encode()).hexdigest()


@pytest.mark.slow
def test_import_is_light() -> None:
    """Bug: every reading worker pays for ray or transformers."""
    heavy = {"ray", "transformers", "datasets"}
    code = f"import sys, rlhfv_ray.data; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


# Slices


def make_rows(folder: Path, kind: str, count: int) -> Path:
    match kind:
        case "parquet":
            return parquet(
                folder / "x.parquet", [rlhfv_row(idx) for idx in range(count)], row_group_size=7
            )
        case "one_group":
            return parquet(folder / "x.parquet", [rlhfv_row(idx) for idx in range(count)])
        case "tsv":
            (folder / "x.tsv").write_text("".join(tsv_line(idx=idx) for idx in range(count)))
            return folder / "x.tsv"
        case _:
            path = jsonl(folder / "x.jsonl", [plain_row(id=f"é{idx}") for idx in range(count)])
            if kind == "array":
                rows = [json.loads(line) for line in path.read_text().splitlines()]
                path = folder / "x.json"
                path.write_text(json.dumps(rows))
            return path


@pytest.mark.parametrize("kind", ["parquet", "one_group", "tsv", "jsonl", "array"])
@pytest.mark.parametrize("rows", [1, 3, 5, 7, 100])
def test_slices_cover_every_row_once_in_any_order(kind: str, rows: int, tmp_path: Path) -> None:
    """Bug: rows lost or doubled where slices and row groups (or byte offsets) do not line up."""
    path = make_rows(tmp_path, kind, 23)
    parts = list_slices(path, rows=rows)
    assert [part.index for part in parts] == list(range(len(parts)))
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == 23
    ids = [pair.id for pair in load_pairs(path)]
    assert len(set(ids)) == 23
    by_slice = {}
    for part in reversed(parts):
        by_slice[part.index] = [row_id for row_id, _ in read_slice(part)]
        assert len(by_slice[part.index]) == part.stop - part.start
    in_order = chain.from_iterable(by_slice[part.index] for part in parts)
    assert list(in_order) == ids


def test_a_row_range_across_row_groups_is_read_exactly(tmp_path: Path) -> None:
    """Bug: a slice cut by another rule than ours reads whole row groups."""
    path = make_rows(tmp_path, "parquet", 23)  # groups of 7
    part = Slice(0, str(path), "rlhfv", 5, 16)
    assert [row_id for row_id, _ in read_slice(part)] == [f"RLHF-V:{idx}" for idx in range(5, 16)]


def test_big_units_are_not_cut_into_crumbs(tmp_path: Path) -> None:
    """Bug: 1-row slices of one row group each decode the whole group: quadratic reading."""
    assert len(list_slices(make_rows(tmp_path, "one_group", 64), rows=1)) == 16
    assert len(list_slices(make_rows(tmp_path, "array", 64), rows=1)) == 64  # read from its offset


def test_slices_travel_to_a_worker_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: relative paths, or errors that do not pickle."""
    jsonl(tmp_path / "x.jsonl", [plain_row(), plain_row(chosen="")])
    monkeypatch.chdir(tmp_path)
    (part,) = pickle.loads(pickle.dumps(list_slices("x.jsonl")))
    monkeypatch.chdir("/")
    (_, pair), (_, error) = pickle.loads(pickle.dumps(list(read_slice(part))))
    assert isinstance(pair, PreferencePair)
    assert "empty_answer" in str(error)


# Options


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    """Catches: a map that is ignored for one kind of file, or that names an absent column."""
    row = {"q": "What?", "good": "a star", "bad": "a ring", "picture": "a.png", "more": 1}
    options = ReadOptions(columns=("question=q", "chosen=good", "rejected=bad", "image=picture"))
    lines = jsonl(tmp_path / "x.jsonl", [row])
    table = parquet(tmp_path / "x.parquet", [{**row, "picture": {"bytes": RED}}])
    for path in (lines, table):
        (part,) = list_slices(path, options=options)
        ((_, pair),) = read_slice(part)
        assert isinstance(pair, PreferencePair), pair
        assert (pair.question, pair.chosen, pair.rejected) == ("What?", "a star", "a ring")
        with pytest.raises(DataError, match="--data.columns .*=NAME"):
            list_slices(path)
        with pytest.raises(DataError, match="names absent, which the file does not have"):
            list_slices(path, options=replace(options, columns=("question=absent",)))


def test_ids_by_position_win_over_every_other(tmp_path: Path) -> None:
    """Catches: an id inside of a column, which repeats, in place of the position."""
    path = parquet(tmp_path / "x.parquet", [rlhfv_row(1, id="q"), rlhfv_row(2, id="q", chosen="")])
    rows = read_all(path, options=ReadOptions(ids="position"))
    assert [row_id for row_id, _ in rows] == ["x.parquet:0", "x.parquet:1"]
    assert getattr(rows[0][1], "id", None) == "x.parquet:0"


def test_columns_that_nobody_reads_are_listed_once(tmp_path: Path, caplog) -> None:
    """Catches: a column that is dropped without a word, or named for every shard."""
    say_once.cache_clear()
    for name in ("x.jsonl", "y.jsonl"):
        jsonl(tmp_path / name, [plain_row(stars=5, id=name)])
    list_slices(tmp_path)
    list_slices(tmp_path)
    assert caplog.text.count("are not read: stars.") == 1


def test_a_format_reads_columns_that_only_some_files_have(tmp_path, monkeypatch, caplog) -> None:
    """Catches: a column of a new format that Parquet files lose, or that is called unread."""
    say_once.cache_clear()

    def fields_of(row: Row) -> Row:
        return {**row, "id": row.get("number"), "chosen": row["good"], "rejected": row["bad"]}

    needed = ("image", "question", "good", "bad")
    monkeypatch.setitem(FORMATS, "numbered", Format(needed, fields_of, ("number",)))
    row = {"question": "What?", "good": "a star", "bad": "a ring", "image": {"bytes": RED}}
    for kind, stored in (("numbered", {**row, "number": "n7"}), ("plain", row)):
        path = parquet(tmp_path / f"{kind}.parquet", [stored])
        ((row_id, pair),) = read_all(path)
        assert isinstance(pair, PreferencePair), pair
        assert row_id == ("n7" if kind == "numbered" else "plain.parquet:0")
    assert "are not read" not in caplog.text


def test_stored_log_probs_are_said_not_to_be_used(tmp_path: Path, caplog) -> None:
    """Catches: the hope that a release's cache saves the reference pass."""
    say_once.cache_clear()
    list_slices(write_format(tmp_path, "muffin_cache"))
    assert "They are not used, because they were made on randomly cropped" in caplog.text


def test_two_formats_that_fit_alike_are_named(tmp_path: Path) -> None:
    """Catches: one of two possible readings, chosen in silence."""
    row = {"conversations": [{"from": "human", "value": "What?"}], "messages": [], "image": "a.png"}
    row["conversations"].append({"from": "gpt", "value": "A star."})
    row["messages"] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = jsonl(tmp_path / "x.jsonl", [row])
    with pytest.raises(DataError, match=r"conversations \(1 of 1\), messages \(1 of 1\)"):
        list_slices(path, examples=True)
    assert list_slices(path, examples=True, format="messages")


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("rejected_images", ["b.png"], "unsupported_field"),
        ("tools", '[{"name": "search"}]', "unsupported_field"),
        ("videos", ["a.mp4"], "unsupported_field"),
        ("weight", 0.5, "unsupported_field"),
        ("loss", False, "not_learnt"),
        ("images", ["a.png", "b.png"], "multi_image"),
    ],
)
def test_a_field_of_use_costs_its_row(column: str, value: object, code: str, tmp_path) -> None:
    """Catches: a field that says how a row is to be used, and is ignored."""
    harmless = {"tools": "[]", "videos": [], "weight": 1.0, "rejected_images": None, "loss": True}
    rows = [plain_row(**{column: value}), plain_row(**harmless)]
    for path in (jsonl(tmp_path / "x.jsonl", rows),):
        (_, error), (_, pair) = read_all(path)
        assert isinstance(pair, PreferencePair), pair
        assert str(error).startswith(f"{code}: "), error


def test_a_linked_image_folder_is_read_below_the_image_root(tmp_path: Path) -> None:
    """Catches: pictures on another disk, which the data's folder links to, refused for good."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "b.png").write_bytes(RED)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "disk")
    path = jsonl(tmp_path / "data" / "x.jsonl", [plain_row(image="images/b.png")])
    ((_, error),) = read_all(path)
    assert str(error).startswith("image_path: ")
    options = ReadOptions(image_root=str(tmp_path / "disk"))
    for image in ("images/b.png", "b.png", str(tmp_path / "disk" / "b.png")):
        jsonl(path, [plain_row(image=image)])
        ((_, pair),) = read_all(path, options=options)
        assert isinstance(pair, PreferencePair) and pair.image == RED
    digest = data_digest(path, options=options)
    (tmp_path / "disk" / "b.png").write_bytes(b"another")
    assert data_digest(path, options=options) != digest


def test_a_data_set_in_arrow_files_is_told_the_way(tmp_path: Path) -> None:
    """Catches: `dataset_info.json` read as rows, and a hint to map its columns."""
    rows = datasets.Dataset.from_list([plain_row()])
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "splits")
    for name in ("one", "splits"):
        with pytest.raises(DataError, match=r"`save_to_disk`.*`to_parquet\(FILE\)`"):
            list_slices(tmp_path / name)


def test_examples_of_fine_tuning_are_told_their_command(tmp_path: Path) -> None:
    """Catches: a hint to map a column of pairs that the file cannot have."""
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    path = jsonl(tmp_path / "x.jsonl", [{"messages": turns, "images": ["a.png"]}])
    with pytest.raises(DataError, match="The file fits messages, .*`rlhfv-ray sft`"):
        list_slices(path)
    assert list_slices(path, examples=True)[0].format == "messages"
