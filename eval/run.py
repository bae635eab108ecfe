r"""Evaluate models, files of answers or a model behind an API on hallucination benchmarks.

    # the shapes world: no judge, no download
    rlhfv-ray eval --model shapes runs/train-1a2b3c/model
    ray job submit --working-dir . -- python eval/run.py --model BASE ALIGNED \
        --benchmarks object_halbench mmhal_bench --judge.model gpt-4o-2024-08-06 \
        --object-halbench.questions ... --mmhal-bench.questions ...
    rlhfv-ray eval --answers answers.jsonl --benchmarks mmhal_bench ...

The first model is the base that the others are compared with. Every score has an interval and the
manifest of its measurement. Answers are sent to the judge's server. The judge's key is read from
OPENAI_API_KEY or from a file (--judge.key-file), and is written nowhere. After an interruption, run
the same command again to continue: neither answers nor verdicts are made twice.
"""

from eval.config import EvalConfig
from rlhfv_ray.command_line import print_short_help, read_arguments, wants_short_help
from rlhfv_ray.command_line.help_text import parse
from rlhfv_ray.console import leave, new_console, run_command
from rlhfv_ray.storage.folder import resolve_storage

MAIN_FLAGS = (
    "model",
    "answers",
    "benchmarks",
    "storage",
    "decoding",
    "judge.model",
    "judge.base_url",
    "judge.max_cost",
    "endpoint.model",
    "endpoint.base_url",
    "inference.actors",
    "inference.gpu",
)


def main() -> None:
    """Run the command line."""
    if wants_short_help():
        print_short_help(EvalConfig, MAIN_FLAGS, description=__doc__)
        return
    config = parse(EvalConfig, description=__doc__, arguments=read_arguments((), EvalConfig))
    from eval.evaluation import run_evaluation

    run_evaluation(config, resolve_storage(config.storage), console=new_console())


if __name__ == "__main__":
    leave(run_command(main))
