"""Look up what a table of `config` names: losses, formats and benchmarks, each by its place."""

import pkgutil
from collections.abc import Mapping
from typing import Any

from rlhfv_ray.errors import ConfigError


def registered(places: Mapping[str, str], name: str, *, setting: str) -> Any:
    """Import what a table has under a name.

    Args:
        places: by name, `module:object`.
        name: one of them.
        setting: that gave the name, for errors.

    Raises:
        ConfigError: no such module, or no such object in it; or the place is of another form.

    Example:
        >>> registered({"square root": "math:sqrt"}, "square root", setting="function")(9.0)
        3.0
    """
    try:
        return pkgutil.resolve_name(places[name])
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ConfigError(
            f"{setting} = {name!r} is registered at {places[name]!r}, which cannot be imported "
            f"({error}). Correct its line in the table, or the module."
        ) from error
