"""One experiment: the pipeline, then answers and scores of the base and the aligned model.

The experiment's folder `<storage>/<name>-<fingerprint>/` holds `config.json`, `summary.json`,
`report.html`, the figures, each benchmark's scores, and the spool that MLflow is fed from. Models
and answers are in the stages' folders, which `config.json` names.
"""

import contextlib
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.benchmarks.contract import Scores
from eval.config import EvalConfig, InferenceConfig, LoadConfig
from eval.evaluation import check_services, check_verdicts, evaluate_all, track_sections
from eval.plan import Candidate, Evaluation, plan_evaluation
from eval.reporting.figures import training_figure
from eval.reporting.html import Heading, Section, write_page
from eval.reporting.mlflow_log import description, first_metric, metrics
from eval.reporting.model_card import Trained, public_name, write_card
from eval.reporting.tables import summary, table
from experiments.runners.config import ExperimentConfig
from experiments.runners.controls import (
    control_pipelines,
    controls_table,
    kept_sentence,
    kept_shares,
)
from experiments.runners.stage_monitor import (
    StageMonitor,
    TrainingFeed,
    flat,
    parameter_lines,
    updates_of,
)
from experiments.runners.sweep_plan import CHECKPOINT_BYTES
from rlhfv_ray.config import changed_settings, fingerprint, plain
from rlhfv_ray.console import program
from rlhfv_ray.crew.crew import crew_kept
from rlhfv_ray.data.audit_page import PAGE_FILE
from rlhfv_ray.data.reference_table import load_reference, unusable_rows
from rlhfv_ray.inference.model_check import read_check
from rlhfv_ray.models import planned_counts
from rlhfv_ray.models.self_check import SelfCheck
from rlhfv_ray.pipeline import Pipeline, plan_pipeline, start
from rlhfv_ray.redaction import redact
from rlhfv_ray.shapes_stages import left_out, read_audit
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import display_path
from rlhfv_ray.storage.stages import Stage, StageResult, is_done, run_stages
from rlhfv_ray.sweep.search_space import arguments_of
from rlhfv_ray.tracking.origin import page_origin
from rlhfv_ray.tracking.run import TrackedRun
from rlhfv_ray.tracking.run_folder import RUN_NAME, open_run_folder
from rlhfv_ray.training.metrics_log import read_records

BENCHMARK_TO_FILL_IN = (
    *("--benchmarks", "object_halbench", "--object-halbench.questions", "QUESTIONS.jsonl"),
    *("--object-halbench.annotations", "COCO_ANNOTATIONS", "--judge.model", "JUDGE"),
)
LISTED_ROWS = 20  # unusable rows on the report; all are in the reference folder


def run_experiment(config: ExperimentConfig, storage: Path, *, console: Console) -> dict[str, Any]:
    """Run an experiment, or the rest of one; returns what it writes to `summary.json`. A dry run
    returns nothing.

    Raises:
        RlhfvError: something the user can mend.
    """
    feed = TrainingFeed(console)
    pipeline = plan_pipeline(config.ddpo, storage, seen=feed)
    controls = control_pipelines(config.ddpo, config.controls, storage, seen=feed)
    evaluation = plan_scores(config, pipeline, controls)
    pipelines = (pipeline, *controls.values())
    stage_of = distinct_stages((*pipelines, evaluation), storage)
    stage_names, stages = list(stage_of), list(stage_of.values())
    if config.dry_run:
        console.print("\n".join(forecast(pipeline, stages)), highlight=False, soft_wrap=True)
        return {}
    storage.mkdir(parents=True, exist_ok=True)
    if evaluation.judged or not all(is_done(stage.folder(storage)) for stage in stages):
        start(config.ddpo)  # a job that does not fit leaves no run
    if evaluation.judged:
        check_services(evaluation, config.generation)
    identity: dict[str, Any] = {"stages": stage_names, "reference": pipeline.reference.name}
    if evaluation.benchmarks:
        identity["benchmarks"] = {
            "names": config.scored_on,
            "settings": changed_settings(config.settings),
        }
    folder = storage / f"{config.name}-{fingerprint(identity)}"
    with open_run_folder(
        folder,
        config.tracking,
        store=storage,
        params=flat(plain(config)),
        tags={RUN_NAME: title_of(config)},
        config={"config": plain(config), "stages": stage_names},
    ) as opened:
        run = opened.run
        monitor = StageMonitor(pipelines, run, feed, console, title_of(config), len(stages))
        results = run_all(stages, storage, pipeline, monitor)
        track_lineage(config, pipeline, run)
        seconds = {result.stage.title: result.seconds for result in results}
        sections, scores = report(
            config, pipeline, evaluation, folder=folder, run=run, console=console
        )
        check = rows_of(read_check(pipeline.reference))
        outcome = {**scores, "seconds": seconds, "self_check": check}
        write_json(folder / "summary.json", outcome)
        run.log_file(folder / "summary.json")
        check_verdicts(sections, folder / "report.html")
    locations = {
        "aligned model": Path(pipeline.aligned.path),
        "report": folder / "report.html",
        "summary": folder / "summary.json",
    }
    opened.print_locations(locations, console=console)
    if not evaluation.benchmarks:
        print_score_command(config, pipeline.aligned.path, console)
    return outcome


def distinct_stages(lines: Iterable[Pipeline | Evaluation], storage: Path) -> dict[str, Stage]:
    """Return the stages in order, by the names of their folders; pipelines share their first."""
    stage_of: dict[str, Stage] = {}
    for line in lines:
        for stage in line.stages:
            stage_of.setdefault(stage.folder(storage).name, stage)
    return stage_of


def forecast(pipeline: Pipeline, stages: Sequence[Stage]) -> list[str]:
    """Return what an experiment will do, in lines: its stages, and the size of a training.

    Args:
        pipeline: of the experiment.
        stages: of the experiment and its controls.
    """
    optim, scale = pipeline.config.optim, pipeline.config.scale
    lines = []
    for number, stage in enumerate(stages, start=1):
        folder = stage.folder(pipeline.storage)
        state = "done before" if is_done(folder) else "to run"
        lines.append(f"stage {number} of {len(stages)}: {stage.title} ({state})  {folder.name}")
    counts = planned_counts(pipeline.config.model)
    updates = updates_of(pipeline) if is_done(pipeline.reference) else optim.steps
    length = f"{updates} updates" if updates else f"{optim.epochs:g} epochs"
    gib = CHECKPOINT_BYTES * sum(trained for _, trained in counts.values()) / 2**30
    return [
        *lines,
        *parameter_lines(counts),
        f"a training: {length}, {optim.batch} pairs an update; {scale.keep} checkpoints of "
        f"{gib:.2f} GiB",
    ]


def run_all(
    stages: Sequence[Stage], storage: Path, pipeline: Pipeline, monitor: StageMonitor
) -> list[StageResult]:
    """Run the stages of an experiment: its pipeline's, then those of its controls and the answers.

    With controls, these share one crew: several trainings and sets of answers, one start.
    """
    count = len(pipeline.stages)
    has_controls = len(monitor.pipelines) > 1
    results = run_stages(stages[:count], storage, around=monitor.stage)
    with crew_kept() if has_controls else contextlib.nullcontext():
        return results + run_stages(stages[count:], storage, around=monitor.stage)


def print_score_command(config: ExperimentConfig, aligned: str, console: Console) -> None:
    """Print the command that scores both models, after a training that was not scored."""
    console.print(
        "No benchmark was asked for (--benchmarks). Score both models with this command, where "
        "words in capitals are yours to fill in, or with another benchmark of docs/evaluation.md:",
        highlight=False,
        soft_wrap=True,
    )
    console.print(score_command(config, aligned), highlight=False, soft_wrap=True)


def title_of(config: ExperimentConfig) -> str:
    """Return the name of an experiment's run: the settings that experiments mostly differ in.

    Example:
        >>> title_of(ExperimentConfig(name="paper"))
        'paper beta 0.5 gamma 5 seed 0'
    """
    loss = config.loss
    kind = "" if loss.kind == "dpo" else f"{loss.kind} "
    method = "sft" if loss.is_sft else f"{kind}beta {loss.beta:g} gamma {loss.gamma:g}"
    return f"{config.name} {method} seed {config.seed}"


def plan_scores(
    config: ExperimentConfig, pipeline: Pipeline, controls: Mapping[str, Pipeline]
) -> Evaluation:
    """Plan the answers of the base, the aligned and the control models to all benchmarks."""
    candidates = {"base": Candidate(config.model.path, model=config.model)}
    for name, line in {"aligned": pipeline, **controls}.items():
        trained = {"model": line.train.folder(line.storage).name}  # weights do not exist yet
        candidates[name] = Candidate(line.aligned.path, model=line.aligned, inputs=trained)
    return plan_evaluation(
        candidates,
        config.scored_on,
        config.settings,
        generation=config.generation,
        scale=config.scale,
        storage=pipeline.storage,
    )


def report(
    config: ExperimentConfig,
    pipeline: Pipeline,
    evaluation: Evaluation,
    *,
    folder: Path,
    run: TrackedRun,
    console: Console,
) -> tuple[list[Section], dict[str, Any]]:
    """Score both models on every benchmark and write the report.

    Returns:
        The sections of the report, and what they say in numbers. These are empty without
        benchmarks; else `benchmarks` has the summary of each, by name, beside the first one's
        scores of `base` and `aligned` and their `comparison`.
    """
    records = read_records(pipeline.train.folder(pipeline.storage))
    training_figure(records, folder / "training.svg")
    run.log_file(folder / "training.svg", "figures")
    of_both = ("base", "aligned")
    evaluated = evaluate_all(evaluation, folder, console=console)
    sections = [replace(section, shown=of_both) for section in evaluated]
    # MLflow compares runs by the metric that was logged first. The curves of the whole experiment
    # come after it; while the training runs, its child has them.
    for section in sections[:1]:
        run.log_metrics(first_metric("aligned", section.models["aligned"]))
    run.log_records(records)
    kept = kept_by_controls(sections)
    write_page(
        folder / "report.html",
        sections,
        heading=Heading("Base and aligned model", heading_rows(config, pipeline)),
        figures={"Training": folder / "training.svg"},
        facts={**control_facts(kept), **run_facts(config, pipeline)},
    )
    of_aligned = [without_controls(section) for section in sections]
    write_card(Path(pipeline.aligned.path), trained_facts(config, pipeline), of_aligned)
    track_sections(evaluation, sections, run, folder, name=title_of(config))
    run.set_tags(description(sections))
    summaries = {section.name: summary(section.models) for section in sections}
    for section in of_aligned:
        run.log_metrics(metrics(section.name, section.models["aligned"]))
        console.print(table(section.models))
    if not sections:
        return [], {}
    if kept:
        console.print(controls_table(sections[0].models))
    for name, shares in kept.items():
        console.print(kept_sentence(name, shares), highlight=False)
    first = summaries[sections[0].name]
    comparison = first["comparisons"]["aligned"]
    # The base model's scores are the same in all runs that are compared, so they are no metrics.
    run.log_params({"base": known_rates(sections[0].models["base"])})
    aligned = sections[0].models["aligned"]
    run.log_metrics({f"aligned/{name}": rate for name, rate in known_rates(aligned).items()})
    numbers = {name: value for name, value in comparison.items() if isinstance(value, float)}
    run.log_metrics(numbers)
    outcome = {**first["models"], "comparison": comparison, "benchmarks": summaries}
    return sections, {**outcome, "kept": kept} if kept else outcome


def without_controls(section: Section) -> Section:
    """Return a section of the base and the aligned model alone."""
    return replace(section, models={name: section.models[name] for name in ("base", "aligned")})


def kept_by_controls(sections: Sequence[Section]) -> dict[str, dict[str, float]]:
    """Return the shares of the gain that controls keep, by control and metric of the first
    benchmark.
    """
    if not sections:
        return {}
    models = sections[0].models
    base, aligned, *controls = models
    of_both = models[base], models[aligned]
    return {name: kept_shares(*of_both, models[name]) for name in controls}


def known_rates(scores: Scores) -> dict[str, float]:
    """Return the rates of a model without those for which nothing was counted."""
    return {name: rate for name, rate in scores.rates().items() if rate is not None}


def trained_facts(config: ExperimentConfig, pipeline: Pipeline) -> Trained:
    """Return what the card of the aligned model says beside its scores."""
    data = {
        "source": public_name(pipeline.pairs),
        "digest": str(pipeline.reference_inputs["rows"]),
        "pairs": str(len(load_reference(pipeline.reference))),
        "unusable rows": str(len(unusable_rows(pipeline.reference))),
    }
    recipe = {
        "seed": config.seed,
        "rule": config.data.rule,
        "trained parts": ", ".join(config.model.trainable),
        "rank of LoRA": config.model.lora_rank or "no LoRA",
        **flat(plain(config.loss), "loss."),
        **flat(plain(config.optim), "optim."),
    }
    return Trained(title_of(config), config.model.path, config.loss.method, data, recipe)


def track_lineage(config: ExperimentConfig, pipeline: Pipeline, run: TrackedRun) -> None:
    """Log the data that a finished training used, and the model that it made."""
    digest = str(pipeline.reference_inputs["rows"])
    rows = len(load_reference(pipeline.reference))
    data = {"digest": digest.rpartition("-")[2], "rows": rows, "source": redact(pipeline.pairs)}
    run.log_dataset(Path(pipeline.pairs).name, **data, use="training")
    base = redact(config.model.path)
    params = {"base": base, "loss": changed_settings(config.loss), "seed": config.seed}
    run.log_model(title_of(config), Path(pipeline.aligned.path), params)


def rows_of(check: SelfCheck) -> dict[str, Any]:
    """Return what a self-check decided, without distances, which are rounding."""
    names = ("layout", "split_head", "dtype", "tokens")
    return {name: getattr(check, name) for name in names}


def heading_rows(config: ExperimentConfig, pipeline: Pipeline) -> dict[str, str]:
    """Return what the report says first: method, data, code, time and machine."""
    loss, optim = config.loss, config.optim
    updates = read_records(pipeline.train.folder(pipeline.storage))[-1]["step"]
    details = [
        f"learning rate {optim.learning_rate:g}",
        f"{updates} updates of {optim.batch} pairs",
    ]
    if not loss.is_sft:
        details.append(f"normalize {'on' if loss.normalize else 'off'}")
    pairs = len(load_reference(pipeline.reference))
    return {
        "configuration": f"{title_of(config)}, {', '.join(details)}",
        "model": redact(config.model.path),
        "data": f"{redact(pipeline.pairs)}, {pairs} pairs",
        **page_origin(),
    }


def control_facts(kept: Mapping[str, Mapping[str, float]]) -> dict[str, list[tuple[str, str]]]:
    """Return a table for the report: what each control keeps of the gain."""
    rows = [(name, kept_sentence("It", shares)) for name, shares in kept.items()]
    return {"Controls: pairs whose pictures do not help": rows} if rows else {}


def run_facts(config: ExperimentConfig, pipeline: Pipeline) -> dict[str, list[tuple[str, str]]]:
    """Return tables for the report: the data, the configuration, rows that cannot be used."""
    unusable = unusable_rows(pipeline.reference)
    reasons = Counter(row["reason"].partition(":")[0] for row in unusable)
    data = {
        "path": pipeline.pairs,
        "pairs": str(len(load_reference(pipeline.reference))),
        "unusable rows": str(len(unusable)),
        **{f"unusable: {reason}": str(count) for reason, count in reasons.most_common()},
    }
    if (page := pipeline.reference / PAGE_FILE).exists():
        data["audit"] = display_path(page)
    audit = read_audit(pipeline.stages, pipeline.storage)
    if audit is not None:
        data["chosen answer told by its text alone"] = audit_text(audit)
    if dropped := left_out(pipeline.stages, pipeline.storage):
        data["corrections left out, so that texts say little"] = f"{dropped[0]} of {dropped[1]}"
    settings = flat(plain(config))
    check = read_check(pipeline.reference)
    tables = {
        "Self-check of the model": [
            ("right", str(check)),
            *((f"refused: {layout}", reason) for layout, reason in check.refused.items()),
        ],
        "Data": list(data.items()),
        "Configuration": [(name, str(value)) for name, value in settings.items()],
    }
    if unusable:
        rows = [(row["id"], row["reason"]) for row in unusable[:LISTED_ROWS]]
        tables[f"Unusable rows (the first {len(rows)} of {len(unusable)})"] = rows
    return tables


def audit_text(audit: Mapping[str, Any]) -> str:
    """Return how often texts alone tell the chosen answer, in words."""
    if "told" not in audit:
        return f"not measured, as {audit['pairs']} pairs are too few"
    accuracy, (low, high) = 100 * audit["told"], audit["told_interval"]
    return f"{accuracy:.1f} % of pairs ({100 * low:.1f} to {100 * high:.1f})"


def score_command(config: ExperimentConfig, aligned: str) -> str:
    """Return the command that scores the base and the aligned model of a run without benchmarks.

    It loads them and spreads the work as the run did. Words in capitals are the user's to replace.

    Args:
        config: the run.
        aligned: folder of the aligned model.
    """
    models = (config.model.path, display_path(Path(aligned)))
    loading = {item.name: getattr(config.model, item.name) for item in fields(LoadConfig)}
    scale = config.scale
    settings = EvalConfig(
        model=models,
        generation=config.generation,
        loading=LoadConfig(**loading),
        inference=InferenceConfig(actors=scale.actors, gpu=scale.gpu, cpus=scale.cpus),
    )
    defaults = flat(plain(EvalConfig(model=models)))
    values = flat(plain(settings))
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    words = [program("rlhfv-ray"), "eval", "--model", *models, "--storage", config.storage]
    words += shlex.split(arguments_of(changed))
    return shlex.join([*words, *BENCHMARK_TO_FILL_IN])
