"""The data files that a path names: a file, a folder with its sub-folders, a glob, a hub name."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from rlhfv_ray.data.files.text import SUFFIXES as TEXT_SUFFIXES
from rlhfv_ray.data.files.text import suffix_of
from rlhfv_ray.errors import DataError
from rlhfv_ray.storage.folder import fetch_local

SUFFIXES = (".parquet", *TEXT_SUFFIXES)
HUB = "hub:"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")  # owner/name, perhaps :split
GLOB = re.compile(r"[*?\[]")
EXPORTED = "data.parquet"
ARROW, SPLITS = "data-*-of-*.arrow", "dataset_dict.json"  # files of `datasets`' own form


class DataFile(NamedTuple):
    """A file of rows."""

    path: Path  # absolute
    name: str  # in the data: its path in the folder that the user gave
    base: Path  # that folder


def data_files(path: str | Path) -> list[DataFile]:
    """List the data files of a folder and its sub-folders in name order, or those of a glob.

    Names that begin with a dot or an underscore are not data.

    Args:
        path: file, folder, glob such as `data/*.jsonl`, or the name of a data set on the Hugging
            Face hub: `owner/name`, or `hub:NAME`, both perhaps with `:split`.

    Raises:
        DataError: there is no data file, or they are Arrow files. Its message is `no_data` with the
            path.
    """
    text = str(path)
    # Not resolve(): a shard may be a link into a download cache, whose names say nothing.
    source = Path(os.path.abspath(fetch_local(path)))
    is_hub_name = HUB_NAME.fullmatch(text) and suffix_of(source) not in SUFFIXES
    if not source.exists() and (text.startswith(HUB) or is_hub_name):
        source = hub_file(text.removeprefix(HUB))
    if (source / SPLITS).is_file() or any(source.glob(ARROW)):
        raise DataError(
            f"no_data: {source} was written by `save_to_disk` of datasets, whose Arrow files are "
            "not read. Write each split as Parquet: `datasets.load_from_disk(FOLDER)` has "
            "`to_parquet(FILE)`."
        )
    if source.is_dir():
        base, candidates = source, _below(source)
    elif not source.exists() and GLOB.search(text):
        base, candidates = _matching(source)
    else:
        base, candidates = source.parent, [source]
    files = [
        DataFile(file, file.relative_to(base).as_posix(), base)
        for file in candidates
        if suffix_of(file) in SUFFIXES and not _is_hidden(file.relative_to(base))
    ]
    if not files:
        kinds = f"{', '.join(SUFFIXES)} (perhaps .gz)"
        raise DataError(
            f"no_data: {source} is neither a {kinds} file nor a folder with one. Give a file, "
            "a folder, a glob in quotes, or owner/name of a data set on the hub."
        )
    return files


def _below(folder: Path) -> list[Path]:
    """List the files of a folder and its sub-folders; those of the folder itself come first."""
    files = [file for file in folder.rglob("*") if not file.is_dir()]
    return sorted(files, key=lambda file: (len(file.parts), file.parts))


def _matching(pattern: Path) -> tuple[Path, list[Path]]:
    """Return the folder in which a glob begins, and the files that it names."""
    fixed = [part for part in pattern.parts if not GLOB.search(part)]
    depth = next(number for number, part in enumerate(pattern.parts) if GLOB.search(part))
    base = Path(*fixed[:depth])
    matches = sorted(base.glob(str(Path(*pattern.parts[depth:]))))
    files: list[Path] = []
    for match in matches:
        files.extend(_below(match) if match.is_dir() else [match])
    return base, list(dict.fromkeys(files))


def _is_hidden(name: Path) -> bool:
    return any(part[0] in "._" for part in name.parts)


def hub_file(name: str) -> Path:
    """Return a Parquet file with a data set of the hub, downloaded and kept by `datasets`.

    Images stay encoded files, exactly as stored.

    Args:
        name: owner/name, perhaps with `:split`; the split is `train` otherwise.

    Raises:
        DataError: the data set cannot be loaded.
    """
    from datasets import Image, load_dataset
    from datasets.config import HF_DATASETS_CACHE

    repository, _, split = name.partition(":")
    try:
        dataset = load_dataset(repository, split=split or "train")
    except Exception as error:  # of the network, of the hub, or of the data set's own files
        raise DataError(
            f"no_data: {repository!r} is no file here, and the hub's data set of this name cannot "
            f"be loaded ({type(error).__name__}: {error}). Download it, and give its folder."
        ) from error
    for column, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(column, Image(decode=False))
    # The fingerprint covers content and version: another version has another folder.
    folder = Path(HF_DATASETS_CACHE) / "rlhfv-ray" / f"{dataset._fingerprint}"
    if not (folder / EXPORTED).exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{EXPORTED}.{os.getpid()}"
        dataset.to_parquet(str(draft))
        draft.replace(folder / EXPORTED)
    return folder / EXPORTED
