"""Tasks of Label Studio: a row's `data` has the columns of RLAIF-V-Dataset."""

from rlhfv_ray.data.pair_formats import Format
from rlhfv_ray.data.row_fields import Row, unusable


def fields_of(row: Row) -> Row:
    """Return the common fields of a task.

    Raises:
        DataError: the task has annotations, which may correct what its data says, or no data.
    """
    if row.get("annotations") or row.get("predictions"):
        raise unusable("unsupported_field", "annotations of a task are not read, only its data")
    data = row.get("data")
    if not isinstance(data, dict):
        raise unusable("bad_row", "data must hold image, question, chosen and rejected")
    return data


LABEL_STUDIO = Format(("data",), fields_of)
