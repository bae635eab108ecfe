"""Muffin's processor: its tokenizer from the release's files, its pictures and its template."""

import json

import pytest

from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models import load_processor
from tests.families import save
from tests.families_muffin import muffin, write_release


@pytest.fixture
def copy(tmp_path):
    return write_release(tmp_path / "model")


def test_the_tokenizer_is_llamas(copy):
    """Catches: `###` that is as many tokens at a text's start as inside it, on which the release's
    labels rest; blanks and lines around image tokens, which its tokenizer dropped."""
    words = load_processor(copy).tokenizer
    tokens = words.convert_ids_to_tokens(words("### a\n### a <im_start><im_end>\na")["input_ids"])
    start = ["<s>", "▁###", "▁a", "<0x0A>", "##", "#", "▁a"]
    assert tokens == [*start, "<im_start>", "<im_end>", "▁a"]


def test_a_folder_without_a_tokenizer_is_named(copy):
    """Catches: a stack trace for the weights alone."""
    (copy / "tokenizer.model").unlink()
    with pytest.raises(ConfigError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        load_processor(copy)


def test_a_processor_of_another_side_or_count_is_named(tmp_path):
    """Catches: pictures resized to a side that the positions are not for; a template that writes
    another number of image tokens."""
    folder = save(muffin, tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("* 4", "* 5"))
    with pytest.raises(ConfigError, match=r"does not write 4 image tokens.*num_query"):
        load_processor(folder)
    (folder / "chat_template.jinja").write_text(template)
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["size"] = {"height": 64, "width": 64}
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="takes 32 x 32 pixels"):
        load_processor(folder)
