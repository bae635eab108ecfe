"""Frees what workers hold when the actor that started them was killed.

Ray frees a placement group only when the whole job ends. Ray Train's own watch asks the dashboard,
which a Ray that a command started for itself does not have, and imports all of Ray Train. This one
asks Ray's head and imports nothing else.
"""

import threading
import time
from typing import Any

import ray

# Ray has no public name for its head's node, and its public functions for the state of an actor
# need the dashboard.
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._private.state import actors
from ray.actor import exit_actor
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

POLL_S = 1.0


def start_watch() -> Any:
    """Start a watch over this process, an actor, where it outlives the process."""
    watch: Any = ray.remote(GroupWatch).options(
        num_cpus=0,
        lifetime="detached",
        resources={HEAD_NODE_RESOURCE_NAME: 0.001},
        scheduling_strategy="DEFAULT",  # outside of a trial's own group
    )
    return watch.remote(ray.get_runtime_context().get_actor_id())


class GroupWatch:
    """Actor that removes the placement group of an actor that is dead.

    It watches Ray Train's controller, or the process that keeps a crew. `register_placement_group`
    and `stop` are the names that Ray Train calls.

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

    def hold(self, bundles: list[dict[str, float]]) -> PlacementGroup:
        """Return a new group, which is watched over from its first moment."""
        self.group = placement_group(bundles, strategy="PACK")
        return self.group

    def stop(self) -> None:
        """End: the controller removes its group itself."""
        exit_actor()

    def _watch(self) -> None:
        while actors(self.controller).get("State") != "DEAD":
            time.sleep(POLL_S)
        if self.group is not None:
            remove_placement_group(self.group)
        ray.kill(self.itself)
