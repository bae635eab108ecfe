"""Senders of the data that a run used and of the model that it made, for `replay`.

MLflow lists them beside the run, by name and digest. The files stay where they are: of the model
MLflow gets a description with its signature and its folder.
"""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import Model

MAX_DIGEST_LENGTH = 36  # characters of a dataset's digest that MLflow takes
FORBIDDEN = re.compile(r"""[/:.%"']""")  # characters that MLflow takes in no model's name
KEY = "rlhfv_ray.key"  # tag that identifies a model


def send_dataset(
    client: "MlflowClient", run_id: str, events: Sequence[dict[str, Any]], folder: Path
) -> None:
    """Log a dataset as an input of a run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    content = events[0]["content"]
    dataset = Dataset(
        name=content["name"],
        digest=content["digest"][:MAX_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": content["source"]}),
        profile=json.dumps({"num_rows": content["rows"]}),
    )
    tags = [InputTag("mlflow.data.context", content["use"])]
    client.log_inputs(run_id, [DatasetInput(dataset, tags)])


def send_model(
    client: "MlflowClient", run_id: str, events: Sequence[dict[str, Any]], folder: Path
) -> None:
    """Log a model whose files stay where they are, as an output of a run."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    event = events[0]
    experiment_id = client.get_run(run_id).info.experiment_id
    # The key names the run by its path in the tree, and other trees have the same paths.
    key = f"{run_id}:{event['key']}"
    models = client.search_logged_models([experiment_id], f"tags.`{KEY}` = '{key}'")
    if models:
        model = models[0]
    else:
        content = event["content"]
        model = client.create_logged_model(
            experiment_id,
            name=FORBIDDEN.sub("_", content["name"]),
            source_run_id=run_id,
            tags={KEY: key, "folder": content["folder"], "mlflow.model.isExternal": "true"},
            params=content["params"],
            model_type="vision-language model",
        )
    with tempfile.TemporaryDirectory() as draft:
        _description(model).save(f"{draft}/MLmodel")
        client.log_model_artifacts(model.model_id, draft)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    outputs = client.get_run(run_id).outputs
    listed = outputs.model_outputs if outputs else []
    if model.model_id not in [output.model_id for output in listed]:  # MLflow refuses it twice
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def _description(model: Any) -> "Model":
    """Return MLflow's description of a model: a picture and a question in, an answer out."""
    from mlflow.models import ModelSignature
    from mlflow.models.utils import get_external_mlflow_model_spec
    from mlflow.types import ColSpec, Schema

    described = get_external_mlflow_model_spec(model)
    inputs = Schema([ColSpec("binary", "image"), ColSpec("string", "question")])
    described.signature = ModelSignature(inputs, Schema([ColSpec("string", "answer")]))
    return described
