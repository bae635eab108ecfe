"""A real server that speaks S3's protocol, on loopback."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import boto3
import s3fs
from moto.server import ThreadedMotoServer

from benchmarks.workers import free_port

BUCKET = "lab"


@dataclass(frozen=True)
class S3:
    """The server, and the environment in which it is found."""

    environment: Mapping[str, str]
    server: ThreadedMotoServer

    @staticmethod
    def address(name: str) -> str:
        """Of a folder in its bucket."""
        return f"s3://{BUCKET}/{name}"

    def objects(self) -> s3fs.S3FileSystem:
        """What is in it, as it is now."""
        known = {"key": "anyone", "secret": "anything", "endpoint_url": self.environment["AWS_ENDPOINT_URL"]}
        return s3fs.S3FileSystem(**known, use_listings_cache=False)

    def go_away(self, seconds: float) -> None:
        """Refuse every connection for a while."""
        self.server.stop()
        time.sleep(seconds)
        self.server.start()


@contextmanager
def s3_server() -> Iterator[S3]:
    """A server with an empty bucket until the body has ended."""
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    credentials = {
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    where = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", **credentials}
    client = boto3.client(
        "s3",
        endpoint_url=where["AWS_ENDPOINT_URL"],
        aws_access_key_id="anyone",
        aws_secret_access_key="anything",
        region_name="us-east-1",
    )
    try:
        client.create_bucket(Bucket=BUCKET)
        yield S3(where, server)
    finally:
        server.stop()
