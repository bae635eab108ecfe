"""A self-contained HTML page with scores, result sentences, the paper's numbers, and answers.

Answers and judges' replies are written by models, so all text is escaped. Answers are cut into text
runs, so that overlapping spans become properly nested marks.
"""

import base64
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from eval.benchmarks.contract import WORDS, JudgedAnswer, Metric, Scores, Span
from eval.reporting.shown_answers import ShownAnswer, choose_answers, count_changes
from eval.reporting.svg import width_of
from eval.reporting.wording import (
    Models,
    benchmark_of,
    comparisons,
    flat,
    format_cell,
    humanize,
    label,
    missing_text,
    result_sentences,
    table_rows,
    title,
)
from rlhfv_ray.data.images import FORMATS, decode_image
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Prompt

TEMPLATES = Path(__file__).parents[1] / "templates"
PAPER = Path(__file__).parents[1] / "data" / "paper.json"
SMALL_IMAGE = 160  # pixels of the longer side, below which an image is enlarged without smoothing
LARGE_IMAGE = 640  # pixels of the longer side, above which an image is made smaller
SEED = 0  # of the random sample of the answers that are shown
DATE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC")  # in the head of a page


@dataclass(frozen=True)
class Section:
    """One benchmark on the page."""

    name: str
    models: Models  # the first is the base
    prompts: Sequence[Prompt] = ()  # for their images
    figures: Mapping[str, Path] = field(default_factory=dict)  # SVG by caption
    shortfall: str = ""  # why the judge's verdicts are too few; empty if they are enough
    shown: tuple[str, ...] = ()  # models whose answers are shown; empty: all

    @property
    def shown_models(self) -> Models:
        """Return the scores of the models whose answers are shown, the base first."""
        return {name: self.models[name] for name in self.shown or self.models}


class Heading(NamedTuple):
    """The head of the page."""

    title: str
    rows: Mapping[str, str] = MappingProxyType({})  # what was run, on what and when, by name


class TextRun(NamedTuple):
    """A part of an answer, and the kinds of the spans that cover it."""

    text: str
    kinds: tuple[str, ...]


def write_page(
    path: Path,
    sections: Sequence[Section],
    *,
    heading: Heading,
    figures: Mapping[str, Path] | None = None,
    facts: Mapping[str, Sequence[tuple[str, str]]] | None = None,
    count: int = 20,
) -> None:
    """Write one HTML file with everything in it; one that would differ in its date alone is left.

    Args:
        path: of the file; its folder is made.
        sections: benchmarks, in order.
        heading: title and first lines of the page.
        figures: SVG by caption, shown above the sections.
        facts: tables of two columns by caption, shown below the sections.
        count: number of answers to show in a section.
    """
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template("page.html").render(
        title=heading.title,
        heading=heading.rows,
        figures=_embed_figures(figures or {}),
        facts=facts or {},
        sections=[_section(section, count=count) for section in sections],
        seed=SEED,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # A model may write half of a surrogate pair, which UTF-8 cannot encode.
    content = page.encode(errors="replace")
    if not path.exists() or _undated(path.read_bytes()) != _undated(content):
        path.write_bytes(content)


def _undated(page: bytes) -> bytes:
    """Return a page without the date in its head."""
    return DATE.sub(b"", page, count=1)


def _section(section: Section, *, count: int) -> dict[str, Any]:
    models = section.models
    base = next(iter(models.values()))
    missing = {name: missing_text(scores) for name, scores in models.items()}
    released = [name for name in models if "release_compatible" in models[name].extras]
    return {
        "name": section.name,
        "title": title(models),
        "models": list(models),
        "rows": table_rows(models),
        "result_sentences": result_sentences(comparisons(models)),
        "missing": {name: text for name, text in missing.items() if text},
        "shortfall": section.shortfall,
        "extras": {name: flat(scores.extras) for name, scores in models.items() if scores.extras},
        "released": released,
        "manifest": flat(base.manifest),
        "manifest_hash": base.manifest_hash,
        "paper": paper_card(models),
        "groups": _groups(models),
        "figures": _embed_figures(section.figures),
        "headline": humanize(base.metrics[0].name),
        "shown": list(section.shown_models),
        "changes": count_changes(section.shown_models),
        "has_spans": any(_has_spans(scores.answers) for scores in models.values()),
        "answers": _answers(section, choose_answers(section.shown_models, count=count, seed=SEED)),
    }


def _has_spans(answers: Iterable[JudgedAnswer]) -> bool:
    return any(item.spans for item in answers)


def paper_card(models: Models) -> dict[str, Any] | None:
    """Return the paper's numbers of a benchmark beside ours, in per cent; None if it has none."""
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    card = paper["benchmarks"].get(benchmark_of(next(iter(models.values()))))
    if card is None:
        return None
    ours = {
        name: [_rate(scores, column) for column in card["columns"]]
        for name, scores in models.items()
    }
    return {"source": paper["source"], **card, "ours": ours}


def _rate(scores: Scores, column: Mapping[str, str]) -> float | None:
    rate = scores.rates(column.get("group")).get(column["measure"])
    return None if rate is None else 100 * rate


def _groups(models: Models) -> dict[str, Any] | None:
    """Return every metric of every model by group of questions; None without two groups."""
    base = next(iter(models.values()))
    if len(base.groups) < 2:
        return None
    sums = [scores.sums(group) for scores in models.values() for group in base.groups]
    counted = {name for ratios in sums for name, ratio in ratios.items() if ratio.denominator}
    metrics = [metric for metric in base.metrics if metric.name in counted]
    rows = []
    for group in base.groups:
        rates = [scores.rates(group) for scores in models.values()]
        texts: list[str] = []
        for metric in metrics:
            texts += [_number(metric, rate[metric.name]) for rate in rates]
        rows.append((group, rates[0]["n"], texts))
    return {"metrics": [label(metric) for metric in metrics], "rows": rows}


def _number(metric: Metric, rate: float | None) -> str:
    return "–" if rate is None else format_cell(metric, rate).number


def _answers(section: Section, shown: Sequence[ShownAnswer]) -> list[dict[str, Any]]:
    images = {prompt.id: prompt.image for prompt in section.prompts}
    cards = []
    for item, drawn in shown:
        judged = {name: scores.answers[item] for name, scores in section.shown_models.items()}
        first = next(iter(judged.values()))
        image = images.get(first.answer.id)
        by_model = [
            _model_answer(name, answer, section.models[name].metrics)
            for name, answer in judged.items()
        ]
        cards.append(
            {
                "id": first.answer.id,
                "question": first.answer.question,
                "group": "" if first.group == first.answer.question else first.group,
                "drawn": drawn,
                "image": None if image is None else embed_image(image),
                "has_spans": _has_spans(judged.values()),
                "by_model": by_model,
            }
        )
    return cards


def _model_answer(name: str, item: JudgedAnswer, metrics: Sequence[Metric]) -> dict[str, Any]:
    return {
        "model": name,
        "text_runs": text_runs(item.answer.text, item.spans),
        "mistakes": len(item.spans),
        "metrics": _answer_metrics(item, metrics),
        "verdict": item.verdict,
        "missing": item.missing,
    }


def _answer_metrics(item: JudgedAnswer, metrics: Sequence[Metric]) -> list[str]:
    """Return the first metric that the answer counts for, and the first that is no percentage."""
    counted = [
        metric
        for metric in metrics
        if metric.name in item.ratios
        and item.ratios[metric.name].denominator
        and metric.name != WORDS.name
    ]
    ratings = [metric for metric in counted if metric.scale == 1]
    texts = []
    for metric in dict.fromkeys([*counted[:1], *ratings[:1]]):
        numerator, denominator = item.ratios[metric.name]
        total = f" of {denominator:g}" if denominator != 1 else ""
        texts.append(f"{humanize(metric.name)} {numerator:g}{total}")
    return texts


def text_runs(text: str, spans: Sequence[Span]) -> list[TextRun]:
    """Cut an answer where spans start and stop, so that each span covers whole text runs.

    Example:
        >>> spans = [Span(2, 9, "attribute"), Span(6, 9, "object")]
        >>> [tuple(run) for run in text_runs("a red cat", spans)]
        [('a ', ()), ('red ', ('attribute',)), ('cat', ('attribute', 'object'))]
    """
    cuts = sorted({0, len(text), *(span.start for span in spans), *(span.stop for span in spans)})
    runs = []
    for start, stop in pairwise(cuts):
        covering = [span.kind for span in spans if span.start <= start and stop <= span.stop]
        runs.append(TextRun(text[start:stop], tuple(dict.fromkeys(covering))))
    return runs


class EmbeddedImage(NamedTuple):
    """The image of a prompt as a data URI."""

    uri: str
    small: bool  # so that the page enlarges it without smoothing


def embed_image(image: bytes) -> EmbeddedImage | None:
    """Return an image as a data URI, a large one shrunk; None for one that cannot be decoded."""
    try:
        decoded = decode_image(image)
    except DataError:
        return None
    size = max(decoded.size)
    with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
        mime = Image.MIME[opened.format or ""]  # browsers show all of `FORMATS`
    if size > LARGE_IMAGE:
        decoded.thumbnail((LARGE_IMAGE, LARGE_IMAGE))
        buffer = io.BytesIO()
        decoded.save(buffer, format="JPEG", quality=85)
        image, mime = buffer.getvalue(), Image.MIME["JPEG"]
    return EmbeddedImage(_data_uri(image, mime), size < SMALL_IMAGE)


class EmbeddedFigure(NamedTuple):
    """A figure as a data URI."""

    uri: str
    width: int  # on the page, in CSS pixels


def _embed_figures(figures: Mapping[str, Path]) -> dict[str, EmbeddedFigure]:
    return {caption: _embed_figure(path) for caption, path in figures.items()}


def _embed_figure(path: Path) -> EmbeddedFigure:
    svg = path.read_text(encoding="utf-8")
    return EmbeddedFigure(_data_uri(svg.encode(), "image/svg+xml"), width_of(svg))


def _data_uri(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
