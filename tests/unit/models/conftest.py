"""A model's folder to change."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def copy(small_model, tmp_path) -> Path:
    """A copy of the small model's folder, to be damaged."""
    return shutil.copytree(small_model, tmp_path / "model")


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
