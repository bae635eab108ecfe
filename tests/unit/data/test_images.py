"""Decoding: what each kind of image file must become, and what must be refused."""

import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from rlhfv_ray.data import decode_image
from rlhfv_ray.errors import DataError

PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "photos"  # beside the repository
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0"))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def pixel(data: bytes, x: int = 0, y: int = 0) -> tuple[int, ...]:
    image = decode_image(data)
    assert image.mode == "RGB"
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def refused(data: bytes) -> str:
    with pytest.raises(DataError) as caught:
        decode_image(data)
    return str(caught.value).partition(":")[0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_formats_we_allow_decode(kind: str) -> None:
    """Bug: a format list that leaves out one users have."""
    assert pixel(encode(Image.new("RGB", (8, 8), WHITE), kind)) == WHITE


def test_other_formats_are_refused() -> None:
    """Bug: every Pillow plugin open to untrusted bytes."""
    assert refused(encode(Image.new("RGB", (8, 8)), "TIFF")) == "image_unreadable"


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (20_000, 20_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bomb_is_refused_on_its_header(width: int, height: int) -> None:
    """Bug: 89-179 megapixels only warn in Pillow, then allocate."""
    assert refused(png_header(width, height)) == "image_too_large"


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_bomb_warning_turned_into_error_keeps_its_code() -> None:
    """Bug: under -W error the bomb is reported as an unreadable file."""
    assert refused(png_header(10_000, 10_000)) == "image_too_large"


def test_max_pixels_is_a_limit_not_a_bound_to_exceed() -> None:
    """Bug: off by one at the limit."""
    data = encode(Image.new("RGB", (10, 10)))
    assert decode_image(data, max_pixels=100).size == (10, 10)
    with pytest.raises(DataError, match="image_too_large"):
        decode_image(data, max_pixels=99)


def test_huge_file_is_refused_before_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: no limit on the encoded size."""
    monkeypatch.setattr("rlhfv_ray.data.images.MAX_BYTES", 10)
    assert refused(encode(Image.new("RGB", (8, 8)))) == "image_too_large"


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (1, 5000), (404, 4)])
def test_extreme_shapes_are_refused(size: tuple[int, int]) -> None:
    """Bug: a 1 x 5000 strip reaches a processor, which mistakes rows for channels or raises."""
    assert refused(encode(Image.new("RGB", size))) == "image_shape"


def test_shapes_at_the_limits_pass() -> None:
    """Bug: off by one: 4 pixels and 100 : 1 are allowed."""
    assert decode_image(encode(Image.new("RGB", (400, 4)))).size == (400, 4)


def test_exif_rotation_is_applied() -> None:
    """Bug: photos taken upright train lying on their side."""
    image = Image.new("RGB", (40, 20), BLUE)
    image.paste(RED, (0, 0, 20, 20))  # left half red
    exif = Image.Exif()
    exif[0x0112] = 6  # show rotated by 90 degrees clockwise: left becomes top
    upright = decode_image(encode(image, "PNG", exif=exif))
    assert upright.size == (20, 40)
    assert (upright.getpixel((10, 5)), upright.getpixel((10, 35))) == (RED, BLUE)


def test_palette_transparency_is_composited_on_white() -> None:
    """Bug: convert("RGB") shows the colour hidden below transparent pixels."""
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    data = encode(image, "PNG", transparency=0)
    assert (pixel(data), pixel(data, 1, 0)) == (WHITE, BLUE)


@pytest.mark.parametrize(("mode", "colour"), [("LA", (0, 0)), ("RGBA", (255, 0, 0, 0))])
def test_alpha_channel_is_composited_on_white(mode: str, colour: tuple[int, ...]) -> None:
    """Bug: alpha dropped."""
    assert pixel(encode(Image.new(mode, (8, 8), colour))) == WHITE


def test_half_alpha_is_blended() -> None:
    """Bug: alpha treated as a mask. Black at alpha 128: 255 * (1 - 128/255) = 127."""
    assert pixel(encode(Image.new("RGBA", (8, 8), (0, 0, 0, 128)))) == (127, 127, 127)


def test_sixteen_bits_are_scaled() -> None:
    """Bug: 16-bit grey clipped to white. 0x8000 is mid grey 0x80."""
    image = Image.new("I;16", (8, 8), 0x8000)
    image.putpixel((1, 0), 0xFFFF)
    data = encode(image)
    assert (pixel(data), pixel(data, 1, 0)) == ((128, 128, 128), WHITE)


def test_one_bit_and_grey_become_rgb() -> None:
    """Bug: a mode that no processor takes."""
    assert pixel(encode(Image.new("1", (8, 8), 1))) == WHITE
    assert pixel(encode(Image.new("L", (8, 8), 7))) == (7, 7, 7)


def test_cmyk_keeps_its_colour() -> None:
    """Bug: CMYK taken as RGB, or inverted. Cyan and magenta inks without yellow are blue."""
    red, green, blue = pixel(
        encode(Image.new("CMYK", (16, 16), (255, 255, 0, 0)), "JPEG", quality=95)
    )
    assert (red < 10, green < 10, blue > 245) == (True, True, True)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_animation_gives_its_first_frame(kind: str) -> None:
    """Bug: last frame, or a frame that depends on the decoder's state."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert pixel(data) == RED


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, b"<html>404 Not Found</html>", b"\xff\xd8\xff\xe0"]
)
def test_bytes_that_are_no_image(data: bytes) -> None:
    """Bug: a download error page kills the worker."""
    assert refused(data) == "image_unreadable"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_truncated_and_flipped_files_never_escape_as_other_errors(kind: str) -> None:
    """Bug: a decoder's struct.error, SyntaxError or IndexError ends the job; a cut file passes."""
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    data = encode(noise, kind)
    assert refused(data[: len(data) // 2]) == "image_unreadable"
    for position in range(min(len(data), 200)):
        flipped = bytearray(data)
        flipped[position] ^= 0xFF
        with suppress(DataError):
            decode_image(bytes(flipped))


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no folder of photographs beside the repository")
def test_real_photos_decode_deterministically() -> None:
    """Bug: a crop, a flip or a resize creeps into the pixel contract."""
    for photo in sorted(PHOTOS.glob("*.jpg"))[:6]:
        data = photo.read_bytes()
        first = decode_image(data)
        assert first.mode == "RGB"
        assert first.tobytes() == decode_image(data).tobytes()
        with Image.open(photo) as image:
            assert sorted(first.size) == sorted(image.size)
