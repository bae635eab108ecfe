"""Cluster files: their readers accept them, and they hold no secret, open port or stale command."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import validate_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster.yaml"
KUBERAY = ROOT / "deploy/kuberay.yaml"
SLURM = ROOT / "deploy/slurm.sh"
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9]{8}|-----BEGIN|(?i:password|secret_access_key)\s*[:=]\s*\S"
)

# The fields of KubeRay's API that the file uses (ray.io/v1: RayJobSpec, RayClusterSpec,
# HeadGroupSpec, WorkerGroupSpec). No others are allowed: the API server ignores a misspelt field.
CONTAINER = {
    "type": "object",
    "required": ["name", "image"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "image": {"type": "string", "pattern": ":[^:]+$", "not": {"pattern": ":latest$"}},
        "workingDir": {"type": "string"},
        "env": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "valueFrom"],
                "not": {"required": ["value"]},
            },
        },
        "resources": {
            "type": "object",
            "additionalProperties": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "volumeMounts": {
            "type": "array",
            "items": {"type": "object", "required": ["name", "mountPath"]},
        },
    },
}
TEMPLATE = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["containers"],
            "properties": {
                "containers": {"type": "array", "minItems": 1, "items": CONTAINER},
                "volumes": {"type": "array", "items": {"type": "object", "required": ["name"]}},
                "terminationGracePeriodSeconds": {"type": "integer"},
            },
        }
    },
}
# KubeRay wants every parameter as a string, numbers included.
PARAMS = {"type": "object", "additionalProperties": {"type": "string"}}
RAYJOB = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["entrypoint", "rayClusterSpec"],
            "properties": {
                "entrypoint": {"type": "string"},
                "submissionMode": {
                    "enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
                },
                "backoffLimit": {"type": "integer", "minimum": 0},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": {"type": "integer"},
                "rayClusterSpec": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "enableInTreeAutoscaling": {"type": "boolean"},
                        "authOptions": {
                            "type": "object",
                            "required": ["mode"],
                            "properties": {"mode": {"const": "token"}},
                        },
                        "headGroupSpec": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["template"],
                            "properties": {"rayStartParams": PARAMS, "template": TEMPLATE},
                        },
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": [
                                    "groupName",
                                    "template",
                                    "replicas",
                                    "minReplicas",
                                    "maxReplicas",
                                ],
                                "properties": {
                                    "groupName": {"type": "string"},
                                    "replicas": {"type": "integer"},
                                    "minReplicas": {"type": "integer"},
                                    "maxReplicas": {"type": "integer"},
                                    "rayStartParams": PARAMS,
                                    "template": TEMPLATE,
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load(CLUSTER.read_text())


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return yaml.safe_load(KUBERAY.read_text())


def test_ray_accepts_the_cluster_file(cluster):
    """Catches: a field that `ray up` refuses."""
    filled = {"cluster_synced_files": []}  # `ray up` adds it itself
    validate_config({**cluster, **filled})
    with pytest.raises(jsonschema.ValidationError, match="file_mount"):
        validate_config({**cluster, **filled, "file_mount": {}})


def test_the_head_takes_no_task_and_workers_have_gpus(cluster):
    """Catches: a driver that shares its CPUs with eight actors; idle workers that are kept."""
    head = cluster["available_node_types"][cluster["head_node_type"]]
    workers = cluster["available_node_types"]["a100"]
    assert head["resources"] == {"CPU": 0}
    assert workers["resources"]["GPU"] == 8
    assert workers["min_workers"] == 0 < workers["max_workers"] <= cluster["max_workers"]
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_the_rayjob_has_kuberays_fields(rayjob):
    """Catches: a misspelt field, which Kubernetes drops without an error."""
    jsonschema.validate(rayjob, RAYJOB)
    wrong = yaml.safe_load(KUBERAY.read_text().replace("backoffLimit", "backOffLimit"))
    with pytest.raises(jsonschema.ValidationError, match="backOffLimit"):
        jsonschema.validate(wrong, RAYJOB)


@pytest.mark.parametrize("path", [CLUSTER, KUBERAY, SLURM], ids=lambda path: path.name)
def test_no_secret_and_no_open_door(path):
    """Catches: a key in the file, a public dashboard, Ray without its token, an unpinned image."""
    text = path.read_text()
    assert not SECRET.search(text)
    assert "token" in text and "0.0.0.0" not in text and ":latest" not in text
    for line in text.splitlines():
        if "dashboard-host" in line:
            assert "127.0.0.1" in line


def test_images_have_the_ray_of_the_constraints(cluster, rayjob):
    """Catches: nodes with another version of Ray than the tested one."""
    assert RAY
    assert f":{RAY[1]}-" in cluster["docker"]["image"]
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == RAY[1]


def test_the_packages_of_the_cluster_are_those_of_the_project(cluster, tmp_path):
    """Catches: a second list of packages that gets out of date; a set-up command that fails."""
    assert "~/rlhfv-ray/pyproject.toml" in cluster["file_mounts"]
    (command,) = [command for command in cluster["setup_commands"] if "tomllib" in command]
    reading = command.split("&& ")[1].split(" >")[0]
    done = subprocess.run(
        ["bash", "-c", reading], cwd=ROOT, capture_output=True, text=True, check=True
    )
    packages = done.stdout.split("\n")
    assert any(package.startswith("ray[") for package in packages)
    assert any(package.startswith("deepspeed") for package in packages)


def test_the_slurm_script_is_a_script():
    """Catches: a syntax error that shows after an hour in the queue; a start without a command."""
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    called = subprocess.run(["bash", str(SLURM)], capture_output=True, text=True, check=False)
    assert called.returncode == 2 and "usage" in called.stderr
    assert re.findall(r"^#SBATCH --(\S+?)=", SLURM.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "path", [KUBERAY, SLURM, ROOT / "docs/cluster.md"], ids=lambda path: path.name
)
def test_commands_name_scripts_that_exist(path):
    """Catches: an entry point that was renamed."""
    scripts = re.findall(r"python ((?:experiments|eval)/\w+\.py)", path.read_text())
    assert scripts
    assert all((ROOT / script).exists() for script in scripts)
    assert all(shlex.split(script) for script in scripts)
