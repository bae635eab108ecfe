"""Tasks of Label Studio."""

import pytest

from rlhfv_ray.data import FORMATS
from rlhfv_ray.data.formats.label_studio import LABEL_STUDIO, fields_of
from rlhfv_ray.errors import DataError


def test_the_fields_of_a_task_are_its_data():
    """Catches: a table that names another format; a task whose own columns win over its data."""
    assert FORMATS["label_studio"] is LABEL_STUDIO
    data = {"image": "a.png", "question": "What?", "chosen": "Good.", "rejected": "Bad."}
    assert fields_of({"id": 7, "question": "another", "data": data}) == data


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"data": {}, "annotations": [{"result": []}]}, "unsupported_field: annotations"),
        ({"data": {}, "predictions": [1]}, "unsupported_field: annotations"),
        ({"data": "text"}, "bad_row: data must hold"),
    ],
)
def test_what_a_task_cannot_have(row, reason):
    """Catches: a correction by an annotator that is passed over."""
    with pytest.raises(DataError, match=reason):
        fields_of(row)
