"""One evaluation: answers of every model to every benchmark, verdicts on them, scores, a report.

`plan.plan_evaluation` declares the stages that make the answers; `evaluate` judges and scores them.
An experiment runs the same two functions on its base and its aligned model, a sweep on every trial.

The command's folder `<storage>/<name>-<fingerprint>/` holds `config.json`, `summary.json`,
`report.html` and figures. For every benchmark and model it holds the scores with each answer's
verdict (`<benchmark>/<model>.json`), the judge's requests and replies
(`<benchmark>/<model>.verdicts.jsonl`), and the ledger of their cost. Answers are stages of their
own and verdicts are in the judge's cache, so neither is made twice.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from eval.benchmarks.contract import Benchmark, Scores, check_scores
from eval.config import EvalConfig
from eval.inputs.endpoint_answers import check_decoding
from eval.judge.records import verdict_rows
from eval.judge.run import judge_answers, shortfall
from eval.plan import Evaluation, given_answers, plan_of
from eval.reporting.agreement import check_agreement
from eval.reporting.html import Heading, Section, write_page
from eval.reporting.mlflow_log import description, log_to_checkpoints, track_models
from eval.reporting.score_files import save_scores
from eval.reporting.tables import draw, summary, table
from rlhfv_ray.cluster import check_fits, connect
from rlhfv_ray.config import (
    GenerationConfig,
    changed_settings,
    fingerprint,
    plain,
)
from rlhfv_ray.console import print_sentence
from rlhfv_ray.endpoint.budget import Ledger
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.endpoint.run import check_endpoint
from rlhfv_ray.errors import JudgeError
from rlhfv_ray.inference.generate import read_answers
from rlhfv_ray.records import Answer
from rlhfv_ray.redaction import redact
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import display_path
from rlhfv_ray.storage.stages import is_done, run_stages
from rlhfv_ray.tracking.origin import page_origin
from rlhfv_ray.tracking.run import TrackedRun
from rlhfv_ray.tracking.run_folder import RUN_NAME, open_run_folder


def run_evaluation(config: EvalConfig, storage: Path, *, console: Console) -> dict[str, Any]:
    """Run an evaluation, or the rest of it; returns what it writes to `summary.json`.

    Raises:
        RlhfvError: something the user can mend. Too few verdicts are told after the report is
            written, and end the MLflow run as FAILED.
    """
    storage.mkdir(parents=True, exist_ok=True)
    evaluation = plan_of(config, storage)
    is_answered = all(is_done(stage.folder(storage)) for stage in evaluation.answers.values())
    if evaluation.judged or not is_answered:  # scores alone need no Ray
        connect()
        check_fits(config.scale, who=("actors",), setting="inference")
    check_services(evaluation, config.decoded)
    folder = evaluation_folder(config, evaluation)
    with open_run_folder(
        folder,
        config.tracking,
        store=storage,
        params=plain(config),
        tags={RUN_NAME: title_of(config, evaluation)},
        config={
            "config": plain(config),
            "stages": [stage.folder(storage).name for stage in evaluation.stages],
        },
    ) as opened:
        if not is_answered:
            opened.run.reopen()
        run_stages(list(evaluation.stages), storage)
        if config.least_agreement:
            print_agreement(evaluation, least=config.least_agreement, console=console)
        sections = evaluate_all(evaluation, folder, console=console)
        outcome = {section.name: summary(section.models) for section in sections}
        write_json(folder / "summary.json", outcome)
        write_page(folder / "report.html", sections, heading=heading_of(config, evaluation))
        opened.run.log_file(folder / "summary.json")
        track_sections(evaluation, sections, opened.run, folder)
        opened.run.set_tags(description(sections))
        for section in sections:
            console.print(table(section.models))
        check_verdicts(sections, folder / "report.html")
    log_to_checkpoints(evaluation.checkpoints, sections, config.tracking, evaluation=folder.name)
    opened.print_locations({"report": folder / "report.html"}, console=console)
    return outcome


def title_of(config: EvalConfig, evaluation: Evaluation) -> str:
    """Return the name of an evaluation's run: what was evaluated on what."""
    return f"{config.name} {', '.join(evaluation.candidates)} on {', '.join(config.benchmarks)}"


def heading_of(config: EvalConfig, evaluation: Evaluation) -> Heading:
    """Return the head of an evaluation's report."""
    models = {f"model {name}": redact(path) for name, path in evaluation.paths.items()}
    decoding = ", ".join(f"{name} {value}" for name, value in plain(config.decoded).items())
    rows = {**models, "decoding": decoding, **page_origin()}
    return Heading(f"Evaluation of {', '.join(evaluation.candidates)}", rows)


def print_agreement(evaluation: Evaluation, *, least: float, console: Console) -> None:
    """Print how far the models' answers agree with the first one's.

    Raises:
        DataError: a model's answers agree less than `least`.
    """
    for benchmark in evaluation.benchmarks:
        folders = {
            name: evaluation.answers[benchmark.name, name].folder(evaluation.storage)
            for name in evaluation.candidates
        }
        answers = {name: read_answers(folder) for name, folder in folders.items()}
        for sentence in check_agreement(answers, least=least).values():
            print_sentence(console, f"{benchmark.name}: {sentence}")


def check_services(evaluation: Evaluation, generation: GenerationConfig) -> None:
    """Check that every server the evaluation needs answers, before anything long has begun.

    Raises:
        ConfigError, JudgeError: a key, an address or a decoding setting cannot be used.
    """
    cache = evaluation.settings.cache(evaluation.storage)
    if evaluation.judged:
        check_endpoint(evaluation.settings.judge, cache)
    for candidate in evaluation.candidates.values():
        if candidate.endpoint is not None:
            check_decoding(generation)
            check_endpoint(candidate.endpoint, cache)


def evaluation_folder(config: EvalConfig, evaluation: Evaluation) -> Path:
    """Return the evaluation's folder, named by its settings and its answers."""
    unnamed = ("storage", "tracking", "inference", "least_agreement")
    changed = changed_settings(config)
    settings = {name: value for name, value in changed.items() if name not in unnamed}
    answers = {
        f"{benchmark} {name}": stage.folder(evaluation.storage).name
        for (benchmark, name), stage in evaluation.answers.items()
    }
    digest = fingerprint({"config": settings, "answers": answers})
    return evaluation.storage / f"{config.name}-{digest}"


def evaluate_all(evaluation: Evaluation, folder: Path, *, console: Console) -> list[Section]:
    """Judge and score all answers, benchmark by benchmark."""
    return [
        evaluate(evaluation, benchmark, folder, console=console)
        for benchmark in evaluation.benchmarks
    ]


def evaluate(
    evaluation: Evaluation, benchmark: Benchmark, folder: Path, *, console: Console
) -> Section:
    """Judge and score every model's answers to one benchmark, and write scores and verdicts."""
    target = folder / benchmark.name
    target.mkdir(exist_ok=True)
    answers = {name: answers_of(evaluation, benchmark, name) for name in evaluation.candidates}
    requests = {name: benchmark.requests(texts) for name, texts in answers.items()}
    verdicts: dict[str, dict[str, list[Reply]]] = {name: {} for name in answers}
    lacking = ""
    if any(requests.values()):
        judged = judge_models(evaluation, benchmark, answers, requests, console=console)
        verdicts, lacking = judged.verdicts, judged.shortfall
        write_json(target / "ledger.json", asdict(judged.ledger))
    models: dict[str, Scores] = {}
    for name, texts in answers.items():
        if requests[name]:
            rows = verdict_rows(requests[name], verdicts[name])
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (target / f"{name}.verdicts.jsonl").write_text(lines, encoding="utf-8")
        models[name] = benchmark.score(texts, verdicts[name])
        check_scores(models[name], benchmark.name)
        save_scores(models[name], target / f"{name}.json")
    return Section(benchmark.name, models, benchmark.prompts, draw(models, target), lacking)


def check_verdicts(sections: Sequence[Section], report: Path) -> None:
    """Check, once scores and report are written, that enough answers have a verdict.

    Raises:
        JudgeError: a benchmark lacks more verdicts than `judge.max_missing`.
    """
    lacking = [f"{section.name}: {section.shortfall}" for section in sections if section.shortfall]
    if lacking:
        raise JudgeError(f"{' '.join(lacking)} The others are in {display_path(report)}.")


class Judged(NamedTuple):
    """The verdicts on the answers of all models to one benchmark."""

    verdicts: dict[str, dict[str, list[Reply]]]  # by model and request id, one for each vote
    ledger: Ledger
    shortfall: str  # why the verdicts are too few; empty if they are enough


def judge_models(
    evaluation: Evaluation,
    benchmark: Benchmark,
    answers: Mapping[str, Sequence[Answer]],
    requests: Mapping[str, Sequence[Request]],
    *,
    console: Console,
) -> Judged:
    """Return the verdicts on all models' answers, asked for together: one estimate, one bar."""
    owners: dict[str, tuple[str, Request]] = {}
    oracles: dict[str, Callable[[Request], str]] = {}
    for name, texts in answers.items():
        owners |= {f"{name}/{request.id}": (name, request) for request in requests[name]}
        oracle = benchmark.oracle(texts)
        if oracle is not None:
            oracles[name] = oracle

    def tell_truth(request: Request) -> str:
        name, original = owners[request.id]
        return oracles[name](original)

    judge = evaluation.settings.judge
    ballots = [replace(request, id=key) for key, (_, request) in owners.items()]
    verdicts, ledger = judge_answers(
        ballots,
        judge,
        evaluation.settings.cache(evaluation.storage),
        readable=benchmark.readable,
        oracle=tell_truth if oracles else None,
        console=console,
    )
    by_model: dict[str, dict[str, list[Reply]]] = {name: {} for name in answers}
    for key, (name, request) in owners.items():
        by_model[name][request.id] = verdicts[key]
    lacking = shortfall(ballots, verdicts, judge.max_missing, benchmark.readable)
    return Judged(by_model, ledger, lacking)


def answers_of(evaluation: Evaluation, benchmark: Benchmark, name: str) -> list[Answer]:
    """Return a candidate's answers to a benchmark: of its finished stage, or of its file."""
    key = benchmark.name, name
    if key in evaluation.answers:
        return read_answers(evaluation.answers[key].folder(evaluation.storage))
    if key in evaluation.given:
        return evaluation.given[key]
    return given_answers(evaluation.candidates[name].path, benchmark)


def track_sections(
    evaluation: Evaluation,
    sections: Sequence[Section],
    run: TrackedRun,
    folder: Path,
    *,
    name: str = "",
) -> None:
    """Log report, figures and benchmarks to a run, and each model's scores to its own child run,
    whose name ends with `name`.
    """
    run.log_file(folder / "report.html", "report")
    for section in sections:
        base = next(iter(section.models.values()))
        measured = {"digest": base.manifest_hash, "rows": len(base.answers)}
        run.log_dataset(section.name, **measured, source=section.name, use="evaluation")
        for figure in section.figures.values():
            run.log_file(figure, f"figures/{section.name}")
    track_models(evaluation.paths, sections, run, name=name)
