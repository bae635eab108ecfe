"""The table of models goes on after an interruption, and is tried without torchvision."""

import re

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils.import_utils import is_torchvision_available

from tests.families_d import florence2
from tests.families_vision import mistral3
from tests.model_table import MAKES, PAGE, tried_row, tried_rows


def test_the_page_is_that_of_the_installed_transformers():
    """Catches: a new transformers that nobody tried; a page with an architecture that is wrong."""
    page = PAGE.read_text()
    assert f"with transformers {transformers.__version__}\n" in page
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert {row[1] for row in rows} == {make.__name__ for make in MAKES}
    assert {row[2] for row in rows} == {"shared", "plain", "refused"}
    assert {row[-1] for row in rows if row[2] != "refused"} == {"equal"}
    untried = set(re.findall("`(.+?)`", page.rpartition("Not tried here")[2]))
    tried = {row[0].strip("`") for row in rows}
    assert set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) <= tried | untried


def test_rows_of_an_interrupted_run_are_not_tried_again(tmp_path, capsys):
    """Catches: hours of trials lost by one interruption; a crash kept for the model's outcome."""
    tried = []

    def try_one(make, checkpoint):
        tried.append(make.__name__)
        if tried == ["florence2", "mistral3"]:
            raise KeyboardInterrupt
        return ("`kind`", make.__name__, "crashed" if len(tried) == 3 else "shared")

    makes = (florence2, mistral3)
    with pytest.raises(KeyboardInterrupt):
        tried_rows(makes, tmp_path, try_one)
    assert [row[2] for row in tried_rows(makes, tmp_path, try_one)] == ["shared", "crashed"]
    assert [row[2] for row in tried_rows(makes, tmp_path, try_one)] == ["shared", "shared"]
    assert tried == ["florence2", "mistral3", "mistral3", "mistral3"]
    assert capsys.readouterr().out.endswith("2 of 2: `kind` | mistral3 | shared\n")


def test_a_refused_model_is_a_row(tmp_path):
    """Catches: a table that ends at the first model that the check refuses."""
    row = tried_row(florence2, tmp_path / "florence2")
    assert row[:3] == ("`florence2`", "florence2", "refused")
    assert "reads the prompt with an encoder" in row[3]


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_without_torchvision_what_needs_it_is_a_row(tmp_path):
    """Catches: a table that cannot be made in the ordinary environment."""
    row = tried_row(mistral3, tmp_path / "mistral3")
    assert row[1] == "mistral3" and row[2].startswith("not made: ")
    assert "torchvision" in row[2].lower()
