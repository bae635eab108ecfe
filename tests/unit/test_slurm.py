"""deploy/slurm.sh on stubs of Slurm and Ray that record what they are asked for."""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "deploy/slurm.sh"
RECORD = 'echo "$(basename "$0") $*" >> "$RECORDED"\n'
STUBS = {
    # Like Slurm's srun, without tasks: its options begin with two hyphens, a command does not.
    "srun": RECORD + 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": "echo node-a; echo node-b\n",
    # As on many machines: /etc/hosts gives a machine's own name a loopback address.
    "hostname": '[ "$1" = --all-ip-addresses ] && echo "$ADDRESSES" || echo 127.0.1.1\n',
    "ray": RECORD + '[ "$1" = status ] || exec sleep 60\n',
}
RAY_MODULE = """
import os, time
def is_initialized(): return False
def init(**settings): assert os.environ["RAY_ADDRESS"]
def nodes():
    while sum(line.startswith("ray start") for line in open(os.environ["RECORDED"])) < 2:
        time.sleep(0.01)  # the script ends what it started
    return [{"Alive": True}] * int(os.environ["ALIVE"])
"""


class Outcome(NamedTuple):
    """The end of a job, and what Slurm and Ray were asked for."""

    returncode: int
    ran: bool
    stderr: str
    calls: list[str]


@pytest.fixture
def run(tmp_path: Path):
    """Run the script for a command that leaves a file, in an allocation of two nodes."""
    stubs = tmp_path / "stubs"
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    stubs.mkdir()
    for name, body in STUBS.items():
        path = stubs / name
        path.write_text(f"#!/bin/bash\n{body}")
        path.chmod(0o755)
    (stubs / "ray.py").write_text(RAY_MODULE)

    def run(**settings: str) -> Outcome:
        recorded = tmp_path / "recorded"
        recorded.touch()
        environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PATH": f"{stubs}:{os.environ['PATH']}",
            "PYTHONPATH": str(stubs),
            "TMPDIR": str(tmp_path),
            "RECORDED": str(recorded),
            "ADDRESSES": "10.0.0.5 172.17.0.1",
            "ALIVE": "3",  # the head, and a worker on each node
            "START_TIMEOUT": "20",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "64",
            "SLURM_GPUS_ON_NODE": "8",
            **settings,
        }
        line = ["bash", str(SCRIPT), "bash", "-c", f'echo "$RAY_ADDRESS" > {tmp_path}/ran']
        done = subprocess.run(
            line, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert not list(tmp_path.glob(".ray-token*"))
        calls = recorded.read_text().splitlines()
        return Outcome(done.returncode, (tmp_path / "ran").exists(), done.stderr, calls)

    return run


def start_of(outcome: Outcome, kind: str) -> str:
    """Return how Ray was started, as the head or as a worker."""
    (call,) = [call for call in outcome.calls if call.startswith("ray start") and kind in call]
    return call


def test_all_nodes_are_there_and_the_command_runs(run, tmp_path: Path):
    """Catches: a worker bound to one CPU by an srun that does not take the job's --cpus-per-task;
    two Rays of the first node in one folder, which delete each other's files."""
    outcome = run()
    assert (outcome.returncode, outcome.ran) == (0, True), outcome.stderr
    assert (tmp_path / "ran").read_text() == "10.0.0.5:6379\n"
    (workers,) = [
        call for call in outcome.calls if call.startswith("srun") and "--ntasks=2" in call
    ]
    assert "--cpus-per-task=64" in workers.split()
    head, worker = start_of(outcome, "--head"), start_of(outcome, "--address=10.0.0.5:6379")
    folders = {
        word for call in (head, worker) for word in call.split() if word.startswith("--temp-dir=")
    }
    assert len(folders) == 2
    assert "--num-gpus=8" in worker and "--num-gpus=0" in head


def test_a_missing_node_is_an_error_and_the_command_does_not_run(run):
    """Catches: a job on fewer nodes than it was given, which waits until its time is up."""
    outcome = run(ALIVE="2", START_TIMEOUT="1")
    assert (outcome.returncode, outcome.ran) == (1, False)
    assert "1 of 2 nodes joined Ray within 1 s" in outcome.stderr


def test_a_loopback_address_is_never_the_heads(run):
    """Catches: workers of other nodes that look for the head on themselves."""
    assert "--node-ip-address=10.0.0.5" in start_of(run(), "--head").split()
    alone = run(ADDRESSES="")
    assert alone.returncode == 1 and "Set HEAD_ADDRESS" in alone.stderr
    given = run(ADDRESSES="", HEAD_ADDRESS="10.1.0.9")
    assert given.returncode == 0
    assert any("--node-ip-address=10.1.0.9" in call for call in given.calls)
