"""An audit as one self-contained HTML page, and as JSON."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from rlhfv_ray.config import LARGEST_IMAGE
from rlhfv_ray.data.audit import Audit, word_numbers
from rlhfv_ray.data.images import decode_image
from rlhfv_ray.records import PreferencePair
from rlhfv_ray.segments import changed_tokens
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import publish

Figures = Mapping[str, str | int]  # by their names
PAGE_FILE, JSON_FILE = AUDIT_FILES = ("audit.html", "audit.json")
WORD = re.compile(r"\S+\s*")
UNNAMED = "not searched for: the image has no name"
THUMBNAIL = 360  # pixels of the longer side
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Audit of {{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8888; --mark: #ffe08a; --ink: #1b1b1b; }
@media (prefers-color-scheme: dark) { :root { --mark: #6a5300; --ink: #f2f2f2; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; } caption { text-align: left; font-weight: 600; }
th { font-weight: 400; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.tables { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 2rem;
  align-items: start; }
h1 { overflow-wrap: anywhere; }
article { display: grid; grid-template-columns: minmax(0, 14rem) 1fr; gap: 1.5rem; padding: 1rem 0;
  border-top: 1px solid var(--line); } article img { width: 100%; max-width: 14rem; }
article div > :first-child { margin-top: 0; } td:last-child { white-space: nowrap; }
@media (max-width: 45rem) { article { grid-template-columns: 1fr; } }
mark { background: var(--mark); color: var(--ink); text-decoration: underline; font-weight: 600; }
</style>
<h1>Audit of {{ title }}</h1>
<p>{{ audit.usable }} of {{ audit.rows }} rows can be used.</p>
<div class="tables">
{% for name, rows in tables.items() %}<table><caption>{{ name }}</caption>
{% for label, value in rows.items() %}<tr><th scope="row">{{ label }}</th><td class="n">{{ value }}
</td></tr>
{% else %}<tr><td>none</td></tr>
{% endfor %}</table>
{% endfor %}</div>
{% if audit.examples %}<h2>First unusable row of each reason</h2>
<ul>{% for message in audit.examples.values() %}<li>{{ message }}</li>{% endfor %}</ul>{% endif %}
<h2>Sample</h2>
<p>Words that differ between the answers are marked and underlined.</p>
{% for pair in sample %}<article><img src="{{ pair.image }}" alt="picture of {{ pair.id }}"><div>
<p><b>{{ pair.id }}</b> {{ pair.question }}</p>
{% for side, runs in (("Chosen", pair.chosen), ("Rejected", pair.rejected)) %}<p><b>{{ side }}:</b>
{% for run in runs %}{% set text = run.text.rstrip() %}{% if run.is_changed -%}
<mark>{{ text }}</mark>{%- else %}{{ text }}{% endif %}{{ run.text[text|length:] }}{% endfor %}</p>
{% endfor %}</div></article>
{% endfor %}</html>
"""


class Change(NamedTuple):
    """A run of an answer's characters, and True if the other answer says something else there."""

    text: str
    is_changed: bool


def write_audit(audit: Audit, folder: Path, title: str, *, texts: Figures | None = None) -> None:
    """Write an audit as `audit.html` and `audit.json`.

    Args:
        audit: of some data.
        folder: of both files.
        title: of the data.
        texts: what the answers say without their images, by name.
    """
    page = audit_page(audit, title, texts=texts)
    draft = folder / f".{PAGE_FILE}"
    draft.write_text(page, encoding="utf-8")
    draft.replace(folder / PAGE_FILE)
    publish(folder / PAGE_FILE)
    figures = audit_json(audit) | ({"texts": dict(texts)} if texts else {})
    write_json(folder / JSON_FILE, figures)


def audit_page(audit: Audit, title: str, *, texts: Figures | None = None) -> str:
    """Return the page of an audit. All text of the data is escaped."""
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    sample = [_shown(pair) for pair in audit.sample]
    tables = audit_tables(audit) | ({"Texts without their images": texts} if texts else {})
    return page.render(audit=audit, title=title, tables=tables, sample=sample)


def audit_json(audit: Audit) -> dict[str, Any]:
    """Return an audit's figures, JSON-ready, without the sample."""
    figures = asdict(audit)
    del figures["sample"], figures["texts"]
    return figures


def audit_tables(audit: Audit) -> dict[str, Mapping[Any, Any]]:
    """Return the page's tables, by their captions."""
    tables: dict[str, Mapping[Any, Any]] = {"Unusable rows by reason": audit.unusable}
    if audit.chosen and audit.rejected:
        tables["Words per answer"] = {
            "chosen, mean": f"{audit.chosen.mean:.1f}",
            "rejected, mean": f"{audit.rejected.mean:.1f}",
            "chosen, median": f"{audit.chosen.median:g}",
            "rejected, median": f"{audit.rejected.median:g}",
            "longest": max(audit.chosen.longest, audit.rejected.longest),
            "chosen longer": _share(audit.chosen_longer, audit.usable),
            "chosen shorter": _share(audit.chosen_shorter, audit.usable),
        }
    for rule, counts in audit.rules.items():
        tables[f"Corrected {audit.unit}, rule {rule}"] = {
            "share of the chosen answers": f"{100 * counts.chosen_share:.1f} %",
            "share of the rejected answers": f"{100 * counts.rejected_share:.1f} %",
            "pairs without extra weight": _share(counts.without_segment, audit.usable),
        }
    evaluated = dict(audit.evaluated_images)
    if evaluated and audit.unnamed_images:
        evaluated[UNNAMED] = audit.unnamed_images
    return {
        **tables,
        f"Changes, runs of {audit.unit}": audit.changes,
        "Sources": audit.sources,
        "Kinds of question": audit.kinds,
        "Repeats": {
            "pairs that repeat an earlier one": audit.duplicates,
            "ids of several rows": len(audit.duplicated_ids),
        },
        "Images by their number of pairs": audit.pairs_per_image,
        "Images by size": audit.image_sizes,
        "Images by type and mode": audit.image_modes,
        "Pairs with an image of an evaluation set": evaluated,
    }


def marked_answers(chosen: str, rejected: str) -> tuple[list[Change], list[Change]]:
    """Return both answers as runs of words, changed and unchanged ones by turns."""
    words = (WORD.findall(chosen), WORD.findall(rejected))
    sides = [[word.strip() for word in side] for side in words]
    masks = changed_tokens(*word_numbers(*sides), rule="both_sides", min_match=1)
    return _runs(words[0], masks[0]), _runs(words[1], masks[1])


def _runs(words: Sequence[str], mask: Sequence[bool]) -> list[Change]:
    runs: list[Change] = []
    for word, is_changed in zip(words, mask, strict=True):
        if runs and runs[-1].is_changed == is_changed:
            runs[-1] = Change(runs[-1].text + word, is_changed)
        else:
            runs.append(Change(word, is_changed))
    return runs


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / max(whole, 1):.1f} %)"


def _shown(pair: PreferencePair) -> dict[str, Any]:
    chosen, rejected = marked_answers(pair.chosen, pair.rejected)
    return {
        "id": pair.id,
        "question": pair.question,
        "image": _thumbnail(pair.image),
        "chosen": chosen,
        "rejected": rejected,
    }


def _thumbnail(image: bytes) -> str:
    """Return a small copy of an image as a data URL."""
    picture = decode_image(image, max_pixels=LARGEST_IMAGE)  # smaller limits are the job's
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
