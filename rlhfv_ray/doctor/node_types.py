"""The node types of which no node is up: nothing is known of their nodes until one is started."""

from collections.abc import Sequence

from rlhfv_ray.autoscaling import NodeType, NodeTypes, Resources, find_node_types, living_nodes
from rlhfv_ray.cluster import wait_for_resources
from rlhfv_ray.doctor.findings import Finding


def missing_types(node_types: NodeTypes, nodes: Sequence[Resources]) -> list[NodeType]:
    """Return the types of which no node is up.

    Args:
        node_types: those that the autoscaler may start.
        nodes: the resources of every living node.
    """
    return [
        kind
        for kind in node_types.types
        if not any(kind.resources.items() <= node.items() for node in nodes)
    ]


def start_missing(*, timeout: float) -> None:
    """Have the autoscaler start a node of every type of which none is up, and wait for them.

    Raises:
        ConfigError: they do not come within `timeout` seconds.
    """
    node_types = find_node_types()
    missing = missing_types(node_types, living_nodes()) if node_types else []
    if missing:
        type_names = ", ".join(kind.name for kind in missing)
        bundles = [kind.resources for kind in missing]
        wait_for_resources(f"The check of {type_names}", bundles, timeout=timeout)


def type_findings() -> list[Finding]:
    """Return a note for every node type that could not be looked at."""
    node_types = find_node_types()
    if node_types is None:
        return [
            Finding(
                "node types",
                "autoscaler",
                "note",
                "not known here; only nodes that are up were checked",
                "Run the doctor again while a job has its nodes.",
            )
        ]
    return [
        Finding(
            "node type",
            kind.name,
            "note",
            "no node is up, so none was checked",
            "--start-nodes starts a node of each type and checks it. It is paid for until it has "
            "been idle for the cluster's time-out.",
        )
        for kind in missing_types(node_types, living_nodes())
    ]
