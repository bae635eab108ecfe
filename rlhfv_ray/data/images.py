"""Decode the bytes of an image file, always in the same way.

This is the pixel contract: no crop, no flip, no resize here. (The RLHF-V release cropped and
flipped at random, although its paper says that cropping hurts.) Reference, policy and generation
decode with this function, so that the same bytes are the same pixels everywhere. What
`models.augmentation` changes, if asked, it changes alike for reference and policy. Data is
untrusted: the size is checked on the header, before memory for the pixels is allocated.
"""

import contextlib
from collections.abc import Iterator
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from rlhfv_ray.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_BYTES = 64 * 2**20  # of the encoded file
MAX_PIXELS = 50_000_000  # by default
MIN_SIDE = 4  # image processors mistake a height of 1 or 3 for a channel axis
MAX_ASPECT = 100  # Qwen-VL processors refuse 200


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first frame of an image file, upright, as RGB on white.

    Args:
        data: the encoded file.
        max_pixels: largest width x height. It is read from the header before decoding.

    Raises:
        DataError: `image_unreadable`, `image_too_large` or `image_shape`, then the reason.
    """
    with _opened(data, max_pixels) as image:
        return _to_rgb(ImageOps.exif_transpose(image))


def check_pixels(data: bytes, max_pixels: int) -> None:
    """Refuse an image by its header alone, as `decode_image` does.

    Raises:
        DataError: `image_unreadable`, `image_too_large` or `image_shape`, then the reason.
    """
    with _opened(data, max_pixels):
        pass


@contextlib.contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image whose size is allowed; what fails meanwhile becomes a DataError."""
    if len(data) > MAX_BYTES:
        raise DataError(
            f"image_too_large: the file has {len(data)} bytes, at most {MAX_BYTES} are allowed"
        )
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, max_pixels=max_pixels)
            yield image
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"image_unreadable: the {len(data)} bytes are not one of {', '.join(FORMATS)}"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"image_too_large: {error}") from error
    except Exception as error:  # on broken files, Pillow's decoders raise errors of any class
        raise DataError(f"image_unreadable: {type(error).__name__}: {error}") from error


def _check_size(width: int, height: int, *, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(
            f"image_too_large: {width} x {height} pixels, at most {max_pixels} are allowed"
        )
    short = min(width, height)
    long = max(width, height)
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        raise DataError(
            f"image_shape: {width} x {height} pixels; the shorter side must be at least {MIN_SIDE} "
            f"and the longer at most {MAX_ASPECT} times as long"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: convert() would clip at 255. Keep the high byte, as for 16-bit colour.
        return image.convert("I").point(lambda value: value / 256).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
