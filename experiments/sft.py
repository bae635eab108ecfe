"""Supervised fine-tuning of a vision-language model: questions and answers about images, captions, conversations.

    python experiments/sft.py shapes                            the embedded world, two CPU cores, minutes
    python experiments/sft.py llava15 --model.path MODEL --data.path conversations.json
    ray job submit --working-dir . -- python experiments/sft.py shapes

The first argument is a recipe; every field of it can be changed. Data: LLaVA's conversations, TRL's and ms-swift's messages, prompt and
completion, question and answer, captions, Muffin TSV, and preference pairs, of which the chosen answers are imitated. Run again after an
interruption, the same command goes on where it was.
"""

import sys

from experiments.recipes import SFT, run_recipe
from rlhfv_ray.console import run_command


def main() -> None:
    """Run the command line."""
    run_recipe(SFT, __doc__)


if __name__ == "__main__":
    sys.exit(run_command(main))
