r"""Evaluate models (or answers from files, or from an API) on hallucination benchmarks, with intervals and the manifest they belong to.

    python eval/run.py --model shapes runs/train-1a2b3c/model                     the embedded world, no judge, no download
    ray job submit --working-dir . -- python eval/run.py --model BASE ALIGNED --benchmarks object_halbench mmhal_bench \
        --judge.model gpt-4o-2024-08-06 --object-halbench.questions ... --mmhal-bench.questions ...
    python eval/run.py --answers answers.jsonl --benchmarks mmhal_bench ...

The first model is the base that the others are compared with. The judge's key is read from OPENAI_API_KEY, or a file (--judge.key-file), and is
nowhere written. Answers are sent to the judge's server. Run again after an interruption, the same command goes on where it was: neither answers
nor verdicts are made twice.
"""

import sys

import tyro
from rich.console import Console

from eval.config import EvalConfig
from rlhfv_ray.console import run_command
from rlhfv_ray.storage.folder import resolve_storage


def main() -> None:
    """Run the command line."""
    config = tyro.cli(EvalConfig, description=__doc__)
    from eval.evaluation import run_evaluation

    run_evaluation(config, resolve_storage(config.storage), console=Console())


if __name__ == "__main__":
    sys.exit(run_command(main))
