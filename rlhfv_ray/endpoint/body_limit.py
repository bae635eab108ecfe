"""A limit on the bytes of a response's body, set before the body is read.

Requests accept no compression, so that the bytes that arrive are those that are kept. A few
kilobytes of gzip could otherwise become gigabytes in memory.
"""

from collections.abc import AsyncIterator

import httpx2

LARGEST_BODY = 4 * 2**20  # bytes; a verdict has thousands
HEADERS = {"Accept-Encoding": "identity"}


class RefusedBodyError(ValueError):
    """A response's body is compressed or too large."""


class _LimitedStream(httpx2.AsyncByteStream):
    """A stream that fails once it has given more bytes than a reply may have."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self.stream:
            size += len(chunk)
            if size > LARGEST_BODY:
                raise RefusedBodyError(f"the body has more than {LARGEST_BODY:,} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self.stream.aclose()


async def limit_body(response: httpx2.Response) -> None:
    """Limit the body of a response; a hook of the HTTP client.

    Raises:
        RefusedBodyError: the body is compressed.
    """
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise RefusedBodyError(f"the body is compressed ({encoding!r}), which was not asked for")
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _LimitedStream(response.stream)
