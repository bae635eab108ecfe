"""`ray up cluster.yaml` against moto's server of AWS, up to the first SSH, and a worker's launch.

They request what the file says, with the rights that docs/cluster.md names.
"""

import base64
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import boto3
import pytest
import yaml

from benchmarks.workers import free_port

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
AMI = "ami-0123456789abcdef0"
IMAGE = {
    "ami_id": AMI,
    "name": "ubuntu-22.04",
    "description": "",
    "owner_id": "099720109477",
    "public": True,
    "virtualization_type": "hvm",
    "architecture": "x86_64",
    "state": "available",
    "platform": None,
    "image_type": "machine",
    "hypervisor": "xen",
    "root_device_name": "/dev/sda1",
    "root_device_type": "ebs",
    "sriov": "simple",
}
# As the autoscaler on the head does, with the configuration that `ray up` sends there.
LAUNCH = """
import os, sys
from pathlib import Path
import yaml
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

config = _bootstrap_config(yaml.safe_load(Path(sys.argv[1]).read_text()), no_config_cache=True)
print("RECORDED", Path(os.environ["RECORDED"]).stat().st_size)
provider = _get_node_provider(config["provider"], config["cluster_name"])
tags = {TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_USER_NODE_TYPE: "a100"}
provider.create_node(config["available_node_types"]["a100"]["node_config"], tags, 1)
(worker,) = provider.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_WORKER})
provider.set_node_tags(worker, {"ray-node-status": "up-to-date"})
provider.internal_ip(worker)
provider.terminate_node(worker)
"""


Call = dict[str, str]  # the parameters of a call of AWS's API, and its name as `Action`


class Launched(NamedTuple):
    """The calls of `ray up` and of the head, and the first SSH."""

    by_user: list[Call]
    by_head: list[Call]
    zones: dict[str, str]  # of the subnets
    ssh: str


def calls_in(text: str) -> list[Call]:
    """Return the calls that moto recorded."""
    bodies = [base64.b64decode(json.loads(line)["body"]).decode() for line in text.splitlines()]
    return [dict(urllib.parse.parse_qsl(body)) for body in bodies if "Action=" in body]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The variables that lead Ray to moto's server, and to an ssh that reaches nobody."""
    home = tmp_path_factory.mktemp("home")
    (home / "images.json").write_text(json.dumps([IMAGE]))
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text("0" * 64)
    (home / "bin").mkdir()
    ssh = home / "bin/ssh"
    ssh.write_text(f'#!/bin/sh\necho "$*" >> {home}/ssh\nexit 255\n')
    ssh.chmod(0o755)
    port = free_port()
    environment = {
        **os.environ,
        "HOME": str(home),
        "PATH": f"{home}/bin:{BIN}:{os.environ['PATH']}",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AUTOSCALER_NODE_START_WAIT_S": "1",
        "MOTO_AMIS_PATH": str(home / "images.json"),
        "MOTO_ENABLE_RECORDING": "1",
        "MOTO_RECORDER_FILEPATH": str(home / "recorded"),
        "RECORDED": str(home / "recorded"),
    }
    line = [f"{BIN}/moto_server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(
        line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/data.json", timeout=5)
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        yield environment
        server.terminate()


@pytest.fixture(scope="module")
def launched(environment) -> Launched:
    """The calls for the head, and those for a worker that the head starts then."""
    settings = {
        "endpoint_url": environment["AWS_ENDPOINT_URL"],
        "aws_access_key_id": "key",
        "aws_secret_access_key": "secret",
        "region_name": "us-east-1",
    }
    ec2, iam = boto3.client("ec2", **settings), boto3.client("iam", **settings)
    for name in ("rlhfv-ray-head", "rlhfv-ray-worker"):
        iam.create_instance_profile(InstanceProfileName=name)
    file, recorded = Path(environment["HOME"], "cluster.yaml"), Path(environment["RECORDED"])
    text = (ROOT / "cluster.yaml").read_text()
    file.write_text(text.replace("ami-CHANGE-ME", AMI).replace("CHANGE-ME/", "registry/"))
    recorded.write_text("")
    line = [f"{BIN}/ray", "up", "--yes", "--no-config-cache", str(file)]
    up = subprocess.run(
        line, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    by_user = calls_in(recorded.read_text())
    launch = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert launch.returncode == 0, up.stdout + up.stderr + launch.stderr
    before = int(launch.stdout.split("RECORDED ")[1].split()[0])
    by_head = calls_in(recorded.read_text()[before:])
    zones = {
        subnet["SubnetId"]: subnet["AvailabilityZone"]
        for subnet in ec2.describe_subnets()["Subnets"]
    }
    ssh = Path(environment["HOME"], "ssh").read_text().splitlines()[0]
    return Launched(by_user, by_head, zones, ssh)


def test_nodes_are_requested_as_the_file_says(launched):
    """Catches: Ray's own AMI, of another Ubuntu and CUDA; workers on demand at three times the
    price; the head's profile, which may start instances, given to all workers."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    for name, calls in {"head": launched.by_user, "a100": launched.by_head}.items():
        (request,) = [call for call in calls if call["Action"] == "RunInstances"]
        wanted = config[name]["node_config"]
        assert request["ImageId"] == AMI
        assert request["InstanceType"] == wanted["InstanceType"]
        assert request["IamInstanceProfile.Name"] == wanted["IamInstanceProfile"]["Name"]
        assert request["BlockDeviceMapping.1.DeviceName"] == "/dev/sda1"
        market = wanted.get("InstanceMarketOptions", {}).get("MarketType")
        assert request.get("InstanceMarketOptions.MarketType") == market
        assert name in request.values()  # a tag
        (subnet,) = [value for value in request.values() if value in launched.zones]
        assert launched.zones[subnet] == "us-east-1a"
    assert market == "spot"  # of the workers
    assert "ubuntu@" in launched.ssh


def test_the_page_names_the_rights_that_are_used(launched):
    """Catches: a right that the page forgets, so that the first `ray up` or the first job ends with
    AWS's error."""
    page = (ROOT / "docs/cluster.md").read_text()
    for who, calls in {"you": launched.by_user, "head": launched.by_head}.items():
        (row,) = re.findall(rf"^\| {who} \|(.*)$", page, re.MULTILINE)
        named = set(re.findall(r"`ec2:(\w+)`", row))
        assert {call["Action"] for call in calls} - named == set()
        assert "`iam:PassRole`" in row  # both start instances with a profile
