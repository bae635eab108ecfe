"""What of an evaluation goes to MLflow: to a run of its own, with one child per model, and to the runs that trained its models."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks.contract import Scores
from eval.reporting.html import Section
from rlhfv_ray.config import TrackingConfig
from rlhfv_ray.storage.folder import fetch, local_path
from rlhfv_ray.tracking.run import TrackedRun, tracked_run


def track_models(models: Mapping[str, str], sections: Sequence[Section], run: TrackedRun) -> None:
    """One child run for each model, with plain metric names, so that the UI lays them side by side."""
    for model, path in models.items():
        child = run.stage(model, {"model": path})
        for section in sections:
            child.log_metrics(metrics(section.name, section.models[model]))
            child.log_table(f"{section.name}_answers", answer_rows(section.models[model]))
        child.set_tags({f"manifest.{s.name}": s.models[model].manifest_hash for s in sections})
        child.end()


def metrics(benchmark: str, scores: Scores) -> dict[str, float]:
    """Every measure with its interval, under the benchmark's name."""
    named = {
        f"{benchmark}/{name}": float(value)
        for name, value in scores.rates().items()
        if value is not None
    }
    for name, interval in scores.intervals().items():
        if interval is not None:
            named |= {
                f"{benchmark}/{name}_low": interval.low,
                f"{benchmark}/{name}_high": interval.high,
            }
    return named


def answer_rows(scores: Scores) -> list[dict[str, Any]]:
    """One row per answer, for MLflow's table."""
    headline = scores.metrics[0].name
    return [
        {
            "id": item.answer.id,
            "question": item.answer.question,
            "answer": item.answer.text,
            "group": item.group,
            headline: item.ratios[headline].numerator if headline in item.ratios else None,
            "hallucinated": ", ".join(
                item.answer.text[m.start : m.stop] for m in item.spans if m.kind == "object"
            ),
            "other mistakes": ", ".join(mark.kind for mark in item.spans if mark.kind != "object"),
            "verdict": item.verdict,
            "missing": item.missing,
        }
        for item in scores.answers
    ]


def log_to_checkpoints(
    models: Mapping[str, str],
    sections: Sequence[Section],
    config: TrackingConfig,
    *,
    evaluation: str,
) -> None:
    """Log a model that an experiment here trained to that experiment's run too, beside what it was trained with."""
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
    """The folder of the experiment that trained a model, if it is beside it; of several, the newest."""
    train, found = model.resolve().parent, []
    for file in ("config.json", "tracking.jsonl"):
        fetch(train.parent, only=file)
    for config in train.parent.glob("*/config.json"):
        if (config.parent / "tracking.jsonl").exists():
            stages = json.loads(config.read_text()).get("stages", [])
            found += [config.parent] if model.name == "model" and train.name in stages else []
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)
