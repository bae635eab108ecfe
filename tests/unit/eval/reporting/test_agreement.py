"""Greedy answers of a real HTTP server that serves our own model, against those made here."""

import asyncio
import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval.inputs.endpoint_answers import data_uri
from eval.reporting.agreement import check_agreement, compare_answers
from rlhfv_ray.config import EndpointConfig, GenerationConfig
from rlhfv_ray.data import decode_image
from rlhfv_ray.endpoint.client import ChatClient
from rlhfv_ray.endpoint.records import Request
from rlhfv_ray.errors import DataError
from rlhfv_ray.inference.generate import answer_prompts
from rlhfv_ray.models import load_policy
from rlhfv_ray.records import Answer, Prompt
from rlhfv_ray.shapes import make_scenes
from rlhfv_ray.shapes.scenes import render

GREEDY = GenerationConfig(max_new_tokens=40)


@pytest.fixture(scope="module")
def model():
    return load_policy("shapes", dtype="fp32", device="cpu")


@pytest.fixture(scope="module")
def prompts():
    scenes = make_scenes(6, seed=3)
    return [Prompt(str(scene.id), render(scene), "Describe the picture.") for scene in scenes]


@contextmanager
def serving(model, *, side: int = 0):
    """Serve a model's greedy answers by OpenAI's protocol; with `side`, of shrunk pictures."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            parts = {part["type"]: part for part in body["messages"][-1]["content"]}
            image = base64.b64decode(parts["image_url"]["image_url"]["url"].partition(",")[2])
            if side:
                shrunk = io.BytesIO()
                decode_image(image).resize((side, side)).save(shrunk, "PNG")
                image = shrunk.getvalue()
            prompt = Prompt("served", image, parts["text"]["text"])
            decoding = GenerationConfig(max_new_tokens=body["max_tokens"])
            (text,) = answer_prompts(*model, [prompt], decoding)
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            reply = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
            data = json.dumps({**reply, "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def served_answers(prompts, url: str, monkeypatch) -> list[Answer]:
    """The answers of a server, asked by the client that evaluations use, as they ask."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    endpoint = EndpointConfig(model="shapes", base_url=url, max_tokens=GREEDY.max_new_tokens)

    async def ask() -> list[Answer]:
        answers = []
        async with ChatClient(endpoint) as client:
            for prompt in prompts:
                image = data_uri(prompt.image)
                request = Request(prompt.id, prompt.question, image=image, whole=False)
                outcome = await client.call(request)
                assert outcome.kind == "reply", outcome.reason
                answers.append(Answer(prompt.id, prompt.question, outcome.reply.text.strip()))
        return answers

    return asyncio.run(ask())


@pytest.mark.slow
def test_a_server_of_our_model_gives_our_answers(model, prompts, monkeypatch):
    """Catches: a question, picture or length that a server gets in another form than our model."""
    texts = answer_prompts(*model, prompts, GREEDY)
    own = [Answer(each.id, each.question, text) for each, text in zip(prompts, texts, strict=True)]
    with serving(model) as url:
        served = served_answers(prompts, url, monkeypatch)
    agreement = compare_answers(own, served)
    assert (agreement.share, agreement.prefix) == (1.0, 1.0)
    assert "6 of 6 answers" in check_agreement({"ours": own, "served": served}, least=1.0)["served"]
    with serving(model, side=8) as url:
        blurred = served_answers(prompts, url, monkeypatch)
    with pytest.raises(DataError, match=r"less than --least-agreement 0.9. First difference, .*"):
        check_agreement({"ours": own, "served": blurred}, least=0.9)


def test_agreement_by_hand():
    """Catches: white space that counts, a prefix in letters, a share of the wrong model.

    Words: 4 of 4 are equal, 1 of 2, and 2 of 3: the other answer ends early.
    """
    texts = (
        ("a b  c d", "a b c\nd"),
        ("a b", "a c"),
        ("a b c", "a b"),
    )
    own = [Answer(str(number), "?", ours) for number, (ours, _) in enumerate(texts)]
    others = [Answer(str(number), "?", theirs) for number, (_, theirs) in enumerate(texts)]
    agreement = compare_answers(own, others)
    assert (agreement.equal, agreement.answers) == (1, 3)
    assert agreement.prefix == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    assert agreement.first_difference == "1, from word 2 on: 'b', 'c'"
    with pytest.raises(DataError, match="same prompts"):
        compare_answers(own, others[1:])
