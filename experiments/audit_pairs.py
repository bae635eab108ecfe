"""Audit preference data before a job: what it will teach, and which rows cannot be used.

    rlhfv-ray audit rows.parquet --model MODEL --out audit

Writes `audit.html`, one page without links to elsewhere, and `audit.json`. A part of it says how
much the texts tell without their pictures: a classifier of words and length is trained on four
fifths of the pairs and tested on the last fifth, five times. If it tells the chosen answers from
the rejected ones, a model can learn to prefer them without looking.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from rlhfv_ray.command_line import call
from rlhfv_ray.config import DataConfig
from rlhfv_ray.console import leave, new_console, run_command
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.records import PreferencePair


def audit(
    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")],
    *,
    model: str = "",
    evaluation: tuple[str, ...] = (),
    data: DataConfig = DataConfig(),  # noqa: B008 (it is frozen)
    out: Path = Path("audit"),
) -> None:
    """Write the audit of a data set as a page and as JSON.

    Args:
        path: file, folder, glob or hub name of preference pairs.
        model: folder or hub name of a model, whose tokens are counted in place of words.
        evaluation: files of evaluation sets, a JSON row per line with `image_id`, `image_path` or
            `image`. Pairs with one of their images are counted.
        data: how the data is read and encoded, as for training.
        out: folder of the page and the JSON.
    """
    from rlhfv_ray.data import ReadOptions, audit_pairs, list_slices
    from rlhfv_ray.data.audit_page import PAGE_FILE, write_audit

    encode = None
    if model:
        from rlhfv_ray.inference.model_check import encode as encode_row
        from rlhfv_ray.models import load_processor

        encode = functools.partial(encode_row, processor=load_processor(model), data=data)
    slices = list_slices(path, format=data.format, options=ReadOptions.of(data))
    sets = {file: _image_ids(Path(file)) for file in evaluation}
    result = audit_pairs(slices, decode=data.max_pixels, encode=encode, evaluations=sets)
    texts = _text_figures(result.texts)
    out.mkdir(parents=True, exist_ok=True)
    write_audit(result, out, path, texts=texts)
    console = new_console()
    if texts:
        table = Table("texts without their images", "")
        for name, value in texts.items():
            table.add_row(name, str(value))
        console.print(table)
    line = f"{result.usable} of {result.rows} rows can be used; see {out / PAGE_FILE}"
    console.print(line, highlight=False, soft_wrap=True)
    if result.duplicates:
        console.print(f"{result.duplicates} pairs repeat an earlier one", highlight=False)
    if evaluation and result.unnamed_images:
        line = f"{result.unnamed_images} pairs have images without a name (a path, or a column "
        line += "image_path): they were not searched for in the evaluation sets."
        console.print(line, highlight=False, soft_wrap=True)
    if ids := sorted(result.duplicated_ids):
        line = f"{len(ids)} ids are of several rows ({', '.join(ids[:3])}): training refuses them. "
        line += "Give each row an id, or train with --data.ids position."
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for code, first in result.examples.items():
        line = f"{result.unusable[code]} cannot, the first: {first}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _text_figures(pairs: Sequence[PreferencePair]) -> dict[str, str | int]:
    """Return what the texts of pairs tell; nothing of too few pairs.

    Typical shapes and phrases are those of descriptions of the shapes world: other data has none.
    """
    from rlhfv_ray.shapes.text_audit import FEWEST, audit_texts

    if len(pairs) < FEWEST:
        return {}
    texts = audit_texts(pairs)
    low, high = texts.told_interval
    counts = {
        "more typical shapes": texts.more_typical,
        "fewer typical shapes": texts.fewer_typical,
        "more phrases": texts.more_phrases,
        "fewer phrases": texts.fewer_phrases,
    }
    return {
        "pairs": texts.pairs,
        "chosen answer told": f"{100 * texts.told:.1f} %",
        "95 % interval": f"{100 * low:.1f} to {100 * high:.1f} %",
        "told by being shorter": f"{100 * texts.shorter:.1f} %",
        **(counts if any(counts.values()) else {}),
    }


def _image_ids(file: Path) -> frozenset[str]:
    """Return the ids of an evaluation set's images.

    Raises:
        ConfigError: the file cannot be read, or one of its lines names no image.
    """
    from rlhfv_ray.data.audit import image_id
    from rlhfv_ray.data.files.text import read_text
    from rlhfv_ray.data.row_fields import attempt, parse_json

    try:
        lines = read_text(file).splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--evaluation {file} cannot be read: {error}") from error
    ids = set()
    names = ("image_id", "image_path", "image")
    for number, line in enumerate(lines, start=1):
        row = attempt(functools.partial(parse_json, line))
        values = [row[name] for name in names if name in row] if isinstance(row, dict) else []
        if not values:
            raise ConfigError(
                f"{file}:{number} is no JSON object with one of {', '.join(names)}: give the "
                "evaluation's questions as JSON Lines."
            )
        ids.add(image_id(str(values[0])))
    return frozenset(ids)


def main() -> None:
    """Run the command line."""
    call(audit, description=__doc__, group="data")


if __name__ == "__main__":
    leave(run_command(main))
