"""A real server that speaks S3's protocol, on loopback."""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s3fs
from moto.s3.models import s3_backends
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

from benchmarks.workers import free_port

BUCKET = "lab"


@dataclass(frozen=True)
class S3:
    """A running server, and the environment variables that point clients to it."""

    environment: Mapping[str, str]
    server: ThreadedMotoServer

    @staticmethod
    def address(name: str) -> str:
        """Return the address of a folder in the server's bucket."""
        return f"s3://{BUCKET}/{name}"

    def objects(self) -> s3fs.S3FileSystem:
        """Open the server's objects, without a cache of listings."""
        url, key, secret, _ = self.environment.values()
        return s3fs.S3FileSystem(endpoint_url=url, key=key, secret=secret, use_listings_cache=False)

    @staticmethod
    def mirror(temporary: Path, address: str) -> Path:
        """Return the mirror of an address for a process with this temporary folder."""
        return temporary / f"rlhfv-ray-mirror-{os.getuid()}" / address.replace("://", "/")

    def go_away(self, seconds: float) -> None:
        """Refuse every connection for `seconds`."""
        self.server.stop()
        time.sleep(seconds)
        self.server.start()


@contextmanager
def whole_requests() -> Iterator[None]:
    """Let moto compare and write an object in one step, as S3 does, until the body ends."""
    key_response, one_at_a_time = S3Response.key_response, threading.Lock()

    def whole_response(*args: object) -> object:
        with one_at_a_time:
            return key_response(*args)

    S3Response.key_response = whole_response
    try:
        yield
    finally:
        S3Response.key_response = key_response


@contextmanager
def taking_only(most: int, word: str) -> Iterator[None]:
    """Take `most` objects with a word in their names. Others wait for the body's end, and are
    refused then.
    """
    key_response, taken = S3Response.key_response, set()
    one_at_a_time, over = threading.Lock(), threading.Event()

    def limited_response(response: S3Response, request: Any, *rest: object) -> object:
        if request.method == "PUT" and word in request.path:
            with one_at_a_time:
                if len(taken) < most:
                    taken.add(request.path)
            if request.path not in taken:
                over.wait()
                return 503, {}, ""
        return key_response(response, request, *rest)

    S3Response.key_response = limited_response
    try:
        yield
    finally:
        S3Response.key_response = key_response
        over.set()


@contextmanager
def s3_server() -> Iterator[S3]:
    """Run a server with an empty bucket until the body ends. Only one can run at a time."""
    s3_backends.reset()  # moto stores objects per process, not per server
    s3fs.S3FileSystem.clear_instance_cache()  # it may hold a client of an earlier server
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with whole_requests():
            s3 = S3(environment, server)
            s3.objects().mkdir(BUCKET)
            yield s3
    finally:
        server.stop()
