"""The start-up check that a model is understood: our numbers are the model's own, or it is refused.

The truth is what the model itself answers with: its processor's inputs of the prompt, continued by
its own `generate`, token by token, with the answer's tokens in place of its choices. So whatever a
family does with its inputs (kinds of tokens, positions, masks) is in the truth without a line here.

Tried on a few real pairs in one padded batch, the first layout wins whose log-probs are the truth
and whose gradients are those of plain rows.

Shapes: A answer tokens, P pairs.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import psutil
import torch
from PIL import ImageOps
from PIL.Image import Image
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from rlhfv_ray.config import LARGEST_IMAGE
from rlhfv_ray.data.images import decode_image
from rlhfv_ray.data.templates import process, prompt_text
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.logps import policy_token_logps, widened
from rlhfv_ray.models.batch import Layout, collate_pairs, to_device
from rlhfv_ray.models.checkpoint_files import first_line
from rlhfv_ray.models.layouts import candidate_layouts, layout_of
from rlhfv_ray.models.loading import BROKEN, DEVICE_ERRORS
from rlhfv_ray.models.policy import AnswerPolicy, generator
from rlhfv_ray.records import EncodedPair

TOKENS = 48  # of each answer that are compared: each takes a forward pass of the truth
# Largest distance of a token's log-prob from the truth, nats, and of a gradient from that of plain
# rows, as a share of the gradient's norm. fp32: sums of another order. bf16: 8 bits; there the
# mean distance counts, and a wrong input shows as ten times that or more.
LOGPS = {torch.float32: 1e-4, torch.bfloat16: 0.05}
GRADIENTS = {torch.float32: 1e-3, torch.bfloat16: 0.1}
NO_TOKEN = 2**31 - 1  # no vocabulary is as large
SEEN = 1e-6  # nats: another picture moves at least one log-prob by more


class Sample(NamedTuple):
    """A row of the job with its question, which the truth needs."""

    question: str
    pair: EncodedPair
    before: Sequence[dict[str, Any]] = ()  # messages before the question


@dataclass(frozen=True)
class SelfCheck:
    """The outcome: the layout of rows that is right for a model, and its distances."""

    layout: str  # shared or plain
    split_head: bool  # the output head is right on answer tokens alone
    dtype: str  # that the comparison was computed in
    tokens: int  # answer tokens that were compared
    distance: float  # largest distance from the model's own log-probs, nats
    gradient_distance: float | None  # of plain rows', as a share; None: not compared
    refused: Mapping[str, str]  # faster layouts, with the reason
    # Mean distance of a token's log-prob between two passes of the same rows in half precision,
    # nats; None: the model is in fp32, or the check was made before this was measured.
    rounding: float | None = None

    def __str__(self) -> str:
        head = "the head on answer tokens alone" if self.split_head else "all logits"
        gradient = self.gradient_distance
        text = (
            f"{self.layout} rows, {head}: {self.tokens} answer tokens within {self.distance:.1e} "
            f"nats of the model's own ({self.dtype})"
        )
        if gradient is not None:
            text += f", gradients within {gradient:.1e}"
        if self.rounding is not None:
            text += f"; in half precision, two passes are {self.rounding:.1e} nats apart"
        return text


def self_check(
    model: Any, processor: Any, samples: Sequence[Sample], *, layout: str = "auto"
) -> SelfCheck:
    """Find the fastest layout of rows that gives a model's own numbers.

    The comparison runs in fp32 where memory allows, for a model in bf16 too: it asks whether rows
    are laid out as the model wants them, and rounding would blur the answer.

    Args:
        model: in evaluation mode; it is as before afterwards.
        processor: the model's.
        samples: rows of the job; a short and a long one suffice.
        layout: `auto`, `shared` or `plain`, as in `model.layout`.

    Raises:
        ConfigError: no layout gives the model's own numbers, or pictures change nothing.
    """
    if model.config.is_encoder_decoder:
        raise ConfigError(
            f"The model ({type(model).__name__}) reads the prompt with an encoder and answers with "
            "a decoder. Rows hold a prompt with its answers behind it, which only a decoder alone "
            "reads. Use one of docs/models.md."
        )
    with in_fp32(model):
        try:
            truth = [own_logps(model, processor, sample) for sample in samples]
        except DEVICE_ERRORS:
            raise
        except (*BROKEN, ImportError) as error:
            raise ConfigError(
                f"The model ({type(model).__name__}) does not answer from what its own processor "
                f"({type(processor).__name__}) makes of a question: {_reason(error)}. Do model and "
                "processor belong together?"
            ) from error
        _check_numbers(model, truth)
        check_pictures(model, processor, samples[0], truth[0])
        outcome = _first_right(model, processor, samples, truth, layout)
    if model.dtype == torch.float32:
        return outcome
    pairs = [sample.pair for sample in samples]
    with contextlib.suppress(torch.OutOfMemoryError):  # of several pairs at once
        apart = rounding_distance(model, processor, pairs, checked_layout(model, outcome))
        return replace(outcome, rounding=apart)
    return outcome


def _first_right(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    truth: Sequence[Sequence[Tensor]],
    layout: str,
) -> SelfCheck:
    refused: dict[str, str] = {}
    # The model has log-probs of later questions too, which training leaves out.
    pairs = [replace(sample.pair, scored=None) for sample in samples]
    gradients: dict[str, Tensor] | None = None
    for candidate in candidate_layouts(model, layout):
        name = f"{_name(candidate)} rows, {'head alone' if candidate.split_head else 'all logits'}"
        try:
            distance, tokens = _distance(model, processor, pairs, truth, candidate)
        except DEVICE_ERRORS:
            raise
        except BROKEN as error:
            refused[name] = _reason(error)
            continue
        if not distance <= LOGPS[model.dtype]:
            refused[name] = f"{distance:.3g} nats from the model's own log-probs"
            continue
        if gradients is None:
            gradients = _plain_gradients(model, processor, pairs, truth)
        apart = _gradient_distance(model, processor, pairs, candidate, gradients)
        if apart is not None and not apart <= GRADIENTS[model.dtype]:
            refused[name] = f"gradients {apart:.3g} of their norm from those of plain rows"
            continue
        dtype = str(model.dtype).removeprefix("torch.")
        return SelfCheck(
            _name(candidate), candidate.split_head, dtype, tokens, distance, apart, refused
        )
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    raise ConfigError(
        f"The model ({type(model).__name__}) is not understood, so it is not trained: what it "
        "answers with is not what training would score. No layout of rows gives its own "
        f"log-probabilities of the answers ({reasons}). Please report the model; until then, use "
        "one of docs/models.md."
    )


def own_logps(
    model: Any, processor: Any, sample: Sample, *, picture: Image | None = None
) -> list[Tensor]:
    """Return the log-probs (A,) that the model itself gives the answers' first tokens, nats.

    Args:
        model: any image-text-to-text model that generates.
        processor: the model's.
        sample: question, picture, and the answers' ids.
        picture: to look at instead, of the same size.

    Returns:
        One tensor per answer that the sample has, on the CPU, of up to `TOKENS` tokens.
    """
    picture = picture or decode_image(sample.pair.image, max_pixels=LARGEST_IMAGE)
    text = prompt_text(processor, sample.question, sample.before)
    inputs = process(processor, [picture], [text], return_tensors="pt")
    inputs = inputs.to(model.device, model.dtype)
    if inputs["input_ids"][0].tolist() != sample.pair.prompt_ids:
        raise ValueError("its processor gives the same prompt other tokens the second time")
    answers = [ids[:TOKENS] for ids in (sample.pair.chosen_ids, sample.pair.rejected_ids) if ids]
    return [_continued_logps(model, inputs, ids) for ids in answers]


@torch.no_grad()
def _continued_logps(model: Any, inputs: Mapping[str, Any], answer: Sequence[int]) -> Tensor:
    """Return the log-probs (A,) of an answer's tokens, each after its predecessors."""
    done = generator(model)(
        **inputs,
        max_new_tokens=len(answer),
        do_sample=False,
        num_beams=1,
        eos_token_id=NO_TOKEN,  # an end token may be amid the answers of a conversation
        pad_token_id=0,
        logits_processor=LogitsProcessorList([_Forced(answer, inputs["input_ids"].shape[1])]),
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = torch.stack([step[0] for step in done.logits])  # (A, V), before any processing
    targets = torch.tensor(answer, device=logits.device).unsqueeze(1)  # (A, 1)
    return widened(logits).log_softmax(-1).gather(1, targets).squeeze(1).cpu()


class _Forced(LogitsProcessor):
    """Leaves the model one choice: the next token of an answer."""

    def __init__(self, answer: Sequence[int], prompt: int) -> None:
        self.answer, self.prompt = answer, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (1, V) in which only the answer's next token is possible."""
        token = self.answer[input_ids.shape[1] - self.prompt]
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = 0.0
        return forced


def _check_numbers(model: Any, truth: Sequence[Sequence[Tensor]]) -> None:
    """Check that the model's own log-probs are numbers.

    Raises:
        ConfigError: one is NaN.
    """
    if any(logps.isnan().any() for answers in truth for logps in answers):
        raise ConfigError(
            f"The model ({type(model).__name__}) gives answers the log-probability NaN: a weight "
            "is no number, or a layer overflows. Is the checkpoint damaged?"
        )


def check_pictures(model: Any, processor: Any, sample: Sample, truth: Sequence[Tensor]) -> None:
    """Check that another picture changes an answer's log-probs.

    Raises:
        ConfigError: it changes nothing.
    """
    negative = ImageOps.invert(decode_image(sample.pair.image, max_pixels=LARGEST_IMAGE))
    changed = own_logps(model, processor, sample, picture=negative)
    if max((a - b).abs().max().item() for a, b in zip(truth, changed, strict=True)) <= SEEN:
        raise ConfigError(
            f"The model ({type(model).__name__}) does not look at its picture: another one changes "
            "no log-probability. Are the weights of its vision tower and projector in the "
            "checkpoint?"
        )


def _distance(
    model: Any,
    processor: Any,
    pairs: Sequence[EncodedPair],
    truth: Sequence[Sequence[Tensor]],
    layout: Layout,
) -> tuple[float, int]:
    """Return the distance of a layout's log-probs from the truth, and the tokens compared.

    The largest distance in fp32, the mean one in bf16.
    """
    with torch.no_grad():
        logps = _logps(model, processor, pairs, layout).float().cpu()  # (2P, A)
    differences: list[Tensor] = []  # (A,) of each answer
    for number, answers in enumerate(truth):
        for side, own in enumerate(answers):  # chosen, then rejected; an example has no second
            ours = logps[number + side * len(pairs)]  # (A,)
            differences.append((ours[: len(own)] - own).abs())
    apart = torch.cat(differences)
    largest = apart.max() if model.dtype == torch.float32 else apart.mean()
    return largest.item(), len(apart)


@torch.no_grad()
def rounding_distance(
    model: Any, processor: Any, pairs: Sequence[EncodedPair], layout: Layout
) -> float:
    """Return how far apart two passes of the same rows are, because their batches are not the same.

    A batch of another size or with other padding may run other kernels, which round otherwise.

    Returns:
        The mean distance of a token's log-prob, of the pair where it is largest, nats.
    """
    distances = [0.0]
    together = _logps(model, processor, pairs, layout).float()  # (2P, A)
    twice = _logps(model, processor, [*pairs, *pairs], layout).float()  # (4P, A)
    for number, pair in enumerate(pairs):
        alone = _logps(model, processor, [pair], layout).float()  # (2, A')
        for side, ids in enumerate((pair.chosen_ids, pair.rejected_ids)):
            if not ids:  # of an example
                continue
            own = alone[side, : len(ids)]
            for batch in (together, twice):
                row = number + side * (len(batch) // 2)
                distances.append((batch[row, : len(ids)] - own).abs().mean().item())
    return max(distances)


def _logps(model: Any, processor: Any, pairs: Sequence[EncodedPair], layout: Layout) -> Tensor:
    policy = AnswerPolicy(model, layout)
    batch = collate_pairs(pairs, processor, rule="both_sides", layout=layout)
    return policy_token_logps(policy, to_device(batch, model.device, model.dtype))


def _plain_gradients(
    model: Any,
    processor: Any,
    pairs: Sequence[EncodedPair],
    truth: Sequence[Sequence[Tensor]],
) -> dict[str, Tensor]:
    """Return the gradients of plain rows with all logits, the model's own forward pass.

    Empty if that pass does not give the truth either, or has no memory.
    """
    for candidate in candidate_layouts(model, "plain"):
        if not candidate.split_head:
            with contextlib.suppress(torch.OutOfMemoryError):
                if _distance(model, processor, pairs, truth, candidate)[0] <= LOGPS[model.dtype]:
                    return _gradients(model, processor, pairs, candidate)
    return {}


def _gradient_distance(
    model: Any,
    processor: Any,
    pairs: Sequence[EncodedPair],
    layout: Layout,
    plain: Mapping[str, Tensor],
) -> float | None:
    """Return the largest distance of a weight's gradient, as a share of its norm and the whole's.

    None if there is nothing to compare with, or no memory.
    """
    try:
        ours = _gradients(model, processor, pairs, layout) if plain else {}
    except torch.OutOfMemoryError:
        return None
    if not ours:
        return None
    total = torch.stack([gradient.norm() for gradient in plain.values()]).norm()
    return max(
        ((ours[name] - gradient).norm() / (gradient.norm() + 0.1 * total)).item()
        for name, gradient in plain.items()
    )


def _gradients(
    model: Any, processor: Any, pairs: Sequence[EncodedPair], layout: Layout
) -> dict[str, Tensor]:
    """Return the gradients of the watched weights, by name, on the CPU.

    They are the head's, one layer's of the language model, and the first and last of what is before
    it: enough to see a path that is cut or counted twice.
    """
    needed = {name: weight.requires_grad for name, weight in model.named_parameters()}
    names = watched(model)
    weights = {name: weight for name, weight in model.named_parameters() if name in names}
    try:
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in names)
        logps = _logps(model, processor, pairs, layout)
        signs = torch.linspace(-1, 2, logps.numel(), device=logps.device).view_as(logps)
        gradients = torch.autograd.grad(
            (logps * signs).sum(), list(weights.values()), materialize_grads=True, allow_unused=True
        )
    finally:
        for name, weight in model.named_parameters():
            weight.requires_grad_(needed[name])
    return {name: gradient.float().cpu() for name, gradient in zip(weights, gradients, strict=True)}


def watched(model: Any) -> set[str]:
    """Return the names of the weights whose gradients are compared."""
    decoder = model.get_decoder()
    language = {id(weight) for weight in decoder.parameters()}
    layers = getattr(decoder, "layers", None) or list(decoder.children())
    picked = {id(weight) for weight in layers[0].parameters()}
    head = model.get_output_embeddings()
    picked |= {id(weight) for weight in head.parameters()} if head is not None else set()
    names = {name for name, weight in model.named_parameters() if id(weight) in picked}
    before = [name for name, weight in model.named_parameters() if id(weight) not in language]
    before = [name for name in before if name not in names and name.endswith("weight")]
    return names | set(before[:2] + before[-2:])


@contextlib.contextmanager
def in_fp32(model: Any) -> Iterator[None]:
    """Hold a model's weights in fp32 until the body ends, if memory allows it.

    bf16 widens to fp32 and back without loss. Where there is no memory, the model stays as it is.
    """
    tensors = [*model.parameters(), *model.buffers()]
    narrow = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.itemsize < 4]
    if not narrow or not _has_room(model, sum(tensor.numel() for tensor in narrow) * 4):
        yield
        return
    dtypes = [tensor.dtype for tensor in narrow]
    for tensor in narrow:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in zip(narrow, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)


def _has_room(model: Any, size: int) -> bool:
    """Return True if the model's device has twice the bytes free: weights, and a pass over them."""
    if model.device.type == "cuda":
        return torch.cuda.mem_get_info(model.device)[0] > 2 * size
    return psutil.virtual_memory().available > 2 * size


def checked_layout(model: Any, outcome: SelfCheck, *, row_tokens: int = 0) -> Layout:
    """Return the layout that the self-check found right for a model; `row_tokens`: see `Layout`."""
    return layout_of(model, outcome.layout, row_tokens=row_tokens, split_head=outcome.split_head)


def choose_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Return the shortest and the longest of some rows."""

    def tokens(sample: Sample) -> int:
        pair = sample.pair
        return len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)

    shortest, *longer = sorted(samples, key=tokens)
    return [shortest, *longer[-1:]]


def _name(layout: Layout) -> str:
    return "shared" if layout.shared else "plain"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)[:200]}"
