"""The shape of a chat completion; `test_client.py` reads odd ones over HTTP."""

import pytest

from rlhfv_ray.endpoint.completion import read_completion
from rlhfv_ray.endpoint.records import Reply, Usage
from tests.openai_server import Fault
from tests.unit.endpoint.odd_replies import NO_VERDICT, READABLE, body, choice, message


@pytest.mark.parametrize("name", NO_VERDICT)
def test_no_verdict_is_one_kind_of_error(name: str) -> None:
    """Catches: an AttributeError deep in the client."""
    with pytest.raises(ValueError, match="^no chat completion: "):
        read_completion(NO_VERDICT[name].body.encode())


@pytest.mark.parametrize("name", READABLE)
def test_a_verdict_counts_without_its_usage(name: str) -> None:
    """Catches: a paid verdict thrown away, and paid for again, for a count that is not needed."""
    reply = Reply("ok", "Rating: 4", "judge")
    assert read_completion(READABLE[name].body.encode()) == (reply, None)


def read(fault: Fault) -> Reply:
    reply, usage = read_completion(fault.body.encode())
    assert usage == Usage(2, 10) == (reply.tokens_in, reply.tokens_out)
    return reply


def test_the_fields_of_a_reply() -> None:
    fields = {"model": "judge", "tokens_in": 2, "tokens_out": 10}
    regular = body(system_fingerprint="fp", service_tier="x", object=None)
    assert read(regular) == Reply("ok", "Rating: 4", fingerprint="fp", **fields)
    assert read(message(content=None, refusal="no")) == Reply("refused", "no", **fields)
    assert read(choice(finish_reason="length")) == Reply("truncated", "Rating: 4", **fields)
    assert read(message(content="  ")).status == "empty"
