"""A benchmark's images, found by name in the user's folder; one error lists the missing ones.

Question files name images as their authors stored them. Copies of COCO drop or add the split, and
other tools save another file type. So the lookup tries a name as it is, as COCO names that image,
and with every extension of `EXTENSIONS`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from rlhfv_ray.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png")
SHOWN = 5  # missing images that an error names
_COCO = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{1,12})")


def image_bytes(
    folder: str | Path, names: Sequence[str], *, aliases: Mapping[str, Sequence[str]] | None = None
) -> dict[str, bytes]:
    """Read every image once, after all have been found.

    Args:
        folder: of the benchmark's images; empty if answers that are there are scored without.
        names: as the question file has them, repeats allowed.
        aliases: other names that an image may be stored under.

    Returns:
        The encoded files by the given names; questions about one image share its bytes. Without a
        folder, all are empty.

    Raises:
        DataError: as `find_images`, or a file cannot be read.
    """
    if not str(folder):
        return dict.fromkeys(names, b"")
    paths = find_images(folder, names, aliases=aliases)
    try:
        return {name: path.read_bytes() for name, path in paths.items()}
    except OSError as error:
        raise DataError(f"cannot read the image {error.filename}: {error.strerror}") from error


def find_images(
    folder: str | Path, names: Sequence[str], *, aliases: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Path]:
    """Find the file of every image without reading any; arguments as for `image_bytes`.

    Raises:
        DataError: the folder does not exist, images are missing (the first few are named), or a
            name leads out of the folder.
    """
    root = Path(folder).expanduser()
    if not str(folder) or not root.is_dir():
        raise DataError(
            f"folder of images {str(folder)!r}: there is no such folder; give the one that holds "
            "the images"
        )
    paths: dict[str, Path] = {}
    missing: list[str] = []
    for name in dict.fromkeys(names):
        path = _find(root, [name, *(aliases or {}).get(name, ())])
        if path is None:
            missing.append(name)
        else:
            paths[name] = path
    if missing:
        more = ", ..." if len(missing) > SHOWN else ""
        raise DataError(
            f"folder of images {str(folder)!r}: {len(missing)} of {len(missing) + len(paths)} "
            f"images are missing: {', '.join(missing[:SHOWN])}{more}"
        )
    return paths


def candidates(name: str) -> list[str]:
    """List the file names that an image may have.

    Example:
        >>> candidates("COCO_val2014_000000000042.jpg")[1:4]
        ['COCO_val2014_000000000042.jpeg', 'COCO_val2014_000000000042.png', '000000000042.jpg']
        >>> candidates("AMBER_1.png")
        ['AMBER_1.png', 'AMBER_1.jpg', 'AMBER_1.jpeg']
    """
    path = PurePosixPath(name)
    stem = path.with_suffix("") if path.suffix.lower() in EXTENSIONS else path
    stems = [str(stem)]
    if coco := _COCO.fullmatch(stem.name):
        number = f"{int(coco[1]):012d}"
        stems += [str(stem.with_name(prefix + number)) for prefix in ("", "COCO_val2014_")]
    file_names = [name]
    for stem_name in stems:
        file_names += [stem_name + extension for extension in EXTENSIONS]
    return list(dict.fromkeys(file_names))


def _find(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first existing file among all candidates of all names, or None."""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"image {name!r} leads out of the folder {str(folder)!r}; expected the name of a "
                "file in it"
            )
    for name in filter(None, names):
        for candidate in candidates(name):
            # Path.is_file raises for names that no file can have; os.path.isfile returns False.
            if os.path.isfile(folder / candidate):
                return folder / candidate
    return None
