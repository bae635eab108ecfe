"""All formats give the same pair, and a bad row of each kind says why it is unusable."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhfv_ray.data import ReadOptions, list_slices, load_pairs
from rlhfv_ray.data.files.image_sources import ImageRoots
from rlhfv_ray.data.pair_formats import FORMATS, Format, read_row
from rlhfv_ray.data.row_fields import Row
from rlhfv_ray.data.sft_formats import read_example
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import PreferencePair
from tests.unit.data.rows import (
    CHOSEN,
    ORIGIN,
    QUESTION,
    RED,
    REJECTED,
    TEXTS,
    USER,
    asks,
    jsonl,
    only_error,
    parquet,
    plain_row,
    read_all,
    rlhfv_row,
    says,
    trl_row,
    tsv_line,
    write_format,
)

CASES = {
    "rlhfv": "rlhfv",
    "muffin_cache": "rlhfv",
    "rlaifv": "rlaifv",
    "muffin_tsv": "muffin_tsv",
    "trl": "trl",
    "trl_plain": "trl",
    "trl_implicit": "trl_implicit",
    "trl_parquet": "trl",
    "llamafactory": "llamafactory",
    "llamafactory_messages": "llamafactory",
    "swift": "swift",
}


def no_fields(row: Row) -> None:
    """Read a row, and forget to return it."""


def test_a_format_whose_function_returns_nothing_is_no_rows_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches: every row set aside as a bad one, with no word of the function that is wrong."""
    wrong = {"trl": Format((), no_fields)}  # pyright: ignore
    monkeypatch.setattr("rlhfv_ray.data.pair_formats.FORMATS", wrong)
    monkeypatch.setattr("rlhfv_ray.data.sft_formats.EXAMPLE_FORMATS", wrong)
    for read in (read_row, read_example):
        with pytest.raises(ConfigError, match="test_pair_formats:no_fields must .* not NoneType"):
            read({"id": "1"}, format="trl", roots=ImageRoots(()), fallback_id="1")


def test_a_prompt_that_is_missing_is_not_taken_for_one_inside_the_answers(tmp_path: Path) -> None:
    """Catches: all rows set aside, where a column's name had to be mapped."""
    row = plain_row()
    row["instruction"] = row.pop("prompt")
    path = jsonl(tmp_path / "x.jsonl", [row])
    with pytest.raises(DataError, match="column question is missing.*--data.columns question=NAME"):
        list_slices(path)
    ((_, pair),) = read_all(path, options=ReadOptions(columns=("question=instruction",)))
    assert isinstance(pair, PreferencePair)
    assert (pair.question, pair.chosen) == (QUESTION, CHOSEN)


def test_a_prompt_inside_the_answers_is_what_both_share(tmp_path: Path) -> None:
    """Catches: an earlier answer scored as the chosen one; answers to two questions compared."""
    talk = [{"role": "system", "content": "Be brief."}, USER, *says("A cat."), asks("And then?")]
    row = {"chosen": [*talk, *says(CHOSEN)], "rejected": [*talk, *says(REJECTED)]}
    other = {**row, "rejected": [*talk[:-1], asks("And now?"), *says(REJECTED)]}
    rows = [{**row, "images": ["a.png"]}, {**other, "images": ["a.png"]}]
    (_, pair), (_, error) = read_all(jsonl(tmp_path / "x.jsonl", rows))
    assert isinstance(pair, PreferencePair)
    assert (pair.system, pair.history) == ("Be brief.", ((QUESTION, "A cat."),))
    assert (pair.question, pair.chosen, pair.rejected) == ("And then?", CHOSEN, REJECTED)
    assert "differ before their last answers" in str(error)


def test_an_image_at_an_address_is_told_to_be_stored(tmp_path: Path) -> None:
    """Catches: `--data.image-root` advised for a picture that has to be downloaded."""
    row = trl_row(images=["https://images.example/a.png"])
    error = only_error(jsonl(tmp_path / "x.jsonl", [row, trl_row()]))
    assert "is an address, and nothing is downloaded" in error and "--data" not in error


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
    assert message.endswith("(x.parquet row 1)")
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
        ({"prompt": [USER, *says("A cup."), USER]}, "multi_image"),
        ({"prompt": [USER, USER]}, "bad_roles"),
        ({"prompt": [SYSTEM, USER], "system": "Be long."}, "bad_row"),
        ({"chosen": [USER, *says(CHOSEN)]}, "multi_turn"),
        ({"chosen": []}, "empty_answer"),
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


def test_a_format_cannot_drop_what_a_row_asks_for(monkeypatch) -> None:
    """Catches: a new format that returns common fields only, so that a weight is lost silently."""
    names = ("question", "chosen", "rejected", "image")
    narrow = Format(names, lambda row: {name: row.get(name) for name in names})
    monkeypatch.setitem(FORMATS, "narrow", narrow)
    row = {**plain_row(), "image": RED, "weight": 0.5}
    _, error = read_row(row, format="narrow", roots=ImageRoots(()), fallback_id="1")
    assert isinstance(error, DataError) and "weight" in str(error)
