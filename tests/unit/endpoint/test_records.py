"""Requests, their keys, and replies."""

from dataclasses import replace

import pytest

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.records import Reply, Request, Status

ENDPOINT = EndpointConfig(model="judge-2026-01-01", base_url="http://127.0.0.1:1/v1")
CHANGES = {
    "model": "other",
    "base_url": "http://x/v1",
    "temperature": 0.5,
    "max_tokens": 7,
    "seed": 1,
}


def test_key_covers_what_the_reply_depends_on() -> None:
    """Catches: a reply to another model, prompt, vote or temperature taken for this one.

    Also: a reply that is not found again because only the speed has changed.
    """
    request = Request("1", "text")
    variants = [
        (replace(request, text="text."), ENDPOINT),
        (replace(request, image="data:x"), ENDPOINT),
        (replace(request, system="s"), ENDPOINT),
        (replace(request, schema="{}"), ENDPOINT),
        (replace(request, vote=1), ENDPOINT),
        (replace(request, again=1), ENDPOINT),
        *((request, replace(ENDPOINT, **{name: value})) for name, value in CHANGES.items()),
    ]
    keys = [request.key(ENDPOINT), *(variant.key(endpoint) for variant, endpoint in variants)]
    assert len(set(keys)) == len(keys)
    same = replace(
        ENDPOINT,
        requests_per_minute=1,
        actors=2,
        concurrency=1,
        attempts=1,
        timeout_s=1,
        key_env="X",
    )
    assert replace(request, id="2").key(same) == keys[0]


def test_keys_do_not_change_between_versions() -> None:
    """Catches: a renamed field that makes all replies paid for so far unfindable."""
    key = Request("1", "text", vote=1).key(ENDPOINT)
    assert key == "35e181391096ed11a066f1925ef64415e81482d069e3bedb985fd9656d6908df"


@pytest.mark.parametrize(
    ("status", "received"),
    [
        ("ok", True),
        ("refused", True),
        ("empty", True),
        ("truncated", True),
        ("other_model", True),
        ("rejected", False),
        ("unavailable", False),
        ("bad_payload", False),
        ("stopped", False),
    ],
)
def test_replies_that_the_server_gave_are_not_asked_for_again(
    status: Status, received: bool
) -> None:
    """Catches: an outage stored as a reply for ever; a paid refusal asked for in every run."""
    assert Reply(status).received == received
