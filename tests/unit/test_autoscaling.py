"""The nodes that an autoscaler may start, from its file and its reports, without a Ray."""

from pathlib import Path

import pytest
from ray.core.generated.autoscaler_pb2 import AutoscalingState

from rlhfv_ray.autoscaling import NodeType, NodeTypes, count_placed, launches_text, read_node_types

ROOT = Path(__file__).parents[2]


def test_bundles_are_placed_on_nodes_and_not_on_their_sum():
    """Catches: two workers of 3 CPUs promised room on three nodes of 2."""
    assert count_placed([{"CPU": 3}, {"CPU": 3}], [{"CPU": 2}] * 3) == 0
    assert count_placed([{"CPU": 0.1}] * 11, [{"CPU": 1}]) == 10  # ten tenths are a whole
    assert count_placed([{"CPU": 1, "GPU": 1}] * 9, [{"CPU": 96, "GPU": 8}]) == 8
    assert count_placed([{"CPU": 1}], [{}]) == 0  # a head without CPUs


def test_node_types_of_the_cluster_file():
    """Catches: the head counted as a node for workers; a maximum that is not read."""
    node_types = read_node_types(ROOT / "cluster.yaml")
    assert node_types is not None
    assert [str(kind) for kind in node_types.types] == ["8 x a100 (96 CPU, 8 GPU)"]
    workers = [{"CPU": 8.0, "GPU": 1.0}] * 70
    assert count_placed(workers, node_types.nodes_for(workers[0])) == 64


def test_the_cluster_has_a_maximum_of_its_own():
    """Catches: node types' maxima beyond the cluster's; small nodes counted before large."""
    small, large = NodeType("small", {"CPU": 1.0}, 3), NodeType("large", {"CPU": 4.0}, 2)
    assert NodeTypes((small, large), 4).nodes_for({"CPU": 1.0}) == [
        {"CPU": 4.0},
        {"CPU": 4.0},
        {"CPU": 1.0},
        {"CPU": 1.0},
    ]


@pytest.mark.parametrize("text", [None, "a: [b"], ids=["missing", "no YAML"])
def test_a_file_that_cannot_be_read_is_an_unknown_autoscaler(text, tmp_path, caplog):
    """Catches: a job refused, or ended by a traceback, for a file that only Ray may read."""
    path = tmp_path / "autoscaling.yaml"
    if text:
        path.write_text(text)
    assert read_node_types(path) is None
    assert str(path) in caplog.text


def test_launches_and_their_failures_are_reported():
    """Catches: a wait for spot nodes that AWS has refused, without AWS's reason."""
    state = AutoscalingState()
    assert launches_text(state) == ""
    state.pending_instance_requests.add(ray_node_type_name="a100", count=2)
    state.pending_instances.add(ray_node_type_name="a100")
    state.failed_instance_requests.add(
        ray_node_type_name="h100", reason="InsufficientInstanceCapacity\nTraceback"
    )
    assert launches_text(state) == (
        "Autoscaler: 3 x a100 starting; h100 failed to start: InsufficientInstanceCapacity."
    )
