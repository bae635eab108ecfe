"""The files that start clusters: what their readers accept, no secret in them, no open door, and commands that are there."""

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
CLUSTER, KUBERAY, SLURM = (
    ROOT / "cluster.yaml",
    ROOT / "deploy/kuberay.yaml",
    ROOT / "deploy/slurm.sh",
)
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9]{8}|-----BEGIN|(?i:password|secret_access_key)\s*[:=]\s*\S"
)

# The fields of KubeRay's API that the file uses (ray.io/v1: RayJobSpec, RayClusterSpec, HeadGroupSpec, WorkerGroupSpec); no others are allowed,
# so that a misspelt one fails here and is not passed over by the API server.
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
PARAMS = {
    "type": "object",
    "additionalProperties": {"type": "string"},
}  # KubeRay's are strings, numbers too
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
    """Catches: a field that `ray up` refuses when the first people wait for it."""
    filled = {"cluster_synced_files": []}  # by `ray up` itself
    validate_config({**cluster, **filled})
    with pytest.raises(jsonschema.ValidationError, match="file_mount"):
        validate_config({**cluster, **filled, "file_mount": {}})


def test_the_head_takes_no_task_and_workers_have_gpus(cluster):
    """Catches: a driver that shares its CPUs with eight actors; workers that stay when nobody needs them."""
    head, workers = (
        cluster["available_node_types"][name] for name in (cluster["head_node_type"], "a100")
    )
    assert head["resources"] == {"CPU": 0}
    assert (
        workers["resources"]["GPU"] == 8
        and workers["min_workers"] == 0 < workers["max_workers"] <= cluster["max_workers"]
    )
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_the_rayjob_has_kuberays_fields(rayjob):
    """Catches: a misspelt field, which Kubernetes drops without a word."""
    jsonschema.validate(rayjob, RAYJOB)
    wrong = yaml.safe_load(KUBERAY.read_text().replace("backoffLimit", "backOffLimit"))
    with pytest.raises(jsonschema.ValidationError, match="backOffLimit"):
        jsonschema.validate(wrong, RAYJOB)


@pytest.mark.parametrize("path", [CLUSTER, KUBERAY, SLURM], ids=lambda path: path.name)
def test_no_secret_and_no_open_door(path):
    """Catches: a key in the file, a dashboard for everybody, Ray without its token, an image that is another one tomorrow."""
    text = path.read_text()
    assert not SECRET.search(text)
    assert "token" in text and "0.0.0.0" not in text and ":latest" not in text
    for line in text.splitlines():
        if "dashboard-host" in line:
            assert "127.0.0.1" in line


def test_images_have_the_ray_of_the_constraints(cluster, rayjob):
    """Catches: nodes of another Ray than the one that is tested."""
    assert RAY
    assert f":{RAY[1]}-" in cluster["docker"]["image"]
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == RAY[1]


def test_the_packages_of_the_cluster_are_those_of_the_project(cluster, tmp_path):
    """Catches: a second list of packages that falls behind; a set-up command that does not run."""
    assert "~/rlhfv-ray/pyproject.toml" in cluster["file_mounts"]
    (command,) = [one for one in cluster["setup_commands"] if "tomllib" in one]
    reading = command.split("&& ")[1].split(" >")[0]
    listed = subprocess.run(
        ["bash", "-c", reading], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert any(one.startswith("ray[") for one in listed) and any(
        one.startswith("deepspeed") for one in listed
    )


def test_the_slurm_script_is_a_script():
    """Catches: a syntax error found after an hour in the queue; a call without a command that starts a cluster for nothing."""
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    called = subprocess.run(["bash", str(SLURM)], capture_output=True, text=True, check=False)
    assert called.returncode == 2 and "usage" in called.stderr
    assert re.findall(r"^#SBATCH --(\S+?)=", SLURM.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "path", [KUBERAY, SLURM, ROOT / "docs/cluster.md"], ids=lambda path: path.name
)
def test_commands_name_scripts_that_are_there(path):
    """Catches: an entry point that was renamed."""
    scripts = re.findall(r"python ((?:experiments|eval)/\w+\.py)", path.read_text())
    assert scripts
    assert all((ROOT / script).exists() for script in scripts)
    assert all(shlex.split(script) for script in scripts)
