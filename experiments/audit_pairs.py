"""Measure what the texts of preference pairs say without their pictures.

    python experiments/audit_pairs.py runs/corrections-<fingerprint>/pairs.parquet

A classifier of words and length is trained on four fifths of the pairs and tested on the last
fifth, five times. If it tells the chosen answers from the rejected ones, a model can learn to
prefer them without looking. The command takes any file or folder of pairs that training takes. The
changes of typical shapes and of phrases are those of descriptions of the shapes world.
"""

from dataclasses import asdict, dataclass

import tyro
from rich.table import Table

from rlhfv_ray.console import leave, new_console, run_command


@dataclass(frozen=True)
class AuditConfig:
    """Pairs to audit."""

    path: tyro.conf.Positional[str]
    """File or folder of preference pairs."""
    format: str = "auto"
    """Format of the pairs, as for --data.format of a training."""


def main() -> None:
    """Run the command line."""
    config = tyro.cli(AuditConfig, description=__doc__)
    # These imports are heavy, and --help needs none of them.
    from rlhfv_ray.data import load_pairs
    from rlhfv_ray.shapes.text_audit import audit_texts

    audit = audit_texts(list(load_pairs(config.path, format=config.format)))
    table = Table("figure", "value")
    for name, value in asdict(audit).items():
        numbers = value if isinstance(value, tuple) else (value,)
        texts = [
            f"{number:.3f}" if isinstance(number, float) else str(number) for number in numbers
        ]
        table.add_row(name, " to ".join(texts))
    new_console().print(table)


if __name__ == "__main__":
    leave(run_command(main))
