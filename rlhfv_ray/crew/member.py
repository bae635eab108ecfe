"""One process of a crew."""

from collections.abc import Callable
from typing import Any

import ray


class Member:
    """Actor that calls functions. What they import stays for the next ones.

    It answers a second call while the first one runs, so that a training's records can be asked
    for.
    """

    def node(self) -> str:
        """Return the id of the node that it is on."""
        return ray.get_runtime_context().get_node_id()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function returns."""
        return function(*arguments)
