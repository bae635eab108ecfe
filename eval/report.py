"""Compare the scores of finished evaluations, as tables and as a page.

    rlhfv-ray report RUN RUN --page comparison.html

A RUN is the folder of an evaluation, with a file `<benchmark>/<model>.json` for each model's
scores, or one such file. The base, with which all others are compared, is the model that --base
names, else the one called base, else the base of the first run. The report shows every benchmark
that all runs have. It refuses scores that were measured differently.
"""

import sys

from eval.reporting.comparison import report_runs
from rlhfv_ray.command_line.help_text import parse
from rlhfv_ray.console import leave, run_command


def main() -> None:
    """Run the command line."""
    parse(report_runs, description=__doc__, arguments=sys.argv[1:])


if __name__ == "__main__":
    leave(run_command(main))
