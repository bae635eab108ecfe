"""Pairs on their way from any format to any other: nothing is lost that both can hold."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlhfv_ray.config import DataConfig
from rlhfv_ray.data import FORMATS, list_slices, load_pairs, write_pairs
from rlhfv_ray.data.pair_formats import ORIGIN_COLUMNS
from rlhfv_ray.data.targets import (
    BLANKS,
    CONTEXT,
    ORIGIN,
    SPANS,
    SYSTEM_PROMPT,
    TARGETS,
    TURNS,
    check_held,
    image_name,
    traits,
)
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import PreferencePair
from tests.families import qwen2_vl
from tests.unit.data.rows import RED, TEXTS, write_format
from tests.unit.data.test_pair_formats import CASES
from tests.unit.data.test_writing import example_pairs

PAGE = Path(__file__).parents[3] / "docs" / "data.md"


def file_of(folder: Path, format: str) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / f"x{TARGETS[format].suffixes[-1]}"


def held(pair: PreferencePair, format: str) -> PreferencePair | None:
    """A pair as a format can hold it, told by its table alone; None if it cannot."""
    lost = [trait for trait in traits(pair) if TARGETS[format].places[trait] == "no"]
    if set(lost) & set(CONTEXT):
        return None
    if ORIGIN in lost:
        known = {name: value for name, value in pair.origin.items() if name in ORIGIN_COLUMNS}
        pair = replace(pair, origin=known)
    if BLANKS in lost:
        history = tuple((question.strip(), answer) for question, answer in pair.history)
        pair = replace(pair, question=pair.question.strip(), history=history)
    return pair


def converted(pairs: Iterable[PreferencePair], folder: Path, format: str) -> list[PreferencePair]:
    """Pairs after they were written in a format and read again."""
    path = file_of(folder, format)
    write_pairs(pairs, path, format=format)
    assert {part.format for part in list_slices(path)} == {format}
    return list(load_pairs(path))


@pytest.mark.parametrize(("first", "second"), itertools.product(TARGETS, TARGETS))
def test_round_trips_lose_nothing_that_both_can_hold(first: str, second: str, tmp_path: Path):
    """Catches: an id, a mark, an image, a turn or a blank that a format could hold and loses."""
    pairs = [pair for pair in example_pairs() if held(pair, first) and held(pair, second)]
    assert len(pairs) >= 3
    once = converted(pairs, tmp_path / "first", first)
    assert once == [held(pair, first) for pair in pairs]
    twice = converted(once, tmp_path / "second", second)
    assert twice == [held(pair, second) for pair in once]
    back = converted(twice, tmp_path / "back", first)
    assert back == twice  # nothing more is lost on the way back


@pytest.mark.parametrize(("case", "format"), itertools.product(CASES, TARGETS))
def test_every_file_that_is_read_can_be_written(case: str, format: str, tmp_path: Path):
    """Catches: a format of others whose pairs change on their way through one of ours."""
    pairs = list(load_pairs(write_format(tmp_path, case)))
    assert converted(pairs, tmp_path / "out", format) == pairs


def test_what_a_format_cannot_hold_is_said():
    """Catches: a prompt without its system prompt or its turns; a trait that no table knows."""
    talk = example_pairs()[-1]
    assert traits(talk) == [SYSTEM_PROMPT, TURNS]
    with pytest.raises(DataError, match=r"not_held: format rlaifv has no place for a system"):
        check_held(talk, "rlaifv")
    with pytest.raises(DataError, match=r"not_held: .* earlier turns"):
        check_held(replace(talk, system=""), "rlaifv")
    for target in TARGETS.values():
        assert set(target.places) == {SYSTEM_PROMPT, TURNS, SPANS, ORIGIN, BLANKS}


@pytest.mark.parametrize("format", TARGETS)
def test_the_pages_table_is_what_the_code_holds(format: str):
    """Catches: a table in the documents that promises more, or less, than is written."""
    target = TARGETS[format]
    names = {"yes": "yes", "own": "own column", "no": "no"}
    cells = [names[target.places[trait]] for trait in (SYSTEM_PROMPT, TURNS, SPANS, ORIGIN, BLANKS)]
    suffixes = ", ".join(f"`{suffix}`" for suffix in target.suffixes)
    assert f"| `{format}` | {suffixes} | {' | '.join(cells)} |" in PAGE.read_text()
    assert format in FORMATS and format in str(DataConfig.__annotations__["format"])


def test_layouts_are_those_of_the_tools(tmp_path: Path):
    """Catches: names or nesting that TRL, LLaMA-Factory, ms-swift or Label Studio do not read."""
    talk = example_pairs()[-1]
    rows = {}
    for format in ("llamafactory", "swift", "label_studio"):
        path = file_of(tmp_path / format, format)
        write_pairs([talk], path, format=format)
        lines = path.read_text()
        rows[format] = json.loads(lines)[0] if lines.startswith("[") else json.loads(lines)
    image = f"x_images/{image_name(RED)}"
    assert (tmp_path / "swift" / image).read_bytes() == RED and image.endswith(".png")
    assert rows["llamafactory"] == {
        "conversations": [
            {"from": "human", "value": "<image>c"},
            {"from": "gpt", "value": "d"},
            {"from": "human", "value": "q"},
        ],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
        **{"images": [image], "system": "Be brief.", "id": "talk"},
    }
    assert rows["swift"] == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<image>c"},
            {"role": "assistant", "content": "d"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
        ],
        **{"rejected_response": "b", "images": [image], "id": "talk"},
    }
    data = rows["label_studio"]["data"]
    assert data["image"].startswith("data:image/png;base64,iVBORw0KGgo")
    assert (data["question"], data["chosen"], data["rejected"]) == ("q", "a", "b")


@pytest.mark.parametrize("format", ["rlhfv", "rlaifv", "trl"])
def test_datasets_shows_images_of_every_parquet_file(format: str, tmp_path: Path):
    """Catches: metadata that `datasets` refuses, or by which images are bytes."""
    datasets = pytest.importorskip("datasets")
    path = file_of(tmp_path, format)
    write_pairs(example_pairs()[:1], path, format=format)
    features = datasets.Features.from_arrow_schema(pq.read_schema(path))
    image = features["images"].feature if format == "trl" else features["image"]
    assert isinstance(image, datasets.Image)
    if format == "trl":  # by TRL's own reading
        (row,) = datasets.load_dataset(
            "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
        )
        assert row["images"][0].size == (8, 8)
        question = {"type": "text", "text": TEXTS["question"]}
        parts = [{"type": "image", "text": None}, question]
        assert row["prompt"] == [{"role": "user", "content": parts}]


def test_a_finished_task_is_not_read_as_its_draft(tmp_path: Path):
    """Catches: an annotator's corrections that are passed over in silence."""
    path = file_of(tmp_path, "label_studio")
    write_pairs(example_pairs()[:1], path, format="label_studio")
    (task,) = json.loads(path.read_text())
    path.write_text(json.dumps([{**task, "annotations": [{"result": [{"value": {}}]}]}]))
    with pytest.raises(DataError, match="unsupported_field: annotations"):
        list(load_pairs(path))


def test_unknown_formats_and_suffixes_are_refused(tmp_path: Path):
    """Catches: rows under a name by which no reader knows them."""
    with pytest.raises(ConfigError, match=r"x\.json: a file of format trl ends with \.parquet"):
        write_pairs([], tmp_path / "x.json", format="trl")
    with pytest.raises(ConfigError, match="'povid' cannot be written"):
        write_pairs([], tmp_path / "x.json", format="povid")


def test_trls_own_collator_takes_a_written_file(pairs, tmp_path: Path):
    """Catches: prompts, images or answers that TRL's preference training reads otherwise."""
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl.trainer.dpo_trainer")
    talk = replace(example_pairs()[-1], image=pairs[0].image)
    write_pairs([replace(pairs[0], question="why ?"), talk], tmp_path / "x.parquet", format="trl")
    rows = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "x.parquet"), split="train", cache_dir=str(tmp_path)
    )
    _, processor = qwen2_vl()
    batch = trl.DataCollatorForVisionPreference(processor)([rows[0], rows[1]])
    texts = [processor.tokenizer.decode(row) for row in batch["input_ids"]]  # chosen, then rejected
    assert len(batch["image_grid_thw"]) == 4  # an image for each answer
    assert "why ?" in texts[0] and pairs[0].chosen in texts[0] and pairs[0].rejected in texts[2]
    assert "Be brief." in texts[1] and texts[1].index("<|vision_end|>c") < texts[1].index("q")
