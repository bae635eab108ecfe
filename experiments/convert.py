"""Write preference pairs in another format of the field, and say what it cannot hold.

    rlhfv-ray convert rows.parquet rows.jsonl --to swift

Images of `llamafactory` and `swift` stand in a folder beside OUT; a task of Label Studio holds its
own. Rows that cannot be used, or whose prompt the format cannot hold, are listed with their reasons
in `_OUT.left_out.jsonl`.
"""

import functools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from rlhfv_ray.command_line import call
from rlhfv_ray.config import DataConfig
from rlhfv_ray.console import leave, new_console, run_command
from rlhfv_ray.data import ReadOptions, Slice, list_slices, read_slice, write_pairs
from rlhfv_ray.data.images import check_pixels
from rlhfv_ray.data.row_fields import attempt
from rlhfv_ray.data.targets import TARGETS, check_held, traits
from rlhfv_ray.data.writing import check_target
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import PreferencePair


def convert(
    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    to: Literal["rlhfv", "rlaifv", "trl", "llamafactory", "swift", "label_studio"],
    data: DataConfig = DataConfig(),  # noqa: B008 (it is frozen)
) -> None:
    """Convert a data set, one pair at a time.

    Args:
        path: file, folder, glob or hub name of preference pairs.
        out: file to write, which replaces an older one; docs/data.md names the suffixes of each
            format.
        to: format to write.
        data: how the data is read, as for training.
    """
    check_target(out, to)
    slices = list_slices(path, format=data.format, options=ReadOptions.of(data))
    if out.resolve() in {Path(part.file).resolve() for part in slices}:
        raise ConfigError(f"{out} is a file of the data that is read. Name another file.")
    out.parent.mkdir(parents=True, exist_ok=True)
    left_out = out.with_name(f"_{out.name}.left_out.jsonl")
    conversion = Conversion(to, left_out, max_pixels=data.max_pixels)
    write_pairs(conversion.pairs(slices), out, format=to)
    conversion.print_losses(new_console(), out)


def main() -> None:
    """Run the command line."""
    call(convert, description=__doc__, group="data")


class Conversion:
    """The pairs of a data set on their way to another format, and what does not arrive."""

    def __init__(self, to: str, left_out: Path, *, max_pixels: int) -> None:
        self.to, self.left_out, self.max_pixels = to, left_out, max_pixels
        self.written = 0
        self.reasons: Counter[str] = Counter()  # of rows that are left out
        self.traits: Counter[str] = Counter()  # of the pairs written

    def pairs(self, slices: list[Slice]) -> Iterator[PreferencePair]:
        """Yield the pairs that the format can hold, and list the other rows.

        Raises:
            DataError: there is no such pair.
        """
        self.left_out.unlink(missing_ok=True)  # of an earlier conversion
        for part in slices:
            for row_id, row in read_slice(part):
                result = row
                if isinstance(row, PreferencePair):
                    result = attempt(functools.partial(self.check, row), row.position) or row
                if isinstance(result, PreferencePair):
                    self.written += 1
                    self.traits.update(traits(result))
                    yield result
                else:
                    self.list_row(row_id, str(result))
        if not self.written:
            reasons = ", ".join(self.reasons)
            listed = f"{reasons}; see {self.left_out}" if reasons else "there is no row"
            raise DataError(f"no pair can be written as {self.to}: {listed}")

    def check(self, pair: PreferencePair) -> None:
        """Check that the format can hold a pair, and that its picture is one.

        Raises:
            DataError: it cannot; or the picture's file is none, or is larger than allowed.
        """
        check_pixels(pair.image, self.max_pixels)
        check_held(pair, self.to)

    def list_row(self, row_id: str, reason: str) -> None:
        """List one row that is left out."""
        self.reasons[reason.partition(":")[0]] += 1
        with self.left_out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"id": row_id, "reason": reason}, ensure_ascii=False) + "\n")

    def print_losses(self, console: Console, out: Path) -> None:
        """Print the number of pairs, what the format has no place for, and the rows left out."""
        lines = [f"{self.written} pairs written to {out}"]
        for trait, count in self.traits.items():
            place = TARGETS[self.to].places[trait]
            if place == "no":
                lines.append(f"{count} pairs lost {trait}: format {self.to} has no place for it")
            elif place == "own":
                lines.append(f"{count} pairs have {trait}, which only rlhfv-ray reads in this file")
        if self.reasons:
            counts = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())
            lines.append(f"{self.reasons.total()} rows left out ({counts}); see {self.left_out}")
        console.print("\n".join(lines), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    leave(run_command(main))
