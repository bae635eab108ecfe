"""Flags that got another name: the old ones work for one release, with a warning."""

import logging
from collections.abc import Sequence

RENAMED = {"data.max-rejected": "data.max-unusable"}  # old name: new name, without the dashes

logger = logging.getLogger(__name__)


def current_flags(arguments: Sequence[str]) -> list[str]:
    """Replace flags that got another name; each is named once in a warning.

    A flag may stand below a prefix (`--ddpo.data.max-rejected`), with underscores, or with its
    value after an equals sign.

    Example:
        >>> current_flags(["paper", "--ddpo.data.max_rejected=0.1", "--data.limit", "5"])
        ['paper', '--ddpo.data.max-unusable=0.1', '--data.limit', '5']
    """
    current: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("_", "-")
        for old, new in RENAMED.items():
            if flag.startswith("--") and (name == old or name.endswith(f".{old}")):
                flag = f"--{name.removesuffix(old)}{new}"
                if not any(earlier.partition("=")[0] == flag for earlier in current):
                    logger.warning("--%s is now called %s.", name, flag)
        current.append(f"{flag}{equals}{value}")
    return current
