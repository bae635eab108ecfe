"""The API key of an endpoint: read from a file or the environment, and never shown."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.errors import ConfigError


@dataclass(frozen=True)
class Secret:
    """A key that its own repr does not show."""

    value: str = field(repr=False)


def read_key(endpoint: EndpointConfig) -> Secret:
    """Return the key, from its file or from the environment of this process.

    Raises:
        ConfigError: no key is set, it contains white space, or other users can read its file.
    """
    if endpoint.key_file:
        path = Path(endpoint.key_file).expanduser()
        source = f"key_file {str(path)!r}"
        try:
            key = path.read_text().strip()
            mode = path.stat().st_mode
        except OSError as error:
            raise ConfigError(
                f"{source} cannot be read on this machine: {error.strerror}."
            ) from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{source} can be read by other users: run chmod 600 on it.")
    else:
        source = f"environment variable {endpoint.key_env}"
        key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise ConfigError(
            f"{source} is empty or not set on the machine that calls {endpoint.address}. Set it "
            "there before Ray starts, or name a file that holds the key: --judge.key-file "
            "(--endpoint.key-file). If the server needs no key, any value will do."
        )
    if any(character.isspace() for character in key):
        raise ConfigError(f"{source} holds more than a key: there is white space inside it.")
    return Secret(key)
