"""Mutated rows of every format: each ends once, as a pair or as a listed row; nothing escapes.

A fixed hundred of each format runs always, two thousand in `make soak`.
"""

import base64
import copy
import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhfv_ray.config import DataConfig
from rlhfv_ray.data import EXAMPLE_FORMATS, FORMATS, list_slices, read_slice
from rlhfv_ray.data.reference_table import EXAMPLES, SCHEMA
from rlhfv_ray.data.row_fields import REASON_LENGTH, USAGE_COLUMNS
from rlhfv_ray.errors import DataError
from rlhfv_ray.inference.model_check import encoded_row
from rlhfv_ray.inference.reference import part_table
from rlhfv_ray.records import EncodedPair
from rlhfv_ray.shapes.scenes import make_scenes, render
from tests.families import gemma3, llava, qwen2_vl

PICTURE = render(make_scenes(1, seed=1)[0])
CODE = base64.b64encode(PICTURE).decode()
QUESTION, CHOSEN, REJECTED = "what is there ?", "a red star .", "a blue ring and a star ."
USER = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
ASSISTANT = {"role": "assistant", "content": CHOSEN}
SHARE = [{"from": "human", "value": f"<image>{QUESTION}"}, {"from": "gpt", "value": CHOSEN}]
OTHER = [SHARE[0], {"from": "gpt", "value": REJECTED}]
TEXTS = {"question": QUESTION, "chosen": CHOSEN, "rejected": REJECTED}
ROWS: dict[str, dict[str, Any]] = {
    "rlhfv": {"image": "a.png", "text": json.dumps(TEXTS), "idx": 1, "ds_name": "d"},
    "rlaifv": {"image": "a.png", **TEXTS, "id": "1", "origin_split": "{}"},
    "trl": {
        "prompt": [{"role": "system", "content": "Be brief."}, USER],
        "chosen": [ASSISTANT],
        "rejected": REJECTED,
        "images": ["a.png"],
    },
    "trl_implicit": {
        "chosen": [USER, ASSISTANT],
        "rejected": [USER, {**ASSISTANT, "content": REJECTED}],
        "images": ["a.png"],
    },
    "llamafactory": {
        "conversations": [*SHARE, {"from": "human", "value": "and ?"}],
        "chosen": SHARE[1],
        "rejected": OTHER[1],
        "image": CODE,
    },
    "povid": {"conversations": SHARE, "rejected_conversations": OTHER, "image": "a.png"},
    "swift": {
        "messages": [USER, {**ASSISTANT, "loss": True}],
        "rejected_response": REJECTED,
        "images": [{"path": "a.png"}],
    },
    "label_studio": {
        "data": {
            **{"image": f"data:image/png;base64,{CODE}", **TEXTS, "id": "1"},
            **{"earlier_turns": [["and ?", "nothing"]], "chosen_spans": [[0, 2]]},
        },
        "annotations": [],
    },
    "conversations": {"conversations": SHARE, "image": f"data:image/png;base64,{CODE}"},
    "unimm_chat": {"conversation": SHARE, "image": f"data:image/png;base64,{CODE}"},
    "messages": {
        "messages": [USER, ASSISTANT, {"role": "user", "content": "and ?"}, ASSISTANT],
        "images": ["a.png"],
    },
    "completion": {"prompt": [USER], "completion": CHOSEN, "image": "a.png"},
    "vqa": {"image": "a.png", "question": QUESTION, "answers": ["two", {"answer": "two"}]},
    "caption": {"image": "a.png", "caption": [CHOSEN]},
}
HOSTILE: list[Any] = [
    *(None, True, False, 0, 3, -1, 2**70, 1.5, float("nan"), "", " ", "\0", "\ud83d", "x" * 9000),
    *([], {}, [[]], {"a": {}}, ["a", "b"], [None], [[["deep"]]] * 9, {"type": "video"}),
    *("<image>", "<image><image>", "</s>", "<|image_pad|>", "<start_of_image>", "<s>", "<pad>"),
    *("\ue000", "{{ x }}", "{% raise %}", "שלום", "😀", "\u2028", "\r\n", "a\tb", "\x1b[31m"),
    *("data:image/png;base64,!!!", "../../etc/passwd", "/etc/passwd", "http://x/y.png", "[]"),
    *("a.png", "broken.png", "bomb.png", ".", "assistant", "system", "null", "user"),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a value, with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for container, key in list(found):
        if isinstance(container[key], dict | list):
            found += places(container[key])
    return found


def mutated(row: dict[str, Any], rng: random.Random, hostile: list[Any] = HOSTILE) -> Any:
    """A row with one or two faults, of any type and at any depth."""
    row = copy.deepcopy(row)
    for _ in range(rng.choice((1, 1, 2))):
        container, key = rng.choice(places(row))
        match rng.randrange(5):
            case 0 | 1:
                container[key] = copy.deepcopy(rng.choice(hostile))
            case 2 if isinstance(container[key], str):
                at = rng.randrange(len(container[key]) + 1)
                inserted = str(rng.choice(hostile))
                container[key] = container[key][:at] + inserted + container[key][at:]
            case 3 if isinstance(container, dict):
                container[rng.choice([*USAGE_COLUMNS, "system", "loss", "role"])] = rng.choice(
                    hostile
                )
            case _ if isinstance(container, list):
                container.insert(key, copy.deepcopy(container[key]))
            case _:
                del container[key]
        if not row:
            return row
    return row


def of_its_type(value: Any, rng: random.Random) -> Any:
    """A value that a typed column can hold in another's place."""
    if rng.random() < 0.02:
        return None
    if rng.random() < 0.7 and not isinstance(value, dict | list):
        return value
    match value:
        case str():
            texts = [item for item in HOSTILE if isinstance(item, str) and item != "\ud83d"]
            return rng.choice([value, value, value, rng.choice(texts), value + rng.choice(texts)])
        case bytes():
            at = rng.randrange(len(value))
            return rng.choice([value, value, value[:at], value[:at] + b"\xff" + value[at + 1 :]])
        case dict():
            return {key: of_its_type(item, rng) for key, item in value.items()}
        case list():
            return [of_its_type(item, rng) for item in value * rng.choice((*[1] * 20, 0, 2))]
        case int():
            return rng.choice([value, 0, -(2**63), 2**63 - 1])
    return value


def write_jsonl(folder: Path, rows: list[Any], rng: random.Random) -> Path:
    lines = [json.dumps(row) for row in rows]
    for number in range(1, len(lines)):  # torn and broken lines, too
        if rng.random() < 0.2:
            line = lines[number]
            at = rng.randrange(len(line))
            lines[number] = (
                line[:at] + rng.choice(["", '"', "}", "\x00", "\u00e9"]) + line[at + 1 :]
            )
            lines[number] = lines[number] or "{}"
    (folder / "x.jsonl").write_text("\n".join(lines), encoding="latin-1", errors="replace")
    return folder / "x.jsonl"


def write_array(folder: Path, rows: list[Any], rng: random.Random) -> Path:
    (folder / "x.json").write_text(json.dumps(rows, indent=rng.choice([None, 1])))
    return folder / "x.json"


def write_parquet(folder: Path, rows: list[Any], rng: random.Random) -> Path:
    row = {
        key: {"bytes": PICTURE, "path": None} if key == "image" else value
        for key, value in rows[0].items()
    }
    if "images" in row:
        row["images"] = [{"bytes": PICTURE, "path": None}]
    schema = pa.Table.from_pylist([row]).schema
    typed = [row, *({key: of_its_type(row[key], rng) for key in row} for _ in rows[1:])]
    pq.write_table(pa.Table.from_pylist(typed, schema), folder / "x.parquet", row_group_size=40)
    return folder / "x.parquet"


def write_tsv(folder: Path, rows: list[Any], rng: random.Random) -> Path:
    """Muffin's TSV, whose texts are JSON in base64."""
    lines = []
    for number in range(len(rows)):
        texts: Any = mutated(TEXTS, rng) if number else TEXTS
        text = base64.b64encode(json.dumps(texts).encode()).decode()
        values = ["d", CODE, text, "o", "e30=", str(number), "p"]
        if number and rng.random() < 0.4:
            values[rng.randrange(7)] = rng.choice(["", "!", "\x85", "é", "AAAA", "x\ty"])
        lines.append("\t".join(values))
    (folder / "x.tsv").write_text("\n".join(lines), encoding="latin-1")
    return folder / "x.tsv"


# Formats whose row has values of one type in each place, as columns need.
TYPED = ("rlhfv", "rlaifv", "llamafactory", "povid", "conversations", "caption")
CASES: list[tuple[str, Callable[..., Path]]] = [
    *((format, write) for format in ROWS for write in (write_jsonl, write_array)),
    *((format, write_parquet) for format in ROWS if format in TYPED),
    ("muffin_tsv", write_tsv),
]


@functools.cache
def processors() -> list[Any]:
    return [family()[1] for family in (llava, qwen2_vl, gemma3)]


def assert_each_ends_once(
    format: str, write: Callable[..., Path], count: int, folder: Path, *, every: bool
) -> None:
    rng = random.Random(f"{format} {write.__name__} {count}")
    (folder / "a.png").write_bytes(PICTURE)
    (folder / "broken.png").write_bytes(PICTURE[:90])
    (folder / "bomb.png").write_bytes(PICTURE[:16] + b"\xff" * 8 + PICTURE[24:])
    row = ROWS.get(format, {})
    rows = [row, *(mutated(row, rng) if row else {} for _ in range(count - 1))]
    path = write(folder, rows, rng)
    is_example = format not in FORMATS
    shards = list_slices(path, format=format, rows=30, examples=is_example)
    read = [result for part in shards for result in read_slice(part)]
    assert len(read) == count
    ends = []
    for number, (row_id, result) in enumerate(read):
        chosen = processors() if every else [processors()[number % 3]]
        for processor in chosen:
            encoded = encoded_row(result, processor, DataConfig(max_length=600))
            ends.append(encoded if isinstance(encoded, EncodedPair) else (row_id, str(encoded)))
    table = part_table(ends, EXAMPLES if is_example else SCHEMA)  # all can be stored
    assert table.num_rows == len(ends)
    reasons = [end[1] for end in ends if isinstance(end, tuple)]
    assert all("\n" not in text and len(text) < REASON_LENGTH + 80 for text in reasons)
    assert all("x." in text.rpartition("(")[2] for text in reasons)  # each names its place
    assert 0 < len(reasons) < len(ends) - 1
    unforeseen = [text for text in reasons if text.startswith("unexpected")]
    assert unforeseen == []  # a foreseen fault has a reason of its own


@pytest.mark.parametrize(("format", "write"), CASES)
def test_a_hundred_mutated_rows_end_once_each(format, write, tmp_path):
    """Catches: a row that ends the job, at reading or at encoding; one that vanishes."""
    assert_each_ends_once(format, write, 100, tmp_path, every=False)


@pytest.mark.soak
@pytest.mark.parametrize(("format", "write"), CASES)
def test_two_thousand_mutated_rows_end_once_each(format, write, tmp_path):
    """Catches: what a hundred rows do not meet."""
    assert_each_ends_once(format, write, 2000, tmp_path, every=True)


def test_every_format_is_mutated():
    """Catches: a new format that no mutated row is read as."""
    mutated = {format for format, _ in CASES}
    assert mutated == {*FORMATS, *EXAMPLE_FORMATS}, "add a row of the new format to ROWS"


def test_an_error_that_nobody_foresaw_sets_its_row_aside(processor, pairs):
    """Catches: a template's or tokenizer's own error, which would end the job."""
    broken = copy.copy(processor)
    broken.chat_template = "{{ messages[0]['content'] + 1 }}"
    error = encoded_row(pairs[0], broken, DataConfig(max_length=256))
    assert isinstance(error, DataError) and "TypeError" in str(error)
