"""The bytes of a row's picture: from the row itself, in base64, or from a file that it names."""

import base64
import functools
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from rlhfv_ray.data.images import MAX_BYTES
from rlhfv_ray.data.row_fields import Row, unusable
from rlhfv_ray.errors import DataError, StorageError
from rlhfv_ray.storage.folder import fetch_local, open_folder

IMAGE_COLUMNS = ("image", "images", "img_path")
DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
# How the files of `images.FORMATS` begin, in base64: JPEG, PNG, WebP, GIF, BMP.
BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk")
SHORTEST_BASE64 = 120  # characters: shorter texts are names


class ImageRoots(NamedTuple):
    """Resolved folders that a named image may stand in."""

    own: tuple[Path, ...]  # of the data: the file's and the one above it that the user gave
    extra: Path | None = None  # --data.image-root

    @property
    def all(self) -> tuple[Path, ...]:
        """Every folder, in the order in which a relative path is looked for."""
        return self.own if self.extra is None else (*self.own, self.extra)


def image_bytes(fields: Row, roots: ImageRoots) -> bytes:
    """Return the bytes of a row's only image.

    Args:
        fields: of the row.
        roots: folders that a named file may stand in.

    Raises:
        DataError: `multi_image`, `image_missing`, `image_path`, `image_too_large` or `bad_base64`,
            then the reason.
    """
    value = image_value(fields)
    if isinstance(value, str) and value:
        value = _image_file(value, roots)
    if not isinstance(value, bytes):
        raise unusable("image_missing", "the row holds neither the bytes nor the path of an image")
    return value


def image_value(fields: Row) -> Any:
    """Return what a row holds as its only image: bytes, a path, or something unusable.

    Raises:
        DataError: `multi_image` or `bad_base64`, then the reason.
    """
    stored = [fields[name] for name in IMAGE_COLUMNS if fields.get(name) not in (None, [])]
    value = stored[0] if stored else None
    first_two = [_named(fields[name]) for name in ("image", "images") if fields.get(name)]
    if len(first_two) == 2 and first_two[0] != first_two[1]:
        raise unusable("multi_image", "the row has different images in image and images")
    if isinstance(value, list | tuple):
        if len(value) > 1:
            raise unusable("multi_image", f"{len(value)} images in one row, one is supported")
        value = value[0] if value else None
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or value.get("url")
    return _from_base64(value) if isinstance(value, str) else value


def image_path_of(fields: Row) -> str:
    """Return the path of a row's image, at its origin or here; empty of bytes alone."""
    stored = [fields[name] for name in ("image_path", *IMAGE_COLUMNS) if fields.get(name)]
    for value in map(_named, stored):
        name = value.get("path") or value.get("url") if isinstance(value, Mapping) else value
        if isinstance(name, str) and not _is_base64(name):
            return name
    return ""


def _named(value: Any) -> Any:
    """Return a stored image without the list around it."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _from_base64(text: str) -> bytes | str:
    """Return the bytes of an image in base64; another text is a path and stays as it is.

    Raises:
        DataError: `bad_base64`, then the reason.
    """
    if not _is_base64(text):
        return text
    url = DATA_URL.match(text)
    code = text[url.end() :] if url else text
    try:
        return base64.b64decode("".join(code.split()), validate=True)
    except ValueError as error:
        if url is None:
            return text
        raise unusable("bad_base64", f"the image: {error}") from error


def _is_base64(text: str) -> bool:
    is_long = len(text) >= SHORTEST_BASE64
    return bool(DATA_URL.match(text)) or (is_long and text.startswith(BASE64_STARTS))


@functools.lru_cache(maxsize=64)
def resolved_root(folder: str) -> Path:
    """Return a folder with all links in its path followed."""
    return Path(fetch_local(folder)).resolve()


def _image_file(path: str, roots: ImageRoots) -> bytes:
    """Read an image named by the data: the name is untrusted and may not leave the roots."""
    name = repr(path[:200])
    if roots.extra is not None:
        path = path.removeprefix("file://")
    _check_form(path, may_be_absolute=roots.extra is not None)
    try:
        files = [(root / path).resolve() for root in roots.all]
        inside = [file for file in files if any(map(file.is_relative_to, roots.all))]
        for file in inside:
            open_folder(file.parent).fetch_missing(file)
            if file.is_file():
                return _bounded_bytes(file, name)
    except (StorageError, DataError):  # storage that fails is not the row's fault
        raise
    # Unreadable file, NUL in the name, loop of symbolic links.
    except (OSError, ValueError, RuntimeError) as error:
        raise unusable("image_missing", f"{name} cannot be read: {error}") from error
    if len(inside) < len(files):
        reason = f"{name} leads out of the data file's folder; --data.image-root allows another one"
        raise unusable("image_path", reason)
    below = "" if roots.extra is None else f", nor {roots.extra}"
    hint = "; --data.image-root names another folder" if roots.extra is None else ""
    raise unusable("image_missing", f"the data file's folder{below} has no file {name}{hint}")


def _check_form(path: str, *, may_be_absolute: bool) -> None:
    name = repr(path[:200])
    if "://" in path and not path.startswith("file://"):
        reason = f"{name} is an address, and nothing is downloaded: store the image in a file"
        raise unusable("image_path", f"{reason} beside the data, and give its path")
    is_absolute = PurePosixPath(path).is_absolute()
    is_foreign = "://" in path or (PureWindowsPath(path).anchor and not is_absolute)
    if is_foreign or (is_absolute and not may_be_absolute):
        reason = f"{name} is not a path relative to the data file's folder; --data.image-root"
        raise unusable("image_path", f"{reason} names the folder of absolute paths")


def _bounded_bytes(file: Path, name: str) -> bytes:
    size = file.stat().st_size
    if size > MAX_BYTES:
        reason = f"{name} has {size} bytes, at most {MAX_BYTES} are allowed"
        raise unusable("image_too_large", reason)
    return file.read_bytes()
