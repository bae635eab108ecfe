"""The MLflow store of a run: flags, environment, what is refused, and secrets."""

from pathlib import Path

import pytest

from rlhfv_ray.config import TrackingConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.tracking.target import describe_target, find_target, with_secrets

SECRET = "http://me:s3cret-word@tracker:5000"


def test_flags_win_over_the_environment_which_wins_over_the_storage(monkeypatch):
    """Catches: MLflow's variables ignored; a flag that loses to them; a choice that is not said."""
    store = Path("/runs")
    plain = find_target(TrackingConfig(), store)
    assert (plain.uri, plain.experiment) == ("sqlite:////runs/mlflow.db", "rlhfv-ray")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    theirs = find_target(TrackingConfig(), store)
    assert (theirs.uri, theirs.experiment) == ("http://tracker:5000", "theirs")
    assert describe_target(theirs).endswith(" MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME)")
    flags = TrackingConfig(uri="sqlite:////own.db", experiment="mine")
    ours = find_target(flags, store)
    assert (ours.uri, ours.experiment, ours.sources) == ("sqlite:////own.db", "mine", ())


@pytest.mark.parametrize(
    ("uri", "artifacts"),
    [
        ("http://tracker", ""),
        ("databricks", ""),
        ("databricks://profile", ""),
        ("postgresql://host/db", "/runs/mlartifacts"),
        ("mysql+pymysql://host/db", "/runs/mlartifacts"),
    ],
)
def test_a_server_chooses_the_place_of_artifacts(uri, artifacts):
    """Catches: a local path as the artifact location on Databricks or on a server."""
    target = find_target(TrackingConfig(uri=uri, experiment="/Users/me/x"), Path("/runs"))
    assert target.artifacts == artifacts


@pytest.mark.parametrize(
    ("uri", "experiment", "reason"),
    [
        ("file:///runs/mlruns", "", r"not supported.*sqlite:///runs/mlruns/mlflow\.db"),
        ("mlruns", "", "not supported"),
        ("/data/mlruns", "", "not supported"),
        ("ftp://me:s3cret-word@host", "", r"'ftp://\*\*\*@host': unknown kind"),
        ("databricks", "study", "/Users/me@example.com/study"),
    ],
)
def test_stores_that_cannot_be_used_are_refused_first(uri, experiment, reason):
    """Catches: a store in files that is refused after the training; an address with its secret."""
    with pytest.raises(ConfigError, match=reason) as error:
        find_target(TrackingConfig(uri=uri, experiment=experiment), Path("/runs"))
    assert "s3cret" not in str(error.value)


def test_secrets_are_used_and_not_written(monkeypatch):
    """Catches: a password in the spool; a replay with another server's password."""
    target = find_target(TrackingConfig(uri=SECRET), Path("/runs"))
    written = target.as_json()["uri"]
    assert target.uri == SECRET and written == "http://***@tracker:5000"
    assert "s3cret" not in describe_target(target)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret-word@other:5000")
    with pytest.raises(ConfigError, match="Set MLFLOW_TRACKING_URI to the whole address"):
        with_secrets(written)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SECRET)
    assert with_secrets(written) == SECRET
    assert with_secrets("sqlite:////own.db") == "sqlite:////own.db"
