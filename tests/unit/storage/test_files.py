"""JSON files: whole or absent."""

import json

import pytest

from rlhfv_ray.storage.files import write_json


def test_a_file_that_cannot_be_written_keeps_its_former_content(tmp_path):
    """Catches: half a JSON file where a reader expects a whole one."""
    write_json(tmp_path / "a.json", {"step": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"step": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"step": 1}
    write_json(tmp_path / "a.json", {"step": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"step": 2}
