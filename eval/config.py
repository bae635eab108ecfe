"""What a user can set in an evaluation; field docstrings are the command line's help."""

from dataclasses import dataclass, field
from typing import Literal

from rlhfv_ray.config import EndpointConfig, GenerationConfig, TrackingConfig
from rlhfv_ray.config import check_setting as _check

BenchmarkName = Literal["shapes", "object_halbench", "mmhal_bench", "llava_bench", "pope", "amber"]
# The release generates with these (Muffin, eval/muffin_inference_logp.py and its siblings).
RELEASED_DECODING = GenerationConfig(max_new_tokens=1024, beams=3, repetition_penalty=1.1)


@dataclass(frozen=True)
class JudgeConfig(EndpointConfig):
    """Who judges answers, and how."""

    kind: Literal["openai", "replay", "oracle"] = "openai"
    """`openai`: a model behind an OpenAI-speaking server. `replay`: verdicts recorded earlier. `oracle`: the shapes world itself, for
    answers about it."""
    prompt: str = ""
    """File with the judge's prompt, for example a benchmark's official one, or a folder of them (objects.txt, mmhal.txt, llava.txt or
    llava.json); empty: ours, versioned."""
    structured: bool = False
    """Ask for JSON by a schema where objects are extracted. Needs a server that supports it; scores made so are a variant of their own."""
    votes: int = 1
    """Verdicts on every answer; above 1 with a temperature above 0."""
    verdicts: str = ""
    """Of `replay`: a verdicts.jsonl of an earlier evaluation."""
    cache: str = ""
    """Folder of all verdicts ever paid for, shared between runs; empty: `judge-cache` in the storage folder."""
    max_missing: float = 0.02
    """Largest share of answers that may stay without a verdict; more stop the evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.votes >= 1, "judge.votes", self.votes, ">= 1")
        _check(
            self.votes == 1 or self.temperature > 0,
            "judge.votes",
            self.votes,
            "1 at temperature 0: all would agree",
        )
        _check(0 <= self.max_missing <= 1, "judge.max_missing", self.max_missing, "between 0 and 1")
        _check(
            self.kind != "replay" or bool(self.verdicts),
            "judge.verdicts",
            self.verdicts,
            "set for judge.kind replay",
        )


@dataclass(frozen=True)
class ObjectHalBenchConfig:
    """Object HalBench: objects that detailed descriptions name although they are not there."""

    questions: str = ""
    """obj_halbench_300_with_image.jsonl of the RLHF-V release: image_id, question, image (base64) on every line."""
    annotations: str = ""
    """Folder with COCO 2014's instances_{train,val}2014.json and captions_{train,val}2014.json."""
    mode: Literal["judge", "rule"] = "judge"
    """`judge`: a judge lists an answer's objects, as in the paper. `rule`: the answer's own words, without any judge."""
    tagger: str = ""
    """spaCy pipeline that reads the judge's names; empty: en_core_web_trf if it is installed, else nouns by the built-in rules."""


@dataclass(frozen=True)
class MMHalBenchConfig:
    """MMHal-Bench: 96 questions, rated from 0 to 6 by a judge."""

    questions: str = ""
    """response_template.json of MMHal-Bench (or with images, mmhal-bench_with_image.jsonl)."""
    images: str = ""
    """Folder of its images, named by image_id or as in image_src; not needed where the questions hold them."""


@dataclass(frozen=True)
class LLaVABenchConfig:
    """LLaVA Bench (COCO): 90 questions, judged against a reference answer."""

    questions: str = ""
    """qa90_questions.jsonl."""
    references: str = ""
    """qa90_gpt4_answer.jsonl."""
    context: str = ""
    """caps_boxes_coco2014_val_80.jsonl: captions and boxes, what the judge sees of the image."""
    images: str = ""
    """Folder of COCO val2014 images."""


@dataclass(frozen=True)
class POPEConfig:
    """POPE: is there such an object in the image? No judge needed."""

    questions: str = ""
    """Folder with coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json (those that are there are asked)."""
    images: str = ""
    """Folder of COCO val2014 images."""


@dataclass(frozen=True)
class AMBERConfig:
    """AMBER: descriptions and yes/no questions on annotated images. No judge needed."""

    data: str = ""
    """AMBER's data folder: annotations.json, relation.json, safe_words.txt, query/query_all.json."""
    images: str = ""
    """Folder of its images."""
    part: Literal["all", "generative", "discriminative"] = "all"
    """Descriptions, yes/no questions, or both."""


@dataclass(frozen=True)
class ShapesBenchConfig:
    """The embedded benchmark, on pictures whose truth is known."""

    scenes: int = 600
    """Pictures, of unseen compositions."""
    seed: int = 0
    """Of the pictures."""
    mode: Literal["rule", "judge"] = "rule"
    """`rule`: by the answer's own words. `judge`: a judge lists an answer's objects; with --judge.kind oracle the world does it itself."""

    def __post_init__(self) -> None:
        _check(self.scenes >= 1, "shapes.scenes", self.scenes, ">= 1")


@dataclass(frozen=True)
class LoadConfig:
    """How models are loaded."""

    dtype: Literal["fp32", "bf16"] = "bf16"
    """Precision of weights and forward pass."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """How attention is computed; auto: flash-attention 2 where it can be had, else torch's sdpa."""
    allow_pickle: bool = False
    """Also load weights that are pickles (*.bin). They can run code on loading: only from people you trust."""
    trust_remote_code: bool = False
    """Run the Python code that a checkpoint brings for its model. It can do anything: only from people you trust."""


@dataclass(frozen=True)
class InferenceConfig:
    """How answering is spread. Nothing here changes an answer, save that a batch's padding rounds sums otherwise."""

    actors: int = 1
    """Processes that hold a model; with GPUs, one GPU each."""
    gpu: bool = False
    """Give every actor a GPU."""
    cpus: float = 1.0
    """CPUs of every actor."""
    rows: int = 64
    """Prompts an actor takes at a time: the unit that is resumed after a fault."""
    batch: int = 16
    """Prompts per forward pass."""

    def __post_init__(self) -> None:
        for name in ("actors", "rows", "batch"):
            _check(getattr(self, name) >= 1, f"inference.{name}", getattr(self, name), ">= 1")
        _check(self.cpus > 0, "inference.cpus", self.cpus, "> 0")


@dataclass(frozen=True)
class EvalConfig:
    """One evaluation: models (or answers), benchmarks, judge."""

    model: tuple[str, ...] = ()
    """Hugging Face folders or hub names; `shapes` is the embedded model, `api` the model of --endpoint. The first is the base that the
    others are compared with."""
    answers: tuple[str, ...] = ()
    """Files of answers in the release's formats, in place of models; for one benchmark at a time."""
    benchmarks: tuple[BenchmarkName, ...] = ("shapes",)
    """What to evaluate on."""
    name: str = "eval"
    """Shown in MLflow and in the evaluation folder's name."""
    storage: str = "runs"
    """Folder of everything that is written; on a cluster, one that every node reaches, or an address (s3://bucket/runs). Relative: below
    the current folder, or below ~/rlhfv-ray inside a Ray job."""
    decoding: Literal["custom", "released"] = "custom"
    """`released`: as the RLHF-V release answers, 3 beams, repetition penalty 1.1, 1024 tokens. `custom`: by the generation fields."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    loading: LoadConfig = field(default_factory=LoadConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    shapes: ShapesBenchConfig = field(default_factory=ShapesBenchConfig)
    object_halbench: ObjectHalBenchConfig = field(default_factory=ObjectHalBenchConfig)
    mmhal_bench: MMHalBenchConfig = field(default_factory=MMHalBenchConfig)
    llava_bench: LLaVABenchConfig = field(default_factory=LLaVABenchConfig)
    pope: POPEConfig = field(default_factory=POPEConfig)
    amber: AMBERConfig = field(default_factory=AMBERConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        _check(
            bool(self.model) != bool(self.answers),
            "model",
            self.model,
            "given, or else --answers, but not both",
        )
        _check(bool(self.benchmarks), "benchmarks", self.benchmarks, "at least one")
        _check(
            not self.answers or len(self.benchmarks) == 1,
            "benchmarks",
            self.benchmarks,
            "one, with --answers",
        )
        _check(len(set(self.model)) == len(self.model), "model", self.model, "different models")
        custom = self.generation == GenerationConfig()
        _check(
            self.decoding == "custom" or custom,
            "decoding",
            self.decoding,
            "custom, as generation fields are set too",
        )
        _check(
            "api" not in self.model or bool(self.endpoint.model),
            "endpoint.model",
            self.endpoint.model,
            "set for model api",
        )

    @property
    def decoded(self) -> GenerationConfig:
        """How answers are decoded."""
        return RELEASED_DECODING if self.decoding == "released" else self.generation
