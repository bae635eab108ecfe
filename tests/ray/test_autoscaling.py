"""Jobs that ask an autoscaler for nodes, on a cluster that begins with a head without CPUs; and a
driver that is told to end.
"""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray.autoscaling_cluster import rehearsal

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
DRIVER = """
import json, logging, os, sys, time
from pathlib import Path
import psutil
from ray.util.placement_group import placement_group, remove_placement_group
from rlhfv_ray import cluster
from rlhfv_ray.autoscaling import living_nodes
from rlhfv_ray.config import ScaleConfig
from rlhfv_ray.doctor.node_types import start_missing, type_findings
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.sweep.trials import trials_at_once

logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
cluster.QUIET_S = 0.5
cluster.connect()
said = {}
port = os.environ["RAY_ADDRESS"].rpartition(":")[2]
(autoscaler,) = [
    process
    for process in psutil.process_iter(["cmdline"])
    if "v2/monitor.py" in (line := " ".join(process.info["cmdline"] or []))
    and f":{port} " in line
]


class Waiting(logging.Handler):
    def emit(self, record):
        if "It waits" in record.getMessage():
            autoscaler.resume()


def run(name, function, *arguments, **settings):
    try:
        function(*arguments, **settings)
        error = ""
    except ConfigError as refused:
        error = str(refused)
    said[name] = {"error": error, "nodes": len(living_nodes())}

run("fits", cluster.check_fits, ScaleConfig(workers=2))
said["trials"] = [trials_at_once(ScaleConfig(cpus=0.5), wanted) for wanted in (0, 2)]
run("too many trials", trials_at_once, ScaleConfig(workers=2, cpus=1), 3)
run("too many", cluster.check_fits, ScaleConfig(workers=6))
run("too large", cluster.check_fits, ScaleConfig(workers=2, cpus=3, actors=1))
run("no GPU", cluster.check_fits, ScaleConfig(gpu=True))
autoscaler.suspend()  # no node comes until a job waits for it, however slow this process is
run("late", cluster.wait_for_resources, "Training", [{"CPU": 1.0}] * 2, timeout=0.1)
logging.getLogger().addHandler(Waiting())
run("comes", cluster.wait_for_resources, "Training", [{"CPU": 1.0}] * 2, timeout=60)
held = placement_group([{"CPU": 1}] * 2)  # idle nodes would be stopped
assert held.wait(60)
types = [[finding.node for finding in type_findings()]]
run("doctor", start_missing, timeout=60)
types.append([finding.node for finding in type_findings()])
remove_placement_group(held)
run("never", cluster.wait_for_resources, "Training", [{"CPU": 5.0}], timeout=60)
deadline = time.monotonic() + 60
while len(living_nodes()) > 1 and time.monotonic() < deadline:
    time.sleep(0.5)
run("idle", lambda: None)
# Not to stdout, where Ray writes what its raylets say.
Path(sys.argv[1]).write_text(json.dumps({**said, "types": types}))
"""


def test_a_job_brings_nodes_or_is_refused_with_the_numbers(tmp_path: Path):
    """Catches: a job refused because no node is up yet; one that waits for nodes that no type can
    give; a doctor that says nothing of nodes that are not up; nodes that stay when nobody needs
    them.
    """
    with rehearsal(tmp_path, {"small": ({"CPU": 1}, 2), "large": ({"CPU": 3}, 1)}) as cluster:
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, str(tmp_path / "said.json")],
            env={**cluster.environment, "RAY_ADDRESS": cluster.address},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
            check=True,
        )
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["fits"] == {"error": "", "nodes": 1}  # the head
    types = "at most 3 nodes of 2 x small (1 CPU), 1 x large (3 CPU)"
    for name, text in {
        "too many": f"scale.workers = 6 needs 6 x (1 CPU), and there is room for 5: .*{types}",
        "too large": f"scale.workers = 2 needs 2 x (3 CPU), and there is room for 1: .*{types}",
        # Workers and actors alike, or people learn of the second lack after another start of Ray.
        "no GPU": "scale.workers = 1 needs 1 x (1 CPU, 1 GPU), and there is room for 0; "
        "scale.actors = 1 needs .*(--scale.workers and --scale.actors).*--scale.no-gpu",
        "late": "have room for 0. No other nodes came within 0.1 s (scale.start_timeout)",
        "never": "needs 1 x (5 CPU).*The autoscaler has no node type for the rest. Use fewer",
    }.items():
        pattern = re.escape(text).replace(r"\.\*", ".*")
        assert re.search(pattern, said[name]["error"]), said[name]
    assert said["trials"] == [9, 2] and "so 2 fit at a time" in said["too many trials"]["error"]
    assert said["types"] == [["large"], []]
    assert said["doctor"]["error"] == "" and said["doctor"]["nodes"] == 4
    assert said["comes"]["error"] == "" and said["comes"]["nodes"] == 3
    assert re.search(r"Training needs 2 x \(1 CPU\).* room for 0\. It waits", done.stderr)
    assert "starting" in done.stderr
    assert said["idle"]["nodes"] == 1


WAITING = """
import time
import ray
from rlhfv_ray.cluster import connect
from rlhfv_ray.console import leave, run_command

def wait():
    connect()
    task = ray.remote(lambda: time.sleep(600)).remote()
    print("waits", flush=True)
    ray.get(task)

leave(run_command(wait))
"""


def test_sigterm_ends_a_driver_that_waits_for_ray():
    """Catches: a stack trace of Ray's C++ code; the exit code 1 of a failure, or Ray's own."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdout and driver.stdout.readline() == "waits\n"
        driver.send_signal(signal.SIGTERM)
        printed, errors = driver.communicate(timeout=100)
    assert driver.returncode == 143
    assert (printed.strip(), errors) == (
        "Stopped. The same command continues from what is finished.",
        "",
    )
