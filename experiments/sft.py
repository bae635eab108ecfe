"""Fine-tune a vision-language model on answers, captions or conversations about images.

    # the shapes world: minutes on two CPU cores
    rlhfv-ray sft shapes
    rlhfv-ray sft llava15 --model.path MODEL --data.path conversations.json
    ray job submit --working-dir . -- python experiments/sft.py shapes

The first argument is a recipe; every field of it can be changed. Formats of the data: LLaVA's
conversations, TRL's and ms-swift's messages, prompt and completion, question and answer, captions,
Muffin TSV, and preference pairs, whose chosen answers are imitated. After an interruption, run the
same command again to continue.
"""

from experiments.recipes import SFT, run_recipe
from rlhfv_ray.console import leave, run_command


def main() -> None:
    """Run the command line."""
    run_recipe(SFT, __doc__)


if __name__ == "__main__":
    leave(run_command(main))
