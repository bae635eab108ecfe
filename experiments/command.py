"""The console command `rlhfv-ray`: one subcommand for each script that people start.

rlhfv-ray train shapes          what `python experiments/ddpo.py shapes` does
rlhfv-ray eval --help           help of one subcommand
rlhfv-ray --version             the installed version
"""

import functools
import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from typing import NoReturn

USAGE = """usage: rlhfv-ray SUBCOMMAND [OPTIONS]

  demo     the shapes world with controls           experiments/ddpo.py shapes
  train    align a model by DDPO, and score it      experiments/ddpo.py
  sft      fine-tune a model on answers             experiments/sft.py
  sweep    search beta, gamma and other settings    experiments/sweep.py
  study    ablation, data_scaling, segment_rules    experiments/NAME.py
           or over_generalization
  eval     evaluate models on benchmarks            eval/run.py
  report   compare finished evaluations             eval/report.py
  audit    look at preference data before a job     experiments/audit_pairs.py
  convert  write preference data in another format  experiments/convert.py
  runs     list the runs of a folder, free disk      experiments/runs.py
  sync     send MLflow what it missed               experiments/sync_tracking.py
  doctor   check every node of the Ray cluster      rlhfv_ray/doctor/

rlhfv-ray SUBCOMMAND --help explains the options.
rlhfv-ray --version prints the version."""


SCRIPTS = {
    "train": "experiments.ddpo",
    "sft": "experiments.sft",
    "sweep": "experiments.sweep",
    "eval": "eval.run",
    "report": "eval.report",
    "audit": "experiments.audit_pairs",
    "convert": "experiments.convert",
    "runs": "experiments.runs",
    "sync": "experiments.sync_tracking",
}
STUDIES = ("ablation", "data_scaling", "over_generalization", "segment_rules")


def run_script(module: str) -> int:
    """Run a script's `main`, and load it where an error of ours is shown without a traceback."""
    from rlhfv_ray.console import run_command

    return run_command(lambda: importlib.import_module(module).main())


def demo() -> int:
    """Run the whole line on the shapes world, also on two kinds of control pairs."""
    settings = ["shapes", "--controls", "permuted", "blank"]
    if "--help" in sys.argv or "-h" in sys.argv:
        print(f"rlhfv-ray demo is `rlhfv-ray train {' '.join(settings)}`.\n")
    sys.argv[:1] = ["rlhfv-ray train", *settings]
    return run_script(SCRIPTS["train"])


def study() -> int:
    """Run one of the studies."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in STUDIES:
        is_help = name in ("-h", "--help")
        print(
            f"usage: rlhfv-ray study NAME [OPTIONS]\n\nNAME is one of {', '.join(STUDIES)}.",
            file=sys.stdout if is_help else sys.stderr,
        )
        return 0 if is_help else 2
    sys.argv[:2] = [f"{sys.argv[0]} {name}"]
    return run_script(f"experiments.{name}")


def doctor() -> int:
    """Check every node of the Ray cluster."""
    from rlhfv_ray import doctor

    sys.argv[1:1] = ["doctor"]
    doctor.main()
    return 0


COMMANDS: dict[str, Callable[[], int]] = {
    "demo": demo,
    "study": study,
    "doctor": doctor,
    **{name: functools.partial(run_script, module) for name, module in SCRIPTS.items()},
}


def main() -> int:
    """Run the subcommand that the command line names; returns the exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if name == "--version":
        print(f"rlhfv-ray {importlib.metadata.version('rlhfv-ray')}")
        return 0
    if name not in COMMANDS:
        print(f"rlhfv-ray has no subcommand {name!r}.\n\n{USAGE}", file=sys.stderr)
        return 2
    sys.argv = [f"rlhfv-ray {name}", *arguments]
    return COMMANDS[name]()


def start() -> NoReturn:
    """Run the console command, and end its process."""
    from rlhfv_ray.console import leave

    leave(main())


if __name__ == "__main__":
    start()
