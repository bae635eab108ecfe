"""Answers of a model behind an endpoint: the requests that are sent."""

import base64
import io

import pytest
from PIL import Image

from eval.inputs.endpoint_answers import check_decoding, data_uri
from rlhfv_ray.config import GenerationConfig
from rlhfv_ray.errors import ConfigError, DataError


def test_images_travel_as_they_are_or_as_png() -> None:
    """Catches: a kind that servers do not know; a broken image that is paid for."""
    for kind, sent in (("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "WEBP"), ("BMP", "PNG")):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(buffer, format=kind)
        head, data = data_uri(buffer.getvalue()).split(",")
        assert head == f"data:image/{sent.lower()};base64"
        back = base64.b64decode(data)
        assert (back == buffer.getvalue()) == (kind == sent)
        assert Image.open(io.BytesIO(back)).format == sent
    with pytest.raises(DataError, match="image_unreadable"):
        data_uri(b"no image")


def test_decoding_that_an_endpoint_does_not_know_is_refused() -> None:
    check_decoding(GenerationConfig(max_new_tokens=9, temperature=0.5))
    for changed in (
        {"beams": 3},
        {"repetition_penalty": 1.1},
        {"stop": ("#",)},
        {"temperature": 0.5, "top_p": 0.5},
    ):
        with pytest.raises(ConfigError, match="max_new_tokens and generation.temperature alone"):
            check_decoding(GenerationConfig(**changed))
