"""Keys from files and the environment."""

from dataclasses import replace
from pathlib import Path

import pytest

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.key import NO_KEY, Secret, is_private, read_key
from rlhfv_ray.errors import ConfigError


def test_key_comes_from_file_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a key with a line end, a key that all can read, a missing key noticed late.

    A line end in a key ends in a misleading connection error, a missing key after 300 calls.
    """
    monkeypatch.setenv("MY_KEY", " sk-canary\n")
    config = EndpointConfig(model="judge", key_env="MY_KEY")
    assert read_key(config).value == "sk-canary"
    for bad in ("", "  ", "sk one"):
        monkeypatch.setenv("MY_KEY", bad)
        with pytest.raises(ConfigError, match="environment variable MY_KEY") as caught:
            read_key(config)
        assert "one" not in str(caught.value)
    path = tmp_path / "key"
    path.write_text("sk-canary\n", encoding="utf-8-sig")  # with the mark of Windows' programs
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_key(replace(config, key_file=str(path)))
    path.chmod(0o600)
    secret = read_key(replace(config, key_file=str(path)))
    assert secret == Secret("sk-canary") and "canary" not in f"{secret!r} {secret}"
    with pytest.raises(ConfigError, match="cannot be read on this machine"):
        read_key(replace(config, key_file=str(tmp_path / "none")))


def test_a_server_in_a_private_network_needs_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a key that is left out although one is set, or although the server is a public one.

    A variable or file that was named and holds no key stays an error: its server needs one.
    """
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("MY_KEY", raising=False)
    here = EndpointConfig(model="qwen", base_url="http://10.1.2.3:8000/v1")
    assert read_key(here) == NO_KEY
    for public in (
        "https://api.openai.com/v1",
        "http://8.8.8.8/v1",
        "https://10.1.2.3.example.com",
    ):
        with pytest.raises(ConfigError, match="OPENAI_API_KEY is empty or not set"):
            read_key(replace(here, base_url=public))
    with pytest.raises(ConfigError, match="MY_KEY is empty or not set"):
        read_key(replace(here, key_env="MY_KEY"))
    with pytest.raises(ConfigError, match="cannot be read on this machine"):
        read_key(replace(here, key_file=str(tmp_path / "none")))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    assert read_key(here) == Secret("sk-canary")


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("http://localhost:8000/v1", True),
        ("http://me:pass@[::1]:8000/v1", True),
        ("http://192.168.0.7/v1", True),
        ("http://judge.models.svc.cluster.local:8000/v1", True),
        ("http://localhost.example.com/v1", False),
        ("http://mylocal/v1", True),
        ("http://api.mylocal/v1", False),
        ("https://127.0.0.1@api.example.com/v1", False),
        ("https://api.example.com./v1", False),
        ("api.example.com/v1", False),
        ("http://[::1/v1", False),
    ],
)
def test_private_addresses(address: str, private: bool) -> None:
    """Catches: a public server taken for a private one by a part of its name or its user."""
    assert is_private(address) == private
