"""One evaluation: answers of every model to every benchmark, verdicts on them, scores, and where people read them.

The evaluation's folder `<storage>/<name>-<fingerprint>/` holds `config.json`, `summary.json`, `report.html`, figures, and for every benchmark
and model the scores with each answer's verdict (`<benchmark>/<model>.json`), what the judge was asked and said
(`<benchmark>/<model>.verdicts.jsonl`), and the ledger of what that took. Answers are stages of their own, verdicts are in the judge's cache:
what was done once is not done again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.benchmarks.amber import AMBER
from eval.benchmarks.contract import Benchmark, Scores
from eval.benchmarks.llava_bench import LLaVABench
from eval.benchmarks.mmhal_bench import MMHalBench
from eval.benchmarks.object_halbench import ObjectHalBench
from eval.benchmarks.pope import POPE
from eval.benchmarks.shapes import ShapesBenchmark
from eval.config import EvalConfig
from eval.inputs.answers import check_decoding, endpoint_answers, read_answer_file
from eval.judge.records import verdict_rows
from eval.judge.run import judge_answers
from eval.reporting.html import Section, write_page
from eval.reporting.mlflow_log import log_to_checkpoints, track_models
from eval.reporting.score_files import save_scores
from eval.reporting.tables import draw, summary, table
from rlhfv_ray.cluster import check_fits, connect
from rlhfv_ray.config import ModelConfig, ScaleConfig, fingerprint, plain
from rlhfv_ray.endpoint.budget import Ledger
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.endpoint.run import check_endpoint
from rlhfv_ray.inference.generate import answers_stage, read_answers, write_answers
from rlhfv_ray.models.loading import model_inputs
from rlhfv_ray.records import Answer
from rlhfv_ray.shapes.world import WORLD, write_benchmark
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.storage.mirror import display_path
from rlhfv_ray.storage.stages import Stage, run_stages
from rlhfv_ray.tracking.run import sync_tracking, tracked_run, tracking_uri, ui_command

API = "api"


@dataclass(frozen=True)
class Plan:
    """What is to be done, declared before any of it is."""

    config: EvalConfig
    storage: Path
    benchmarks: tuple[Benchmark, ...]
    made: tuple[Stage, ...]  # benchmarks that are drawn here
    models: Mapping[str, str]  # path by the name that tables show; files of answers likewise
    answers: Mapping[tuple[str, str], Stage]  # by benchmark and model; none where a file holds them

    @property
    def cache(self) -> Path:
        """Replies of all judges and endpoints."""
        return (
            Path(self.config.judge.cache).expanduser()
            if self.config.judge.cache
            else self.storage / "judge-cache"
        )

    @property
    def folder(self) -> Path:
        """Of the evaluation."""
        config = plain(self.config)
        kept = {
            name: value
            for name, value in config.items()
            if name not in ("storage", "tracking", "inference")
        }
        names = {
            f"{benchmark} {model}": stage.folder(self.storage).name
            for (benchmark, model), stage in self.answers.items()
        }
        return (
            self.storage / f"{self.config.name}-{fingerprint({'config': kept, 'answers': names})}"
        )


def run_evaluation(config: EvalConfig, storage: Path, *, console: Console) -> dict[str, Any]:
    """Evaluate models, or do the rest of it; returns what it writes to `summary.json`.

    Raises:
        RlhfvError: something the user can mend.
    """
    storage.mkdir(parents=True, exist_ok=True)
    connect()
    check_fits(scale_of(config), who=("actors",), setting="inference")
    plan = plan_evaluation(config, storage)
    folder = plan.folder
    with (
        hold_lease(folder),
        tracked_run(
            folder, config.tracking, store=storage, name=folder.name, params=plain(config), tags={}
        ) as run,
    ):
        write_json(folder / "config.json", plain(config))
        run_stages(list(plan.answers.values()), storage)
        sections = [
            evaluate(plan, benchmark, folder, console=console) for benchmark in plan.benchmarks
        ]
        outcome = {section.name: summary(section.models) for section in sections}
        write_json(folder / "summary.json", outcome)
        write_page(
            folder / "report.html", sections, title=f"Evaluation of {', '.join(plan.models)}"
        )
        for file, where in (("report.html", "report"), ("summary.json", ""), ("config.json", "")):
            run.log_file(folder / file, where)
        for section in sections:
            for figure in section.figures.values():
                run.log_file(figure, f"figures/{section.name}")
        track_models(plan.models, sections, run)
    for section in sections:
        console.print(table(section.models))
    synced = sync_tracking(folder)
    log_to_checkpoints(plan.models, sections, config.tracking, evaluation=folder.name)
    uri = tracking_uri(config.tracking, storage)
    for what, where in (
        ("report", display_path(folder / "report.html")),
        ("MLflow", ui_command(uri) if synced else "not reached"),
    ):
        console.print(f"{what:<14} {where}", highlight=False, soft_wrap=True)
    return outcome


def plan_evaluation(config: EvalConfig, storage: Path) -> Plan:
    """Declare benchmarks and answers; reads and checks what the user gave, and asks a judge that is needed whether it is there.

    Raises:
        ConfigError, DataError, JudgeError: before anything long has begun.
    """
    decoding = plain(config.decoded)
    made = shapes_stage(config) if "shapes" in config.benchmarks else None
    if made:
        run_stages([made], storage)  # a second: its prompts are needed below
    makers: dict[str, Callable[[], Benchmark]] = {
        "shapes": lambda: ShapesBenchmark(
            made.folder(storage) if made else Path(),
            decoding=decoding,
            judge=config.judge if config.shapes.mode == "judge" else None,
        ),
        "object_halbench": lambda: ObjectHalBench(
            config.object_halbench, config.judge, cache=storage / "coco", decoding=decoding
        ),
        "mmhal_bench": lambda: MMHalBench(config.mmhal_bench, config.judge, decoding=decoding),
        "llava_bench": lambda: LLaVABench(config.llava_bench, config.judge, decoding=decoding),
        "pope": lambda: POPE(config.pope, decoding=decoding),
        "amber": lambda: AMBER(config.amber, decoding=decoding),
    }
    benchmarks = tuple(makers[name]() for name in dict.fromkeys(config.benchmarks))
    models = named(config.model or config.answers)
    prompts = {benchmark.name: str(benchmark.manifest()["prompts"]) for benchmark in benchmarks}
    answers = {
        (benchmark.name, model): answer_stage(
            config, benchmark, model, path, prompts[benchmark.name], storage
        )
        for benchmark in benchmarks
        for model, path in models.items()
        if config.model
    }
    plan = Plan(config, storage, benchmarks, (made,) if made else (), models, answers)
    if config.judge.kind == "openai" and any(benchmark.judged for benchmark in benchmarks):
        check_endpoint(config.judge, plan.cache)
    if API in config.model:
        check_decoding(config.decoded)
        check_endpoint(config.endpoint, plan.cache)
    return plan


def named(paths: Sequence[str]) -> dict[str, str]:
    """Short names for paths, all different.

    Example:
        >>> named(["runs/train-1/model", "runs/train-2/model", "llava-1.5", "shapes"])
        {'train-1': 'runs/train-1/model', 'train-2': 'runs/train-2/model', 'llava-1.5': 'llava-1.5', 'shapes': 'shapes'}
    """
    names: dict[str, str] = {}
    for path in paths:
        parts = [
            part
            for part in Path(path)
            .with_suffix("" if path.endswith(("json", "jsonl")) else Path(path).suffix)
            .parts
            if part
        ]
        name = parts[-2] if parts[-1] == "model" and len(parts) > 1 else parts[-1]
        while name in names:
            name += "'"
        names[name] = path
    return names


def scale_of(config: EvalConfig) -> ScaleConfig:
    """The part of the line's scale that answering uses."""
    inference = config.inference
    return ScaleConfig(
        actors=inference.actors,
        gpu=inference.gpu,
        cpus=inference.cpus,
        rows=inference.rows,
        inference_batch=inference.batch,
    )


def shapes_stage(config: EvalConfig) -> Stage:
    """The shapes benchmark's pictures; the same folder that an experiment of this size and seed makes."""
    shapes = config.shapes
    inputs = {"world": WORLD, "scenes": shapes.scenes, "seed": shapes.seed}
    return Stage(
        "benchmark",
        inputs,
        lambda folder, _: write_benchmark(folder, count=shapes.scenes, seed=shapes.seed),
        title="benchmark",
    )


def answer_stage(
    config: EvalConfig, benchmark: Benchmark, model: str, path: str, prompts: str, storage: Path
) -> Stage:
    """The answers of one model to one benchmark."""
    title = f"answers, {model}, {benchmark.name}"
    if path == API:
        endpoint, generation = config.endpoint, config.decoded
        asked = {name: getattr(endpoint, name) for name in ("model", "base_url", "seed")}
        cache = (
            Path(config.judge.cache).expanduser() if config.judge.cache else storage / "judge-cache"
        )

        def run(folder: Path, _: str) -> None:
            write_answers(
                endpoint_answers(benchmark.prompts, endpoint, generation, cache, console=Console()),
                folder,
            )

        return Stage(
            "answers",
            {"prompts": prompts, "endpoint": asked, "decoding": plain(generation)},
            run,
            title=title,
        )
    loaded = ModelConfig(path=path, **plain(config.loading))
    return answers_stage(
        loaded,
        lambda: benchmark.prompts,
        {"prompts": prompts, **model_inputs(loaded)},
        generation=config.decoded,
        scale=scale_of(config),
        title=title,
    )


def evaluate(plan: Plan, benchmark: Benchmark, folder: Path, *, console: Console) -> Section:
    """Judge and score every model's answers to one benchmark, and keep it all."""
    place = folder / benchmark.name
    place.mkdir(exist_ok=True)
    answers = {
        model: answers_of(plan, benchmark, model, path) for model, path in plan.models.items()
    }
    asked = {model: benchmark.requests(some) for model, some in answers.items()}
    verdicts: dict[str, dict[str, list[Reply]]] = {model: {} for model in answers}
    if any(asked.values()):
        verdicts, ledger = judge_models(plan, benchmark, answers, asked, console=console)
        write_json(place / "ledger.json", asdict(ledger))
    models: dict[str, Scores] = {}
    for model, some in answers.items():
        if asked[model]:
            lines = "".join(
                json.dumps(row) + "\n" for row in verdict_rows(asked[model], verdicts[model])
            )
            (place / f"{model}.verdicts.jsonl").write_text(lines, encoding="utf-8")
        models[model] = benchmark.score(some, verdicts[model])
        save_scores(models[model], place / f"{model}.json")
    return Section(benchmark.name, models, benchmark.prompts, draw(models, place))


def judge_models(
    plan: Plan,
    benchmark: Benchmark,
    answers: Mapping[str, Sequence[Answer]],
    asked: Mapping[str, Sequence[Request]],
    *,
    console: Console,
) -> tuple[dict[str, dict[str, list[Reply]]], Ledger]:
    """The verdicts on all models' answers, asked for together: one estimate, one bar, one tail."""
    of = {
        f"{model}/{request.id}": (model, request)
        for model, some in asked.items()
        for request in some
    }
    oracles = {
        model: oracle
        for model, some in answers.items()
        if (oracle := benchmark.oracle(some)) is not None
    }
    found, ledger = judge_answers(
        [replace(request, id=name) for name, (_, request) in of.items()],
        plan.config.judge,
        plan.cache,
        readable=benchmark.readable,
        oracle=(lambda request: oracles[of[request.id][0]](of[request.id][1])) if oracles else None,
        console=console,
    )
    return {
        model: {r.id: found[f"{model}/{r.id}"] for r in some} for model, some in asked.items()
    }, ledger


def answers_of(plan: Plan, benchmark: Benchmark, model: str, path: str) -> list[Answer]:
    """Answers of a finished stage, or from a file."""
    stage = plan.answers.get((benchmark.name, model))
    return (
        read_answers(stage.folder(plan.storage))
        if stage
        else read_answer_file(path, benchmark.prompts)
    )
