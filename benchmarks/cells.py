"""The cells of the speed benchmark. Each compares two functions, after it checked that they agree.

Shapes: B rows, T tokens of a row, D features, V words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.measure import Row, Timing, assert_close, compare, peak_bytes
from benchmarks.peers import (
    concatenated_inputs,
    concatenated_loss,
    full_head_logps,
    one_by_one_logps,
    trl_step,
)
from benchmarks.settings import FIRST_WORD, IMAGE_TOKEN, Setting, on
from rlhfv_ray.config import LossConfig
from rlhfv_ray.logps import IGNORED, head_logps, policy_token_logps
from rlhfv_ray.loss import batch_loss
from rlhfv_ray.models import AnswerPolicy, recompute_activations
from rlhfv_ray.models.batch import collate_pairs, to_device
from rlhfv_ray.records import ReferencePair

LOSS = LossConfig(beta=0.1, gamma=5.0, normalize=False)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # relative to the peer's norm
LARGE_HEAD_TOKENS = 1000  # from here on the head has to save LEAST_MEMORY_RATIO of memory
LEAST_MEMORY_RATIO = 15.0


def gradient_of(model: Any) -> Tensor:
    """Return the model's three largest gradients as one vector, in fp32 on the CPU."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    largest = sorted(gradients, key=lambda gradient: -gradient.numel())[:3]
    return torch.cat([gradient.float().flatten().cpu() for gradient in largest])


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
    our_loss, our_gradient = ours(), gradient_of(setting.model)
    for step in (peer, checkpointed):
        assert_close(our_loss, step(), tolerance=TOLERANCE[dtype], what=f"{name}: loss")
        gradient = gradient_of(setting.model)
        assert_close(our_gradient, gradient, tolerance=TOLERANCE[dtype], what=f"{name}: gradient")
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

    TRL runs without checkpointing, and with it, which is its default.
    """
    dpo = LossConfig(beta=LOSS.beta, gamma=1.0, normalize=False)
    pairs = [
        replace(pair, **logps)
        for pair, logps in zip(setting.pairs, true_reference(setting), strict=True)
    ]
    ours = our_step(replace(setting, pairs=pairs), setting.policy, loss=dpo)
    inputs = concatenated_inputs(setting.pairs, setting.processor, setting.plain, rule="both_sides")
    note = f"{len(pairs)} pairs; TRL runs the reference in every step"
    timing = Timing(rounds, setting.device)
    rows = []
    for goal, checkpointing, variant in (
        (2.3, False, "equal checkpointing"),
        (2.6, True, "its defaults"),
    ):
        trl_model, peer = trl_step(
            setting.model, inputs, beta=dpo.beta, checkpointing=checkpointing
        )
        our_loss, our_gradient = ours(), gradient_of(setting.model)
        trl_loss, trl_gradient = peer(), gradient_of(trl_model)
        assert_close(our_loss, trl_loss, tolerance=1e-5, what=f"{name}: TRL's loss")
        assert_close(our_gradient, trl_gradient, tolerance=1e-4, what=f"{name}: TRL's gradient")
        cell = f"c step, {name}, TRL, {variant}"
        rows.append(compare(cell, ours, peer, goal=goal, timing=timing, note=note))
    return rows


def true_reference(setting: Setting) -> list[dict[str, list[float]]]:
    """Return the token log-probs of every pair's answers under the setting's own model, in nats."""
    policy, pairs = setting.policy, setting.pairs
    batch = collate_pairs(pairs, setting.processor, rule="both_sides", layout=policy.layout)
    batch = to_device(batch, setting.device, setting.model.dtype)
    with torch.no_grad():
        logps = policy_token_logps(policy, batch).tolist()  # (2P, A): chosen, then rejected
    return [
        {
            "chosen_logps": logps[row][: len(pair.chosen_ids)],
            "rejected_logps": logps[row + len(pairs)][: len(pair.rejected_ids)],
        }
        for row, pair in enumerate(pairs)
    ]


def reference_cell(setting: Setting, name: str, *, rounds: int) -> Row:
    """(e) Compare the reference pass with one answer at a time."""
    policy, device, pairs = setting.policy, setting.device, setting.pairs
    batch = collate_pairs(pairs, setting.processor, rule="both_sides", layout=policy.layout)
    batch = to_device(batch, device, setting.model.dtype)
    singles = []  # inputs and labels of one answer each: chosen and rejected by turns
    for pair in pairs:
        rows = concatenated_inputs([pair], setting.processor, setting.plain, rule="both_sides")
        for row in range(2):
            inputs = {key: tensor[row : row + 1] for key, tensor in rows["inputs"].items()}
            labels = rows["labels"][row : row + 1].to(device)
            singles.append({"inputs": on(inputs, setting), "labels": labels})

    def ours() -> Tensor:
        with torch.no_grad():
            return policy_token_logps(policy, batch).float()

    def peer() -> list[Tensor]:
        return one_by_one_logps(setting.model, singles)

    our_logps, peer_logps = ours(), peer()
    tolerance = TOLERANCE[setting.model.dtype]
    for number in range(len(pairs)):
        for side in range(2):
            our_sum = our_logps[number + side * len(pairs)].sum()
            peer_sum = peer_logps[2 * number + side].sum()
            assert_close(our_sum, peer_sum, tolerance=tolerance, what=f"{name}: reference")
    cell, note = f"e reference pass, {name}", f"{len(pairs)} pairs"
    return compare(cell, ours, peer, goal=2.5, timing=Timing(rounds, device), note=note)


def generation_cell(
    setting: Setting, name: str, *, rounds: int, batch: int, new_tokens: int, goal: float
) -> Row:
    """(f) Compare greedy answers of a batch of prompts with one prompt at a time.

    In fp32 both must give the same tokens.
    """
    model, device = setting.model, setting.device
    pairs = (list(setting.pairs) * batch)[:batch]
    ids = torch.tensor([pair.prompt_ids for pair in pairs], device=device)  # (B, T)
    pixels = pixels_of(setting, pairs)
    fixed = {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "pad_token_id": 0,
    }

    def answers(rows: slice) -> Tensor:
        with torch.inference_mode():
            mask = torch.ones_like(ids[rows])
            return model.generate(
                input_ids=ids[rows], attention_mask=mask, pixel_values=pixels[rows], **fixed
            )

    def ours() -> Tensor:
        return answers(slice(None))

    def peer() -> Tensor:
        return torch.cat([answers(slice(row, row + 1)) for row in range(batch)])

    if model.dtype == torch.float32:
        assert torch.equal(ours(), peer()), f"{name}: answers depend on the batch"
    cell, note = f"f generation, {name}", f"{batch} prompts, {new_tokens} tokens each"
    return compare(cell, ours, peer, goal=goal, timing=Timing(rounds, device), note=note)
