"""The API key of an endpoint: read from a file or the environment, and never shown."""

import ipaddress
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.errors import ConfigError

# Ends of names that are for private networks alone (RFC 6761, RFC 6762, ICANN's .internal).
PRIVATE_NAMES = (".localhost", ".local", ".internal")


@dataclass(frozen=True)
class Secret:
    """A key that its own repr does not show."""

    value: str = field(repr=False)


NO_KEY = Secret("none")  # protects nothing; the protocol's clients refuse to send an empty key


def is_private(address: str) -> bool:
    """Return True if the host of an address is this machine or in a private network, by its name
    or number alone.

    Example:
        >>> is_private("http://127.0.0.1:8000/v1"), is_private("http://judge.team.internal/v1")
        (True, True)
        >>> is_private("http://vllm:8000/v1"), is_private("https://api.openai.com/v1")
        (True, False)
    """
    try:
        host = (urlsplit(address).hostname or "").removesuffix(".")
    except ValueError:  # no address; the client refuses it
        return False
    try:
        return ipaddress.ip_address(host).is_private  # loopback and link-local numbers too
    except ValueError:
        pass
    # A name without a dot is completed by the network that it is in.
    return bool(host) and ("." not in host or host.endswith(PRIVATE_NAMES))


def read_key(endpoint: EndpointConfig) -> Secret:
    """Return the key, from its file or from the environment of this process.

    A server on this machine or in a private network may need no key: where nobody named or set one,
    `NO_KEY` is sent to it.

    Raises:
        ConfigError: no key is set, it contains white space, or other users can read its file.
    """
    if endpoint.key_file:
        path = Path(endpoint.key_file).expanduser()
        source = f"key_file {str(path)!r}"
        try:
            key = path.read_text(encoding="utf-8-sig").strip()
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
    is_named = endpoint.key_file or endpoint.key_env != EndpointConfig.key_env
    if not key and not is_named and is_private(endpoint.base_url):
        return NO_KEY
    if not key:
        raise ConfigError(
            f"{source} is empty or not set on the machine that calls {endpoint.address}. Set it "
            "there before Ray starts, or name a file that holds the key: --judge.key-file "
            "(--endpoint.key-file). If the server needs no key, any value will do."
        )
    if any(character.isspace() for character in key):
        raise ConfigError(f"{source} holds more than a key: there is white space inside it.")
    return Secret(key)
