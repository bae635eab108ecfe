"""Tries small random checkpoints of many architectures, and writes docs/models.md.

    python -m tests.model_table        # `make models`
    python -m tests.model_table --page runs/other.md

Each is saved in its published form, loaded as a user's model, and taken through the self-check and
the whole line (`tests.whole_line`), one after the other in a process of its own. Architectures of
the installed transformers that have no small checkpoint here are listed as not tried: the
self-check decides about them when they are used.

The same command goes on after an interruption: rows stay in `--work` until the page is written, and
count for this code, transformers and torchvision alone. Checkpoints stay there too. Without
torchvision some cannot be made, and those of an earlier run with it are tried.
"""

import importlib.metadata
import importlib.util
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import transformers
import tyro
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from rlhfv_ray.config import ModelConfig, fingerprint
from rlhfv_ray.data.encoding import encode_pair
from rlhfv_ray.errors import RlhfvError
from rlhfv_ray.models import architecture_of, check_image_tokens, load_policy
from rlhfv_ray.models.loading import BROKEN
from rlhfv_ray.models.self_check import Sample, self_check
from rlhfv_ray.storage.files import file_digest, write_json
from rlhfv_ray.tracking.origin import source_digest
from tests.families import FAMILIES, save
from tests.families_a import FAMILIES_A
from tests.families_b import FAMILIES_B
from tests.families_c import FAMILIES_C
from tests.families_d import FAMILIES_D, REFUSED_D
from tests.families_muffin import muffin
from tests.families_vision import FAMILIES_VISION
from tests.whole_line import line_pairs, line_pool, whole_line

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
WORK = ROOT / "runs" / "models"
Make = Callable[[], tuple[Any, Any]]  # returns a small model and its processor
Row = tuple[str, ...]  # of the table
CRASHED = "crashed"
COLUMNS = ("model type", "checkpoint", "rows", "head", "log-probs", "gradients")
COLUMNS += ("first loss", "export", "LoRA export", "batch")
VISION = (
    importlib.metadata.version("torchvision").split("+")[0]
    if importlib.util.find_spec("torchvision")
    else "missing"
)
HEAD = f"""# Models

Every model is checked before it is trained (`rlhfv_ray/models/self_check.py`): log-probs of answers
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
* **first loss**: its distance from ln 2, the larger of two trainings: all parts for two updates,
  and adapters for one. **export**: largest distance of an answer token's log-prob between the
  trained model and its export, loaded again, in nats; **LoRA export**: with merged adapters.
* **batch**: the export answers several prompts at once as it answers each alone.

Adapters go on linear layers. Fused weights of experts get none: they stay as they are, and the log
names them. peft's `target_parameters` would hold the changed weights of all experts of a layer at
once, in every pass.

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
actor that is 0.7 % of RLHF-V-Dataset's 5,733 pairs, with n actors n times that.

In tokens, for prompts of P, pairs of S in shared rows and plain rows of L: 6 (P + 48) for the
truth, 6 S and 12 L for log-probs and gradients of either. LLaVA-1.5 7B at the paper's lengths
(P = 636, S = 786, L = 723) runs 17,496 tokens, those of 22 pairs: 0.4 % of 5,733 at equal speed.
In bf16, 8 S more measure how far apart two passes of the same rows are: those of 8 pairs. The rest
of the check runs in fp32. Where that is f times slower than the job's bf16, it is 0.4 f %, and 288
passes of one token, each of which reads the weights once (28 GB). No GPU was measured: f = 8 would
give 3 %, without the passes of one token.
"""


MAKES: Sequence[Make] = (
    *FAMILIES,
    *FAMILIES_A,
    *FAMILIES_B,
    *FAMILIES_C,
    *FAMILIES_D,
    *FAMILIES_VISION,
    muffin,
    *REFUSED_D,
)


def main(page: Path = PAGE, work: Path = WORK) -> None:
    """Try all checkpoints, one after the other, and write the page.

    Args:
        page: Markdown file to write.
        work: Folder of the rows of an interrupted run, and of the checkpoints.
    """
    with LineProcess() as process:
        rows = tried_rows(MAKES, work, process.tried_row)
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(row)} |" for row in sorted(rows)]
    tried = {row[0].strip("`") for row in rows}
    names = sorted(set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - tried)
    rest = ", ".join(f"`{name}`" for name in names)
    page.write_text(
        f"{HEAD}\n" + "\n".join(lines) + f"\n\nNot tried here ({len(names)} types): {rest}.\n"
    )
    shutil.rmtree(work / run_digest())


def tried_rows(
    makes: Sequence[Make], work: Path, try_one: Callable[[Make, Path], Row]
) -> list[Row]:
    """Return the table's rows, and print them; those that `work` holds are not tried again.

    Args:
        makes: the architectures.
        work: receives each row as soon as it is known.
        try_one: returns the row of one architecture, whose checkpoint it puts into a folder.
    """
    rows = []
    for number, make in enumerate(makes, 1):
        known = work / run_digest() / f"{make.__name__}.json"
        if known.is_file():
            row = tuple(json.loads(known.read_text()))
        else:
            row = try_one(make, work / "checkpoints" / make.__name__)
            if CRASHED not in row:  # perhaps for want of memory: tried again
                known.parent.mkdir(parents=True, exist_ok=True)
                write_json(known, row)
        print(f"{number} of {len(makes)}: {' | '.join(row)}", flush=True)
        rows.append(row)
    return rows


def run_digest() -> str:
    """Return twelve digits of everything that a row depends on."""
    tests = {file.name: file_digest(file) for file in Path(__file__).parent.glob("*.py")}
    packages = {"transformers": transformers.__version__, "torchvision": VISION}
    return fingerprint({"source": source_digest(), "tests": tests, **packages})


class LineProcess:
    """A process that tries architectures in turn, and is replaced after a crash."""

    def __enter__(self) -> "LineProcess":
        self.pool = line_pool()
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown()

    def tried_row(self, make: Make, checkpoint: Path) -> Row:
        """Return `tried_row` of the process; a crash costs one row."""
        try:
            return self.pool.submit(tried_row, make, checkpoint).result()
        except BrokenProcessPool:
            self.pool = line_pool()
            return padded("", make.__name__, CRASHED)


def tried_row(make: Make, checkpoint: Path) -> Row:
    """Return the table's row of one small checkpoint, which is refused or runs the whole line."""
    try:
        save(make, checkpoint)
    except ImportError as error:  # for want of torchvision
        if not checkpoint.is_dir():
            return padded("", make.__name__, f"not made: {shown(error)}")
    kind = f"`{architecture_of(checkpoint).model_type}`"
    try:
        check_image_tokens(ModelConfig(path=str(checkpoint)))
        model, processor = load_policy(checkpoint, dtype="fp32", device="cpu")
        samples = [
            Sample(pair.question, encode_pair(pair, processor, min_match=3, max_length=4096))
            for pair in line_pairs()
        ]
        outcome = self_check(model, processor, samples)
    except RlhfvError as error:
        return padded(kind, make.__name__, "refused", shown(error))
    head = "answers" if outcome.split_head else "all"
    gradient = outcome.gradient_distance
    numbers = (f"{outcome.distance:.0e}", "" if gradient is None else f"{gradient:.0e}")
    row = (kind, make.__name__, outcome.layout, head, *numbers)
    try:
        with tempfile.TemporaryDirectory() as name:
            line = whole_line(make, Path(name) / "line")
    except (*BROKEN, RlhfvError) as error:
        return padded(*row, f"failed: {shown(error)}")
    trainings = (line.whole, line.adapters)
    first = max(abs(training.losses[0] - math.log(2)) for training in trainings)
    exports = [f"{training.apart:.0e}" for training in trainings]
    return (*row, f"{first:.0e}", *exports, "equal" if line.batched else "differ")


def padded(*cells: str) -> Row:
    """Return a row with empty cells behind the given ones."""
    return cells + ("",) * (len(COLUMNS) - len(cells))


def shown(error: Exception) -> str:
    """Return an error as a cell of the table."""
    reason = str(error) if isinstance(error, RlhfvError) else f"{type(error).__name__}: {error}"
    return " ".join(reason.split()).replace("|", "/")[:900]


if __name__ == "__main__":
    tyro.cli(main)
