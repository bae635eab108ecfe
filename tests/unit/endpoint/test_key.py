"""Keys from files and the environment."""

from dataclasses import replace
from pathlib import Path

import pytest

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.key import Secret, read_key
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
    path.write_text("sk-canary\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_key(replace(config, key_file=str(path)))
    path.chmod(0o600)
    secret = read_key(replace(config, key_file=str(path)))
    assert secret == Secret("sk-canary") and "canary" not in f"{secret!r} {secret}"
    with pytest.raises(ConfigError, match="cannot be read on this machine"):
        read_key(replace(config, key_file=str(tmp_path / "none")))
