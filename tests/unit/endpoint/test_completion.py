"""The shape of a chat completion; `test_client.py` reads odd ones over HTTP."""

import pytest

from rlhfv_ray.endpoint.completion import read_completion
from rlhfv_ray.endpoint.records import Reply
from tests.unit.endpoint.odd_replies import NO_VERDICT, READABLE, body, choice, message


@pytest.mark.parametrize("name", NO_VERDICT)
def test_no_verdict_is_one_kind_of_error(name: str) -> None:
    """Catches: an AttributeError deep in the client."""
    with pytest.raises(ValueError, match="^no chat completion: "):
        read_completion(NO_VERDICT[name].body.encode())


@pytest.mark.parametrize("name", READABLE)
def test_a_verdict_counts_without_its_usage(name: str) -> None:
    """Catches: a paid verdict thrown away, and paid for again, for a count that is not needed."""
    assert read_completion(READABLE[name].body.encode()) == Reply("ok", "Rating: 4", "judge")


def test_the_fields_of_a_reply() -> None:
    fields = {"model": "judge", "tokens_in": 2, "tokens_out": 10}
    regular = body(system_fingerprint="fp", service_tier="x", object=None)
    assert read_completion(regular.body.encode()) == Reply(
        "ok", "Rating: 4", fingerprint="fp", **fields
    )
    refused = message(content=None, refusal="no")
    assert read_completion(refused.body.encode()) == Reply("refused", "no", **fields)
    cut = choice(finish_reason="length")
    assert read_completion(cut.body.encode()) == Reply("truncated", "Rating: 4", **fields)
    assert read_completion(message(content="  ").body.encode()).status == "empty"
