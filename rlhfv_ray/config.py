"""Settings of a run: frozen dataclasses, checked when they are made.

A recipe (experiments/recipes.py) returns a full `DDPOConfig`, and the command line changes single
fields of it. The docstrings of the fields are the command line's help.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rlhfv_ray.errors import ConfigError
from rlhfv_ray.redaction import redact

LARGEST_IMAGE = 178_000_000  # pixels: Pillow refuses more
SHAPES = "shapes"  # stands for the shapes world, as a model path and as a data path
SHAPES_BIASED = "shapes-biased"  # as a model path, the base model of the biased world
SHAPES_SIGNS = "shapes-signs"  # as a model path, that of the world of signs
SIGNS = "signs"  # as a data path, the shapes world with signs to read
# What every chat template gets, or what says how it is called.
OWN_TEMPLATE_ARGUMENTS = (
    *("messages", "conversation", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "return_dict", "return_tensors", "processor_kwargs", "answering"),
)
Part = Literal["vision", "projector", "language"]  # of a model
# What people add to, by the name on the command line: the place of each, `module:name`. The names
# are known without an import. docs/extending.md shows a new one of both kinds.
PREFERENCE_LOSSES = {
    "dpo": "rlhfv_ray.loss:dpo_loss",
    "ipo": "rlhfv_ray.losses.ipo:ipo_loss",
}
PAIR_FORMATS = {
    "rlhfv": "rlhfv_ray.data.pair_formats:RLHFV",
    "rlaifv": "rlhfv_ray.data.pair_formats:RLAIFV",
    "muffin_tsv": "rlhfv_ray.data.pair_formats:MUFFIN_TSV",
    "trl": "rlhfv_ray.data.pair_formats:TRL",
    "trl_implicit": "rlhfv_ray.data.pair_formats:TRL_IMPLICIT",
    "llamafactory": "rlhfv_ray.data.pair_formats:LLAMAFACTORY",
    "povid": "rlhfv_ray.data.pair_formats:POVID",
    "swift": "rlhfv_ray.data.pair_formats:SWIFT",
    "label_studio": "rlhfv_ray.data.formats.label_studio:LABEL_STUDIO",
}
EXAMPLE_FORMATS = ("conversations", "unimm_chat", "messages", "completion", "vqa", "caption")
if TYPE_CHECKING:
    LossName = str
    FormatName = str
else:  # the choices that `--help` lists
    LossName = Literal[tuple(PREFERENCE_LOSSES)]
    FormatName = Literal[("auto", *PAIR_FORMATS, *EXAMPLE_FORMATS)]


def check_setting(ok: bool, name: str, given: object, allowed: str) -> None:
    """Raise a `ConfigError` with the setting's name, value and allowed values, unless ok."""
    if not ok:
        raise ConfigError(f"{name} = {given!r}: must be {allowed}.")


def _check_at_least(
    config: object, section: str, minimum: int, *names: str, **meanings: str
) -> None:
    """Check fields of a section; a keyword gives a field's name and the meaning of a value."""
    for name in (*names, *meanings):
        given = getattr(config, name)
        meaning = f" ({meanings[name]})" if name in meanings else ""
        check_setting(given >= minimum, f"{section}{name}", given, f">= {minimum}{meaning}")


def _check_above_zero(config: object, section: str, *names: str) -> None:
    for name in names:
        given = getattr(config, name)
        check_setting(given > 0, f"{section}{name}", given, "> 0")


def check_template_arguments(setting: str, entries: Iterable[str]) -> None:
    """Raise a `ConfigError` with the setting's name unless entries are name=value, and no argument
    is one that every template gets.
    """
    for entry in entries:
        name, equals, _ = entry.partition("=")
        ok = bool(equals) and name.isidentifier() and name not in OWN_TEMPLATE_ARGUMENTS
        allowed = f"NAME=VALUE, and NAME none of {', '.join(OWN_TEMPLATE_ARGUMENTS)}"
        check_setting(ok, setting, entry, allowed)


def _is_pattern(text: str) -> bool:
    """Return True if a text is a regular expression."""
    try:
        re.compile(text)
    except re.error:
        return False
    return True


@dataclass(frozen=True)
class ModelConfig:
    """Model to align."""

    path: str = ""
    """Hugging Face folder or hub name of an image-text-to-text model. `shapes` is built in."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Precision of weights and forward pass. bf16 keeps fp32 master weights in the optimizer."""
    layout: Literal["auto", "shared", "plain"] = "auto"
    """Layout of a pair in a batch. `shared` computes what both answers have in common once, `plain`
    twice. `auto` takes the fastest that the self-check finds right."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation. `auto` takes torch's sdpa, which shared rows need; with
    `--model.layout plain`, flash-attention 2 if it is installed."""
    allow_pickle: bool = False
    """Also load pickled weights (*.bin). They can run code when loaded: trusted sources only."""
    trust_remote_code: bool = False
    """Run the Python code that a checkpoint brings for its model: trusted sources only."""
    template_arguments: tuple[str, ...] = ()
    """Arguments of the chat template, as name=value: thinking=false ... Values are JSON, or else
    texts. A template that takes enable_thinking gets false unless it is set here."""
    trainable: tuple[Part, ...] = ("vision", "projector", "language")
    """Parts of the model that are trained; the others stay frozen."""
    lora_rank: int = 0
    """Rank of low-rank adapters (LoRA), >= 0. Above 0, they are trained in place of the language
    model's own weights, and merged on export."""
    lora_alpha: int = 0
    """LoRA scale, >= 0: adapters are multiplied by alpha / rank. 0 stands for 2 * rank."""
    lora_targets: tuple[str, ...] = ()
    """Linear layers that get adapters (q_proj v_proj ...). Empty: all of the language model."""

    def __post_init__(self) -> None:
        _check_at_least(self, "model.", 0, lora_rank="0: no adapters", lora_alpha="0: 2 * rank")
        check_template_arguments("model.template_arguments", self.template_arguments)
        allowed = "at least one of vision, projector, language"
        check_setting(bool(self.trainable), "model.trainable", self.trainable, allowed)
        can_adapt = not self.lora_rank or "language" in self.trainable
        allowed = "a choice with language in it, because lora_rank asks for adapters there"
        check_setting(can_adapt, "model.trainable", self.trainable, allowed)

    @property
    def training(self) -> dict[str, Any]:
        """The settings that change the result of training, but not the reference."""
        settings = plain(self)
        names = ("trainable", "lora_rank", "lora_alpha", "lora_targets")
        return {name: settings[name] for name in names}


@dataclass(frozen=True)
class DataConfig:
    """Preference pairs to learn from."""

    path: str = ""
    """File, folder, glob or hub name (`owner/name`) of preference pairs, as docs/data.md lists
    them. `shapes` makes pairs in the shapes world, `signs` in the one with signs to read."""
    format: FormatName = "auto"
    """Format of the data; `auto` detects it. From `conversations` on: for fine-tuning only."""
    mixed_with: tuple[str, ...] = ()
    """Further data to fine-tune on, each as `path`. Rows are taken in blocks: so many of `path`, so
    many of each other one; the shorter ones start again. See mix_weights."""
    mix_weights: tuple[int, ...] = ()
    """Rows of a block from `path` and from each of `mixed_with`, >= 1. Empty: one of each."""
    short_answers: bool = False
    """Ask for a short answer in the questions of `vqa` rows, in one of four wordings. Fine-tuning
    on short answers then leaves the length of other answers as it is."""
    augment: Literal["none", "crop", "muffin"] = "none"
    """Random change of every picture, for models that take a fixed square. `crop` crops and flips
    it; `muffin` also draws two changes of its look, as Muffin's training. It is drawn once a row,
    so that reference and policy see the same. Left and right of the texts are not swapped."""
    crop_area: float = 0.5
    """Least share of a picture that a random crop keeps, above 0 to 1. 0.99 hardly crops."""
    columns: tuple[str, ...] = ()
    """Columns of other names, as ours=theirs: question=prompt chosen=answer_good ..."""
    image_root: str = ""
    """Folder that images named by the data may stand in, beside the data's own folder. It allows
    absolute paths, and links that lead into it."""
    ids: Literal["own", "position"] = "own"
    """Ids of rows. `own` takes those of the data, `position` file and number of the row, which are
    unique where the data's own repeat."""
    rule: Literal["muffin", "both_sides"] = "muffin"
    """Rule that marks corrected tokens where no human did. `muffin`, the RLHF-V release's, marks
    replacements only; `both_sides` marks insertions and deletions too."""
    min_match: int = 3
    """Shortest run of equal tokens that counts as unchanged, >= 1. Raise it to merge segments."""
    spans: bool = True
    """Take the corrected tokens from human-marked spans where the data has them. Otherwise they are
    found by comparing the two answers."""
    release_labels: bool = False
    """Score the tokens that the RLHF-V release scores, which Muffin alone has: beside the answers
    their own role, and two tokens of each question's turn. In differences of sums they cancel."""
    limit: int = 0
    """Number of pairs to train on, 0 for all. They are a random subset fixed by --seed; with the
    same seed, a smaller subset is part of every larger one."""
    max_length: int = 2048
    """Longest prompt + answer in tokens with image tokens, >= 2. Longer pairs are unusable."""
    max_pixels: int = 50_000_000
    """Largest width x height of an image, 16 to 178,000,000. Rows with larger ones are unusable."""
    max_unusable: float = 0.01
    """Largest share of unusable rows, 0 to 1. With more, the job stops."""
    reference: str = ""
    """Folder with the reference log-probs of an earlier run, to use instead of computing them
    again. It must come from the same model and data."""

    def __post_init__(self) -> None:
        _check_at_least(self, "data.", 1, "min_match")
        _check_at_least(self, "data.", 2, "max_length")
        _check_at_least(self, "data.", 0, limit="0: all")
        within = 16 <= self.max_pixels <= LARGEST_IMAGE
        check_setting(within, "data.max_pixels", self.max_pixels, f"16 to {LARGEST_IMAGE}")
        for entry in self.columns:
            ours, _, theirs = entry.partition("=")
            is_pair = bool(ours.strip() and theirs.strip())
            check_setting(is_pair, "data.columns", entry, "OURS=THEIRS, as question=prompt")
        share = self.max_unusable
        check_setting(0 <= share <= 1, "data.max_unusable", share, "between 0 and 1")
        check_setting(0 < self.crop_area <= 1, "data.crop_area", self.crop_area, "above 0 to 1")
        is_used = self.crop_area == 0.5 or self.augment != "none"
        check_setting(is_used, "data.crop_area", self.crop_area, "left out, unless augment is set")
        are_positive = all(weight >= 1 for weight in self.mix_weights)
        check_setting(are_positive, "data.mix_weights", self.mix_weights, "whole numbers >= 1")

    @property
    def source_weights(self) -> list[int]:
        """Rows of a block from each source of mixed data.

        Raises:
            ConfigError: there are more or fewer weights than sources.
        """
        sources = 1 + len(self.mixed_with)
        weights = list(self.mix_weights) or [1] * sources
        allowed = (
            f"as many numbers as sources ({sources}: data.path and data.mixed_with). Give the "
            "other data with --data.mixed-with, or other weights"
        )
        check_setting(len(weights) == sources, "data.mix_weights", self.mix_weights, allowed)
        return weights

    def used(self, pairs: int) -> int:
        """Return the number of pairs to train on, of `pairs` pairs.

        Raises:
            ConfigError: there are fewer than `limit`.
        """
        allowed = f"at most {pairs}, the number of pairs in the data"
        check_setting(self.limit <= pairs, "data.limit", self.limit, allowed)
        return self.limit or pairs


@dataclass(frozen=True)
class ShapesConfig:
    """The built-in shapes world, used only where the model or data path is `shapes`."""

    scenes: int = 1600
    """Scenes that the base model describes, >= 1. A description without a mistake gives no pair."""
    evaluation_scenes: int = 600
    """Number of scenes that score the base and the aligned model, >= 1. They combine shapes in ways
    that the training pairs do not."""
    pairs: Literal["corrections", "rankings"] = "corrections"
    """Answers paired: `corrections` one and its correction, `rankings` the better of two and the
    other, as people rank whole answers."""
    temperature: float = 1.0
    """Sampling temperature of the answers that are corrected or ranked, > 0. At 1, a
    mistake is as frequent as its reverse, as the base model learnt them."""
    seed: int = 0
    """Random seed for the scenes and for sampling the answers that are corrected."""
    world: Literal["biased", "balanced", "signs"] = "balanced"
    """Version of the world. `balanced`: texts alone do not tell chosen from rejected, which is
    checked. `signs`: the same, with signs to read in the place of shapes. `biased`: corrections
    name fewer usual shapes, and are never longer."""
    left: float = 0.0
    """Share of mistakes that the annotator leaves uncorrected, 0 to 1."""
    wrong: float = 0.0
    """Share of corrected phrases that get a wrong colour, 0 to 1."""
    control: Literal["none", "permuted", "permuted_all", "blank", "blind"] = "none"
    """Pairs that cannot teach to look. `permuted`: with another picture of the same setting.
    `permuted_all`: with any other picture. `blank`: with a picture of nothing. `blind`: corrected
    by someone who sees no picture."""

    def __post_init__(self) -> None:
        _check_at_least(self, "shapes.", 1, "scenes", "evaluation_scenes")
        _check_above_zero(self, "shapes.", "temperature")
        for name in ("left", "wrong"):
            share = getattr(self, name)
            check_setting(0 <= share <= 1, f"shapes.{name}", share, "0 to 1")


@dataclass(frozen=True)
class LossConfig:
    """DDPO, RLHF-V (arXiv 2312.00849) Eq. 4 and 5."""

    beta: float = 0.5
    """Strength of the pull to the reference, > 0. If normalize is off, choose a beta that is
    smaller by a factor of about the answer length in tokens."""
    gamma: float = 5.0
    """Weight of corrected tokens, >= 1; the other tokens have weight 1. 1 is plain DPO."""
    normalize: bool = True
    """Divide an answer's weighted log-prob by the total weight of its tokens, as the paper does."""
    sft_weight: float = 0.0
    """Weight of an added negative log-likelihood of the chosen answer, >= 0."""
    preference_weight: float = 1.0
    """Weight of the preference loss, >= 0. Set it to 0 and sft_weight above 0 for supervised
    fine-tuning, which uses neither rejected answers nor the reference."""
    sft_mean: Literal["answers", "tokens"] = "answers"
    """Mean of supervised fine-tuning: over the answers of an update, or over all their tokens, as
    transformers and TRL do. With `answers` a token of a short answer weighs more (normalize)."""
    kind: LossName = "dpo"
    """Preference loss. `dpo`: with gamma, RLHF-V's DDPO. `ipo`: a squared distance to a margin of
    1 / (2 beta), which does not grow without an end on pairs that are told apart already."""

    def __post_init__(self) -> None:
        known = f"one of {', '.join(PREFERENCE_LOSSES)}"
        known = "dpo in fine-tuning, which has no preference loss" if self.is_sft else known
        is_known = self.kind in PREFERENCE_LOSSES and (self.kind == "dpo" or not self.is_sft)
        check_setting(is_known, "loss.kind", self.kind, known)
        _check_above_zero(self, "loss.", "beta")
        _check_at_least(self, "loss.", 1, gamma="1 is plain DPO")
        _check_at_least(self, "loss.", 0, "sft_weight", "preference_weight")
        has_weight = self.preference_weight + self.sft_weight > 0
        allowed = "above 0, as the preference loss has no weight"
        check_setting(has_weight, "loss.sft_weight", self.sft_weight, allowed)
        can_count = self.is_sft or self.sft_mean == "answers"
        allowed = "answers, because preference_weight is above 0"
        check_setting(can_count, "loss.sft_mean", self.sft_mean, allowed)

    @property
    def is_sft(self) -> bool:
        """True if the model learns from chosen answers only."""
        return self.preference_weight == 0

    @property
    def method(self) -> str:
        """The method's name as people read it: SFT, DDPO, or another loss's."""
        if self.is_sft:
            return "SFT"
        return "DDPO" if self.kind == "dpo" else self.kind.upper()


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule, and the length of training."""

    learning_rate: float = 5e-7
    """Peak learning rate, > 0."""
    batch: int = 32
    """Pairs per update over all workers, >= 1."""
    epochs: float = 7.0
    """Passes over the pairs, > 0; not used where optim.steps is set."""
    steps: int = 0
    """Number of updates, >= 0; 0 derives it from optim.epochs."""
    warmup: float = 0.1
    """Share of the updates, 0 to 1, in which the learning rate rises linearly."""
    schedule: Literal["cosine", "constant", "trainer"] = "cosine"
    """Learning rate after the warm-up: a half cosine down to 0, or constant. `trainer` is the
    cosine of transformers' Trainer to the update: its first update has rate 0, and an epoch's last
    incomplete batch counts as an update."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, >= 0. Biases and norms have none."""
    zero_rate: tuple[str, ...] = ()
    """Patterns (regular expressions) of the names of trained weights that keep the learning rate 0:
    they count in the gradient norm, and never move. Muffin's: `beit3.*[.]A[.]` and
    `beit3.vision_embed`. To leave weights out altogether, see --model.trainable."""
    clip: float = 1.0
    """Largest gradient norm, >= 0; larger gradients are scaled down. 0 switches clipping off."""
    max_skipped: int = 3
    """Stop the run after this number of skipped updates in a row, >= 1. An update is skipped if its
    loss or gradient is not finite."""

    def __post_init__(self) -> None:
        _check_above_zero(self, "optim.", "learning_rate", "epochs")
        _check_at_least(self, "optim.", 1, "batch", "max_skipped")
        _check_at_least(self, "optim.", 0, "weight_decay", steps="0: from epochs")
        _check_at_least(self, "optim.", 0, clip="0: no clipping")
        for pattern in self.zero_rate:
            check_setting(_is_pattern(pattern), "optim.zero_rate", pattern, "a regular expression")
        check_setting(0 <= self.warmup <= 1, "optim.warmup", self.warmup, "between 0 and 1")

    def total_steps(self, pairs: int) -> int:
        """Return the number of updates of a run over `pairs` pairs."""
        if self.schedule == "trainer":
            return self.steps or math.ceil(self.epochs * math.ceil(pairs / self.batch))
        return self.steps or max(1, round(self.epochs * pairs / self.batch))


@dataclass(frozen=True)
class ScaleConfig:
    """Distribution of the work: speed and fault tolerance, not results, which change by rounding at
    most.
    """

    workers: int | tuple[int, int] = 1
    """Training workers (ranks), >= 1. With GPUs, each has one GPU. Two numbers are the least and
    the most: training goes on with as many as there is room for, among those that divide
    optim.batch."""
    gpu: bool = False
    """Give every worker and actor a GPU."""
    cpus: float = 1.0
    """CPUs of every worker and actor, > 0."""
    micro_batch: int = 1
    """Pairs per worker and forward pass, >= 0. An update accumulates optim.batch / (workers *
    micro_batch) passes. 0 takes the largest of 4, 2 and 1 that fits into memory without
    recomputation."""
    row_tokens: int = 0
    """Longest row, in tokens, that pairs of one forward pass share, >= 0. 0 gives each pair its own
    row. Needs shared rows (model.layout)."""
    recompute: int = -1
    """Activation checkpointing, which trades speed for memory. 0 keeps the activations of all
    layers, k recomputes those of every k-th layer (1: all). -1 takes the fastest of 0, 4, 2 and 1
    that fits into memory."""
    memory_gib: float = 0.0
    """Memory of a worker's device in GiB, for the check that a step fits. 0 measures it."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage, 0 to 3: 0 shards nothing, 1 the optimizer state, 2 also the gradients,
    3 also the parameters. In bf16, 2 and 3 add up the gradients of several passes in fp32, 0 and 1
    in bf16."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """State kept in CPU memory: `none`, `optimizer` (needs ZeRO >= 1), or `all`, which adds the
    parameters (needs ZeRO 3)."""
    actors: int = 1
    """Actors of the reference pass and of generation, >= 1."""
    rows: int = 64
    """Rows that an actor takes at a time, >= 1. After a fault, work resumes at this granularity.
    Of several actors, each takes whole batches of prompts, and fewer where some would have none."""
    inference_batch: int = 16
    """Pairs (reference pass) or prompts (generation) per forward pass of an actor, >= 1."""
    checkpoint_every: int = 50
    """Updates between checkpoints, >= 1. One is always written at the end."""
    checkpoint_minutes: float = 0.0
    """Also write a checkpoint at the first report (log_every) that comes so many minutes after the
    last checkpoint, >= 0. 0 goes by updates alone."""
    keep: int = 2
    """Number of newest checkpoints that are kept, >= 1."""
    max_failures: int = 3
    """Number of times that training workers may be lost and replaced before the job fails, >= 0."""
    start_timeout: float = 1200.0
    """Seconds to wait for nodes that an autoscaler starts, and for workers on them, > 0. Raise it
    where a node takes longer to start and to load its image."""
    start_attempts: int = 3
    """Number of times to try to start the training workers, each up to start_timeout, >= 1."""
    log_every: int = 5
    """Updates between reports to the driver, >= 1. Every update is reported."""

    def __post_init__(self) -> None:
        is_range = 1 <= self.least_workers <= self.most_workers
        is_range &= not self.is_elastic or self.least_workers < self.most_workers
        allowed = ">= 1, or the least and a larger most"
        check_setting(is_range, "scale.workers", self.workers, allowed)
        _check_at_least(self, "scale.", 1, "actors", "rows", "keep")
        _check_at_least(self, "scale.", 1, "inference_batch", "checkpoint_every", "log_every")
        _check_at_least(self, "scale.", 1, "start_attempts")
        _check_above_zero(self, "scale.", "cpus", "start_timeout")
        _check_at_least(self, "scale.", -1, recompute="-1: auto, 0: all kept")
        _check_at_least(self, "scale.", 0, "max_failures", memory_gib="0: measured")
        _check_at_least(self, "scale.", 0, row_tokens="0: one pair a row")
        _check_at_least(self, "scale.", 0, checkpoint_minutes="0: by updates alone")
        _check_at_least(self, "scale.", 0, micro_batch="0: the largest of 4, 2 and 1 that fits")
        lowest_stage = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        allowed = f"none below ZeRO stage {lowest_stage}"
        check_setting(self.zero_stage >= lowest_stage, "scale.offload", self.offload, allowed)

    @property
    def is_elastic(self) -> bool:
        """Return True if the number of workers may change in training."""
        return not isinstance(self.workers, int)

    @property
    def least_workers(self) -> int:
        """Return the smallest number of workers that training goes on with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Return the largest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def resources(self) -> dict[str, float]:
        """Return Ray's resources of one worker or actor."""
        return {"CPU": self.cpus, **({"GPU": 1.0} if self.gpu else {})}


@dataclass(frozen=True)
class GenerationConfig:
    """Settings for generating answers."""

    max_new_tokens: int = 256
    """Largest number of tokens in an answer, >= 1."""
    beams: int = 1
    """Beams of beam search, >= 1. 1 is greedy decoding, or sampling if temperature is above 0."""
    temperature: float = 0.0
    """Sampling temperature, >= 0. 0 decodes greedily."""
    top_p: float = 1.0
    """Probability mass, in (0, 1], of the smallest set of tokens that sampling draws from."""
    repetition_penalty: float = 1.0
    """Penalty on repeated tokens, > 0. Above 1 makes them less likely; 1 switches it off."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer. They are cut off."""
    seed: int = 0
    """Random seed for sampling."""

    def __post_init__(self) -> None:
        _check_at_least(self, "generation.", 1, "max_new_tokens", "beams")
        _check_at_least(self, "generation.", 0, temperature="0: greedy")
        _check_above_zero(self, "generation.", "repetition_penalty")
        is_one_way = self.beams == 1 or self.temperature == 0  # no sampling among beams
        check_setting(is_one_way, "generation.beams", self.beams, "1 when sampling")
        check_setting(all(self.stop), "generation.stop", self.stop, "non-empty strings")
        check_setting(0 < self.top_p <= 1, "generation.top_p", self.top_p, "in (0, 1]")


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow tracking."""

    uri: str = ""
    """Address of an MLflow server or database. Empty: MLFLOW_TRACKING_URI if it is set, else a
    SQLite database in the storage folder."""
    experiment: str = ""
    """Name of the MLflow experiment. Empty: MLFLOW_EXPERIMENT_NAME if it is set, else
    rlhfv-ray."""


@dataclass(frozen=True)
class DDPOConfig:
    """One experiment from preference pairs to scores."""

    name: str = "ddpo"
    """Name of the experiment in MLflow, and first part of its folder's name."""
    storage: str = "runs"
    """Folder of everything that is written. On a cluster, give one that every node reaches, or an
    address (s3://bucket/runs). A relative path starts at the current folder, or at ~/rlhfv-ray
    inside a Ray job."""
    seed: int = 0
    """Random seed for the order of the pairs."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    shapes: ShapesConfig = field(default_factory=ShapesConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.data.path == SIGNS:
            self._make_signs()
        scale = self.scale
        for workers in (scale.least_workers, scale.most_workers):
            per_pass = workers * max(1, scale.micro_batch)
            allowed = f"a multiple of scale.workers * scale.micro_batch = {per_pass}"
            is_multiple = self.optim.batch % per_pass == 0
            check_setting(is_multiple, "optim.batch", self.optim.batch, allowed)
        is_movable = scale.zero_stage > 0 or self.model.dtype == "fp32"
        allowed = "one number at ZeRO stage 0 in bf16, whose checkpoints fit one number of workers"
        check_setting(is_movable or not scale.is_elastic, "scale.workers", scale.workers, allowed)
        can_mix = self.loss.is_sft and not self.data.reference and self.data.path != SHAPES
        allowed = "empty, except in fine-tuning on files (`rlhfv-ray sft`)"
        mixed = self.data.mixed_with
        check_setting(can_mix or not mixed, "data.mixed_with", mixed, allowed)

    def _make_signs(self) -> None:
        """Turn the data path `signs` into the shapes world with signs, and into its base model."""
        path = SHAPES_SIGNS if self.model.path in ("", SHAPES) else self.model.path
        settings = {
            "data": dataclasses.replace(self.data, path=SHAPES),
            "shapes": dataclasses.replace(self.shapes, world="signs"),
            "model": dataclasses.replace(self.model, path=path),
        }
        for name, value in settings.items():
            object.__setattr__(self, name, value)  # the class is frozen

    @property
    def worker_counts(self) -> list[int]:
        """Return the numbers of workers that training may have, in rising order.

        Examples:
            >>> DDPOConfig(scale=ScaleConfig(workers=(2, 8))).worker_counts  # of a batch of 32
            [2, 4, 8]
        """
        counts = range(self.scale.least_workers, self.scale.most_workers + 1)
        micro_batch = max(1, self.scale.micro_batch)
        return [count for count in counts if self.optim.batch % (count * micro_batch) == 0]

    def with_workers(self, count: int) -> "DDPOConfig":
        """Return the configuration with a fixed number of workers."""
        return dataclasses.replace(self, scale=dataclasses.replace(self.scale, workers=count))

    @property
    def accumulation(self) -> int:
        """Forward passes per update and worker, with the least workers if their number varies.

        As long as micro_batch is 0, that of one pair per pass.
        """
        return self.optim.batch // (self.scale.least_workers * max(1, self.scale.micro_batch))


@dataclass(frozen=True)
class EndpointConfig:
    """A model behind a server with OpenAI's chat protocol: OpenAI, vLLM, Azure, a proxy."""

    model: str = ""
    """Model to request. Give its dated name: an undated one may change its model silently."""
    base_url: str = "https://api.openai.com/v1"
    """Address of a server that speaks OpenAI's chat completions protocol."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key, on the machines that call. Never the key itself.
    If it is not set, servers in private networks are called without a key."""
    key_file: str = ""
    """File that holds the key, readable by its owner only. Used instead of the variable."""
    temperature: float = 0.0
    """Sampling temperature of the replies, >= 0."""
    max_tokens: int = 1024
    """Largest number of tokens in a reply, >= 1. A truncated reply is requested once more with
    twice this limit."""
    requests_per_minute: float = 500.0
    """Calls per minute of all actors together, > 0. It falls if the server reports too many."""
    tokens_per_minute: float = 0.0
    """Tokens of prompts and replies per minute, >= 0. 0: no limit."""
    concurrency: int = 64
    """Concurrent calls of all actors together, >= 1."""
    actors: int = 1
    """Processes that make the calls, >= 1."""
    timeout_s: float = 60.0
    """Longest wait for a reply in seconds, > 0."""
    attempts: int = 6
    """Most calls for one reply, >= 1, if the server is busy, fails, or sends an unusable reply."""
    price_in: float = 0.0
    """USD per million prompt tokens, >= 0. With price_out it gives the cost."""
    price_out: float = 0.0
    """USD per million reply tokens, >= 0."""
    max_cost: float = 0.0
    """Most in USD that all calls may cost whose replies are kept in the same folder, of all models
    and all runs, >= 0. No call is made that could exceed it. Paid replies are kept. 0: no limit."""
    reported_model: str = ""
    """Model that replies must report; others are refused. Empty: any model, recorded."""
    seed: int | None = None
    """Random seed sent to servers that support it."""

    def __post_init__(self) -> None:
        _check_at_least(self, "", 1, "max_tokens", "concurrency", "actors", "attempts")
        amounts = ("temperature", "tokens_per_minute", "price_in", "price_out", "max_cost")
        _check_at_least(self, "", 0, *amounts)
        _check_above_zero(self, "", "requests_per_minute", "timeout_s")
        priced = self.price_in > 0 or self.price_out > 0
        allowed = "0, or with price_in and price_out set"
        check_setting(priced or not self.max_cost, "max_cost", self.max_cost, allowed)

    @property
    def address(self) -> str:
        """The base URL as it may be shown: without its secrets."""
        return redact(self.base_url)

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """Return the price in USD of a number of prompt and reply tokens."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


def plain(config: Any) -> Any:
    """Return a config as JSON-ready dicts, lists and scalars, without the secrets in addresses.

    Examples:
        >>> plain(TrackingConfig(uri="postgresql://me:pass@host/mlflow"))["uri"]
        'postgresql://***@host/mlflow'
    """
    return _redacted(json.loads(json.dumps(dataclasses.asdict(config))))


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _redacted(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def changed_settings(config: Any) -> dict[str, Any]:
    """Return the fields of a config that differ from their defaults, JSON-ready and nested.

    Fingerprints take this form, so that a new field with a default renames nothing finished. Nested
    dataclasses are treated alike and left out if nothing in them changed. A field without a default
    always enters.

    A missing field stands for the default of its time. Whoever changes a default must therefore
    raise a version number in the same fingerprint; otherwise old results pass for new ones.

    Examples:
        >>> changed_settings(LossConfig()), changed_settings(LossConfig(gamma=3.0))
        ({}, {'gamma': 3.0})
        >>> changed_settings(DDPOConfig(seed=1, loss=LossConfig(beta=0.1)))
        {'seed': 1, 'loss': {'beta': 0.1}}
    """
    settings = plain(config)
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        factory = spec.default_factory
        if value == (spec.default if factory is dataclasses.MISSING else factory()):
            del settings[spec.name]
        elif dataclasses.is_dataclass(value):
            settings[spec.name] = changed_settings(value)
    return settings


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """Return a hash of the inputs: twelve hex digits that differ if any input differs.

    Examples:
        >>> fingerprint({"seed": 1}) == fingerprint({"seed": 1})
        True
        >>> fingerprint({"seed": 1}) == fingerprint({"seed": 2})
        False
    """
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
