"""The settings of an evaluation; field docstrings are the help of the command line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhfv_ray.config import (
    EndpointConfig,
    GenerationConfig,
    ModelConfig,
    ScaleConfig,
    TrackingConfig,
    check_setting,
    check_template_arguments,
)
from rlhfv_ray.errors import ConfigError

NO_SCHEME = re.compile(r"@[^@/]+(:\d+(/|$)|/v\d)")  # host:port or host/v1 in a model's name

# Benchmarks by the name on the command line: the place of the function that makes each from the
# settings and a `Setup`, `module:name`. docs/extending.md shows a new one.
BENCHMARKS = {
    "shapes": "eval.benchmarks:make_shapes",
    "object_halbench": "eval.benchmarks:make_object_halbench",
    "mmhal_bench": "eval.benchmarks:make_mmhal_bench",
    "llava_bench": "eval.benchmarks:make_llava_bench",
    "pope": "eval.benchmarks:make_pope",
    "amber": "eval.benchmarks:make_amber",
    "chair": "eval.benchmarks:make_chair",
    "mme": "eval.benchmarks:make_mme",
    "hallusion_bench": "eval.benchmarks:make_hallusion_bench",
    "llava_wild": "eval.benchmarks:make_llava_wild",
    "refomb": "eval.benchmarks:make_refomb",
}
if TYPE_CHECKING:
    BenchmarkName = str
else:  # the choices that `--help` lists
    BenchmarkName = Literal[tuple(BENCHMARKS)]
API = "api"  # stands for the model of --endpoint among the models
# The settings of the release (Muffin, eval/muffin_inference_logp.py and its siblings).
RELEASED_DECODING = GenerationConfig(max_new_tokens=1024, beams=3, repetition_penalty=1.1)


@dataclass(frozen=True)
class JudgeConfig(EndpointConfig):
    """The judge of answers and its settings."""

    kind: Literal["openai", "replay", "oracle"] = "openai"
    """`openai`: a model on a server with OpenAI's API. `replay`: verdicts of an earlier run.
    `oracle`: the shapes world itself, for answers about its pictures."""
    prompt: str = ""
    """File with the judge's prompt, for example a benchmark's official one, or a folder with
    objects.txt, mmhal.txt and llava.txt (or llava.json). Empty: the prompts of this project."""
    structured: bool = False
    """Request JSON that follows a schema when a judge lists objects. The server must support it.
    `rlhfv-ray report` refuses to compare such scores with scores made without a schema."""
    votes: int = 1
    """Number of verdicts on every answer; more than 1 needs a temperature above 0."""
    verdicts: str = ""
    """File with the verdicts that --judge.kind replay uses: verdicts.jsonl of an earlier
    evaluation, or the judge's replies to one model's answers as the RLHF-V release writes them."""
    cache: str = ""
    """Folder with the cached replies of judges, shared between runs. Empty: `judge-cache` in the
    storage folder."""
    max_missing: float = 0.02
    """Largest fraction of answers without a verdict, 0 to 1. With more, the scores are written, and
    the command ends with an error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(self.votes >= 1, "judge.votes", self.votes, ">= 1")
        check_setting(
            self.votes == 1 or self.temperature > 0,
            "judge.votes",
            self.votes,
            "1 at temperature 0: all would agree",
        )
        check_setting(
            0 <= self.max_missing <= 1, "judge.max_missing", self.max_missing, "between 0 and 1"
        )
        check_setting(
            self.kind != "replay" or bool(self.verdicts),
            "judge.verdicts",
            self.verdicts,
            "set for judge.kind replay",
        )


@dataclass(frozen=True)
class ObjectHalBenchConfig:
    """Object HalBench: hallucinated objects in detailed descriptions of COCO images."""

    questions: str = ""
    """obj_halbench_300_with_image.jsonl of the RLHF-V release. Every line has image_id, question
    and image (base64)."""
    annotations: str = ""
    """Folder with COCO 2014's instances_{train,val}2014.json and captions_{train,val}2014.json."""
    mode: Literal["judge", "rule"] = "judge"
    """`judge`: a judge lists an answer's objects, as in the paper. `rule`: the answer's own words
    are read, without a judge."""
    tagger: str = ""
    """spaCy pipeline that reads the judge's names. Empty: en_core_web_trf, as in the release. none:
    the built-in rules, by which every word is a noun; attributes in names then cost recall."""


@dataclass(frozen=True)
class MMHalBenchConfig:
    """MMHal-Bench: 96 questions, rated from 0 to 6 by a judge."""

    questions: str = ""
    """response_template.json of MMHal-Bench, or mmhal-bench_with_image.jsonl, which has images."""
    images: str = ""
    """Folder of its images, named by image_id or as in image_src. Leave it empty if the question
    file has the images."""


@dataclass(frozen=True)
class LLaVABenchConfig:
    """LLaVA Bench (COCO): 90 questions, scored by a judge against a reference answer."""

    questions: str = ""
    """The file qa90_questions.jsonl."""
    references: str = ""
    """The file qa90_gpt4_answer.jsonl."""
    context: str = ""
    """The file caps_boxes_coco2014_val_80.jsonl: captions and boxes, which show the judge the
    image as text."""
    images: str = ""
    """Folder of COCO val2014 images. Files of answers are scored without it."""


@dataclass(frozen=True)
class POPEConfig:
    """POPE: yes/no questions about objects in COCO images. No judge is needed."""

    questions: str = ""
    """Folder with coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json, or
    some of them, or one such file."""
    images: str = ""
    """Folder of COCO val2014 images. Files of answers are scored without it."""


@dataclass(frozen=True)
class AMBERConfig:
    """AMBER: descriptions and yes/no questions on annotated images. No judge is needed."""

    data: str = ""
    """AMBER's data folder, with annotations.json, relation.json, safe_words.txt and
    query/query_all.json."""
    images: str = ""
    """Folder of its images. Files of answers are scored without it."""
    part: Literal["all", "generative", "discriminative", "existence", "attribute", "relation"] = (
        "all"
    )
    """`generative`: descriptions. `discriminative`: yes/no questions, or those of one dimension.
    `all`: both."""


@dataclass(frozen=True)
class ChairConfig:
    """CHAIR on COCO val2014 by OPERA's protocol: hallucinated objects in descriptions."""

    annotations: str = ""
    """Folder with COCO 2014's instances_{train,val}2014.json and captions_{train,val}2014.json."""
    images: str = ""
    """Folder of COCO val2014 images. Files of answers are scored without it."""
    image_ids: str = ""
    """File with the images to describe: a JSON list of ids or names, or rows with `image_id`, such
    as a file of answers. Empty: `count` images drawn by `seed`."""
    count: int = 500
    """Number of images that are drawn, >= 1."""
    seed: int = 0
    """Random seed of the images that are drawn."""
    question: str = "Please describe this image in detail."
    """The question about every image."""

    def __post_init__(self) -> None:
        check_setting(self.count >= 1, "chair.count", self.count, ">= 1")


@dataclass(frozen=True)
class MMEConfig:
    """MME's hallucination subset: existence, count, position and color. No judge is needed."""

    data: str = ""
    """MME_Benchmark_release_version, or the folder of the hub's Parquet files, or the evaluation
    tool's Your_Results, which has no images: then files of answers are scored."""


@dataclass(frozen=True)
class HallusionBenchConfig:
    """HallusionBench: yes/no questions about figures and edited figures. No judge is needed."""

    questions: str = ""
    """The file HallusionBench.json."""
    images: str = ""
    """Folder with its images: VD and VS. Files of answers are scored without it."""
    part: Literal["all", "figures"] = "all"
    """`all`: also the questions without a figure, which no model here answers, but files of answers
    may. `figures`: only questions about a figure."""


@dataclass(frozen=True)
class LLaVAWildConfig:
    """LLaVA Bench (in the wild): 60 questions about 24 images, scored by a judge."""

    questions: str = ""
    """The file questions.jsonl."""
    references: str = ""
    """The file answers_gpt4.jsonl."""
    context: str = ""
    """The file context.jsonl: captions, which show the judge the image as text."""
    images: str = ""
    """Folder of its images. Files of answers are scored without it."""


@dataclass(frozen=True)
class RefoMBConfig:
    """RefoMB: a judge compares the answer with another model's, by a description of the image."""

    questions: str = ""
    """gpt4v_RefoMB_dev_0521.jsonl of RLAIF-V: questions, descriptions and GPT-4V's answers."""
    images: str = ""
    """Folder of its images, named as in image_url. Files of answers are scored without it."""


@dataclass(frozen=True)
class ShapesBenchConfig:
    """The built-in benchmark: drawn pictures whose truth is known."""

    scenes: int = 600
    """Number of pictures; their compositions are not in the training pairs."""
    seed: int = 0
    """Random seed of the pictures."""
    part: Literal["", "rungs", "choice", "fresh"] = ""
    """Part of the compositions to draw from. The parts of a sweep share no composition. Empty:
    all."""
    mode: Literal["rule", "judge"] = "rule"
    """`rule`: the answer's own words are read. `judge`: a judge lists an answer's objects; with
    --judge.kind oracle, the shapes world is the judge."""
    world: Literal["biased", "balanced", "signs"] = "balanced"
    """Version of the world that the pictures show, the one that the model was trained on."""

    def __post_init__(self) -> None:
        check_setting(self.scenes >= 1, "shapes.scenes", self.scenes, ">= 1")


@dataclass(frozen=True)
class BenchmarkFiles:
    """The judge, and the files and modes of each benchmark that needs files."""

    judge: JudgeConfig = field(default_factory=JudgeConfig)
    object_halbench: ObjectHalBenchConfig = field(default_factory=ObjectHalBenchConfig)
    mmhal_bench: MMHalBenchConfig = field(default_factory=MMHalBenchConfig)
    llava_bench: LLaVABenchConfig = field(default_factory=LLaVABenchConfig)
    pope: POPEConfig = field(default_factory=POPEConfig)
    amber: AMBERConfig = field(default_factory=AMBERConfig)
    chair: ChairConfig = field(default_factory=ChairConfig)
    mme: MMEConfig = field(default_factory=MMEConfig)
    hallusion_bench: HallusionBenchConfig = field(default_factory=HallusionBenchConfig)
    llava_wild: LLaVAWildConfig = field(default_factory=LLaVAWildConfig)
    refomb: RefoMBConfig = field(default_factory=RefoMBConfig)
    files: tuple[str, ...] = ()
    """Files and folders of benchmarks that have no settings of their own, as
    BENCHMARK.NAME=PATH."""

    def file(self, name: str, *, optional: bool = False) -> str:
        """Return the path that `files` gives a name; empty if it gives none and may.

        Raises:
            ConfigError: there is none, and it is not optional.
        """
        paths = dict(entry.split("=", 1) for entry in self.files)
        if optional:
            return paths.get(name, "")
        if name not in paths:
            raise ConfigError(f"A benchmark reads {name}: add --files {name}=PATH.")
        return paths[name]

    def check_files(self, benchmarks: Sequence[str]) -> None:
        """Check that each entry of `files` is for one of these benchmarks, which reads it.

        Raises:
            ConfigError: it is of another form, or no benchmark would read it.
        """
        with_settings = {item.name for item in fields(self)}
        readers = [name for name in benchmarks if name not in with_settings]
        allowed = "BENCHMARK.NAME=PATH, of a benchmark of --benchmarks without settings of its own"
        for entry in self.files:
            is_read = entry.partition(".")[0] in readers
            is_path = re.fullmatch(r"\w+\.\w+=.+", entry) is not None
            check_setting(is_read and is_path, "files", entry, allowed)

    def with_shapes(self, shapes: ShapesBenchConfig) -> "BenchmarkSettings":
        """Add the shapes benchmark, which needs no files."""
        files = {item.name: getattr(self, item.name) for item in fields(BenchmarkFiles)}
        return BenchmarkSettings(shapes=shapes, **files)


@dataclass(frozen=True)
class BenchmarkSettings(BenchmarkFiles):
    """The settings of every benchmark."""

    shapes: ShapesBenchConfig = field(default_factory=ShapesBenchConfig)

    def cache(self, storage: Path) -> Path:
        """Return the folder of all replies that judges and endpoints ever gave."""
        return Path(self.judge.cache).expanduser() if self.judge.cache else storage / "judge-cache"


@dataclass(frozen=True)
class LoadConfig:
    """Settings for loading models."""

    dtype: Literal["fp32", "bf16"] = "bf16"
    """Precision of weights and forward pass."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation. auto: torch's sdpa."""
    allow_pickle: bool = False
    """Load pickled weights (*.bin) too. They can run code while loading, so allow them only from
    people you trust."""
    trust_remote_code: bool = False
    """Run the Python code in a checkpoint. It can do anything, so allow it only from people you
    trust."""
    template_arguments: tuple[str, ...] = ()
    """Arguments of the chat template, as name=value: thinking=false ... Values are JSON, or else
    texts. A template that takes enable_thinking gets false unless it is set here."""

    def __post_init__(self) -> None:
        check_template_arguments("loading.template_arguments", self.template_arguments)


@dataclass(frozen=True)
class InferenceConfig:
    """The processes that generate answers.

    These settings do not change an answer, except that the padding of a batch changes rounding.
    """

    actors: int = 1
    """Number of processes that hold a model; with `gpu`, each has one GPU."""
    gpu: bool = False
    """Give every actor a GPU."""
    cpus: float = 1.0
    """Number of CPUs of every actor."""
    rows: int = 64
    """Prompts per call of an actor. After a fault, the whole call is repeated."""
    batch: int = 16
    """Prompts per forward pass."""

    def __post_init__(self) -> None:
        for name in ("actors", "rows", "batch"):
            check_setting(
                getattr(self, name) >= 1, f"inference.{name}", getattr(self, name), ">= 1"
            )
        check_setting(self.cpus > 0, "inference.cpus", self.cpus, "> 0")


@dataclass(frozen=True)
class EvalConfig(BenchmarkSettings):
    """One evaluation: models or files of answers, benchmarks and judge."""

    model: tuple[str, ...] = ()
    """Hugging Face folders, hub names, or `api:NAME@URL` for a model behind a server. `shapes` is
    the built-in model, `api` the model of --endpoint, and `api:NAME` another model there. All
    servers get the same key. The first model is the base, with which the others are compared."""
    answers: tuple[str, ...] = ()
    """Files of answers, instead of models; docs/evaluation.md has their formats. They need exactly
    one benchmark."""
    benchmarks: tuple[BenchmarkName, ...] = ("shapes",)
    """Benchmarks to evaluate on."""
    name: str = "eval"
    """Name of the evaluation in MLflow, and the first part of its folder's name."""
    storage: str = "runs"
    """Folder for all outputs. On a cluster, every node must reach it, or it is an address such as
    s3://bucket/runs. A relative path is below the current folder, or below ~/rlhfv-ray inside a
    Ray job."""
    decoding: Literal["custom", "released"] = "custom"
    """`released`: as in the RLHF-V release, with 3 beams, repetition penalty 1.1 and 1024 tokens.
    `custom`: by the generation fields."""
    least_agreement: float = 0.0
    """Least share, 0 to 1, of answers of every further model that must equal the first model's word
    for word; with less, the evaluation stops. It checks that a server runs the model it should."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    loading: LoadConfig = field(default_factory=LoadConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_setting(
            bool(self.model) != bool(self.answers),
            "model",
            self.model,
            "set, or else --answers, but not both",
        )
        check_setting(bool(self.benchmarks), "benchmarks", self.benchmarks, "at least one")
        share = self.least_agreement
        check_setting(0 <= share <= 1, "least_agreement", share, "0 to 1")
        is_comparison = not share or len(self.model) > 1
        check_setting(is_comparison, "least_agreement", share, "0, or with two models")
        check_setting(
            not self.answers or len(self.benchmarks) == 1,
            "benchmarks",
            self.benchmarks,
            "one, with --answers",
        )
        check_setting(
            len(set(self.model)) == len(self.model), "model", self.model, "different models"
        )
        default_generation = self.generation == GenerationConfig()
        check_setting(
            self.decoding == "custom" or default_generation,
            "decoding",
            self.decoding,
            "custom, as generation fields are set too",
        )
        check_setting(
            API not in self.model or bool(self.endpoint.model),
            "endpoint.model",
            self.endpoint.model,
            "set for model api",
        )
        for path in self.model:
            server = self.endpoint_of(path)
            is_named = server is None or bool(server.model and not NO_SCHEME.search(server.model))
            allowed = "api:NAME@URL, and a URL begins with http:// or https://"
            check_setting(is_named, "model", path, allowed)

    def endpoint_of(self, path: str) -> EndpointConfig | None:
        """Return the endpoint that `api`, `api:NAME` or `api:NAME@URL` stands for, else None.

        Example:
            >>> config = EvalConfig(model=("api:base@http://a/v1", "api:org/model"))
            >>> config.endpoint_of("api:base@http://a/v1").base_url
            'http://a/v1'
            >>> config.endpoint_of("api:org/model").model, config.endpoint_of("org/model")
            ('org/model', None)
        """
        kind, separator, rest = path.partition(":")
        if kind != API:
            return None
        if not separator:
            return self.endpoint
        name, _, address = rest.partition("@http")  # a model's own name may have an @
        base_url = f"http{address}" if address else self.endpoint.base_url
        return replace(self.endpoint, model=name, base_url=base_url)

    @property
    def decoded(self) -> GenerationConfig:
        """Return the decoding settings in force."""
        return RELEASED_DECODING if self.decoding == "released" else self.generation

    @property
    def scale(self) -> ScaleConfig:
        """Return the part of a scale that answering uses."""
        inference = self.inference
        return ScaleConfig(
            actors=inference.actors,
            gpu=inference.gpu,
            cpus=inference.cpus,
            rows=inference.rows,
            inference_batch=inference.batch,
        )

    def checkpoint(self, path: str) -> ModelConfig:
        """Return how the checkpoint at a path is loaded."""
        loading = self.loading
        return ModelConfig(
            path=path,
            dtype=loading.dtype,
            attention=loading.attention,
            allow_pickle=loading.allow_pickle,
            trust_remote_code=loading.trust_remote_code,
            template_arguments=loading.template_arguments,
        )
