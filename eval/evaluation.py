"""One evaluation: answers of every model to every benchmark, verdicts on them, scores, a report.

`plan_evaluation` declares the stages that make the answers; `evaluate` judges and scores them. An
experiment runs the same two functions on its base and its aligned model, a sweep on every trial.

The command's folder `<storage>/<name>-<fingerprint>/` holds `config.json`, `summary.json`,
`report.html` and figures. For every benchmark and model it holds the scores with each answer's
verdict (`<benchmark>/<model>.json`), the judge's requests and replies
(`<benchmark>/<model>.verdicts.jsonl`), and the ledger of their cost. Answers are stages of their
own and verdicts are in the judge's cache, so neither is made twice.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from eval.benchmarks import make_benchmark
from eval.benchmarks.contract import Benchmark, Scores, check_ids, check_scores
from eval.config import API, BenchmarkSettings, EvalConfig
from eval.inputs.answer_files import read_answer_file
from eval.inputs.endpoint_answers import check_decoding, endpoint_answers
from eval.judge.records import verdict_rows
from eval.judge.run import judge_answers, shortfall
from eval.reporting.agreement import check_agreement
from eval.reporting.html import Heading, Section, write_page
from eval.reporting.mlflow_log import description, log_to_checkpoints, track_models
from eval.reporting.score_files import save_scores
from eval.reporting.tables import draw, summary, table
from rlhfv_ray.cluster import check_fits, connect
from rlhfv_ray.config import (
    EndpointConfig,
    GenerationConfig,
    ModelConfig,
    ScaleConfig,
    changed_settings,
    fingerprint,
    plain,
)
from rlhfv_ray.console import new_console, print_sentence
from rlhfv_ray.endpoint.budget import Ledger
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.endpoint.run import check_endpoint
from rlhfv_ray.errors import ConfigError, DataError, JudgeError
from rlhfv_ray.inference.generate import answers_stage, read_answers, write_answers
from rlhfv_ray.models.loading import model_inputs
from rlhfv_ray.records import Answer
from rlhfv_ray.redaction import redact
from rlhfv_ray.shapes.world import write_benchmark
from rlhfv_ray.shapes.worlds import WORLDS
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import display_path
from rlhfv_ray.storage.stages import Stage, run_stages
from rlhfv_ray.tracking.origin import page_origin
from rlhfv_ray.tracking.run import TrackedRun
from rlhfv_ray.tracking.run_folder import RUN_NAME, open_run_folder


@dataclass(frozen=True)
class Candidate:
    """One model to evaluate: a checkpoint, a model behind an API, or a file of its answers."""

    path: str  # of the checkpoint or of the file; `api`, `api:NAME@URL` for a model behind an API
    model: ModelConfig | None = None  # how the checkpoint is loaded
    inputs: Mapping[str, Any] | None = None  # identify the checkpoint; None: digests of its files
    endpoint: EndpointConfig | None = None  # the API


@dataclass(frozen=True)
class Evaluation:
    """The stages that answer benchmarks, and everything needed to score the answers."""

    candidates: Mapping[str, Candidate]  # by the name that tables show; the first is the base
    benchmarks: tuple[Benchmark, ...]
    settings: BenchmarkSettings
    storage: Path
    drawn: tuple[Stage, ...]  # benchmarks whose pictures are drawn here
    answers: Mapping[tuple[str, str], Stage]  # by benchmark and candidate; none for answer files

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return all stages in the order in which they need each other."""
        return (*self.drawn, *self.answers.values())

    @property
    def judged(self) -> bool:
        """Return true if a judge behind an API is needed."""
        needed = any(benchmark.judged for benchmark in self.benchmarks)
        return needed and self.settings.judge.kind == "openai"

    @property
    def paths(self) -> dict[str, str]:
        """Return each candidate's path by its name."""
        return {name: candidate.path for name, candidate in self.candidates.items()}

    @property
    def checkpoints(self) -> dict[str, str]:
        """Return the path of each candidate that is a checkpoint: other paths name no folder."""
        return {name: path for name, path in self.paths.items() if self.candidates[name].model}


def run_evaluation(config: EvalConfig, storage: Path, *, console: Console) -> dict[str, Any]:
    """Run an evaluation, or the rest of it; returns what it writes to `summary.json`.

    Raises:
        RlhfvError: something the user can mend. Too few verdicts are told after the report is
            written, and end the MLflow run as FAILED.
    """
    storage.mkdir(parents=True, exist_ok=True)
    connect()
    check_fits(config.scale, who=("actors",), setting="inference")
    evaluation = plan_evaluation(
        candidates_of(config),
        config.benchmarks,
        config,
        generation=config.decoded,
        scale=config.scale,
        storage=storage,
    )
    check_services(evaluation, config.decoded)
    folder = evaluation_folder(config, evaluation)
    with open_run_folder(
        folder,
        config.tracking,
        store=storage,
        params=plain(config),
        tags={RUN_NAME: title_of(config, evaluation)},
        config={"config": plain(config)},
    ) as opened:
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


def plan_evaluation(
    candidates: Mapping[str, Candidate],
    benchmarks: Sequence[str],
    settings: BenchmarkSettings,
    *,
    generation: GenerationConfig,
    scale: ScaleConfig,
    storage: Path,
) -> Evaluation:
    """Plan an evaluation: read and check the user's files, but write nothing.

    Args:
        candidates: models by name; the first is the base that the others are compared with.
        benchmarks: names of the benchmarks, in the order of the report.
        settings: settings of the benchmarks and their judge.
        generation: how answers are decoded.
        scale: number and resources of the actors that generate answers.
        storage: folder of all stages.

    Raises:
        ConfigError, DataError: a setting or a file cannot be used.
    """
    settings.check_files(benchmarks)
    shapes = shapes_stage(settings) if "shapes" in benchmarks else None
    chosen = tuple(
        make_benchmark(
            name,
            settings,
            decoding=plain(generation),
            storage=storage,
            shapes_folder=shapes.folder(storage) if shapes else None,
        )
        for name in dict.fromkeys(benchmarks)
    )
    return plan_answers(
        candidates, chosen, settings, generation=generation, scale=scale, storage=storage
    )


def plan_answers(
    candidates: Mapping[str, Candidate],
    benchmarks: Sequence[Benchmark],
    settings: BenchmarkSettings,
    *,
    generation: GenerationConfig,
    scale: ScaleConfig,
    storage: Path,
) -> Evaluation:
    """Plan the answers of models to benchmarks that were made before (see `plan_evaluation`)."""
    answers: dict[tuple[str, str], Stage] = {}
    for benchmark in benchmarks:
        if benchmark.name != "shapes":  # its prompts are drawn later
            check_ids(benchmark.prompts)
            _check_images(benchmark, candidates.values())
        for name, candidate in candidates.items():
            title = f"answers, {name}, {benchmark.name}"
            if candidate.endpoint is not None:
                cache = settings.cache(storage)
                stage = endpoint_stage(
                    benchmark, candidate.endpoint, generation, cache=cache, title=title
                )
            elif candidate.model is not None:
                identity = candidate.inputs or model_inputs(candidate.model)
                stage = answers_stage(
                    candidate.model,
                    lambda benchmark=benchmark: benchmark.prompts,
                    {"prompts": benchmark.prompts_id, **identity},
                    generation=generation,
                    scale=scale,
                    title=title,
                )
            else:
                continue
            answers[benchmark.name, name] = stage
    is_drawn = any(benchmark.name == "shapes" for benchmark in benchmarks)
    drawn = (shapes_stage(settings),) if is_drawn else ()
    return Evaluation(candidates, tuple(benchmarks), settings, storage, drawn, answers)


def _check_images(benchmark: Benchmark, candidates: Iterable[Candidate]) -> None:
    """Raise a ConfigError if a model is to answer questions about pictures that were not given."""
    answering = [item for item in candidates if item.model is not None or item.endpoint is not None]
    if answering and not benchmark.has_images:
        raise ConfigError(
            f"{benchmark.name}.images is not set, or it is a benchmark with questions without a "
            "picture: a model needs one. Only files of answers (--answers) are scored without."
        )


def candidates_of(config: EvalConfig) -> dict[str, Candidate]:
    """Return what the command line names, under short names that differ."""
    if config.answers:
        return {name: Candidate(path) for name, path in named(config.answers).items()}
    return {
        name: Candidate(path, endpoint=endpoint)
        if (endpoint := config.endpoint_of(path))
        else Candidate(path, model=config.checkpoint(path))
        for name, path in named(config.model).items()
    }


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


def named(paths: Sequence[str]) -> dict[str, str]:
    """Give paths short names that all differ.

    Example:
        >>> named(["runs/train-1/model", "runs/train-2/model", "llava-1.5"])
        {'train-1': 'runs/train-1/model', 'train-2': 'runs/train-2/model',
         'llava-1.5': 'llava-1.5'}
        >>> list(named(["api:org/base@http://a:8000/v1", "api:tuned@http://b:8000/v1"]))
        ['base', 'tuned']
    """
    paths_by_name: dict[str, str] = {}
    for path in paths:
        shown = path
        if path.startswith(f"{API}:"):
            shown = path.removeprefix(f"{API}:").partition("@http")[0]  # without the address
        is_file = path.endswith(("json", "jsonl"))
        parts = list((Path(shown).with_suffix("") if is_file else Path(shown)).parts)
        name = parts[-2] if parts[-1] == "model" and len(parts) > 1 else parts[-1]
        while name in paths_by_name:
            name += "'"
        paths_by_name[name] = path
    return paths_by_name


def shapes_stage(settings: BenchmarkSettings) -> Stage:
    """Return the stage of the shapes benchmark's pictures, one for each number and seed."""
    shapes = settings.shapes
    part = {"part": shapes.part} if shapes.part else {}

    def run(folder: Path, _: str) -> None:
        settings = {"count": shapes.scenes, "seed": shapes.seed, **part}
        write_benchmark(folder, world=shapes.world, **settings)

    version = WORLDS[shapes.world].version
    inputs = {"world": version, "scenes": shapes.scenes, "seed": shapes.seed, **part}
    return Stage("benchmark", inputs, run, title="benchmark")


def endpoint_stage(
    benchmark: Benchmark,
    endpoint: EndpointConfig,
    generation: GenerationConfig,
    *,
    cache: Path,
    title: str,
) -> Stage:
    """Return the stage of the answers of a model behind an API to one benchmark."""

    def run(folder: Path, _: str) -> None:
        answers = endpoint_answers(
            benchmark.prompts, endpoint, generation, cache, console=new_console()
        )
        write_answers(answers, folder)

    server = {"model": endpoint.model, "base_url": endpoint.address, "seed": endpoint.seed}
    inputs = {
        "prompts": benchmark.prompts_id,
        "endpoint": server,
        "decoding": changed_settings(generation),
    }
    return Stage("answers", inputs, run, title=title)


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
    """Read a candidate's answers to a benchmark from its finished stage or its file."""
    stage = evaluation.answers.get((benchmark.name, name))
    if stage is None:
        try:
            return read_answer_file(evaluation.candidates[name].path, benchmark.prompts)
        except DataError as error:
            raise DataError(f"{error} {benchmark.answers_hint}".strip()) from error
    return read_answers(stage.folder(evaluation.storage))


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
