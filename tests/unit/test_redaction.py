"""Secrets of every kind, planted in settings and texts."""

import json
from dataclasses import replace

import pytest

from eval.config import EvalConfig, JudgeConfig
from rlhfv_ray.config import EndpointConfig, TrackingConfig, changed_settings, plain
from rlhfv_ray.redaction import SHORTEST, redact, secrets_in

SECRET = "canary/+1234"
ADDRESSES = [
    "http://me:canary%2F+1234@host/v1",
    "https://canary%2F+1234@host:8000/v1",
    "https://me:c@canary@host/v1",
    "https://host/v1?api-key=canary1234",
    "https://host/v1?v=2&ApiKey=canary1234",
    "https://host/v1?access_token=canary1234&v=2",
    "https://host/v1?sig=canary1234#top",
    "https://host/v1?subscription-key=canary1234",
    "https://host/v1?code=canary1234;password=canary1234",
    "postgresql://me:canary1234@host:5432/mlflow",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_secrets_of_addresses_are_hidden_in_texts_and_settings(address: str) -> None:
    """Catches: a password in config.json, MLflow's parameters, the report or a printed command."""
    text = f"'{address}' cannot be used; see {address}, \"{address}\""
    assert "canary" not in redact(text) and redact(text).count("***") >= 3
    assert redact(redact(text)) == redact(text)
    endpoint = EndpointConfig(model="judge", base_url=address)
    config = EvalConfig(
        model=("shapes",),
        judge=JudgeConfig(model="judge", base_url=address),
        endpoint=endpoint,
        tracking=TrackingConfig(uri=address),
    )
    for settings in (plain(config), changed_settings(config), endpoint.address):
        assert "canary" not in json.dumps(settings)
        assert "***" in json.dumps(settings)


def test_texts_without_secrets_stay_as_they_are() -> None:
    """Catches: settings changed by their redaction; an address that loses what names the server."""
    plain_texts = [
        "https://api.openai.com/v1",
        "https://host/v1?api-version=2024-10-21&deployment=a",
        "s3://bucket/runs?x=1",
        "write to me@host.org, or see https://host/@me",
        "Is it a key=value pair? yes",
    ]
    assert [redact(text, ["EMPTY", ""]) for text in plain_texts] == plain_texts
    config = EvalConfig(model=("shapes",))
    assert plain(config)["judge"]["base_url"] == "https://api.openai.com/v1"
    assert changed_settings(replace(config, name="x")) == {"model": ["shapes"], "name": "x"}


def test_given_secrets_are_hidden_in_every_spelling() -> None:
    """Catches: a key that is hidden as it is, and shown where an address spells it."""
    text = f"{SECRET} canary%2F%2B1234 Bearer {SECRET}"
    assert redact(text, [SECRET]) == "*** *** Bearer ***"
    assert redact("Rating: 4", ["4", "Rating"]) == "Rating: 4"  # placeholders of keyless servers
    assert redact("x" * SHORTEST, ["x" * SHORTEST]) == "***"
    longer = [SECRET, f"{SECRET}-5678"]
    assert redact(longer[1], longer) == "***"  # no rest of the longer one


def test_secrets_are_read_from_an_address() -> None:
    assert secrets_in("https://api.openai.com/v1") == ()
    assert secrets_in("http://me:a%2Fb@host?key=x%20y&v=2") == ("me", "a/b", "x y")
