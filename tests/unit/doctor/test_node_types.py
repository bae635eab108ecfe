"""The node types that the doctor has not looked at."""

from rlhfv_ray.autoscaling import NodeType, NodeTypes
from rlhfv_ray.doctor.node_types import missing_types

SMALL = NodeType("small", {"CPU": 8.0}, 2)
A100 = NodeType("a100", {"CPU": 96.0, "GPU": 8.0}, 8)
HEAD = {"memory": 3e10, "node:__internal_head__": 1.0}


def test_a_type_is_missing_until_a_node_of_it_is_up():
    """Catches: "all is well" from a head that has no GPU; a node of another type taken for one."""
    node_types = NodeTypes((SMALL, A100), 8)
    assert missing_types(node_types, [HEAD]) == [SMALL, A100]
    small = {"CPU": 8.0, "memory": 6e10}
    assert missing_types(node_types, [HEAD, small]) == [A100]
    assert missing_types(node_types, [HEAD, small, {"CPU": 96.0, "GPU": 8.0}]) == []
    assert missing_types(NodeTypes((), 0), [HEAD]) == []
