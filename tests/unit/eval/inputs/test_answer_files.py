"""Answers from files, in every published layout."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.inputs.answer_files import read_answer_file
from rlhfv_ray.errors import DataError
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
            r"rows such as \{'question_id': '1'\}, the benchmark has 42, 7, 1234",
        ),
        ([(42, "a"), (7, None), (1234, "c")], "row 2, question_id 7: text = None is no text"),
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


CASES = Path(__file__).parent / "answer_files"


def asked(*questions: str, ids: Sequence[str]) -> list[Prompt]:
    return [Prompt(name, b"", question) for name, question in zip(ids, questions, strict=True)]


KETTLE, CANOE = "Is there a kettle in the image?", "Is there a canoe in the image?"
POPE_PROMPTS = asked(KETTLE, CANOE, ids=("random-1", "random-2"))
DESCRIBED = "Describe the picture in detail."


@pytest.mark.parametrize(
    ("name", "prompts", "texts", "said"),
    [
        ("pope_answers_readme.jsonl", POPE_PROMPTS, ["yes", "no"], "matched by place"),
        ("pope_answers_llava.jsonl", POPE_PROMPTS, ["Yes", "No, there is none."], ""),
        (
            "amber_answers.json",
            asked("Describe this image.", "Describe this image.", ids="12"),
            ["A kettle stands on a stove.", "Two canoes lie on the grass."],
            "",
        ),
        (
            "chair_opera_answers.jsonl",
            asked(DESCRIBED, DESCRIBED, ids="12"),
            ["A kettle on a stove beside a window.", "Two people carry a canoe."],
            "",
        ),
        ("lmms_eval_samples.jsonl", POPE_PROMPTS, ["Yes", "No"], "has no questions to compare"),
        (
            "llava_bench_answers.jsonl",
            asked("What stands on the stove?", "Where are the canoes?", ids="01"),
            ["A kettle.", "On the grass."],
            "",
        ),
        (
            "muffin_object_halbench_answers.jsonl",
            asked(DESCRIBED, DESCRIBED, ids=("391895", "60623")),
            ["A kettle stands on a stove.", "Two canoes lie on the grass."],
            "matched by place",
        ),
        (
            "muffin_mmhal_answers.jsonl",
            asked("What is on the stove?", "How many canoes are there?", ids=("ef01", "aa02")),
            ["A kettle.", "Two."],
            "matched by place",
        ),
    ],
)
def test_published_layouts(name, prompts, texts, said, caplog) -> None:
    """Catches: a published file of answers that is refused; a match that nobody is told of."""
    answers = read_answer_file(str(CASES / name), prompts)
    assert [answer.text for answer in answers] == texts
    assert [answer.id for answer in answers] == [prompt.id for prompt in prompts]
    assert said in caplog.text if said else not caplog.records


def test_a_row_without_a_text_is_named() -> None:
    """Catches: an error that does not say which of thousands of rows it is."""
    with pytest.raises(DataError, match="row 1, id 1: response = None is no text"):
        read_answer_file(str(CASES / "answer_is_null.json"), asked("?", "?", ids="12"))


def test_places_count_only_where_questions_agree(tmp_path: Path, caplog) -> None:
    """Catches: answers given to other questions because there are as many; row numbers that
    happen to be ids of the benchmark and win over questions that agree.
    """
    rows = [{"question": "Is there a dog?", "answer": "yes"}, {"question": CANOE, "answer": "no"}]
    with pytest.raises(DataError, match="row 1 asks 'Is there a dog\\?', and the benchmark asks"):
        read_answer_file(write(tmp_path / "a.jsonl", rows), POPE_PROMPTS)
    prompts = asked("One?", "Two?", ids="10")
    numbered = [
        {"question_id": place, "prompt": prompt.question, "text": f"to {prompt.id}"}
        for place, prompt in enumerate(prompts)
    ]
    answers = read_answer_file(write(tmp_path / "b.jsonl", numbered), prompts)
    assert [answer.text for answer in answers] == ["to 1", "to 0"]
    assert "matched by place" in caplog.text


def test_groups_in_one_file_and_in_one_each(tmp_path: Path) -> None:
    """Catches: POPE's numbers, which begin again in each group, taken for repeated ids."""
    groups = ("random", "popular")
    prompts = asked(KETTLE, CANOE, CANOE, KETTLE, ids=[f"{g}-{n}" for g in groups for n in (1, 2)])
    rows = [
        {"question_id": prompt.id[-1], "prompt": prompt.question, "text": prompt.id}
        for prompt in prompts
    ]
    expected = [prompt.id for prompt in prompts]
    answers = read_answer_file(write(tmp_path / "all.jsonl", rows), prompts)
    assert [answer.text for answer in answers] == expected
    folder = tmp_path / "pope"
    folder.mkdir()
    for place, group in enumerate(groups):
        write(folder / f"llava_{group}.jsonl", rows[2 * place : 2 * place + 2][::-1])
    answers = read_answer_file(str(folder), prompts)
    assert [answer.text for answer in answers] == expected
    (folder / "llava_popular.jsonl").unlink()
    with pytest.raises(DataError, match="0 files are named after 'popular'"):
        read_answer_file(str(folder), prompts)
