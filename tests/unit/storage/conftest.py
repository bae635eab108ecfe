"""Fixtures: a real server that speaks S3's protocol, and processes that play its nodes."""

from pathlib import Path

import pytest

from rlhfv_ray.storage import mirror
from rlhfv_ray.storage.folder import resolve_storage
from tests.s3_server import BUCKET, s3_server


@pytest.fixture(scope="package")
def server():
    with s3_server() as s3:
        yield s3.environment


@pytest.fixture
def node(server, tmp_path, monkeypatch):
    """Return a function that turns this process into the node of a name, with its own mirrors."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)

    def become(name: str) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setattr(mirror.tempfile, "tempdir", str(tmp_path / name))
        return resolve_storage(f"s3://{BUCKET}/{tmp_path.name}")

    return become
