"""What a user can set: frozen dataclasses, checked when they are made.

A recipe (experiments/recipes.py) returns a full `DDPOConfig`; the command line changes single fields of it. Field docstrings are
the command line's help.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhfv_ray.errors import ConfigError

SHAPES = "shapes"  # stands for the embedded world, as a model path and as a data path


def _check(ok: bool, name: str, given: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{name} = {given!r}: must be {allowed}.")


@dataclass(frozen=True)
class ModelConfig:
    """Which model to align."""

    path: str = ""
    """Hugging Face folder (or hub name) of an image-text-to-text model; `shapes` is the embedded one."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Precision of weights and forward pass; bf16 keeps fp32 master weights in the optimizer."""
    layout: Literal["auto", "shared", "plain"] = "auto"
    """Rows of a pair: `shared` computes what its answers have in common once, `plain` twice; auto shares where the family allows it."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """How attention is computed. auto: torch's sdpa where rows are shared (their masks want it), else flash-attention 2 where it can be had."""
    allow_pickle: bool = False
    """Also load weights that are pickles (*.bin). They can run code on loading: only from people you trust."""
    trust_remote_code: bool = False
    """Run the Python code that a checkpoint brings for its model. It can do anything: only from people you trust."""
    trainable: tuple[Literal["vision", "projector", "language"], ...] = (
        "vision",
        "projector",
        "language",
    )
    """Parts that are trained; the others stay as they are."""
    lora_rank: int = 0
    """Above 0: low-rank adapters (LoRA) of this rank are trained in place of the language model's own weights, and merged on export."""
    lora_alpha: int = 0
    """Adapters are scaled by alpha / rank; 0 stands for 2 * rank."""
    lora_targets: tuple[str, ...] = ()
    """Names of the linear layers that get adapters (q_proj v_proj ...); none: all of the language model."""

    def __post_init__(self) -> None:
        _check(self.lora_rank >= 0, "model.lora_rank", self.lora_rank, ">= 0 (0: no adapters)")
        _check(self.lora_alpha >= 0, "model.lora_alpha", self.lora_alpha, ">= 0 (0: 2 * rank)")
        _check(
            bool(self.trainable),
            "model.trainable",
            self.trainable,
            "at least one of vision, projector, language",
        )
        without = not self.lora_rank or "language" in self.trainable
        _check(
            without,
            "model.trainable",
            self.trainable,
            "with language in it, as adapters are asked for (lora_rank)",
        )

    @property
    def training(self) -> dict[str, Any]:
        """What of it changes the result of training, but not the reference."""
        return {
            name: value
            for name, value in plain(self).items()
            if name == "trainable" or name.startswith("lora_")
        }


@dataclass(frozen=True)
class DataConfig:
    """Which preference pairs to learn from."""

    path: str = ""
    """File or folder of preference pairs; `shapes` makes them in the embedded world."""
    format: Literal[
        "auto", "rlhfv", "rlaifv", "muffin_tsv", "trl", "llamafactory", "swift",
        "conversations", "messages", "completion", "vqa", "caption",
    ] = "auto"  # fmt: skip
    """Layout of the data; auto looks at the file type and the columns. From `conversations` on: examples, for fine-tuning alone."""
    rule: Literal["muffin", "both_sides"] = "muffin"
    """Which tokens count as corrected where no human marked them: `muffin` as the RLHF-V release (replacements only), or
    `both_sides` (insertions and deletions too)."""
    min_match: int = 3
    """Shortest run of equal tokens that counts as unchanged."""
    spans: bool = True
    """Use the spans that a human marked, where the data has them; they win over compared tokens."""
    limit: int = 0
    """Train on so many of the pairs, drawn by --seed, fewer being part of more; 0: all."""
    max_length: int = 2048
    """Longest prompt + answer in tokens, image tokens included; longer pairs are set aside, never cut."""
    max_unusable: float = 0.01
    """Largest share of rows that may be unusable before the job stops."""
    reference: str = ""
    """A finished reference folder to use instead of computing one; checked against the model and data."""

    def __post_init__(self) -> None:
        _check(self.min_match >= 1, "data.min_match", self.min_match, ">= 1")
        _check(self.max_length >= 2, "data.max_length", self.max_length, ">= 2")
        _check(
            0 <= self.max_unusable <= 1, "data.max_unusable", self.max_unusable, "between 0 and 1"
        )
        _check(self.limit >= 0, "data.limit", self.limit, ">= 0 (0: all)")

    def used(self, pairs: int) -> int:
        """How many of so many pairs are trained on.

        Raises:
            ConfigError: there are fewer than `limit`.
        """
        _check(
            self.limit <= pairs, "data.limit", self.limit, f"at most {pairs}, the pairs there are"
        )
        return self.limit or pairs


@dataclass(frozen=True)
class ShapesConfig:
    """The embedded world: how many scenes; used only where model or data path is `shapes`."""

    scenes: int = 1600
    """Scenes the base model describes for the annotator; answers without a mistake give no pair."""
    evaluation_scenes: int = 600
    """Scenes of unseen compositions to score base and aligned model on."""
    pairs: Literal["corrections", "rankings"] = "corrections"
    """An answer corrected by the world's annotator, or the better and the worse of two answers, as people rank whole answers."""
    temperature: float = 0.7
    """Of the answers that are corrected or ranked."""
    seed: int = 0
    """Of the scenes, and of the answers to correct."""

    def __post_init__(self) -> None:
        _check(self.scenes >= 1, "shapes.scenes", self.scenes, ">= 1")
        _check(
            self.evaluation_scenes >= 1, "shapes.evaluation_scenes", self.evaluation_scenes, ">= 1"
        )
        _check(self.temperature > 0, "shapes.temperature", self.temperature, "> 0")


@dataclass(frozen=True)
class LossConfig:
    """DDPO, RLHF-V (arXiv 2312.00849) Eq. 4 and 5."""

    beta: float = 0.5
    """How dearly leaving the reference model is paid for, > 0. Summed log-probs (normalize off) want about 1/length of it."""
    gamma: float = 5.0
    """Weight of corrected tokens against 1 for the others, >= 1; 1 is plain DPO."""
    normalize: bool = True
    """Divide an answer's score by its total weight, as the paper does."""
    sft_weight: float = 0.0
    """Weight of an added negative log-likelihood of the chosen answer, >= 0."""
    preference_weight: float = 1.0
    """Weight of the preference loss, >= 0. At 0, with sft_weight, it is supervised fine-tuning: neither rejected answers nor the reference
    are used."""

    def __post_init__(self) -> None:
        _check(self.beta > 0, "loss.beta", self.beta, "> 0")
        _check(self.gamma >= 1, "loss.gamma", self.gamma, ">= 1 (1 is plain DPO)")
        _check(self.sft_weight >= 0, "loss.sft_weight", self.sft_weight, ">= 0")
        _check(
            self.preference_weight >= 0, "loss.preference_weight", self.preference_weight, ">= 0"
        )
        some = self.preference_weight + self.sft_weight > 0
        _check(
            some,
            "loss.sft_weight",
            self.sft_weight,
            "above 0, as the preference loss has no weight",
        )

    @property
    def is_sft(self) -> bool:
        """Whether chosen answers are all that is learnt from."""
        return self.preference_weight == 0


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule, and how long."""

    learning_rate: float = 5e-7
    """Peak learning rate, > 0."""
    batch: int = 32
    """Pairs per update over all workers."""
    epochs: float = 7.0
    """Passes over the pairs; ignored when steps is set."""
    steps: int = 0
    """Updates; 0 derives them from epochs."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises linearly."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up: a half cosine down to 0, or a constant rate."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    clip: float = 1.0
    """Largest gradient norm; larger gradients are scaled down. 0 switches clipping off."""
    max_skipped: int = 3
    """This many updates in a row skipped for a non-finite loss or gradient stop the run."""

    def __post_init__(self) -> None:
        _check(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "> 0")
        _check(self.batch >= 1, "optim.batch", self.batch, ">= 1")
        _check(self.epochs > 0, "optim.epochs", self.epochs, "> 0")
        _check(self.steps >= 0, "optim.steps", self.steps, ">= 0 (0: from epochs)")
        _check(0 <= self.warmup <= 1, "optim.warmup", self.warmup, "between 0 and 1")
        _check(self.clip >= 0, "optim.clip", self.clip, ">= 0 (0: no clipping)")
        _check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, ">= 0")
        _check(self.max_skipped >= 1, "optim.max_skipped", self.max_skipped, ">= 1")

    def total_steps(self, pairs: int) -> int:
        """Updates of a run over `pairs` pairs."""
        return self.steps or max(1, round(self.epochs * pairs / self.batch))


@dataclass(frozen=True)
class ScaleConfig:
    """How the work is spread. Nothing here changes a result, only how fast it comes and what it survives."""

    workers: int = 1
    """Training workers (ranks); with GPUs, one GPU each."""
    gpu: bool = False
    """Give every worker and actor a GPU."""
    cpus: float = 1.0
    """CPUs of every worker and actor."""
    micro_batch: int = 1
    """Pairs per worker and forward pass; batch / (workers * micro_batch) passes are accumulated."""
    row_tokens: int = 0
    """Pairs of one forward pass share a row up to this many tokens; 0 gives each its own. Needs shared rows (model.layout)."""
    recompute: int = -1
    """Activation checkpointing: 0 keeps all layers' activations for backward, k computes those of every k-th layer again (1: all); -1 is
    the fastest of 0, 4, 2 and 1 that fits into memory."""
    memory_gib: float = 0.0
    """Memory of a worker's device, for the check that a step fits; 0: as found."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage: what is sharded over workers (1 optimizer, 2 + gradients, 3 + parameters)."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep optimizer state (ZeRO >= 1), or also parameters (ZeRO 3), in CPU memory."""
    actors: int = 1
    """Actors of the reference pass and of generation."""
    rows: int = 64
    """Rows an actor takes at a time: the unit that is resumed after a fault."""
    inference_batch: int = 16
    """Pairs (reference pass) or prompts (generation) per forward pass of an actor."""
    checkpoint_every: int = 50
    """Updates between checkpoints; one is always written at the end."""
    keep: int = 2
    """Newest checkpoints kept."""
    max_failures: int = 3
    """How often a lost training worker is replaced before the job gives up."""
    log_every: int = 5
    """Updates between reports to the driver; every update is reported."""

    def __post_init__(self) -> None:
        for name in (
            "workers",
            "micro_batch",
            "actors",
            "rows",
            "inference_batch",
            "checkpoint_every",
            "keep",
        ):
            _check(getattr(self, name) >= 1, f"scale.{name}", getattr(self, name), ">= 1")
        _check(self.cpus > 0, "scale.cpus", self.cpus, "> 0")
        _check(
            self.recompute >= -1, "scale.recompute", self.recompute, ">= -1 (-1: auto, 0: all kept)"
        )
        _check(self.memory_gib >= 0, "scale.memory_gib", self.memory_gib, ">= 0 (0: as found)")
        _check(
            self.row_tokens >= 0, "scale.row_tokens", self.row_tokens, ">= 0 (0: one pair a row)"
        )
        _check(self.max_failures >= 0, "scale.max_failures", self.max_failures, ">= 0")
        _check(self.log_every >= 1, "scale.log_every", self.log_every, ">= 1")
        allowed = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        _check(
            self.zero_stage >= allowed,
            "scale.offload",
            self.offload,
            f"none below ZeRO stage {allowed}",
        )


@dataclass(frozen=True)
class GenerationConfig:
    """How answers are decoded."""

    max_new_tokens: int = 256
    """Longest answer."""
    beams: int = 1
    """Beams of beam search; 1 is greedy (or sampling, with a temperature)."""
    temperature: float = 0.0
    """0 decodes greedily; above, samples."""
    top_p: float = 1.0
    """Sampling keeps the smallest set of tokens with this much probability."""
    repetition_penalty: float = 1.0
    """Above 1 makes repeated tokens less likely."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer; they are cut off."""
    seed: int = 0
    """Of sampling."""

    def __post_init__(self) -> None:
        _check(self.max_new_tokens >= 1, "generation.max_new_tokens", self.max_new_tokens, ">= 1")
        _check(self.beams >= 1, "generation.beams", self.beams, ">= 1")
        _check(
            self.temperature >= 0, "generation.temperature", self.temperature, ">= 0 (0: greedy)"
        )
        _check(
            not (self.beams > 1 and self.temperature > 0),
            "generation.beams",
            self.beams,
            "1 when sampling",
        )
        _check(all(self.stop), "generation.stop", self.stop, "non-empty strings")
        _check(0 < self.top_p <= 1, "generation.top_p", self.top_p, "in (0, 1]")
        _check(
            self.repetition_penalty > 0,
            "generation.repetition_penalty",
            self.repetition_penalty,
            "> 0",
        )


@dataclass(frozen=True)
class TrackingConfig:
    """Where MLflow keeps the runs."""

    uri: str = ""
    """MLflow tracking server or store; empty: a SQLite store in the storage folder."""
    experiment: str = "rlhfv-ray"
    """MLflow experiment."""


@dataclass(frozen=True)
class DDPOConfig:
    """One experiment from preference pairs to scores."""

    name: str = "ddpo"
    """Shown in MLflow and in the experiment folder's name."""
    storage: str = "runs"
    """Folder of everything that is written; on a cluster, one that every node reaches, or an address (s3://bucket/runs). Relative: below
    the current folder, or below ~/rlhfv-ray inside a Ray job."""
    seed: int = 0
    """Of the order of the pairs."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    shapes: ShapesConfig = field(default_factory=ShapesConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        per_pass = self.scale.workers * self.scale.micro_batch
        allowed = f"a multiple of scale.workers * scale.micro_batch = {per_pass}"
        _check(self.optim.batch % per_pass == 0, "optim.batch", self.optim.batch, allowed)

    @property
    def accumulation(self) -> int:
        """Forward passes per update and worker."""
        return self.optim.batch // (self.scale.workers * self.scale.micro_batch)


def plain(config: Any) -> Any:
    """A config as JSON-ready dicts, lists and scalars."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """Twelve hex digits that change whenever an input does.

    Example:
        >>> fingerprint({"seed": 1}) == fingerprint({"seed": 1}), fingerprint({"seed": 1}) == fingerprint({"seed": 2})
        (True, False)
    """
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class EndpointConfig:
    """A model behind a server that speaks OpenAI's chat protocol: OpenAI, vLLM, Azure, a proxy."""

    model: str = ""
    """Model to ask for, best by its dated name: a name without a date changes under the same score."""
    base_url: str = "https://api.openai.com/v1"
    """Address of the server's API."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable, on the machines that call, that holds the key. Never a key itself."""
    key_file: str = ""
    """File that holds the key, readable by its owner alone; read in place of the environment variable."""
    temperature: float = 0.0
    """Of the replies."""
    max_tokens: int = 1024
    """Longest reply; one that is cut off is asked for once more with twice as much."""
    requests_per_minute: float = 500.0
    """Calls all actors together make in a minute; fewer when the server says it is too many."""
    tokens_per_minute: float = 0.0
    """Tokens, of prompts and replies, in a minute; 0: no limit."""
    concurrency: int = 64
    """Calls under way at a time, over all actors."""
    actors: int = 1
    """Processes that make the calls."""
    timeout_s: float = 60.0
    """Longest wait for a reply."""
    attempts: int = 6
    """Calls at most for one reply, where the server is busy, breaks or answers garbage."""
    price_in: float = 0.0
    """USD for a million prompt tokens; with price_out it gives the cost."""
    price_out: float = 0.0
    """USD for a million reply tokens."""
    max_cost: float = 0.0
    """USD after which no further call is made; what was paid for is kept. 0: no limit."""
    reported_model: str = ""
    """Replies from another model than this are refused; empty: any, recorded."""
    seed: int | None = None
    """Sent to servers that know it."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "concurrency", "actors", "attempts"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        for name in ("temperature", "tokens_per_minute", "price_in", "price_out", "max_cost"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        for name in ("requests_per_minute", "timeout_s"):
            _check(getattr(self, name) > 0, name, getattr(self, name), "> 0")
        priced = self.price_in > 0 or self.price_out > 0
        _check(
            priced or not self.max_cost,
            "max_cost",
            self.max_cost,
            "0, or with price_in and price_out set",
        )

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """USD for so many tokens."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6
