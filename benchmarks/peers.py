"""Plain versions of the field's usual code: the other side of each comparison.

`concatenated_loss` has the shape of the RLHF-V release's step (Muffin's trainer). Chosen and
rejected are two padded rows, and the image is encoded twice. `labels=` makes the model compute an
unused cross-entropy. The log-softmax runs in fp32 over the full logits.

Shapes: P pairs, 2P rows (chosen, then rejected), T tokens of a row.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from io import BytesIO
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rlhfv_ray.config import LossConfig
from rlhfv_ray.logps import IGNORED, token_logps, weighted_logps
from rlhfv_ray.loss import dpo_loss
from rlhfv_ray.models.batch import Layout, collate_pairs
from rlhfv_ray.records import Prompt, ReferencePair
from rlhfv_ray.segments import Rule


def concatenated_inputs(
    pairs: Sequence[ReferencePair], processor: Any, layout: Layout, *, rule: Rule
) -> dict[str, Any]:
    """Build two padded rows per pair, with labels, masks and reference at all positions."""
    batch = collate_pairs(pairs, processor, rule=rule, layout=layout)
    rows, width = batch.inputs["input_ids"].shape
    labels = torch.full((rows, width), IGNORED)  # (2P, T)
    changed = torch.zeros(rows, width - 1, dtype=torch.bool)  # (2P, T-1), corrected tokens
    reference = torch.zeros(rows, width - 1)  # (2P, T-1), nats
    assert batch.reference_token_logps is not None
    for row in range(rows):
        is_scored = batch.answers[row] >= 0  # (A,); -1 pads shorter answers
        scored = batch.answers[row][is_scored]
        positions = batch.predictors[scored] - row * width  # from the flat batch to this row
        labels[row, positions + 1] = batch.targets[scored]
        changed[row, positions] = batch.changed[row][is_scored]
        reference[row, positions] = batch.reference_token_logps[row][is_scored]
    return {"inputs": batch.inputs, "labels": labels, "changed": changed, "reference": reference}


def concatenated_loss(model: Any, rows: dict[str, Any], loss: LossConfig) -> Tensor:
    """Return the loss of `concatenated_inputs` as the release computes it."""
    labels = rows["labels"]
    logits = model(**rows["inputs"], labels=labels, use_cache=False).logits  # (2P, T, V)
    logps = token_logps(logits, labels)  # (2P, T-1)
    weights = (labels[:, 1:] != IGNORED) * (1 + (loss.gamma - 1) * rows["changed"].to(logps.dtype))
    policy = weighted_logps(logps, weights, normalize=loss.normalize)  # (2P,)
    reference = weighted_logps(rows["reference"], weights, normalize=loss.normalize)  # (2P,)
    pairs = len(policy) // 2
    preference = dpo_loss(
        policy[:pairs], policy[pairs:], reference[:pairs], reference[pairs:], beta=loss.beta
    )
    return preference.losses.mean()


def full_head_logps(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Return token log-probs, (B, T-1), as the release's head computes them.

    It takes the logits of every token, and computes a cross-entropy that nothing uses.
    """
    logits = torch.nn.functional.linear(hidden, weight)
    predictions = logits[:, :-1].contiguous()
    targets = labels[:, 1:].contiguous()
    torch.nn.functional.cross_entropy(
        predictions.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED
    )
    return token_logps(logits, labels)


def one_by_one_answers(
    model: Any, processor: Any, prompts: Sequence[Prompt], *, new_tokens: int
) -> list[str]:
    """Generate greedily, one prompt at a time, as the release's evaluation and most scripts do."""
    texts = []
    for prompt in prompts:
        message = [{"type": "image"}, {"type": "text", "text": prompt.question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": message}], add_generation_prompt=True, tokenize=False
        )
        image = Image.open(BytesIO(prompt.image)).convert("RGB")
        inputs = processor(images=[image], text=[text], return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        texts.append(processor.tokenizer.decode(answer, skip_special_tokens=True).strip())
    return texts


def one_by_one_logps(model: Any, rows: Iterable[dict[str, Any]]) -> list[Tensor]:
    """Run a reference pass one answer at a time, as the release's script does.

    Each of `rows` holds the inputs and labels of one answer.
    """
    with torch.no_grad():
        return [
            token_logps(model(**row["inputs"], labels=row["labels"]).logits, row["labels"])
            for row in rows
        ]


def trl_step(
    model: Any, rows: dict[str, Any], *, beta: float, checkpointing: bool, stored: bool
) -> tuple[Any, Callable[[], Tensor]]:
    """Set up TRL's DPOTrainer on a batch of `concatenated_inputs`.

    TRL refuses cached reference log-probs for batches with images, so it computes them in every
    step. With `stored` it reads those of the batch, as it does for texts. Its loss has no token
    weights.

    Returns:
        A copy of the model, and a function that computes the copy's loss and gradients.
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
    if checkpointing:  # TRL's own loop enables it before the first step
        policy.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    policy.train()
    trainer.precompute_ref_logps = stored
    sums = rows["reference"].sum(-1)  # (2P,) nats
    chosen, rejected = sums.chunk(2)
    inputs = {**rows["inputs"], "completion_mask": (rows["labels"] != IGNORED).long()}
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected} if stored else {}

    def step() -> Tensor:
        policy.zero_grad(set_to_none=True)
        loss = trainer.compute_loss(policy, dict(inputs))
        loss.backward()
        return loss.detach()

    return policy, step
