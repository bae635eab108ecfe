"""The nodes that a cluster's autoscaler may start, and the autoscaler's word on a waiting job.

Ray 2.60 has no function for either. The node types are in the file that the autoscaler was started
with (`ray start --autoscaling-config`, as `ray up` does): it is read where a job's driver runs
beside it, on the head node. KubeRay's autoscaler runs in a container of its own, and its types are
not known here. But it says which placement groups it can never place.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray
import yaml
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.core.generated.autoscaler_pb2 import (
    AutoscalingState,  # type: ignore[attr-defined]  # made when it is imported
    GetClusterStatusReply,  # type: ignore[attr-defined]
)
from ray.util.placement_group import PlacementGroup

logger = logging.getLogger(__name__)

CONFIG_FLAG = "--autoscaling-config="
ADDRESS_FLAG = "--gcs-address="
HEAD = "node:__internal_head__"  # Ray's own resource of the head node
ROUNDING = 1e-6  # of sums of fractions of CPUs

Resources = Mapping[str, float]  # by name


class NodeType(NamedTuple):
    """A kind of node that an autoscaler may start."""

    name: str
    resources: dict[str, float]  # of a node, without its memory
    most: int  # nodes at a time

    def __str__(self) -> str:
        return f"{self.most} x {self.name} ({bundle_text(self.resources)})"


class NodeTypes(NamedTuple):
    """All kinds of nodes that an autoscaler may start."""

    types: tuple[NodeType, ...]
    most: int  # nodes at a time, of all types together

    def nodes_for(self, bundle: Resources) -> list[Resources]:
        """Return the resources of all nodes that may be there at a time.

        Where not all types can be there in full, those come first that hold more of the bundle.
        """
        by_room = sorted(
            self.types, key=lambda kind: count_placed([bundle] * 1000, [kind.resources])
        )
        nodes = [kind.resources for kind in reversed(by_room) for _ in range(kind.most)]
        return list(nodes[: self.most])


def count_placed(bundles: Sequence[Resources], nodes: Sequence[Resources]) -> int:
    """Return the number of bundles, from the first, that find a place on the nodes.

    Example:
        >>> count_placed([{"CPU": 2}, {"CPU": 2}, {"CPU": 2}], [{"CPU": 3}, {"CPU": 2}])
        2
    """
    free = [dict(node) for node in nodes]
    for number, bundle in enumerate(bundles):
        for node in free:
            if all(node.get(name, 0.0) + ROUNDING >= amount for name, amount in bundle.items()):
                for name, amount in bundle.items():
                    node[name] = node.get(name, 0.0) - amount
                break
        else:
            return number
    return len(bundles)


def bundle_text(bundle: Resources) -> str:
    """Return resources as text.

    Example:
        >>> bundle_text({"CPU": 12.0, "GPU": 1.0})
        '12 CPU, 1 GPU'
    """
    return ", ".join(f"{amount:g} {name}" for name, amount in bundle.items()) or "no CPU"


def living_nodes() -> list[dict[str, float]]:
    """Return the resources of every living node of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def find_node_types() -> NodeTypes | None:
    """Return what the cluster's autoscaler may start; None if it cannot be known here.

    Without an autoscaler there are no types. None stands for an autoscaler on another machine or in
    another container.
    """
    path = _config_path()
    if path is not None:
        return read_node_types(path)
    return None if autoscaling_state().autoscaler_state_version else NodeTypes((), 0)


def possible_room(bundles: Sequence[Resources]) -> tuple[int | None, str]:
    """Return the number of bundles that the cluster can ever hold, and the nodes they would be on.

    The number is None if an autoscaler's node types are not known here.
    """
    living = living_nodes()
    room = count_placed(bundles, living)
    totals = {name: total_of(living, name) for name in ("CPU", "GPU")}
    source = f"the Ray cluster has {bundle_text(totals)}"
    if room == len(bundles):
        return room, source
    node_types = find_node_types()
    if node_types is None:
        return None, source
    heads = [node for node in living if HEAD in node]
    room = max(room, count_placed(bundles, [*heads, *node_types.nodes_for(bundles[0])]))
    if node_types.types:
        source += (
            f", and its autoscaler starts at most {node_types.most} nodes of "
            f"{', '.join(map(str, node_types.types))}"
        )
    return room, source


def possible_totals(bundle: Resources) -> dict[str, float] | None:
    """Return the CPUs and GPUs that the cluster can have at a time.

    They are those of its living nodes, or of the nodes that its autoscaler may start for such a
    bundle, whichever are more.

    None stands for an autoscaler whose node types are not known here.
    """
    living = living_nodes()
    node_types = find_node_types()
    if node_types is None:
        return None
    heads = [node for node in living if HEAD in node]
    largest = [*heads, *node_types.nodes_for(bundle)]
    return {name: max(total_of(living, name), total_of(largest, name)) for name in ("CPU", "GPU")}


def total_of(nodes: Sequence[Resources], name: str) -> float:
    """Return the sum of one resource over nodes."""
    return sum(node.get(name, 0.0) for node in nodes)


def _config_path() -> Path | None:
    """Return the file of the autoscaler that runs on this machine for the joined cluster."""
    port = ray.get_runtime_context().gcs_address.rpartition(":")[2]
    for arguments in _command_lines():
        values = {
            flag: argument.removeprefix(flag)
            for argument in arguments
            for flag in (CONFIG_FLAG, ADDRESS_FLAG)
            if argument.startswith(flag)
        }
        if len(values) == 2 and values[ADDRESS_FLAG].rpartition(":")[2] == port:
            return Path(values[CONFIG_FLAG]).expanduser()
    return None


def _command_lines() -> Iterator[list[str]]:
    for process in psutil.process_iter(["cmdline"]):
        yield process.info["cmdline"] or []


def read_node_types(path: Path) -> NodeTypes | None:
    """Return the node types of an autoscaler's file, without the head's; None if it is unreadable.

    Memory is left out: Ray measures it on every node, and it is less there than in the file.
    """
    try:
        config: dict[str, Any] = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        logger.warning("The autoscaler's file %s cannot be read: %s", path, error)
        return None
    most = int(config.get("max_workers", 2))  # Ray's default
    types = []
    for name, kind in config.get("available_node_types", {}).items():
        count = min(int(kind.get("max_workers", most)), most)
        if name == config.get("head_node_type") or not count:
            continue
        resources = {
            resource: float(amount)
            for resource, amount in kind.get("resources", {}).items()
            if "memory" not in resource
        }
        types.append(NodeType(name, resources, count))
    return NodeTypes(tuple(types), most)


def autoscaling_state() -> AutoscalingState:
    """Return the last report of Ray's autoscaler (version 2); an empty one if there is none."""
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    return GetClusterStatusReply.FromString(client.get_cluster_status()).autoscaling_state


def is_infeasible(group: PlacementGroup, state: AutoscalingState) -> bool:
    """Return True if the autoscaler can neither place the group nor start nodes for it."""
    requests = state.infeasible_gang_resource_requests
    return any(request.details.startswith(group.id.hex()) for request in requests)


def launches_text(state: AutoscalingState) -> str:
    """Return a sentence on nodes that are being started and on those that could not be."""
    starting = {
        request.ray_node_type_name: request.count for request in state.pending_instance_requests
    }
    for instance in state.pending_instances:
        name = instance.ray_node_type_name
        starting[name] = starting.get(name, 0) + 1
    parts = [f"{count} x {name} starting" for name, count in sorted(starting.items())]
    failures = {
        request.ray_node_type_name: request.reason.strip().partition("\n")[0]
        for request in state.failed_instance_requests
    }
    parts += [f"{name} failed to start: {reason}" for name, reason in sorted(failures.items())]
    return f"Autoscaler: {'; '.join(parts)}." if parts else ""
