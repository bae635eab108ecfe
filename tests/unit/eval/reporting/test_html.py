"""The page read back as HTML, as a browser does."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.benchmarks import llava_bench, mmhal_bench, object_halbench
from eval.benchmarks.contract import JudgedAnswer, Scores, Span
from eval.reporting.figures import rates_figure
from eval.reporting.html import (
    PAPER,
    Heading,
    Section,
    embed_image,
    paper_card,
    text_runs,
    write_page,
)
from rlhfv_ray.errors import DataError
from tests.hand_scores import CAT, RED_DOGS, TEXT, judged, models, pets, png, prompts, rated


def test_text_runs_keep_the_text_and_cover_the_spans() -> None:
    spans = [*RED_DOGS, Span(8, 20, "position"), CAT]
    runs = text_runs(TEXT, spans)
    assert "".join(run.text for run in runs) == TEXT
    assert [tuple(run) for run in runs] == [
        ("two red ", ("attribute", "number")),
        ("dogs", ("attribute", "number", "position")),
        (" & a ", ("position",)),
        ("cat", ("position", "object")),
    ]
    assert text_runs("", []) == []


class PageReader(HTMLParser):
    """Reads a page as a browser does: answers' characters with their marks, and judges' words."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.sources: list[str] = []
        self.answers: list[list[tuple[str, tuple[str, ...]]]] = []
        self.verdicts: list[str] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append(tag)
        self.attributes |= set(attributes)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        kind = (attributes.get("class") or "").split(" ")[0]
        if tag == "p" and kind in ("answer", "verdict"):
            self.inside = kind
            if kind == "answer":
                self.answers.append([])
            else:
                self.verdicts.append("")
        if tag == "td":
            self.inside = "cell"
            self.cells.append("")
        if tag == "mark":
            self.open.append(attributes.get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "td"):
            self.inside = ""
        if tag == "mark":
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.inside == "answer":
            self.answers[-1] += [(character, tuple(sorted(self.open))) for character in data]
        elif self.inside == "verdict":
            self.verdicts[-1] += data
        elif self.inside == "cell":
            self.cells[-1] += " ".join(data.split())


HEADING = Heading("Some <models>", {"data": "<b> and 40 pairs"})


def read_page(path: Path, *sections: Section, **options: Any) -> PageReader:
    write_page(path, sections, heading=HEADING, **options)
    reader = PageReader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def pair(before: JudgedAnswer, after: JudgedAnswer) -> Section:
    return Section("pets", {"base": pets([before]), "aligned": pets([after])}, prompts(1))


def text_of(answer: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    return "".join(character for character, _ in answer)


def test_page_marks_exactly_the_characters_of_spans(tmp_path: Path) -> None:
    spans = (*RED_DOGS, CAT)
    page = read_page(tmp_path / "page.html", pair(judged(0, spans=spans), judged(0)))
    before, after = page.answers
    kinds = []
    for i in range(len(TEXT)):
        covering = [span.kind for span in spans if span.start <= i < span.stop]
        kinds.append(tuple(sorted(covering)))
    assert before == list(zip(TEXT, kinds, strict=True))
    assert after == [(character, ()) for character in TEXT]


ATTACK = "</p></details><script>alert('cat')</script>\n  <mark>&amp;<img src=x onerror=alert(1)>"


def test_page_escapes_text_of_models_and_judges(tmp_path: Path) -> None:
    """Catches: text of a model or judge that runs as code in the reader's browser."""
    attack = judged(0, text=ATTACK, spans=[Span(4, 20, "object"), Span(0, 2, "<b onclick=x>")])
    attack = replace(attack, verdict=ATTACK, missing=ATTACK, group=ATTACK)
    empty_answers = [replace(judged(n, text=""), group=f"{ATTACK}{n}") for n in (1, 2)]
    scores = replace(
        pets([attack, *empty_answers]),
        manifest={"benchmark": ATTACK, ATTACK: [ATTACK]},
        extras={"release_compatible": {ATTACK: 1}, "x": ATTACK},
    )
    attacks = [replace(prompt, question=ATTACK) for prompt in prompts(3)]
    rates_figure({"m": pets([judged(0)])}, tmp_path / "rates.svg")
    figures = {f'"{ATTACK}': tmp_path / "rates.svg"}
    sections = [
        Section(ATTACK, {ATTACK: scores, f"2{ATTACK}": scores}, attacks, figures),
        Section("b", {"m": scores}),
    ]
    page = read_page(tmp_path / "page.html", *sections, figures=figures)
    assert (
        "script" not in page.tags
        and "onclick" not in page.attributes
        and "onerror" not in page.attributes
    )
    images = ("data:image/png;base64,", "data:image/svg+xml;base64,", "#section-")
    assert all(source.startswith(images) for source in page.sources)
    assert (
        sum(text_of(answer) == ATTACK for answer in page.answers) == 3
    )  # line end and spaces as they were
    assert sum(text_of(answer) == "(empty answer)" for answer in page.answers) == 6
    assert page.verdicts == [ATTACK] * 3
    text = (tmp_path / "page.html").read_text()
    assert "Some &lt;models&gt;" in text and "<dd>&lt;b&gt; and 40 pairs</dd>" in text
    assert "no verdict: &lt;/p&gt;" in text


def test_page_needs_no_other_file(tmp_path: Path) -> None:
    rates_figure(models(), tmp_path / "rates.svg")
    figures = {"Rates": tmp_path / "rates.svg"}
    page = read_page(
        tmp_path / "page.html", Section("pets", models(), prompts(10)), count=4, figures=figures
    )
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(page.answers) == 8 and len(page.sources) == 5  # 4 pictures and a figure
    kinds = sorted(source.partition(";base64,")[0] for source in page.sources)
    assert kinds == [*["data:image/png"] * 4, "data:image/svg+xml"]
    assert "http" not in text and "@import" not in text and "url(" not in text
    words = " ".join(text.split())
    assert "1 of the 3 in which aligned does better than base" in words
    assert "1 of the 1 in which it does worse, and 2 from all the rest" in words


def test_a_page_that_says_the_same_keeps_its_date(tmp_path: Path) -> None:
    """Catches: a report that a second command changes and logs again, though nothing is new."""
    path = tmp_path / "page.html"

    def written(minute: int, scale: float) -> str:
        heading = Heading("pets", {"written": f"2026-11-29 11:{minute} UTC"})
        facts = {"scale": [("of the first rate", str(scale))]}
        write_page(path, [Section("pets", models())], heading=heading, facts=facts)
        return path.read_text(encoding="utf-8")

    first = written(44, 1.5)
    assert written(45, 1.5) == first
    assert "11:46 UTC" in written(46, 2.5)


def test_scores_of_a_page_are_those_of_the_table(tmp_path: Path) -> None:
    page = read_page(tmp_path / "page.html", Section("pets", models()))
    row = page.cells.index(
        "response rate / %answers with a hallucinated object, of those that name any object"
    )
    assert page.cells[row : row + 5] == [
        "response rate / %answers with a hallucinated object, of those that name any object",
        "↓lower",
        "60.0(31.3 to 83.2)",
        "40.0(16.8 to 68.7)",
        "-20.0",
    ]


def test_section_of_a_judged_benchmark(tmp_path: Path) -> None:
    """Catches: a judge's reply, a missing verdict, or the release's own score lost on the page."""
    scores = rated([0, 6, "refused", 2, 6, 6])
    page = read_page(tmp_path / "page.html", Section("mmhal_bench", {"model": scores}), count=6)
    text = " ".join((tmp_path / "page.html").read_text().split())
    assert "1 of 6 answers without a verdict: refused 1" in text
    assert "no verdict: refused" in text and "average score 2" in text
    assert sorted(page.verdicts) == ["I cannot say.", "Rating: 0", "Rating: 2", *["Rating: 6"] * 3]
    assert "release_compatible average_score</dt><dd>2.25</dd>" in text
    assert f"manifest {scores.manifest_hash}" in text and "<dd>a judge</dd>" in text
    counting = page.cells.index("counting")
    assert page.cells[counting : counting + 5] == [
        "counting",
        "3",
        "50.0",
        "3.00",
        "2.00",
    ]  # 0 and 6; one refused
    assert "2 of the worst, with ties broken at random, and 4 from all the rest" in text
    assert "img" not in page.tags  # no prompts, no pictures


def test_paper_card_shows_ours_beside_the_papers(tmp_path: Path) -> None:
    card = paper_card({"model": rated([0, 6, 6, 6])})
    assert card is not None
    assert card["rows"]["RLHF-V"] == [40.0, 52.1]
    assert card["ours"] == {"model": [None, 25.0]}  # no informativeness in these
    page = read_page(tmp_path / "page.html", Section("mmhal_bench", {"model": rated([0, 6, 6, 6])}))
    ours = page.cells.index("model (here)")
    assert page.cells[ours : ours + 3] == ["model (here)", "–", "25.0"]
    assert "arXiv 2312.00849" in (tmp_path / "page.html").read_text()
    assert paper_card(models()) is None


@pytest.mark.parametrize("benchmark", [llava_bench, mmhal_bench, object_halbench])
def test_paper_card_names_our_metrics(benchmark: Any) -> None:
    """Catches: a metric renamed, so that its column stays empty."""
    name = benchmark.__name__.removeprefix("eval.benchmarks.")
    card = json.loads(PAPER.read_text())["benchmarks"][name]
    metrics = {metric.name for metric in benchmark.METRICS}
    assert {column["measure"] for column in card["columns"]} <= metrics
    assert {len(row) for row in card["rows"].values()} == {len(card["columns"])}
    if benchmark is llava_bench:
        assert {column["group"] for column in card["columns"]} == set(llava_bench.CATEGORIES)


def test_images_are_made_to_fit() -> None:
    """Catches: a page of many megabytes, and a file that Pillow hands to another program."""
    assert embed_image(png()) == (f"data:image/png;base64,{base64.b64encode(png()).decode()}", True)
    large = embed_image(png((3000, 1500)))
    assert large is not None
    assert large.uri.startswith("data:image/jpeg;base64,") and not large.small
    with Image.open(io.BytesIO(base64.b64decode(large.uri.partition(",")[2]))) as opened:
        assert opened.size == (640, 320)
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200)).save(buffer, format="EPS")  # Ghostscript's
    assert embed_image(buffer.getvalue()) is None
    assert embed_image(png()[:30]) is None


def test_answers_are_those_of_the_models_to_show(tmp_path: Path) -> None:
    """Catches: answers of a control in the place of the aligned model's; samples drawn by it."""
    same = Section("pets", {**models(), "control": models()["base"]}, prompts(1))
    shown = replace(same, shown=("base", "aligned"))
    read_page(tmp_path / "page.html", shown)
    page = " ".join((tmp_path / "page.html").read_text().split())
    assert "in which aligned does better than base" in page
    assert "<h4>control" not in page and "change, control" in page
    read_page(tmp_path / "all.html", same)
    text = " ".join((tmp_path / "all.html").read_text().split())
    assert "in which control does better than base" in text and "<h4>control" in text


def test_page_refuses_scores_that_were_measured_differently(tmp_path: Path) -> None:
    other: Scores = replace(models()["base"], manifest={"benchmark": "cars"})
    with pytest.raises(DataError, match="'pets' against 'cars'"):
        write_page(
            tmp_path / "page.html",
            [Section("pets", {**models(), "other": other})],
            heading=Heading(""),
        )
    assert not (tmp_path / "page.html").exists()
