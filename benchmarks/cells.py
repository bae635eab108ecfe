"""The cells of the speed benchmark: what is compared with what, and that both give the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

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

LOSS = LossConfig(beta=0.1, gamma=5.0, normalize=False)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # of the gradient's norm


def gradient_of(model: Any) -> Tensor:
    """The gradients left in a model, as one vector of the largest few matrices, in fp32 on the CPU."""
    found = [weight.grad for weight in model.parameters() if weight.grad is not None]
    largest = sorted(found, key=lambda gradient: -gradient.numel())[:3]
    return torch.cat([gradient.float().flatten().cpu() for gradient in largest])


def our_step(
    setting: Setting,
    policy: AnswerPolicy | None = None,
    *,
    loss: LossConfig = LOSS,
    keep_gradients: bool = False,
) -> Callable[[], Tensor]:
    """Forward and backward of the line's own step on all pairs."""
    policy = policy or setting.policy
    batch = collate_pairs(setting.pairs, setting.processor, rule="both_sides", layout=policy.layout)
    batch = to_device(batch, setting.device, setting.model.dtype)

    def step() -> Tensor:
        setting.model.zero_grad(set_to_none=not keep_gradients)
        found = batch_loss(policy_token_logps(policy, batch), batch, loss).total
        found.backward()
        return found.detach()

    return step


def concatenated_step(setting: Setting, *, checkpointing: bool) -> Callable[[], Tensor]:
    """The release's shape of step on the same pairs."""
    made = concatenated_inputs(setting.pairs, setting.processor, setting.plain, rule="both_sides")
    made = {name: on(part, setting) for name, part in made.items()}

    def step() -> Tensor:
        setting.model.zero_grad(set_to_none=True)
        recompute_activations(setting.model, int(checkpointing))
        loss = concatenated_loss(setting.model, made, LOSS)
        loss.backward()
        recompute_activations(setting.model, 0)
        return loss.detach()

    return step


def bare_step(setting: Setting) -> Callable[[], None]:
    """Forward and backward of the model alone, on as many tokens as our step has, one causal row per pair."""
    size, count = setting.size, len(setting.pairs)
    tokens = size.tokens[1]
    ids = torch.randint(FIRST_WORD, size.words, (count, tokens), device=setting.device)
    ids[:, : size.image_tokens] = IMAGE_TOKEN
    pixels = setting.plain.image_inputs(setting.processor, [pair.image for pair in setting.pairs])[
        "pixel_values"
    ]
    pixels = pixels.to(setting.device, setting.model.dtype)
    scored = 2 * size.answer - size.common

    def step() -> None:
        setting.model.zero_grad(set_to_none=True)
        logits = setting.model(
            input_ids=ids, pixel_values=pixels, logits_to_keep=scored, use_cache=False
        ).logits
        logits.float().logsumexp(-1).sum().backward()

    return step


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
    """(a) Log-probs from features: ours on answer tokens against the release's full logits; time, then memory.

    Args:
        shapes: answers, tokens of each, and how many times faster ours should be.
        rounds: calls of each side.
        device: to run on.
        head: the other sizes.
    """
    width, words, answer, dtype = head.width, head.words, head.answer, head.dtype
    rows = []
    for count, tokens, goal in shapes:
        torch.manual_seed(0)
        hidden = torch.randn(count, tokens, width, device=device, dtype=dtype, requires_grad=True)
        weight = (
            torch.randn(words, width, device=device, dtype=dtype) / width**0.5
        ).requires_grad_()
        labels = torch.full((count, tokens), IGNORED, device=device)
        labels[:, -answer:] = torch.randint(words, (count, answer), device=device)
        wanted = labels[:, 1:] != IGNORED
        places = wanted.flatten().nonzero().squeeze(-1)
        predictors = places + places // (tokens - 1)  # positions count T, not T - 1, per row
        targets = labels[:, 1:][wanted]

        def ours(
            hidden: Tensor = hidden,
            weight: Tensor = weight,
            at: Tensor = predictors,
            to: Tensor = targets,
        ) -> Tensor:
            hidden.grad = weight.grad = None
            found = head_logps(hidden.flatten(0, 1)[at], weight, None, to).sum()
            found.backward()
            return found.detach()

        def peer(
            hidden: Tensor = hidden, weight: Tensor = weight, labels: Tensor = labels
        ) -> Tensor:
            hidden.grad = weight.grad = None
            found = full_head_logps(hidden, weight, labels).sum()
            found.backward()
            return found.detach()

        results = []
        for function in (ours, peer):
            results.append((function(), hidden.grad, weight.grad))
        for mine, theirs, what in zip(*results, ("log-probs", "features", "weights"), strict=True):
            assert_close(
                mine, theirs, tolerance=TOLERANCE[dtype], what=f"head {count}x{tokens}: {what}"
            )
        name = f"a head {count}x{tokens}"
        rows.append(
            compare(
                name, ours, peer, goal=goal, timing=Timing(rounds, device), note=f"{words} words"
            )
        )
        extra = []
        for function in (ours, peer):
            hidden.grad = weight.grad = None  # what a call frees of the one before would count
            extra.append(peak_bytes(function, device) - weight.numel() * weight.element_size())
        mine, theirs = extra
        ratio = theirs / mine
        least = 15.0 if count * tokens > 1000 else 1.0
        rows.append(
            Row(
                f"{name}, extra memory",
                mine / 2**20,
                theirs / 2**20,
                ratio,
                least,
                ratio >= least,
                unit="MiB",
            )
        )
    return rows


def step_cells(setting: Setting, name: str, *, rounds: int, goal: float) -> list[Row]:
    """(b) The step against the release's, checkpointing on and off, and (d) against the model alone."""
    size, device = setting.size, setting.device
    ours, peer = our_step(setting), concatenated_step(setting, checkpointing=False)
    losses, gradients = [], []
    for step in (ours, peer, concatenated_step(setting, checkpointing=True)):
        losses.append(step())
        gradients.append(gradient_of(setting.model))
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        assert_close(
            losses[0], loss, tolerance=TOLERANCE[setting.model.dtype], what=f"{name}: loss"
        )
        assert_close(
            gradients[0],
            gradient,
            tolerance=TOLERANCE[setting.model.dtype],
            what=f"{name}: gradient",
        )
    formula = size.flops(shared=False) / size.flops(shared=True)
    note = f"{len(setting.pairs)} pairs, {size.tokens[0]} -> {size.tokens[1]} tokens; formula {formula:.2f}"
    settings = {"timing": Timing(rounds, device)}
    return [
        compare(
            f"b step, {name}, equal checkpointing",
            ours,
            peer,
            goal=0.95 * formula,
            note=note,
            **settings,
        ),
        compare(
            f"b step, {name}, the release's checkpointing",
            ours,
            concatenated_step(setting, checkpointing=True),
            goal=goal,
            note=note,
            **settings,
        ),
        compare(
            f"d step, {name}, bare forward and backward",
            ours,
            bare_step(setting),
            goal=1 / 1.15,
            note="ratio below 1 is what the step costs on top of the model",
            **settings,
        ),
    ]


def trl_cells(setting: Setting, name: str, *, rounds: int) -> list[Row]:
    """(c) The step at gamma 1 against TRL's DPOTrainer on the same batch and weights, without and with (its default) checkpointing."""
    dpo = LossConfig(beta=LOSS.beta, gamma=1.0, normalize=False)
    policy = setting.policy
    pairs = [
        replace(pair, **scored)
        for pair, scored in zip(setting.pairs, true_reference(setting), strict=True)
    ]
    ours = our_step(replace(setting, pairs=pairs), policy, loss=dpo)
    made = concatenated_inputs(setting.pairs, setting.processor, setting.plain, rule="both_sides")
    rows = []
    for goal, checkpointing, what in (
        (2.3, False, "equal checkpointing"),
        (2.6, True, "its defaults"),
    ):
        theirs, peer = trl_step(setting.model, made, beta=dpo.beta, checkpointing=checkpointing)
        losses, gradients = [], []
        for step, model in ((ours, setting.model), (peer, theirs)):
            losses.append(step())
            gradients.append(gradient_of(model))
        assert_close(losses[0], losses[1], tolerance=1e-5, what=f"{name}: TRL's loss")
        assert_close(gradients[0], gradients[1], tolerance=1e-4, what=f"{name}: TRL's gradient")
        note = f"{len(pairs)} pairs; TRL runs the reference in every step"
        timing = Timing(rounds, setting.device)
        rows.append(
            compare(f"c step, {name}, TRL, {what}", ours, peer, goal=goal, timing=timing, note=note)
        )
    return rows


def true_reference(setting: Setting) -> list[dict[str, list[float]]]:
    """Log-probs of every pair's answers by the setting's own model, as a reference pass finds them."""
    policy, pairs = setting.policy, setting.pairs
    batch = collate_pairs(pairs, setting.processor, rule="both_sides", layout=policy.layout)
    with torch.no_grad():
        found = policy_token_logps(
            policy, to_device(batch, setting.device, setting.model.dtype)
        ).tolist()
    return [
        {
            "chosen_logps": found[row][: len(pair.chosen_ids)],
            "rejected_logps": found[row + len(pairs)][: len(pair.rejected_ids)],
        }
        for row, pair in enumerate(pairs)
    ]


def reference_cell(setting: Setting, name: str, *, rounds: int) -> Row:
    """(e) The reference pass against one answer at a time."""
    policy, device = setting.policy, setting.device
    batch = collate_pairs(setting.pairs, setting.processor, rule="both_sides", layout=policy.layout)
    batch = to_device(batch, device, setting.model.dtype)
    singles = []
    for pair in setting.pairs:
        made = concatenated_inputs([pair], setting.processor, setting.plain, rule="both_sides")
        for row in range(2):
            part = {key: tensor[row : row + 1] for key, tensor in made["inputs"].items()}
            singles.append(
                {"inputs": on(part, setting), "labels": made["labels"][row : row + 1].to(device)}
            )

    def ours() -> Tensor:
        with torch.no_grad():
            return policy_token_logps(policy, batch).float()

    def peer() -> list[Tensor]:
        return one_by_one_logps(setting.model, singles)

    found, wanted = ours(), peer()
    for number in range(len(setting.pairs)):
        for side in range(2):
            whole = wanted[2 * number + side].sum()
            mine = found[number + side * len(setting.pairs)].sum()
            assert_close(
                mine, whole, tolerance=TOLERANCE[setting.model.dtype], what=f"{name}: reference"
            )
    note = f"{len(setting.pairs)} pairs"
    return compare(
        f"e reference pass, {name}", ours, peer, goal=2.5, timing=Timing(rounds, device), note=note
    )


def generation_cell(
    setting: Setting, name: str, *, rounds: int, batch: int, new_tokens: int, goal: float
) -> Row:
    """(f) Greedy answers of a batch of prompts against one prompt at a time; the tokens must be the same."""
    model, device = setting.model, setting.device
    pairs = (list(setting.pairs) * batch)[:batch]
    ids = torch.tensor([pair.prompt_ids for pair in pairs], device=device)
    pixels = setting.plain.image_inputs(setting.processor, [pair.image for pair in pairs])[
        "pixel_values"
    ]
    pixels = pixels.to(device, model.dtype)
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
        assert torch.equal(ours(), peer()), f"{name}: answers hang on the batch"
    note = f"{batch} prompts, {new_tokens} tokens each"
    return compare(
        f"f generation, {name}", ours, peer, goal=goal, timing=Timing(rounds, device), note=note
    )
