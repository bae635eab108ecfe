"""Hub names: one question to the hub, and an answer that says what to do."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models import hub, load_policy, resolve_model
from rlhfv_ray.models.loading import model_inputs

COMMIT = "0" * 40


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """An empty cache of models, and a hub that was not asked yet."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.hub_commit.cache_clear()
    yield
    hub.hub_commit.cache_clear()


@pytest.fixture
def endpoint(monkeypatch):
    """A hub that knows one public model and one behind terms; yields the paths it was asked for."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/api/models"):
                asked.append(self.path)
            body = json.dumps({"id": "lab/public", "sha": COMMIT}).encode()
            known = self.path.endswith("lab/public")
            self.send_response(200 if known else 404)
            if not known:
                gated = self.path.endswith("lab/gated")
                self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()


@pytest.fixture
def unreachable(monkeypatch):
    """A hub that does not answer."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def test_a_name_is_asked_for_once(endpoint):
    """Catches: a hub name refused; a question to the hub for each file and each stage."""
    for _ in range(3):
        assert resolve_model("lab/public") == "lab/public"
    assert endpoint == ["/api/models/lab/public"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("lab/none", "no such public model.*Check the name"), ("lab/gated", "accept their terms")],
)
def test_models_that_cannot_be_had_are_refused(endpoint, name, message):
    """Catches: a mistyped name, or terms not accepted, shown as a missing processor."""
    with pytest.raises(ConfigError, match=message):
        resolve_model(name)


@pytest.mark.timeout(25)
def test_no_network_is_said_at_once(unreachable, caplog):
    """Catches: minutes of retries and a screen of warnings before the error."""
    for call in (load_policy, lambda name: model_inputs(ModelConfig(path=name))):
        with pytest.raises(ConfigError, match="does not answer.*hf download lab/model"):
            call("lab/model")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_without_network_the_cache_serves(unreachable, tmp_path, small_model, caplog):
    """Catches: a cached model refused for want of a network, or each of its files asked for."""
    model = tmp_path / "models--lab--model"
    (model / "snapshots").mkdir(parents=True)
    (model / "snapshots" / COMMIT).symlink_to(small_model)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    assert model_inputs(ModelConfig(path="lab/model"))["weights"] == f"lab/model@{COMMIT}"
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "The model hub does not answer (ConnectError)"
    ]
