"""The card of a trained model: `README.md` in its folder, as model hubs show it.

It is written after the evaluation, when the training's stage is sealed. The seal does not cover it,
nor does the model's identity: a later evaluation replaces it.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from eval.reporting.html import Section
from eval.reporting.tables import markdown_table
from eval.reporting.wording import flat, label
from rlhfv_ray.storage.digests import CARD
from rlhfv_ray.storage.folder import publish
from rlhfv_ray.tracking.origin import origin

LONGEST_VALUE = 200  # characters of a manifest's value that are shown
METHODS = {"DDPO": "DDPO (arXiv 2312.00849)", "SFT": "supervised fine-tuning"}
USE = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype="auto")
processor = AutoProcessor.from_pretrained(FOLDER)
```
"""
USE_ADAPTER = """
These weights have the LoRA adapters merged in. `adapter/` has the adapters alone:

```python
from peft import PeftModel

base = AutoModelForImageTextToText.from_pretrained(BASE, dtype="auto")
model = PeftModel.from_pretrained(base, f"{FOLDER}/adapter")
```
"""


class Trained(NamedTuple):
    """Facts about a trained model, beside its scores."""

    title: str
    base: str  # path or hub name
    method: str  # as `LossConfig.method`
    data: Mapping[str, str]  # facts about the pairs, by name
    recipe: Mapping[str, Any]  # settings of the training, by name


def write_card(model: Path, trained: Trained, sections: Sequence[Section]) -> None:
    """Write the card of a trained model into its folder, if this machine has it.

    Args:
        model: folder of the model.
        trained: facts about it.
        sections: benchmarks with the scores of its base, and its own as the last.
    """
    if not (model / "config.json").exists():  # a bucket's, which this node never fetched
        return
    card = model.parent / CARD
    draft = card.with_name(f".{card.name}.draft")
    text = card_text(trained, sections, has_adapter=(model / "adapter").is_dir())
    draft.write_text(text, encoding="utf-8", errors="replace")
    draft.replace(card)
    publish(card)


def card_text(trained: Trained, sections: Sequence[Section], *, has_adapter: bool) -> str:
    """Return the card: its header for hubs, then use, data, recipe, scores, licence and origin."""
    base = public_name(trained.base)
    method = METHODS.get(trained.method, f"{trained.method} with segment weights")
    parts = [
        f"---\n{_header(trained, sections).to_yaml()}\n---\n",
        f"# {trained.title}\n",
        f"`{base}`, trained by {method} with rlhfv-ray.\n",
        f"## Use\n\n{USE}{USE_ADAPTER if has_adapter else ''}",
        f"## Data\n\n{_table(trained.data)}",
        f"## Recipe\n\n{_table(trained.recipe)}",
        _scores(sections),
        "## Licence\n",
        f"These weights are made from those of `{base}`, and from the data above. The licences of "
        "both apply. This card was written by a program, which has read neither: state the "
        "licence here before you publish the model.\n",
        f"## Origin\n\n{_table(origin())}",
    ]
    return "\n".join(parts)


def public_name(path: str) -> str:
    """Return the name of a model or of data without the folders of this machine.

    Example:
        >>> public_name("llava-hf/llava-1.5-7b-hf"), public_name("s3://lab/models/llava")
        ('llava-hf/llava-1.5-7b-hf', 'llava')
    """
    return Path(path).name if _is_local(path) else path


def _header(trained: Trained, sections: Sequence[Section]) -> ModelCardData:
    results = []
    for section in sections:
        *_, scores = section.models.values()
        rates = scores.rates()
        results += [
            EvalResult(
                task_type="image-text-to-text",
                dataset_type=section.name,
                dataset_name=section.name,
                metric_type=metric.name,
                metric_name=label(metric),
                metric_value=round(metric.scale * rate, 2),
            )
            for metric in scores.metrics
            if (rate := rates.get(metric.name)) is not None
        ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["hallucination", "rlhf-v", trained.method.lower()],
        base_model=None if _is_local(trained.base) else trained.base,
        model_name=trained.title if results else None,
        eval_results=results or None,
    )


def _scores(sections: Sequence[Section]) -> str:
    if not sections:
        return "## Scores\n\nThe model was not scored.\n"
    parts = ["## Scores\n", "95 % intervals are in parentheses.\n"]
    for section in sections:
        base = next(iter(section.models.values()))
        measured = {"manifest": base.manifest_hash, **flat(base.manifest)}
        parts += [f"### {section.name}\n", markdown_table(section.models), "Measured with:\n"]
        parts.append(_table(measured))
    return "\n".join(parts)


def _table(values: Mapping[str, Any]) -> str:
    """Return a Markdown table of names and values, long ones cut."""
    lines = ["| | |", "|---|---|"]
    for name, value in values.items():
        text = textwrap.shorten(str(value), LONGEST_VALUE, placeholder=" ...")
        lines.append(f"| {name} | {text.replace('|', '&#124;')} |")
    return "\n".join([*lines, ""])


def _is_local(path: str) -> bool:
    return Path(path).exists() or "://" in path or "/" not in path
