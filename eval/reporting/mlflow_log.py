"""An evaluation in MLflow: one child run per model, and metrics in the models' training runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks.contract import JudgedAnswer, Scores
from eval.reporting.html import Section
from eval.reporting.tables import markdown_table
from eval.reporting.wording import (
    PER_CENT,
    comparison_sentences,
    comparisons,
    headline,
    humanize,
    is_resolved,
    table_rows,
)
from rlhfv_ray.config import TrackingConfig
from rlhfv_ray.redaction import redact
from rlhfv_ray.storage.folder import fetch, local_path
from rlhfv_ray.tracking.replay import SPOOL, clean_name
from rlhfv_ray.tracking.run import TrackedRun, tracked_run
from rlhfv_ray.tracking.run_folder import CONFIG_FILE, HEADLINE, RUN_NAME


def track_models(
    models: Mapping[str, str], sections: Sequence[Section], run: TrackedRun, *, name: str = ""
) -> None:
    """Log one child run per model, with equal metric names, so that the UI compares them.

    Args:
        models: paths by name.
        sections: their scores.
        run: of the experiment or evaluation.
        name: of that run, which the children's names repeat; empty: they are the models' alone.
    """
    for model, path in models.items():
        child = run.stage(model, {"model": redact(path)})
        for section in sections:
            child.log_metrics(metrics(section.name, section.models[model]))
            child.log_table(f"{section.name}_answers", answer_rows(section.models[model]))
        if name:
            child.set_tags({RUN_NAME: f"{model}, {name}"})
        child.set_tags({f"manifest.{s.name}": s.models[model].manifest_hash for s in sections})
        child.end()


def metrics(benchmark: str, scores: Scores) -> dict[str, float]:
    """Return every metric and the bounds of its interval, under the benchmark's name."""
    named = {
        f"{benchmark}/{name}": float(value)
        for name, value in scores.rates().items()
        if value is not None
    }
    for name, interval in scores.intervals().items():
        if interval is not None:
            named[f"{benchmark}/{name}_low"] = interval.low
            named[f"{benchmark}/{name}_high"] = interval.high
    return named


def first_metric(model: str, scores: Scores) -> dict[str, float]:
    """Return a model's first metric, a rate in per cent, under a name that sorts first.

    MLflow takes no % in a name. The space comes before the / of all other metrics.
    """
    metric = scores.metrics[0]
    value = scores.rates().get(metric.name)
    if value is None:
        return {}
    unit = " percent" if metric.scale == PER_CENT else ""
    return {f"{model} {humanize(metric.name)}{unit}": metric.scale * value}


def description(sections: Sequence[Section]) -> dict[str, str]:
    """Return the tags that describe a run.

    They are the first metric of each benchmark as `headline`; that of the first benchmark by
    model, with its interval; what the comparison of each further model with the base shows, as
    `result` of the first of them and `result.NAME` of others; and the tables, which MLflow shows
    above everything else.
    """
    if not sections:
        return {}
    first = sections[0].models
    row = table_rows(first)[0]
    unit = " %" if row.metric.scale == PER_CENT else ""
    rate = humanize(row.metric.name)
    # MLflow shows some thirty characters of a tag: the number and the verdict come first.
    by_model = {
        clean_name(f"model.{name}"): f"{cell.number}{unit} ({cell.interval}) {rate}"
        for name, cell in zip(first, row.cells, strict=True)
    }
    results = {}
    for name, comparison in comparisons(first).items():
        verdict = "resolved" if is_resolved(comparison) else "not resolved"
        tag = clean_name(f"result.{name}") if results else "result"
        results[tag] = f"{verdict}: {comparison_sentences(comparison)[0]}"
    tables = [f"## {section.name}\n\n{markdown_table(section.models)}" for section in sections]
    lines = [f"{section.name}: {headline(section.models)}" for section in sections]
    tags = {HEADLINE: "; ".join(lines), "mlflow.note.content": "\n".join(tables)}
    return {**tags, **by_model, **results}


def answer_rows(scores: Scores) -> list[dict[str, Any]]:
    """Return one row per answer, for MLflow's table."""
    headline = scores.metrics[0].name
    return [_answer_row(item, headline) for item in scores.answers]


def _answer_row(item: JudgedAnswer, headline: str) -> dict[str, Any]:
    text = item.answer.text
    objects = [text[span.start : span.stop] for span in item.spans if span.kind == "object"]
    other_kinds = [span.kind for span in item.spans if span.kind != "object"]
    return {
        "id": item.answer.id,
        "question": item.answer.question,
        "answer": text,
        "group": item.group,
        headline: item.ratios[headline].numerator if headline in item.ratios else None,
        "hallucinated": ", ".join(objects),
        "other mistakes": ", ".join(other_kinds),
        "verdict": item.verdict,
        "missing": item.missing,
    }


def log_to_checkpoints(
    models: Mapping[str, str],
    sections: Sequence[Section],
    config: TrackingConfig,
    *,
    evaluation: str,
) -> None:
    """Log each model's metrics also to the run of the experiment that trained it, if any."""
    for model, path in models.items():
        experiment = experiment_of(local_path(path))
        if experiment is None:
            continue
        with tracked_run(
            experiment, config, store=experiment.parent, name=experiment.name, params={}, tags={}
        ) as run:
            for section in sections:
                run.log_metrics(metrics(section.name, section.models[model]))
            run.set_tags({f"evaluation.{section.name}": evaluation for section in sections})


def experiment_of(model: Path) -> Path | None:
    """Return the newest experiment's folder beside a model that trained it; None without one."""
    if model.name != "model":
        return None
    train = model.resolve().parent
    for file in (CONFIG_FILE, SPOOL):
        fetch(train.parent, only=file)
    experiments = []
    for config in train.parent.glob(f"*/{CONFIG_FILE}"):
        if (config.parent / SPOOL).exists():
            stages = json.loads(config.read_text()).get("stages", [])
            if train.name in stages:
                experiments.append(config.parent)
    return max(experiments, key=lambda folder: folder.stat().st_mtime, default=None)
