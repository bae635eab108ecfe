"""Replies that no server should send, for tests that read all of them."""

import json
from typing import Any

from tests.openai_server import Fault

VERDICT = {"role": "assistant", "content": "Rating: 4"}
USAGE = {"prompt_tokens": 2, "completion_tokens": 10, "total_tokens": 12}
DEEP = 100_000  # brackets
HUGE = "1" + "0" * 5000  # an integer


def body(**changes: Any) -> Fault:
    """Return a regular completion with some fields changed; `...` removes a field."""
    choice = {"index": 0, "finish_reason": "stop", "message": VERDICT}
    fields = {"id": "x", "model": "judge", "choices": [choice], "usage": USAGE, **changes}
    return Fault(body=json.dumps({name: value for name, value in fields.items() if value != ...}))


def choice(**changes: Any) -> Fault:
    """Return a completion whose only choice has some fields changed; `...` removes a field."""
    fields = {"index": 0, "finish_reason": "stop", "message": VERDICT, **changes}
    return body(choices=[{name: value for name, value in fields.items() if value != ...}])


def message(**changes: Any) -> Fault:
    """Return a completion whose message has some fields changed."""
    return choice(message={**VERDICT, **changes})


def late(seconds: str, status: int = 429, name: str = "retry-after") -> Fault:
    """Return a refusal that asks to wait."""
    return Fault(status, '{"error": {"message": "wait"}}', ((name, seconds),))


def refusal(status: int, content: Any) -> Fault:
    """Return an HTTP error with a JSON body."""
    return Fault(status, json.dumps(content))


PARTS = [{"type": "text", "text": "Rating: 4"}]
TEXT = '{"model": "judge", "choices": [{"message": {"content": "Rating: 4"}}], "usage": '
NO_VERDICT = {  # status 200; no verdict can be read from them
    "content is a list": message(content=PARTS),
    "content is a number": message(content=4),
    "content is an object": message(content={"Rating": 4}),
    "content is true": message(content=True),
    "content is half a pair": message(content="Rating: \ud800"),
    "refusal is a list": message(refusal=["no"]),
    "refusal is a number": message(refusal=1),
    "message is a text": choice(message="Rating: 4"),
    "message is a list": choice(message=[VERDICT]),
    "message is null": choice(message=None),
    "no message": choice(message=...),
    "finish_reason is a list": choice(finish_reason=["stop"]),
    "choices is null": body(choices=None),
    "choices is empty": body(choices=[]),
    "choices is [null]": body(choices=[None]),
    "choices is a text": body(choices="Rating: 4"),
    "choices is an object": body(choices={"0": VERDICT}),
    "choices holds a text": body(choices=["Rating: 4"]),
    "choices holds a list": body(choices=[[VERDICT]]),
    "no choices": body(choices=...),
    "model is a list": body(model=["judge"]),
    "model is a number": body(model=4),
    "fingerprint is an object": body(system_fingerprint={"a": 1}),
    "null": Fault(body="null"),
    "a list": Fault(body="[]"),
    "a text": Fault(body='"Rating: 4"'),
    "a number": Fault(body="4"),
    "a huge number": Fault(body=HUGE),
    "not a number": Fault(body="NaN"),
    "deep lists": Fault(body="[" * DEEP),
    "deep objects": Fault(body='{"a":' * DEEP),
    "deep usage": Fault(body=TEXT + '{"a":' * DEEP + "1" + "}" * DEEP + "}"),
    "a page": Fault(body="<html>Rating: 4</html>"),
    "half a reply": Fault(body=TEXT),
    "two replies": Fault(body=(TEXT + "null}") * 2),
    "an event stream": Fault(body="data: " + TEXT + "null}\n\n"),
    "zeros": Fault(body="\0" * 100),
}
READABLE = {  # status 200; the verdict is plain, whatever else is odd
    "no usage": body(usage=...),
    "usage is null": body(usage=None),
    "usage is {}": body(usage={}),
    "usage is a list": body(usage=[1, 2]),
    "usage is a text": body(usage="12"),
    "usage is negative": body(usage={**USAGE, "prompt_tokens": -5}),
    "usage is a fraction": body(usage={**USAGE, "completion_tokens": 0.5}),
    "usage in words": body(usage={**USAGE, "completion_tokens": "ten"}),
    "usage is null in part": body(usage={**USAGE, "prompt_tokens": None}),
    "usage is huge": Fault(body=TEXT + f'{{"prompt_tokens": {HUGE}, "completion_tokens": 1}}}}'),
}
ERRORS = {  # other statuses
    "wait till the year 99999": late("Fri, 31 Dec 99999 23:59:59 GMT"),
    "wait till the year 0": late("Fri, 31 Dec 0 23:59:59 GMT"),
    "wait for ever": late("inf"),
    "wait nan": late("nan", 503),
    "wait a number of digits": late(HUGE[:400], 503, "retry-after-ms"),
    "wait -5": late("-5"),
    "error is a list": refusal(500, [{"error": "no"}]),
    "error is a text": refusal(500, {"error": "no"}),
    "code is a list": refusal(500, {"error": {"message": "no", "code": ["a"]}}),
    "message is an object": refusal(500, {"error": {"message": {"a": 1}, "code": 500}}),
}
