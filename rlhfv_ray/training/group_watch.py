"""Frees what a training's workers hold when its controller was killed.

Ray frees a placement group only when the whole job ends. Ray Train's own watch asks the dashboard,
which a Ray that a command started for itself does not have, and imports all of Ray Train. This one
asks Ray's head and imports nothing else.
"""

import threading
import time
from typing import Any

import ray

# Ray's public functions for the state of an actor need the dashboard.
from ray._private.state import actors
from ray.actor import exit_actor
from ray.util.placement_group import PlacementGroup, remove_placement_group

POLL_S = 1.0


class GroupWatch:
    """Actor that removes the placement group of a training whose controller is dead.

    The methods' names are those that Ray Train calls.

    Args:
        controller: id of the controller's actor.
    """

    def __init__(self, controller: str) -> None:
        self.controller = controller
        self.group: PlacementGroup | None = None
        self.itself: Any = ray.get_runtime_context().current_actor
        threading.Thread(target=self._watch, daemon=True).start()

    def register_placement_group(self, group: PlacementGroup) -> None:
        """Watch over the group of new workers."""
        self.group = group

    def stop(self) -> None:
        """End: the controller removes its group itself."""
        exit_actor()

    def _watch(self) -> None:
        while actors(self.controller).get("State") != "DEAD":
            time.sleep(POLL_S)
        if self.group is not None:
            remove_placement_group(self.group)
        ray.kill(self.itself)
