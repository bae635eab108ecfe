"""A page to read: one HTML file that needs no other, with scores, what follows from them, the paper's numbers, and answers.

Answers and judges' words come from models: all of it is escaped, and marks are cut so that they cannot overlap.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageOps

from eval.benchmarks.contract import WORDS, JudgedAnswer, Metric, Scores, Span
from eval.reporting.shown_answers import ShownAnswer, choose_answers, pool
from eval.reporting.wording import (
    Models,
    benchmark_of,
    comparisons,
    findings,
    flat,
    format_cell,
    humanize,
    label,
    missing_text,
    table_rows,
    title,
)
from rlhfv_ray.records import Prompt

TEMPLATES = Path(__file__).parents[1] / "templates"
PAPER = Path(__file__).parents[1] / "data" / "paper.json"
SMALL_IMAGE, LARGE_IMAGE = (
    160,
    640,
)  # pixels: below, a picture's pixels are shown as squares; above, it is made smaller
FIGURE_SCALE = 0.68  # of a figure's pixels: letters come out about as large as the page's
SEED = 0  # of the draw of the answers that are shown
SHOWN_BY_BROWSERS = ("PNG", "JPEG", "GIF", "WEBP")


@dataclass(frozen=True)
class Section:
    """One benchmark on the page."""

    name: str
    models: Models  # the first is the base
    prompts: Sequence[Prompt] = ()  # for the pictures
    figures: Mapping[str, Path] = field(default_factory=dict)  # caption -> PNG


class TextRun(NamedTuple):
    """A stretch of an answer and the kinds of mistake that cover it."""

    text: str
    kinds: tuple[str, ...]


def write_page(
    path: Path,
    sections: Sequence[Section],
    *,
    title: str,
    figures: Mapping[str, Path] | None = None,
    facts: Mapping[str, Sequence[tuple[str, str]]] | None = None,
    count: int = 20,
) -> None:
    """Write one HTML file that needs no other.

    Args:
        path: of the file.
        sections: benchmarks, in order.
        title: of the page.
        figures: caption -> PNG, above the sections.
        facts: caption -> table of two columns, below the sections.
        count: answers shown in a section.
    """
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template("page.html").render(
        title=title,
        figures=_figures(figures or {}),
        facts=facts or {},
        sections=[_section(section, count=count) for section in sections],
        seed=SEED,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        page, encoding="utf-8", errors="replace"
    )  # half a character of a model's is no reason to fail


def _section(section: Section, *, count: int) -> dict[str, Any]:
    models = section.models
    base = next(iter(models.values()))
    compared = comparisons(models)
    return {
        "name": section.name,
        "title": title(models),
        "models": list(models),
        "rows": table_rows(models),
        "findings": findings(models, compared),
        "missing": {
            name: missing_text(scores) for name, scores in models.items() if missing_text(scores)
        },
        "extras": {name: flat(scores.extras) for name, scores in models.items() if scores.extras},
        "released": [
            name for name, scores in models.items() if "release_compatible" in scores.extras
        ],
        "manifest": flat(base.manifest),
        "manifest_hash": base.manifest_hash,
        "paper": paper_card(models),
        "groups": _groups(models),
        "figures": _figures(section.figures),
        "headline": humanize(base.metrics[0].name),
        "pool": pool(models),
        "marked": any(item.spans for scores in models.values() for item in scores.answers),
        "answers": _answers(section, choose_answers(models, count=count, seed=SEED)),
    }


def paper_card(models: Models) -> dict[str, Any] | None:
    """The paper's numbers of a benchmark beside ours, in per cent; None where the paper has none."""
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
    """Every measure of every model by group of questions, as far as a group has it."""
    base = next(iter(models.values()))
    if len(base.groups) < 2:
        return None
    sums = [scores.sums(group) for scores in models.values() for group in base.groups]
    metrics = [m for m in base.metrics if any(some[m.name].denominator for some in sums)]
    lines = []
    for group in base.groups:
        rates = [scores.rates(group) for scores in models.values()]
        cells = [[_plain(metric, rate[metric.name]) for rate in rates] for metric in metrics]
        lines.append((group, rates[0]["n"], [text for some in cells for text in some]))
    return {"metrics": [label(metric) for metric in metrics], "lines": lines}


def _plain(metric: Metric, rate: float | None) -> str:
    return "–" if rate is None else format_cell(metric, rate).number


def _answers(section: Section, choices: Sequence[ShownAnswer]) -> list[dict[str, Any]]:
    images = {prompt.id: prompt.image for prompt in section.prompts}
    found = []
    for choice in choices:
        judged = {name: scores.answers[choice.item] for name, scores in section.models.items()}
        first = next(iter(judged.values()))
        image = images.get(first.answer.id)
        found.append(
            {
                "asked": first.answer,
                "group": "" if first.group == first.answer.question else first.group,
                "drawn": choice.drawn,
                "picture": None if image is None else picture(image),
                "marked": any(item.spans for item in judged.values()),
                "said": [_said(name, item, section.models[name]) for name, item in judged.items()],
            }
        )
    return found


def _said(name: str, item: JudgedAnswer, scores: Scores) -> dict[str, Any]:
    return {
        "name": name,
        "pieces": pieces(item.answer.text, item.spans),
        "mistakes": len(item.spans),
        "values": _values(item, scores.metrics),
        "verdict": item.verdict,
        "missing": item.missing,
    }


def _values(item: JudgedAnswer, metrics: Sequence[Metric]) -> list[str]:
    """The first measure that it adds to, and the first in other units: a rating."""
    there = [
        m
        for m in metrics
        if m.name in item.ratios and item.ratios[m.name].denominator and m.name != WORDS.name
    ]
    shown = dict.fromkeys([*there[:1], *[m for m in there if m.scale == 1][:1]])
    parts = [(humanize(m.name), item.ratios[m.name]) for m in shown]
    return [
        f"{name} {part.numerator:g}"
        + (f" of {part.denominator:g}" if part.denominator != 1 else "")
        for name, part in parts
    ]


def pieces(text: str, spans: Sequence[Span]) -> list[TextRun]:
    """Cut an answer where marks begin and end, so that a piece is covered by a mark entirely or not at all.

    Example:
        >>> [tuple(piece) for piece in pieces("a red cat", [Span(2, 9, "attribute"), Span(6, 9, "object")])]
        [('a ', ()), ('red ', ('attribute',)), ('cat', ('attribute', 'object'))]
    """
    cuts = sorted({0, len(text), *(span.start for span in spans), *(span.stop for span in spans)})
    found = []
    for start, stop in pairwise(cuts):
        kinds = dict.fromkeys(
            span.kind for span in spans if span.start <= start and stop <= span.stop
        )
        found.append(TextRun(text[start:stop], tuple(kinds)))
    return found


class EmbeddedImage(NamedTuple):
    """A picture in the page itself."""

    uri: str
    small: bool


def picture(image: bytes) -> EmbeddedImage:
    """Put a picture into the page; a large one is made smaller, one that browsers do not know is converted."""
    opened = Image.open(io.BytesIO(image))
    kind, size = opened.format or "", max(opened.size)
    if size > LARGE_IMAGE or kind not in SHOWN_BY_BROWSERS:
        smaller = ImageOps.exif_transpose(opened).convert("RGB")
        smaller.thumbnail((LARGE_IMAGE, LARGE_IMAGE))
        buffer = io.BytesIO()
        smaller.save(buffer, format="JPEG", quality=85)
        image, kind = buffer.getvalue(), "JPEG"
    return EmbeddedImage(_data_uri(image, Image.MIME[kind]), size < SMALL_IMAGE)


class EmbeddedFigure(NamedTuple):
    """A figure in the page itself."""

    uri: str
    width: int  # on the page


def _figures(figures: Mapping[str, Path]) -> dict[str, EmbeddedFigure]:
    return {caption: _drawing(path) for caption, path in figures.items()}


def _drawing(path: Path) -> EmbeddedFigure:
    with Image.open(path) as opened:
        width = round(opened.width * FIGURE_SCALE)
    return EmbeddedFigure(_data_uri(path.read_bytes(), "image/png"), width)


def _data_uri(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
