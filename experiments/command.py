"""The console command `rlhfv-ray`: one subcommand for each script that people start.

rlhfv-ray train shapes          what `python experiments/ddpo.py shapes` does
rlhfv-ray eval --help           help of one subcommand
rlhfv-ray --version             the installed version
"""

import importlib.metadata
import sys
from collections.abc import Callable
from typing import NoReturn

USAGE = """usage: rlhfv-ray SUBCOMMAND [OPTIONS]

  demo     the shapes world with controls             (experiments/ddpo.py shapes ...)
  train    align a model by DDPO, and score it        (experiments/ddpo.py)
  sft      fine-tune a model on answers               (experiments/sft.py)
  sweep    search beta, gamma and other settings      (experiments/sweep.py)
  study    ablation, data_scaling, segment_rules      (experiments/NAME.py)
           or over_generalization
  eval     evaluate models on benchmarks              (eval/run.py)
  report   compare finished evaluations               (eval/report.py)
  audit    look at preference data before a job       (experiments/audit_pairs.py)
  convert  write preference data in another format    (experiments/convert.py)
  runs     list the runs of a folder, free its disk   (experiments/runs.py)
  sync     send MLflow what it missed                 (experiments/sync_tracking.py)
  doctor   check every node of the Ray cluster        (rlhfv_ray/doctor/)

rlhfv-ray SUBCOMMAND --help explains the options; rlhfv-ray --version prints the version."""


def train() -> int:
    """Align a model by DDPO."""
    from experiments import ddpo
    from rlhfv_ray.console import run_command

    return run_command(ddpo.main)


def demo() -> int:
    """Run the whole line on the shapes world, also on two kinds of control pairs."""
    settings = ["shapes", "--controls", "permuted", "blank"]
    if "--help" in sys.argv or "-h" in sys.argv:
        print(f"rlhfv-ray demo is `rlhfv-ray train {' '.join(settings)}`.\n")
    sys.argv[:1] = ["rlhfv-ray train", *settings]
    return train()


def sft() -> int:
    """Fine-tune a model on answers."""
    from experiments import sft
    from rlhfv_ray.console import run_command

    return run_command(sft.main)


def sweep() -> int:
    """Search for the best settings of the loss and the optimiser."""
    from experiments import sweep
    from rlhfv_ray.console import run_command

    return run_command(sweep.main)


def study() -> int:
    """Run one of the studies."""
    import importlib

    from rlhfv_ray.console import run_command

    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in STUDIES:
        is_help = name in ("-h", "--help")
        print(
            f"usage: rlhfv-ray study NAME [OPTIONS]\n\nNAME is one of {', '.join(STUDIES)}.",
            file=sys.stdout if is_help else sys.stderr,
        )
        return 0 if is_help else 2
    sys.argv[:2] = [f"{sys.argv[0]} {name}"]
    return run_command(importlib.import_module(f"experiments.{name}").main)


def evaluate() -> int:
    """Evaluate models on benchmarks."""
    from eval import run
    from rlhfv_ray.console import run_command

    return run_command(run.main)


def report() -> int:
    """Compare finished evaluations."""
    from eval import report
    from rlhfv_ray.console import run_command

    return run_command(report.main)


def audit() -> int:
    """Look at preference data before a job."""
    from experiments import audit_pairs
    from rlhfv_ray.console import run_command

    return run_command(audit_pairs.main)


def convert() -> int:
    """Write preference data in another format."""
    from experiments import convert
    from rlhfv_ray.console import run_command

    return run_command(convert.main)


def runs() -> int:
    """List the runs of a storage folder, or free disk space."""
    from experiments import runs
    from rlhfv_ray.console import run_command

    return run_command(runs.main)


def sync() -> int:
    """Send MLflow what it missed."""
    from experiments import sync_tracking
    from rlhfv_ray.console import run_command

    return run_command(sync_tracking.main)


def doctor() -> int:
    """Check every node of the Ray cluster."""
    from rlhfv_ray import doctor

    sys.argv[1:1] = ["doctor"]
    doctor.main()
    return 0


STUDIES = ("ablation", "data_scaling", "over_generalization", "segment_rules")
COMMANDS: dict[str, Callable[[], int]] = {
    "demo": demo,
    "train": train,
    "sft": sft,
    "sweep": sweep,
    "study": study,
    "eval": evaluate,
    "report": report,
    "audit": audit,
    "convert": convert,
    "runs": runs,
    "sync": sync,
    "doctor": doctor,
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
