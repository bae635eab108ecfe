"""What the field does, written anew and plainly: the other side of each comparison.

`concatenated_loss` has the shape of the RLHF-V release's step (Muffin's trainer: chosen and rejected as two padded rows, the image encoded
twice, `labels=` passed so that a cross-entropy nobody uses is computed, full logits, fp32 log-softmax over all of them).
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from rlhfv_ray.config import LossConfig
from rlhfv_ray.logps import IGNORED, token_logps, weighted_logps
from rlhfv_ray.loss import dpo_loss
from rlhfv_ray.models.batch import Layout, collate_pairs
from rlhfv_ray.records import ReferencePair
from rlhfv_ray.segments import Rule


def concatenated_inputs(
    pairs: Sequence[ReferencePair], processor: Any, layout: Layout, *, rule: Rule
) -> dict[str, Any]:
    """Two padded rows per pair with labels, and masks and reference on all positions (2P, T-1)."""
    batch = collate_pairs(pairs, processor, rule=rule, layout=layout)
    rows, width = batch.inputs["input_ids"].shape
    labels = torch.full((rows, width), IGNORED)
    changed, reference = (
        torch.zeros(rows, width - 1, dtype=torch.bool),
        torch.zeros(rows, width - 1),
    )
    assert batch.reference_token_logps is not None
    for row in range(rows):
        scored = batch.answers[row] >= 0
        places = batch.predictors[batch.answers[row][scored]] - row * width
        labels[row, places + 1] = batch.targets[batch.answers[row][scored]]
        changed[row, places] = batch.changed[row][scored]
        reference[row, places] = batch.reference_token_logps[row][scored]
    return {"inputs": batch.inputs, "labels": labels, "changed": changed, "reference": reference}


def concatenated_loss(model: Any, made: dict[str, Any], loss: LossConfig) -> Tensor:
    """Loss of a batch of pairs as the release computes it."""
    logits = model(**made["inputs"], labels=made["labels"], use_cache=False).logits
    logps = token_logps(logits, made["labels"])
    weights = (made["labels"][:, 1:] != IGNORED) * (
        1 + (loss.gamma - 1) * made["changed"].to(logps.dtype)
    )
    ours, reference = (
        weighted_logps(part, weights, normalize=loss.normalize)
        for part in (logps, made["reference"])
    )
    pairs = len(ours) // 2
    found = dpo_loss(
        ours[:pairs], ours[pairs:], reference[:pairs], reference[pairs:], beta=loss.beta
    )
    return found.losses.mean()


def full_head_logps(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The release's head: logits of every token, a cross-entropy that is thrown away, log-softmax of all again."""
    logits = torch.nn.functional.linear(hidden, weight)
    shifted, wanted = logits[:, :-1].contiguous(), labels[:, 1:].contiguous()
    torch.nn.functional.cross_entropy(
        shifted.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED
    )
    return token_logps(logits, labels)


def one_by_one_logps(model: Any, rows: Sequence[dict[str, Any]]) -> list[Tensor]:
    """A reference pass one answer at a time, as the release's script does it: `rows` hold inputs and labels of one answer each."""
    with torch.no_grad():
        return [
            token_logps(model(**row["inputs"], labels=row["labels"]).logits, row["labels"])
            for row in rows
        ]


def trl_step(
    model: Any, made: dict[str, Any], *, beta: float, checkpointing: bool
) -> tuple[Any, Callable[[], Tensor]]:
    """TRL's DPOTrainer on a batch of `concatenated_inputs`: a copy of the model, and a function that computes loss and gradients of it.

    TRL computes the reference's log-probs in every step, for it refuses cached ones where there are images; its loss has no token weights.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<image>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    message = [{"role": "user", "content": "?"}]
    data = Dataset.from_list(
        [{"image": "", "prompt": message, "chosen": message, "rejected": message}]
    )
    with TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            deepcopy(model),
            ref_model=deepcopy(model),
            args=DPOConfig(
                folder,
                beta=beta,
                bf16=False,
                use_cpu=True,
                report_to=[],
                gradient_checkpointing=checkpointing,
            ),
            processing_class=LlavaProcessor(CLIPImageProcessorPil(), words, patch_size=14),
            train_dataset=data,
        )
    policy: Any = trainer.model
    if checkpointing:  # as its own loop does before the first step
        policy.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    policy.train()
    inputs = {**made["inputs"], "completion_mask": (made["labels"] != IGNORED).long()}

    def step() -> Tensor:
        policy.zero_grad(set_to_none=True)
        loss = trainer.compute_loss(policy, dict(inputs))
        loss.backward()
        return loss.detach()

    return policy, step
