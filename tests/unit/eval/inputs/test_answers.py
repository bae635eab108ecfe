"""Answers from files in the release's formats, and the requests sent to an endpoint."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.inputs.answers import check_decoding, data_uri, read_answer_file
from rlhfv_ray.config import GenerationConfig
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import Answer, Prompt

PROMPTS = [Prompt(str(number), b"", f"Question {number}?") for number in (42, 7, 1234)]
ANSWERS = [Answer(p.id, p.question, f"Answer {p.id}") for p in PROMPTS]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_formats_of_the_release_in_any_order(tmp_path: Path) -> None:
    """Catches: answers matched by their place in a file; COCO's file names taken for other ids."""
    muffin = [
        {"question_id": int(a.id), "prompt": a.question, "text": a.text, "model_id": "m"}
        for a in ANSWERS
    ]
    coco = [
        {"image_id": f"COCO_val2014_{int(a.id):012d}.jpg", "question": a.question, "answer": a.text}
        for a in ANSWERS
    ]
    padded = [
        {"image_id": f"{int(a.id):012d}", "question_id": 0, "answer": a.text} for a in ANSWERS
    ]
    for rows in (muffin, coco, padded):
        for order in (rows, rows[::-1]):
            assert read_answer_file(write(tmp_path / "a.jsonl", order), PROMPTS) == ANSWERS
    mmhal = [
        {"image_id": a.id, "question": a.question, "gt_answer": "x", "model_answer": a.text}
        for a in ANSWERS
    ]
    (tmp_path / "list.json").write_text(json.dumps(mmhal))
    assert read_answer_file(str(tmp_path / "list.json"), PROMPTS) == ANSWERS


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(42, "a"), (7, "b")], r"2 rows for 3 prompts; 1 prompts are without an answer \(1234\)"),
        ([(42, "a"), (7, "b"), (7, "c"), (1234, "d")], "two rows have question_id 7"),
        ([(42, "a"), (7, "b"), (1234, "c"), (9, "d")], "its ids are not the benchmark's"),
        (
            [(1, "a"), (2, "b"), (3, "c")],
            r"rows such as \{'question_id': 1\}, the benchmark has 42, 7, 1234",
        ),
        ([(42, "a"), (7, None), (1234, "c")], "no field holds a text in every row"),
    ],
)
def test_what_does_not_fit_is_refused(
    rows: list[tuple[int, str | None]], message: str, tmp_path: Path
) -> None:
    """Catches: `zip` over lists of unequal length, a missing answer scored as an empty one."""
    path = write(
        tmp_path / "a.jsonl", [{"question_id": number, "text": text} for number, text in rows]
    )
    with pytest.raises(DataError, match=message):
        read_answer_file(path, PROMPTS)


def test_a_file_that_is_cut_off_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question_id": 42, "text": "a"}\n{"question_id": 7, "te')
    with pytest.raises(DataError, match=r"a\.jsonl', line 2 is no JSON.*cut off"):
        read_answer_file(str(path), PROMPTS)
    with pytest.raises(DataError, match="cannot be read"):
        read_answer_file(str(tmp_path / "none"), PROMPTS)


def test_other_questions_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"question_id": a.id, "text": a.text, "prompt": f"<image>\n{a.question}"} for a in ANSWERS
    ]
    read_answer_file(write(tmp_path / "a.jsonl", rows), PROMPTS)
    assert not caplog.records
    rows[1]["prompt"] = "Another?"
    read_answer_file(write(tmp_path / "a.jsonl", rows), PROMPTS)
    assert (
        "1 of 3 answers are to another question" in caplog.text
        and "first 7: 'Another?'" in caplog.text
    )


def test_images_travel_as_they_are_or_as_png() -> None:
    """Catches: a kind that servers do not know; a broken image that is paid for."""
    for kind, sent in (("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "WEBP"), ("BMP", "PNG")):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(buffer, format=kind)
        head, data = data_uri(buffer.getvalue()).split(",")
        assert head == f"data:image/{sent.lower()};base64"
        back = base64.b64decode(data)
        assert (back == buffer.getvalue()) == (kind == sent)
        assert Image.open(io.BytesIO(back)).format == sent
    with pytest.raises(DataError, match="image_unreadable"):
        data_uri(b"no image")


def test_decoding_that_an_endpoint_does_not_know_is_refused() -> None:
    check_decoding(GenerationConfig(max_new_tokens=9, temperature=0.5))
    for changed in (
        {"beams": 3},
        {"repetition_penalty": 1.1},
        {"stop": ("#",)},
        {"temperature": 0.5, "top_p": 0.5},
    ):
        with pytest.raises(ConfigError, match="max_new_tokens and generation.temperature alone"):
            check_decoding(GenerationConfig(**changed))
