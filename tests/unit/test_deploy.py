"""Cluster files: their readers accept them, and they hold no secret, open port or stale command."""

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Mapping
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
DOCKERFILE = ROOT / "deploy/Dockerfile"
RAYJOB = ROOT / "tests/golden/kuberay_rayjob.json"  # KubeRay's fields
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
VERSION = re.search(r'^version = "(\S+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
assert RAY and VERSION
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9]{8}|-----BEGIN|(?i:password|secret_access_key)\s*[:=]\s*\S"
)


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load(CLUSTER.read_text())


@pytest.fixture
def kubernetes() -> dict[str, dict[str, Any]]:
    """The objects of the Kubernetes file by their kind."""
    return {part["kind"]: part for part in yaml.safe_load_all(KUBERAY.read_text())}


@pytest.fixture
def rayjob(kubernetes) -> dict[str, Any]:
    return kubernetes["RayJob"]


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
    schema = json.loads(RAYJOB.read_text())
    jsonschema.validate(rayjob, schema)
    rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        jsonschema.validate(rayjob, schema)


def pods_of(rayjob: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pod templates of a job by what runs in them."""
    cluster = rayjob["spec"]["rayClusterSpec"]
    return {
        "submitter": rayjob["spec"]["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
        **{group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]},
    }


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Return True if a Kubernetes selector takes what has these labels; {} takes all, None none."""
    if selector is None:
        return False
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def admits(
    policy: Mapping[str, Any], labels: Mapping[str, str], *, port: int, same_namespace: bool
) -> bool:
    """Return True if a policy lets a pod with these labels reach a port of the pods it is for."""
    for rule in policy["spec"]["ingress"]:
        ports = [entry["port"] for entry in rule.get("ports", [])]
        for peer in rule["from"]:
            assert set(peer) <= {"podSelector", "namespaceSelector"}
            in_reach = same_namespace or selects(peer.get("namespaceSelector"), {})
            if in_reach and selects(peer["podSelector"], labels) and (not ports or port in ports):
                return True
    return False


def test_the_submitter_and_the_operator_reach_the_dashboard(rayjob):
    """Catches: a job that is never submitted. Both come through the head's service, and nothing
    answers there where the dashboard listens on the head pod's loopback address."""
    assert rayjob["spec"]["submissionMode"] == "K8sJobMode"
    params = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    assert params.get("dashboard-host", "0.0.0.0") == "0.0.0.0"  # KubeRay's default


def test_nobody_else_reaches_the_pods(kubernetes, rayjob):
    """Catches: a job API that every pod of the Kubernetes cluster can call; pods of the job that
    cannot talk to each other; a policy whose labels the pods do not have."""
    policy = kubernetes["NetworkPolicy"]
    assert rayjob["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    for template in pods_of(rayjob).values():
        labels = template["metadata"]["labels"]
        assert selects(policy["spec"]["podSelector"], labels)
        for port in (6379, 8265, 30000):  # Ray's head, the job API, a worker
            assert admits(policy, labels, port=port, same_namespace=True)
        assert not admits(policy, labels, port=8265, same_namespace=False)
    operator = {"app.kubernetes.io/name": "kuberay-operator"}
    assert admits(policy, operator, port=8265, same_namespace=False)
    assert not admits(policy, operator, port=6379, same_namespace=False)
    for stranger in ({"app": "web"}, {"app.kubernetes.io/name": "kuberay"}, {}):
        assert not admits(policy, stranger, port=8265, same_namespace=True)


def test_pods_are_ready_for_the_autoscaler(rayjob):
    """Catches: version 1, which never says that a job asks for what no group of pods can give;
    pods that Kubernetes restarts under the autoscaler of version 2."""
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert {pod["spec"]["restartPolicy"] for pod in pods_of(rayjob).values()} == {"Never"}


@pytest.mark.parametrize("path", [CLUSTER, KUBERAY, SLURM, DOCKERFILE], ids=lambda path: path.name)
def test_no_secret_and_no_open_door(path):
    """Catches: a key in the file, a public dashboard, Ray without its token, an unpinned image.

    In Kubernetes, `test_nobody_else_reaches_the_pods` looks after the dashboard.
    """
    text = path.read_text()
    assert not SECRET.search(text)
    assert ":latest" not in text
    assert "token" in text or path == DOCKERFILE
    for line in text.splitlines() if path != KUBERAY else ():
        assert "0.0.0.0" not in line
        if "dashboard-host" in line:
            assert "127.0.0.1" in line


def test_one_image_for_all_nodes(cluster, rayjob):
    """Catches: nodes with different packages; packages that nodes install when they start, from an
    index that may have others by then; nodes with another Ray than the tested one."""
    images = {cluster["docker"]["image"]}
    for pod in pods_of(rayjob).values():
        images.update(container["image"] for container in pod["spec"]["containers"])
    assert images == {f"CHANGE-ME/rlhfv-ray:{VERSION[1]}"}
    assert "pip" not in " ".join(cluster["setup_commands"] + cluster["initialization_commands"])
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == RAY[1]
    text = DOCKERFILE.read_text()
    copied = {name for line in re.findall(r"^COPY \S+ (.*)", text, re.M) for name in line.split()}
    assert all((ROOT / name).exists() for name in copied)
    assert "constraints.txt" in copied
    # Ray copies the token into the container with rsync, and KubeRay asks pods with wget.
    assert {"rsync", "wget", "g++"} <= set(text.split())
    python = re.search(r"^FROM python:3\.(\d+)-", text, re.M)
    assert python and int(python[1]) in (11, 12)


def test_the_storage_belongs_to_the_user_of_the_image(cluster):
    """Catches: a new file system, which only root can write."""
    assert "--uid 1000" in DOCKERFILE.read_text()
    assert cluster["auth"]["ssh_user"] == "ubuntu"  # number 1000 in Ubuntu's images
    assert "chown" in cluster["initialization_commands"][-1]


def test_the_page_lists_what_the_files_need(cluster, rayjob):
    """Catches: a profile, place to fill in, quota or idle time in the files that the page, which
    readers have before the first command, does not name or names wrongly."""
    page = (ROOT / "docs/cluster.md").read_text()
    before = page[: page.index("## AWS, from nothing to results")]
    kinds = cluster["available_node_types"]
    a100, head = kinds["a100"], kinds["head"]
    needed = [
        f"({cluster['provider']['region']}, {cluster['provider']['availability_zone']})",
        *re.findall(r"\S*CHANGE-ME(?:/[\w:.-]+)?", CLUSTER.read_text()),
        head["node_config"]["InstanceType"],
        f"disks of {head['node_config']['BlockDeviceMappings'][0]['Ebs']['VolumeSize']} GB",
        f"and {a100['node_config']['BlockDeviceMappings'][0]['Ebs']['VolumeSize']} GB",
        f"{cluster['idle_timeout_minutes'] / 60:g} h idle",
        f"({a100['node_config']['InstanceType']}, {a100['resources']['CPU']} each)",
        f"{a100['max_workers'] * a100['resources']['CPU']} for {a100['max_workers']} spot nodes",
    ]
    needed += [kind["node_config"]["IamInstanceProfile"]["Name"] for kind in kinds.values()]
    missing = [text for text in needed if text.removeprefix('"').rstrip(".:/") not in before]
    assert missing == []
    assert "Not rehearsed" in page[:1000]
    assert rayjob["spec"]["backoffLimit"] == 3 and "at most three times" in page
    extras = set(re.findall(r"\.\[(\w+)\]", page + DOCKERFILE.read_text()))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"aws", "s3"} <= extras <= set(project["optional-dependencies"])


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
