"""The self-check in an actor: on the job's rows, once a folder."""

from dataclasses import asdict, replace

import pytest

from rlhfv_ray.config import DataConfig, ModelConfig
from rlhfv_ray.data import list_slices, write_pairs
from rlhfv_ray.data.images import decode_image
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.inference.model_check import CHECK, check_model, encode, read_check
from rlhfv_ray.models import load_model, load_processor
from rlhfv_ray.storage.files import sealed, write_json
from tests.conftest import careless_pairs


def test_a_folder_is_checked_once(small_model, tmp_path):
    """Catches: a check on other rows than the job's; one that is made again on every resume, and
    could then decide otherwise."""
    path = tmp_path / "pairs.parquet"
    talks = [replace(pair, history=(("Where?", "a beach ."),)) for pair in careless_pairs(10)]
    write_pairs(talks, path)  # earlier turns are in the truth's prompt, too
    config = ModelConfig(path=str(small_model), dtype="fp32")
    data = DataConfig(path=str(path))
    folder = tmp_path / "reference"
    shards = list_slices(path, rows=3)
    outcome = check_model(*load_model(config), config, data, shards, folder)
    assert outcome.layout == "shared" and read_check(folder) == outcome
    write_json(folder / CHECK, sealed({**asdict(outcome), "layout": "plain"}))
    again = check_model(None, None, config, data, shards, folder)
    assert again.layout == "plain"


@pytest.mark.parametrize("damage", ['"layout": "plain"', '"layout": "sha'])
def test_a_damaged_check_is_made_again(small_model, tmp_path, damage, caplog):
    """Catches: a flipped bit that decides the layout of a resumed stage, or ends it."""
    path = tmp_path / "pairs.parquet"
    write_pairs(careless_pairs(4), path)
    config = ModelConfig(path=str(small_model), dtype="fp32")
    arguments = (config, DataConfig(path=str(path)), list_slices(path), tmp_path / "reference")
    outcome = check_model(*load_model(config), *arguments)
    written = (tmp_path / "reference" / CHECK).read_text()
    assert '"layout": "shared"' in written
    (tmp_path / "reference" / CHECK).write_text(written.replace('"layout": "shared"', damage))
    assert check_model(*load_model(config), *arguments) == outcome
    assert "is damaged" in caplog.text


def test_a_folder_without_a_check_is_refused(tmp_path):
    """Catches: training on log-probs of a layout that nobody knows."""
    with pytest.raises(ConfigError, match="made before models were checked"):
        read_check(tmp_path)


def test_without_a_usable_row_nothing_is_written(small_model, tmp_path):
    """Catches: a check of nothing, taken for an outcome, or in place of the rows' own error."""
    path = tmp_path / "pairs.parquet"
    write_pairs([replace(pair, image=b"no picture") for pair in careless_pairs(3)], path)
    config, data = ModelConfig(path=str(small_model), dtype="fp32"), DataConfig(path=str(path))
    loaded = load_model(config)
    outcome = check_model(*loaded, config, data, list_slices(path, rows=2), tmp_path / "reference")
    assert outcome.tokens == 0
    assert not (tmp_path / "reference" / CHECK).exists()


def test_the_largest_image_is_a_setting(small_model):
    """Catches: `--data.max-pixels` that does nothing."""
    (pair,) = careless_pairs(1)
    processor = load_processor(str(small_model))
    width, height = decode_image(pair.image).size
    data = DataConfig(max_pixels=width * height)
    assert encode(pair, processor, data).id == pair.id
    with pytest.raises(DataError, match="image_too_large"):
        encode(pair, processor, replace(data, max_pixels=width * height - 1))
