"""A real server that speaks S3's protocol, on loopback."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "lab"


@contextmanager
def s3_server() -> Iterator[Mapping[str, str]]:
    """A server with an empty bucket until the body has ended; the environment in which it is found."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    where = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=where["AWS_ENDPOINT_URL"],
        aws_access_key_id="anyone",
        aws_secret_access_key="anything",
        region_name="us-east-1",
    )
    try:
        client.create_bucket(Bucket=BUCKET)
        yield where
    finally:
        server.stop()
