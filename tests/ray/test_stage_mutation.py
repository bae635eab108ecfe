"""A fixed share of the mutations of `stage_mutation.py`: no other result, and no silence."""

from pathlib import Path

import pytest

from tests.ray.stage_mutation import FINISHED, UNFINISHED, all_cases, make, tried

pytestmark = pytest.mark.ray

EVERY = 11  # prime to the number of mutations, so that all kinds come up


def test_a_tenth_of_the_mutations(cluster, tmp_path: Path):
    """Catches: a file of a stage that is deleted, emptied, torn or changed, and another result.

    A stage that is made again takes seconds, so there is one such case; `make soak` tries all.
    """
    made = make(tmp_path)
    cases = list(all_cases(made))
    quick = [case for case in cases if case.state == FINISHED and not case.remakes]
    part = made.pipeline.reference.name + "/part-00000.parquet"
    slow = [case for case in cases if case[2:] == (part, "one bit") and case.state == UNFINISHED]
    assert len(quick) > 200 and len(slow) == 1
    assert tried([*quick[::EVERY], *slow], made) == []
