"""A cluster on this machine whose autoscaler starts and stops nodes, as it does in a cloud.

Ray's own provider of such nodes is used (node_folders.py), with the autoscaler that `ray up` and
KubeRay use (version 2). `ray.cluster_utils.AutoscalingCluster` is not: it runs `ray stop --force`,
which ends every Ray of the machine, and reads a file that the wheel of Ray 2.60 lacks.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from benchmarks.workers import free_port

IDLE_S = 6.0  # after which a node is stopped
HEAD = "ray.head.default"  # the provider's name of it
EMPTY: dict[str, Any] = {
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


class Rehearsal:
    """The head of such a cluster, which has no CPU, and its address."""

    def __init__(self, home: Path, node_types: dict[str, tuple[dict[str, float], int]]) -> None:
        """Describe the cluster.

        Args:
            home: of Ray's token and records.
            node_types: by name, the resources of a node and the largest number of nodes.
        """
        self.temporary = f"/tmp/ra{os.getpid()}-"  # short: Ray puts sockets there
        self.port, self.dashboard_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.dashboard = f"http://127.0.0.1:{self.dashboard_port}"
        self.file = home / "autoscaling.json"
        self.file.write_text(json.dumps(self._config(node_types)))
        self.bin = Path(sys.executable).parent
        path = f"{self.bin}:{os.environ['PATH']}"  # for jobs that call `python`
        own = {"HOME": str(home), "PATH": path, "RAY_AUTH_MODE": "disabled"}
        self.environment = {**os.environ, **own}

    def _config(self, node_types: dict[str, tuple[dict[str, float], int]]) -> dict[str, Any]:
        kinds = {
            name: {
                "resources": {**resources, "object_store_memory": 100_000_000},
                "max_workers": most,
                "node_config": {},
            }
            for name, (resources, most) in node_types.items()
        }
        kinds[HEAD] = {"resources": {"CPU": 0}, "max_workers": 0, "node_config": {}}
        return {
            **EMPTY,
            "cluster_name": "rehearsal",
            "max_workers": sum(most for _, most in node_types.values()),
            "idle_timeout_minutes": IDLE_S / 60,
            "auth": {"ssh_user": "nobody"},
            "available_node_types": kinds,
            "head_node_type": HEAD,
            "provider": {
                "type": "external",
                "module": "tests.ray.node_folders.OwnFolders",
                "temporary": self.temporary,
                "gcs_address": self.address,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "launch_multiple": True,
                "disable_node_updaters": True,
            },
        }

    def start(self, *, dashboard: bool) -> None:
        """Start the head."""
        autoscaler = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "RAY_NODE_TYPE_NAME": HEAD,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),  # of the provider
        }
        line = [
            *(f"{self.bin}/ray", "start", "--head", f"--port={self.port}"),
            *("--num-cpus=0", "--object-store-memory=100000000", f"--temp-dir={self.temporary}"),
            *(f"--include-dashboard={str(dashboard).lower()}", "--dashboard-host=127.0.0.1"),
            *(f"--dashboard-port={self.dashboard_port}", f"--autoscaling-config={self.file}"),
            f"--dashboard-agent-listen-port={free_port()}",  # another cluster may have Ray's
        ]
        environment = {**self.environment, **autoscaler}
        subprocess.run(line, env=environment, check=True, capture_output=True, timeout=120)

    def stop(self) -> None:
        """Kill the processes of the cluster."""
        for process in psutil.process_iter(["cmdline"]):
            if self.temporary in " ".join(process.info["cmdline"] or []):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


@contextlib.contextmanager
def rehearsal(
    home: Path, node_types: dict[str, tuple[dict[str, float], int]], *, dashboard: bool = False
) -> Iterator[Rehearsal]:
    """Run a cluster that starts nodes of these types when they are needed."""
    cluster = Rehearsal(home, node_types)
    try:
        cluster.start(dashboard=dashboard)
        yield cluster
    finally:
        cluster.stop()
