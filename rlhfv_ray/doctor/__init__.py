"""Check every node of the Ray cluster before a job, and print each problem's fix.

With --model it checks that model in place of the nodes.
"""

import json
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import ray
import tyro
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.table import Table
from rich.text import Text

from rlhfv_ray.cluster import connect
from rlhfv_ray.command_line.help_text import JOINED, introduce
from rlhfv_ray.config import ModelConfig
from rlhfv_ray.console import new_console, run_command
from rlhfv_ray.doctor.findings import Finding, examine
from rlhfv_ray.doctor.node_facts import PACKAGES, Checkup, facts
from rlhfv_ray.doctor.node_types import start_missing, type_findings
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.storage.folder import discard, names_in, resolve_storage, storage_path

__all__ = ["PACKAGES", "Checkup", "Finding", "ask_nodes", "doctor", "examine", "facts", "main"]

TIMEOUT_S = 60.0  # for all nodes' answers
LABELS = {"good": ("ok", "green"), "note": ("note", "yellow"), "bad": ("BAD", "red")}


def ask_nodes(checkup: Checkup, storage: Path) -> list[Finding]:
    """Ask every living node of the cluster for its facts, and judge them.

    A node that does not answer is a finding too.

    Raises:
        ConfigError: the cluster has no living node.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not nodes:
        raise ConfigError("The cluster has no living node: start one with ray start --head.")
    token = uuid.uuid4().hex[:8]
    task = ray.remote(num_cpus=0, max_retries=0)(facts)
    started = time.time()
    pending = []
    for node in nodes:
        on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        pending.append(
            task.options(scheduling_strategy=on_node).remote(checkup, str(storage), token)
        )
    answers = []
    findings = []
    for node, reference in zip(nodes, pending, strict=True):
        remaining = max(1.0, TIMEOUT_S - (time.time() - started))
        try:
            answers.append(ray.get(reference, timeout=remaining))
        except RayError as error:  # a time-out is one
            findings.append(_no_answer(node["NodeManagerHostname"], error))
    marks = [name for name in names_in(storage) if name.startswith(f".doctor-{token}-")]
    if answers:
        findings += examine(checkup, answers, marks, between=(started, time.time()))
    for mark in marks:
        discard(storage / mark)
    return findings


def _no_answer(host: str, error: RayError) -> Finding:
    text = str(error).strip()
    reason = text.splitlines()[-1] if text else type(error).__name__
    return Finding(
        "answer", host, "bad", reason, "Is rlhfv-ray installed there, and the node alive?"
    )


def doctor(checkup: Checkup) -> int:
    """Check all nodes and print the findings; return the exit code, 1 if a finding is bad."""
    if checkup.model:
        from rlhfv_ray.doctor.model_report import report_model  # with torch and transformers

        model = ModelConfig(
            path=checkup.model,
            dtype=checkup.dtype,
            template_arguments=checkup.template_arguments,
        )
        report_model(model, new_console())
        return 0
    connect()
    # A trial write here would end the command: every node tries it, and says so in its finding.
    is_address = "://" in checkup.storage
    storage = resolve_storage(checkup.storage) if is_address else storage_path(checkup.storage)
    if checkup.start_nodes:
        start_missing(timeout=checkup.start_timeout)
    findings = [*ask_nodes(checkup, storage), *type_findings()]
    bad = sum(finding.status == "bad" for finding in findings)
    if checkup.json:
        rows = [asdict(finding) for finding in findings]
        print(json.dumps({"ok": not bad, "findings": rows}, indent=1))
    else:
        console = new_console()
        console.print(_table(findings))
        console.print(f"{bad} to mend" if bad else "all is well", highlight=False)
    return int(bad > 0)


def _table(findings: Sequence[Finding]) -> Table:
    table = Table()
    for column in ("", "what", "node", "found", "fix"):
        table.add_column(column)
    for finding in findings:
        cells = (finding.what, finding.node, finding.found, finding.fix)
        table.add_row(Text(*LABELS[finding.status]), *map(Text, cells))
    return table


def main() -> None:
    """Run the command `rlhfv-ray doctor`."""
    if sys.argv[1:2] != ["doctor"]:
        sys.exit(
            "usage: rlhfv-ray doctor [--help]\n\n"
            "Checks every node of the Ray cluster and prints how to fix each problem."
        )
    arguments = sys.argv[2:]
    introduce(__doc__, arguments)
    checkup = tyro.cli(
        Checkup, prog="rlhfv-ray doctor", description="", args=arguments, registry=JOINED
    )
    sys.exit(run_command(lambda: sys.exit(doctor(checkup))))
