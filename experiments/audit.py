"""Audit preference data before a job: what it will teach, and which rows cannot be used.

    rlhfv-ray audit rows.parquet --model MODEL --out audit

Writes `audit.html`, one page without links to elsewhere, and `audit.json`.
"""

import functools
import json
from pathlib import Path
from typing import Annotated

import tyro

from rlhfv_ray.config import DataConfig
from rlhfv_ray.data import ReadOptions, audit_pairs, list_slices
from rlhfv_ray.data.audit import image_id
from rlhfv_ray.data.audit_page import audit_json, audit_page
from rlhfv_ray.errors import ConfigError


def main(
    path: Annotated[str, tyro.conf.Positional],
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
    encode = None
    if model:
        from rlhfv_ray.inference.model_check import encode as encode_row
        from rlhfv_ray.models import load_processor

        encode = functools.partial(encode_row, processor=load_processor(model), data=data)
    slices = list_slices(path, format=data.format, options=ReadOptions.of(data))
    sets = {file: _image_ids(Path(file)) for file in evaluation}
    audit = audit_pairs(slices, decode=True, encode=encode, evaluations=sets)
    out.mkdir(parents=True, exist_ok=True)
    (out / "audit.html").write_text(audit_page(audit, path))
    (out / "audit.json").write_text(json.dumps(audit_json(audit), indent=2))
    print(f"{audit.usable} of {audit.rows} rows can be used; see {out / 'audit.html'}")


def _image_ids(file: Path) -> frozenset[str]:
    """Return the ids of an evaluation set's images.

    Raises:
        ConfigError: a line is no JSON object, or names no image.
    """
    ids = set()
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        row = json.loads(line) if line.strip().startswith("{") else None
        names = ("image_id", "image_path", "image")
        values = [row[name] for name in names if name in row] if isinstance(row, dict) else []
        if not values:
            raise ConfigError(
                f"{file}:{number} is no JSON object with one of {', '.join(names)}: give the "
                "evaluation's questions as JSON Lines."
            )
        ids.add(image_id(str(values[0])))
    return frozenset(ids)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
