"""The cells of the speed benchmark. Each compares two functions, after it checked that they agree.

Shapes: B rows, T tokens of a row, D features, V words.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.measure import (
    Row,
    Timing,
    assert_close,
    assert_gradients_close,
    compare,
    peak_bytes,
)
from benchmarks.peers import (
    concatenated_inputs,
    concatenated_loss,
    full_head_logps,
    one_by_one_answers,
    one_by_one_logps,
    trl_step,
)
from benchmarks.settings import FIRST_WORD, IMAGE_TOKEN, Setting, on
from rlhfv_ray.config import GenerationConfig, LossConfig
from rlhfv_ray.logps import IGNORED, head_logps, policy_token_logps
from rlhfv_ray.loss import batch_loss
from rlhfv_ray.models import AnswerPolicy, recompute_activations
from rlhfv_ray.models.batch import collate_pairs, to_device
from rlhfv_ray.records import Prompt, ReferencePair

LOSS = LossConfig(beta=0.1, gamma=5.0, normalize=False)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # relative to the peer's norm
LARGE_HEAD_TOKENS = 1000  # from here on the head has to save LEAST_MEMORY_RATIO of memory
LEAST_MEMORY_RATIO = 15.0
GOAL_OF_REFERENCE = 2.5
QUESTION = "Describe the picture."


def gradients_of(model: Any) -> dict[str, Tensor]:
    """Return the gradients of all parameters that have one, by name, on the CPU."""
    return {
        name: weight.grad.detach().clone().cpu()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }


def our_step(
    setting: Setting,
    policy: AnswerPolicy | None = None,
    *,
    loss: LossConfig = LOSS,
    keep_gradients: bool = False,
) -> Callable[[], Tensor]:
    """Build forward and backward of the pipeline's own step on all pairs."""
    policy = policy or setting.policy
    batch = collate_pairs(setting.pairs, setting.processor, rule="both_sides", layout=policy.layout)
    batch = to_device(batch, setting.device, setting.model.dtype)

    def step() -> Tensor:
        setting.model.zero_grad(set_to_none=not keep_gradients)
        total = batch_loss(policy_token_logps(policy, batch), batch, loss).total
        total.backward()
        return total.detach()

    return step


def concatenated_step(setting: Setting, *, checkpointing: bool) -> Callable[[], Tensor]:
    """Build a step of the release's shape on the same pairs."""
    inputs = concatenated_inputs(setting.pairs, setting.processor, setting.plain, rule="both_sides")
    inputs = {name: on(part, setting) for name, part in inputs.items()}

    def step() -> Tensor:
        setting.model.zero_grad(set_to_none=True)
        recompute_activations(setting.model, int(checkpointing))
        loss = concatenated_loss(setting.model, inputs, LOSS)
        loss.backward()
        recompute_activations(setting.model, 0)
        return loss.detach()

    return step


def bare_step(setting: Setting) -> Callable[[], None]:
    """Build forward and backward of the model alone.

    It has as many tokens as our step, in one causal row per pair.
    """
    size = setting.size
    count = len(setting.pairs)
    tokens = size.tokens[1]
    ids = torch.randint(FIRST_WORD, size.words, (count, tokens), device=setting.device)  # (B, T)
    ids[:, : size.image_tokens] = IMAGE_TOKEN
    pixels = pixels_of(setting, setting.pairs)
    scored = 2 * size.answer - size.common

    def step() -> None:
        setting.model.zero_grad(set_to_none=True)
        logits = setting.model(
            input_ids=ids, pixel_values=pixels, logits_to_keep=scored, use_cache=False
        ).logits
        logits.float().logsumexp(-1).sum().backward()

    return step


def pixels_of(setting: Setting, pairs: Sequence[ReferencePair]) -> Tensor:
    """Return the pixels of the pairs' images, (B, 3, height, width), on the setting's device."""
    images = [pair.image for pair in pairs]
    pixels = setting.plain.image_inputs(setting.processor, images)["pixel_values"]
    return pixels.to(setting.device, setting.model.dtype)


@dataclass(frozen=True)
class Head:
    """Sizes of the head's cells."""

    width: int = 512
    words: int = 32_000
    answer: int = 87
    dtype: torch.dtype = torch.float32


def head_cells(
    shapes: Sequence[tuple[int, int, float]], *, rounds: int, device: torch.device, head: Head
) -> list[Row]:
    """(a) Compare our head on answer tokens with the release's full logits, in time and memory.

    Args:
        shapes: number of answers, tokens of each, and the goal for the ratio of times.
        rounds: calls of each side.
        device: device to run on.
        head: the other sizes.
    """
    rows = []
    for count, tokens, goal in shapes:
        name = f"a head {count}x{tokens}"
        sides = head_sides(count, tokens, device=device, head=head)
        timing, note = Timing(rounds, device), f"{head.words} words"
        rows.append(compare(name, sides.ours, sides.peer, goal=goal, timing=timing, note=note))
        least = LEAST_MEMORY_RATIO if count * tokens > LARGE_HEAD_TOKENS else 1.0
        rows.append(head_memory_row(f"{name}, extra memory", sides, least=least))
    return rows


class HeadSides(NamedTuple):
    """Our head and the release's on the same features."""

    ours: Callable[[], Tensor]
    peer: Callable[[], Tensor]
    hidden: Tensor  # features, (B, T, D)
    weight: Tensor  # of the head, (V, D)


def head_sides(count: int, tokens: int, *, device: torch.device, head: Head) -> HeadSides:
    """Build both heads on random features, and check that they agree."""
    torch.manual_seed(0)
    hidden = torch.randn(
        count, tokens, head.width, device=device, dtype=head.dtype, requires_grad=True
    )  # features, (B, T, D)
    weight = torch.randn(head.words, head.width, device=device, dtype=head.dtype)  # (V, D)
    weight = (weight / head.width**0.5).requires_grad_()
    labels = torch.full((count, tokens), IGNORED, device=device)  # (B, T), scored at the end only
    labels[:, -head.answer :] = torch.randint(head.words, (count, head.answer), device=device)
    is_scored = labels[:, 1:] != IGNORED  # (B, T-1)
    positions = is_scored.flatten().nonzero().squeeze(-1)  # (N,) among B * (T-1)
    # Each row has T features but T-1 predictions, so the flat index shifts by one per row.
    predictors = positions + positions // (tokens - 1)  # (N,) among B * T
    targets = labels[:, 1:][is_scored]  # (N,)

    def ours() -> Tensor:
        hidden.grad = weight.grad = None
        logps = head_logps(hidden.flatten(0, 1)[predictors], weight, None, targets).sum()
        logps.backward()
        return logps.detach()

    def peer() -> Tensor:
        hidden.grad = weight.grad = None
        logps = full_head_logps(hidden, weight, labels).sum()
        logps.backward()
        return logps.detach()

    our_results = (ours(), hidden.grad, weight.grad)
    peer_results = (peer(), hidden.grad, weight.grad)
    quantities = ("log-probs", "features", "weights")
    for our_value, peer_value, quantity in zip(our_results, peer_results, quantities, strict=True):
        title = f"head {count}x{tokens}: {quantity}"
        assert_close(our_value, peer_value, tolerance=TOLERANCE[head.dtype], what=title)
    return HeadSides(ours, peer, hidden, weight)


def head_memory_row(cell: str, sides: HeadSides, *, least: float) -> Row:
    """Compare the peak memory of both heads, in MiB on top of the weight's gradient."""
    extra_mib = []
    for function in (sides.ours, sides.peer):
        # Gradients of the previous call, freed in this one, would make its peak look smaller.
        sides.hidden.grad = sides.weight.grad = None
        extra_bytes = peak_bytes(function, sides.weight.device) - sides.weight.nbytes
        extra_mib.append(extra_bytes / 2**20)
    our_mib, peer_mib = extra_mib
    ratio = peer_mib / our_mib
    return Row(cell, our_mib, peer_mib, ratio, least, ratio >= least, unit="MiB")


def step_cells(setting: Setting, name: str, *, rounds: int, goal: float) -> list[Row]:
    """Compare our step with the release's (b), and with the model alone (d).

    The release's step runs without and with activation checkpointing.
    """
    size, dtype = setting.size, setting.model.dtype
    ours, peer = our_step(setting), concatenated_step(setting, checkpointing=False)
    checkpointed = concatenated_step(setting, checkpointing=True)
    our_loss, our_gradients = ours(), gradients_of(setting.model)
    for step in (peer, checkpointed):
        assert_close(our_loss, step(), tolerance=TOLERANCE[dtype], what=f"{name}: loss")
        gradients = gradients_of(setting.model)
        assert_gradients_close(
            our_gradients, gradients, tolerance=TOLERANCE[dtype], what=f"{name}: gradient"
        )
    formula = size.flops(shared=False) / size.flops(shared=True)
    lengths = f"{size.tokens[0]} -> {size.tokens[1]} tokens"
    note = f"{len(setting.pairs)} pairs, {lengths}; formula {formula:.2f}"
    bare_note = "ratio below 1 is what the step costs on top of the model"
    timing = Timing(rounds, setting.device)

    def row(cell: str, peer: Callable[[], Any], *, goal: float, note: str = note) -> Row:
        return compare(cell, ours, peer, goal=goal, timing=timing, note=note)

    return [
        row(f"b step, {name}, equal checkpointing", peer, goal=0.95 * formula),
        row(f"b step, {name}, the release's checkpointing", checkpointed, goal=goal),
        row(
            f"d step, {name}, bare forward and backward",
            bare_step(setting),
            goal=1 / 1.15,
            note=bare_note,
        ),
    ]


def trl_cells(setting: Setting, name: str, *, rounds: int) -> list[Row]:
    """(c) Compare our step at gamma 1 with TRL's DPOTrainer on the same batch and weights.

    TRL computes the reference of images in every step. Ours is computed once, before training. It
    is charged in full, as in a training of one epoch; more epochs share it. The last row gives TRL
    the same stored reference, which TRL's own options refuse for images.
    """
    dpo = LossConfig(beta=LOSS.beta, gamma=1.0, normalize=False)
    stored = true_reference(setting)
    pairs = [replace(pair, **logps) for pair, logps in zip(setting.pairs, stored, strict=True)]
    own = replace(setting, pairs=pairs)
    step = our_step(own, setting.policy, loss=dpo)
    reference = reference_pass(own)

    def charged() -> Tensor:
        reference()
        return step()

    inputs = concatenated_inputs(pairs, setting.processor, setting.plain, rule="both_sides")
    timing = Timing(rounds, setting.device)
    rows = []
    for peer_case in TRL_CASES:
        trl_model, peer = trl_step(
            setting.model,
            inputs,
            beta=dpo.beta,
            checkpointing=peer_case.checkpointing,
            stored=peer_case.stored,
        )
        ours = step if peer_case.stored else charged
        our_loss, our_gradients = ours(), gradients_of(setting.model)
        trl_loss, trl_gradients = peer(), gradients_of(trl_model)
        assert_close(our_loss, trl_loss, tolerance=1e-5, what=f"{name}: TRL's loss")
        assert_gradients_close(
            our_gradients, trl_gradients, tolerance=1e-4, what=f"{name}: TRL's gradient"
        )
        cell = f"c step, {name}, TRL, {peer_case.name}"
        note = f"{len(pairs)} pairs; {peer_case.note}"
        rows.append(compare(cell, ours, peer, goal=peer_case.goal, timing=timing, note=note))
    return rows


class TrlCase(NamedTuple):
    """One way to run TRL, and the goal of ours against it."""

    name: str
    goal: float
    checkpointing: bool
    stored: bool
    note: str


CHARGED = "TRL runs the reference in every step; our reference pass is charged (one epoch)"
TRL_CASES = (
    TrlCase("equal checkpointing", 1.6, checkpointing=False, stored=False, note=CHARGED),
    TrlCase("its defaults", 1.8, checkpointing=True, stored=False, note=CHARGED),
    TrlCase(
        "the same stored reference",
        1.8,
        checkpointing=False,
        stored=True,
        note="neither side runs the reference, equal checkpointing",
    ),
)


def reference_pass(setting: Setting) -> Callable[[], Tensor]:
    """Build our reference pass over all pairs, from encoded pairs to log-probs."""
    policy, processor = setting.policy, setting.processor

    def score() -> Tensor:
        batch = collate_pairs(setting.pairs, processor, rule="both_sides", layout=policy.layout)
        batch = to_device(batch, setting.device, setting.model.dtype)
        with torch.no_grad():
            return policy_token_logps(policy, batch).float()  # (2P, A): chosen, then rejected

    return score


def true_reference(setting: Setting) -> list[dict[str, list[float]]]:
    """Return the token log-probs of every pair's answers under the setting's own model, in nats."""
    pairs = setting.pairs
    logps = reference_pass(setting)().tolist()
    return [
        {
            "chosen_logps": logps[row][: len(pair.chosen_ids)],
            "rejected_logps": logps[row + len(pairs)][: len(pair.rejected_ids)],
        }
        for row, pair in enumerate(pairs)
    ]


def reference_cell(setting: Setting, name: str, *, rounds: int) -> Row:
    """(e) Compare the reference pass with one answer at a time, both from pairs to log-probs.

    The image processor's time is part of both sides.
    """
    device, pairs = setting.device, setting.pairs
    ours = reference_pass(setting)

    def singles() -> Iterator[dict[str, Any]]:  # chosen and rejected by turns
        for pair in pairs:
            rows = concatenated_inputs([pair], setting.processor, setting.plain, rule="both_sides")
            for row in range(2):
                inputs = {key: tensor[row : row + 1] for key, tensor in rows["inputs"].items()}
                labels = rows["labels"][row : row + 1].to(device)
                yield {"inputs": on(inputs, setting), "labels": labels}

    def peer() -> list[Tensor]:
        return one_by_one_logps(setting.model, singles())

    our_logps, peer_logps = ours(), peer()
    tolerance = TOLERANCE[setting.model.dtype]
    for number in range(len(pairs)):
        for side in range(2):
            our_sum = our_logps[number + side * len(pairs)].sum()
            peer_sum = peer_logps[2 * number + side].sum()
            assert_close(our_sum, peer_sum, tolerance=tolerance, what=f"{name}: reference")
    cell, note = f"e reference pass, {name}", f"{len(pairs)} pairs, with their collation"
    return compare(
        cell, ours, peer, goal=GOAL_OF_REFERENCE, timing=Timing(rounds, device), note=note
    )


def generation_cell(
    setting: Setting, name: str, *, rounds: int, batch: int, new_tokens: int, goal: float
) -> Row:
    """(f) Compare our greedy answers to a batch of prompts with `generate` on one at a time.

    Both sides go from pictures and questions to texts. In fp32 these must be the same.
    """
    from rlhfv_ray.inference.generate import answer_prompts  # with Ray

    pairs = (list(setting.pairs) * batch)[:batch]
    prompts = [Prompt(str(number), pair.image, QUESTION) for number, pair in enumerate(pairs)]
    decoding = GenerationConfig(max_new_tokens=new_tokens)

    def ours() -> list[str]:
        return answer_prompts(setting.model, setting.processor, prompts, decoding)

    def peer() -> list[str]:
        return one_by_one_answers(setting.model, setting.processor, prompts, new_tokens=new_tokens)

    if setting.model.dtype == torch.float32:
        assert ours() == peer(), f"{name}: answers depend on the batch"
    cell, note = f"f generation, {name}", f"{batch} prompts, at most {new_tokens} tokens each"
    timing = Timing(rounds, setting.device)
    return compare(cell, ours, peer, goal=goal, timing=timing, note=note)
