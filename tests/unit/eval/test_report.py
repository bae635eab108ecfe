"""The report against scores built by hand: numbers, tables, figures as files, and the page read back as HTML."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from eval.benchmark import Comparison, Count, JudgedAnswer, Mark, Scores, compare
from eval.chair import AnswerScore, ChairScores
from eval.report import (
    Contents,
    answers_page,
    choose_answers,
    conclusions,
    markdown_table,
    pieces,
    rates_figure,
    summary,
    table,
    training_figure,
)
from eval.statistics import Interval
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer, Prompt

TEXT = "two red dogs & a cat"
CAT = Mark(17, 20, "object")
RED_DOGS = (Mark(0, 12, "attribute"), Mark(0, 12, "number"))


def judged(number: int, *, marks: Sequence[Mark] = (), text: str = TEXT) -> JudgedAnswer:
    """An answer that names a dog (true) and, if marked so, a cat (false); 1 of 2 true objects is named."""
    hallucinated = (("cat", "cat"),) if any(mark.kind == "object" for mark in marks) else ()
    wrong = Count(sum(mark.kind == "attribute" for mark in marks), 1)
    objects = AnswerScore(1 + len(hallucinated), hallucinated, 1, 2)
    answer = Answer(str(number), "What is <here>?", text)
    return JudgedAnswer(answer, objects, 6, tuple(marks), {"wrong_attributes": wrong})


def scores(answers: Sequence[JudgedAnswer]) -> Scores:
    words = 6.0 if answers else None
    return Scores(ChairScores(None, None, None, None, words, len(answers)), tuple(answers), {"benchmark": "pets"})


def prompts(count: int) -> list[Prompt]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="PNG")
    return [Prompt(str(number), buffer.getvalue(), "What is <here>?") for number in range(count)]


@pytest.fixture(scope="module")
def base() -> Scores:
    """Of 10 answers 6 hallucinate a cat; 1 has two other mistakes."""
    return scores([judged(n, marks=[CAT] if n < 6 else RED_DOGS if n == 6 else []) for n in range(10)])


@pytest.fixture(scope="module")
def aligned() -> Scores:
    """Answers 0, 1, 2 got better, 9 got worse: 4 of 10 hallucinate."""
    return scores([judged(n, marks=[CAT] if n in (3, 4, 5, 9) else RED_DOGS if n == 6 else []) for n in range(10)])


@pytest.fixture(scope="module")
def comparison(base: Scores, aligned: Scores) -> Comparison:
    return compare(base, aligned)


def test_summary_is_json_with_fractions(base: Scores, aligned: Scores, comparison: Comparison) -> None:
    found = summary(base, aligned, comparison, seconds={"train": 12.5})
    assert json.loads(json.dumps(found, allow_nan=False)) == found  # a tuple would come back as a list
    assert list(found) == ["base", "aligned", "comparison", "seconds"]
    # 6 of 10 answers; 6 of 16 mentions; 1 of 2 true objects; 1 attribute wrong in 10 phrases
    expected = {"response_rate": 0.6, "response_rate_all": 0.6, "mention_rate": 6 / 16, "object_recall": 0.5}
    details = {"wrong_attributes": 0.1, "words": 6.0, "n": 10}
    assert {name: value for name, value in found["base"].items() if name != "intervals"} == expected | details
    low, high = found["base"]["intervals"]["response_rate"]
    assert low < 0.6 < high
    assert found["comparison"]["relative_reduction"] == pytest.approx(1 - 4 / 6)
    assert found["comparison"]["recall_change_interval"] == [0.0, 0.0]
    # 3 answers got better, 1 worse: 2 * (1 + 4) / 2^4
    assert found["comparison"]["p_value"] == pytest.approx(0.625)
    assert found["seconds"] == {"train": 12.5}


def test_conclusions_say_what_is_not_resolved() -> None:
    resolved = Comparison(0.5, Interval(0.2, 0.7), 0.0004, -0.02, Interval(-0.03, -0.01))
    assert conclusions(resolved, n=96) == [
        "Relative reduction of the response rate: +50.0 % (95 % interval +20.0 to +70.0). "
        "Exact McNemar test: p < 0.001.",
        "Change of object recall: -2.0 points (95 % interval -3.0 to -1.0).",
    ]
    unresolved = Comparison(0.1, Interval(0.0, 0.4), 0.25, 0.01, None)
    reduction, recall = conclusions(unresolved, n=96)
    assert "not resolved at n = 96: the interval includes 0" in reduction and "p = 0.250" in reduction
    assert "+1.0 points, not resolved at n = 96" in recall
    assert all("not defined" in line for line in conclusions(Comparison(None, None, None, None, None), n=0))


def test_markdown_table(base: Scores, aligned: Scores, comparison: Comparison) -> None:
    head, rule, *lines = markdown_table(base, aligned, comparison).splitlines()
    assert {line.count("|") for line in (head, rule, *lines[:6])} == {6}
    # Wilson for 6 of 10 and 4 of 10, z = 1.96
    assert lines[0] == "| response rate | lower | 60.0 (31.3 to 83.2) | 40.0 (16.8 to 68.7) | -20.0 |"
    assert lines[3] == "| object recall | higher | 50.0 (29.9 to 70.1) | 50.0 (29.9 to 70.1) | +0.0 |"
    assert lines[5] == "| words per answer |  | 6.0 | 6.0 | +0.0 |"
    assert "not resolved at n = 10" in lines[7]


def test_terminal_table_shows_the_same(base: Scores, aligned: Scores, comparison: Comparison) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(base, aligned, comparison))
    shown = console.export_text()
    assert "60.0 (31.3 to 83.2)" in shown and "n = 10 answers each" in shown and "not resolved at n = 10" in shown


def test_a_rate_of_nothing_is_no_zero(tmp_path: Path) -> None:
    silent = scores([replace(judged(0), objects=AnswerScore(0, (), 0, 0), details={})])
    lines = markdown_table(silent, silent, compare(silent, silent)).splitlines()
    assert lines[2] == "| response rate | lower | none counted | none counted |  |"
    rates_figure(silent, silent, tmp_path / "rates.png")


def check_png(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= 1500 and image.height >= 500
        colors = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colors is not None and len(colors) > 50  # something is drawn


def record(step: int) -> dict[str, float]:
    rewards = {"rewards/chosen": 0.1 * step, "rewards/rejected": -0.1 * step, "rewards/margins": 0.2 * step}
    return {"step": step, "loss/preference": 0.69 / step, "rewards/accuracies": 0.75, "skipped": 0, **rewards}


@pytest.mark.parametrize("count", [1, 40])
def test_training_figure(count: int, tmp_path: Path) -> None:
    training_figure([record(step) for step in range(1, count + 1)], tmp_path / "training.png")
    check_png(tmp_path / "training.png")


def test_training_figure_bridges_skipped_updates(tmp_path: Path) -> None:
    records = [record(1), {"step": 2, "skipped": 1}, record(3)]  # a non-finite loss is not in the record
    training_figure(records, tmp_path / "training.png")
    check_png(tmp_path / "training.png")
    with pytest.raises(DataError, match="no records"):
        training_figure([], tmp_path / "training.png")


def test_rates_figure(base: Scores, aligned: Scores, tmp_path: Path) -> None:
    rates_figure(base, aligned, tmp_path / "rates.png")
    check_png(tmp_path / "rates.png")


def test_pieces_keep_the_text_and_cover_the_marks() -> None:
    marks = [*RED_DOGS, Mark(8, 20, "position"), CAT]
    found = pieces(TEXT, marks)
    assert "".join(piece.text for piece in found) == TEXT
    assert [tuple(piece) for piece in found] == [
        ("two red ", ("attribute", "number")),
        ("dogs", ("attribute", "number", "position")),
        (" & a ", ("position",)),
        ("cat", ("position", "object")),
    ]
    assert pieces("", []) == []


class PageReader(HTMLParser):
    """Reads the page as a browser does: each answer's characters with the kinds that cover them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.answers: list[list[tuple[str, tuple[str, ...]]]] = []
        self.open: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "p" and found.get("class") == "answer":
            self.inside = True
            self.answers.append([])
        if tag == "mark":
            self.open.append(found.get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self.inside = False
        if tag == "mark":
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.answers[-1] += [(character, tuple(sorted(self.open))) for character in data]


def read_page(base: Scores, aligned: Scores, path: Path, **contents: Any) -> PageReader:
    asked = prompts(len(base.answers))
    answers_page(asked, base, aligned, compare(base, aligned), path, contents=replace(Contents(), **contents))
    reader = PageReader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def test_page_marks_exactly_the_marked_characters(tmp_path: Path) -> None:
    marks = (*RED_DOGS, CAT)
    page = read_page(scores([judged(0, marks=marks)]), scores([judged(0)]), tmp_path / "page.html")
    before, after = page.answers
    kinds = [tuple(sorted(m.kind for m in marks if m.start <= i < m.stop)) for i in range(len(TEXT))]
    assert before == list(zip(TEXT, kinds, strict=True))
    assert after == [(character, ()) for character in TEXT]


def test_page_escapes_what_a_model_says(tmp_path: Path) -> None:
    text = "<script>alert('cat')</script>\n  <mark>&amp;"
    marked = judged(0, text=text, marks=[Mark(4, 20, "object"), Mark(0, 2, "<b onclick=x>")])
    page = read_page(scores([marked]), scores([judged(0, text="")]), tmp_path / "page.html")
    assert "script" not in page.tags and "onclick" not in " ".join(
        kind for _, kinds in page.answers[0] for kind in kinds
    )
    assert "".join(character for character, _ in page.answers[0]) == text  # line end and spaces as they were
    assert "".join(character for character, _ in page.answers[1]) == "(empty answer)"
    assert "What is &lt;here&gt;?" in (tmp_path / "page.html").read_text()


def test_page_needs_no_other_file(base: Scores, aligned: Scores, tmp_path: Path) -> None:
    rates_figure(base, aligned, tmp_path / "rates.png")
    page = read_page(base, aligned, tmp_path / "page.html", count=4, figures={"Rates": tmp_path / "rates.png"})
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(page.answers) == 8 and len(page.sources) == 5  # 4 pictures and a figure
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "http" not in text and "@import" not in text and "url(" not in text
    said = " ".join(text.split())
    assert "1 of the 3 in which the aligned model makes fewer mistakes" in said
    assert "1 of the 1 in which it makes more, and 2 from all the rest" in said


def test_choice_is_half_changed_and_shows_what_got_worse(base: Scores, aligned: Scores) -> None:
    chosen = choose_answers(base, aligned, count=4, seed=0)
    assert [choice.drawn for choice in chosen] == ["better", "worse", "random", "random"]
    assert chosen[0].item in (0, 1, 2) and chosen[1].item == 9
    assert chosen == choose_answers(base, aligned, count=4, seed=0)
    assert len({tuple(choose_answers(base, aligned, count=4, seed=seed)) for seed in range(10)}) > 1


@pytest.mark.parametrize("count", range(13))
def test_choice_takes_each_answer_once(count: int, base: Scores, aligned: Scores) -> None:
    items = [choice.item for choice in choose_answers(base, aligned, count=count, seed=1)]
    assert len(items) == len(set(items)) == min(count, 10)
    alike = [choice.drawn for choice in choose_answers(base, base, count=count, seed=1)]
    assert alike == ["random"] * min(count, 10)
    assert len(choose_answers(aligned, base, count=count, seed=1)) == min(count, 10)  # more worse than better
