"""Reading and writing preference pairs: six formats, bad rows of each kind, slices."""

import base64
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rlhfv_ray.data import (
    Slice,
    audit_pairs,
    data_digest,
    list_slices,
    load_pairs,
    read_slice,
    write_pairs,
)
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import PreferencePair


def _png(colour: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED = _png("red")
QUESTION, CHOSEN, REJECTED = "What is on the table?", "A red cup. 你好 🙂", "A red cup and a dog."
TEXTS = {"question": QUESTION, "chosen": CHOSEN, "rejected": REJECTED}
SPLIT = '{"model": "Muffin", "type": "question_answering"}'
ORIGIN = {
    "ds_name": "RLHF-V",
    "origin_dataset": "VQAv2",
    "origin_split": SPLIT,
    "image_path": "train/1.jpg",
}
USER = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}


def says(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def rlhfv_row(idx: int = 7, **texts: Any) -> dict[str, Any]:
    return {
        **ORIGIN,
        "image": {"bytes": RED, "path": None},
        "text": json.dumps({**TEXTS, **texts}),
        "idx": idx,
    }


def trl_row(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": [USER],
        "chosen": says(CHOSEN),
        "rejected": says(REJECTED),
        "images": ["a.png"],
        **changes,
    }


def plain_row(**changes: Any) -> dict[str, Any]:
    return {"prompt": QUESTION, "chosen": CHOSEN, "rejected": REJECTED, "image": "a.png", **changes}


def parquet(path: Path, rows: Sequence[dict[str, Any]], **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, **options)
    return path


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path.parent / "a.png").write_bytes(RED)
    return path


def tsv_line(
    text: object = (QUESTION, CHOSEN, REJECTED), *, image: str | None = None, idx: int = 7
) -> str:
    def code(value: str) -> str:
        return base64.b64encode(value.encode()).decode()

    image = base64.b64encode(RED).decode() if image is None else image
    values = [
        "RLHF-V",
        image,
        code(json.dumps(text)),
        "VQAv2",
        code(SPLIT),
        str(idx),
        "train/1.jpg",
    ]
    return "\t".join(values) + "\n"


def read_all(path: Path, **options: Any) -> list[tuple[str, PreferencePair | DataError]]:
    return [item for part in list_slices(path, **options) for item in read_slice(part)]


def only_error(path: Path) -> str:
    """Message of the one bad row; the row after it must still be read."""
    (_, error), (_, good) = read_all(path)
    assert isinstance(good, PreferencePair)
    assert isinstance(error, DataError)
    return str(error)


def write_format(folder: Path, case: str) -> Path:
    """One row in the layout of each format."""
    (folder / "a.png").write_bytes(RED)
    share: dict[str, Any] = {
        key: {"from": "gpt", "value": TEXTS[key]} for key in ("chosen", "rejected")
    }
    share["conversations"] = [{"from": "human", "value": f"<image>{QUESTION}"}]
    swift = [
        {"role": "user", "content": f"<image>\n{QUESTION}"},
        {"role": "assistant", "content": CHOSEN},
    ]
    name, row = {
        "rlhfv": ("rlhfv.parquet", rlhfv_row()),
        "muffin_cache": (
            "ref_with_logp.parquet",
            rlhfv_row(logps=[-1.0, -0.5, [-1.0], -2.0, -1.0, [-2.0]]),
        ),
        "rlaifv": (
            "rlaifv.parquet",
            {**ORIGIN, **TEXTS, "image": {"bytes": RED}, "idx": 7, "logps": '{"logps": []}'},
        ),
        "muffin_tsv": ("rows.tsv", tsv_line((QUESTION, CHOSEN, REJECTED, [-1.0]))),
        "trl": ("trl.jsonl", trl_row()),
        "trl_plain": ("plain.jsonl", plain_row()),
        "trl_parquet": ("trl.parquet", trl_row(images=[{"bytes": RED, "path": None}])),
        "llamafactory": ("share.json", [{**share, "images": ["a.png"]}]),
        "swift": (
            "swift.jsonl",
            {"messages": swift, "rejected_response": REJECTED, "images": ["a.png"]},
        ),
    }[case]
    if name.endswith(".parquet") and isinstance(row, dict):
        return parquet(folder / name, [row])
    (folder / name).write_text(row if isinstance(row, str) else json.dumps(row))
    return folder / name


CASES = {
    "rlhfv": "rlhfv",
    "muffin_cache": "rlhfv",
    "rlaifv": "rlaifv",
    "muffin_tsv": "muffin_tsv",
    "trl": "trl",
    "trl_plain": "trl",
    "trl_parquet": "trl",
    "llamafactory": "llamafactory",
    "swift": "swift",
}


@pytest.mark.parametrize("case", CASES)
def test_every_format_gives_the_same_pair(case: str, tmp_path: Path) -> None:
    """Bug: chosen and rejected exchanged, a placeholder in the question, the wrong format."""
    path = write_format(tmp_path, case)
    (pair,) = load_pairs(path)
    assert (pair.question, pair.chosen, pair.rejected, pair.image) == (
        QUESTION,
        CHOSEN,
        REJECTED,
        RED,
    )
    assert (pair.chosen_spans, pair.rejected_spans) == (None, None)
    assert list_slices(path)[0].format == CASES[case]
    own = case in ("rlhfv", "muffin_cache", "rlaifv", "muffin_tsv")
    assert pair.id == ("RLHF-V:7" if own else f"{path.name}:0")
    assert pair.origin == (ORIGIN if own else {})
    assert list(load_pairs(path, format=CASES[case])) == [pair]


# Files


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


# Bad rows


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        ({"question": " "}, "empty_question"),
        ({"question": None}, "empty_question"),
        ({"chosen": ""}, "empty_answer"),
        ({"rejected": "\n\t"}, "empty_answer"),
        ({"rejected": f"\n {CHOSEN} "}, "equal_answers"),
        ({"chosen": 3}, "bad_row"),
        ({"chosen": "half \ud800 pair"}, "bad_text"),
        ({"chosen": "NUL \0"}, "bad_text"),
        ({"chosen_spans": [[0, 99]]}, "bad_spans"),
        ({"chosen_spans": [[-1, 2]]}, "bad_spans"),
        ({"rejected_spans": [[2, 2]]}, "bad_spans"),
        ({"rejected_spans": [[1.5, 2]]}, "bad_spans"),
        ({"rejected_spans": "all"}, "bad_spans"),
    ],
)
def test_bad_texts(texts: dict[str, Any], code: str, tmp_path: Path) -> None:
    """Bug: a pair without signal, or one that fails later on a worker, is trained on."""
    path = parquet(tmp_path / "x.parquet", [rlhfv_row(1, **texts), rlhfv_row(2)])
    message = only_error(path)
    assert message.startswith(f"{code}: ")
    assert message.endswith("(x.parquet row 0)")
    with pytest.raises(DataError, match=code):
        list(load_pairs(path))


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", "null", "[" * 100_000, '{"question": "q"', None, '[{"from": "human"}]']
)
def test_bad_json_text(text: str | None, tmp_path: Path) -> None:
    """Bug: one malformed cell (or one nested too deep) ends the job."""
    row = {**rlhfv_row(1), "text": text}
    only_error(parquet(tmp_path / "x.parquet", [row, rlhfv_row(2)]))
    assert read_all(tmp_path / "x.parquet")[0][0] == "RLHF-V:1"  # the id is known all the same


@pytest.mark.parametrize(
    "image", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}]
)
def test_missing_image(image: object, tmp_path: Path) -> None:
    """Bug: None reaches the image decoder."""
    assert only_error(
        parquet(tmp_path / "x.parquet", [{**rlhfv_row(1), "image": image}, rlhfv_row(2)])
    ).startswith("image_missing: ")


def test_invalid_utf8_in_parquet_spoils_its_row_only(tmp_path: Path) -> None:
    """Bug: one mis-encoded cell fails the batch of rows around it."""
    raw = pa.array([b"\xff\xfe", json.dumps(TEXTS).encode()])
    text = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"image": pa.array([RED, RED]), "text": text}), tmp_path / "x.parquet")
    assert only_error(tmp_path / "x.parquet").startswith("bad_encoding: ")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"prompt": "q", "cho\n', "bad_json"),
        (b"\xff\xfe{}\n", "bad_encoding"),
        (b"\0\0\0\n", "bad_json"),
        (b"[" * 100_000 + b"\n", "bad_json"),
        (b'"text"\n', "bad_row"),
        (b"{}\n", "image_missing"),
    ],
)
def test_bad_line_is_named_by_file_and_line(line: bytes, code: str, tmp_path: Path) -> None:
    """Bug: a torn write or a foreign encoding stops the job without a place to look."""
    path = jsonl(tmp_path / "x.jsonl", [plain_row()])
    path.write_bytes(path.read_bytes() + line + path.read_bytes())
    (_, first), (row_id, error), (_, last) = read_all(path)
    assert isinstance(first, PreferencePair)
    assert isinstance(last, PreferencePair)
    assert row_id == "x.jsonl:1"
    assert str(error).startswith(f"{code}: ")
    assert str(error).endswith("(x.jsonl:2)")


@pytest.mark.parametrize(
    "line",
    [
        "one\ttwo\n",
        tsv_line(image="not base64!"),
        tsv_line(image=""),
        tsv_line([QUESTION, CHOSEN]),
        tsv_line(
            [
                {"from": "human", "value": QUESTION},
                {"from": "gpt", "value": CHOSEN},
                {"from": "human", "value": ""},
            ]
        ),
    ],
)
def test_bad_tsv_line(line: str, tmp_path: Path) -> None:
    """Bug: a fine-tuning file is read as preferences; a bad cell raises binascii.Error."""
    (tmp_path / "x.tsv").write_text(line + tsv_line())
    assert only_error(tmp_path / "x.tsv").endswith("(x.tsv:1)")


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"prompt": [USER, *says("A cup."), USER]}, "multi_turn"),
        ({"prompt": [SYSTEM, USER]}, "multi_turn"),
        ({"system": "Be brief."}, "multi_turn"),
        ({"chosen": [USER, *says(CHOSEN)]}, "multi_turn"),
        ({"chosen": []}, "multi_turn"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]},
            "multi_image",
        ),
        ({"images": ["a.png", "a.png"]}, "multi_image"),
        ({"images": []}, "image_missing"),
        ({"images": None}, "image_missing"),
        ({"chosen": 5}, "bad_row"),
        ({"chosen": [CHOSEN]}, "bad_row"),
        ({"chosen": [{"role": "assistant", "content": [{"type": "video"}]}]}, "bad_row"),
        ({"chosen": [{"role": ["assistant"], "content": CHOSEN}]}, "multi_turn"),
    ],
)
def test_unsupported_conversations(changes: dict[str, Any], code: str, tmp_path: Path) -> None:
    """Bug: earlier turns, a system prompt or a second image dropped in silence."""
    path = jsonl(tmp_path / "x.jsonl", [{**trl_row(), **changes}, trl_row()])
    assert only_error(path).startswith(f"{code}: ")


# Image paths are untrusted


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("../secret.png", "image_path"),
        ("sub/../../secret.png", "image_path"),
        ("link.png", "image_path"),
        ("linked/secret.png", "image_path"),
        ("{outside}/secret.png", "image_path"),
        ("file://{outside}/secret.png", "image_path"),
        ("http://localhost/secret.png", "image_path"),
        ("C:\\secret.png", "image_path"),
        ("\\\\server\\secret.png", "image_path"),
        ("absent.png", "image_missing"),
        ("loop.png", "image_missing"),
        ("folder", "image_missing"),
        ("pipe", "image_missing"),
        ("a.png\0.jpg", "image_missing"),
        ("half\ud800.png", "image_missing"),
        ("x" * 5000, "image_missing"),
        ("huge.png", "image_too_large"),
    ],
)
def test_image_path_cannot_leave_the_data_folder(path: str, code: str, tmp_path: Path) -> None:
    """Bug: a data set that names a private file, a link, a pipe or a URL gets it read."""
    root = tmp_path / "data"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(RED)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "linked").symlink_to(tmp_path)
    (root / "loop.png").symlink_to("loop.png")
    os.mkfifo(root / "pipe")
    with (root / "huge.png").open("wb") as huge:
        huge.truncate(2**30)
    named = path.replace("{outside}", str(tmp_path))
    message = only_error(jsonl(root / "x.jsonl", [plain_row(image=named), plain_row()]))
    assert message.startswith(f"{code}: ")
    assert "half\ud800" not in message  # it must be printable


def test_absolute_path_inside_a_parquet_image_is_refused(tmp_path: Path) -> None:
    """Bug: {"bytes": None, "path": "/..."} opens any local file."""
    (tmp_path / "a.png").write_bytes(RED)
    for path, expected in ((str(tmp_path / "a.png"), DataError), ("a.png", PreferencePair)):
        row = {**rlhfv_row(), "image": {"bytes": None, "path": path}}
        ((_, pair),) = read_all(parquet(tmp_path / "x.parquet", [row]))
        assert isinstance(pair, expected)


def test_links_and_folders_inside_the_root_are_followed(tmp_path: Path) -> None:
    """Bug: a data set with its own image folder is refused."""
    path = jsonl(tmp_path / "x.jsonl", [plain_row(image="images/./b.png")])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.png").symlink_to(tmp_path / "a.png")
    assert next(load_pairs(path)).image == RED


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
    by_slice = {part.index: [row_id for row_id, _ in read_slice(part)] for part in reversed(parts)}
    assert [row_id for part in parts for row_id in by_slice[part.index]] == ids
    assert [len(by_slice[part.index]) for part in parts] == [
        part.stop - part.start for part in parts
    ]


def test_a_row_range_across_row_groups_is_read_exactly(tmp_path: Path) -> None:
    """Bug: a slice cut by another rule than ours reads whole row groups."""
    path = make_rows(tmp_path, "parquet", 23)  # groups of 7
    part = Slice(0, str(path), "rlhfv", 5, 16)
    assert [row_id for row_id, _ in read_slice(part)] == [f"RLHF-V:{idx}" for idx in range(5, 16)]


def test_big_units_are_not_cut_into_crumbs(tmp_path: Path) -> None:
    """Bug: 1-row slices of one row group each decode the whole group: quadratic reading."""
    assert len(list_slices(make_rows(tmp_path, "one_group", 64), rows=1)) == 16
    assert len(list_slices(make_rows(tmp_path, "array", 64), rows=1)) == 16


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


# Writing


def example_pairs() -> list[PreferencePair]:
    return [
        PreferencePair("RLHF-V:7", RED, QUESTION, CHOSEN, REJECTED, origin=ORIGIN),
        PreferencePair(
            "rows.jsonl:3",
            b"not checked here",
            " q ",
            "a\r\n",
            "b\t\u2028",
            ((0, 1),),
            ((0, 1), (1, 2)),
        ),
        PreferencePair("scene", RED, "q", "a", "مرحبا", (), None, {"seed": "3", "image_path": ""}),
    ]


def test_round_trip_is_identical(tmp_path: Path) -> None:
    """Bug: id, spans, whitespace, or an origin key lost on the way."""
    write_pairs(example_pairs(), tmp_path / "new" / "pairs.parquet")
    assert list(load_pairs(tmp_path / "new")) == example_pairs()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["pairs.parquet"]


def test_written_layout_is_the_released_one(tmp_path: Path) -> None:
    """Bug: other tools cannot read what we write."""
    write_pairs(example_pairs(), tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.schema.names == [
        "ds_name",
        "image",
        "text",
        "origin_dataset",
        "origin_split",
        "idx",
        "image_path",
    ]
    assert table["idx"].to_pylist() == [7, 3, 2]
    text = json.loads(table["text"][0].as_py())
    assert {name: text[name] for name in TEXTS} == TEXTS
    datasets = pytest.importorskip("datasets")
    features = datasets.Features.from_arrow_schema(table.schema)
    assert isinstance(features["image"], datasets.Image)
    assert features["idx"] == datasets.Value("int64")


def test_written_files_have_small_row_groups(tmp_path: Path) -> None:
    """Bug: one row group, of which each slice decodes all."""
    pair = example_pairs()[0]
    write_pairs((pair for _ in range(600)), tmp_path / "x.parquet")
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    assert [metadata.row_group(group).num_rows for group in range(3)] == [256, 256, 88]


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Bug: half a file under the final name."""
    write_pairs(example_pairs(), tmp_path / "x.parquet")
    bad = PreferencePair("bad", RED, QUESTION, CHOSEN, CHOSEN)
    with pytest.raises(DataError, match=r"equal_answers.*'bad'"):
        write_pairs([example_pairs()[0], bad], tmp_path / "x.parquet")
    assert list(load_pairs(tmp_path / "x.parquet")) == example_pairs()
    assert len(list(tmp_path.iterdir())) == 1


def test_no_pairs_is_a_readable_file(tmp_path: Path) -> None:
    """Bug: an empty result has no schema."""
    write_pairs([], tmp_path / "x.parquet")
    assert list(load_pairs(tmp_path / "x.parquet")) == []


# Audit and digest


def test_audit_counts_what_is_there(tmp_path: Path) -> None:
    """Bug: duplicates and unusable rows are found after hours of training."""
    rows = [
        plain_row(id="a", chosen="one two three", rejected="one"),
        plain_row(id="a", chosen="one", rejected="one two"),
        plain_row(id="b", chosen=""),
        plain_row(id="c", image="absent.png"),
        plain_row(id="d", image="broken.png"),
    ]
    path = jsonl(tmp_path / "x.jsonl", rows)
    (tmp_path / "broken.png").write_bytes(b"broken")
    audit = audit_pairs(list_slices(path))
    assert (audit.rows, audit.usable, audit.duplicated_ids) == (5, 3, ("a",))
    assert audit.unusable == {"empty_answer": 1, "image_missing": 1}
    assert audit.examples["empty_answer"].endswith("(x.jsonl:3)")
    decoded = audit_pairs(list_slices(path), decode=True)
    assert decoded.unusable["image_unreadable"] == 1
    assert decoded.chosen is not None
    assert (decoded.chosen.mean, decoded.chosen.median, decoded.chosen.longest) == (
        2,
        2,
        3,
    )  # 3 and 1 words
    assert audit_pairs([]).chosen is None


def test_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    """Bug: changed data passes for the old one."""
    path = jsonl(tmp_path / "x.jsonl", [plain_row()])
    first = data_digest(tmp_path)
    assert data_digest(path) == first
    path.rename(tmp_path / "y.jsonl")
    second = data_digest(tmp_path)
    jsonl(tmp_path / "y.jsonl", [plain_row(), plain_row()])
    assert len({first, second, data_digest(tmp_path)}) == 3


def test_import_is_light() -> None:
    """Bug: every reading worker pays for ray or transformers."""
    heavy = {"ray", "transformers", "datasets"}
    code = f"import sys, rlhfv_ray.data; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
