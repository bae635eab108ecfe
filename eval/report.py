"""Scores of models side by side, as numbers and as tables; as a command, of evaluations that are done.

    python eval/report.py RUN RUN --page comparison.html

A RUN is the folder of an evaluation, with a file `<benchmark>/<model>.json` for each model's scores, or such a file itself. The first model by
name of the first run is the base, which all others are compared with, unless one is called base, or --base names another. Every benchmark
that the runs have in common is shown; scores that were measured differently are refused. Nothing is measured here: rates, intervals and
tests come from `eval.benchmarks.contract`.
"""

import sys

import tyro

from eval.reporting.comparison import report_runs
from rlhfv_ray.console import run_command


def main() -> None:
    """Run the command line."""
    tyro.cli(report_runs, description=__doc__)


if __name__ == "__main__":
    sys.exit(run_command(main))
