"""Ray's provider of nodes on this machine, changed so that every node has a folder of its own.

Nodes that share a folder delete each other's files: one that stops takes the working directory of a
job away that runs on another one.
"""

import functools
from typing import Any
from unittest import mock

from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class OwnFolders(FakeMultiNodeProvider):
    """Nodes with folders of their own, numbered behind the name in the field `temporary`."""

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        folder = f"{self.provider_config['temporary']}{self._next_node_id}"
        with_folder = functools.partial(parameter.RayParams, temp_dir=folder)
        with mock.patch.object(parameter, "RayParams", with_folder):  # the provider takes no folder
            super()._create_node_with_resources_and_labels(*arguments)
