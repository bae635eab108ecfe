"""Tries small random checkpoints of many architectures, and writes docs/models.md.

    python -m tests.model_table        # `make models`

Each is saved in its published form, loaded as a user's model, and taken through the self-check,
adapters, and answers in a batch. Architectures of the installed transformers that have no small
checkpoint here are listed as not tried: the self-check decides about them when they are used.
"""

import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from rlhfv_ray.config import GenerationConfig, ModelConfig
from rlhfv_ray.data import decode_image
from rlhfv_ray.data.encoding import encode_pair
from rlhfv_ray.data.templates import process, prompt_text
from rlhfv_ray.errors import RlhfvError
from rlhfv_ray.inference.generate import answer_prompts
from rlhfv_ray.models import load_policy, prepare_training
from rlhfv_ray.models.self_check import Sample, self_check
from rlhfv_ray.records import PreferencePair, Prompt
from tests.families import FAMILIES, save
from tests.families_a import FAMILIES_A
from tests.families_b import FAMILIES_B
from tests.families_c import FAMILIES_C
from tests.families_d import FAMILIES_D, REFUSED_D
from tests.families_muffin import muffin
from tests.families_vision import FAMILIES_VISION
from tests.invariants.test_families import ANSWERS, picture

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
SIZES = [(60, 30), (40, 70), (64, 64), (100, 50)]
COLUMNS = ("model type", "checkpoint", "rows", "head", "log-probs", "gradients", "LoRA", "batch")
VISION = (
    importlib.metadata.version("torchvision").split("+")[0]
    if importlib.util.find_spec("torchvision")
    else "missing"
)
HEAD = f"""# Models

Every model is checked before a job uses it (`rlhfv_ray/models/self_check.py`): log-probs of answers
in our rows against what the model's own `generate` gives them on its own processor's inputs, and
gradients against those of plain rows. What is not the model's own is refused. So this table is no
list of what is allowed. It says what small random checkpoints of these architectures gave, in fp32
on a CPU, with transformers {transformers.__version__}
and torchvision {VISION}.

`python -m tests.model_table` (`make models`) writes this page. `rlhfv-ray doctor --model PATH` does
the same for a model of yours.

* **rows**: `shared` puts both answers of a pair behind one prompt; `plain` gives each a row.
* **head**: `answers` computes the output head on answer tokens alone, `all` on every token.
* **log-probs**: largest distance from the model's own, in nats; **gradients**: as a share of the
  norm.
* **LoRA**: adapters are made and give finite numbers. **batch**: answers of several prompts at once
  equal those of one at a time.

Without torchvision all are as right but those whose image processors need it, which are refused by
name before anything starts: Command A Vision, Gemma 4 12B, LFM2-VL, Llama 4, Mistral Small 3,
Pixtral and others. The extra `vision` installs it (`pip install 'rlhfv-ray[vision]'`). Its build on
the package index fits torch's build with CUDA, also where there is no GPU, and not the CPU build:
beside that, transformers itself cannot be imported ("Could not import module 'PreTrainedModel'").

HunYuan-VL: transformers 5.23 numbers images on through a batch, so that plain rows and batched
answers are up to 6e-3 nats off. Shared rows are right. Answer with `--inference.batch 1`.

The check takes as long as the reference pass of about 40 pairs, in every actor that starts before
an outcome is recorded: 36, 41 and 33 pairs for LLaVAs of 128, 256 and 512 features at 576 image
tokens (process time on a CPU; tests/invariants/test_self_check_cost.py holds it to 3 %). With one
actor that is 0.7 % of the paper's 5,733 pairs, with n actors n times that.

In tokens, for prompts of P, pairs of S in shared rows and plain rows of L: 6 (P + 48) for the
truth, 6 S and 12 L for log-probs and gradients of either. LLaVA-1.5 7B at the paper's lengths
(P = 636, S = 786, L = 723) runs 17,496 tokens, those of 22 pairs: 0.4 % of 5,733 at equal speed.
The check runs in fp32. Where that is f times slower than the job's bf16, it is 0.4 f %, and 288
passes of one token, each of which reads the weights once (28 GB). No GPU was measured: f = 8 would
give 3 %, without the passes of one token.
"""


def main() -> None:
    """Try all checkpoints and write the page."""
    rows, tried = [], set()
    right = (
        *FAMILIES,
        *FAMILIES_A,
        *FAMILIES_B,
        *FAMILIES_C,
        *FAMILIES_D,
        *FAMILIES_VISION,
        muffin,
    )
    for make in (*right, *REFUSED_D):
        kind, row = tried_row(make)
        rows.append(row)
        tried.add(kind)
        print(" | ".join(row), flush=True)
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(row)} |" for row in sorted(rows)]
    names = sorted(set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - tried)
    rest = ", ".join(f"`{name}`" for name in names)
    PAGE.write_text(
        f"{HEAD}\n" + "\n".join(lines) + f"\n\nNot tried here ({len(names)} types): {rest}.\n"
    )


def tried_row(make: Callable[[], tuple[Any, Any]]) -> tuple[str, tuple[str, ...]]:
    """Return the model type and the table's row of one small checkpoint."""
    with tempfile.TemporaryDirectory() as name:
        folder = save(make, Path(name) / "model")
        model, processor = load_policy(folder, dtype="fp32", device="cpu")
        kind = model.config.model_type
        pairs = [
            PreferencePair(f"{number}", picture(number, *size), "What is there?", chosen, rejected)
            for number, (size, (chosen, rejected)) in enumerate(zip(SIZES, ANSWERS, strict=True))
        ]
        samples = [
            Sample(pair.question, encode_pair(pair, processor, min_match=3, max_length=4096))
            for pair in pairs
        ]
        try:
            outcome = self_check(model, processor, samples)
        except RlhfvError as error:
            reason = str(error).replace("|", "/")
            return kind, (f"`{kind}`", make.__name__, "refused", reason, *([""] * 4))
        head = "answers" if outcome.split_head else "all"
        gradient = outcome.gradient_distance
        numbers = (f"{outcome.distance:.0e}", "" if gradient is None else f"{gradient:.0e}")
        same = "equal" if answers_agree(model, processor, pairs) else "differ"
        lora = "yes" if adapts(folder) else "no"
        return kind, (f"`{kind}`", make.__name__, outcome.layout, head, *numbers, lora, same)


def answers_agree(model: Any, processor: Any, pairs: list[PreferencePair]) -> bool:
    """Return True if a batch of prompts is answered as the prompts are alone."""
    prompts = [Prompt(pair.id, pair.image, pair.question) for pair in pairs]
    decoding = GenerationConfig(max_new_tokens=5, repetition_penalty=3.0)
    together = answer_prompts(model, processor, prompts, decoding)
    return together == [
        answer_prompts(model, processor, [prompt], decoding)[0] for prompt in prompts
    ]


def adapts(folder: Path) -> bool:
    """Return True if a model takes adapters, and computes with them."""
    model, processor = load_policy(folder, dtype="fp32", device="cpu")
    prepare_training(model, ModelConfig(path=str(folder), lora_rank=2))
    text = prompt_text(processor, "What is there?")
    inputs = process(processor, [decode_image(picture(0, 60, 30))], [text], return_tensors="pt")
    inputs = inputs.to(model.dtype)  # Llama 4's pixels are in bf16
    with torch.no_grad():
        return bool(model(**inputs, use_cache=False).logits.isfinite().all())


if __name__ == "__main__":
    main()
