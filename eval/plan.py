"""The plan of an evaluation: its models, its benchmarks, and the stages that make the answers.

Files that a user names are read and checked here, before anything is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmarks import make_benchmark
from eval.benchmarks.contract import Benchmark, check_ids
from eval.config import API, BenchmarkSettings, EvalConfig
from eval.inputs.answer_files import read_answer_file
from eval.inputs.endpoint_answers import endpoint_answers
from rlhfv_ray.config import (
    EndpointConfig,
    GenerationConfig,
    ModelConfig,
    ScaleConfig,
    changed_settings,
    plain,
)
from rlhfv_ray.console import new_console
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.inference.generate import answers_stage, write_answers
from rlhfv_ray.models.loading import model_inputs
from rlhfv_ray.records import Answer
from rlhfv_ray.shapes.world import write_benchmark
from rlhfv_ray.shapes.worlds import WORLDS
from rlhfv_ray.storage.stages import Stage


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
    given: Mapping[tuple[str, str], list[Answer]]  # read from files; none for pictures to be drawn

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


def plan_of(config: EvalConfig, storage: Path) -> Evaluation:
    """Plan the evaluation of a command line (see `plan_evaluation`)."""
    return plan_evaluation(
        candidates_of(config),
        config.benchmarks,
        config,
        generation=config.decoded,
        scale=config.scale,
        storage=storage,
    )


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
    given: dict[tuple[str, str], list[Answer]] = {}
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
                if benchmark.name != "shapes":
                    given[benchmark.name, name] = given_answers(candidate.path, benchmark)
                continue
            answers[benchmark.name, name] = stage
    is_drawn = any(benchmark.name == "shapes" for benchmark in benchmarks)
    drawn = (shapes_stage(settings),) if is_drawn else ()
    return Evaluation(candidates, tuple(benchmarks), settings, storage, drawn, answers, given)


def _check_images(benchmark: Benchmark, candidates: Iterable[Candidate]) -> None:
    """Raise a ConfigError if a model is to answer questions about pictures that were not given."""
    answering = [item for item in candidates if item.model is not None or item.endpoint is not None]
    if answering and not benchmark.has_images:
        raise ConfigError(
            f"{benchmark.name}.images is not set, or it is a benchmark with questions without a "
            "picture: a model needs one. Only files of answers (--answers) are scored without."
        )


def given_answers(path: str, benchmark: Benchmark) -> list[Answer]:
    """Read a file of answers to a benchmark.

    Raises:
        DataError: the file has no answer for each prompt; with the benchmark's hint.
    """
    try:
        return read_answer_file(path, benchmark.prompts)
    except DataError as error:
        raise DataError(f"{error} {benchmark.answers_hint}".strip()) from error


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
