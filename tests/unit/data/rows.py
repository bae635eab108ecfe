"""Rows and files of preference pairs that the tests of reading and writing share."""

import base64
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rlhfv_ray.data import (
    list_slices,
    read_slice,
)
from rlhfv_ray.errors import DataError
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


def asks(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


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
    rows: list[tuple[str, PreferencePair | DataError]] = []
    for part in list_slices(path, **options):
        rows += read_slice(part)
    return rows


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
        "trl_implicit": (
            "implicit.jsonl",
            {
                "chosen": [USER, *says(CHOSEN)],
                "rejected": [USER, *says(REJECTED)],
                "images": ["a.png"],
            },
        ),
        "trl_parquet": ("trl.parquet", trl_row(images=[{"bytes": RED, "path": None}])),
        "llamafactory": ("share.json", [{**share, "images": ["a.png"]}]),
        "llamafactory_messages": (
            "messages.json",
            [
                {
                    "messages": swift[:-1],
                    "chosen": {"role": "assistant", "content": CHOSEN},
                    "rejected": {"role": "assistant", "content": REJECTED},
                    "images": ["a.png"],
                }
            ],
        ),
        "swift": (
            "swift.jsonl",
            {"messages": swift, "rejected_response": REJECTED, "images": ["a.png"]},
        ),
    }[case]
    if name.endswith(".parquet") and isinstance(row, dict):
        return parquet(folder / name, [row])
    (folder / name).write_text(row if isinstance(row, str) else json.dumps(row))
    return folder / name
