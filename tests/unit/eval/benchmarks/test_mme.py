"""MME's hallucination subset in its three layouts, by the formulas of its tool, by hand."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from eval.benchmarks.contract import Scores, compare
from eval.benchmarks.mme import MME, TASKS, read_answer
from eval.config import MMEConfig
from eval.inputs.answer_files import read_answer_file
from rlhfv_ray.errors import DataError

IMAGES = ("000000000042.jpg", "000000000007.jpg")
# Answers to the four questions of each task: about image 7 yes, no, then about image 42 yes, no.
ANSWERS = {
    "existence": ("Yes, there is.", "No.", "yes", "no"),  # all right
    "count": ("Yes", "Yes", "No", "no"),  # one right of each image
    "position": ("There is one", "no", "yes", "NO"),  # the first is neither; image 42 is right
    "color": ("no", "yes", "Nothing", "Yes"),  # none right
}


def rows(task: str, image: str) -> list[tuple[str, str]]:
    return [(f"Is it a {task}, {image}?", "Yes"), (f"Is it no {task}, {image}?", "No")]


def tool(folder: Path, answers: dict[str, tuple[str, ...]] | None = None) -> Path:
    folder.mkdir()
    for task in TASKS:
        lines = []
        for image in sorted(IMAGES):
            lines += ["\t".join((image, *row)) for row in rows(task, image)]
        if answers:
            lines = [f"{line}\t{text}" for line, text in zip(lines, answers[task], strict=True)]
        (folder / f"{task}.txt").write_text("\n".join(lines) + "\n")
    return folder


def release(folder: Path, *, inner: bool) -> Path:
    for task in TASKS:
        texts = folder / task / "questions_answers_YN" if inner else folder / task
        images = folder / task / "images" if inner else folder / task
        texts.mkdir(parents=True)
        images.mkdir(exist_ok=True)
        for image in IMAGES:
            lines = "\n".join("\t".join(row) for row in rows(task, image))
            (texts / f"{Path(image).stem}.txt").write_text(lines)
            (images / image).write_bytes(f"{task} {image}".encode())
    return folder


def hub(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    table = [
        {
            "question_id": f"{task}/{image}",
            "image": {"bytes": f"{task} {image}".encode(), "path": image},
            "question": question,
            "answer": truth,
            "category": task,
        }
        for task in (*TASKS, "posters")
        for image in IMAGES
        for question, truth in rows(task, image)
    ]
    parquet.write_table(pa.Table.from_pylist(table), folder / "data" / "test-00000.parquet")
    return folder


def score(tmp_path: Path, answers: dict[str, tuple[str, ...]], name: str = "answers") -> Scores:
    if not (tmp_path / "tool").exists():
        tool(tmp_path / "tool")
    benchmark = MME(MMEConfig(str(tmp_path / "tool")), decoding={})
    folder = tool(tmp_path / name, answers)
    return benchmark.score(read_answer_file(str(folder), benchmark.prompts), {})


def test_every_layout_has_the_same_questions(tmp_path: Path) -> None:
    """Catches: a layout that is not read, other questions than the subset's, images mixed up."""
    folders = [
        tool(tmp_path / "tool"),
        release(tmp_path / "flat", inner=False),
        release(tmp_path / "inner", inner=True),
        hub(tmp_path / "hub"),
    ]
    benchmarks = [MME(MMEConfig(str(folder)), decoding={}) for folder in folders]
    for benchmark in benchmarks[1:]:
        assert benchmark.questions == benchmarks[0].questions
        assert benchmark.prompts == benchmarks[1].prompts
        assert benchmark.has_images and "images" not in benchmark.manifest()
    assert len(benchmarks[0].questions) == 16
    assert benchmarks[0].prompts[0].id == "existence-000000000007_1"
    assert benchmarks[1].prompts[0].image == b"existence 000000000007.jpg"
    assert benchmarks[0].manifest()["images"] == "not given"


def test_scores_by_hand(tmp_path: Path) -> None:
    """Catches: accuracy+ of questions in place of images, a task left out, a sum of all tasks."""
    scores = score(tmp_path, ANSWERS)
    # Right answers: 4 + 2 + 3 + 0 of 16. Images with two: 2 + 0 + 1 + 0 of 8. Yes: 2 + 2 + 1 + 2.
    assert scores.rates() == {
        "accuracy": 9 / 16,
        "accuracy_plus": 3 / 8,
        "yes_rate": 7 / 16,
        "words": 20 / 16,
        "n": 16,
        "missing": 0,
    }
    assert scores.extras == {
        "release_compatible": {
            "existence": 200.0,
            "count": 50.0,
            "position": 75.0 + 50.0,
            "color": 0.0,
            "total": 375.0,
        },
        "neither_yes_nor_no": 1,
    }
    assert scores.answers[0].cluster == scores.answers[1].cluster != scores.answers[2].cluster


def test_two_files_of_answers_are_compared(tmp_path: Path) -> None:
    """Catches: scores without images that are not compared with each other."""
    better = {**ANSWERS, "color": ("yes", "no", "yes", "no")}
    comparison = compare(score(tmp_path, ANSWERS), score(tmp_path, better, "better"))
    assert comparison.change == 4 / 16
    assert comparison.n == 16


@pytest.mark.parametrize(
    ("answer", "reading"),
    [("Yes", True), (" yes", True), ("know", False), ("It: yes", None), ("", None), ("not", False)],
)
def test_answers_are_read_as_the_tool_reads_them(answer: str, reading: bool | None) -> None:
    """Catches: words in place of the first four characters."""
    assert read_answer(answer) is reading


def test_broken_data_is_named(tmp_path: Path) -> None:
    """Catches: a half image that shifts all pairs, and a folder of another benchmark."""
    with pytest.raises(DataError, match="mme.data = '': expected a folder"):
        MME(MMEConfig(), decoding={}).prompts  # noqa: B018
    path = tool(tmp_path / "tool") / "count.txt"
    lines = path.read_text().split("\n")
    path.write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match="count-000000000007: 1 questions; expected 2"):
        MME(MMEConfig(str(tmp_path / "tool")), decoding={}).prompts  # noqa: B018
    path.write_text("\n".join(["7.jpg\tWho?", *lines[1:]]))
    with pytest.raises(DataError, match=r"count.txt, line 1: 2 columns; expected 3"):
        MME(MMEConfig(str(tmp_path / "tool")), decoding={}).prompts  # noqa: B018


def test_a_line_without_an_answer_is_named(tmp_path: Path) -> None:
    """Catches: the evaluation tool's empty files scored as if the truth were the answer."""
    benchmark = MME(MMEConfig(str(tool(tmp_path / "tool"))), decoding={})
    with pytest.raises(DataError, match=r"existence.txt', line 1: 3 columns"):
        read_answer_file(str(tmp_path / "tool"), benchmark.prompts)
