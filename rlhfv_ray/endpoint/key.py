"""The key of an endpoint: read from a file or the environment, and shown in no text."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.errors import ConfigError


@dataclass(frozen=True)
class Secret:
    """A key that shows in no text made of it."""

    value: str = field(repr=False)

    def hidden_in(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self.value, "***")


def read_key(endpoint: EndpointConfig) -> Secret:
    """The key, from its file or the environment of this process.

    Raises:
        ConfigError: there is none, it has blanks in it, or others can read its file.
    """
    if endpoint.key_file:
        path = Path(endpoint.key_file).expanduser()
        where = f"key_file {str(path)!r}"
        try:
            key, mode = path.read_text().strip(), path.stat().st_mode
        except OSError as error:
            raise ConfigError(
                f"{where} cannot be read on this machine: {error.strerror}."
            ) from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{where} can be read by others than its owner: chmod 600 it.")
    else:
        where = f"environment variable {endpoint.key_env}"
        key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise ConfigError(
            f"{where} is empty or not set on the machine that calls {endpoint.base_url}. Set it before Ray is started there, or give "
            "--judge.key-file (--endpoint.key-file) a file that holds the key. A server without keys takes any."
        )
    if any(character.isspace() for character in key):
        raise ConfigError(
            f"{where} holds more than a key: there are blanks or line ends inside it."
        )
    return Secret(key)
