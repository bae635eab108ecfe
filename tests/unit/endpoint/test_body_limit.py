"""The limit on a body, without a server; `test_client.py` has one that goes over it."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from rlhfv_ray.endpoint.body_limit import LARGEST_BODY, RefusedBodyError, limit_body

HALF = b" " * (LARGEST_BODY // 2)


class Chunks(httpx2.AsyncByteStream):
    """A body that counts how much of it was read."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.count = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.count += 1
            yield chunk


async def body(stream: Chunks, encoding: str = "identity") -> bytes:
    response = httpx2.Response(200, headers={"content-encoding": encoding}, stream=stream)
    await limit_body(response)
    return await response.aread()


def test_a_body_is_read_up_to_the_limit_and_no_further() -> None:
    """Catches: a limit noticed only when the whole body is in memory; one that is off by one."""
    assert len(asyncio.run(body(Chunks(HALF, HALF)))) == LARGEST_BODY
    stream = Chunks(HALF, HALF, b"x", HALF, HALF)
    with pytest.raises(RefusedBodyError, match="more than"):
        asyncio.run(body(stream))
    assert stream.count == 3


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate, gzip"])
def test_a_compressed_body_is_refused_unread(encoding: str) -> None:
    """Catches: a thousandfold body unpacked before its size is known."""
    stream = Chunks(b"x")
    with pytest.raises(RefusedBodyError, match="compressed"):
        asyncio.run(body(stream, encoding))
    assert stream.count == 0
